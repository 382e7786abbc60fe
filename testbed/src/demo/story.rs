//! The story, step by step, and the checks that it went as told.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use testbed::{Server, Stopwatch, wait_for};

use super::DemoError;
use super::screen::Screen;
use super::stage::{Claim, Replica, Stage, json_of, log_has};

/// How long the replicas and the stranger may take for what takes them seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the examples declare that shall be held at once.
const HELD: [&str; 3] = ["billing", "nightly", "migrate"];

/// What is held once there is a pod to elect.
const ELECTS: &str = "ledger";

/// The session name of the stranger, by which it is shown as a holder.
const STRANGER: &str = "vm-17";

/// What the stranger prints once it holds the key.
const STRANGER_WORKS: &str = "the migration runs";

/// What the run on a VM is called, and the key that it contends for with a claim.
const VM: &str = "vm-18";
const VM_KEY: &str = "consul-lock/shop/billing";
/// What its command prints, and its token behind that.
const VM_WORKS: &str = "paying with token";

const LIST: &str = "kubectl get consullocks -A -o wide";

/// The Service's endpoint, whenever it changes; the pod comes first.
const ENDPOINTS: &str = "kubectl -n shop get endpointslices -l kubernetes.io/service-name=ledger \
    --watch -o custom-columns='POD:.endpoints[*].targetRef.name,ADDRESS:.endpoints[*].addresses[*]'";

const HOLDER: &str = "kubectl -n shop get pods -l consullock.dev/ledger=holder \
    -o custom-columns='POD:.metadata.name,TOKEN:.metadata.annotations.token\\.consullock\\.dev/ledger'";

const LAST_TENURE: &str = "kubectl -n shop get consullock ledger \
    -o jsonpath='{.status.history[0].holder}{\" ended: \"}{.status.history[0].reason}'";

/// What a kubelet would report.
const DIED: &str = "testbed/demo/container-died.yaml";

/// Tells all of it.
pub(super) fn tell(stage: &mut Stage, screen: &mut Screen) -> Result<(), DemoError> {
    install_definition(stage, screen)?;
    start_replicas(stage, screen)?;
    declare_locks(stage, screen)?;
    let ours = stranger_contends(stage, screen)?;
    let theirs = pause(stage, screen, ours)?;
    take_back(stage, screen, theirs)?;
    run_on_vm(stage, screen)?;
    let endpoints = elect(stage, screen)?;
    fail_over(stage, screen, &endpoints)?;
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
            "one that is paused, and one whose key is meant for Consul's own tools as well. Two more",
            "elect pods, and wait until there are some.",
        ],
    )?;
    stage.run(screen, "kubectl apply -f examples/")?;
    let watch = Stopwatch::start();
    wait_phase(stage, screen, &HELD, "Held")?;
    let took = seconds(&watch);
    wait_phase(stage, screen, &["reports"], "Paused")?;
    wait_phase(stage, screen, &[ELECTS], "Waiting")?;
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
    stage.start_job(screen, STRANGER, &line)?;
    let log = stage.job_log();
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
    patch_paused(stage, screen, "migrate", true)?;
    let watch = Stopwatch::start();
    wait_line(
        stage,
        screen,
        "-n shop consullock/migrate",
        "--for=jsonpath='{.status.holder.stranger}'=true",
    )?;
    let took = seconds(&watch);
    let log = stage.job_log();
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
    patch_paused(stage, screen, "migrate", false)?;
    wait_phase(stage, screen, &["migrate"], "Waiting")?;
    stage.run(screen, "kubectl -n shop get consullock migrate")?;
    let claim = stage.claim("migrate")?;
    let waits = claim.phase() == "Waiting" && claim.held_by_stranger();
    expect(waits, "migrate to wait for the stranger", || claim.to_string())?;

    screen.aside("the stranger's job is done:")?;
    let watch = Stopwatch::start();
    stage.end_job(screen)?;
    wait_phase(stage, screen, &["migrate"], "Held")?;
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

