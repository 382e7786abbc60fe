//! `consul-lock agent`: holds a lock beside the work, and tells the work of it.
//!
//! It contends for as long as it runs. Whoever listens ([HTTP](http), [file], [hooks], and by a
//! signal the [app]'s processes) is told when a tenure begins and when work has to stop, which is
//! [`Notice`] before *valid until*. Only when the work has stopped is the key released, and then the
//! session destroyed.
//!
//! # Guarantees
//! Nobody is told to lead but while the tenure may be relied on. The app's processes, where they are
//! named, are gone at *valid until*: the [guard] sees to that, whatever becomes of this process. An
//! agent that is started again in the same pod in time goes on with its session, its tenure and its
//! token, for an app that goes on; in a pod, none follows one that has ended in the same tenure.
//! Without the Kubernetes API, and without a controller, it goes on.
//! # Not guaranteed
//! That work stops which is told by HTTP, file or hooks alone: a frozen agent tells nobody. It has
//! to count `remaining_ms`, or the protected resource has to check the fencing token.

use std::{io, sync::Arc, time::Duration};

use kube::Client;
use tokio::{
    net::TcpListener,
    select,
    sync::{oneshot, watch},
    task::JoinSet,
};

use super::{child::News, notice::Notice, orders::Report, signals::Signals};
use crate::{
    clock::{Clock, Instant},
    consul::{Class, Consistency, Consul},
    holder::{Hold as _, Holder, Tenure},
    keeper::{KeeperView, LockView, Recorded, StopState, Wanted},
    telemetry::Metrics,
};

mod app;
mod claims;
mod file;
mod guard;
mod hooks;
mod http;
mod line;
mod mains;
mod settings;
mod standing;
mod tellers;

pub use app::AppSettings;
pub use guard::{guard as guard_agent, hear_signals};
pub use settings::{AgentSettings, ClaimSettings, PodSettings};

use claims::{Claim, Reader};
use settings::Request;
use standing::{State, other};
use tellers::Tellers;

/// How long a release may take at least, when Consul does not answer.
const RELEASE: Duration = Duration::from_secs(2);
/// How long an agent whose app has ended leaves the key to others.
const WAY: Duration = Duration::from_secs(2);
/// Between attempts to read what an earlier agent left.
const AGAIN: Duration = Duration::from_millis(500);
/// How long such an attempt may take.
const ANSWER: Duration = Duration::from_secs(5);

/// What an agent is given.
pub struct Surroundings<C> {
    /// Consul.
    pub consul: C,
    /// Time.
    pub clock: Clock,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where it is asked.
    pub listener: TcpListener,
    /// Where its claim is read; `None`: nowhere.
    pub kubernetes: Option<Client>,
    /// Whether a guard is at the other end of standard input.
    pub guarded: bool,
}

/// Why an agent ended that nobody told to.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// No signal handler could be installed.
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] io::Error),
    /// The guard cannot be reached.
    #[error("cannot reach the guard: {0}")]
    Line(#[source] io::Error),
    /// The claim and the flags do not go together.
    #[error("{0}")]
    Refused(String),
    /// The server, or the reading of the claim, ended.
    #[error("cannot serve any longer: {0}")]
    Served(String),
    /// The guard is gone, or does not act.
    #[error("the guard is gone, or does not act; the app was ended without it")]
    Unguarded,
    /// A keeper panicked.
    #[error("a keeper of the lock failed; this is a fault in consul-lock")]
    Broken,
}

/// Why a turn at the lock ended.
#[derive(Debug)]
enum Why {
    /// The claim is another, or paused.
    Asked,
    Stopped,
    MaxHold,
    /// No renewal came in time.
    Expired,
    /// Consul says that the lock is not ours any more.
    Lost,
    /// The app has ended. What is started in its place has to ask anew.
    AppEnded,
    Failed(AgentError),
}

