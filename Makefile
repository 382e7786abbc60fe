# What one does with this repository. `make help` lists it.

# The commands, so that a wrapper can be put before them.
CARGO ?= cargo
GO ?= go
# The folder that cargo builds into.
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Where the tests' API servers log what the controllers and agents ask for.
AUDIT := $(abspath $(TARGET))/audit

# How many tests of the servers run at a time: they wait for most of theirs.
WAITING := $(shell echo $$(( 2 * $$(getconf _NPROCESSORS_ONLN) )))

# What we wrote in Go: peers that tests and benchmarks run beside us, and what runs in test pods.
GO_CODE := benches/peers/api-lock benches/peers/leader-election testbed/backend examples

# The kind of machine that `make image` is for, as Rust calls it (aarch64-unknown-linux-gnu; empty: this
# one's), and where it puts what it makes.
TRIPLE ?=
IMAGE := $(TARGET)/image$(if $(TRIPLE),-$(TRIPLE))

# Writes the chart's objects, as Helm makes them, for those who check them.
RENDER := mkdir -p $(TARGET) && $(CARGO) run --quiet --locked --package testbed -- render > $(TARGET)/chart.yaml

# What `make fuzz` runs, and each for how long. No sanitizer: there is no unsafe code of ours, and a
# stable toolchain does.
FUZZ_TARGETS ?= $(notdir $(basename $(wildcard fuzz/fuzz_targets/*.rs)))
FUZZ_SECONDS ?= 60

.DEFAULT_GOAL := help
.PHONY: help demo test soak fuzz lint generate book image ready reproducible servers tools bench need-rust need-lints need-go need-cc need-fuzz

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: servers ## start the servers, the controller and a story to watch
	$(CARGO) build --locked
	$(CARGO) run --quiet --locked --package testbed -- demo

test: export TESTBED_AUDIT := $(AUDIT)
test: tools ## run every test, from unit tests to real servers
	@rm -rf $(AUDIT)
	$(CARGO) test --locked --workspace --lib --bins --examples --test '[!s]*'
	RUST_TEST_THREADS=$(WAITING) $(CARGO) test --locked --workspace --test 's*'
	$(CARGO) test --locked --workspace --doc
	@if [ "$$TESTBED_POSTGRES" = required ]; then \
		echo "RBAC: what was granted, and what was used"; \
		$(CARGO) run --quiet --locked --package testbed -- rights $(AUDIT); \
	else \
		echo "NOT COMPARED: what was granted and what was used, as tests may have been skipped:" \
			"TESTBED_POSTGRES=required"; \
	fi

soak: servers ## take Consul's servers away under held locks, fifty times each way; most of an hour
	ROUNDS=50 $(CARGO) test --locked --test servers run::cluster

lint: need-lints need-go need-cc ## check format, lints, and what we depend on
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- --deny warnings
	@for module in $(GO_CODE); do \
		echo "gofmt and go vet: $$module"; \
		unformatted=$$(gofmt -l $$module) || exit 1; \
		[ -z "$$unformatted" ] || { echo "not formatted by gofmt: $$unformatted"; exit 1; }; \
		( cd $$module && $(GO) vet -mod=readonly ./... ) || exit 1; \
	done
	@if command -v cargo-deny >/dev/null; then \
		echo "cargo deny"; $(CARGO) deny --locked check bans licenses sources || exit 1; \
		if timeout 120 $(CARGO) deny --locked fetch db >/dev/null 2>&1; then \
			$(CARGO) deny --locked --offline check advisories || exit 1; \
		else \
			echo "NOT CHECKED: advisories about what we depend on, as their database," \
				"https://github.com/RustSec/advisory-db, cannot be reached"; \
		fi; \
	else \
		echo "NOT CHECKED: bans, licences, sources and advisories (deny.toml), for want of" \
			"cargo-deny: cargo install --locked cargo-deny"; \
	fi
	@if command -v checkov >/dev/null; then \
		echo "checkov: the chart's objects"; $(RENDER) || exit 1; \
		BC_SKIP_MAPPING=TRUE checkov --framework kubernetes --file $(TARGET)/chart.yaml \
			--skip-download --quiet --compact || exit 1; \
	else \
		echo "NOT CHECKED by checkov: the chart's objects:" \
			"pip install -r tools/checkov/requirements.txt"; \
	fi
	@if command -v kube-linter >/dev/null; then \
		echo "kube-linter: the chart's objects"; $(RENDER) || exit 1; \
		kube-linter lint $(TARGET)/chart.yaml || exit 1; \
	else \
		echo "NOT CHECKED by kube-linter: the chart's objects:" \
			"go install golang.stackrox.io/kube-linter/cmd/kube-linter@v0.8.1"; \
	fi
	@if command -v mdbook >/dev/null; then \
		$(MAKE) --no-print-directory book || exit 1; \
	else \
		echo "NOT CHECKED: that the book builds, for want of mdbook:" \
			"cargo install --locked --version '^0.5' mdbook"; \
	fi

fuzz: need-fuzz ## put any bytes in the place of what others write, each target for a minute
	@cp Cargo.lock fuzz/Cargo.lock # the same dependencies
	@for target in $(FUZZ_TARGETS); do \
		echo "fuzz: $$target"; mkdir -p $(TARGET)/fuzz-corpus/$$target || exit 1; \
		$(CARGO) fuzz run --sanitizer none --target-dir $(TARGET)/fuzz $$target \
			$(TARGET)/fuzz-corpus/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -timeout=10 -print_final_stats=1 -verbosity=0 || exit 1; \
	done

generate: need-rust need-cc ## write crds/, man/, the chart's values and the reference anew from their sources
	@mkdir -p crds man
	$(CARGO) run --quiet --locked -- crd > crds/consullocks.yaml.new
	mv crds/consullocks.yaml.new crds/consullocks.yaml
	cp crds/consullocks.yaml charts/consul-lock/crds/consullocks.yaml
	$(CARGO) run --quiet --locked --package testbed -- chart
	@rm -f man/*.1
	$(CARGO) run --quiet --locked -- man man
	GENERATE=1 $(CARGO) test --quiet --locked --test cli book::reference::the_reference_is_current

# mdbook takes every page for one of the book's; links that leave it lead to files of the repository.
book: ## build the book: docs/book/index.html
	@command -v mdbook >/dev/null || { echo "mdbook is missing:" \
		"cargo install --locked --version '^0.5' mdbook"; exit 1; }
	mdbook build docs
	@find docs/book -name '*.html' -exec \
		sed -i.old -E 's|href="((\.\./){2,}[^"]*)\.html|href="\1.md|g' {} +
	@find docs/book -name '*.html.old' -delete

image: need-rust need-cc ## make the container image without an engine: target/image/consul-lock.tar
	TRIPLE=$(TRIPLE) tools/image/build.sh $(IMAGE)
	TRIPLE=$(TRIPLE) $(CARGO) run --quiet --locked --package testbed -- \
		image $(IMAGE)/consul-lock $(IMAGE)/consul-lock.tar

ready: image tools ## say how long it takes from its container until it is ready, on a real node
	$(CARGO) run --quiet --locked --package testbed -- ready $(IMAGE)/consul-lock.tar

reproducible: image ## make the image once more in another folder, and compare both byte by byte
	TRIPLE=$(TRIPLE) tools/image/reproduce.sh $(IMAGE)

servers: need-rust need-go need-cc ## find or build the servers; minutes the first time
	$(CARGO) build --locked --package testbed
	$(CARGO) run --quiet --locked --package testbed -- servers

tools: servers ## the same, and as root on Linux what the tests with real pods need
	$(CARGO) run --quiet --locked --package testbed -- tools

bench: servers ## measure speed beside peers and floors; builds for some minutes first
	$(CARGO) bench --locked --bench controller
	$(CARGO) bench --locked --bench locks

need-rust:
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: install Rust 1.89 or later," \
		"https://rustup.rs (Debian: apt install rustup, then rustup default stable)"; exit 1; }

need-lints: need-rust
	@$(CARGO) fmt --version >/dev/null 2>&1 && $(CARGO) clippy --version >/dev/null 2>&1 || { \
		echo "rustfmt or clippy is missing: rustup component add rustfmt clippy"; exit 1; }

need-go:
	@command -v $(GO) >/dev/null || { echo "go is missing: install Go 1.26 or later," \
		"https://go.dev/dl (Debian: apt install golang; an older Go fetches the right one)"; exit 1; }

need-cc:
	@command -v cc >/dev/null || { echo "a C compiler is missing" \
		"(Debian: apt install gcc libc6-dev)"; exit 1; }

need-fuzz: need-rust
	@command -v cargo-fuzz >/dev/null || { echo "cargo-fuzz is missing:" \
		"cargo install --locked --version '^0.13' cargo-fuzz"; exit 1; }
	@command -v c++ >/dev/null || { echo "a C++ compiler is missing (Debian: apt install g++)"; exit 1; }
