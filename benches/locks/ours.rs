//! Our side of what `benches/peers/api-lock/bench.go` does with Consul's own client: the same modes,
//! the same conversation. A process of its own, so that its memory and connections can be counted.

use std::{
    io::{self, BufRead as _, Write as _},
    sync::atomic::{AtomicI32, AtomicU64, Ordering},
    time::Duration,
};

use clap::Parser;
use consul_lock::{
    Connection, Held, Instant, LockDelay, Locks, Prefix, Settings, Ttl, clock::Clock,
};
use futures::future::try_join_all;
use serde_json::{Value, json};

use crate::{Failure, Outcome};

/// What is measured, and how much of it; see `api-lock -bench`.
#[derive(Parser)]
pub(crate) struct Order {
    #[arg(long)]
    mode: String,
    #[arg(long)]
    count: usize,
    #[arg(long)]
    span: u64,
    #[arg(long)]
    hold: u64,
    #[arg(long)]
    patience: u64,
    /// Every contender has a session and connections of its own, as if it were a process
    #[arg(long)]
    apart: bool,
    prefix: String,
}

struct Stage {
    order: Order,
    clock: Clock,
    locks: Vec<Locks>,
    inside: AtomicI32,
    twice: AtomicI32,
}

/// Measures one thing and prints it as a line of JSON.
pub(crate) fn run(order: Order) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let played = runtime.spawn(async {
        let mut stage = Stage::new(order)?;
        let mut result = match stage.order.mode.as_str() {
            "acquire" => stage.acquires().await?,
            "cycles" => stage.cycles().await?,
            "handover" => stage.handovers().await?,
            "waiters" => stage.waiters().await?,
            "requeue" => stage.requeue().await?,
            "many" => stage.many().await?,
            other => return Err(Failure::Odd(format!("no such benchmark: {other}"))),
        };
        result["overlaps"] = json!(stage.twice.load(Ordering::Relaxed));
        println!("{result}");
        for locks in std::mem::take(&mut stage.locks) {
            // Consul's answer is of no interest any more.
            let _ = locks.close().await;
        }
        Ok(())
    });
    runtime.block_on(played)?
}

/// Holds a lock with the shortest TTL that Consul allows and no lock-delay, and says so, as
/// `benches/peers/api-lock` does.
pub(crate) fn hold(key: &str) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let settings = Settings::new(Prefix::new(key)?)
            .ttl(Ttl::new(Duration::from_secs(10))?)
            .lock_delay(LockDelay::new(Duration::ZERO)?);
        let locks = Locks::connect(Connection::from_env()?, settings)?;
        let held = locks.acquire(key).await?;
        println!("locked");
        held.lost().await;
        println!("lost");
        Ok(())
    })
}

impl Stage {
    fn new(order: Order) -> Outcome<Stage> {
        let processes = match (order.mode.as_str(), order.apart) {
            ("handover", _) => 2,
            (_, true) => order.count,
            (_, false) => 1,
        };
        let connect = |_| {
            let settings = Settings::new(Prefix::new(&order.prefix)?);
            Ok(Locks::connect(Connection::from_env()?, settings)?)
        };
        let locks = (0..processes).map(connect).collect::<Outcome<_>>()?;
        let (inside, twice) = Default::default();
        Ok(Stage { order, clock: Clock::boot(), locks, inside, twice })
    }

