//! The controller's leader election against a real API server: what the simulation in
//! `src/replicas/tests.rs` takes for granted of it holds.

use std::time::Duration;

use consul_lock::{
    clock::Clock,
    replicas::{Ended, Leadership, Replicas, Timings},
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, api::DeleteParams};
use tokio::{sync::oneshot, task::JoinSet};

use crate::fixtures;

const MS: Duration = Duration::from_millis(1);
/// Of [`timings`].
const DURATION: Duration = Duration::from_secs(2);

fn timings() -> Timings {
    Timings::new(DURATION, 1000 * MS, 250 * MS).unwrap()
}

/// Replicas that contend for one Lease.
struct Group {
    client: Client,
    namespace: &'static str,
    clock: Clock,
    replicas: Vec<(Leadership, Option<oneshot::Sender<()>>)>,
    tasks: JoinSet<Ended<()>>,
}

impl Group {
    async fn new(namespace: &'static str) -> Group {
        let client = fixtures::kube_client().await;
        fixtures::create_namespace(&client, namespace).await;
        let (replicas, tasks) = (Vec::new(), JoinSet::new());
        Group { client, namespace, clock: Clock::boot(), replicas, tasks }
    }

    /// Each with a client of its own, as each is a process of its own.
    async fn start(&mut self) {
        let client = fixtures::kube_client().await;
        let me = format!("replica-{}", self.replicas.len());
        let replica =
            Replicas::new(client, self.namespace, "election", &me, timings(), self.clock.clone());
        let (stop, stopped) = oneshot::channel::<()>();
        self.replicas.push((replica.leadership(), Some(stop)));
        self.tasks.spawn(replica.run(std::future::pending, async { drop(stopped.await) }));
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), self.namespace)
    }

    fn leader(&self) -> Option<usize> {
        let acts = |(leadership, _): &(Leadership, _)| leadership.may_act();
        let leaders: Vec<usize> =
            (0..self.replicas.len()).filter(|i| acts(&self.replicas[*i])).collect();
        assert!(leaders.len() <= 1, "{leaders:?} lead at once");
        leaders.first().copied()
    }

    /// Waits for somebody other than `not` to lead, looking out for two all the time.
    async fn leader_within(&self, limit: Duration, not: Option<usize>) -> usize {
        let deadline = self.clock.now() + limit;
        loop {
            if let Some(leader) = self.leader().filter(|leader| Some(*leader) != not) {
                return leader;
            }
            assert!(self.clock.now() < deadline, "nobody leads after {limit:?}");
            tokio::time::sleep(5 * MS).await;
        }
    }

    /// Looks out for two leaders for a while.
    async fn watch(&self, span: Duration) {
        let until = self.clock.now() + span;
        while self.clock.now() < until {
            self.leader();
            tokio::time::sleep(5 * MS).await;
        }
    }

    fn stop(&mut self, replica: usize) {
        self.replicas[replica].1 = None;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn released_lease_is_taken_within_two_seconds() {
    let mut group = Group::new("replicas-release").await;
    group.start().await;
    group.start().await;
    let first = group.leader_within(Duration::from_secs(20), None).await;
    let lease = group.leases().get("election").await.unwrap().spec.unwrap();
    assert_eq!(lease.holder_identity, Some(format!("replica-{first}")));
    // Whoever placed the Lease may have been overtaken, which is a transition too.
    let transitions = lease.lease_transitions.unwrap();

    group.stop(first);
    let second = group.leader_within(Duration::from_secs(2), Some(first)).await;
    assert_eq!(group.tasks.join_next().await.unwrap().unwrap(), Ended::Stopped);
    let lease = group.leases().get("election").await.unwrap().spec.unwrap();
    assert_eq!(lease.holder_identity, Some(format!("replica-{second}")));
    assert_eq!(lease.lease_transitions, Some(transitions + 1));

    // The last one leaves a Lease that anybody may take at once.
    group.stop(second);
    assert_eq!(group.tasks.join_next().await.unwrap().unwrap(), Ended::Stopped);
    let lease = group.leases().get("election").await.unwrap().spec.unwrap();
    assert_eq!(lease.holder_identity.as_deref(), Some(""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn never_two_lead_while_replicas_come_and_go_and_the_lease_is_deleted() {
    let mut group = Group::new("replicas-churn").await;
    for _ in 0..3 {
        group.start().await;
    }
    for round in 0..4 {
        let leader = group.leader_within(Duration::from_secs(20), None).await;
        group.watch(300 * MS).await;
        if round % 2 == 0 {
            group.stop(leader);
            group.start().await;
        } else {
            let deleted = group.leases().delete("election", &DeleteParams::default()).await;
            deleted.unwrap();
        }
        group.watch(DURATION).await;
    }
    group.leader_within(Duration::from_secs(20), None).await;
}