/// Contends for the lock and tells everybody of it, until it is told to stop. Must be called within
/// a tokio runtime.
///
/// # Errors
/// [`AgentError`]. The work has been stopped by then, and the key been given up.
pub async fn agent<C: Consul + Clone>(
    settings: &AgentSettings,
    surroundings: Surroundings<C>,
) -> Result<(), AgentError> {
    let Surroundings { consul, clock, metrics, listener, kubernetes, guarded } = surroundings;
    let signals = Signals::listen().map_err(AgentError::Signals)?;
    let tellers = Tellers::new(settings, &clock, guarded).map_err(AgentError::Line)?;
    let (stop_server, stopped) = oneshot::channel::<()>();
    let served = http::Served {
        standing: tellers.follow(),
        clock: clock.clone(),
        metrics: Arc::clone(&metrics),
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { http::serve(listener, served, async { drop(stopped.await) }).await });
    let claim = settings.claim.as_ref().map(|claim| {
        let unread = kubernetes.is_none().then(|| "there is no Kubernetes configuration".into());
        let (told, heard) = watch::channel(Claim::Unread(unread));
        if let Some(client) = kubernetes {
            let name = (claim.namespace.as_str(), claim.name.as_str());
            let reader = Reader::new(client, name, claim.again, clock.clone());
            tasks.spawn(async move {
                reader.follow(told).await;
                Ok(())
            });
        }
        heard
    });
    let mut agent = Agent { settings, consul, clock, metrics, signals, tellers, claim, tasks };
    let ended = agent.keep().await;
    // Whoever asks until the very end is told that nobody leads here.
    drop(stop_server);
    ended
}

struct Agent<'a, C> {
    settings: &'a AgentSettings,
    consul: C,
    clock: Clock,
    metrics: Arc<Metrics>,
    signals: Signals,
    tellers: Tellers<'a>,
    claim: Option<watch::Receiver<Claim>>,
    /// The server, and the reading of the claim.
    tasks: JoinSet<io::Result<()>>,
}

/// A turn at the lock.
struct Turn<C> {
    holder: Holder<C>,
    wanted: Wanted,
    max_hold: Option<Duration>,
    grace: Duration,
}

impl<C: Consul> Turn<C> {
    fn view(&self) -> KeeperView {
        self.holder.view()
    }

    /// By the TTL that Consul granted.
    fn notice(&self) -> Notice {
        Notice::fitting(self.view().session.ttl, self.grace)
    }

    /// When the tenure has lasted for as long as it may.
    fn has_had_it(&self) -> Option<Instant> {
        match self.view().lock {
            LockView::Held { began, .. } => self.max_hold.map(|longest| began + longest),
            _ => None,
        }
    }
}

