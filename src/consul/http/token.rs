//! The ACL token: a secret that no `Debug` shows, given by value, in a file that others rotate, or got
//! by a login.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use reqwest::{Url, header::HeaderValue};

use super::{
    files::{LOOK_EVERY, Stamp, stamp},
    login::{Login, LoginSettings},
};
use crate::clock::{Clock, Instant};

/// Consul's `SecretID`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(HeaderValue);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

/// Why a text is no token. Does not repeat it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Nothing but space.
    #[error("the token is empty")]
    Empty,
    /// Line breaks, spaces or other characters that no token has.
    #[error("a token is one word of visible ASCII characters")]
    Characters,
}

impl Token {
    /// Takes space off both ends and checks the rest.
    ///
    /// # Errors
    /// [`TokenError`] if nothing usable is left.
    pub fn new(raw: &str) -> Result<Token, TokenError> {
        let word = raw.trim();
        if word.is_empty() {
            return Err(TokenError::Empty);
        }
        if !word.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Characters);
        }
        let mut value = HeaderValue::from_str(word).map_err(|_| TokenError::Characters)?;
        value.set_sensitive(true);
        Ok(Token(value))
    }

    /// For whoever has to send it in another way than as a header.
    pub(super) fn word(&self) -> &str {
        self.0.to_str().expect("visible ASCII characters were checked for")
    }

    pub(super) fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    /// `text` without the token in it.
    pub(super) fn redact(&self, text: String) -> String {
        if text.contains(self.word()) { text.replace(self.word(), "<token>") } else { text }
    }

    /// Whether it looks like the tokens that Consul makes: 8-4-4-4-12 hexadecimal digits.
    fn is_uuid(&self) -> bool {
        let bytes = self.0.as_bytes();
        bytes.len() == 36
            && bytes.iter().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => *byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            })
    }
}

/// Where the token comes from.
#[derive(Clone, Debug, Default)]
pub enum TokenSource {
    /// Consul's anonymous token.
    #[default]
    None,
    /// This one.
    Value(Token),
    /// What this file holds; read again whenever it changes.
    File(PathBuf),
    /// What Consul gives for a bearer token.
    Login(LoginSettings),
}

/// The token of the next request.
pub(super) enum Tokens {
    Fixed(Option<Token>),
    File(TokenFile),
    Login(Login),
}

/// A token file that cannot be used at the start.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// It holds no token.
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl Tokens {
    /// `login`: where to log in.
    pub(super) fn new(
        source: &TokenSource,
        clock: &Clock,
        login: Url,
    ) -> Result<Tokens, TokenFileError> {
        Ok(match source {
            TokenSource::None => Tokens::Fixed(None),
            TokenSource::Value(token) => Tokens::Fixed(Some(token.clone())),
            TokenSource::File(path) => Tokens::File(TokenFile::open(path, clock.now())?),
            TokenSource::Login(settings) => Tokens::Login(Login::new(settings.clone(), login)),
        })
    }
}

/// A file that is written by somebody else, in place or by renaming.
#[derive(Debug)]
pub(super) struct TokenFile {
    path: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    token: Token,
    stamp: Stamp,
    looked: Instant,
}

impl TokenFile {
    fn open(path: &Path, now: Instant) -> Result<TokenFile, TokenFileError> {
        let stamp = stamp(path)?;
        let token = Token::new(&fs::read_to_string(path)?)?;
        let seen = Mutex::new(Seen { token, stamp, looked: now });
        Ok(TokenFile { path: path.to_owned(), seen })
    }

    pub(super) fn current(&self, now: Instant) -> Token {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if now.since(seen.looked) >= LOOK_EVERY {
            seen.looked = now;
            if let Some((token, stamp)) = self.changed(&seen) {
                seen.token = token;
                seen.stamp = stamp;
            }
        }
        seen.token.clone()
    }

    /// `None` keeps the old token: nothing changed, or the file is missing or in the middle of
    /// being written. The stamp is then kept as well, so that the next look tries again.
    fn changed(&self, seen: &Seen) -> Option<(Token, Stamp)> {
        let before = stamp(&self.path).ok().filter(|now| *now != seen.stamp)?;
        let token = Token::new(&fs::read_to_string(&self.path).ok()?).ok()?;
        if stamp(&self.path).ok()? != before {
            return None; // written while it was read
        }
        // Half a token is a valid word, too; but not one of the form that Consul gives tokens.
        (token.is_uuid() || !seen.token.is_uuid()).then_some((token, before))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const OLD: &str = "11111111-1111-1111-1111-111111111111";
    const NEW: &str = "22222222-2222-2222-2222-222222222222";

    fn at(seconds: u64) -> Instant {
        Instant::from_boot(Duration::from_secs(seconds))
    }

    fn word(token: &Token) -> &str {
        token.0.to_str().unwrap()
    }

    #[test]
    fn a_token_is_one_word_and_never_shown() {
        let token = Token::new(&format!(" {OLD}\n")).unwrap();
        assert_eq!(word(&token), OLD);
        assert_eq!(format!("{token:?} {:?}", token.header()), "Token(hidden) Sensitive");
        assert_eq!(token.redact(format!("bad {OLD}!")), "bad <token>!");
        assert_eq!(Token::new(" \n"), Err(TokenError::Empty));
        for odd in ["two words", "two\nlines", "grün"] {
            assert_eq!(Token::new(odd), Err(TokenError::Characters));
        }
    }

    #[test]
    fn a_rotated_file_is_noticed_within_a_second() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, OLD).unwrap();
        let file = TokenFile::open(&path, at(0)).unwrap();
        let next = dir.path().join("next");
        fs::write(&next, format!("{NEW}\n")).unwrap();
        fs::rename(&next, &path).unwrap();
        assert_eq!(word(&file.current(at(0))), OLD);
        assert_eq!(word(&file.current(at(1))), NEW);
        assert!(!format!("{file:?}").contains(NEW));
    }

    #[test]
    fn an_empty_missing_or_half_written_file_keeps_the_old_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, OLD).unwrap();
        let file = TokenFile::open(&path, at(0)).unwrap();
        let mut seconds = 0;
        for broken in ["", "\n", &NEW[..17], "two words"] {
            seconds += 1;
            fs::write(&path, broken).unwrap();
            assert_eq!(word(&file.current(at(seconds))), OLD, "{broken:?}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(word(&file.current(at(10))), OLD);
        fs::write(&path, NEW).unwrap();
        assert_eq!(word(&file.current(at(11))), NEW);
    }

    #[test]
    fn a_file_without_a_token_is_refused_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        assert!(matches!(TokenFile::open(&path, at(0)), Err(TokenFileError::Read(_))));
        fs::write(&path, "").unwrap();
        assert!(matches!(TokenFile::open(&path, at(0)), Err(TokenFileError::Token(_))));
    }
}
