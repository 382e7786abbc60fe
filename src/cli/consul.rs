//! How to reach Consul: the variables that Consul's own tools read, or flags of the same names.

use std::path::PathBuf;

use clap::{ArgMatches, Args, parser::ValueSource};

use super::boolean;
use crate::consul::http::{
    HttpConfig, HttpConfigError, HttpConsul, LoginSettings, SERVICE_ACCOUNT_TOKEN, Token,
    TokenError, TokenSource,
};

/// Where Consul's own tools look if they are told nothing.
const DEFAULT_ADDRESS: &str = "127.0.0.1:8500";

/// As typed. No `Debug`: a token is among it.
#[derive(Args)]
#[command(next_help_heading = "Consul")]
pub(super) struct ConsulFlags {
    /// host:port, http://…, https://… (with a path prefix, if need be) or unix:///path
    /// [default: 127.0.0.1:8500]
    #[arg(long, env = "CONSUL_HTTP_ADDR", value_name = "ADDRESS", hide_env_values = true)]
    consul_http_addr: Option<String>,

    /// The ACL token. Others can read a command line: prefer the variable, or a file
    #[arg(long, env = "CONSUL_HTTP_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    consul_http_token: Option<String>,

    /// A file that holds the ACL token; read again whenever it changes
    #[arg(long, env = "CONSUL_HTTP_TOKEN_FILE", value_name = "PATH")]
    consul_http_token_file: Option<PathBuf>,

    /// Log in by this auth method of Consul's, instead of having a token
    #[arg(long, env = "CONSUL_LOGIN_AUTH_METHOD", value_name = "NAME")]
    consul_login_auth_method: Option<String>,

    /// The file that holds the bearer token to log in with; read again for each login
    #[arg(long, env = "CONSUL_LOGIN_BEARER_TOKEN_FILE", value_name = "PATH")]
    #[arg(default_value = SERVICE_ACCOUNT_TOKEN)]
    consul_login_bearer_token_file: PathBuf,

    /// What Consul notes of the token that a login makes (comma list)
    #[arg(long, env = "CONSUL_LOGIN_META", value_name = "NAME=VALUE")]
    #[arg(value_delimiter = ',', value_parser = meta)]
    consul_login_meta: Vec<(String, String)>,

    /// true: an address without http:// or https:// means https://
    #[arg(long, env = "CONSUL_HTTP_SSL", value_name = "BOOL", value_parser = boolean)]
    consul_http_ssl: Option<bool>,

    /// PEM file of the only CAs to trust. Default: the system's
    #[arg(long, env = "CONSUL_CACERT", value_name = "PATH")]
    consul_cacert: Option<PathBuf>,

    /// PEM file of a client certificate and its chain
    #[arg(long, env = "CONSUL_CLIENT_CERT", value_name = "PATH")]
    consul_client_cert: Option<PathBuf>,

    /// PEM file of the client certificate's key
    #[arg(long, env = "CONSUL_CLIENT_KEY", value_name = "PATH")]
    consul_client_key: Option<PathBuf>,

    /// The name that Consul's certificate must have, instead of the address's host
    #[arg(long, env = "CONSUL_TLS_SERVER_NAME", value_name = "NAME")]
    consul_tls_server_name: Option<String>,

    /// Consul Enterprise's namespace
    #[arg(long, env = "CONSUL_NAMESPACE", value_name = "NAME")]
    consul_namespace: Option<String>,

    /// Consul Enterprise's admin partition
    #[arg(long, env = "CONSUL_PARTITION", value_name = "NAME")]
    consul_partition: Option<String>,

    // Known so that they are refused with a reason instead of being overlooked.
    #[arg(long, env = "CONSUL_HTTP_SSL_VERIFY", value_parser = boolean, hide = true)]
    consul_http_ssl_verify: Option<bool>,
    #[arg(long, env = "CONSUL_HTTP_AUTH", hide = true, hide_env_values = true)]
    consul_http_auth: Option<String>,
    #[arg(long, env = "CONSUL_CAPATH", hide = true)]
    consul_capath: Option<PathBuf>,
}

