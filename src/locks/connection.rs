//! How to reach Consul, for whoever uses this crate.

use std::{ffi::OsString, path::PathBuf};

use crate::consul::http::{
    HttpConfig, HttpConsul, LoginSettings, SERVICE_ACCOUNT_TOKEN, Token, TokenSource,
};

/// Where Consul's own tools look if they are told nothing.
const DEFAULT_ADDRESS: &str = "127.0.0.1:8500";

/// How to reach Consul. Its `Debug` shows no secret.
#[derive(Clone, Debug)]
pub struct Connection(HttpConfig);

/// Why Consul cannot be reached like this. Repeats no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// A variable of the environment has a value that is not allowed.
    #[error("{variable}: {allowed}")]
    Variable {
        /// Its name.
        variable: &'static str,
        /// What is wrong, and what is allowed.
        allowed: String,
    },
    /// The ACL token is none.
    #[error("the ACL token: {0}")]
    Token(String),
    /// Address, certificates and names do not make a client.
    #[error("{0}")]
    Client(String),
    /// There is no tokio runtime here.
    #[error("locks are kept by tasks: connect within a tokio runtime")]
    NoRuntime,
}

impl Connection {
    /// To the Consul at `address`: `host:port`, `http://…` or `https://…` (both with a path prefix,
    /// if need be), or `unix:///path`. Nothing is taken from the environment.
    pub fn to(address: impl Into<String>) -> Connection {
        Connection(HttpConfig::new(address))
    }

    /// As Consul's own tools are told: `CONSUL_HTTP_ADDR` (default 127.0.0.1:8500),
    /// `CONSUL_HTTP_TOKEN_FILE`, `CONSUL_HTTP_TOKEN`, `CONSUL_HTTP_SSL`, `CONSUL_CACERT`,
    /// `CONSUL_CLIENT_CERT`, `CONSUL_CLIENT_KEY`, `CONSUL_TLS_SERVER_NAME`, `CONSUL_NAMESPACE`,
    /// `CONSUL_PARTITION`; and to log in by an auth method, `CONSUL_LOGIN_AUTH_METHOD` and
    /// `CONSUL_LOGIN_BEARER_TOKEN_FILE` (default: that of the pod's service account). What is set to
    /// nothing counts as not set. A token's file is read again whenever it changes.
    ///
    /// # Errors
    /// [`ConnectError::Variable`], also for `CONSUL_HTTP_SSL_VERIFY=false`, `CONSUL_HTTP_AUTH` and
    /// `CONSUL_CAPATH`, which are not supported.
    pub fn from_env() -> Result<Connection, ConnectError> {
        Connection::from_variables(std::env::var_os)
    }

