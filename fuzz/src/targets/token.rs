//! Tokens: valid only if one of the keys has signed exactly this, and its claims are those of a token that is valid now.

use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use herald_runtime::http::access::fuzzing::{Key, Keys, fixed, parse, verify};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::{Value as Json, json};

const AUDIENCE: &str = "herald";
const ISSUER: &str = "https://issuer.example";
const PAST: u64 = 1_000_000_000;
const FUTURE: u64 = 9_000_000_000;

/// What signs: the service knows the first three by their public halves, or as the secret that it is.
struct Signers {
    all: Vec<Signer>,
    known: Keys,
}

struct Signer {
    name: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
    is_known: bool,
}

static SIGNERS: LazyLock<Signers> = LazyLock::new(|| {
    let secret = |byte| EncodingKey::from_secret(&[byte; 32]);
    let ed25519 = |byte| {
        // PKCS #8 (RFC 8410, section 7) around 32 bytes.
        let head = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
        EncodingKey::from_ed_der(&[&head[..], &[byte; 32]].concat())
    };
    let p256 = |byte| {
        // The same with the curve, and the key in SEC 1 (RFC 5915).
        let head = b"\x30\x41\x02\x01\x00\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\
            \x04\x27\x30\x25\x02\x01\x01\x04\x20";
        EncodingKey::from_ec_der(&[&head[..], &[byte; 32]].concat())
    };
    let signer = |name, algorithm, key, is_known| Signer {
        name,
        algorithm,
        key,
        is_known,
    };
    let known = [
        signer("secret", Algorithm::HS256, secret(1), true),
        signer("ed25519", Algorithm::EdDSA, ed25519(1), true),
        signer("p256", Algorithm::ES256, p256(1), true),
    ];
    let jwks: Vec<Jwk> = known.iter().map(public).collect();
    let file = json!({ "keys": jwks }).to_string();
    let known_keys = parse(file.as_bytes()).expect("the keys can be used");
    // Whoever knows a public key must not sign with it as if it were a secret.
    let published = EncodingKey::from_secret(file.as_bytes());
    let unknown = [
        signer("secret", Algorithm::HS256, secret(2), false),
        signer("ed25519", Algorithm::EdDSA, ed25519(2), false),
        signer("p256", Algorithm::ES256, p256(2), false),
        signer("ed25519", Algorithm::HS256, published, false),
        signer(
            "ed25519",
            Algorithm::HS256,
            public_bytes(&known_keys),
            false,
        ),
    ];
    Signers {
        all: known.into_iter().chain(unknown).collect(),
        known: fixed(&known_keys),
    }
});

fn public(signer: &Signer) -> Jwk {
    let mut jwk = Jwk::from_encoding_key(&signer.key, signer.algorithm).expect("a key has a half");
    jwk.common.key_id = Some(signer.name.to_owned());
    jwk
}

/// The public key of Ed25519, as if it were a secret.
fn public_bytes(keys: &[Key]) -> EncodingKey {
    let key = keys.iter().find(|key| key.algorithm == Algorithm::EdDSA);
    match key.map(|key| key.decoding.kind()) {
        Some(jsonwebtoken::DecodingKeyKind::SecretOrDer(bytes)) => EncodingKey::from_secret(bytes),
        _ => panic!("there is such a key"),
    }
}

pub fn check(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        assert!(verify(text, &SIGNERS.known, AUDIENCE, None).is_err());
    }
    _ = made_up(&mut Unstructured::new(data));
}

