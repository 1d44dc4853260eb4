//! The options.

use std::path::PathBuf;

use super::issuer::KeysFrom;
use crate::http::Origins;

/// The tokens that clients need.
#[derive(clap::Args, Clone, Debug)]
pub struct AccessArgs {
    /// The public keys that the tokens of clients (JWT) are signed with: a file, in PEM (RSA, P-256 or Ed25519) or as a JWKS, which is
    /// read again when it changes; or the address of a JWKS (`https://…`), which is fetched again every 5 minutes, or as often as its
    /// `Cache-Control` says. If not set, everyone may read and write everything.
    #[arg(long, env, value_name = "FILE|ADDRESS")]
    pub jwt_keys: Option<KeysFrom>,

    /// File with the certificates (PEM) of the CAs that are trusted for the address of --jwt-keys. It is read at each fetch. If not
    /// set, the public CAs are trusted.
    #[arg(long, env, value_name = "FILE")]
    pub jwt_keys_ca: Option<PathBuf>,

    /// The audience that tokens must be for (`aud`).
    #[arg(long, env, default_value = "herald")]
    pub jwt_audience: String,

    /// The issuer that tokens must be from (`iss`). If not set, that of a token is not compared.
    #[arg(long, env)]
    pub jwt_issuer: Option<String>,

    /// File with the ids (`jti`) of tokens that are no longer valid, one per line. It is read again when it changes.
    #[arg(long, env, value_name = "FILE")]
    pub jwt_revoked: Option<PathBuf>,

    /// Name of a cookie that may contain the token instead of the header Authorization: it must begin with `__Host-`, and
    /// --allowed-origins must not be `*`.
    #[arg(long, env, value_parser = cookie_name)]
    pub jwt_cookie: Option<String>,

    /// Maximum number of streams that one owner of tokens (`sub`, or else `jti`) may have open at this replica; 0 is no limit.
    #[arg(long, env, default_value_t = 0)]
    pub max_streams_per_principal: usize,
}

impl AccessArgs {
    /// Whether the options fit each other, and the origins whose pages may read.
    ///
    /// # Errors
    ///
    /// One sentence for the user.
    pub fn check(&self, origins: &Origins) -> Result<(), String> {
        let needs_keys = [
            ("--jwt-issuer", self.jwt_issuer.is_some()),
            ("--jwt-revoked", self.jwt_revoked.is_some()),
            ("--jwt-cookie", self.jwt_cookie.is_some()),
            (
                "--max-streams-per-principal",
                self.max_streams_per_principal > 0,
            ),
        ];
        for (option, is_set) in needs_keys {
            if is_set && self.jwt_keys.is_none() {
                return Err(format!(
                    "{option} has no effect without --jwt-keys; set both, or neither"
                ));
            }
        }
        let is_https = |keys: &KeysFrom| matches!(keys, KeysFrom::Address(address) if address.scheme_str() == Some("https"));
        if self.jwt_keys_ca.is_some() && !self.jwt_keys.as_ref().is_some_and(is_https) {
            let sentence = "--jwt-keys-ca has no effect unless --jwt-keys is an https:// address; set both, or not this one";
            return Err(sentence.to_owned());
        }
        if self.jwt_cookie.is_some() && origins.contains_all() {
            let sentence = "with --jwt-cookie, --allowed-origins must not be *: every page could act in the name of its visitors; list the origins";
            return Err(sentence.to_owned());
        }
        Ok(())
    }
}

/// The prefix makes browsers send it over TLS alone, and to no other host.
fn cookie_name(name: &str) -> Result<String, String> {
    let is_name = |name: &str| {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !name.is_empty() && name.chars().all(is_allowed)
    };
    match name.strip_prefix("__Host-") {
        Some(rest) if is_name(rest) => Ok(name.to_owned()),
        _ => Err(format!(
            "{name:?} must begin with __Host-, as in __Host-herald"
        )),
    }
}
