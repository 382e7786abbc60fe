//! A NetworkPolicy in force, by rules of nftables.
//!
//! The node's network plugin knows nothing of policies, and what does without one of its own (such as
//! kube-network-policies) hands packets to a process by `queue`, which not every kernel has. So the
//! policy as it was rendered is translated here, packet by packet of the first of each connection.
//!
//! # Guarantees
//! A field that is not understood is an error, and never something that is allowed or left out.
//! # Not guaranteed
//! Which pods it selects: it is in force for all pods of the cluster. That network plugins agree: what
//! comes from the node itself, such as the kubelet's probes, is let in, as with most of them; and ports
//! are looked at behind a Service's translation.

use std::fmt::Write as _;

use serde_json::Value;

/// The table that is made, and taken away again.
pub(super) const TABLE: &str = "network-policy";

/// The rules for a policy, for pods of this range.
pub(super) fn rules(policy: &Value, pods: &str) -> Result<String, String> {
    let spec = policy["spec"].as_object().ok_or("a policy has a spec")?;
    let known = ["podSelector", "policyTypes", "ingress", "egress"];
    if let Some(field) = spec.keys().find(|field| !known.contains(&field.as_str())) {
        return Err(format!("spec.{field} is not understood"));
    }
    let types = ["Ingress", "Egress"];
    if policy["spec"]["policyTypes"] != serde_json::json!(types) {
        return Err("a policy for both ways is wanted".to_owned());
    }
    if !policy["spec"]["ingress"].is_null() {
        return Err("that somebody is let in is not understood".to_owned());
    }
    let mut out = String::new();
    for rule in policy["spec"]["egress"].as_array().into_iter().flatten() {
        egress(rule, &mut out)?;
    }
    Ok(format!(
        "table ip {TABLE} {{
            chain forward {{
                type filter hook forward priority 0;
                ct state established,related accept
                ip saddr {pods} jump out
                ip daddr {pods} counter drop
            }}
            chain input {{
                type filter hook input priority 0;
                ct state established,related accept
                ip saddr {pods} jump out
            }}
            chain out {{
                {out}counter drop
            }}
        }}"
    ))
}

fn egress(rule: &Value, out: &mut String) -> Result<(), String> {
    let fields = rule.as_object().ok_or("a rule is an object")?;
    if let Some(field) = fields.keys().find(|field| !["to", "ports"].contains(&field.as_str())) {
        return Err(format!("egress: {field} is not understood"));
    }
    let mut places = vec![String::new()];
    if let Some(to) = rule["to"].as_array() {
        places = to.iter().map(place).collect::<Result<_, _>>()?;
    }
    let ports = rule["ports"].as_array().ok_or("a rule without ports is not understood")?;
    for place in &places {
        for port in ports {
            let number = port["port"].as_u64().ok_or(format!("{port} is not understood"))?;
            let protocol = match port["protocol"].as_str() {
                Some("TCP") => "tcp",
                Some("UDP") => "udp",
                _ => return Err(format!("{port} is not understood")),
            };
            if port.as_object().is_some_and(|port| port.len() != 2) {
                return Err(format!("{port} is not understood"));
            }
            let _ = writeln!(out, "{place}{protocol} dport {number} accept");
        }
    }
    Ok(())
}

fn place(peer: &Value) -> Result<String, String> {
    let block = peer["ipBlock"].as_object().filter(|block| block.len() == 1);
    match (peer.as_object().map(serde_json::Map::len), block.and_then(|one| one["cidr"].as_str())) {
        (Some(1), Some(cidr)) => Ok(format!("ip daddr {cidr} ")),
        _ => Err(format!("{peer} is not understood")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy(egress: Value) -> Value {
        json!({"spec": {
            "podSelector": {}, "policyTypes": ["Ingress", "Egress"], "egress": egress,
        }})
    }

    #[test]
    fn what_a_rule_allows_is_allowed_and_all_else_dropped() {
        let dns = json!({"ports": [{"protocol": "UDP", "port": 53}]});
        let consul = json!({
            "to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}, {"ipBlock": {"cidr": "10.0.0.2/32"}}],
            "ports": [{"protocol": "TCP", "port": 8500}],
        });
        let rules = rules(&policy(json!([dns, consul])), "10.1.0.0/25").unwrap();
        let (_, out) = rules.split_once("chain out {").unwrap();
        let lines: Vec<&str> = out.lines().map(str::trim).filter(|line| line.len() > 1).collect();
        assert_eq!(
            lines,
            [
                "udp dport 53 accept",
                "ip daddr 10.0.0.1/32 tcp dport 8500 accept",
                "ip daddr 10.0.0.2/32 tcp dport 8500 accept",
                "counter drop",
            ]
        );
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let port = json!([{"protocol": "TCP", "port": 1}]);
        for rule in [
            json!({"ports": port, "to": [{"podSelector": {}}]}),
            json!({"ports": port, "to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": []}}]}),
            json!({"ports": [{"protocol": "TCP", "port": "http"}]}),
            json!({"ports": [{"protocol": "TCP", "port": 1, "endPort": 9}]}),
            json!({"ports": [{"protocol": "SCTP", "port": 1}]}),
            json!({"to": []}),
        ] {
            assert!(rules(&policy(json!([rule])), "10.1.0.0/25").is_err(), "{rule}");
        }
        let mut open = policy(json!([]));
        open["spec"]["ingress"] = json!([{}]);
        assert!(rules(&open, "10.1.0.0/25").is_err());
    }
}