/// Why Consul cannot be reached with these settings. Repeats no secret.
#[derive(Debug, thiserror::Error)]
pub enum ConsulConfigError {
    /// The token is malformed.
    #[error("--consul-http-token (CONSUL_HTTP_TOKEN): {0}")]
    Token(#[from] TokenError),
    /// `CONSUL_HTTP_SSL_VERIFY=false`
    #[error(
        "--consul-http-ssl-verify (CONSUL_HTTP_SSL_VERIFY): certificates are always verified, \
         since whoever can pose as Consul can hand one lock to two holders; name the CA with \
         --consul-cacert (CONSUL_CACERT)"
    )]
    NoVerify,
    /// `CONSUL_HTTP_AUTH`
    #[error(
        "--consul-http-auth (CONSUL_HTTP_AUTH): basic authentication is not supported; \
         give an ACL token with CONSUL_HTTP_TOKEN_FILE or CONSUL_HTTP_TOKEN"
    )]
    BasicAuth,
    /// `CONSUL_CAPATH`
    #[error(
        "--consul-capath (CONSUL_CAPATH): a folder of CAs is not supported; put the certificates \
         into one PEM file and name it with --consul-cacert (CONSUL_CACERT)"
    )]
    CaFolder,
    /// A token and a login.
    #[error(
        "--consul-login-auth-method (CONSUL_LOGIN_AUTH_METHOD): a login gets a token of its own; give \
         either this, or --consul-http-token-file (CONSUL_HTTP_TOKEN_FILE) or --consul-http-token \
         (CONSUL_HTTP_TOKEN)"
    )]
    TokenAndLogin,
    /// What the client says of the rest.
    #[error("{flags}: {source}")]
    Client {
        /// The flags and variables that it concerns.
        flags: &'static str,
        /// What is wrong.
        source: HttpConfigError,
    },
}

impl ConsulFlags {
    /// For what goes on for ever: files that are no good yet are waited for.
    pub(super) fn validate_patiently(
        self,
        matches: &ArgMatches,
    ) -> Result<HttpConfig, ConsulConfigError> {
        self.validated(matches, true)
    }

    pub(super) fn validate(self, matches: &ArgMatches) -> Result<HttpConfig, ConsulConfigError> {
        self.validated(matches, false)
    }

    fn validated(
        self,
        matches: &ArgMatches,
        wait_for_files: bool,
    ) -> Result<HttpConfig, ConsulConfigError> {
        if self.consul_http_ssl_verify == Some(false) {
            return Err(ConsulConfigError::NoVerify);
        }
        if self.consul_http_auth.is_some() {
            return Err(ConsulConfigError::BasicAuth);
        }
        if self.consul_capath.is_some() {
            return Err(ConsulConfigError::CaFolder);
        }
        let typed = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
        let token = token(
            self.consul_http_token_file,
            self.consul_http_token,
            typed("consul_http_token") && !typed("consul_http_token_file"),
        )?;
        let token = match (self.consul_login_auth_method, token) {
            (None, token) => token,
            (Some(method), TokenSource::None) => TokenSource::Login(LoginSettings {
                method,
                bearer_token_file: self.consul_login_bearer_token_file,
                meta: self.consul_login_meta,
            }),
            (Some(_), _) => return Err(ConsulConfigError::TokenAndLogin),
        };
        let address = self.consul_http_addr.unwrap_or_else(|| DEFAULT_ADDRESS.to_owned());
        let mut config = HttpConfig::new(scheme(address, self.consul_http_ssl == Some(true)));
        config.token = token;
        config.ca_file = self.consul_cacert;
        config.client_cert = self.consul_client_cert;
        config.client_key = self.consul_client_key;
        config.tls_server_name = self.consul_tls_server_name;
        config.namespace = self.consul_namespace;
        config.partition = self.consul_partition;
        config.wait_for_files = wait_for_files;
        match HttpConsul::new(config.clone()) {
            Ok(_) => Ok(config),
            Err(source) => Err(ConsulConfigError::Client { flags: flags_of(&source), source }),
        }
    }
}

/// Consul's order: the file by flag, the token by flag, the file by variable, the token by
/// variable.
fn token(
    file: Option<PathBuf>,
    value: Option<String>,
    value_first: bool,
) -> Result<TokenSource, TokenError> {
    Ok(match (file, value) {
        (Some(file), value) if !value_first || value.is_none() => TokenSource::File(file),
        (_, Some(value)) => TokenSource::Value(Token::new(&value)?),
        _ => TokenSource::None,
    })
}

