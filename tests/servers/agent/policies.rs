//! What an agent may do in Consul: the policy of the example, word for word but for the names, and
//! nothing of it can be left out.

use serde_json::Value;
use testbed::wait_for;

use super::scene::Scene;
use crate::{
    consul_access::token,
    fixtures::{PATIENCE, guarded_consul, unique},
};

const POLICY: &str = include_str!("../../../examples/policies/agents.hcl");

/// The policy's rules for this cluster, one after the other.
fn rules(cluster: &str) -> Vec<String> {
    let lines = POLICY.lines().filter(|line| line.contains("policy = "));
    let named = |line: &str| {
        let line = line.replace("consul-lock-eu-1-shop", &format!("consul-lock-{cluster}-shop"));
        line.replace("consul-lock/shop/", &format!("{cluster}/shop/"))
    };
    lines.map(named).collect()
}

/// Starts an agent with these rules; what it says of itself once it leads or is in trouble.
fn agent_with(cluster: &str, rules: &[String]) -> Value {
    let scene = Scene::through("policy", &guarded_consul().address());
    let flags = [
        format!("--key={cluster}/shop/{}", unique("lock")),
        format!("--node=consul-lock-{cluster}-shop"),
    ];
    let (mut command, port) = scene.command(&flags.each_ref().map(String::as_str));
    command.env("CONSUL_HTTP_TOKEN", token(&rules.join("\n")).1);
    let agent = scene.spawn((command, port));
    let settled =
        || agent.stands().filter(|told| told["leader"] == true || told["trouble"].is_string());
    wait_for("an agent to settle", PATIENCE, settled).unwrap()
}

#[test]
fn an_agent_needs_each_rule_of_the_documented_policy_and_no_other() {
    let all = |cluster: &str| rules(cluster);
    let missing = [
        ("node", "lacks permission 'node:write'"),
        ("session", "lacks permission 'session:write'"),
        ("key_prefix", "lacks permission 'key:"),
    ];
    assert_eq!(all("x").len(), missing.len(), "{POLICY}");
    let cluster = unique("policies");
    let told = agent_with(&cluster, &all(&cluster));
    assert_eq!(told["leader"], true, "{told:#}");
    for (kind, words) in missing {
        // Another cluster: the node is there once an agent has made it.
        let cluster = unique("policies");
        let rules = all(&cluster);
        let (without, rest): (Vec<_>, Vec<_>) =
            rules.into_iter().partition(|rule| rule.starts_with(&format!("{kind} ")));
        assert_eq!(without.len(), 1, "{kind}");
        let told = agent_with(&cluster, &rest);
        assert_eq!(told["leader"], false, "without {kind}: {told:#}");
        assert!(told["trouble"].as_str().unwrap().contains(words), "without {kind}: {told:#}");
    }
}
