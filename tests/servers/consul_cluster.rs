//! What three Consul servers do to sessions and lock-delays when they leave, roll and die.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use consul_lock::{
    clock::Clock,
    consul::{
        Class, Consistency, Consul, ConsulError, KvPair, Refusal, SessionRequest, Txn,
        http::{HttpConfig, HttpConsul},
    },
    names::{Key, NodeName, SessionId},
};
use testbed::{ConsulCluster, ConsulClusterConfig};
use tokio::task::{JoinSet, block_in_place};

use crate::fixtures::{Lab, lock};

/// How long three servers may take to agree on anything, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// Clients of all servers; whichever answers is good.
#[derive(Clone)]
struct Clients {
    each: Vec<HttpConsul>,
    clock: Clock,
}

impl Clients {
    fn of(cluster: &ConsulCluster) -> Clients {
        let each = cluster.servers().iter().map(|server| {
            let mut config = HttpConfig::new(server.address());
            config.timeout = Duration::from_secs(3);
            HttpConsul::new(config).unwrap()
        });
        Clients { each: each.collect(), clock: Clock::boot() }
    }

    /// Asks one server after the other until one gives an answer that is final.
    async fn ask<T>(&self, call: impl AsyncFn(&HttpConsul) -> Result<T, ConsulError>) -> T {
        let begin = self.clock.now();
        for consul in self.each.iter().cycle() {
            match call(consul).await {
                Ok(answer) => return answer,
                Err(error) => match error.class {
                    Class::Transient | Class::UnknownOutcome => {}
                    Class::Lost | Class::Denied | Class::Invalid => panic!("{error}"),
                },
            }
            assert!(self.clock.now().since(begin) < PATIENCE, "no server answers");
            self.clock.sleep_until(self.clock.now() + Duration::from_millis(100)).await;
        }
        unreachable!("a cycle of three does not end")
    }

    async fn read(&self, key: &Key) -> Option<KvPair> {
        self.ask(async |consul| consul.get(key, Consistency::Consistent).await).await.pair
    }

    /// Renews every two seconds until told to stop; panics when the session is lost.
    async fn renew(self, session: SessionId, stop: Arc<AtomicBool>) {
        for consul in self.each.iter().cycle() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let pause = match consul.renew_session(&session).await {
                Ok(_) => Duration::from_secs(2),
                Err(error) => {
                    assert_ne!(error.class, Class::Lost, "{error}");
                    Duration::from_millis(100)
                }
            };
            self.clock.sleep_until(self.clock.now() + pause).await;
        }
    }
}

fn start(leave_on_terminate: bool) -> ConsulCluster {
    let config = ConsulClusterConfig { leave_on_terminate, ..Default::default() };
    block_in_place(|| ConsulCluster::start(&config)).unwrap()
}

/// SIGTERM, end, start, and back among the voters: what a rollout does to each server.
fn roll(cluster: &ConsulCluster, nth: usize) {
    let server = cluster.servers()[nth].server();
    server.terminate().unwrap();
    server.wait_ended(PATIENCE).unwrap();
    server.start_again().unwrap();
    cluster.wait_for_voters(3).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_on_a_virtual_node_outlives_servers_that_roll_and_leaders_that_die() {
    let cluster = start(true);
    let clients = Clients::of(&cluster);
    let lab = Lab::on(clients.each[0].clone()).await;
    let (ours, theirs) = (lab.key("virtual"), lab.key("server"));

    let request = SessionRequest { ttl: Duration::from_secs(15), ..lab.request() };
    let session = lab.consul.create_session(&request).await.unwrap();
    let held = lab.lock(&ours, &session).await.unwrap();
    let own_node = SessionRequest { node: NodeName::new("consul-1"), ..lab.request() };
    let on_server = lab.consul.create_session(&own_node).await.unwrap();
    lab.lock(&theirs, &on_server).await.unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let mut renewals = JoinSet::new();
    renewals.spawn(clients.clone().renew(session.clone(), stop.clone()));

    block_in_place(|| roll(&cluster, 0));
    assert_eq!(clients.read(&theirs).await.unwrap().session, None); // went with its server
    for nth in [1, 2, 0, 1, 2] {
        block_in_place(|| roll(&cluster, nth));
    }
    for _ in 0..2 {
        block_in_place(|| {
            let leader = cluster.wait_for_leader_other_than(None).unwrap();
            cluster.servers()[leader].server().kill().unwrap();
            cluster.wait_for_leader_other_than(Some(leader)).unwrap();
            cluster.servers()[leader].server().start_again().unwrap();
            cluster.wait_for_voters(3).unwrap();
        });
    }
    let seen = clients.read(&ours).await.unwrap();
    assert_eq!((seen.session, seen.modify_index), (Some(session), held.modify_index));
    stop.store(true, Ordering::Relaxed);
    renewals.join_next().await.unwrap().unwrap(); // not one renewal found the session gone
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_delay_survives_the_leader_that_saw_it_begin() {
    let cluster = start(false);
    let clients = Clients::of(&cluster);
    let lab = Lab::on(clients.each[0].clone()).await;
    let key = lab.key("k");
    let (first, second) =
        (lab.session_with_delay(Duration::from_secs(60)).await, lab.session().await);
    lab.lock(&key, &first).await.unwrap();
    lab.consul.destroy_session(&first).await.unwrap();
    let begin = lab.now();
    block_in_place(|| {
        let leader = cluster.wait_for_leader_other_than(None).unwrap();
        cluster.servers()[leader].leave().unwrap();
        cluster.wait_for_leader_other_than(Some(leader)).unwrap();
    });
    let answer = clients.ask(async |consul| consul.transaction(&[lock(&key, &second)]).await);
    let Txn::RolledBack(refused) = answer.await else {
        panic!("locked {:?} after the lock-delay of 60 s began", lab.since(begin));
    };
    assert_eq!(refused[0].reason, Refusal::LockDelay);
}
