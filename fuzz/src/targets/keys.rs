//! The keys that tokens are verified with: those of a file, and those that an issuer publishes.

use herald_runtime::http::access::fuzzing::{Key, of_issuer, parse};
use jsonwebtoken::{Algorithm, DecodingKeyKind};

pub fn check(data: &[u8]) {
    if let Ok(keys) = parse(data) {
        assert!(!keys.is_empty());
        keys.iter().for_each(usable);
    }
    if let Ok(keys) = of_issuer(data) {
        assert!(!keys.is_empty());
        keys.iter().for_each(usable);
        // Everyone knows what is published.
        assert!(keys.iter().all(|key| key.algorithm != Algorithm::HS256));
    }
}

/// Each key has the one algorithm of its kind, and is long enough; a signature that is none is not accepted.
fn usable(key: &Key) {
    let length = match key.decoding.kind() {
        DecodingKeyKind::SecretOrDer(bytes) => bytes.len(),
        DecodingKeyKind::RsaModulusExponent { n, .. } => n.len(),
    };
    let least = match key.algorithm {
        Algorithm::HS256 | Algorithm::EdDSA => 32,
        Algorithm::ES256 => 64,
        Algorithm::RS256 => 256,
        other => panic!("a key is for {other:?}"),
    };
    assert!(length >= least, "{length} bytes for {:?}", key.algorithm);
    let verified = jsonwebtoken::crypto::verify("", b"", &key.decoding, key.algorithm);
    assert!(!verified.expect("the key was tried"));
}
