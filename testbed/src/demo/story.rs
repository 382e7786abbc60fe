//! The story, step by step, and the checks that it went as told.

use std::time::Duration;

use testbed::{Stopwatch, wait_for};

use super::DemoError;
use super::screen::Screen;
use super::stage::{Claim, Replica, Stage, json_of, log_has};

/// How long the replicas and the stranger may take for what takes them seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the examples declare that shall be held.
const HELD: [&str; 3] = ["billing", "nightly", "migrate"];

/// The session name of the stranger, by which it is shown as a holder.
const STRANGER: &str = "vm-17";

/// What the stranger prints once it holds the key.
const STRANGER_WORKS: &str = "the migration runs";

const LIST: &str = "kubectl get consullocks -A -o wide";

/// Tells all of it.
pub(super) fn tell(stage: &mut Stage, screen: &mut Screen) -> Result<(), DemoError> {
    install_definition(stage, screen)?;
    start_replicas(stage, screen)?;
    declare_locks(stage, screen)?;
    let ours = stranger_contends(stage, screen)?;
    let theirs = pause(stage, screen, ours)?;
    take_back(stage, screen, theirs)?;
    kill_leader(stage, screen)
}

fn install_definition(stage: &Stage, screen: &mut Screen) -> Result<(), DemoError> {
    screen.step(
        "Teach Kubernetes what a ConsulLock is",
        &["The definition is generated from the controller's own types, defaults and rules included."],
    )?;
    stage.run(screen, "kubectl apply -f crds/consullocks.yaml")?;
    wait_line(stage, screen, "crd/consullocks.consullock.dev", "--for=condition=Established")
}

fn start_replicas(stage: &mut Stage, screen: &mut Screen) -> Result<(), DemoError> {
    screen.step(
        "Start two replicas of the controller",
        &[
            "One leads, the other stands by with warm caches. They agree on it by a Lease, and the",
            "very first election takes as long as a Lease is valid: 8 seconds.",
        ],
    )?;
    stage.run(screen, "kubectl create namespace consul-lock")?;
    stage.start_replica(screen)?;
    stage.start_replica(screen)?;
    let watch = Stopwatch::start();
    screen.aside("waiting until both are ready and one of them leads ...")?;
    for replica in stage.replicas() {
        replica.server.wait_ready()?;
    }
    let leader = wait_for("a leader among the replicas", PATIENCE, || leader(stage))?;
    stage.run(screen, "kubectl -n consul-lock get lease consul-lock")?;
    let name = leader.server.name();
    expect(holds_lease(stage, &name)?, format!("the Lease to be held by {name}"), || {
        "another holder".to_owned()
    })?;
    screen.good(format!("{name} leads, after {}", seconds(&watch)))?;
    Ok(())
}

fn declare_locks(stage: &Stage, screen: &mut Screen) -> Result<(), DemoError> {
    screen.step(
        "Declare some locks",
        &[
            "The examples, word for word: a lock with nothing but defaults, one for a nightly job,",
            "one that is paused, and one whose key is meant for Consul's own tools as well.",
        ],
    )?;
    stage.run(screen, "kubectl apply -f examples/")?;
    let watch = Stopwatch::start();
    for claim in HELD {
        wait_phase(stage, screen, claim, "Held")?;
    }
    let took = seconds(&watch);
    wait_phase(stage, screen, "reports", "Paused")?;
    stage.run(screen, LIST)?;
    for name in HELD {
        let claim = stage.claim(name)?;
        let held = claim.phase() == "Held" && claim.token().is_some();
        expect(held, format!("{name} to be Held and to have a token"), || claim.to_string())?;
    }
    screen.good(format!(
        "three keys held after {took}. TOKEN is the fencing token: it rises with every tenure"
    ))?;
    Ok(())
}

fn stranger_contends(stage: &mut Stage, screen: &mut Screen) -> Result<Claim, DemoError> {
    screen.step(
        "A stranger contends for a key that we hold",
        &[
            "Somebody on a VM uses Consul's own `consul lock`. It follows the same convention, so it",
            "waits. (It appends /.lock to what it is told; the claim `migrate` names that key.)",
        ],
    )?;
    let before = stage.claim("migrate")?;
    // exec: `consul lock` ends its own child only and would leave a grandchild behind.
    let work = format!("'echo {STRANGER_WORKS}; exec sleep 3600'");
    let line = format!("consul lock -verbose -name={STRANGER} shop/migrate {work}");
    stage.start_stranger(screen, STRANGER, &line)?;
    let log = stage.stranger_log();
    screen.aside("waiting until it has a session of its own and asks for the key ...")?;
    wait_for("the stranger's attempt to lock", PATIENCE, || {
        (log_has(&log, "Attempting lock acquisition") && stranger_has_session(stage)).then_some(())
    })?;
    stage.run(screen, &format!("cat {}", log.display()))?;
    stage.run(screen, "consul kv get -detailed shop/migrate/.lock")?;
    stage.run(screen, "kubectl -n shop get consullock migrate")?;
    let claim = stage.claim("migrate")?;
    same_tenure(&before, &claim)?;
    expect_key_held_by(stage, &claim, claim.session())?;
    expect(!log_has(&log, "Starting handler"), "the stranger to wait", || "it works".to_owned())?;
    screen.good("it waits: the key's Session is ours, and its ModifyIndex is our token")?;
    Ok(claim)
}

