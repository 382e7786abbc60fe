//! The image as `make image` puts it together, of this profile's binary instead of a release's: unless the
//! variable `TESTBED_IMAGE` names an archive that it made.

use std::{collections::BTreeSet, path::Path, process::Command};

use parking_lot::Mutex;
use serde_json::{Value, json};
use testbed::{Cluster, Consul, ConsulConfig, PRODUCT_IMAGE, ProductImage, run, wait_for};

use crate::bed::{PATIENCE, Space};

/// What is in it beside libraries and the terms of what is copied.
const FILES: [&str; 5] = [
    "consul-lock",
    "etc/group",
    "etc/nsswitch.conf",
    "etc/passwd",
    "etc/ssl/certs/ca-certificates.crt",
];

fn product() -> ProductImage {
    ProductImage::of(Path::new(env!("CARGO_BIN_EXE_consul-lock"))).unwrap()
}

/// Makes it known to a cluster, once.
pub(crate) fn import(cluster: &Cluster) {
    static KNOWN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut known = KNOWN.lock();
    if !known.contains(cluster.node_name()) {
        match std::env::var_os("TESTBED_IMAGE") {
            Some(archive) => cluster.import_archive(archive.as_ref()).unwrap(),
            None => cluster.import(&product().image).unwrap(),
        }
        known.insert(cluster.node_name().to_owned());
    }
}

/// A Consul that a cluster's pods reach by a name that only DNS knows, and that name with the port.
/// No two of them at once on one cluster. Hardened, it denies by default and has an HTTPS port as well.
pub(crate) fn consul_by_name(cluster: &Cluster, hardened: bool) -> (Consul, String) {
    let gateway = cluster.gateway();
    let config = ConsulConfig {
        also_on: vec![gateway],
        dns_on: Some(gateway),
        acl: hardened,
        tls: hardened,
        persistent: hardened,
        ..ConsulConfig::default()
    };
    let consul = Consul::start(config).unwrap();
    let port = consul.http().port();
    let service = json!({
        "Node": "outside", "Address": gateway, "Service": {"Service": "locks", "Port": port},
    });
    let registered =
        consul.request("PUT", "/v1/catalog/register", service.to_string().as_bytes()).unwrap();
    assert!(registered.ok(), "{}", registered.text());
    (consul, format!("locks.service.consul:{port}"))
}

/// A pod that holds a key, and may nothing.
fn agent(cluster: &Cluster, consul: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "agent"},
        "spec": {
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 2,
            "dnsPolicy": "None",
            "dnsConfig": {"nameservers": [cluster.gateway()]},
            "securityContext": {
                "runAsNonRoot": true,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "agent",
                "image": PRODUCT_IMAGE,
                "imagePullPolicy": "Never",
                "args": ["agent", "--key=image", format!("--consul-http-addr={consul}")],
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": true,
                },
            }],
        },
    })
}

#[test]
fn the_image_holds_the_binary_what_it_loads_and_nothing_to_work_with() {
    let product = product();
    let places = product.image.files.iter().map(|(_, place)| place.to_str().unwrap());
    let places: BTreeSet<&str> = places.collect();
    let terms = |place: &&&str| {
        place.starts_with("usr/share/doc/") || place.starts_with("var/lib/dpkg/status.d/")
    };
    let library = |place: &&&str| place.starts_with("lib") && place.contains(".so");
    let others = places.iter().filter(|place| !terms(place) && !library(place));
    assert_eq!(others.copied().collect::<Vec<_>>(), FILES);
    assert!(places.iter().filter(library).count() >= 2, "a C library and its loader: {places:?}");
    assert!(places.contains("usr/share/doc/consul-lock/LICENSE"));
}

#[test]
fn the_image_trusts_debians_authorities_and_none_that_this_machine_has_beside_them() {
    let product = product();
    let bundle = Path::new("etc/ssl/certs/ca-certificates.crt");
    let (file, _) = product.image.files.iter().find(|(_, place)| place == bundle).unwrap();
    let trusted = certificates(&std::fs::read_to_string(file).unwrap());
    let mut list = Command::new("dpkg-query");
    let listed = run(list.args(["--listfiles", "ca-certificates"]), PATIENCE).unwrap();
    let place = "/usr/share/ca-certificates/";
    let of_debian = |file: &&str| file.starts_with(place) && file.ends_with(".crt");
    let debians = listed.lines().filter(of_debian);
    let debians = debians.map(|file| certificates(&std::fs::read_to_string(file).unwrap()));
    assert_eq!(trusted, debians.flatten().collect());
}

/// What stands between BEGIN and END.
fn certificates(pem: &str) -> BTreeSet<String> {
    let begins = pem.split("-----BEGIN CERTIFICATE-----").skip(1);
    begins.map(|rest| rest.split("-----END").next().unwrap().trim().to_owned()).collect()
}

#[test]
fn in_the_image_names_are_looked_up_by_somebody_without_rights_a_shell_or_a_place_to_write() {
    let Some(space) = Space::create("image") else { return };
    import(space.cluster);
    let (consul, address) = consul_by_name(space.cluster, false);
    let restricted = "pod-security.kubernetes.io/enforce=restricted";
    space.kubectl(&["label", "namespace", &space.namespace, restricted]);
    space.apply(&agent(space.cluster, &address));

    let held = || {
        let pair = consul.request("GET", "/v1/kv/image", b"").unwrap();
        pair.ok().then(|| pair.json()[0]["Session"].as_str().map(str::to_owned)).flatten()
    };
    let log = || space.try_kubectl(&["logs", "agent"]);
    wait_for("the pod to hold the key", PATIENCE, held)
        .unwrap_or_else(|late| panic!("{late}; its log: {:?}", log()));
    let inside =
        |program: &[&str]| space.try_kubectl(&[&["exec", "agent", "--"], program].concat());
    let definition = std::fs::read_to_string("crds/consullocks.yaml").unwrap();
    assert_eq!(inside(&["/consul-lock", "crd"]).unwrap(), definition);
    let shell = inside(&["/bin/sh", "-c", "true"]).unwrap_err().to_string();
    assert!(shell.contains("no such file or directory"), "{shell}");
}
