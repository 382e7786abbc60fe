//! The tutorial of the nightly job in real pods: `examples/nightly` with its program, its CronJob and
//! a real PostgreSQL, in two clusters of which one loses its lock in the middle of a run.
//!
//! The clusters are two namespaces of one here, each with a controller that knows nothing of the other.
//! So the names of the namespace and the key differ from the example's; and nobody waits for the
//! lock-delay, or until two at night.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use testbed::{
    Cluster, Consul, ConsulConfig, Database, Folder, Image, ImageConfig, Postgres, run, say,
    tools::repository, wait_for,
};

use crate::{
    bed::{PATIENCE, Space, cluster},
    controller::{Replica, install_definition},
    printed::{Page, Reader},
};

const EXAMPLE: &str = "examples/nightly/day-end.yaml";

/// Of both.
const KEY: &str = "towns/day-end";

/// What is closed, and when that is due in both.
const DAY: &str = "2026-01-01";
const TWO: &str = "2026-01-02T02:00:00Z";

/// What sends the report: it is noted, and takes until the database says that this pod may go on.
const REPORT: &str = r#"psql -qXc "INSERT INTO report VALUES ('$HOSTNAME')"
    until [ "$(psql -XAtc "SELECT count(*) FROM go WHERE pod = '$HOSTNAME'")" = 1 ]; do sleep 0.1; done"#;

/// An image with the example's program, and the programs of this machine that it calls.
fn image(psql: &Path) -> Image {
    let mut files = vec![(repository().join("examples/nightly/day-end"), "bin/day-end".into())];
    let mut libraries = BTreeSet::new();
    let found = |name: &str| {
        let folders = ["/bin", "/usr/bin"].map(|folder| Path::new(folder).join(name));
        folders.into_iter().find(|path| path.exists()).unwrap_or_else(|| panic!("no {name}"))
    };
    for (name, program) in
        [("sh", found("sh")), ("sleep", found("sleep")), ("psql", psql.to_owned())]
    {
        let loads = run(Command::new("ldd").arg(&program), PATIENCE).unwrap();
        let paths = loads.split_whitespace().filter(|word| word.starts_with('/'));
        libraries.extend(paths.map(PathBuf::from));
        files.push((program, Path::new("bin").join(name)));
    }
    let place = |path: PathBuf| (path.clone(), path.strip_prefix("/").unwrap().to_owned());
    files.extend(libraries.into_iter().map(place));
    Image { name: "registry.example/day-end:1".to_owned(), files, config: ImageConfig::default() }
}

/// Both, and the database that their jobs write to.
struct Country {
    database: Database,
    consul: Consul,
    west: Town,
    east: Town,
    _postgres: Postgres,
}

/// What plays a cluster: a namespace, and a controller for it alone.
struct Town {
    space: Space,
    /// The example's manifest, as it is applied here.
    manifest: PathBuf,
    _folder: Folder,
}

impl Country {
    fn found(cluster: &'static Cluster) -> (Country, Replica, Replica) {
        let gateway = cluster.gateway();
        let postgres = Postgres::start_also_on(&[gateway]).unwrap();
        let database = postgres.database("books").unwrap();
        database.file(&repository().join("examples/nightly/schema.sql")).unwrap();
        let sold =
            "('2026-01-01', 'cash', 10), ('2026-01-01', 'cash', 7), ('2026-01-01', 'card', 5)";
        database.sql(&format!("INSERT INTO sale VALUES {sold}")).unwrap();
        database.sql("CREATE TABLE report (pod text); CREATE TABLE go (pod text)").unwrap();
        cluster.import(&image(database.psql())).unwrap();
        let config = ConsulConfig { also_on: vec![gateway], ..ConsulConfig::default() };
        let consul = Consul::start(config).unwrap();
        let [west, east] = ["night-west", "night-east"].map(|name| Space::on(cluster, name));
        install_definition(&west);
        // Each of them takes a while to be elected.
        let (here, there) = std::thread::scope(|scope| {
            let there = scope.spawn(|| Replica::start(&east, &consul));
            (Replica::start(&west, &consul), there.join().unwrap())
        });
        let [west, east] = [west, east].map(|space| Town::apply(space, &database));
        (Country { database, consul, west, east, _postgres: postgres }, here, there)
    }

    #[track_caller]
    fn sql(&self, statement: &str) -> String {
        self.database.sql(statement).unwrap()
    }

    /// Waits until a pod of this town has sent the report; which.
    #[track_caller]
    fn reported(&self, town: &Town) -> String {
        let own = || {
            let reports = self.sql("SELECT pod FROM report");
            let pods = town.pods();
            pods.into_iter().map(|one| one.0).find(|pod| reports.lines().any(|one| one == pod))
        };
        wait_for("a report", PATIENCE, own)
            .unwrap_or_else(|late| panic!("{late}: {:?}, {:?}", town.pods(), town.claim()))
    }

    /// Lets a pod go on that has sent the report.
    fn go(&self, pod: &str) {
        self.sql(&format!("INSERT INTO go VALUES ('{pod}')"));
    }

    /// What was booked, and by tenures of which tokens.
    fn booked(&self) -> String {
        let all = "SELECT account, amount, token FROM booking ORDER BY account";
        self.sql(all).replace('\n', " ")
    }
}

