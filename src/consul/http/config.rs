//! What a client is made from, and why it may not be.

use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};

use super::{
    address::{Address, AddressError},
    token::{TokenFileError, TokenSource},
};
use crate::consul::{Class, Operation};

/// Hears of every call that ended: which, how, and how long it took.
pub type Observer = Arc<dyn Fn(Operation, Result<(), Class>, Duration) + Send + Sync>;

/// How to reach Consul.
#[derive(Clone)]
pub struct HttpConfig {
    /// `host:port`, `http://…`, `https://…` (both with a path prefix, if need be) or
    /// `unix:///path`.
    pub address: String,
    /// The ACL token.
    pub token: TokenSource,
    /// PEM file of the only CAs to trust. `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client certificate and its chain.
    pub client_cert: Option<PathBuf>,
    /// PEM file of its key.
    pub client_key: Option<PathBuf>,
    /// The name that Consul's certificate must have, instead of the address's host.
    pub tls_server_name: Option<String>,
    /// Consul Enterprise's namespace.
    pub namespace: Option<String>,
    /// Consul Enterprise's admin partition.
    pub partition: Option<String>,
    /// Short calls open at a time; more wait for one to end.
    pub max_in_flight: usize,
    /// Blocking queries open at a time.
    pub max_polls: usize,
    /// Files that are missing or no good are waited for: calls fail, and say which it is, until it is
    /// put right. Otherwise no client is made.
    pub wait_for_files: bool,
    /// Time limit of a short call, waiting for its turn included.
    pub timeout: Duration,
    /// For metrics.
    pub observer: Option<Observer>,
}

impl HttpConfig {
    /// Consul at `address`, without a token, everything else as documented defaults.
    pub fn new(address: impl Into<String>) -> HttpConfig {
        HttpConfig {
            address: address.into(),
            token: TokenSource::None,
            ca_file: None,
            client_cert: None,
            client_key: None,
            tls_server_name: None,
            namespace: None,
            partition: None,
            max_in_flight: 5,
            max_polls: 16,
            wait_for_files: false,
            timeout: Duration::from_secs(10),
            observer: None,
        }
    }
}

impl fmt::Debug for HttpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { base, socket } = match Address::parse(&self.address) {
            Ok(address) => address,
            // Unparsed, it may carry a password.
            Err(error) => return write!(f, "HttpConfig(address: {error})"),
        };
        f.debug_struct("HttpConfig")
            .field("address", &socket.map_or(base.to_string(), |path| path.display().to_string()))
            .field("token", &self.token)
            .field("ca_file", &self.ca_file)
            .field("client_cert", &self.client_cert)
            .field("tls_server_name", &self.tls_server_name)
            .field("namespace", &self.namespace)
            .field("partition", &self.partition)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// Why no client can be made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HttpConfigError {
    /// The address.
    #[error("Consul's address cannot be used: {0}")]
    Address(#[from] AddressError),
    /// The token file.
    #[error("the token file {} cannot be used: {source}", path.display())]
    TokenFile {
        /// Where it should be.
        path: PathBuf,
        /// What is wrong with it.
        source: Arc<TokenFileError>,
    },
    /// A file that cannot be read.
    #[error("the {what} file {} cannot be read: {source}", path.display())]
    File {
        /// Which one.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// A file that holds something else.
    #[error("the {what} file {} is no PEM file of that kind: {why}", path.display())]
    Pem {
        /// Which one.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A client certificate and a key that make nothing together.
    #[error(
        "the client certificate {} and the client key {} cannot be used together: {why}",
        cert.display(),
        key.display()
    )]
    Identity {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's.
        key: PathBuf,
        /// What is wrong with them.
        why: String,
    },
    /// A client certificate without its key, or the other way round.
    #[error("a client certificate and a client key are given together or not at all")]
    HalfAnIdentity,
    /// The name to find in the certificate.
    #[error("the TLS server name {0:?} is no DNS name")]
    ServerName(String),
    /// Something that only makes sense over `https://`.
    #[error("{0} needs an address that begins with https://")]
    NeedsTls(&'static str),
    /// TLS could not be set up.
    #[error("TLS cannot be set up: {0}; is there a CA file?")]
    Client(String),
}

impl HttpConfigError {
    /// Whether it can be put right by another content of a file.
    pub(super) fn is_of_a_file(&self) -> bool {
        match self {
            HttpConfigError::TokenFile { .. }
            | HttpConfigError::File { .. }
            | HttpConfigError::Pem { .. }
            | HttpConfigError::Identity { .. } => true,
            HttpConfigError::Address(_)
            | HttpConfigError::HalfAnIdentity
            | HttpConfigError::ServerName(_)
            | HttpConfigError::NeedsTls(_)
            | HttpConfigError::Client(_) => false,
        }
    }
}

pub(super) fn needs_tls(config: &HttpConfig, address: &Address) -> Result<(), HttpConfigError> {
    let given = [
        ("a CA file", config.ca_file.is_some()),
        ("a client certificate", config.client_cert.is_some() || config.client_key.is_some()),
        ("a TLS server name", config.tls_server_name.is_some()),
    ];
    match given.iter().find(|(_, given)| *given && !address.is_https()) {
        Some((what, _)) => Err(HttpConfigError::NeedsTls(what)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consul::http::{HttpConsul, Token};

    fn refused(change: impl FnOnce(&mut HttpConfig)) -> String {
        let mut config = HttpConfig::new("https://consul:8501");
        config.ca_file = Some("/nonexistent/ca.pem".into());
        change(&mut config);
        HttpConsul::new(config).unwrap_err().to_string()
    }

    #[test]
    fn a_bad_setting_is_named() {
        assert_eq!(
            refused(|config| config.address = "consul:8500".into()),
            "a CA file needs an address that begins with https://"
        );
        assert!(refused(|_| {}).starts_with("the CA file /nonexistent/ca.pem cannot be read: "));
        assert_eq!(
            refused(|config| {
                config.ca_file = None;
                config.client_cert = Some("cert.pem".into());
            }),
            "a client certificate and a client key are given together or not at all"
        );
        let no_pem = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        assert!(refused(|config| config.ca_file = Some(no_pem.into())).contains("PEM"));
        assert!(
            refused(|config| config.address = "".into()).starts_with("Consul's address cannot")
        );
    }

    #[test]
    fn no_debug_shows_a_secret() {
        let mut config = HttpConfig::new("127.0.0.1:8500");
        config.token = TokenSource::Value(Token::new("s3cret").unwrap());
        let shown = format!("{config:?} {:?}", HttpConsul::new(config.clone()).unwrap());
        assert!(shown.contains("127.0.0.1:8500") && !shown.contains("s3cret"), "{shown}");
        config.address = "http://me:s3cret@consul".into();
        let error = HttpConsul::new(config.clone()).unwrap_err();
        let shown = format!("{config:?} {error:?} {error}");
        assert!(!shown.contains("s3cret"), "{shown}");
    }
}
