//! The keys that tokens are signed with.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::watch::watch_file;

/// A key, and the one algorithm that it is used with.
#[derive(Clone)]
pub struct Key {
    /// The name of it in the header of tokens (`kid`).
    pub id: Option<String>,
    pub algorithm: Algorithm,
    pub decoding: DecodingKey,
}

impl std::fmt::Debug for Key {
    /// Without the key itself, which may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { id, algorithm, .. } = self;
        write!(f, "Key({algorithm:?}, {id:?})")
    }
}

/// The keys of a file.
#[derive(Clone, Debug)]
pub struct Keys(watch::Receiver<Arc<[Key]>>);

impl Keys {
    /// Reads them, and again when the file changes.
    pub fn watch(file: &Path, shutdown: &CancellationToken) -> anyhow::Result<Self> {
        watch_file(file, shutdown, |bytes| parse(bytes).map(Arc::from)).map(Self)
    }

    pub fn current(&self) -> Arc<[Key]> {
        self.0.borrow().clone()
    }
}

fn parse(bytes: &[u8]) -> anyhow::Result<Vec<Key>> {
    let text = std::str::from_utf8(bytes).context("it is neither PEM nor a JWKS")?;
    let keys: Vec<Key> = match text.trim_start().starts_with('{') {
        true => {
            let set: JwkSet = serde_json::from_str(text).context("it is not a JWKS")?;
            set.keys.iter().map(of_jwk).collect::<anyhow::Result<_>>()?
        }
        false => pem(text).map(of_pem).collect::<anyhow::Result<_>>()?,
    };
    ensure!(
        !keys.is_empty(),
        "it contains no key, neither in PEM nor as a JWKS"
    );
    Ok(keys)
}

/// The blocks of PEM in a text.
fn pem(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive("-----END PUBLIC KEY-----")
        .filter(|block| block.contains("-----BEGIN PUBLIC KEY-----"))
}

/// The type of a key in PEM is the only one that reads it.
fn of_pem(block: &str) -> anyhow::Result<Key> {
    type Read = fn(&[u8]) -> jsonwebtoken::errors::Result<DecodingKey>;
    const TYPES: [(Algorithm, Read); 3] = [
        (Algorithm::RS256, DecodingKey::from_rsa_pem),
        (Algorithm::ES256, DecodingKey::from_ec_pem),
        (Algorithm::EdDSA, DecodingKey::from_ed_pem),
    ];
    for (algorithm, read) in TYPES {
        // P-384, for example, is read as well, and would then fit no token.
        if algorithm == Algorithm::ES256 && !is_p256(block) {
            continue;
        }
        if let Ok(decoding) = read(block.as_bytes()) {
            return Ok(Key {
                id: None,
                algorithm,
                decoding,
            });
        }
    }
    bail!("it contains a public key of a kind that is not supported; use RSA, P-256 or Ed25519")
}

/// Whether a block names the curve P-256: its identifier is at the same place in each such key.
fn is_p256(block: &str) -> bool {
    let base64: String = block
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .collect();
    base64.starts_with("MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE")
}

fn of_jwk(jwk: &Jwk) -> anyhow::Result<Key> {
    let id = jwk.common.key_id.clone();
    let name = id.as_deref().unwrap_or("without kid");
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            Algorithm::ES256
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        AlgorithmParameters::OctetKey(_) => Algorithm::HS256,
        _ => bail!(
            "the key {name:?} is of a kind that is not supported; use RSA, P-256, Ed25519 or a secret"
        ),
    };
    if let Some(named) = jwk.common.key_algorithm {
        let expected = format!("{algorithm:?}");
        ensure!(
            named.to_string() == expected,
            "the key {name:?} is for {named}; it must be {expected}"
        );
    }
    let decoding =
        DecodingKey::from_jwk(jwk).with_context(|| format!("the key {name:?} cannot be read"))?;
    Ok(Key {
        id,
        algorithm,
        decoding,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str = "\
-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAib/CLLqbFhoJmW74Ztfc6KaZ3F8wSrzZem/dcju942Q=
-----END PUBLIC KEY-----
";
    const P256: &str = "\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEbFS40ftLUhOm0qF8jhQ9rPKB/JVZ
fxXvfzKKb46VUtm4RrJUYW7U+VeQ63EzbAnC759C1xubDPJY9ecaPCgZyg==
-----END PUBLIC KEY-----
";
    const P384: &str = "\
-----BEGIN PUBLIC KEY-----
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEkL3tIdVWTlI7vlJK3GAG3sEUynM8pPmL
BMz+vFWeMdUFNgv4VLz2jcvXiVkSVL6tCNDgzPekESPSi6BAOgyX+Ydt7VXWpQw0
WIQ2ot0YRwC1MZqYvoqXbMx5VAkD2gaj
-----END PUBLIC KEY-----
";

    #[test]
    fn keys_in_pem_have_the_algorithm_of_their_type() {
        let keys = parse(format!("# ours\n{ED25519}\n{P256}").as_bytes()).unwrap();
        let algorithms: Vec<Algorithm> = keys.iter().map(|key| key.algorithm).collect();
        assert_eq!(algorithms, [Algorithm::EdDSA, Algorithm::ES256]);
    }

    #[test]
    fn what_is_no_key_for_tokens_is_refused_with_what_to_do() {
        for (wrong, sentence) in [
            ("", "no key"),
            (r#"{"keys":[]}"#, "no key"),
            ("{", "not a JWKS"),
            (P384, "use RSA, P-256 or Ed25519"),
            (&ED25519.replace("PUBLIC", "PRIVATE"), "no key"),
            (
                &ED25519.replace("MCow", "MCoX"),
                "use RSA, P-256 or Ed25519",
            ),
        ] {
            let error = parse(wrong.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(sentence), "{wrong}: {error}");
        }
    }
}
