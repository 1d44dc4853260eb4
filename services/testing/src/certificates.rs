//! Certificates for a test, made by the `openssl` program.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{has_program, random_topic};

/// A certificate authority in a folder of its own, which is deleted with it.
pub struct Authority {
    folder: PathBuf,
    /// The file of its certificate, in PEM.
    pub certificate: PathBuf,
    key: PathBuf,
}

/// The files of a certificate and its key, in PEM.
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    /// A new one. Without `openssl`, the test is skipped as in [`has_program`].
    pub fn new(name: &str) -> Option<Self> {
        if !has_program("openssl") {
            return None;
        }
        let folder = std::env::temp_dir().join(random_topic("herald-certificates"));
        fs::create_dir(&folder).expect("a folder can be created");
        // PostgreSQL runs as another user than root.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("it is ours");
        let (certificate, key) = (folder.join("ca.crt"), folder.join("ca.key"));
        let subject = format!("/CN={name}");
        openssl(
            &["req", "-x509", "-days", "2", "-subj", &subject],
            &[("-keyout", &key), ("-out", &certificate)],
            &NEW_KEY,
        );
        Some(Self {
            folder,
            certificate,
            key,
        })
    }

    /// A certificate for a server or a user, with these names, such as `DNS:localhost`. It is valid for `days`, from now on;
    /// negative days ended before now.
    pub fn sign(&self, common_name: &str, names: &[&str], days: i32) -> Certificate {
        let file = |end: &str| self.folder.join(format!("{common_name}{days}.{end}"));
        let (certificate, key, request, extensions) =
            (file("crt"), file("key"), file("csr"), file("ext"));
        let text = match names.is_empty() {
            true => "basicConstraints=CA:FALSE\n".to_owned(),
            false => format!("subjectAltName={}\n", names.join(",")),
        };
        fs::write(&extensions, text).expect("the folder can be written to");
        let subject = format!("/CN={common_name}");
        openssl(
            &["req", "-subj", &subject],
            &[("-keyout", &key), ("-out", &request)],
            &NEW_KEY,
        );
        openssl(
            &[
                "x509",
                "-req",
                "-CAcreateserial",
                "-days",
                &days.to_string(),
            ],
            &[
                ("-in", &request),
                ("-CA", &self.certificate),
                ("-CAkey", &self.key),
                ("-extfile", &extensions),
                ("-out", &certificate),
            ],
            &[],
        );
        Certificate { certificate, key }
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.folder);
    }
}

const NEW_KEY: [&str; 3] = ["-newkey", "rsa:2048", "-nodes"];

fn openssl(command: &[&str], files: &[(&str, &Path)], more: &[&str]) {
    let mut openssl = Command::new("openssl");
    openssl.args(command).args(more).stdin(Stdio::null());
    for (option, file) in files {
        openssl.arg(option).arg(file);
    }
    let output = openssl.output().expect("openssl can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{openssl:?} failed: {said}");
}
