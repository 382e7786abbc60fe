//! The binary as a user meets it, without any server.

#![expect(clippy::unwrap_used, reason = "a test may panic, and so may its helpers")]

mod book;

use std::{
    net::TcpListener,
    process::{Command, Output},
};

fn consul_lock(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consul-lock"));
    // Nothing of whoever runs the tests.
    command.env_clear().args(args).envs(variables.iter().copied());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Asserts that the controller ends at once, with this exit code and these words.
#[track_caller]
fn refused(args: &[&str], variables: &[(&str, &str)], code: i32, words: &[&str]) {
    let ended = consul_lock(&[&["controller"], args].concat(), variables);
    let said = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
    assert!(!said.contains("s3cret"), "{said}");
}

#[test]
fn crd_prints_the_definition_that_is_checked_in() {
    let printed = consul_lock(&["crd"], &[]);
    assert!(printed.status.success());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/consullocks.yaml");
    assert_eq!(text(&printed.stdout), std::fs::read_to_string(path).unwrap());
}

#[test]
fn man_pages_are_those_that_are_checked_in() {
    let folder = testbed::Folder::new("man").unwrap();
    let written = consul_lock(&["man", folder.path().to_str().unwrap()], &[]);
    assert!(written.status.success(), "{}", text(&written.stderr));
    let pages = |path: &std::path::Path| {
        let files = std::fs::read_dir(path).unwrap().map(|file| file.unwrap());
        let page = |file: std::fs::DirEntry| {
            (file.file_name().into_string().unwrap(), std::fs::read_to_string(file.path()).unwrap())
        };
        files.map(page).collect::<std::collections::BTreeMap<_, _>>()
    };
    let (now, kept) =
        (pages(folder.path()), pages(concat!(env!("CARGO_MANIFEST_DIR"), "/man").as_ref()));
    assert_eq!(
        now.keys().collect::<Vec<_>>(),
        kept.keys().collect::<Vec<_>>(),
        "run make generate"
    );
    for (name, page) in &now {
        assert!(*page == kept[name], "{name} is out of date: run make generate");
    }
    for name in ["consul-lock.1", "consul-lock-run.1", "kubectl-consullock-doctor.1"] {
        assert!(now.contains_key(name), "{name}");
    }
}

#[test]
fn the_plugin_is_the_same_binary_by_another_name() {
    let folder = testbed::Folder::new("plugin").unwrap();
    let plugin = folder.path().join("kubectl-consullock");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_consul-lock"), &plugin).unwrap();
    let run = |args: &[&str]| Command::new(&plugin).env_clear().args(args).output().unwrap();
    let help = text(&run(&["--help"]).stdout);
    for word in ["Usage: kubectl consullock", "handover", "doctor", "--context", "75 it did not"] {
        assert!(help.contains(word), "no {word:?} in: {help}");
    }
    assert!(!help.contains("Run the operator"), "{help}");
    let wrong = run(&["list", "-o", "xml"]);
    assert_eq!(wrong.status.code(), Some(2));
    let nowhere = ["--kubeconfig=/nonexistent", "list"];
    let ended = run(&nowhere);
    assert_eq!(ended.status.code(), Some(1));
    assert!(text(&ended.stderr).contains("/nonexistent"), "{}", text(&ended.stderr));
}

#[test]
fn shells_complete_both_names() {
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&consul_lock(&["completion", shell], &[]).stdout);
        for word in ["consul-lock", "handover", "try-once"] {
            assert!(script.contains(word), "no {word:?} for {shell}");
        }
    }
}

#[test]
fn help_lists_variables_and_exit_codes_and_no_secret() {
    let secrets = [
        ("CONSUL_HTTP_TOKEN", "s3cret"),
        ("CONSUL_HTTP_AUTH", "me:s3cret"),
        ("CONSUL_HTTP_ADDR", "http://me:s3cret@consul"),
    ];
    let help = consul_lock(&["controller", "--help"], &secrets);
    let shown = text(&help.stdout);
    assert!(help.status.success());
    for word in ["CONSUL_HTTP_TOKEN_FILE", "CONSUL_LOCK_KEY_PREFIX", "Exit codes: 0", "8s"] {
        assert!(shown.contains(word), "no {word:?} in: {shown}");
    }
    assert!(!shown.contains("s3cret"), "{shown}");
}

