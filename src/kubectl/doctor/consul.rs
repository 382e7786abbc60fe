//! What the controller needs of Consul, each by doing it under the key prefix and on a node of its
//! own, which are cleaned up behind it.

use std::time::Duration;

use super::{Setting, finding::Finding};
use crate::{
    consul::{
        Behavior, Class, Consistency, Consul, ConsulError, PutMode, SessionRequest,
        http::{Census, HttpConsul},
    },
    names::{Key, NodeName, SessionId, SessionName},
};

/// The name of the sessions that are made for an examination.
const PROBE: &str = "consul-lock-doctor";

/// What is made for the examination, and has to go again.
pub(super) struct Probe {
    pub(super) node: NodeName,
    made_node: bool,
    sessions: Vec<SessionId>,
    keys: Vec<Key>,
}

impl Probe {
    pub(super) fn new(setting: &Setting) -> Probe {
        let (cluster, random) = (&setting.cluster, rand::random::<u32>());
        Probe {
            node: NodeName::new(format!("consul-lock-{cluster}-doctor-{random:08x}")),
            made_node: false,
            sessions: Vec::new(),
            keys: Vec::new(),
        }
    }

    /// Takes everything away again; what could not be.
    pub(super) async fn clean_up(&mut self, consul: &HttpConsul) -> Vec<String> {
        let mut left = Vec::new();
        for key in std::mem::take(&mut self.keys) {
            if let Err(error) = consul.delete(&key).await {
                left.push(format!("the key {key}: {error}"));
            }
        }
        for session in std::mem::take(&mut self.sessions) {
            if let Err(error) = consul.destroy_session(&session).await {
                left.push(format!("the session {session}, which ends by itself: {error}"));
            }
        }
        if std::mem::take(&mut self.made_node)
            && let Err(error) = consul.deregister_node(&self.node).await
        {
            left.push(format!("the node {}: {error}", self.node));
        }
        left
    }
}

/// Whether Consul answers, and has a leader.
pub(super) async fn answers(consul: &HttpConsul, address: &str) -> Finding {
    const CHECK: &str = "Consul: answers, and has a leader";
    match consul.leader().await {
        Ok(Some(leader)) => {
            Finding::ok(CHECK, format!("{address} answers; the leader is {leader}"))
        }
        Ok(None) => Finding::problem(
            CHECK,
            format!("{address} answers, but its servers have no leader"),
            vec!["consul operator raft list-peers".to_owned(), "consul members".to_owned()],
        ),
        Err(error) => Finding::problem(
            CHECK,
            format!("{address}: {error}"),
            vec![format!("curl -sS {}/v1/status/leader", url(address))],
        ),
    }
}

/// A rule of Consul's ACLs, as the book lists them, by doing what it allows.
fn denied(check: String, rule: &str, error: &ConsulError) -> Finding {
    match error.class {
        Class::Denied => {
            let write = format!("echo '{rule}' > consul-lock.hcl");
            let policy = "consul acl policy create -name consul-lock-more -rules @consul-lock.hcl";
            let token =
                "consul acl token update -id ACCESSOR-ID -append-policy-name consul-lock-more";
            let repair = vec![write, policy.to_owned(), token.to_owned()];
            Finding::problem(check, error.to_string(), repair)
        }
        _ => Finding::unknown(check, error.to_string()),
    }
}

