//! The example of an agent beside an app on a real node, and what its app has done there.
//!
//! What differs from `examples/sidecar/payroll.yaml`: names of the namespace, the cluster and Consul,
//! the app's witness, and what a test says.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use testbed::{Cluster, Consul, ConsulConfig, Folder, Image, ProductImage, wait_for};

use crate::{
    bed::{PATIENCE, Space, cluster},
    controller::{Replica, install_definition},
};

const EXAMPLE: &str = include_str!("../../examples/sidecar/payroll.yaml");

/// What its Deployment, its claim, its app's container and that one's program are called.
const NAME: &str = "payroll";

/// The example, applied, with a controller beside it.
pub(crate) struct Payroll {
    pub(crate) space: Space,
    pub(crate) controller: Replica,
    witness: PathBuf,
    _folder: Folder,
}

/// What a test wants otherwise than the example has it.
pub(crate) struct Wishes<'a> {
    /// How long the app works on after SIGTERM; not at all listening if there is none.
    pub(crate) farewell: Option<&'a str>,
    /// More of the claim's spec.
    pub(crate) claim: Value,
    /// The security context of the agent.
    pub(crate) agents: Option<Value>,
    /// That of the app, which has none in the example.
    pub(crate) apps: Value,
}

impl Default for Wishes<'_> {
    fn default() -> Self {
        Wishes { farewell: Some("1s"), claim: json!({}), agents: None, apps: json!({}) }
    }
}

/// A piece of work.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Work {
    /// When, since the machine started.
    pub(crate) at: Duration,
    pub(crate) pod: String,
    /// The app's process, in its pod.
    process: String,
    pub(crate) token: u64,
    /// Until when it could rely on the lock, as far as it had heard.
    pub(crate) valid_until: Duration,
}

impl Work {
    /// `AT POD PROCESS TOKEN VALID_UNTIL`
    fn parse(line: &str) -> Work {
        let [at, pod, process, token, valid_until] =
            line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let seconds = |text: &str| Duration::from_secs_f64(text.parse().unwrap());
        Work {
            at: seconds(at),
            pod: pod.to_owned(),
            process: process.to_owned(),
            token: token.parse().unwrap(),
            valid_until: seconds(valid_until),
        }
    }

    /// Whether one start of an app did both.
    pub(crate) fn is_of_run(&self, other: &Work) -> bool {
        (&self.pod, &self.process) == (&other.pod, &other.process)
    }
}

/// One for all: they keep to keys of their own.
fn consul(cluster: &Cluster) -> &'static Consul {
    static CONSUL: OnceLock<Consul> = OnceLock::new();
    CONSUL.get_or_init(|| {
        let also_on = vec![cluster.gateway()];
        Consul::start(ConsulConfig { also_on, ..Default::default() }).unwrap()
    })
}

/// Makes the example's two images known to the node, under their own names.
fn import_images(cluster: &Cluster) {
    static IMPORTED: OnceLock<()> = OnceLock::new();
    IMPORTED.get_or_init(|| {
        let product = ProductImage::of(Path::new(env!("CARGO_BIN_EXE_consul-lock"))).unwrap();
        let name = "registry.example/consul-lock:1".to_owned();
        cluster.import(&Image { name, ..product.image.clone() }).unwrap();
        let name = "registry.example/payroll:1";
        cluster.import(&Image::of_backend_as(NAME, name, "work").unwrap()).unwrap();
    });
}

impl Payroll {
    /// Applies it and waits until both pods contend and one of them works. Nothing where no node
    /// can run.
    pub(crate) fn start(label: &str, wishes: Wishes<'_>) -> Option<(Payroll, Work)> {
        let cluster = cluster()?;
        import_images(cluster);
        let consul = consul(cluster);
        let space = Space::on(cluster, label);
        install_definition(&space);
        let controller = Replica::start(&space, consul);
        let folder = Folder::new("witness").unwrap();
        let witness = folder.write("witness", "").unwrap();
        fs::set_permissions(&witness, fs::Permissions::from_mode(0o666)).unwrap();
        let payroll = Payroll { space, controller, witness, _folder: folder };
        payroll.space.apply(&payroll.example(wishes));
        payroll.available();
        wait_for("both pods to contend", PATIENCE, || {
            (payroll.contenders().len() == 2).then_some(())
        })
        .unwrap();
        let first = payroll.wait("the first work", |_| true);
        Some((payroll, first))
    }