    fn locks(&self, who: usize) -> &Locks {
        &self.locks[who % self.locks.len()]
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.order.prefix)
    }

    fn hold(&self) -> Duration {
        Duration::from_millis(self.order.hold)
    }

    fn goes_on(&self, began: Instant) -> bool {
        self.clock.now().since(began) < Duration::from_millis(self.order.span)
    }

    async fn pause(&self, span: Duration) {
        self.clock.sleep_until(self.clock.now() + span).await;
    }

    /// Acquires, holds and releases once; returns when it was acquired.
    async fn turn(&self, who: usize, key: &str) -> Outcome<Instant> {
        let held = self.locks(who).acquire(key).await?;
        let at = self.clock.now();
        if !self.hold().is_zero() {
            let others = self.inside.fetch_add(1, Ordering::SeqCst);
            self.twice.fetch_add(i32::from(others > 0), Ordering::SeqCst);
            self.pause(self.hold()).await;
            self.inside.fetch_sub(1, Ordering::SeqCst);
        }
        held.release().await?;
        Ok(at)
    }

    async fn acquires(&self) -> Outcome<Value> {
        ready()?;
        let (key, mut times) = (self.key("one"), Vec::new());
        for _ in 0..self.order.count {
            let began = self.clock.now();
            let held = self.locks(0).acquire(&key).await?;
            times.push(micros(self.clock.now().since(began)));
            held.release().await?;
        }
        Ok(json!({ "times_us": times }))
    }

    async fn cycles(&self) -> Outcome<Value> {
        ready()?;
        let (began, done) = (self.clock.now(), AtomicU64::new(0));
        let worker = async |who: usize| {
            let key = self.key(&format!("worker-{who}"));
            while self.goes_on(began) {
                self.turn(who, &key).await?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, Failure>(())
        };
        try_join_all((0..self.order.count).map(worker)).await?;
        let seconds = self.clock.now().since(began).as_secs_f64();
        Ok(json!({ "cycles": done.into_inner(), "seconds": seconds }))
    }

    async fn handovers(&self) -> Outcome<Value> {
        let (key, mut times) = (self.key("one"), Vec::new());
        let mut holder = self.locks(0).acquire(&key).await?;
        ready()?;
        for round in 1..=self.order.count {
            let mut next = std::pin::pin!(self.locks(round).acquire(&key));
            tokio::select! {
                odd = &mut next => return Err(Failure::Odd(format!("two at once: {odd:?}"))),
                () = self.pause(self.hold()) => {}
            }
            let began = self.clock.now();
            let release = async { holder.release().await.map_err(Failure::from) };
            let acquire = async {
                let held = next.await?;
                Ok((held, self.clock.now()))
            };
            let ((), (held, at)) = tokio::try_join!(release, acquire)?;
            times.push(micros(at.since(began)));
            holder = held;
        }
        holder.release().await?;
        Ok(json!({ "times_us": times }))
    }

    async fn waiters(&self) -> Outcome<Value> {
        let key = self.key("one");
        let first = self.locks(0).acquire(&key).await?;
        let all = (0..self.order.count).map(|who| self.turn(who, &key));
        let mut all = std::pin::pin!(try_join_all(all));
        let patience = Duration::from_millis(self.order.patience);
        tokio::select! {
            odd = &mut all => return Err(Failure::Odd(format!("two at once: {odd:?}"))),
            () = self.pause(patience) => {}
        }
        // Those who wait stand still meanwhile, and so does Consul.
        ready()?;
        let began = self.clock.now();
        let release = async { first.release().await.map_err(Failure::from) };
        let ((), mut turns) = tokio::try_join!(release, all)?;
        let seconds = self.clock.now().since(began).as_secs_f64();
        turns.insert(0, began);
        turns.sort();
        let gaps = turns.windows(2).map(|pair| pair[1].since(pair[0]).as_secs_f64());
        Ok(json!({ "seconds": seconds, "stall": gaps.fold(0.0, f64::max) }))
    }

    async fn requeue(&self) -> Outcome<Value> {
        ready()?;
        let (key, began) = (self.key("one"), self.clock.now());
        let (turns, longest) = (AtomicU64::new(0), AtomicU64::new(0));
        let worker = async |who: usize| {
            while self.goes_on(began) {
                let asked = self.clock.now();
                let at = self.turn(who, &key).await?;
                turns.fetch_add(1, Ordering::Relaxed);
                longest.fetch_max(micros(at.since(asked)), Ordering::Relaxed);
            }
            Ok::<_, Failure>(())
        };
        try_join_all((0..self.order.count).map(worker)).await?;
        let longest = Duration::from_micros(longest.into_inner()).as_secs_f64();
        let seconds = self.clock.now().since(began).as_secs_f64();
        Ok(json!({ "cycles": turns.into_inner(), "seconds": seconds, "longest": longest }))
    }

    /// Acquires many locks and says how many; later, how many are left.
    async fn many(&self) -> Outcome<Value> {
        ready()?;
        let began = self.clock.now();
        let within = Duration::from_millis(self.order.patience);
        let acquire = async |number: usize| {
            let key = self.key(&format!("lock-{number}"));
            self.locks(number).acquire_within(&key, within).await.ok()
        };
        let acquired = futures::future::join_all((0..self.order.count).map(acquire)).await;
        let held: Vec<Held> = acquired.into_iter().flatten().collect();
        let count = || held.iter().filter(|held| held.token().is_some()).count();
        let seconds = self.clock.now().since(began).as_secs_f64();
        println!("{}", json!({ "held": count(), "seconds": seconds }));
        tokio::task::spawn_blocking(ready).await??;
        let seconds = self.clock.now().since(began).as_secs_f64();
        Ok(json!({ "held": count(), "seconds": seconds }))
    }
}

/// Says that everything is prepared, and waits for the order to go on.
fn ready() -> io::Result<()> {
    println!("ready");
    io::stdout().flush()?;
    io::stdin().lock().read_line(&mut String::new()).map(drop)
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
