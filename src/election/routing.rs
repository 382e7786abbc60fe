//! Where traffic goes: the EndpointSlices of a claim's Service, one for each of its address
//! families, with one endpoint or none.
//!
//! # Guarantees
//! A Service that somebody else routes is left alone: one with a selector, one that is only a name,
//! and one that a slice of somebody else serves.
//! # Not guaranteed
//! When a change reaches the nodes: kube-proxy follows in its own time.

use std::{fmt, net::IpAddr, sync::Arc};

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Service, ServicePort},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::{
        apis::meta::v1::{ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};

use crate::names::FencingToken;

/// The label by which a slice names its Service.
/// <https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/#ownership>
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// The label by which a slice names whoever looks after it.
pub const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// Its value on our slices.
pub const MANAGED_BY: &str = "consullock.dev";
/// The annotation of a slice that tells the fencing token of the endpoint in it.
pub const SLICE_TOKEN_ANNOTATION: &str = "consullock.dev/fencing-token";

/// The pod that traffic is to go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its name.
    pub pod: Arc<str>,
    /// Its UID.
    pub uid: Arc<str>,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// Its addresses, of either family.
    pub addresses: Vec<IpAddr>,
    /// The ports that its containers name: name, protocol, number.
    pub ports: Vec<(String, String, i32)>,
    /// Whether it is Ready.
    pub ready: bool,
    /// The tenure's token.
    pub token: FencingToken,
}

/// Why a Service is not routed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is none of that name.
    NoService,
    /// It selects pods itself.
    HasSelector,
    /// It is a name for something outside.
    ExternalName,
    /// A slice of somebody else serves it.
    Taken {
        /// The slice's name.
        slice: String,
    },
}

/// What a Service's slices should be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slices {
    /// One for each address family of the Service.
    pub slices: Vec<EndpointSlice>,
    /// Ports of the Service that the pod does not name, by the name that was looked for.
    pub unresolved: Vec<String>,
    /// Families of the Service of which the pod has no address.
    pub unaddressed: Vec<String>,
}

/// Whether the Service may be routed. `others`: slices of that Service that are not the claim's, in
/// the order of their age.
///
/// # Errors
/// Why not.
pub fn may_route(service: Option<&Service>, others: &[String]) -> Result<(), Refusal> {
    let spec = service.and_then(|service| service.spec.as_ref()).ok_or(Refusal::NoService)?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return Err(Refusal::ExternalName);
    }
    if spec.selector.as_ref().is_some_and(|selector| !selector.is_empty()) {
        return Err(Refusal::HasSelector);
    }
    match others.first() {
        Some(slice) => Err(Refusal::Taken { slice: slice.clone() }),
        None => Ok(()),
    }
}

/// The slices of a Service that may be routed. `owner`: the claim; `backend`: nobody where traffic
/// is to go nowhere.
pub fn slices(service: &Service, owner: &OwnerReference, backend: Option<&Backend>) -> Slices {
    let mut made = Slices::default();
    let spec = service.spec.as_ref();
    let families = spec.and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    let families = if families.is_empty() { vec!["IPv4".to_owned()] } else { families };
    let ports = spec.and_then(|spec| spec.ports.clone()).unwrap_or_default();
    for family in families {
        let address = backend.and_then(|backend| address(backend, &family));
        if backend.is_some() && address.is_none() {
            made.unaddressed.push(family.clone());
        }
        let endpoint = backend.zip(address).map(|(backend, at)| endpoint(service, backend, at));
        let ports = ports.iter().filter_map(|port| match resolve(port, backend) {
            Some(number) => Some(endpoint_port(port, number)),
            None => {
                let name = wanted_name(port);
                if backend.is_some() && !made.unresolved.contains(&name) {
                    made.unresolved.push(name);
                }
                None
            }
        });
        let ports = ports.collect::<Vec<_>>();
        let token = backend.filter(|_| endpoint.is_some()).map(|backend| backend.token);
        made.slices.push(EndpointSlice {
            metadata: metadata(service, owner, &family, token),
            address_type: family,
            endpoints: endpoint.into_iter().collect(),
            ports: Some(ports),
        });
    }
    made
}

