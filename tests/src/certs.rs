//! A certificate authority and a server's certificate that exist for one laboratory.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};

/// PEM files.
#[derive(Clone, Debug)]
pub struct Certs {
    /// What clients trust.
    pub ca: PathBuf,
    /// The server's certificate.
    pub cert: PathBuf,
    /// The server's key, readable by its owner only.
    pub key: PathBuf,
}

impl Certs {
    /// Writes them into `dir`, for a server reached by any of `names` and `addresses`.
    pub fn generate(dir: &Path, names: &[&str], addresses: &[IpAddr]) -> anyhow::Result<Self> {
        let mut authority = CertificateParams::new([])?;
        authority.distinguished_name.push(DnType::CommonName, "Portcullis laboratory");
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;

        let names = names.iter().map(ToString::to_string);
        let addresses = addresses.iter().map(ToString::to_string);
        let server = CertificateParams::new(names.chain(addresses).collect::<Vec<_>>())?;
        let key = KeyPair::generate()?;
        let cert = server.signed_by(&key, &issuer)?;

        let certs = Self {
            ca: dir.join("ca.pem"),
            cert: dir.join("server.pem"),
            key: dir.join("server.key"),
        };
        write(&certs.ca, &issuer.pem(), 0o644)?;
        write(&certs.cert, &cert.pem(), 0o644)?;
        write(&certs.key, &key.serialize_pem(), 0o600)?;
        Ok(certs)
    }
}

fn write(path: &Path, pem: &str, mode: u32) -> anyhow::Result<()> {
    let file = fs::File::options().write(true).create_new(true).mode(mode).open(path);
    let mut file = file.with_context(|| format!("cannot make {}", path.display()))?;
    file.write_all(pem.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_key_is_its_owners() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let addresses = ["10.0.0.1".parse().expect("address"), "fd00::1".parse().expect("address")];
        let certs = Certs::generate(dir.path(), &["shop.test"], &addresses).expect("certificates");
        let mode = fs::metadata(&certs.key).expect("key").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let pem = fs::read_to_string(&certs.cert).expect("certificate");
        assert!(pem.starts_with("-----BEGIN CERTIFICATE-----"));
    }
}