    fn example(&self, wishes: Wishes<'_>) -> Value {
        let namespace = &self.space.namespace;
        let port = consul(self.space.cluster).http().port();
        let address = format!("{}:{port}", self.space.cluster.gateway());
        let mut text = EXAMPLE.to_owned();
        for (theirs, ours) in
            [("shop", namespace), ("eu-1", namespace), ("consul.consul:8500", &address)]
        {
            assert!(text.contains(theirs), "the example has no {theirs} any more");
            text = text.replace(theirs, ours);
        }
        let mut objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        for object in &mut objects {
            match object["kind"].as_str().unwrap() {
                "ConsulLock" => {
                    let more = wishes.claim.as_object().unwrap().clone();
                    object["spec"].as_object_mut().unwrap().extend(more);
                }
                "Deployment" => self.set_stage(&mut object["spec"]["template"]["spec"], &wishes),
                _ => {}
            }
        }
        json!({"apiVersion": "v1", "kind": "List", "items": objects})
    }

    /// The witness, and who may do what.
    fn set_stage(&self, pod: &mut Value, wishes: &Wishes<'_>) {
        let add = |list: &mut Value, more: Value| list.as_array_mut().unwrap().push(more);
        let file = json!({"path": self.witness, "type": "File"});
        add(&mut pod["volumes"], json!({"name": "witness", "hostPath": file}));
        let app = &mut pod["containers"][0];
        add(&mut app["volumeMounts"], json!({"name": "witness", "mountPath": "/witness"}));
        app["env"] = json!([
            {"name": "WITNESS", "value": "/witness"},
            {"name": "FAREWELL", "value": wishes.farewell.unwrap_or_default()},
        ]);
        app["securityContext"] = wishes.apps.clone();
        if let Some(agents) = &wishes.agents {
            pod["initContainers"][0]["securityContext"] = agents.clone();
        }
    }

    fn available(&self) {
        let deployment = format!("deployment/{NAME}");
        self.space.kubectl(&["rollout", "status", &deployment, "--timeout=60s"]);
    }

    /// The UIDs of the pods that have a session for the key.
    pub(crate) fn contenders(&self) -> Vec<String> {
        let sessions = consul(self.space.cluster).request("GET", "/v1/session/list", b"");
        let sessions = sessions.unwrap().json();
        let key = format!("/consul-lock/{}/{NAME}", self.space.namespace);
        let uid = |session: &Value| {
            let name = session["Name"].as_str()?;
            Some(name.strip_prefix("consul-lock/pod/")?.strip_suffix(&key)?.to_owned())
        };
        sessions.as_array().unwrap().iter().filter_map(uid).collect()
    }

    pub(crate) fn status(&self) -> Value {
        self.space.get("consullock", NAME)["status"].clone()
    }

    pub(crate) fn pod(&self, name: &str) -> Value {
        self.space.get("pod", name)
    }

    /// SIGKILL for the app's main process, and so for its container.
    pub(crate) fn kill_app(&self, pod: &str) {
        self.space.cluster.kill_container(&self.space.namespace, pod, NAME).unwrap();
    }

    /// All that was done so far.
    pub(crate) fn works(&self) -> Vec<Work> {
        let text = fs::read_to_string(&self.witness).unwrap();
        // The last line may not be whole yet.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(Work::parse).collect()
    }

