//! What `up --secure` adds to an environment: keys for its tokens, and a certificate for its ports.

use std::path::PathBuf;
use std::{fmt, fs};

use anyhow::Context;
use jiff::civil::Date;
use jiff::{ToSpan as _, Zoned};
use k8s_openapi::api::core::v1::Secret;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};

use crate::environments::Environment;
use crate::kubernetes::cluster::Cluster;
use crate::kubernetes::labels::is_ours;
use crate::kubernetes::secrets::{self, OPAQUE, TLS};
use crate::{services, token};

/// The Secret with the keys of tokens, and the key of its JWKS.
const KEYS_SECRET: &str = "herald-tokens";
const KEYS: &str = "keys";

/// The Secret with the certificate. Its last day is a key too, since nothing here reads certificates.
const TLS_SECRET: &str = "herald-tls";
const CERTIFICATE: &str = "tls.crt";
const LAST_DAY: &str = "last-day";

/// The cookie that signing in sets.
const COOKIE: &str = "__Host-herald";

/// How long a certificate is valid, and before its end it is renewed, in days.
const VALID: i64 = 365;
const RENEWED: i64 = 30;

/// What a client of an environment needs.
pub struct Secured {
    name: String,
    /// The file of the certificate that it must trust.
    certificate: PathBuf,
    /// Whether its tokens are those of `cargo xtask token`.
    own_keys: bool,
}

impl fmt::Display for Secured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name, certificate, ..
        } = self;
        write!(
            f,
            "{name}: clients trust {}, and need a token ",
            certificate.display()
        )?;
        match self.own_keys {
            true => write!(
                f,
                "(cargo xtask token; node examples/sign-in.mjs for browsers)"
            ),
            false => write!(f, "signed with the keys of its Secret {KEYS_SECRET}"),
        }
    }
}

/// Gives an environment its Secrets. One that `up` did not create is used as it is.
pub fn prepare(cluster: &Cluster, environment: &Environment) -> anyhow::Result<Secured> {
    let namespace = &environment.namespace;
    let keys = secrets::find(cluster, namespace, KEYS_SECRET)?;
    let own_keys = keys.as_ref().is_none_or(|found| is_ours(&found.metadata));
    if own_keys {
        let wanted = token::keys()?;
        let has = keys.as_ref().and_then(|found| secrets::text(found, KEYS));
        if has != Some(&wanted) {
            secrets::apply(cluster, namespace, KEYS_SECRET, OPAQUE, &[(KEYS, wanted)])?;
        }
    }

    let today = Zoned::now().date();
    let found = secrets::find(cluster, namespace, TLS_SECRET)?;
    let usable = found.filter(|found| !is_ours(&found.metadata) || is_valid(found, today));
    let certificate = match &usable {
        Some(found) => secrets::text(found, CERTIFICATE)
            .with_context(|| {
                format!("Secret {TLS_SECRET} in namespace {namespace} has no {CERTIFICATE}")
            })?
            .to_owned(),
        None => {
            let (certificate, data) = new_certificate(environment, today)?;
            secrets::apply(cluster, namespace, TLS_SECRET, TLS, &data)?;
            certificate
        }
    };
    let name = environment.name.clone();
    let file = crate::target().join(format!("{name}.crt"));
    fs::write(&file, certificate).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(Secured {
        name,
        certificate: file,
        own_keys,
    })
}

/// The values of the chart.
pub fn values() -> [String; 3] {
    [
        format!("--set=tokens.keysSecret={KEYS_SECRET}"),
        format!("--set=tokens.cookie={COOKIE}"),
        format!("--set=tls.secret={TLS_SECRET}"),
    ]
}

fn is_valid(secret: &Secret, today: Date) -> bool {
    let last = secrets::text(secret, LAST_DAY).and_then(|day| day.parse::<Date>().ok());
    last.is_some_and(|last| today.saturating_add(RENEWED.days()) < last)
}

/// A self-signed certificate for the ports on localhost and for the Services, and the data of its Secret.
fn new_certificate(
    environment: &Environment,
    today: Date,
) -> anyhow::Result<(String, Vec<(&'static str, String)>)> {
    let mut names = ["localhost", "127.0.0.1", "::1"]
        .map(str::to_owned)
        .to_vec();
    let public = services::all().iter().filter_map(|one| one.public.as_ref());
    for service in public.map(|public| &public.service) {
        names.push(service.clone());
        names.push(format!("{service}.{}.svc", environment.namespace));
        names.push(format!(
            "{service}.{}.svc.cluster.local",
            environment.namespace
        ));
    }
    let mut params = CertificateParams::new(names)?;
    let midnight = |date: Date| {
        date_time_ymd(
            date.year().into(),
            date.month().unsigned_abs(),
            date.day().unsigned_abs(),
        )
    };
    let last = today.saturating_add(VALID.days());
    // Since yesterday: the clocks of two machines, and their time zones, differ.
    params.not_before = midnight(today.saturating_sub(1.day()));
    params.not_after = midnight(last);
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?.pem();
    let data = vec![
        (CERTIFICATE, certificate.clone()),
        ("tls.key", key.serialize_pem()),
        (LAST_DAY, last.to_string()),
    ];
    Ok((certificate, data))
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;
    use crate::environments;

    #[test]
    fn a_certificate_is_renewed_a_month_before_its_end() {
        let dev = environments::chosen(&["dev".to_owned()]).unwrap().remove(0);
        let (certificate, data) = new_certificate(&dev, date(2026, 12, 1)).unwrap();
        assert!(certificate.starts_with("-----BEGIN CERTIFICATE-----"));
        let data = data.into_iter();
        let secret = Secret {
            data: Some(
                data.map(|(key, text)| {
                    (key.to_owned(), k8s_openapi::ByteString(text.into_bytes()))
                })
                .collect(),
            ),
            ..Secret::default()
        };
        assert!(is_valid(&secret, date(2027, 10, 31)));
        assert!(!is_valid(&secret, date(2027, 11, 1)));
        assert!(!is_valid(&Secret::default(), date(2026, 12, 1)));
    }
}