fn made_up(input: &mut Unstructured) -> Result<()> {
    let token = Token::new(input)?;
    let text = token.text();
    let issuer = input.arbitrary::<bool>()?.then_some(ISSUER);
    let verified = verify(&text, &SIGNERS.known, AUDIENCE, issuer);
    let expected = token.is_valid(issuer);
    assert_eq!(verified.is_ok(), expected, "{verified:?}: {text}");
    if let Ok(claims) = verified {
        assert_eq!(json!(claims.read), token.claims["read"]);
        assert_eq!(json!(claims.write), token.claims["write"]);
        assert_eq!(Some(claims.exp), token.claims["exp"].as_u64());
        assert_eq!(claims.jti.as_deref(), token.claims["jti"].as_str());
    }
    // The same, changed in one place, is not what was signed.
    let mut changed = text.clone().into_bytes();
    let at = input.choose_index(changed.len())?;
    let with: u8 = input.arbitrary()?;
    match input.int_in_range(0..=3)? {
        0 => changed[at] = with,
        1 => changed.insert(at, with),
        2 => changed.truncate(at),
        _ => {
            let to = input.choose_index(changed.len())?;
            changed.swap(at, to);
        }
    }
    if let Ok(changed) = String::from_utf8(changed)
        && changed != text
    {
        assert!(
            verify(&changed, &SIGNERS.known, AUDIENCE, None).is_err(),
            "{changed} instead of {text}"
        );
    }
    Ok(())
}

/// The parts of a token.
struct Token {
    signer: &'static Signer,
    header: Json,
    claims: Json,
}

impl Token {
    fn new(input: &mut Unstructured) -> Result<Self> {
        let signer = input.choose(&SIGNERS.all)?;
        let mut header = json!({"alg": format!("{:?}", signer.algorithm), "kid": signer.name});
        match input.int_in_range(0..=9)? {
            0 => {
                header["alg"] =
                    (*input.choose(&["none", "HS256", "EdDSA", "RS256", "HS384"])?).into()
            }
            1 => header["kid"] = (*input.choose(&["secret", "ed25519", "other", ""])?).into(),
            2 => header["kid"] = Json::Null,
            3 => header["crit"] = json!(["exp"]),
            4 => header["typ"] = (*input.choose(&["JWT", "at+jwt"])?).into(),
            _ => {}
        }
        let read: Vec<String> = input.arbitrary()?;
        let write: Vec<String> = input.arbitrary()?;
        let mut claims = json!({"exp": FUTURE, "aud": AUDIENCE, "read": read, "write": write});
        for _ in 0..input.int_in_range(0..=3)? {
            match input.int_in_range(0..=4)? {
                0 => claims["exp"] = (*input.choose(&[PAST, FUTURE, 0, u64::MAX])?).into(),
                1 => claims["nbf"] = (*input.choose(&[PAST, FUTURE, 0, u64::MAX])?).into(),
                2 => {
                    let audiences = [
                        json!(AUDIENCE),
                        json!([AUDIENCE]),
                        json!(["a", AUDIENCE]),
                        json!([]),
                        json!("a"),
                    ];
                    claims["aud"] = input.choose(&audiences)?.clone();
                }
                3 => claims["iss"] = (*input.choose(&[ISSUER, "a", ""])?).into(),
                _ => claims["jti"] = input.arbitrary::<&str>()?.into(),
            }
        }
        Ok(Self {
            signer,
            header,
            claims,
        })
    }

    fn text(&self) -> String {
        let part = |json: &Json| URL_SAFE_NO_PAD.encode(json.to_string());
        let signed = format!("{}.{}", part(&self.header), part(&self.claims));
        let Signer { key, algorithm, .. } = self.signer;
        let signature = crypto::sign(signed.as_bytes(), key, *algorithm);
        format!("{signed}.{}", signature.expect("the key can sign"))
    }

    fn is_valid(&self, issuer: Option<&str>) -> bool {
        let Self {
            signer,
            header,
            claims,
        } = self;
        let names_the_key = header["kid"].is_null() || header["kid"] == signer.name;
        let is_for_us = claims["aud"] == AUDIENCE
            || claims["aud"]
                .as_array()
                .is_some_and(|list| list.contains(&json!(AUDIENCE)));
        self.text().len() <= 8 << 10
            && signer.is_known
            && header["alg"] == format!("{:?}", signer.algorithm)
            && names_the_key
            && header.get("crit").is_none()
            && claims["exp"].as_u64() >= Some(FUTURE)
            && claims
                .get("nbf")
                .is_none_or(|from| from.as_u64() <= Some(PAST))
            && is_for_us
            && issuer.is_none_or(|issuer| claims["iss"] == issuer)
    }
}