/// Returns the key's index under the stranger.
fn pause(stage: &Stage, screen: &mut Screen, ours: Claim) -> Result<u64, DemoError> {
    screen.step(
        "Pause the claim: the stranger gets the key",
        &[
            "A pause is a clean stop: the key is released before the session ends, so nobody waits",
            "for a lock-delay. The claim goes on showing who holds the key.",
        ],
    )?;
    patch_paused(stage, screen, true)?;
    let watch = Stopwatch::start();
    wait_line(
        stage,
        screen,
        "-n shop consullock/migrate",
        "--for=jsonpath='{.status.holder.stranger}'=true",
    )?;
    let took = seconds(&watch);
    let log = stage.stranger_log();
    wait_for("the stranger to start its work", PATIENCE, || {
        log_has(&log, STRANGER_WORKS).then_some(())
    })?;
    stage.run(screen, &format!("cat {}", log.display()))?;
    stage.run(screen, "kubectl get consullocks -A")?;
    let claim = stage.claim("migrate")?;
    let shown = claim.phase() == "Paused"
        && claim.held_by_stranger()
        && claim.holder().contains(STRANGER)
        && claim.token().is_none();
    let expected = format!("migrate to be Paused, without a token, and held by {STRANGER}");
    expect(shown, expected, || claim.to_string())?;
    let (session, index) = key_of(stage, &claim)?;
    let taken = session.is_some() && session.as_deref() != Some(ours.session());
    expect(taken && Some(index) > ours.token(), "the key to have a new holder", || {
        format!("session {session:?}, index {index}")
    })?;
    screen.good(format!("the stranger had the key and the status showed it after {took}"))?;
    Ok(index)
}

fn take_back(stage: &mut Stage, screen: &mut Screen, theirs: u64) -> Result<(), DemoError> {
    screen.step(
        "Resume the claim: it waits its turn, and takes the key back",
        &["We do not take a stranger's key. As soon as the stranger is done, the key is ours again."],
    )?;
    patch_paused(stage, screen, false)?;
    wait_phase(stage, screen, "migrate", "Waiting")?;
    stage.run(screen, "kubectl -n shop get consullock migrate")?;
    let claim = stage.claim("migrate")?;
    let waits = claim.phase() == "Waiting" && claim.held_by_stranger();
    expect(waits, "migrate to wait for the stranger", || claim.to_string())?;

    screen.aside("the stranger's job is done:")?;
    let watch = Stopwatch::start();
    stage.end_stranger(screen)?;
    wait_phase(stage, screen, "migrate", "Held")?;
    let took = seconds(&watch);
    stage.run(screen, "kubectl -n shop get consullock migrate")?;
    let claim = stage.claim("migrate")?;
    expect(
        claim.token() > Some(theirs),
        format!("a token above {theirs}, the stranger's"),
        || claim.to_string(),
    )?;
    expect_key_held_by(stage, &claim, claim.session())?;
    screen.good(format!("ours again after {took}, the stranger's own cleaning up included"))?;
    Ok(())
}

fn kill_leader(stage: &Stage, screen: &mut Screen) -> Result<(), DemoError> {
    screen.step(
        "Kill the leading controller: no tenure is lost",
        &[
            "SIGKILL, so it can tell nobody. The standby takes the Lease once it has been silent for",
            "8 seconds, and adopts the sessions that the status names. Consul never notices.",
        ],
    )?;
    let gone = wait_for("a leader among the replicas", PATIENCE, || leader(stage))?;
    let (old, pid) = (gone.server.name(), gone.server.pid().unwrap_or_default());
    let before = claims(stage)?;
    stage.run(screen, LIST)?;
    stage.run(screen, &format!("kill -KILL {pid} # {old}"))?;
    gone.server.wait_ended(PATIENCE)?;
    let watch = Stopwatch::start();
    screen.aside("waiting until the standby leads and has renewed every session ...")?;
    let new = wait_for("the standby to lead", PATIENCE, || leader(stage))?;
    wait_for("the new leader to adopt every session", PATIENCE, || adopted(new).then_some(()))?;
    let (name, took) = (new.server.name(), seconds(&watch));
    stage.run(screen, "kubectl -n consul-lock get lease consul-lock")?;
    expect(
        name != old && holds_lease(stage, &name)?,
        format!("the Lease to be held by {name}"),
        || "another holder".to_owned(),
    )?;
    stage.run(screen, LIST)?;
    for (before, after) in before.iter().zip(claims(stage)?) {
        same_tenure(before, &after)?;
        expect_key_held_by(stage, &after, before.session())?;
    }
    screen.good(format!("{name} leads after {took}; same sessions, same tokens, same tenures"))?;
    Ok(())
}