/// The name of a claim's slice for an address family.
pub fn slice_name(claim: &str, family: &str) -> String {
    format!("consullock-{claim}-{}", family.to_lowercase())
}

fn metadata(
    service: &Service,
    owner: &OwnerReference,
    family: &str,
    token: Option<FencingToken>,
) -> ObjectMeta {
    let service_name = service.metadata.name.clone().unwrap_or_default();
    let labels = [(SERVICE_LABEL, service_name.as_str()), (MANAGED_BY_LABEL, MANAGED_BY)];
    let token = token.map(|token| (SLICE_TOKEN_ANNOTATION.to_owned(), token.to_string()));
    ObjectMeta {
        name: Some(slice_name(&owner.name, family)),
        namespace: service.metadata.namespace.clone(),
        labels: Some(labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
        annotations: token.map(|token| [token].into()),
        owner_references: Some(vec![owner.clone()]),
        ..ObjectMeta::default()
    }
}

fn address(backend: &Backend, family: &str) -> Option<IpAddr> {
    let fits = |address: &&IpAddr| address.is_ipv6() == (family == "IPv6");
    backend.addresses.iter().find(fits).copied()
}

fn endpoint(service: &Service, backend: &Backend, address: IpAddr) -> Endpoint {
    Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(backend.ready),
            serving: Some(backend.ready),
            terminating: Some(false),
        }),
        node_name: backend.node.as_ref().map(ToString::to_string),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            name: Some(backend.pod.to_string()),
            namespace: service.metadata.namespace.clone(),
            uid: Some(backend.uid.to_string()),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

/// The port on the pod; `None` where the pod names none of that name and protocol. Without a pod
/// the Service's own number stands for a name.
fn resolve(port: &ServicePort, backend: Option<&Backend>) -> Option<i32> {
    match (&port.target_port, backend) {
        (None, _) => Some(port.port),
        (Some(IntOrString::Int(number)), _) => Some(*number),
        (Some(IntOrString::String(_)), None) => Some(port.port),
        (Some(IntOrString::String(name)), Some(backend)) => {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let named = |(known, of, _): &&(String, String, i32)| known == name && of == protocol;
            backend.ports.iter().find(named).map(|(_, _, number)| *number)
        }
    }
}

fn wanted_name(port: &ServicePort) -> String {
    match &port.target_port {
        Some(IntOrString::String(name)) => name.clone(),
        _ => port.port.to_string(),
    }
}

