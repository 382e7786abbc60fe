//! The client that carries calls, made anew when somebody rotates the files that it was made from.
//!
//! # Guarantees
//! A file that changed is noticed with the first call that is sent a second later or more. Calls under
//! way end as they began. Files that do not fit together, as in the middle of a rotation, change nothing:
//! the last client serves until they do. Where there was none yet, they are looked at every second.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use reqwest::{
    Certificate, Client, ClientBuilder, Identity,
    dns::{Name, Resolve, Resolving},
    redirect::Policy,
};

use super::{
    HttpConfig, HttpConfigError,
    address::Address,
    errors,
    files::{LOOK_EVERY, Stamp, stamp},
    life::{self, Certificates},
};
use crate::clock::Instant;

/// Longer than this nobody waits for a connection, so that the rest of a call's time is not spent
/// on an address that does not answer, and it is certain that nothing was sent.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Idle connections end before usual proxies and load balancers drop them silently.
const IDLE_MAX: Duration = Duration::from_secs(50);

pub(super) struct Carrier {
    config: HttpConfig,
    address: Address,
    made: Mutex<Made>,
}

/// A client, and until when the certificates are good that it was made with.
#[derive(Clone)]
struct Built {
    client: Client,
    certificates: Certificates,
}

/// What was built, and the files that it was made from as they were then; or why there is nothing yet.
struct Made {
    built: Result<Built, HttpConfigError>,
    stamps: Stamps,
    looked: Instant,
    /// Files that made no client, so that it is said once.
    refused: Option<Stamps>,
}

/// `None`: there is no such file.
type Stamps = Vec<Option<Stamp>>;

impl Carrier {
    /// Reads the files; connects to nothing.
    pub(super) fn new(
        config: &HttpConfig,
        address: &Address,
        now: Instant,
    ) -> Result<Carrier, HttpConfigError> {
        let stamps = stamps(config);
        let built = match build(config, address) {
            Err(error) if !(config.wait_for_files && error.is_of_a_file()) => return Err(error),
            built => built,
        };
        let made = Made { built, stamps, looked: now, refused: None };
        let (config, address) = (config.clone(), address.clone());
        Ok(Carrier { config, address, made: Mutex::new(made) })
    }

    /// The client to use now; or which file has to be put right, if nothing of it was ever good.
    pub(super) fn client(&self, now: Instant) -> Result<Client, HttpConfigError> {
        self.built(now).map(|built| built.client)
    }

    /// Until when the certificates are good that the client to use now was made with.
    pub(super) fn certificates(&self, now: Instant) -> Certificates {
        self.built(now).map(|built| built.certificates).unwrap_or_default()
    }

    fn built(&self, now: Instant) -> Result<Built, HttpConfigError> {
        let mut made = self.made.lock();
        if now.since(made.looked) >= LOOK_EVERY {
            made.looked = now;
            self.look(&mut made);
        }
        made.built.clone()
    }

    fn look(&self, made: &mut Made) {
        let before = stamps(&self.config);
        if before == made.stamps && made.built.is_ok() {
            return;
        }
        let built = build(&self.config, &self.address);
        if stamps(&self.config) != before {
            return; // written while they were read
        }
        match built {
            Ok(built) => {
                tracing::info!("CA or client certificate for Consul changed");
                (made.built, made.stamps, made.refused) = (Ok(built), before, None);
            }
            // Whoever calls is told.
            Err(error) if made.built.is_err() => made.built = Err(error),
            Err(error) if made.refused.as_ref() != Some(&before) => {
                tracing::warn!(%error, "going on with the last CA and client certificate");
                made.refused = Some(before);
            }
            Err(_) => {}
        }
    }
}

fn stamps(config: &HttpConfig) -> Stamps {
    let files: [&Option<PathBuf>; 3] = [&config.ca_file, &config.client_cert, &config.client_key];
    files.into_iter().flatten().map(|path| stamp(path).ok()).collect()
}