fn patch_paused(stage: &Stage, screen: &Screen, paused: bool) -> Result<(), DemoError> {
    let patch = format!("'{{\"spec\":{{\"paused\":{paused}}}}}'");
    stage.run(screen, &format!("kubectl -n shop patch consullock migrate --type=merge -p {patch}"))
}

fn wait_phase(stage: &Stage, screen: &Screen, claim: &str, phase: &str) -> Result<(), DemoError> {
    let condition = format!("--for=jsonpath='{{.status.phase}}'={phase}");
    wait_line(stage, screen, &format!("-n shop consullock/{claim}"), &condition).map_err(|error| {
        let seen = stage.claim(claim).map_or_else(|error| error.to_string(), |c| c.to_string());
        match error {
            DemoError::Command { .. } => {
                DemoError::Unexpected { expected: format!("{claim} to become {phase}"), seen }
            }
            other => other,
        }
    })
}

fn wait_line(
    stage: &Stage,
    screen: &Screen,
    object: &str,
    condition: &str,
) -> Result<(), DemoError> {
    stage.run(screen, &format!("kubectl wait {object} {condition} --timeout=60s"))
}

fn leader(stage: &Stage) -> Option<&Replica> {
    let mut running = stage.replicas().iter().filter(|replica| replica.server.pid().is_some());
    running.find(|replica| replica.leads())
}

fn holds_lease(stage: &Stage, replica: &str) -> Result<bool, DemoError> {
    let line = "kubectl -n consul-lock get lease consul-lock -o jsonpath={.spec.holderIdentity}";
    Ok(stage.ask(line)?.starts_with(replica))
}

/// Whether a new leader has renewed as many sessions as there are claims to adopt. It does so at
/// once, and for the second time only seconds later.
fn adopted(leader: &Replica) -> bool {
    let renewals = leader.metric("consul_lock_renewals_total{result=\"ok\"}");
    renewals.is_some_and(|renewals| renewals >= HELD.len() as f64)
}

fn claims(stage: &Stage) -> Result<Vec<Claim>, DemoError> {
    HELD.iter().map(|name| stage.claim(name)).collect()
}

fn same_tenure(before: &Claim, after: &Claim) -> Result<(), DemoError> {
    let tenure = |claim: &Claim| {
        (claim.phase().to_owned(), claim.session().to_owned(), claim.token(), claim.transitions())
    };
    let expected = format!("{} to be in the same tenure as before: {before}", after.name);
    expect(tenure(before) == tenure(after), expected, || after.to_string())
}

/// The session that holds a claim's key according to Consul, and the key's index.
fn key_of(stage: &Stage, claim: &Claim) -> Result<(Option<String>, u64), DemoError> {
    let path = format!("/v1/kv/{}?consistent", claim.key());
    let pair = stage.consul().request("GET", &path, b"")?.json()[0].take();
    let session = pair["Session"].as_str().map(str::to_owned);
    Ok((session, pair["ModifyIndex"].as_u64().unwrap_or_default()))
}

/// The key's index is the token; once the key was adopted, or its value changed, it is higher.
fn expect_key_held_by(stage: &Stage, claim: &Claim, session: &str) -> Result<(), DemoError> {
    let (holder, index) = key_of(stage, claim)?;
    let right = holder.as_deref() == Some(session) && Some(index) >= claim.token();
    let token = claim.token().unwrap_or_default();
    let expected = format!("{} to be held by session {session} since {token}", claim.key());
    expect(right, expected, || format!("session {holder:?}, index {index}"))
}

fn stranger_has_session(stage: &Stage) -> bool {
    let sessions = stage.consul().request("GET", "/v1/session/list", b"");
    let sessions = sessions.map(|reply| json_of(&reply.text())).unwrap_or_default();
    sessions.as_array().into_iter().flatten().any(|session| session["Name"] == STRANGER)
}

fn expect(
    right: bool,
    expected: impl Into<String>,
    seen: impl FnOnce() -> String,
) -> Result<(), DemoError> {
    match right {
        true => Ok(()),
        false => Err(DemoError::Unexpected { expected: expected.into(), seen: seen() }),
    }
}

fn seconds(watch: &Stopwatch) -> String {
    format!("{:.1} s", watch.elapsed().as_secs_f32())
}
