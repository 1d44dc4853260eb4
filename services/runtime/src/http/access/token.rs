//! The verification of a token.

use std::sync::Arc;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode, decode_header};
use serde::Deserialize;

use super::keys::{Key, Keys};
use super::pattern::Pattern;
use super::permit::Validity;

/// The longest token that is read, in bytes.
const MAX_BYTES: usize = 8 << 10;

/// What a token says that is valid.
#[derive(Debug)]
pub struct Verified {
    /// Who its owner is, for the log and for limits: its `sub`, or else its `jti`.
    pub principal: Option<Arc<str>>,
    pub validity: Validity,
    pub read: Vec<Pattern>,
    pub write: Vec<Pattern>,
}

#[derive(Debug, Deserialize)]
pub struct Claims {
    /// When it expires, in seconds since 1970.
    pub exp: u64,
    pub sub: Option<String>,
    pub jti: Option<String>,
    #[serde(default)]
    pub read: Vec<String>,
    #[serde(default)]
    pub write: Vec<String>,
}

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    Missing,
    Scheme,
    Ticket,
    TooLong,
    NotSigned,
    UnknownKey,
    FetchedAgain,
    Expired,
    Early,
    Audience,
    Issuer,
    MissingClaim,
    Claims,
    Revoked,
}

impl Invalid {
    /// Its name in metrics and in the audit log.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Missing => "no-token",
            Self::Scheme => "authorization-header",
            Self::Ticket => "ticket",
            Self::TooLong | Self::NotSigned => "not-a-token",
            Self::UnknownKey | Self::FetchedAgain => "unknown-key",
            Self::Expired => "token-expired",
            Self::Early => "token-not-yet-valid",
            Self::Audience => "token-audience",
            Self::Issuer => "token-issuer",
            Self::MissingClaim | Self::Claims => "token-claims",
            Self::Revoked => "token-revoked",
        }
    }

    /// One sentence for the client, without anything of the token.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Missing => "a token is missing: send it as Authorization: Bearer <token>",
            Self::Scheme => "the Authorization header must be: Bearer <token>",
            Self::Ticket => {
                "the ticket is not known to this replica, was used, or is older than 30 seconds; request another one with POST /tickets"
            }
            Self::TooLong => "a token has at most 8 KiB",
            Self::NotSigned => "the token is not a signed JWT",
            Self::UnknownKey => "the token is not signed with a key that is known here",
            Self::FetchedAgain => {
                "the token names a key that is not known here; the keys are being fetched again, so try again in a second"
            }
            Self::Expired => "the token has expired",
            Self::Early => "the token is not valid yet",
            Self::Audience => "the token is for another audience",
            Self::Issuer => "the token is from another issuer",
            Self::MissingClaim => "the token lacks one of exp, aud and iss",
            Self::Claims => {
                "the token's claims are not as expected: exp is a number of seconds; read and write are lists of names"
            }
            Self::Revoked => "the token was revoked",
        }
    }
}

/// The claims of a token that one of the keys has signed, with the algorithm of that key, and which is valid now.
///
/// # Errors
///
/// If there is none, or the token is not valid now.
pub fn verify(
    token: &str,
    keys: &Keys,
    audience: &str,
    issuer: Option<&str>,
) -> Result<Claims, Invalid> {
    if token.len() > MAX_BYTES {
        return Err(Invalid::TooLong);
    }
    // `none` is not among the algorithms that can be read.
    let header = decode_header(token).map_err(|_| Invalid::NotSigned)?;
    // What it says must be understood, and nothing is.
    if header.crit.is_some() {
        return Err(Invalid::NotSigned);
    }
    let is_candidate = |key: &&Key| {
        let is_named = match (&header.kid, &key.id) {
            (Some(named), Some(id)) => named == id,
            _ => true,
        };
        is_named && key.algorithm == header.alg
    };
    // Only the name of the key counts: never an address in the header (jku, x5u), or a key in it (jwk, x5c).
    let mut reason = Invalid::UnknownKey;
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
            ErrorKind::ExpiredSignature => Invalid::Expired,
            ErrorKind::ImmatureSignature => Invalid::Early,
            ErrorKind::InvalidAudience => Invalid::Audience,
            ErrorKind::InvalidIssuer => Invalid::Issuer,
            ErrorKind::MissingRequiredClaim(_) => Invalid::MissingClaim,
            _ => Invalid::Claims,
        };
    }
    let is_unknown = |name: &String| current.iter().all(|key| key.id.as_ref() != Some(name));
    let is_new = header.kid.as_ref().is_some_and(is_unknown);
    if reason == Invalid::UnknownKey && is_new && keys.fetches_again() {
        return Err(Invalid::FetchedAgain);
    }
    Err(reason)
}
