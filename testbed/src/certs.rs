//! Certificates for test servers, from an authority of their own.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};

use crate::process::BedError;

/// The year in which certificates end that are meant to be good for any test.
const NEVER: i32 = 4096;

/// A certificate and its key, as PEM files.
#[derive(Clone, Debug)]
pub struct CertFiles {
    /// The certificate.
    pub cert: PathBuf,
    /// Its private key, PKCS #8.
    pub key: PathBuf,
}

/// Whether a certificate is good at this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// No more.
    Past,
    /// It is.
    Present,
    /// Not yet.
    Future,
}

/// A certificate authority whose files are in a folder.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
    ca_file: PathBuf,
}

impl Authority {
    /// Makes one; its certificate goes to `<name>.pem` in the folder.
    ///
    /// # Errors
    /// The key could not be made, or the file not be written.
    pub fn create(folder: &Path, name: &str) -> Result<Authority, BedError> {
        Authority::create_until(folder, name, NEVER)
    }

    /// The same, but its certificate ends with the beginning of that year.
    ///
    /// # Errors
    /// As [`Authority::create`].
    pub fn create_until(folder: &Path, name: &str, year: i32) -> Result<Authority, BedError> {
        let mut params = CertificateParams::default();
        params.not_after = date_time_ymd(year, 1, 1);
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let ca_file = folder.join(format!("{name}.pem"));
        std::fs::write(&ca_file, issuer.pem())?;
        Ok(Authority { issuer, folder: folder.to_owned(), ca_file })
    }

    /// The authority's certificate, as a PEM file.
    #[must_use]
    pub fn ca_file(&self) -> &Path {
        &self.ca_file
    }

    /// A certificate for servers on the loopback and the given addresses, and under the given
    /// names.
    ///
    /// # Errors
    /// It could not be made or written.
    pub fn server(
        &self,
        name: &str,
        names: &[&str],
        addresses: &[Ipv4Addr],
    ) -> Result<CertFiles, BedError> {
        let names: Vec<String> = ["localhost"].iter().chain(names).map(|n| (*n).into()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, name);
        let loopback = (1..=3).map(|host| Ipv4Addr::new(127, 0, 0, host));
        let all = loopback.chain(addresses.iter().copied());
        params.subject_alt_names.extend(all.map(|address| SanType::IpAddress(IpAddr::V4(address))));
        self.issue(name, params)
    }

    /// A certificate for servers of this name alone.
    ///
    /// # Errors
    /// It could not be made or written.
    pub fn server_called(&self, name: &str, validity: Validity) -> Result<CertFiles, BedError> {
        let mut params = CertificateParams::new([name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        let (from, to) = match validity {
            Validity::Past => (2001, 2002),
            Validity::Present => (2001, NEVER),
            Validity::Future => (4095, NEVER),
        };
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        self.issue(&format!("{name}-{from}-{to}"), params)
    }

    /// A client certificate: to Kubernetes the common name is the user, the organisation a group.
    ///
    /// # Errors
    /// It could not be made or written.
    pub fn client(&self, user: &str, group: Option<&str>) -> Result<CertFiles, BedError> {
        self.client_until(user, group, NEVER)
    }

    /// The same, but it ends with the beginning of that year.
    ///
    /// # Errors
    /// As [`Authority::client`].
    pub fn client_until(
        &self,
        user: &str,
        group: Option<&str>,
        year: i32,
    ) -> Result<CertFiles, BedError> {
        let mut params = CertificateParams::default();
        params.not_after = date_time_ymd(year, 1, 1);
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        self.issue(&format!("client-{}", user.replace([':', '/'], "-")), params)
    }

    fn issue(&self, file: &str, mut params: CertificateParams) -> Result<CertFiles, BedError> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        let files = CertFiles {
            cert: self.folder.join(format!("{file}.crt")),
            key: self.folder.join(format!("{file}.key")),
        };
        std::fs::write(&files.cert, cert.pem())?;
        std::fs::write(&files.key, key.serialize_pem())?;
        Ok(files)
    }
}