fn endpoint_port(port: &ServicePort, number: i32) -> EndpointPort {
    EndpointPort {
        // The name joins it to the Service's port; a lone port may have none.
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(number),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        app_protocol: port.app_protocol.clone(),
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NoService => f.write_str("there is no Service of the name in routing.service"),
            Refusal::HasSelector => f.write_str(
                "the Service has a selector, by which Kubernetes itself routes it; remove the \
                 selector",
            ),
            Refusal::ExternalName => {
                f.write_str("the Service is of type ExternalName, which has no endpoints")
            }
            Refusal::Taken { slice } => {
                write!(f, "the EndpointSlice {slice} of somebody else serves the Service already")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(spec: serde_json::Value) -> Service {
        let metadata = json!({ "name": "billing", "namespace": "shop" });
        serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap()
    }

    fn owner() -> OwnerReference {
        OwnerReference { name: "lock".into(), uid: "uid-1".into(), ..OwnerReference::default() }
    }

    fn backend() -> Backend {
        Backend {
            pod: "a".into(),
            uid: "uid-a".into(),
            node: Some("n-1".into()),
            addresses: vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
            ports: vec![("web".into(), "TCP".into(), 8080), ("web".into(), "UDP".into(), 9090)],
            ready: true,
            token: FencingToken::new(41),
        }
    }

    fn numbers(slice: &EndpointSlice) -> Vec<Option<i32>> {
        slice.ports.iter().flatten().map(|port| port.port).collect()
    }

    #[test]
    fn all_ports_are_there_and_names_are_looked_up_on_the_pod() {
        let service = service(json!({
            "ipFamilies": ["IPv4"],
            "ports": [
                { "name": "plain", "port": 80, "targetPort": 8000 },
                { "name": "named", "port": 81, "targetPort": "web", "appProtocol": "http" },
                { "name": "udp", "port": 81, "targetPort": "web", "protocol": "UDP" },
                { "name": "same", "port": 82 },
                { "name": "lost", "port": 83, "targetPort": "nowhere" },
            ],
        }));
        let made = slices(&service, &owner(), Some(&backend()));
        assert_eq!(numbers(&made.slices[0]), [Some(8000), Some(8080), Some(9090), Some(82)]);
        assert_eq!(made.unresolved, ["nowhere"]);
        let ports = made.slices[0].ports.as_ref().unwrap();
        assert_eq!(ports[1].app_protocol.as_deref(), Some("http"));
        assert_eq!(ports[2].protocol.as_deref(), Some("UDP"));
    }

    #[test]
    fn a_slice_belongs_to_its_claim_and_names_its_service_and_the_pod() {
        let made = slices(&service(json!({ "ports": [] })), &owner(), Some(&backend()));
        let [slice] = &made.slices[..] else { panic!("{made:?}") };
        assert_eq!(slice.metadata.name.as_deref(), Some("consullock-lock-ipv4"));
        let labels = slice.metadata.labels.as_ref().unwrap();
        assert_eq!(labels[SERVICE_LABEL], "billing");
        assert_eq!(slice.metadata.owner_references, Some(vec![owner()]));
        assert_eq!(slice.metadata.annotations.as_ref().unwrap()[SLICE_TOKEN_ANNOTATION], "41");
        let [endpoint] = &slice.endpoints[..] else { panic!("{slice:?}") };
        assert_eq!(endpoint.addresses, ["10.0.0.7"]);
        assert_eq!(endpoint.target_ref.as_ref().unwrap().uid.as_deref(), Some("uid-a"));
        assert_eq!(endpoint.node_name.as_deref(), Some("n-1"));
    }

    #[test]
    fn readiness_is_mirrored() {
        for ready in [true, false] {
            let backend = Backend { ready, ..backend() };
            let made = slices(&service(json!({})), &owner(), Some(&backend));
            let conditions = made.slices[0].endpoints[0].conditions.clone().unwrap();
            assert_eq!((conditions.ready, conditions.serving), (Some(ready), Some(ready)));
        }
    }

    #[test]
    fn each_family_has_a_slice_and_the_pod_s_address_of_it() {
        let service = service(json!({ "ipFamilies": ["IPv6", "IPv4"] }));
        let made = slices(&service, &owner(), Some(&backend()));
        let addresses = made.slices.iter().map(|slice| slice.endpoints[0].addresses[0].as_str());
        assert_eq!(addresses.collect::<Vec<_>>(), ["fd00::7", "10.0.0.7"]);
        let single = Backend { addresses: vec!["10.0.0.7".parse().unwrap()], ..backend() };
        let made = slices(&service, &owner(), Some(&single));
        assert_eq!((made.slices[0].endpoints.len(), made.unaddressed), (0, vec!["IPv6".into()]));
        assert_eq!(made.slices[1].endpoints.len(), 1);
        assert_eq!(made.slices[0].metadata.annotations, None, "no endpoint, no token");
    }

    #[test]
    fn without_a_leader_there_is_no_endpoint() {
        let made = slices(&service(json!({ "ports": [{ "port": 80 }] })), &owner(), None);
        assert!(made.slices.iter().all(|slice| slice.endpoints.is_empty()));
        assert_eq!((made.unresolved, made.unaddressed), (vec![], vec![]));
    }

    #[test]
    fn what_others_route_is_left_alone() {
        let free = service(json!({}));
        assert_eq!(may_route(Some(&free), &[]), Ok(()));
        assert_eq!(may_route(None, &[]), Err(Refusal::NoService));
        let selects = service(json!({ "selector": { "app": "billing" } }));
        assert_eq!(may_route(Some(&selects), &[]), Err(Refusal::HasSelector));
        let outside = service(json!({ "type": "ExternalName", "externalName": "x.example" }));
        assert_eq!(may_route(Some(&outside), &[]), Err(Refusal::ExternalName));
        let taken = Refusal::Taken { slice: "mine".to_owned() };
        assert_eq!(may_route(Some(&free), &["mine".to_owned()]), Err(taken));
    }
}