    /// Waits until the work that was done last is as wanted; that work.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, wanted: impl Fn(&Work) -> bool) -> Work {
        let last = || self.works().pop();
        let found = wait_for(what, PATIENCE, || last().filter(&wanted));
        found.unwrap_or_else(|late| panic!("{late}: {:?}\n{}", last(), self.said()))
    }

    /// Waits until another start of an app works than did before.
    #[track_caller]
    pub(crate) fn wait_for_next(&self, before: &Work) -> Work {
        let next = self.wait("the next to work", |last| !last.is_of_run(before));
        assert!(next.token > before.token, "{next:?} after {before:?}\n{}", self.said());
        next
    }

    /// Waits until the same start of the app may rely on the lock until later than this.
    #[track_caller]
    pub(crate) fn wait_for_renewal(&self, run: &Work, beyond: Duration) {
        let last = self.wait("renewals", |last| last.valid_until > beyond);
        assert!(last.is_of_run(run), "{last:?} after {run:?}\n{}", self.said());
    }

    /// What the agents and the controller have logged; for people.
    fn said(&self) -> String {
        let of = ["logs", "--selector=app=payroll", "--container=lock", "--prefix", "--tail=40"];
        let agents = self.space.try_kubectl(&of).unwrap_or_else(|error| error.to_string());
        format!("{agents}\n{}", self.controller.log())
    }

    /// Ends all work and looks back: no two have worked at once, every start of an app had a token
    /// of its own, which was higher than any before, and nobody worked longer than the lock could
    /// be relied on.
    #[track_caller]
    pub(crate) fn check(self) {
        self.space.kubectl(&["delete", "deployment", NAME, "--wait=false"]);
        check(&self.works());
    }
}

#[track_caller]
fn check(works: &[Work]) {
    assert!(!works.is_empty());
    for pair in works.windows(2) {
        let [before, next] = pair else { unreachable!() };
        let is_in_order = match next.is_of_run(before) {
            true => next.token == before.token,
            false => next.token > before.token,
        };
        assert!(is_in_order, "{next:?} after {before:?}");
    }
    for work in works {
        assert!(work.at < work.valid_until, "{work:?} is too late");
    }
}

/// The two processes of an agent's container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sidecar {
    /// The container's main process.
    pub(crate) guard: Pid,
    pub(crate) agent: Pid,
}

impl Sidecar {
    /// The one that runs in a pod, if it does.
    fn of(uid: &str) -> Option<Sidecar> {
        let mark = format!("CONSUL_LOCK_POD_UID={uid}");
        let has = |pid: i32, file: &str, word: &str| {
            let content = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            content.split(|byte| *byte == 0).any(|one| one == word.as_bytes())
        };
        let all = fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let ours = pids.filter(|pid: &i32| has(*pid, "environ", &mark));
        let (agents, guards): (Vec<i32>, Vec<i32>) =
            ours.partition(|pid| has(*pid, "cmdline", "--guarded"));
        match (&guards[..], &agents[..]) {
            ([guard], [agent]) => {
                Some(Sidecar { guard: Pid::from_raw(*guard)?, agent: Pid::from_raw(*agent)? })
            }
            _ => None,
        }
    }

    /// Waits until it runs in this pod, and is as wanted.
    #[track_caller]
    pub(crate) fn wait(payroll: &Payroll, pod: &str, wanted: impl Fn(&Sidecar) -> bool) -> Sidecar {
        let uid = payroll.pod(pod)["metadata"]["uid"].as_str().unwrap().to_owned();
        let found = wait_for("the sidecar", PATIENCE, || Sidecar::of(&uid).filter(&wanted));
        found.unwrap_or_else(|late| panic!("{late}: {:?}\n{}", Sidecar::of(&uid), payroll.said()))
    }
}

pub(crate) fn kill(process: Pid) {
    kill_process(process, Signal::KILL).unwrap();
}

#[test]
fn two_apps_at_once_and_one_that_works_too_long_would_be_noticed() {
    let done = |lines: &[&str]| {
        let works: Vec<Work> = lines.iter().map(|line| Work::parse(line)).collect();
        std::panic::catch_unwind(|| check(&works)).is_ok()
    };
    let good = ["1.00 a 7 41 9.000", "1.01 a 7 41 9.500", "9.49 b 7 43 19.000"];
    assert!(done(&good));
    for bad in [
        "9.50 a 7 41 9.500",
        "9.50 a 7 43 19.000",
        "9.50 b 8 43 19.000",
        "9.50 b 7 45 19.000",
        "19.00 b 7 43 19.000",
    ] {
        assert!(!done(&[&good[..], &[bad]].concat()), "{bad}");
    }
}
