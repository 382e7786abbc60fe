//! The claim that an agent serves, read now and then: it may `get` consullocks and needs no more.
//!
//! # Guarantees
//! What was read last stands while the API server is away or does not let us: an agent goes on.
//! # Not guaranteed
//! That a change is heard of sooner than the next reading.

use std::time::Duration;

use kube::{Api, Client};
use tokio::sync::watch;

use crate::{
    api::{ConsulLock, Settings, SpecError},
    clock::Clock,
};

/// How long one reading may take.
const ANSWER: Duration = Duration::from_secs(5);

/// How long an agent that knows its key waits for the first reading: what it contends for may be
/// paused, or on other terms. No longer, for an app that works has to be vouched for.
const FIRST: Duration = Duration::from_secs(1);

/// A claim whose key nobody has worked out yet is read again after this long at the latest.
const SOON: Duration = Duration::from_secs(1);

/// What is known of the claim.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Claim {
    /// Nothing yet, for this reason.
    Unread(Option<String>),
    /// There is none of that name.
    Missing,
    /// What it says.
    Read(Box<Spec>),
}

/// What a claim says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Spec {
    pub(super) settings: Settings,
    /// The key that the controller has worked out, which it does once.
    pub(super) status_key: Option<String>,
    pub(super) generation: i64,
}

impl Spec {
    fn has_key(&self) -> bool {
        self.settings.key.is_some() || self.status_key.is_some()
    }
}

/// Where a claim is read.
pub(super) struct Reader {
    api: Api<ConsulLock>,
    name: String,
    again: Duration,
    clock: Clock,
}

impl Reader {
    pub(super) fn new(
        client: Client,
        (namespace, name): (&str, &str),
        again: Duration,
        clock: Clock,
    ) -> Reader {
        Reader { api: Api::namespaced(client, namespace), name: name.to_owned(), again, clock }
    }

    /// Reads it without end, and tells what is new.
    pub(super) async fn follow(self, told: watch::Sender<Claim>) {
        loop {
            match self.read(&told).await {
                Ok(Some(claim)) => tell(&told, meaning(&claim)),
                Ok(None) => tell(&told, Ok(Claim::Missing)),
                Err(error) => {
                    tracing::warn!(claim = self.name, error, "cannot read the claim");
                    tell_trouble(&told, error);
                }
            }
            let again = match &*told.borrow() {
                Claim::Read(spec) if !spec.has_key() => self.again.min(SOON),
                _ => self.again,
            };
            self.clock.sleep_until(self.clock.now() + again).await;
        }
    }

    /// Reads it once. Whoever waits for the first reading is told when it takes its time.
    async fn read(&self, told: &watch::Sender<Claim>) -> Result<Option<ConsulLock>, String> {
        let reading = async {
            match self.clock.timeout(ANSWER, self.api.get_opt(&self.name)).await {
                Ok(read) => read.map_err(|error| error.to_string()),
                Err(elapsed) => Err(elapsed.to_string()),
            }
        };
        tokio::pin!(reading);
        let is_first = *told.borrow() == Claim::Unread(None);
        tokio::select! {
            biased;
            read = &mut reading => return read,
            () = self.clock.sleep_until(self.clock.now() + FIRST), if is_first => {}
        }
        tell_trouble(told, "the API server has not answered yet".to_owned());
        reading.await
    }
}

fn tell_trouble(told: &watch::Sender<Claim>, error: String) {
    told.send_if_modified(|known| match known {
        Claim::Unread(why) if why.as_ref() != Some(&error) => {
            *why = Some(error);
            true
        }
        _ => false,
    });
}

fn tell(told: &watch::Sender<Claim>, meaning: Result<Claim, SpecError>) {
    let new = match meaning {
        Ok(claim) => claim,
        Err(error) if matches!(*told.borrow(), Claim::Read(_)) => {
            tracing::error!(%error, "the claim makes no sense any more; going on as before");
            return;
        }
        Err(error) => Claim::Unread(Some(error.to_string())),
    };
    told.send_if_modified(|known| {
        let is_new = *known != new;
        *known = new;
        is_new
    });
}

fn meaning(claim: &ConsulLock) -> Result<Claim, SpecError> {
    Ok(Claim::Read(Box::new(Spec {
        settings: claim.spec.settings()?,
        status_key: claim.status.as_ref().and_then(|status| status.key.clone()),
        generation: claim.metadata.generation.unwrap_or_default(),
    })))
}