fn run_on_vm(stage: &mut Stage, screen: &mut Screen) -> Result<(), DemoError> {
    screen.step(
        "On a VM: a command under the lock",
        &[
            "`consul-lock run` is the same binary. It holds a key itself while a command runs, and",
            "stops the command before the lock may be relied on no longer. It takes turns with the",
            "claim `billing`: it loses while the claim holds the key, and wins when it is paused.",
        ],
    )?;
    let run = format!("consul-lock run --key={VM_KEY} --name={VM}");
    let refused = "code=$?; echo \"exit code $code\"; test $code = 75";
    stage.run(screen, &format!("{run} --try-once -- echo paying; {refused}"))?;
    let before = stage.claim("billing")?;
    let pays = format!("'echo {VM_WORKS} $CONSUL_LOCK_TOKEN; exec sleep 3600'");
    stage.start_job(screen, VM, &format!("{run} -- sh -c {pays}"))?;
    patch_paused(stage, screen, "billing", true)?;
    let shown = || stage.claim("billing").ok().filter(|claim| claim.holder().ends_with(VM));
    wait_for("the status to show the run", PATIENCE, shown)?;
    patch_paused(stage, screen, "billing", false)?;
    wait_phase(stage, screen, &["billing"], "Waiting")?;
    stage.run(screen, "kubectl -n shop get consullock billing")?;
    let log = stage.job_log();
    stage.run(screen, &format!("cat {}", log.display()))?;
    let theirs = token_in(&log);
    expect(theirs > before.token(), "the run to have a higher token", || format!("{theirs:?}"))?;
    let waits = stage.claim("billing")?;
    expect(!waits.held_by_stranger(), "a holder that is no stranger", || waits.to_string())?;

    screen.aside("the command is told to end:")?;
    let watch = Stopwatch::start();
    stage.end_job(screen)?;
    wait_phase(stage, screen, &["billing"], "Held")?;
    let (took, after) = (seconds(&watch), stage.claim("billing")?);
    stage.run(screen, "kubectl -n shop get consullock billing")?;
    expect(after.token() > theirs, "a token above the run's", || after.to_string())?;
    screen.good(format!("the command had ended and the claim had the key after {took}"))?;
    Ok(())
}

/// The token that the command on the VM printed.
fn token_in(log: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(log).ok()?;
    text.lines().find_map(|line| line.strip_prefix(VM_WORKS)?.trim().parse().ok())
}

/// Returns the watch on the Service's endpoints.
fn elect(stage: &Stage, screen: &mut Screen) -> Result<Server, DemoError> {
    screen.step(
        "Elect one of three pods",
        &[
            "The claim `ledger` has waited for them. Nothing here makes a Deployment's pods, so they",
            "are made by hand. kwok plays their nodes: it reports what a kubelet would, and nothing",
            "really runs. The elected pod gets a label, its token, and a Service's only endpoint.",
        ],
    )?;
    let endpoints = stage.start_watch(screen, "endpoints", ENDPOINTS)?;
    stage.run(screen, "kubectl apply -f testbed/demo/pods.yaml")?;
    wait_line(stage, screen, "-n shop pods -l app=ledger", "--for=condition=Ready")?;
    let pod = wait_routed(&endpoints, "", "a pod to be elected")?;
    wait_holder(stage, screen, &pod)?;
    stage.run(screen, "kubectl -n shop get consullock ledger -o wide")?;
    stage.run(screen, "kubectl -n shop get pods -l app=ledger -L consullock.dev/ledger")?;
    stage.run(screen, HOLDER)?;
    stage.run(screen, "kubectl -n shop get endpointslices -l kubernetes.io/service-name=ledger")?;
    expect_pods_of_deployment(stage)?;
    let token = expect_elected(stage, &pod)?;
    screen.good(format!(
        "{pod} has the label, the token {token} and the endpoint; nobody else has"
    ))?;
    Ok(endpoints)
}