#[test]
fn wrong_usage_is_refused_with_two() {
    refused(&["--lease-duration=3s"], &[], 2, &["--lease-renew-deadline", "shorter"]);
    refused(&[], &[("CONSUL_LOCK_LEASE_DURATION", "soon")], 2, &["--lease-duration", "1m30s"]);
    refused(&[], &[("CONSUL_LOCK_ADMIN_ADDR", "x")], 2, &["--admin-addr", "0.0.0.0:8080"]);
    refused(&[], &[("CONSUL_HTTP_ADDR", "ftp://x")], 2, &["CONSUL_HTTP_ADDR", "unix"]);
    refused(&[], &[("CONSUL_HTTP_TOKEN", "s3cret s3cret")], 2, &["CONSUL_HTTP_TOKEN"]);
    refused(&[], &[("CONSUL_HTTP_SSL_VERIFY", "false")], 2, &["CONSUL_CACERT"]);
    refused(&[], &[("CONSUL_HTTP_AUTH", "me:s3cret")], 2, &["CONSUL_HTTP_TOKEN_FILE"]);
}

#[test]
fn taken_admin_address_is_three() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refused(&["--admin-addr", &address], &[], 3, &["--admin-addr", &address, "in use"]);

    // Variables that are set to nothing count as not set; the validation lets this one through.
    let empty = [
        ("CONSUL_HTTP_ADDR", ""),
        ("CONSUL_HTTP_SSL_VERIFY", " "),
        ("CONSUL_CACERT", ""),
        ("CONSUL_LOCK_KEY_PREFIX", ""),
        ("CONSUL_LOCK_LEASE_DURATION", ""),
        ("CONSUL_LOCK_WATCH_NAMESPACES", ""),
    ];
    refused(&["--admin-addr", &address], &empty, 3, &["in use"]);
}

#[test]
fn token_file_wins_over_the_token_of_the_same_rank() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (file, token) =
        (("CONSUL_HTTP_TOKEN_FILE", "/nonexistent"), ("CONSUL_HTTP_TOKEN", "s3cret"));
    let run = |flags: &[&str], variables: &[(&str, &str)]| {
        let ended = consul_lock(&[&["run", "--key=k"], flags, &["--", "true"]].concat(), variables);
        let said = text(&ended.stderr).to_owned();
        assert_eq!(ended.status.code(), Some(2), "{said}");
        assert!(said.contains("CONSUL_HTTP_TOKEN_FILE") && said.contains("No such file"), "{said}");
    };
    run(&[], &[file, token]);
    run(&["--consul-http-token-file=/nonexistent"], &[token]);
    // What runs for ever waits for its files.
    refused(&["--admin-addr", &address], &[file], 3, &["in use"]);
    let typed = ["--consul-http-token=s3cret", "--admin-addr", &address];
    refused(&typed, &[file], 3, &["in use"]);
}

#[test]
fn missing_kubernetes_configuration_is_three() {
    let nowhere = [("KUBECONFIG", "/nonexistent"), ("HOME", "/nonexistent")];
    refused(&["--admin-addr=127.0.0.1:0"], &nowhere, 3, &["KUBECONFIG"]);
}

#[test]
fn run_refuses_wrong_usage_with_two_and_does_not_wait_for_itself() {
    let run = |args: &[&str], variables: &[(&str, &str)]| {
        let ended = consul_lock(&[&["run"], args, &["--", "true"]].concat(), variables);
        (ended.status.code(), text(&ended.stderr))
    };
    let under = [("CONSUL_LOCK_HELD", "true"), ("CONSUL_LOCK_KEY", "shop/billing")];
    for (args, variables, word) in [
        (&[][..], &[][..], "--key"),
        (&["--key=k", "--ttl=10s"], &[], "--grace 4s or less"),
        (&["--key=k"], &[("CONSUL_LOCK_TTL", "soon")], "--ttl"),
        (&["--key=k"], &[("CONSUL_HTTP_ADDR", "ftp://x")], "CONSUL_HTTP_ADDR"),
        (&["--key=shop/billing"], &under, "would wait for itself"),
        (&[], &under, "would wait for itself"),
    ] {
        let (code, said) = run(args, variables);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
}

#[test]
fn agent_refuses_wrong_usage_with_two_and_what_it_cannot_have_with_three() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("--listen={}", taken.local_addr().unwrap());
    let nowhere = [("KUBECONFIG", "/nonexistent"), ("HOME", "/nonexistent")];
    for (args, variables, expected, word) in [
        (&[][..], &[][..], 2, "--key"),
        (&["--key=k", "--ttl=10s"], &[], 2, "--grace 4s or less"),
        (&["--key=k"], &[("CONSUL_LOCK_POD_UID", "0f2a")], 2, "CONSUL_LOCK_POD_NAME"),
        (&["--claim=b"], &[("CONSUL_LOCK_NAMESPACE", "")], 2, "--namespace"),
        (&["--key=k", &taken], &[], 3, "in use"),
        // A guard says what its agent has said.
        (&["--key=k", "--process=p", &taken], &[], 3, "in use"),
        (&["--claim=b", "--namespace=n", "--listen=127.0.0.1:0"], &nowhere, 3, "KUBECONFIG"),
    ] {
        let ended = consul_lock(&[&["agent"], args].concat(), variables);
        let said = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(expected), "{args:?}: {said}");
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
}
