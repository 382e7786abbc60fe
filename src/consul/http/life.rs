//! From when until when that is good which we show Consul, and which we trust it by: by Consul's words
//! and by the files, for metrics. Nothing is decided by it.

use std::ops::Range;

use jiff::Timestamp;
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::{parse_x509_certificate, time::ASN1Time};

use super::token::Token;

/// From when until when the certificates are good that calls are made with; of the certificates of a
/// file, the one that ends first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificates {
    /// Those that Consul's is looked up among. `None`: they are the system's.
    pub ca: Option<Range<Timestamp>>,
    /// Ours, and what comes with it.
    pub client: Option<Range<Timestamp>>,
}

/// Of the certificate of a PEM file that ends first. What is none, or cannot be read as one, is left out:
/// whether a file can be used is decided by TLS alone.
pub(super) fn of_certificates(pem: &[u8]) -> Option<Range<Timestamp>> {
    let all = CertificateDer::pem_slice_iter(pem).flatten();
    all.filter_map(|der| of_certificate(&der)).min_by_key(|life| life.end)
}

fn of_certificate(der: &[u8]) -> Option<Range<Timestamp>> {
    let (_, certificate) = parse_x509_certificate(der).ok()?;
    let validity = certificate.validity();
    Some(instant(validity.not_before)..instant(validity.not_after))
}

/// The end of the year 9999, which stands for never, is beyond the last `Timestamp`.
fn instant(time: ASN1Time) -> Timestamp {
    Timestamp::from_second(time.timestamp()).unwrap_or(Timestamp::MAX)
}

/// Of a token, as Consul tells. `None`: it does not expire.
pub(super) fn of_token(
    created: Option<Timestamp>,
    expires: Option<Timestamp>,
) -> Option<Range<Timestamp>> {
    Some(created?..expires?)
}

/// What Consul has told of the last token that it was asked about. A token's life never changes.
#[derive(Default)]
pub(super) struct Told(Mutex<Option<(Token, Option<Range<Timestamp>>)>>);

impl Told {
    /// The token's life; `Some(None)`: it does not expire; `None`: nothing was told.
    pub(super) fn of(&self, token: &Token) -> Option<Option<Range<Timestamp>>> {
        let told = self.0.lock();
        told.as_ref().filter(|(of, _)| of == token).map(|(_, life)| life.clone())
    }

    pub(super) fn note(&self, token: Token, life: Option<Range<Timestamp>>) {
        *self.0.lock() = Some((token, life));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use testbed::Authority;

    use super::*;

    fn year(year: i16) -> Timestamp {
        jiff::civil::date(year, 1, 1).to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp()
    }

    #[test]
    fn of_a_file_s_certificates_the_one_that_ends_first_tells() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, until| {
            let made = Authority::create_until(folder.path(), name, until).unwrap();
            fs::read_to_string(made.ca_file()).unwrap()
        };
        let (long, short) = (make("long", 2090), make("short", 2080));
        let life = |pem: &str| of_certificates(pem.as_bytes()).map(|life| life.end);
        assert_eq!(life(&long), Some(year(2090)));
        for both in [format!("{long}{short}"), format!("{short}{long}")] {
            assert_eq!(life(&both), Some(year(2080)));
        }
        assert!(of_certificates(long.as_bytes()).unwrap().start < year(2026));
        let odd = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
        assert_eq!(life(&format!("words\n{odd}{long}")), Some(year(2090)));
        assert_eq!(life(odd), None);
    }

    #[test]
    fn a_certificate_that_is_good_for_ever_has_a_last_day() {
        let never = ASN1Time::from_timestamp(253_402_300_799).unwrap();
        assert_eq!(instant(never), Timestamp::MAX);
    }

    #[test]
    fn what_was_told_of_a_token_is_not_taken_for_another_s() {
        let (told, one) = (Told::default(), Token::new("one").unwrap());
        let life = of_token(Some(year(2026)), Some(year(2027)));
        assert_eq!(told.of(&one), None);
        told.note(one.clone(), life.clone());
        assert_eq!(told.of(&one), Some(life));
        let two = Token::new("two").unwrap();
        assert_eq!(told.of(&two), None);
        told.note(two.clone(), of_token(Some(year(2026)), None));
        assert_eq!((told.of(&one), told.of(&two)), (None, Some(None)));
    }
}
