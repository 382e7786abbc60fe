//! Where Consul is: the forms of `CONSUL_HTTP_ADDR`, parsed once.

use std::path::PathBuf;

use reqwest::Url;

/// A parsed address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// What every request's URL starts with; its path is the prefix, without a trailing slash.
    pub(super) base: Url,
    /// The socket to connect to instead of the base's host.
    pub(super) socket: Option<PathBuf>,
}

/// Why a text is no address of Consul. Never repeats the text: it may carry a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Nothing there.
    #[error("it is empty; expected host:port, http://, https:// or unix:///path")]
    Empty,
    /// Another scheme.
    #[error("the scheme {0:?} is not one of http, https, unix")]
    Scheme(String),
    /// No URL.
    #[error("it is no host:port and no URL: {0}")]
    Url(String),
    /// `unix://` without an absolute path.
    #[error("unix:// must be followed by an absolute path, as in unix:///run/consul.sock")]
    Socket,
    /// User and password in front of the host.
    #[error("a user or password is not allowed in it; use a token")]
    Credentials,
    /// `?` or `#`.
    #[error("a query or fragment is not allowed in it")]
    Query,
}

impl Address {
    pub(super) fn parse(raw: &str) -> Result<Address, AddressError> {
        let raw = raw.trim();
        if raw.is_empty() {
            return Err(AddressError::Empty);
        }
        match raw.split_once("://") {
            Some(("unix", path)) => Address::unix(path),
            Some(("http" | "https", _)) => Address::tcp(raw),
            Some((scheme, _)) => Err(AddressError::Scheme(scheme.to_owned())),
            None => Address::tcp(&format!("http://{raw}")),
        }
    }

    fn unix(path: &str) -> Result<Address, AddressError> {
        if !path.starts_with('/') || path.ends_with('/') {
            return Err(AddressError::Socket);
        }
        // The host is what goes into the Host header; nothing is resolved.
        let base = Url::parse("http://localhost").map_err(unreadable)?;
        Ok(Address { base, socket: Some(PathBuf::from(path)) })
    }

    fn tcp(url: &str) -> Result<Address, AddressError> {
        let mut base = Url::parse(url).map_err(unreadable)?;
        // `http:/me:secret@consul`, with a slash too few, is a host called http and a path.
        let has_user = !base.username().is_empty() || base.password().is_some();
        if has_user || base.path().contains('@') {
            return Err(AddressError::Credentials);
        }
        if base.query().is_some() || base.fragment().is_some() {
            return Err(AddressError::Query);
        }
        if let Ok(mut segments) = base.path_segments_mut() {
            segments.pop_if_empty();
        }
        Ok(Address { base, socket: None })
    }

    pub(super) fn is_https(&self) -> bool {
        self.base.scheme() == "https"
    }

    /// The URL of an endpoint; each segment is escaped.
    pub(super) fn url<'a>(&self, segments: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }
}

fn unreadable(error: impl ToString) -> AddressError {
    AddressError::Url(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(raw: &str) -> String {
        Address::parse(raw).unwrap().url(["v1", "kv", "a", "b"]).to_string()
    }

    #[test]
    fn every_form_leads_to_the_endpoint() {
        for (raw, expected) in [
            ("127.0.0.1:8500", "http://127.0.0.1:8500/v1/kv/a/b"),
            ("localhost:8500", "http://localhost:8500/v1/kv/a/b"),
            (" consul \n", "http://consul/v1/kv/a/b"),
            ("[::1]:8500", "http://[::1]:8500/v1/kv/a/b"),
            ("http://consul:8500/", "http://consul:8500/v1/kv/a/b"),
            ("https://consul:8501", "https://consul:8501/v1/kv/a/b"),
            ("https://gw/consul/eu/", "https://gw/consul/eu/v1/kv/a/b"),
            ("gw:80/consul", "http://gw/consul/v1/kv/a/b"),
            ("unix:///run/consul.sock", "http://localhost/v1/kv/a/b"),
        ] {
            assert_eq!(url(raw), expected, "{raw}");
        }
        let socket = Address::parse("unix:///run/consul.sock").unwrap().socket;
        assert_eq!(socket, Some(PathBuf::from("/run/consul.sock")));
    }

    #[test]
    fn an_address_that_is_none_says_why_and_keeps_passwords_to_itself() {
        for (raw, expected) in [
            ("", AddressError::Empty),
            ("  ", AddressError::Empty),
            ("ftp://consul", AddressError::Scheme("ftp".into())),
            ("unix://", AddressError::Socket),
            ("unix://run/consul.sock", AddressError::Socket),
            ("http://me:secret@consul", AddressError::Credentials),
            ("http:/me:secret@consul", AddressError::Credentials),
            ("https:/me:secret@consul:8501", AddressError::Credentials),
            ("consul/me:secret@consul", AddressError::Credentials),
            ("http://consul?token=secret", AddressError::Query),
        ] {
            assert_eq!(Address::parse(raw), Err(expected), "{raw}");
        }
        for raw in ["http://", "consul:port", "consul:99999", "a b"] {
            assert!(matches!(Address::parse(raw), Err(AddressError::Url(_))), "{raw}");
        }
    }

    #[test]
    fn names_are_escaped_as_one_segment() {
        let address = Address::parse("http://consul").unwrap();
        let url = address.url(["v1", "session", "node", "a/b ?ü"]);
        assert_eq!(url.as_str(), "http://consul/v1/session/node/a%2Fb%20%3F%C3%BC");
    }

    #[test]
    fn an_empty_last_segment_asks_for_a_folder() {
        let address = Address::parse("http://consul").unwrap();
        assert_eq!(address.url("v1/kv/a/".split('/')).as_str(), "http://consul/v1/kv/a/");
    }
}
