//! Who a holder is that we see on a key. Pure.

use serde::Deserialize;

use crate::{api::HolderStatus, keeper::SeenHolder};

/// What the names of our sessions begin with.
pub(super) const SESSION_PREFIX: &str = "consul-lock/";

/// The longest text of others that goes into a status, in characters.
const MAX_CHARS: usize = 256;

/// What a claim's keeper writes into the key that it holds, as far as it tells who it is.
#[derive(Deserialize)]
struct Payload {
    holder: String,
    cluster: String,
    pod: Option<String>,
}

/// The holder as a status shows it. What others wrote is shortened and stripped of control
/// characters, for it ends up on somebody's terminal.
pub fn of(seen: &SeenHolder) -> HolderStatus {
    let named_like_ours =
        seen.session_name.as_ref().is_none_or(|name| name.starts_with(SESSION_PREFIX));
    let payload = serde_json::from_slice::<Payload>(&seen.value);
    match payload {
        Ok(payload) if named_like_ours && payload.holder.contains('/') => {
            // Outside of every cluster, what comes before the slash is a host.
            let cluster = Some(clean(&payload.cluster)).filter(|cluster| !cluster.is_empty());
            let first = payload.holder.split('/').next().map(clean);
            let namespace = first.filter(|_| cluster.is_some());
            let pod = payload.pod.as_deref().map(clean);
            let of_pod = namespace.as_ref().zip(pod.as_ref());
            HolderStatus {
                identity: match of_pod {
                    Some((namespace, pod)) => format!("{namespace}/{pod}"),
                    None => clean(&payload.holder),
                },
                cluster,
                namespace,
                pod,
                ..HolderStatus::default()
            }
        }
        _ => HolderStatus {
            identity: clean(&stranger(seen)),
            stranger: true,
            ..HolderStatus::default()
        },
    }
}

fn stranger(seen: &SeenHolder) -> String {
    let name = seen.session_name.as_deref().filter(|name| !name.is_empty());
    match (name, &seen.node) {
        (Some(name), Some(node)) => format!("{name} on {node}"),
        (Some(name), None) => name.to_owned(),
        (None, _) => format!("session {}", seen.session),
    }
}

fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::SessionId;

    fn seen(name: Option<&str>, node: Option<&str>, value: &str) -> SeenHolder {
        SeenHolder {
            session: SessionId::new("5e55"),
            session_name: name.map(str::to_owned),
            node: node.map(str::to_owned),
            value: value.as_bytes().to_vec(),
        }
    }

    const OURS: &str = r#"{"holder":"shop/billing","cluster":"west","since":"now","value":""}"#;

    #[test]
    fn another_claim_is_shown_by_its_name_and_cluster() {
        for name in [Some("consul-lock/west/uid"), None] {
            let holder = of(&seen(name, Some("consul-lock-west-shop"), OURS));
            assert_eq!(holder.identity, "shop/billing");
            assert_eq!(holder.cluster.as_deref(), Some("west"));
            assert_eq!(holder.namespace.as_deref(), Some("shop"));
            assert!(!holder.stranger);
        }
    }

    #[test]
    fn a_run_outside_of_every_cluster_is_shown_by_its_host_and_name() {
        let value = r#"{"holder":"vm-7/billing","cluster":"","since":"now","value":""}"#;
        let holder = of(&seen(Some("consul-lock/vm-7/billing/1f"), None, value));
        assert_eq!(holder.identity, "vm-7/billing");
        assert_eq!((holder.cluster, holder.namespace, holder.stranger), (None, None, false));
    }

    #[test]
    fn the_pod_that_another_claim_holds_the_key_for_is_shown() {
        let value = r#"{"holder":"shop/billing","cluster":"east","pod":"b-7","value":""}"#;
        let holder = of(&seen(Some("consul-lock/east/uid"), None, value));
        assert_eq!((holder.identity.as_str(), holder.pod.as_deref()), ("shop/b-7", Some("b-7")));
        assert_eq!((holder.cluster.as_deref(), holder.uid), (Some("east"), None));
    }

    #[test]
    fn strangers_are_shown_by_their_session() {
        for (name, node, value, identity) in [
            (Some("Consul API Lock"), Some("vm-7"), "", "Consul API Lock on vm-7"),
            (Some("Consul API Lock"), None, "x", "Consul API Lock"),
            (Some(""), Some("vm-7"), "", "session 5e55"),
            (None, None, "{}", "session 5e55"),
            // What we wrote once may still stand in a key that a stranger holds now.
            (Some("Consul API Lock"), Some("vm-7"), OURS, "Consul API Lock on vm-7"),
        ] {
            let holder = of(&seen(name, node, value));
            assert_eq!(holder.identity, identity);
            assert!(holder.stranger);
        }
    }

    #[test]
    fn what_others_wrote_is_shortened_and_cleaned() {
        let name = format!("\x1b[31m{}", "x".repeat(1000));
        let holder = of(&seen(Some(&name), None, ""));
        assert!(holder.identity.starts_with("[31mx"));
        assert_eq!(holder.identity.chars().count(), MAX_CHARS);
    }
}
