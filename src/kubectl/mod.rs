//! `kubectl consullock`, and the same commands of `consul-lock`: who holds what, its history, and
//! what an operator does about it by hand.
//!
//! What is shown is made of objects by pure functions (`rows`, `describe`, `changes`); the rest
//! asks the API server and waits. Nothing here is part of the controller or needs it to run, but
//! whoever asks for a handover or a pause waits for the controller to carry it out.
//!
//! # Guarantees
//! Text that others wrote (holders, messages) is stripped of what makes a terminal do something.
//! A handover or a release is about the tenure that it names, and does nothing to a later one.
//! # Not guaranteed
//! What is shown of a claim is as old as its status.

use std::{io, time::Duration};

use kube::config::KubeconfigError;

mod access;
mod changes;
mod describe;
mod doctor;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzed;
mod handover;
mod pause;
mod release;
mod rows;
#[cfg(test)]
mod sample;
mod screen;
mod show;
mod table;
mod waiting;

pub use access::Access;
pub use doctor::DoctorSettings;
pub use screen::Format;

use access::Cluster;
use screen::Screen;

use crate::{
    clock::Clock,
    consul::{
        ConsulError,
        http::{HttpConfig, HttpConfigError, HttpConsul},
    },
};

/// What is to be done, and where.
#[derive(Clone, Debug)]
pub struct KubectlSettings {
    /// How the API server is reached.
    pub access: Access,
    /// What is to be done.
    pub order: Order,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Order {
    /// Show claims.
    List {
        /// Of one namespace, and not of all.
        confined: bool,
        /// How.
        format: Format,
    },
    /// Show everything about claims.
    Describe {
        /// Which; none: all of the namespace.
        claims: Vec<String>,
        /// How.
        format: Format,
    },
    /// Show tenures.
    History {
        /// Whose.
        scope: Scope,
        /// How.
        format: Format,
    },
    /// Show what changes, until told to stop.
    Watch {
        /// Of what.
        scope: Scope,
        /// How.
        format: Format,
    },
    /// Have a tenure end in favour of somebody else.
    Handover {
        /// Of which claim.
        claim: String,
        /// In favour of this pod.
        to: Option<String>,
        /// How long to wait for it.
        patience: Patience,
    },
    /// Take the key from whoever holds it, by force.
    Release {
        /// Of which claim.
        claim: String,
        /// Without asking.
        agreed: bool,
        /// How to reach Consul.
        consul: Box<HttpConfig>,
    },
    /// Examine everything that the controller needs.
    Doctor(Box<DoctorSettings>),
    /// Set or unset `spec.paused`.
    Pause {
        /// Of which claim.
        claim: String,
        /// Whether it is to be paused.
        paused: bool,
        /// How long to wait for it.
        patience: Patience,
    },
}

/// Whose tenures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One claim's.
    Claim(String),
    /// Those of all claims of the namespace.
    Namespace,
    /// Those of all claims.
    Everywhere,
}

