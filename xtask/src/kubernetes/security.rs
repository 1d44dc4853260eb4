//! What `up --secure` adds to an environment: keys for its tokens, and a certificate for its ports.

use std::fs;
use std::path::PathBuf;

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

/// Gives an environment its Secrets. One that `up` did not create is used as it is.
pub fn prepare(cluster: &Cluster, environment: &Environment) -> anyhow::Result<()> {
    let namespace = &environment.namespace;
    let find = |name| secrets::find(cluster, namespace, name);
    let is_foreign = |found: &Option<Secret>| {
        let found = found.as_ref();
        found.is_some_and(|found| !is_ours(&found.metadata))
    };

    let found = find(KEYS_SECRET)?;
    if is_foreign(&found) {
        let name = &environment.name;
        println!("{name}: tokens must be signed with the keys of its Secret {KEYS_SECRET}");
    } else {
        let keys = token::keys()?;
        let has = found.as_ref().and_then(|found| secrets::text(found, KEYS));
        if has != Some(&keys) {
            secrets::apply(cluster, namespace, KEYS_SECRET, OPAQUE, &[(KEYS, keys)])?;
        }
    }

    let found = find(TLS_SECRET)?;
    let today = Zoned::now().date();
    let certificate = match &found {
        Some(found) if is_foreign(&Some(found.clone())) || is_valid(found, today) => {
            secrets::text(found, CERTIFICATE).map(str::to_owned)
        }
        _ => {
            let (certificate, data) = new_certificate(environment, today)?;
            secrets::apply(cluster, namespace, TLS_SECRET, TLS, &data)?;
            Some(certificate)
        }
    };
    if let Some(certificate) = certificate {
        let file = file(environment);
        fs::write(&file, certificate)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// The values of the chart.
pub fn values() -> [String; 3] {
    [
        format!("--set=tokens.keysSecret={KEYS_SECRET}"),
        format!("--set=tokens.cookie={COOKIE}"),
        format!("--set=tls.secret={TLS_SECRET}"),
    ]
}

/// What a user does next.
pub fn explain(environments: &[Environment]) {
    println!("\nClients need a token, and trust these certificates:");
    for environment in environments {
        println!("{:<10}{}", environment.name, file(environment).display());
    }
    println!(
        "`cargo xtask token` makes tokens, and `node examples/sign-in.mjs` signs a browser in."
    );
}

fn file(environment: &Environment) -> PathBuf {
    crate::target().join(format!("{}.crt", environment.name))
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