impl<C: Consul + Clone> Agent<'_, C> {
    async fn keep(&mut self) -> Result<(), AgentError> {
        let mut is_first = true;
        loop {
            let (wanted, max_hold) = match self.request().await {
                Ok(wanted) => wanted,
                Err(Why::Failed(error)) => return Err(error),
                Err(_) => return Ok(()),
            };
            match self.turn(wanted, max_hold, is_first).await {
                Why::Stopped => return Ok(()),
                Why::Failed(error) => return Err(error),
                Why::Asked | Why::MaxHold | Why::Expired | Why::Lost | Why::AppEnded => {
                    is_first = false;
                }
            }
        }
    }

    /// Waits until there is something to contend for.
    async fn request(&mut self) -> Result<(Wanted, Option<Duration>), Why> {
        loop {
            let request = {
                let claim = self.claim.as_mut().map(|claim| claim.borrow_and_update().clone());
                self.settings.request(claim.as_ref())
            };
            match request {
                Request::Contend(wanted, max_hold) => return Ok((*wanted, max_hold)),
                Request::Refuse(why) => return Err(Why::Failed(AgentError::Refused(why))),
                Request::StandBy(why) => {
                    self.tellers.idle(None, State::StandingBy, None, Some(why))
                }
                Request::Starting(why) => self.tellers.idle(None, State::Starting, None, why),
            }
            self.disturbed().await?;
        }
    }

    /// Returns when the claim is another.
    async fn disturbed(&mut self) -> Result<(), Why> {
        select! {
            _ = self.signals.end() => Err(Why::Stopped),
            ended = self.tasks.join_next() => Err(Why::Failed(served(ended))),
            news = self.tellers.news() => match news {
                News::Unguarded => Err(Why::Failed(AgentError::Unguarded)),
                News::Reported(_) => Ok(()),
            },
            () = changed(&mut self.claim) => Ok(()),
        }
    }

    /// One turn: contends, holds, and gives up.
    async fn turn(&mut self, wanted: Wanted, max_hold: Option<Duration>, is_first: bool) -> Why {
        let recorded = match is_first {
            true => select! {
                recorded = left_behind(&self.consul, &self.clock, &wanted) => recorded,
                _ = self.signals.end() => return Why::Stopped,
            },
            false => None,
        };
        // What an earlier agent left is gone on with for an app that goes on.
        let is_done = recorded.is_some() && self.tellers.app_is_gone();
        tracing::info!(key = %wanted.key, "contending");
        let holder = Holder::take_up(
            self.consul.clone(),
            self.clock.clone(),
            Arc::clone(&self.metrics),
            Arc::new(|| rand::random_range(0.0..1.0)),
            wanted.clone(),
            recorded,
        );
        let mut turn = Turn { holder, wanted, max_hold, grace: self.settings.grace };
        let why = match is_done {
            true => Why::AppEnded,
            false => match self.contend(&mut turn).await {
                Ok(tenure) => self.hold(&mut turn, tenure).await,
                Err(why) => why,
            },
        };
        let is_told = self.release(turn, matches!(why, Why::Stopped)).await;
        match why {
            Why::Failed(_) => why,
            _ if is_told => Why::Stopped,
            Why::AppEnded => self.give_way().await.err().unwrap_or(why),
            _ => why,
        }
    }

    /// Leaves the key to somebody whose app runs.
    async fn give_way(&mut self) -> Result<(), Why> {
        self.tellers.idle(None, State::Waiting, None, Some("the app has ended".to_owned()));
        let (clock, until) = (self.clock.clone(), self.clock.now() + WAY);
        loop {
            select! {
                () = clock.sleep_until(until) => return Ok(()),
                disturbed = self.disturbed() => disturbed?,
            }
        }
    }

    /// Waits for the lock.
    async fn contend(&mut self, turn: &mut Turn<C>) -> Result<Tenure, Why> {
        let mut is_settled = false;
        loop {
            if let Some(tenure) = turn.holder.tenure() {
                return Ok(tenure);
            }
            let view = turn.view();
            let trouble = view.trouble.as_ref().map(|trouble| trouble.message.clone());
            let key = Some(turn.wanted.key.clone());
            self.tellers.idle(key, State::of(&view), other(&view), trouble);
            if !is_settled && !matches!(view.lock, LockView::Starting) {
                // Consul has said that the key is not ours: whoever worked for an earlier agent of
                // this pod does so no longer.
                is_settled = true;
                let lock_delay = turn.wanted.session.lock_delay;
                self.tellers.nobody_leads(self.settings.grace.min(lock_delay));
            }
            select! {
                changed = turn.holder.changed() => if changed.is_err() {
                    return Err(Why::Failed(AgentError::Broken));
                },
                disturbed = self.disturbed() => {
                    disturbed?;
                    self.asked(turn)?;
                }
            }
        }
    }

    /// Takes in what the claim says now. An error: it is for something else.
    fn asked(&mut self, turn: &mut Turn<C>) -> Result<(), Why> {
        let claim = self.claim.as_mut().map(|claim| claim.borrow_and_update().clone());
        match self.settings.request(claim.as_ref()) {
            Request::Contend(mut wanted, max_hold) if wanted.key == turn.wanted.key => {
                wanted.session.name = turn.wanted.session.name.clone();
                turn.max_hold = max_hold;
                if *wanted != turn.wanted {
                    turn.wanted = *wanted;
                    turn.holder.want(turn.wanted.clone());
                }
                Ok(())
            }
            Request::Refuse(why) => Err(Why::Failed(AgentError::Refused(why))),
            Request::Contend(..) | Request::StandBy(_) | Request::Starting(_) => Err(Why::Asked),
        }
    }

    /// Holds the lock until work has to stop, and stops it.
    async fn hold(&mut self, turn: &mut Turn<C>, mut tenure: Tenure) -> Why {
        let (key, token) = (turn.wanted.key.clone(), tenure.token);
        tracing::info!(%key, %token, session = %tenure.session, "held");
        self.tellers.begin(&key, &tenure, turn.notice()).await;
        let why = loop {
            match self.watch(turn, &mut tenure).await {
                Ok(()) => {}
                Err(why) => break why,
            }
        };
        let (notice, is_guarded) =
            (turn.notice(), !matches!(why, Why::Failed(AgentError::Unguarded)));
        if !is_guarded {
            self.tellers.await_runtime(notice.deadlines(tenure.valid_until).term).await;
        }
        tracing::warn!(%key, %token, ?why, "the work has to stop");
        let now = self.clock.now();
        let mut kill = notice.kill(now, tenure.valid_until);
        if matches!(why, Why::Lost) {
            // The session is gone: the lock-delay is all that keeps others away.
            kill = kill.min(now + turn.wanted.session.lock_delay);
        }
        let overdue = is_guarded.then(|| notice.overdue(tenure.valid_until).max(kill));
        match self.tellers.end(&key, &tenure, kill, overdue).await {
            Ok(()) => why,
            Err(error) => Why::Failed(error),
        }
    }

    /// Waits for one thing to happen while the lock is held. An error: work has to stop.
    async fn watch(&mut self, turn: &mut Turn<C>, tenure: &mut Tenure) -> Result<(), Why> {
        let term = turn.notice().deadlines(tenure.valid_until).term;
        let max_hold = turn.has_had_it();
        let due = max_hold.map_or(term, |end| end.min(term));
        select! {
            biased;
            () = self.clock.sleep_until(due) => {
                Err(if self.clock.now() >= term { Why::Expired } else { Why::MaxHold })
            }
            changed = turn.holder.changed() => {
                changed.map_err(|_| Why::Failed(AgentError::Broken))?;
                match turn.holder.tenure() {
                    Some(now) if now.token == tenure.token => {
                        if now.valid_until != tenure.valid_until {
                            *tenure = now;
                            self.tellers.renewed(tenure, turn.notice());
                        }
                        Ok(())
                    }
                    _ => Err(Why::Lost),
                }
            }
            news = self.tellers.news() => match news {
                News::Unguarded => Err(Why::Failed(AgentError::Unguarded)),
                News::Reported(Report::Clear { .. }) => {
                    // It saw a deadline pass a moment before the renewal came. What starts now has
                    // to be watched over.
                    self.tellers.renewed(tenure, turn.notice());
                    Ok(())
                }
                News::Reported(Report::AppEnded) => Err(Why::AppEnded),
                News::Reported(_) => Ok(()),
            },
            () = changed(&mut self.claim) => self.asked(turn),
            _ = self.signals.end() => Err(Why::Stopped),
            ended = self.tasks.join_next() => Err(Why::Failed(served(ended))),
        }
    }

    /// Releases, then destroys, in as much time as Consul needs to end the session by itself; a
    /// second signal cuts it short. `is_told`: to end, by a first. Returns whether it was.
    async fn release(&mut self, mut turn: Turn<C>, mut is_told: bool) -> bool {
        let now = self.clock.now();
        let valid_until = turn.view().session.valid_until;
        let until = valid_until.map_or(now, |end| end.max(now)) + RELEASE;
        let clock = self.clock.clone();
        let release = turn.holder.release();
        tokio::pin!(release);
        let state = loop {
            select! {
                state = &mut release => break Some(state),
                () = clock.sleep_until(until) => break None,
                _ = self.signals.end() => if std::mem::replace(&mut is_told, true) {
                    break None;
                }
            }
        };
        if state != Some(StopState::Clean) {
            let key = &turn.wanted.key;
            tracing::warn!(%key, "not released: the session ends by its TTL, the lock-delay follows");
        }
        is_told
    }
}