fn meta(raw: &str) -> Result<(String, String), String> {
    let (name, value) = raw.split_once('=').ok_or("give NAME=VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn scheme(address: String, ssl: bool) -> String {
    if ssl && !address.contains("://") { format!("https://{address}") } else { address }
}

fn flags_of(error: &HttpConfigError) -> &'static str {
    match error {
        HttpConfigError::Address(_) => "--consul-http-addr (CONSUL_HTTP_ADDR)",
        HttpConfigError::TokenFile { .. } => "--consul-http-token-file (CONSUL_HTTP_TOKEN_FILE)",
        HttpConfigError::ServerName(_) => "--consul-tls-server-name (CONSUL_TLS_SERVER_NAME)",
        HttpConfigError::HalfAnIdentity => {
            "--consul-client-cert (CONSUL_CLIENT_CERT), --consul-client-key (CONSUL_CLIENT_KEY)"
        }
        HttpConfigError::File { .. }
        | HttpConfigError::Pem { .. }
        | HttpConfigError::Identity { .. }
        | HttpConfigError::NeedsTls(_)
        | HttpConfigError::Client(_) => {
            "--consul-cacert, --consul-client-cert, --consul-client-key, --consul-tls-server-name"
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::{CliError, Job, parse};

    use super::*;

    fn config(args: &[&str]) -> Result<HttpConfig, CliError> {
        match parse(["consul-lock", "controller"].iter().chain(args))? {
            Job::Controller(config) => Ok(config.consul),
            other => panic!("{other:?}"),
        }
    }

    fn file() -> PathBuf {
        PathBuf::from("/token")
    }

    #[test]
    fn a_token_file_wins_unless_the_token_alone_was_typed() {
        let secret = || Some("s3cret".to_owned());
        let source = |file, value, first| token(file, value, first).unwrap();
        assert!(matches!(source(Some(file()), secret(), false), TokenSource::File(_)));
        assert!(matches!(source(Some(file()), secret(), true), TokenSource::Value(_)));
        assert!(matches!(source(Some(file()), None, true), TokenSource::File(_)));
        assert!(matches!(source(None, secret(), false), TokenSource::Value(_)));
        assert!(matches!(source(None, None, false), TokenSource::None));
    }

    #[test]
    fn a_login_is_by_the_pods_own_service_account_unless_another_file_is_named() {
        let login = |args: &[&str]| match config(args).unwrap().token {
            TokenSource::Login(login) => login,
            other => panic!("{other:?}"),
        };
        let method = "--consul-login-auth-method=kubernetes";
        let plain = login(&[method]);
        assert_eq!(plain.method, "kubernetes");
        let file = "/var/run/secrets/kubernetes.io/serviceaccount/token";
        assert_eq!(plain.bearer_token_file, PathBuf::from(file));
        let all = login(&[
            method,
            "--consul-login-bearer-token-file=/jwt",
            "--consul-login-meta=pod=shop/billing,node=n-1",
        ]);
        assert_eq!(all.bearer_token_file, PathBuf::from("/jwt"));
        let meta = [("pod", "shop/billing"), ("node", "n-1")];
        assert_eq!(all.meta, meta.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn ssl_adds_the_scheme_to_a_bare_address() {
        assert_eq!(config(&["--consul-http-addr=c:8501"]).unwrap().address, "c:8501");
        assert_eq!(scheme("c:8501".to_owned(), true), "https://c:8501");
        assert_eq!(scheme("http://c:8501".to_owned(), true), "http://c:8501");
    }

    #[test]
    fn bad_input_names_the_flag_and_what_is_allowed() {
        for (args, flag, allowed) in [
            (&["--consul-http-addr=ftp://c"][..], "CONSUL_HTTP_ADDR", "http, https, unix"),
            (&["--consul-http-token=a b"], "CONSUL_HTTP_TOKEN", "one word"),
            (&["--consul-cacert=/nonexistent"], "--consul-cacert", "https://"),
            (&["--consul-client-cert=/c.pem"], "--consul-client-cert", "https://"),
            (&["--consul-http-ssl=maybe"], "--consul-http-ssl", "true or false"),
            (&["--consul-http-ssl-verify=false"], "CONSUL_HTTP_SSL_VERIFY", "CONSUL_CACERT"),
            (&["--consul-http-auth=me:s3cret"], "CONSUL_HTTP_AUTH", "CONSUL_HTTP_TOKEN_FILE"),
            (&["--consul-capath=/etc/ssl"], "CONSUL_CAPATH", "CONSUL_CACERT"),
            (
                &["--consul-login-auth-method=kubernetes", "--consul-http-token=x"],
                "CONSUL_LOGIN_AUTH_METHOD",
                "CONSUL_HTTP_TOKEN_FILE",
            ),
            (&["--consul-login-meta=pod"], "--consul-login-meta", "NAME=VALUE"),
        ] {
            let error = config(args).unwrap_err().to_string();
            assert!(error.contains(flag) && error.contains(allowed), "{args:?}: {error}");
        }
        assert!(config(&["--consul-http-ssl-verify=true"]).is_ok());
    }

    #[test]
    fn secrets_are_in_no_error_and_no_debug() {
        let shown = format!("{:?}", config(&["--consul-http-token=s3cret"]).unwrap());
        assert!(!shown.contains("s3cret"), "{shown}");
        for bad in [
            "--consul-http-token=s3cret s3cret",
            "--consul-http-auth=me:s3cret",
            "--consul-http-addr=http://me:s3cret@consul",
        ] {
            let error = config(&[bad]).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("s3cret"), "{shown}");
        }
    }
}