fn fail_over(stage: &Stage, screen: &mut Screen, endpoints: &Server) -> Result<(), DemoError> {
    screen.step(
        "The elected pod's container dies: the next pod is elected",
        &[
            "A kwok node has no kubelet. What one would report of a container that was killed is",
            "written into the pod's status by hand. It proves the end, so nothing is waited for:",
            "endpoint away, label away, the key moves with a higher token, endpoint on the next pod.",
        ],
    )?;
    let before = stage.claim(ELECTS)?;
    let old = before.pod();
    stage.run(screen, &format!("cat {DIED}"))?;
    let watch = Stopwatch::start();
    let report =
        format!("kubectl -n shop patch pod {old} --subresource=status --patch-file={DIED}");
    stage.run(screen, &report)?;
    let new = wait_routed(endpoints, old, "another pod to be elected")?;
    let took = seconds(&watch);
    stage.run(screen, &format!("cat {}", endpoints.log().display()))?;
    wait_holder(stage, screen, &new)?;
    stage.run(screen, "kubectl -n shop get consullock ledger -o wide")?;
    stage.run(screen, "kubectl -n shop get pods -l app=ledger -L consullock.dev/ledger")?;
    stage.run(screen, HOLDER)?;
    stage.run(screen, LAST_TENURE)?;
    let (lost, won) = (before.token().unwrap_or_default(), expect_elected(stage, &new)?);
    expect(won > lost, format!("a token above {lost}"), || won.to_string())?;
    let after = stage.claim(ELECTS)?;
    let ended = (format!("shop/{old}"), "PodDied".to_owned());
    expect(after.last_tenure() == ended, format!("a tenure that ended: {ended:?}"), || {
        after.to_string()
    })?;
    screen.good(format!(
        "{new} had the endpoint {took} after the report, kubectl's start included; \
         token {won} after {lost}"
    ))?;
    Ok(())
}

