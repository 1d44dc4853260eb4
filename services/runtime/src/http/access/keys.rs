//! The keys that tokens are signed with.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::issuer::{KeysFrom, Refresh, watch_address};
use crate::Readiness;
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

/// The keys of a file, or of an address.
#[derive(Clone, Debug)]
pub struct Keys {
    pub(super) current: watch::Receiver<Arc<[Key]>>,
    /// Those of an address can be fetched again.
    pub(super) refresh: Option<Refresh>,
}

impl Keys {
    /// Reads them, and again when they change. `ca` is the file of those that are trusted for an address.
    pub fn watch(
        from: &KeysFrom,
        ca: Option<&Path>,
        readiness: &Readiness,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let (current, refresh) = match from {
            KeysFrom::File(file) => {
                let parse = |bytes: &[u8]| parse(bytes).map(Arc::from);
                (watch_file(file, shutdown, parse)?, None)
            }
            KeysFrom::Address(address) => {
                let (current, refresh) = watch_address(address, ca, readiness, shutdown)?;
                (current, Some(refresh))
            }
        };
        Ok(Self { current, refresh })
    }

    /// None while those of an address have never been fetched.
    pub fn current(&self) -> Arc<[Key]> {
        self.current.borrow().clone()
    }

    /// Whether those of an address are fetched again now, because a token names one that is not among them.
    pub fn fetches_again(&self) -> bool {
        self.refresh.as_ref().map(Refresh::request).is_some()
    }
}

pub fn parse(bytes: &[u8]) -> anyhow::Result<Vec<Key>> {
    let text = std::str::from_utf8(bytes).context("it is neither PEM nor a JWKS")?;
    let keys: Vec<Key> = match text.trim_start().starts_with('{') {
        true => {
            let set: JwkSet = serde_json::from_str(text).context("it is not a JWKS")?;
            let keys = set.keys.iter().filter(|key| is_for_signatures(key));
            keys.map(of_jwk).collect::<anyhow::Result<_>>()?
        }
        false => pem(text).map(of_pem).collect::<anyhow::Result<_>>()?,
    };
    ensure!(
        !keys.is_empty(),
        "it contains no key, neither in PEM nor as a JWKS"
    );
    Ok(keys)
}

/// Those of a JWKS that an issuer has published. It may contain keys of any kind: those that cannot be used here are skipped.
pub fn of_issuer(bytes: &[u8]) -> anyhow::Result<Vec<Key>> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let published = |value: serde_json::Value| {
        let jwk: Jwk = serde_json::from_value(value)?;
        ensure!(is_for_signatures(&jwk), "it is not for signatures");
        let key = of_jwk(&jwk)?;
        ensure!(
            key.algorithm != Algorithm::HS256,
            "a secret that is published is none"
        );
        Ok(key)
    };
    let set: Set = serde_json::from_slice(bytes).context("it is not a JWKS")?;
    let mut keys = Vec::new();
    for value in set.keys {
        match published(value) {
            Ok(key) => keys.push(key),
            Err(error) => tracing::debug!("a key of the issuer is skipped: {error:#}"),
        }
    }
    ensure!(
        !keys.is_empty(),
        "it contains no key that can be used here: RSA of at least 2048 bits with RS256, P-256 or Ed25519"
    );
    Ok(keys)
}

/// Others of the issuer's keys may be for encryption.
fn is_for_signatures(key: &Jwk) -> bool {
    let of = key.common.public_key_use.as_ref();
    of.is_none_or(|of| *of == PublicKeyUse::Signature)
}

/// The blocks of PEM in a text, without what stands around them.
fn pem(text: &str) -> impl Iterator<Item = &str> {
    const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
    const END: &str = "-----END PUBLIC KEY-----";
    text.split_inclusive(END).filter_map(|block| {
        let begin = block.find(BEGIN)?;
        block.ends_with(END).then(|| &block[begin..])
    })
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
        if let Ok(decoding) = read(block.as_bytes()) {
            check(&decoding, algorithm)?;
            let id = None;
            return Ok(Key {
                id,
                algorithm,
                decoding,
            });
        }
    }
    bail!("it contains a public key of a kind that is not supported; use RSA, P-256 or Ed25519")
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
    let problem = || format!("the key {name:?} cannot be used");
    let decoding = DecodingKey::from_jwk(jwk).with_context(problem)?;
    check(&decoding, algorithm).with_context(problem)?;
    Ok(Key {
        id,
        algorithm,
        decoding,
    })
}

