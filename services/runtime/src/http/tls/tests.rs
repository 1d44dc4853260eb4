use std::fs;
use std::path::PathBuf;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use rcgen::generate_simple_self_signed;
use tokio::time::sleep;

use super::*;

/// A certificate for `localhost` and its key, in files of a folder that is removed in the end.
pub struct Files {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Files {
    pub fn new() -> Self {
        let folder =
            std::env::temp_dir().join(format!("herald-tls-{:016x}", rand::random::<u64>()));
        fs::create_dir(&folder).unwrap();
        let files = Self {
            cert: folder.join("tls.crt"),
            key: folder.join("tls.key"),
        };
        files.replace();
        files
    }

    /// Writes another pair, and returns its certificate.
    pub fn replace(&self) -> CertificateDer<'static> {
        let (cert, key, der) = pair();
        fs::write(&self.cert, cert).unwrap();
        fs::write(&self.key, key).unwrap();
        der
    }

    pub fn args(&self) -> TlsArgs {
        TlsArgs {
            tls_cert: Some(self.cert.clone()),
            tls_key: Some(self.key.clone()),
        }
    }

    /// The certificate that is in the file now.
    pub fn certificate(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(&self.cert).unwrap()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(self.cert.parent().unwrap());
    }
}

fn pair() -> (String, String, CertificateDer<'static>) {
    let made = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (made.cert.der(), made.signing_key.serialize_der());
    let pem = |label: &str, der: &[u8]| {
        let text = BASE64_STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    };
    (
        pem("CERTIFICATE", cert),
        pem("PRIVATE KEY", &key),
        cert.clone(),
    )
}

/// The error of a start with these files.
fn error(cert: &str, key: &str) -> String {
    let files = Files::new();
    fs::write(&files.cert, cert).unwrap();
    fs::write(&files.key, key).unwrap();
    let Err(error) = Tls::new(&files.args(), &CancellationToken::new()) else {
        panic!("these files can be used");
    };
    format!("{error:#}")
}

#[tokio::test]
async fn files_that_cannot_be_used_are_one_sentence_that_names_them() {
    let (cert, key, _) = pair();
    let (other, ..) = pair();
    for (cert, key, why) in [
        (
            &other,
            &key,
            "the key does not belong to the first certificate",
        ),
        (
            &key,
            &cert,
            "contains no certificate (-----BEGIN CERTIFICATE-----)",
        ),
        (
            &cert,
            &cert,
            "contains no private key that is not encrypted",
        ),
        (&"".to_owned(), &key, "contains no certificate"),
        (&cert.replace("\nM", "\n!"), &key, "is not valid PEM"),
        (
            &format!("{cert}{other}"),
            &"".to_owned(),
            "contains no private key",
        ),
    ] {
        let error = error(cert, key);
        assert!(error.contains(why), "{error}");
        assert!(
            error.starts_with("cannot use ") && error.contains("tls.crt and "),
            "{error}"
        );
    }
    let mut args = Files::new().args();
    args.tls_key = Some("/nowhere/tls.key".into());
    let Err(missing) = Tls::new(&args, &CancellationToken::new()) else {
        panic!("there is no such file");
    };
    assert!(
        format!("{missing:#}").starts_with("cannot read /"),
        "{missing:#}"
    );
}

#[test]
fn one_file_without_the_other_is_one_sentence() {
    let args = |cert: Option<&str>, key: Option<&str>| TlsArgs {
        tls_cert: cert.map(PathBuf::from),
        tls_key: key.map(PathBuf::from),
    };
    assert!(args(None, None).check().is_ok() && args(Some("a"), Some("b")).check().is_ok());
    for (args, sentence) in [
        (
            args(Some("a"), None),
            "--tls-cert needs --tls-key; set both, or neither",
        ),
        (
            args(None, Some("b")),
            "--tls-key needs --tls-cert; set both, or neither",
        ),
    ] {
        assert_eq!(args.check().unwrap_err(), sentence);
    }
}

#[tokio::test]
async fn a_key_that_comes_after_its_certificate_is_waited_for() {
    let files = Files::new();
    let tls = Tls::new(&files.args(), &CancellationToken::new()).unwrap();
    let mut configs = tls.unwrap().0;
    let before = configs.borrow_and_update().clone();
    let (cert, key, _) = pair();
    fs::write(&files.cert, cert).unwrap();
    sleep(Duration::from_secs(3)).await;
    assert!(
        Arc::ptr_eq(&before, &configs.borrow()),
        "the pair does not fit"
    );
    fs::write(&files.key, key).unwrap();
    let changed = timeout(Duration::from_secs(5), configs.changed()).await;
    changed.expect("it is read again").unwrap();
    assert!(!Arc::ptr_eq(&before, &configs.borrow()));
}