fn kill_leader(stage: &Stage, screen: &mut Screen) -> Result<(), DemoError> {
    screen.step(
        "Kill the leading controller: no tenure is lost",
        &[
            "SIGKILL, so it can tell nobody. The standby takes the Lease once it has been silent for",
            "8 seconds, and adopts the sessions that the status names. Consul never notices, nor",
            "does the elected pod.",
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
        if after.name == ELECTS {
            expect_elected(stage, before.pod())?;
        }
    }
    screen.good(format!("{name} leads after {took}; same sessions, same tokens, same tenures"))?;
    Ok(())
}

/// Waits until the Service leads to another pod than this one; its name.
fn wait_routed(endpoints: &Server, other_than: &str, what: &str) -> Result<String, DemoError> {
    let new = || routed(endpoints.log()).filter(|pod| pod != other_than);
    Ok(wait_for(what, PATIENCE, new)?)
}

/// The pod that the Service leads to, by what the watch printed last.
fn routed(endpoints: &Path) -> Option<String> {
    let text = std::fs::read_to_string(endpoints).ok()?;
    let (lines, _unfinished) = text.rsplit_once('\n')?;
    let pod = lines.lines().skip(1).last()?.split_whitespace().next()?;
    (pod != "<none>").then(|| pod.to_owned())
}

fn wait_holder(stage: &Stage, screen: &Screen, pod: &str) -> Result<(), DemoError> {
    let condition = format!("--for=jsonpath='{{.status.holder.pod}}'={pod}");
    wait_line(stage, screen, "-n shop consullock/ledger", &condition)
}

/// The pods made by hand are what the example's Deployment asks for.
fn expect_pods_of_deployment(stage: &Stage) -> Result<(), DemoError> {
    let parts = |spec: &Value| [spec["containers"].clone(), spec["volumes"].clone()];
    let deployment = stage.object("-n shop deployment ledger")?;
    let wanted = parts(&deployment["spec"]["template"]["spec"]);
    for pod in items(&stage.object("-n shop pods -l app=ledger")?) {
        expect(parts(&pod["spec"]) == wanted, format!("a pod of {wanted:?}"), || pod.to_string())?;
    }
    Ok(())
}

/// One pod of three is the claim's: it has the label and the token, and the Service leads to it.
/// Returns the token.
fn expect_elected(stage: &Stage, elected: &str) -> Result<u64, DemoError> {
    let claim = stage.claim(ELECTS)?;
    let token = claim.token().unwrap_or_default();
    let held = claim.phase() == "Held" && claim.pod() == elected && token > 0;
    expect(held, format!("ledger to be Held for {elected}"), || claim.to_string())?;

    let pods = stage.object("-n shop pods -l app=ledger")?;
    let marks = items(&pods).map(|pod| {
        let of = |what: &str, name: &str| pod["metadata"][what][name].as_str().map(str::to_owned);
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let token = of("annotations", "token.consullock.dev/ledger");
        (name, of("labels", "consullock.dev/ledger"), token)
    });
    let (theirs, others): (Vec<_>, Vec<_>) = marks.partition(|(name, ..)| name == elected);
    let mark = (elected.to_owned(), Some("holder".to_owned()), Some(token.to_string()));
    let alone = theirs == [mark] && others.len() == 2;
    let unmarked = others.iter().all(|(_, label, token)| label.is_none() && token.is_none());
    let expected = format!("{elected} alone to have the label, and the token {token}");
    expect(alone && unmarked, expected, || format!("{theirs:?}, {others:?}"))?;

    let slices = stage.object("-n shop endpointslices -l kubernetes.io/service-name=ledger")?;
    let routed: Vec<&str> = items(&slices)
        .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten())
        .map(|endpoint| endpoint["targetRef"]["name"].as_str().unwrap_or_default())
        .collect();
    expect(routed == [elected], format!("{elected} to be the Service's endpoint"), || {
        slices.to_string()
    })?;
    Ok(token)
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

fn patch_paused(
    stage: &Stage,
    screen: &Screen,
    claim: &str,
    paused: bool,
) -> Result<(), DemoError> {
    let patch = format!("'{{\"spec\":{{\"paused\":{paused}}}}}'");
    stage.run(screen, &format!("kubectl -n shop patch consullock {claim} --type=merge -p {patch}"))
}

fn wait_phase(
    stage: &Stage,
    screen: &Screen,
    claims: &[&str],
    phase: &str,
) -> Result<(), DemoError> {
    let names: Vec<String> = claims.iter().map(|claim| format!("consullock/{claim}")).collect();
    let condition = format!("--for=jsonpath='{{.status.phase}}'={phase}");
    let object = format!("-n shop {}", names.join(" "));
    wait_line(stage, screen, &object, &condition).map_err(|error| {
        let seen = claims.iter().map(|claim| match stage.claim(claim) {
            Ok(claim) => claim.to_string(),
            Err(error) => error.to_string(),
        });
        match error {
            DemoError::Command { .. } => DemoError::Unexpected {
                expected: format!("{} to become {phase}", claims.join(", ")),
                seen: seen.collect::<Vec<_>>().join(", "),
            },
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
    renewals.is_some_and(|renewals| renewals >= all_held().count() as f64)
}

fn claims(stage: &Stage) -> Result<Vec<Claim>, DemoError> {
    all_held().map(|name| stage.claim(name)).collect()
}

/// What is held since a pod was elected.
fn all_held() -> impl Iterator<Item = &'static str> {
    HELD.into_iter().chain([ELECTS])
}

fn same_tenure(before: &Claim, after: &Claim) -> Result<(), DemoError> {
    let tenure = |claim: &Claim| {
        let names = [claim.phase(), claim.session(), claim.pod()].map(str::to_owned);
        (names, claim.token(), claim.transitions())
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