/// Returns when the claim, if there is one, is another. Cancel-safe.
async fn changed(claim: &mut Option<watch::Receiver<Claim>>) {
    if let Some(claim) = claim
        && claim.changed().await.is_ok()
    {
        return;
    }
    // Where nobody tells any more, what is known stands.
    std::future::pending().await
}

/// What an earlier agent of the same pod left in the key. Asked until Consul answers: an agent that
/// took no notice of it would wait for itself.
async fn left_behind<C: Consul>(consul: &C, clock: &Clock, wanted: &Wanted) -> Option<Recorded> {
    wanted.payload.pod.as_ref()?;
    loop {
        let reading = consul.get(&wanted.key, Consistency::Consistent);
        let trouble = match clock.timeout(ANSWER, reading).await {
            Ok(Ok(reading)) => {
                let recorded = wanted.payload.left_behind(&reading.pair?)?;
                let token = recorded.tenure.as_ref().map(|tenure| tenure.token);
                tracing::info!(key = %wanted.key, ?token, "an earlier agent of this pod has it");
                return Some(recorded);
            }
            Ok(Err(error)) if matches!(error.class, Class::Denied | Class::Invalid) => return None,
            Ok(Err(error)) => error.to_string(),
            Err(elapsed) => elapsed.to_string(),
        };
        tracing::warn!(key = %wanted.key, trouble, "cannot read the key");
        clock.sleep_until(clock.now() + AGAIN).await;
    }
}

/// What it means that a task has ended which should not.
fn served(ended: Option<Result<io::Result<()>, tokio::task::JoinError>>) -> AgentError {
    AgentError::Served(match ended {
        Some(Ok(Err(error))) => error.to_string(),
        Some(Err(error)) => error.to_string(),
        Some(Ok(Ok(()))) | None => "a part ended early".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        keeper::{KeySeen, SessionHealth, SessionView},
        names::NodeName,
    };

    /// What keepers show of a lock that is contended for while the key looks so.
    pub(super) fn view(key: Option<KeySeen>) -> KeeperView {
        KeeperView {
            session: SessionView {
                health: SessionHealth::Healthy,
                id: None,
                node: NodeName::new("virtual"),
                ttl: Duration::from_secs(15),
                valid_until: None,
            },
            lock: LockView::Waiting,
            key,
            trouble: None,
            ended: Arc::default(),
        }
    }
}