/// How long to wait; `None`: not at all.
pub type Patience = Option<Duration>;

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum KubectlError {
    /// The kubeconfig is no good.
    #[error("cannot use the kubeconfig: {0}")]
    Kubeconfig(#[source] Box<KubeconfigError>),
    /// There is none.
    #[error(
        "found no Kubernetes: neither KUBECONFIG, ~/.kube/config nor a pod's service account: {0}"
    )]
    Nowhere(#[source] Box<kube::config::InferConfigError>),
    /// The client cannot be made of it.
    #[error("cannot make a Kubernetes client: {0}")]
    Client(#[source] Box<kube::Error>),
    /// The API server refuses.
    #[error("cannot {attempt}: {}", api_words(source))]
    Api {
        /// What was attempted.
        attempt: String,
        /// What it said.
        source: Box<kube::Error>,
    },
    /// The API server does not answer.
    #[error("cannot {attempt}: no answer within {within:?}")]
    Silent {
        /// What was attempted.
        attempt: String,
        /// How long it was waited for.
        within: Duration,
    },
    /// Consul's configuration is no good.
    #[error("Consul's configuration cannot be used: {0}")]
    ConsulConfig(#[source] HttpConfigError),
    /// Consul refuses, or does not answer.
    #[error("cannot {attempt}: {source}")]
    Consul {
        /// What was attempted.
        attempt: &'static str,
        /// What it said.
        source: ConsulError,
    },
    /// A watch failed.
    #[error("cannot follow the ConsulLocks: {0}")]
    Watch(#[source] Box<kube::runtime::watcher::Error>),
    /// It cannot be done; what can be done instead.
    #[error("{0}")]
    Refused(String),
    /// It was asked for, but did not come about in time.
    #[error("{0}")]
    TimedOut(String),
    /// Nobody is there to answer.
    #[error("nobody is there to be asked: standard input is no terminal; --yes agrees beforehand")]
    NobodyToAsk,
    /// The question was answered by something else than yes.
    #[error("nothing was done")]
    Declined,
    /// By SIGINT or SIGTERM.
    #[error("interrupted")]
    Interrupted,
    /// Standard output.
    #[error("cannot write to standard output: {0}")]
    Output(#[source] io::Error),
    /// Signals.
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] io::Error),
    /// Standard input.
    #[error("cannot read the answer: {0}")]
    Input(#[source] io::Error),
    /// An answer as JSON.
    #[error("cannot write the answer as JSON: {0}")]
    Encode(#[source] serde_json::Error),
    /// An answer as YAML.
    #[error("cannot write the answer as YAML: {0}")]
    EncodeYaml(String),
}

impl KubectlError {
    /// The exit code, as `--help` lists them.
    pub fn exit_code(&self) -> u8 {
        match self {
            KubectlError::TimedOut(_) => 75,
            KubectlError::NobodyToAsk => 2,
            // Whoever read enough has closed the pipe.
            KubectlError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            _ => 1,
        }
    }
}

/// The API server's own words, without what wraps them.
fn api_words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => {
            let mut words = other.to_string();
            let mut source = std::error::Error::source(other);
            while let Some(cause) = source {
                let cause_words = cause.to_string();
                if !words.contains(&cause_words) {
                    words = format!("{words}: {cause_words}");
                }
                source = cause.source();
            }
            words
        }
    }
}

/// Does it; the exit code.
///
/// # Errors
/// [`KubectlError`].
pub async fn run(settings: KubectlSettings, clock: Clock) -> Result<u8, KubectlError> {
    let cluster = settings.access.connect(clock).await?;
    match settings.order {
        Order::List { confined, format } => {
            show::list(&cluster, confined, &Screen::new(format)).await
        }
        Order::Describe { claims, format } => {
            show::describe(&cluster, &claims, &Screen::new(format)).await
        }
        Order::History { scope, format } => {
            show::history(&cluster, &scope, &Screen::new(format)).await
        }
        Order::Watch { scope, format } => show::watch(&cluster, &scope, &Screen::new(format)).await,
        Order::Handover { claim, to, patience } => {
            let said = handover::hand_over(&cluster, &claim, to.as_deref(), patience).await?;
            Screen::new(Format::Table).say(&said)
        }
        Order::Release { claim, agreed, consul } => {
            let consul = HttpConsul::new(*consul).map_err(KubectlError::ConsulConfig)?;
            let screen = Screen::new(Format::Table);
            let said = release::release(&cluster, &consul, &claim, agreed, &screen).await;
            consul.log_out().await;
            screen.say(&said?)
        }
        Order::Doctor(settings) => {
            let well = doctor::examine(&cluster, *settings).await?;
            return Ok(if well { 0 } else { 1 });
        }
        Order::Pause { claim, paused, patience } => {
            let said = pause::set(&cluster, &claim, paused, patience).await?;
            Screen::new(Format::Table).say(&said)
        }
    }?;
    Ok(0)
}

/// SIGINT or SIGTERM arrived.
async fn signalled() -> Result<(), KubectlError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).map_err(KubectlError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(KubectlError::Signals)?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
