//! The ACL token: a secret that no `Debug` shows, given by value, in a file that others rotate, or got
//! by a login.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use reqwest::{Url, header::HeaderValue};

use super::{
    HttpConfigError,
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
    /// `login`: where to log in. `patient`: a file that holds no token yet is waited for.
    pub(super) fn new(
        source: &TokenSource,
        clock: &Clock,
        login: Url,
        patient: bool,
    ) -> Result<Tokens, HttpConfigError> {
        Ok(match source {
            TokenSource::None => Tokens::Fixed(None),
            TokenSource::Value(token) => Tokens::Fixed(Some(token.clone())),
            TokenSource::File(path) => {
                let file = TokenFile::expect(path, clock.now());
                if !patient {
                    file.current(clock.now())?;
                }
                Tokens::File(file)
            }
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
    /// The last token, and the file that it was in; or why there was never one.
    known: Result<(Token, Stamp), Arc<TokenFileError>>,
    looked: Instant,
}

impl TokenFile {
    /// It may not be there yet.
    fn expect(path: &Path, now: Instant) -> TokenFile {
        let known = read(path).map_err(Arc::new);
        TokenFile { path: path.to_owned(), seen: Mutex::new(Seen { known, looked: now }) }
    }

    /// The token to use now; or what is wrong with the file, if there was never one in it.
    pub(super) fn current(&self, now: Instant) -> Result<Token, HttpConfigError> {
        let mut seen = self.seen.lock();
        if now.since(seen.looked) >= LOOK_EVERY {
            seen.looked = now;
            match &seen.known {
                Err(_) => seen.known = read(&self.path).map_err(Arc::new),
                Ok((token, stamp)) => {
                    if let Some(new) = self.changed(token, *stamp) {
                        seen.known = Ok(new);
                    }
                }
            }
        }
        match &seen.known {
            Ok((token, _)) => Ok(token.clone()),
            Err(source) => Err(HttpConfigError::TokenFile {
                path: self.path.clone(),
                source: Arc::clone(source),
            }),
        }
    }

    /// `None` keeps the old token: nothing changed, or the file is missing or in the middle of
    /// being written. The stamp is then kept as well, so that the next look tries again.
    fn changed(&self, old: &Token, seen: Stamp) -> Option<(Token, Stamp)> {
        let (token, before) = read(&self.path).ok().filter(|(_, now)| *now != seen)?;
        if stamp(&self.path).ok()? != before {
            return None; // written while it was read
        }
        // Half a token is a valid word, too; but not one of the form that Consul gives tokens.
        (token.is_uuid() || !old.is_uuid()).then_some((token, before))
    }
}

fn read(path: &Path) -> Result<(Token, Stamp), TokenFileError> {
    let before = stamp(path)?;
    Ok((Token::new(&fs::read_to_string(path)?)?, before))
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
        let file = TokenFile::expect(&path, at(0));
        let next = dir.path().join("next");
        fs::write(&next, format!("{NEW}\n")).unwrap();
        fs::rename(&next, &path).unwrap();
        assert_eq!(word(&file.current(at(0)).unwrap()), OLD);
        assert_eq!(word(&file.current(at(1)).unwrap()), NEW);
        assert!(!format!("{file:?}").contains(NEW));
    }

    #[test]
    fn an_empty_missing_or_half_written_file_keeps_the_old_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, OLD).unwrap();
        let file = TokenFile::expect(&path, at(0));
        let mut seconds = 0;
        for broken in ["", "\n", &NEW[..17], "two words"] {
            seconds += 1;
            fs::write(&path, broken).unwrap();
            assert_eq!(word(&file.current(at(seconds)).unwrap()), OLD, "{broken:?}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(word(&file.current(at(10)).unwrap()), OLD);
        fs::write(&path, NEW).unwrap();
        assert_eq!(word(&file.current(at(11)).unwrap()), NEW);
    }

    #[test]
    fn a_file_without_a_token_is_refused_at_the_start_unless_it_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let source = TokenSource::File(path.clone());
        let login = Url::parse("http://consul/v1/acl/login").unwrap();
        let made = |patient| Tokens::new(&source, &Clock::boot(), login.clone(), patient);
        let why = || made(false).err().map(|error| error.to_string()).unwrap();
        assert!(why().contains("No such file"), "{}", why());
        fs::write(&path, "").unwrap();
        assert!(why().contains("the token is empty"), "{}", why());
        assert!(made(true).is_ok());
    }

    #[test]
    fn a_file_that_is_waited_for_is_used_once_a_token_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let file = TokenFile::expect(&path, at(0));
        let why = |now| file.current(now).unwrap_err().to_string();
        assert!(why(at(0)).contains("No such file"), "{}", why(at(0)));
        fs::write(&path, "").unwrap();
        assert!(why(at(1)).contains("the token is empty"), "{}", why(at(1)));
        fs::write(&path, NEW).unwrap();
        assert_eq!(word(&file.current(at(2)).unwrap()), NEW);
    }
}