/// `node_prefix`, `session_prefix`, and the shortest TTL in use. `known`: a node of ours that is
/// there already.
pub(super) async fn sessions(
    consul: &HttpConsul,
    setting: &Setting,
    probe: &mut Probe,
    (ttl, whose): (Duration, &str),
    known: Option<&NodeName>,
) -> Vec<Finding> {
    let nodes = format!("consul-lock-{}-", setting.cluster);
    let node_rule = format!(r#"node_prefix "{nodes}" {{ policy = "write" }}"#);
    let session_rule = format!(r#"session_prefix "{nodes}" {{ policy = "write" }}"#);
    let node_check = format!("ACL: {node_rule}");
    let session_check = format!("ACL: {session_rule}");
    let ttl_check = format!("Consul: grants a TTL of {}", crate::api::GoDuration::from(ttl));
    let mut findings = Vec::new();
    let node = match consul.register_node(&probe.node).await {
        Ok(()) => {
            probe.made_node = true;
            findings.push(Finding::ok(node_check, format!("registered the node {}", probe.node)));
            Some(probe.node.clone())
        }
        Err(error) => {
            findings.push(denied(node_check, &node_rule, &error));
            known.cloned()
        }
    };
    let Some(node) = node else {
        findings.push(Finding::unknown(session_check, "there is no node to make a session on"));
        findings.push(Finding::unknown(ttl_check, "there is no node to make a session on"));
        return findings;
    };
    let made = consul.create_session(&request(&node, ttl)).await;
    match made {
        Ok(session) => {
            probe.sessions.push(session.clone());
            let renewed = consul.renew_session(&session).await;
            findings.push(match renewed {
                Ok(_) => Finding::ok(session_check, "made a session, and renewed it"),
                Err(error) => denied(session_check, &session_rule, &error),
            });
            findings.push(Finding::ok(ttl_check, format!("it is the shortest, {whose}")));
        }
        Err(error) if error.class == Class::Invalid && error.message.contains("TTL") => {
            findings.push(Finding::ok(session_check, "a session would be made"));
            findings.push(Finding::problem(
                ttl_check,
                format!("{error}; it is the shortest, {whose}"),
                vec![format!(
                    "set session_ttl_min in the configuration of Consul's servers to {ttl:?} \
                             or less, or raise spec.session.ttl"
                )],
            ));
        }
        Err(error) => {
            findings.push(denied(session_check, &session_rule, &error));
            findings.push(Finding::unknown(ttl_check, "no session may be made"));
        }
    }
    findings
}

fn request(node: &NodeName, ttl: Duration) -> SessionRequest {
    SessionRequest {
        name: SessionName::new(PROBE),
        node: node.clone(),
        ttl,
        lock_delay: Duration::ZERO,
        behavior: Behavior::Delete,
        node_checks: Vec::new(),
        service_checks: Vec::new(),
    }
}

/// `session_prefix "" read`, by which strangers are told apart.
pub(super) fn strangers(census: &Result<Census, ConsulError>, nodes: &str) -> Finding {
    let rule = r#"session_prefix "" { policy = "read" }"#;
    let check = format!("ACL: {rule}");
    match census {
        Ok(census) if census.is_filtered => denied(
            check,
            rule,
            &ConsulError {
                operation: crate::consul::Operation::ListSessions,
                class: Class::Denied,
                message: "ACLs hide some sessions, so strangers are shown without their names"
                    .to_owned(),
            },
        ),
        Ok(census) => {
            let others = census.sessions.iter().filter(|one| !one.node.as_str().starts_with(nodes));
            match others.count() {
                0 => Finding::ok(check, "nobody else has a session now that could be hidden"),
                others => Finding::ok(check, format!("{others} sessions of others are seen")),
            }
        }
        Err(error) => denied(check, rule, error),
    }
}

/// `key_prefix`: written, read, listed and deleted under it.
pub(super) async fn keys(consul: &HttpConsul, probe: &mut Probe, prefix: &str) -> Finding {
    let rule = format!(r#"key_prefix "{prefix}" {{ policy = "write" }}"#);
    let check = format!("ACL: {rule}");
    let name = format!("{prefix}consul-lock-doctor-{:08x}", rand::random::<u32>());
    let Ok(key) = Key::new(&name) else {
        return Finding::unknown(check, format!("{name} is no key"));
    };
    probe.keys.push(key.clone());
    let used = async {
        consul.put(&key, b"", None, PutMode::Plain).await?;
        consul.get(&key, Consistency::Consistent).await?;
        let now = crate::consul::Blocking { after: 0, wait: Duration::from_secs(1) };
        consul.watch_prefix(&name, now, Consistency::Default).await?;
        consul.delete(&key).await
    };
    match used.await {
        Ok(()) => {
            probe.keys.retain(|known| *known != key);
            Finding::ok(check, format!("wrote, read, listed and deleted {key}"))
        }
        Err(error) => {
            if error.class == Class::Denied {
                // Nothing was written that would have to go.
                probe.keys.retain(|known| *known != key);
            }
            denied(check, &rule, &error)
        }
    }
}

/// Sessions on our nodes that no claim accounts for.
pub(super) fn leaks(
    census: &Result<Census, ConsulError>,
    setting: &Setting,
    uids: Option<&[String]>,
    address: &str,
) -> Finding {
    const CHECK: &str = "Consul: no session of ours without a claim";
    let (census, uids) = match (census, uids) {
        (Ok(census), Some(uids)) => (census, uids),
        (Err(error), _) => return Finding::unknown(CHECK, error.to_string()),
        (_, None) => return Finding::unknown(CHECK, "the claims may not be listed"),
    };
    let nodes = format!("consul-lock-{}-", setting.cluster);
    let names = format!("consul-lock/{}/", setting.cluster);
    let ours = census.sessions.iter().filter(|one| {
        let of = setting
            .confined
            .iter()
            .any(|namespace| one.node.as_str() == format!("{nodes}{namespace}"));
        // Another examination's goes by itself.
        one.name.as_str() != PROBE
            && one.node.as_str().starts_with(&nodes)
            && (setting.confined.is_empty() || of)
    });
    let is_leak = |name: &str| {
        name.strip_prefix(&names).is_none_or(|uid| !uids.iter().any(|known| known == uid))
    };
    let (leaked, kept): (Vec<_>, Vec<_>) = ours.partition(|one| is_leak(one.name.as_str()));
    if leaked.is_empty() {
        return Finding::ok(CHECK, format!("{} sessions, each of a claim", kept.len()));
    }
    let named = leaked.iter().map(|one| format!("{} on {}", one.id, one.node));
    let detail = named.collect::<Vec<_>>().join(", ");
    let repair = leaked.iter().map(|one| {
        format!(
            "curl -X PUT -H \"X-Consul-Token: $CONSUL_HTTP_TOKEN\" {}/v1/session/destroy/{}",
            url(address),
            one.id
        )
    });
    Finding::problem(CHECK, detail, repair.collect())
}

fn url(address: &str) -> String {
    if address.contains("://") { address.to_owned() } else { format!("http://{address}") }
}

#[cfg(test)]
mod tests {
    use super::{
        super::finding::{Finding, Verdict},
        *,
    };
    use crate::consul::{Operation, SessionInfo};

    fn setting() -> Setting {
        Setting { cluster: "west".to_owned(), confined: Vec::new() }
    }

    fn session(id: &str, node: &str, name: &str) -> SessionInfo {
        SessionInfo {
            id: SessionId::new(id),
            name: SessionName::new(name),
            node: NodeName::new(node),
            ttl: None,
            lock_delay: Duration::ZERO,
            behavior: Behavior::Release,
            create_index: 1,
        }
    }

    fn judged(sessions: Vec<SessionInfo>, setting: &Setting) -> Finding {
        let census = Ok(Census { sessions, is_filtered: false });
        let uids = ["uid-1".to_owned()];
        leaks(&census, setting, Some(&uids), "consul:8500")
    }

    #[test]
    fn a_session_of_our_nodes_is_accounted_for_by_a_claim_or_leaked() {
        let known = || session("s-1", "consul-lock-west-shop", "consul-lock/west/uid-1");
        let strangers = session("s-2", "vm-7", "consul-lock/west/uid-9");
        let elsewhere = session("s-3", "consul-lock-east-shop", "consul-lock/east/uid-9");
        let fine = judged(vec![known(), strangers, elsewhere], &setting());
        assert_eq!((fine.verdict, &*fine.detail), (Verdict::Ok, "1 sessions, each of a claim"));
        for (node, name) in [
            ("consul-lock-west-shop", "consul-lock/west/uid-9"),
            ("consul-lock-west-gone", "something else"),
        ] {
            let found = judged(vec![known(), session("s-4", node, name)], &setting());
            assert_eq!(found.verdict, Verdict::Problem);
            assert!(found.detail.starts_with("s-4 on "), "{found:?}");
            assert!(found.repair[0].ends_with("http://consul:8500/v1/session/destroy/s-4"));
        }
        let confined = Setting { confined: vec!["ops".to_owned()], ..setting() };
        let others = session("s-4", "consul-lock-west-shop", "consul-lock/west/uid-9");
        assert_eq!(judged(vec![others], &confined).verdict, Verdict::Ok, "another controller's");
    }

    #[test]
    fn hidden_sessions_are_a_rule_that_is_missing() {
        let hidden = Ok(Census { sessions: Vec::new(), is_filtered: true });
        let found = strangers(&hidden, "consul-lock-west-");
        assert_eq!(found.verdict, Verdict::Problem);
        assert!(found.repair[0].contains(r#"session_prefix "" { policy = "read" }"#));
        let broken = Err(ConsulError {
            operation: Operation::ListSessions,
            class: Class::Transient,
            message: "no answer".to_owned(),
        });
        assert_eq!(strangers(&broken, "x").verdict, Verdict::Unknown);
    }
}
