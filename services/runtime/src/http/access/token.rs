//! The verification of a token.

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode, decode_header};
use serde::Deserialize;

use super::keys::{Key, Keys};
use super::pattern::Pattern;
use super::permit::Permit;

/// The longest token that is read, in bytes.
const MAX_BYTES: usize = 8 << 10;

/// What a token says that is valid.
#[derive(Clone, Debug)]
pub struct Verified {
    pub permit: Permit,
    pub read: Vec<Pattern>,
    pub write: Vec<Pattern>,
}

#[derive(Debug, Deserialize)]
pub struct Claims {
    /// When it expires, in seconds since 1970.
    pub exp: u64,
    pub jti: Option<String>,
    #[serde(default)]
    pub read: Vec<String>,
    #[serde(default)]
    pub write: Vec<String>,
}

/// The claims of a token that one of the keys has signed, with the algorithm of that key, and which is valid now.
///
/// # Errors
///
/// A sentence for the client, without anything of the token.
pub fn verify(
    token: &str,
    keys: &Keys,
    audience: &str,
    issuer: Option<&str>,
) -> Result<Claims, &'static str> {
    const NOT_A_TOKEN: &str = "the token is not a signed JWT";
    const NOT_SIGNED: &str = "the token is not signed with a key that is known here";
    const FETCHED_AGAIN: &str = "the token names a key that is not known here; the keys are being fetched again, so try again in a second";
    if token.len() > MAX_BYTES {
        return Err("a token has at most 8 KiB");
    }
    // `none` is not among the algorithms that can be read.
    let header = decode_header(token).map_err(|_| NOT_A_TOKEN)?;
    // What it says must be understood, and nothing is.
    if header.crit.is_some() {
        return Err(NOT_A_TOKEN);
    }
    let is_candidate = |key: &&Key| {
        let is_named = match (&header.kid, &key.id) {
            (Some(named), Some(id)) => named == id,
            _ => true,
        };
        is_named && key.algorithm == header.alg
    };
    // Only the name of the key counts: never an address in the header (jku, x5u), or a key in it (jwk, x5c).
    let mut reason = NOT_SIGNED;
    let current = keys.current();
    for key in current.iter().filter(is_candidate) {
        let mut validation = Validation::new(key.algorithm);
        validation.leeway = 0;
        // It has expired in the second that it names.
        validation.reject_tokens_expiring_in_less_than = 1;
        validation.validate_nbf = true;
        validation.set_audience(&[audience]);
        validation.set_required_spec_claims(&["exp", "aud"]);
        if let Some(issuer) = issuer {
            validation.set_issuer(&[issuer]);
            validation.required_spec_claims.insert("iss".to_owned());
        }
        let error = match decode::<Claims>(token, &key.decoding, &validation) {
            Ok(token) => return Ok(token.claims),
            Err(error) => error,
        };
        reason = match error.kind() {
            // Another key may have the same name.
            ErrorKind::InvalidSignature => continue,
            ErrorKind::ExpiredSignature => "the token has expired",
            ErrorKind::ImmatureSignature => "the token is not valid yet",
            ErrorKind::InvalidAudience => "the token is for another audience",
            ErrorKind::InvalidIssuer => "the token is from another issuer",
            ErrorKind::MissingRequiredClaim(_) => "the token lacks one of exp, aud and iss",
            _ => {
                "the token's claims are not as expected: exp is a number of seconds; read and write are lists of names"
            }
        };
    }
    let is_unknown = |name: &String| current.iter().all(|key| key.id.as_ref() != Some(name));
    if reason == NOT_SIGNED && header.kid.as_ref().is_some_and(is_unknown) && keys.fetches_again() {
        return Err(FETCHED_AGAIN);
    }
    Err(reason)
}