/// Whether a key is whole and long enough: the library decodes it, and no more.
fn check(key: &DecodingKey, algorithm: Algorithm) -> anyhow::Result<()> {
    let bytes = match key.kind() {
        DecodingKeyKind::SecretOrDer(bytes) => bytes.len(),
        DecodingKeyKind::RsaModulusExponent { n, .. } => {
            n.iter().skip_while(|byte| **byte == 0).count()
        }
    };
    match algorithm {
        Algorithm::HS256 => ensure!(bytes >= 32, "a secret has at least 32 bytes"),
        Algorithm::EdDSA => ensure!(bytes == 32, "an Ed25519 key has 32 bytes"),
        Algorithm::RS256 => {
            // In DER, a header and the exponent are before and after the modulus.
            ensure!(bytes >= 256, "an RSA key has at least 2048 bits");
        }
        _ => {}
    }
    // Fails for a key of the wrong size or a point that is not on the curve; that the signature is wrong is no error.
    jsonwebtoken::crypto::verify("", b"", key, algorithm)
        .context("it is not a key of its kind")
        .map(drop)
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
        let keys = parse(format!("# ours\n{ED25519}\n# and\n{P256}# end").as_bytes()).unwrap();
        let algorithms: Vec<Algorithm> = keys.iter().map(|key| key.algorithm).collect();
        assert_eq!(algorithms, [Algorithm::EdDSA, Algorithm::ES256]);
    }

    #[test]
    fn what_an_issuer_publishes_is_used_as_far_as_it_can_be() {
        const USABLE: &str = r#"{"kty":"OKP","crv":"Ed25519","kid":"a","x":"ib_CLLqbFhoJmW74Ztfc6KaZ3F8wSrzZem_dcju942Q"}"#;
        let skipped = [
            r#"{"kty":"EC","crv":"P-384","x":"AAAA","y":"AAAA"}"#,
            r#"{"kty":"EC","crv":"secp256k1","x":"AAAA","y":"AAAA"}"#,
            r#"{"kty":"AKP","alg":"ML-DSA-44","pub":"AAAA"}"#,
            r#"{"kty":"RSA","n":"AAAA","e":"AQAB"}"#,
            r#"{"kty":"RSA"}"#,
            "1",
            // 32 bytes, which a file may contain.
            r#"{"kty":"oct","k":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}"#,
            &USABLE.replace("kid\":\"a", "use\":\"enc"),
            &USABLE.replace("kid\":\"a", "alg\":\"RS512"),
        ];
        let set = |keys: &[&str]| format!(r#"{{"keys":[{}]}}"#, keys.join(","));
        for key in skipped {
            let error = of_issuer(set(&[key]).as_bytes()).unwrap_err().to_string();
            assert!(error.contains("no key that can be used"), "{key}: {error}");
        }
        let keys = of_issuer(set(&[&skipped[..], &[USABLE]].concat()).as_bytes()).unwrap();
        let names: Vec<Option<&str>> = keys.iter().map(|key| key.id.as_deref()).collect();
        assert_eq!(names, [Some("a")]);
        for content in ["", "<html>", "{}", "[]", ED25519] {
            let error = of_issuer(content.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("not a JWKS"), "{content}: {error}");
        }
    }

    #[test]
    fn what_is_no_key_for_tokens_is_refused_with_what_to_do() {
        for (wrong, sentence) in [
            ("", "no key"),
            (r#"{"keys":[]}"#, "no key"),
            ("{", "not a JWKS"),
            (P384, "not a key of its kind"),
            (r#"{"keys":[{"kty":"oct","k":""}]}"#, "cannot be used"),
            (r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#, "cannot be used"),
            (
                r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AAAA"}]}"#,
                "cannot be used",
            ),
            (
                r#"{"keys":[{"kty":"EC","crv":"P-256","x":"AAAA","y":"AAAA"}]}"#,
                "cannot be used",
            ),
            (
                r#"{"keys":[{"kty":"RSA","n":"AAAA","e":"AQAB"}]}"#,
                "cannot be used",
            ),
            (
                r#"{"keys":[{"kty":"RSA","use":"enc","n":"AAAA","e":"AQAB"}]}"#,
                "no key",
            ),
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
