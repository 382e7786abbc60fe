# The image of ConsulLock, for amd64 and arm64:
#
#   docker buildx build --platform linux/amd64,linux/arm64 --tag REGISTRY/consul-lock:TAG --push .
#
# Each platform is built on its own, by a builder of that kind or emulated. `make image` builds the
# same image without a container engine.

# The C library of this Debian goes into the image; see tools/image/assemble.sh.
FROM rust:1.95-slim-bookworm AS build
# What the binary is made of goes into it, and into an SBOM.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    cargo install --locked cargo-auditable@0.7.7 cargo-cyclonedx@0.5.9
WORKDIR /src
COPY . .
ARG TARGETARCH
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,id=consul-lock-target-${TARGETARCH},target=/src/target \
    tools/image/build.sh /out \
    && tools/image/assemble.sh /out/consul-lock /image

# Nothing else: no shell, no package manager, nobody's home.
FROM scratch
COPY --from=build /image/ /
LABEL org.opencontainers.image.title="consul-lock" \
      org.opencontainers.image.description="Locks and leader election for Kubernetes that live in HashiCorp Consul" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"
USER 65532:65532
EXPOSE 8080/tcp
ENTRYPOINT ["/consul-lock"]