impl Town {
    fn apply(space: Space, database: &Database) -> Town {
        let allowed = "consullock.dev/key-prefixes=towns/";
        space.kubectl(&["annotate", "namespace", &space.namespace, allowed]);
        let gateway = space.cluster.gateway().to_string();
        let mut secret = [("REPORT", REPORT), ("DAY", DAY)]
            .map(|(name, value)| format!("--from-literal={name}={value}"))
            .to_vec();
        for (name, value) in database.env() {
            let value = if *name == "PGHOST" { &gateway } else { value };
            secret.push(format!("--from-literal={name}={value}"));
        }
        let secret: Vec<&str> = secret.iter().map(String::as_str).collect();
        space.kubectl(&[&["create", "secret", "generic", "books-database"], &secret[..]].concat());

        let text = std::fs::read_to_string(repository().join(EXAMPLE)).unwrap();
        let mut objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        for object in &mut objects {
            object["metadata"]["namespace"] = json!(space.namespace);
            match object["kind"].as_str().unwrap() {
                "ConsulLock" => {
                    object["spec"]["key"] = json!(KEY);
                    object["spec"]["session"] = json!({"lockDelay": "0s"});
                }
                "CronJob" => object["spec"]["suspend"] = json!(true),
                other => panic!("{other}"),
            }
        }
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let folder = Folder::new("nightly").unwrap();
        let manifest = folder.write("day-end.json", list.to_string()).unwrap();
        space.kubectl(&["apply", "-f", manifest.to_str().unwrap()]);
        Town { space, manifest, _folder: folder }
    }

    /// What the CronJob makes when its time has come.
    fn is_due(&self) {
        let template = self.space.get("cronjob", "day-end")["spec"]["jobTemplate"].clone();
        self.space.apply(&json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {
                "name": "two",
                "annotations": {"batch.kubernetes.io/cronjob-scheduled-timestamp": TWO},
            },
            "spec": template["spec"],
        }));
    }

    /// Its pods, each with what `kubectl get` shows as its status.
    fn pods(&self) -> Vec<(String, String)> {
        let columns = ["get", "pods", "--no-headers", "--selector=app=day-end"];
        let pods = self.space.kubectl(&columns);
        let words = pods.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        words.map(|words| (words[0].to_owned(), words[2].to_owned())).collect()
    }

    /// Waits until one of its pods, or this one, has this status.
    #[track_caller]
    fn has(&self, pod: &str, status: &str) {
        let is = |one: &(String, String)| one.0.starts_with(pod) && one.1 == status;
        let there = || self.pods().iter().any(is).then_some(());
        wait_for(format!("{pod} to be {status}"), PATIENCE, there)
            .unwrap_or_else(|late| panic!("{late}: {:?}, {:?}", self.pods(), self.claim()));
    }

    fn log(&self, of: &str) -> String {
        self.space.kubectl(&["logs", of])
    }

    fn claim(&self) -> Value {
        self.space.get("consullock", "day-end")["status"].clone()
    }
}

#[test]
fn of_two_clusters_one_closes_the_day_and_the_other_that_lost_the_lock_on_the_way_books_nothing() {
    if Postgres::skips() {
        return;
    }
    let Some(cluster) = cluster() else { return };
    let (country, controller, _others) = Country::found(cluster);
    let Country { west, east, consul, .. } = &country;
    west.is_due();
    let late = country.reported(west);
    east.is_due();
    east.has("two-", "SchedulingGated");

    // The west is cut off: no controller of its own can do anything, and its session ends.
    controller.kill();
    let pair = consul.request("GET", &format!("/v1/kv/{KEY}"), b"").unwrap().json();
    let session = format!("/v1/session/destroy/{}", pair[0]["Session"].as_str().unwrap());
    assert!(consul.request("PUT", &session, b"").unwrap().ok());
    let next = country.reported(east);
    country.go(&next);
    east.has(&next, "Completed");
    assert!(east.log(&next).contains("\nclosed "), "{}", east.log(&next));
    let booked = country.booked();
    let token = booked.rsplit('|').next().unwrap();
    assert_eq!(booked, format!("card|5|{token} cash|17|{token}"));

    // It goes on, and is too late.
    country.go(&late);
    west.has(&late, "Error");
    let said = west.log(&late);
    assert!(said.contains("is stale") && !said.contains("closed"), "{said}");
    assert_eq!(country.booked(), booked);
    let held: u64 = pair[0]["ModifyIndex"].as_u64().unwrap();
    assert!(token.parse::<u64>().unwrap() > held, "{token} after {held}");

    // It is back. What the Job has made instead of its pod has its turn, and finds the night's work done.
    let _controller = Replica::start(&west.space, consul);
    let removed = || west.space.list("jobs", &[]).is_empty().then_some(());
    wait_for("the Job to be removed", PATIENCE, removed)
        .unwrap_or_else(|late| panic!("{late}: {:?}, {:?}", west.pods(), west.claim()));
    try_it(west, consul);
    west.has("day-end-by-hand", "Completed");
    assert!(west.log("job/day-end-by-hand").contains("was closed before"));
    assert_eq!(country.booked(), booked);
    say("a night in two clusters: one run, and one that was refused");
}

/// Types what the tutorial says.
fn try_it(town: &Town, consul: &Consul) {
    let reader = Reader::of(town.space.cluster, consul);
    let script = Page::open("tutorials/nightly.md").block("sh", "create job --from=cronjob");
    let mut script = script.replace(" shop ", &format!(" {} ", town.space.namespace));
    assert!(script.contains(EXAMPLE));
    script = script.replace(EXAMPLE, town.manifest.to_str().unwrap());
    let said = reader.types(&script);
    for words in ["job.batch/day-end-by-hand created", "HOLDER", "AlreadyRan"] {
        assert!(said.contains(words), "no {words} in {said}");
    }
}