    fn from_variables(
        read: impl Fn(&'static str) -> Option<OsString>,
    ) -> Result<Connection, ConnectError> {
        let set = |name| read(name).filter(|value| !value.to_string_lossy().trim().is_empty());
        let refused = |variable, allowed: &str| ConnectError::Variable {
            variable,
            allowed: allowed.to_owned(),
        };
        let text = |name: &'static str| match set(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text)),
            Some(Err(_)) => Err(refused(name, "give UTF-8")),
        };
        let truth = |name: &'static str| match text(name)?.as_deref().map(str::trim) {
            None => Ok(None),
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(Some(true)),
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(Some(false)),
            Some(_) => Err(refused(name, "give true or false")),
        };
        if truth("CONSUL_HTTP_SSL_VERIFY")? == Some(false) {
            return Err(refused(
                "CONSUL_HTTP_SSL_VERIFY",
                "certificates are always verified; name the CA with CONSUL_CACERT",
            ));
        }
        if set("CONSUL_HTTP_AUTH").is_some() {
            return Err(refused("CONSUL_HTTP_AUTH", "not supported; give an ACL token"));
        }
        if set("CONSUL_CAPATH").is_some() {
            return Err(refused(
                "CONSUL_CAPATH",
                "not supported; name one file with CONSUL_CACERT",
            ));
        }
        let mut address = text("CONSUL_HTTP_ADDR")?.unwrap_or_else(|| DEFAULT_ADDRESS.to_owned());
        if truth("CONSUL_HTTP_SSL")? == Some(true) && !address.contains("://") {
            address.insert_str(0, "https://");
        }
        let path = |name| set(name).map(PathBuf::from);
        let mut config = HttpConfig::new(address);
        config.ca_file = path("CONSUL_CACERT");
        config.client_cert = path("CONSUL_CLIENT_CERT");
        config.client_key = path("CONSUL_CLIENT_KEY");
        config.tls_server_name = text("CONSUL_TLS_SERVER_NAME")?;
        config.namespace = text("CONSUL_NAMESPACE")?;
        config.partition = text("CONSUL_PARTITION")?;
        let method = text("CONSUL_LOGIN_AUTH_METHOD")?;
        match (method, path("CONSUL_HTTP_TOKEN_FILE"), text("CONSUL_HTTP_TOKEN")?) {
            (None, Some(file), _) => config.token = TokenSource::File(file),
            (None, None, Some(token)) => return Connection(config).token(&token),
            (None, None, None) => {}
            (Some(method), None, None) => {
                let bearer = path("CONSUL_LOGIN_BEARER_TOKEN_FILE");
                let bearer = bearer.unwrap_or_else(|| PathBuf::from(SERVICE_ACCOUNT_TOKEN));
                return Ok(Connection(config).login(&method, bearer));
            }
            (Some(_), ..) => {
                let allowed = "a login gets a token of its own; give no other";
                return Err(refused("CONSUL_LOGIN_AUTH_METHOD", allowed));
            }
        }
        Ok(Connection(config))
    }

    /// With the token that Consul gives for the bearer token in this file, by the auth method of this
    /// name. [`Locks::close`](crate::Locks::close) gives it back.
    #[must_use]
    pub fn login(mut self, method: &str, bearer_token_file: impl Into<PathBuf>) -> Connection {
        self.0.token = TokenSource::Login(LoginSettings {
            method: method.to_owned(),
            bearer_token_file: bearer_token_file.into(),
            meta: Vec::new(),
        });
        self
    }

    /// With this ACL token.
    ///
    /// # Errors
    /// [`ConnectError::Token`] if it is more than one word, or none.
    pub fn token(mut self, token: &str) -> Result<Connection, ConnectError> {
        let token = Token::new(token).map_err(|error| ConnectError::Token(error.to_string()))?;
        self.0.token = TokenSource::Value(token);
        Ok(self)
    }

    /// With the ACL token in this file, which is read again whenever it changes.
    #[must_use]
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Connection {
        self.0.token = TokenSource::File(path.into());
        self
    }

    /// Trusting the CAs in this PEM file, and no others.
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Connection {
        self.0.ca_file = Some(path.into());
        self
    }

    /// With a client certificate and its key, in PEM files.
    #[must_use]
    pub fn client_certificate(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Connection {
        self.0.client_cert = Some(certificate.into());
        self.0.client_key = Some(key.into());
        self
    }

    pub(super) fn client(self) -> Result<HttpConsul, ConnectError> {
        HttpConsul::new(self.0).map_err(|error| ConnectError::Client(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&'static str, &str)]) -> Result<HttpConfig, ConnectError> {
        let value = |name| {
            let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
            Some(OsString::from(value))
        };
        Connection::from_variables(value).map(|connection| connection.0)
    }

    #[test]
    fn variables_are_those_of_consuls_own_tools() {
        assert_eq!(from(&[]).unwrap().address, "127.0.0.1:8500");
        let config = from(&[
            ("CONSUL_HTTP_ADDR", "c:8501"),
            ("CONSUL_HTTP_SSL", "true"),
            ("CONSUL_CACERT", "/ca.pem"),
            ("CONSUL_NAMESPACE", "team"),
            ("CONSUL_PARTITION", ""),
            ("CONSUL_HTTP_TOKEN", "s3cret"),
        ]);
        let config = config.unwrap();
        assert_eq!(config.address, "https://c:8501");
        assert_eq!(config.ca_file, Some("/ca.pem".into()));
        assert_eq!(
            (config.namespace.as_deref(), config.partition.as_deref()),
            (Some("team"), None)
        );
        assert!(matches!(config.token, TokenSource::Value(_)));
        assert!(!format!("{config:?}").contains("s3cret"));
        let file = [("CONSUL_HTTP_TOKEN_FILE", "/token"), ("CONSUL_HTTP_TOKEN", "s3cret")];
        assert!(matches!(from(&file).unwrap().token, TokenSource::File(_)));
        let login = from(&[("CONSUL_LOGIN_AUTH_METHOD", "kubernetes")]).unwrap();
        let TokenSource::Login(login) = login.token else { panic!("{login:?}") };
        assert_eq!(login.bearer_token_file, PathBuf::from(SERVICE_ACCOUNT_TOKEN));
        let both = [("CONSUL_LOGIN_AUTH_METHOD", "kubernetes"), file[0]];
        let error = from(&both).unwrap_err().to_string();
        assert!(error.contains("CONSUL_LOGIN_AUTH_METHOD"), "{error}");
    }

    #[test]
    fn variable_that_is_not_allowed_is_named() {
        for (variable, value, allowed) in [
            ("CONSUL_HTTP_SSL", "maybe", "true or false"),
            ("CONSUL_HTTP_SSL_VERIFY", "false", "CONSUL_CACERT"),
            ("CONSUL_HTTP_AUTH", "me:s3cret", "ACL token"),
            ("CONSUL_CAPATH", "/etc/ssl", "CONSUL_CACERT"),
        ] {
            let error = from(&[(variable, value)]).unwrap_err().to_string();
            assert!(error.contains(variable) && error.contains(allowed), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
        let error = from(&[("CONSUL_HTTP_TOKEN", "s3cret s3cret")]).unwrap_err().to_string();
        assert!(error.contains("one word") && !error.contains("s3cret"), "{error}");
    }
}