/// Installs ring as the process's TLS provider unless one is installed: without one reqwest
/// panics, even for plain HTTP. `main` does so before anything else.
pub fn ensure_tls_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Losing the race against another thread leaves its provider in place, which serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

fn build(config: &HttpConfig, address: &Address) -> Result<Built, HttpConfigError> {
    ensure_tls_provider();
    let mut certificates = Certificates::default();
    let mut builder = Client::builder()
        .redirect(Policy::none()) // X-Consul-Token would be sent along
        .no_proxy()
        .retry(reqwest::retry::never())
        .referer(false)
        .connect_timeout(CONNECT_MAX.min(config.timeout))
        .pool_idle_timeout(IDLE_MAX)
        // Fewer would close and reopen connections under load, and Consul goes on counting one for
        // a while that we have closed.
        .pool_max_idle_per_host(config.max_in_flight.max(1));
    if let Some(socket) = &address.socket {
        builder = builder.unix_socket(socket.as_path());
    }
    builder = if address.is_https() {
        tls(builder, config, address, &mut certificates)?
    } else {
        // No certificates: a machine without a CA bundle must not need one here.
        builder.http1_only().tls_certs_only([])
    };
    let client =
        builder.build().map_err(|error| match (&config.client_cert, &config.client_key) {
            (Some(cert), Some(key)) => HttpConfigError::Identity {
                cert: cert.clone(),
                key: key.clone(),
                why: errors::chain(error),
            },
            _ => HttpConfigError::Client(errors::chain(error)),
        })?;
    Ok(Built { client, certificates })
}

fn tls(
    mut builder: ClientBuilder,
    config: &HttpConfig,
    address: &Address,
    certificates: &mut Certificates,
) -> Result<ClientBuilder, HttpConfigError> {
    if let Some(path) = &config.ca_file {
        let text = read("CA", path)?;
        certificates.ca = life::of_certificates(&text);
        let bundle = Certificate::from_pem_bundle(&text)
            .map_err(|error| pem("CA", path, errors::chain(error)))?;
        if bundle.is_empty() {
            return Err(pem("CA", path, "no certificate in it".to_owned()));
        }
        builder = builder.tls_certs_only(bundle);
    }
    builder = match (&config.client_cert, &config.client_key) {
        (None, None) => builder,
        (Some(cert), Some(key)) => {
            let mut both = read("client certificate", cert)?;
            certificates.client = life::of_certificates(&both);
            both.push(b'\n');
            both.extend(read("client key", key)?);
            let identity = Identity::from_pem(&both)
                .map_err(|error| pem("client certificate and key", cert, errors::chain(error)))?;
            builder.identity(identity)
        }
        (Some(_), None) | (None, Some(_)) => return Err(HttpConfigError::HalfAnIdentity),
    };
    if config.tls_server_name.is_some()
        && let Some(host) = address.base.host_str()
    {
        let host = host.trim_matches(['[', ']']).to_owned();
        builder = builder.dns_resolver(ElsewhereResolver { host: host.into() });
    }
    Ok(builder)
}

/// The URL names the certificate's host, so that SNI and the check of the certificate use it;
/// this leads the connection to where Consul really is. Looked up anew for every connection.
struct ElsewhereResolver {
    host: Arc<str>,
}

impl Resolve for ElsewhereResolver {
    fn resolve(&self, _: Name) -> Resolving {
        let host = self.host.clone();
        Box::pin(async move {
            // The port of the URL replaces this one.
            let found: Vec<_> = match host.parse::<IpAddr>() {
                Ok(ip) => vec![(ip, 0).into()],
                Err(_) => tokio::net::lookup_host((&*host, 0)).await?.collect(),
            };
            Ok(Box::new(found.into_iter()) as _)
        })
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, HttpConfigError> {
    fs::read(path).map_err(|source| HttpConfigError::File {
        what,
        path: path.to_owned(),
        source: Arc::new(source),
    })
}

fn pem(what: &'static str, path: &Path, why: String) -> HttpConfigError {
    HttpConfigError::Pem { what, path: path.to_owned(), why }
}
