//! Who may do what: the one place where a request becomes a principal, and a principal's request a permit.
//!
//! `keys` reads the keys that tokens are verified with, `issuer` fetches them from an address, `token` verifies one, `pattern`
//! compares the permissions in it with what a client asks for, and `revoked` knows the tokens that are valid no longer.

mod args;
mod issuer;
mod keys;
mod pattern;
mod permit;
mod revoked;
mod token;

use std::fmt;

use hyper::HeaderMap;
use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, COOKIE, HeaderValue, WWW_AUTHENTICATE};
use tokio_util::sync::CancellationToken;
use warp::reply::Response;

pub use self::args::AccessArgs;
use self::keys::Keys;
use self::pattern::Pattern;
pub use self::permit::Permit;
use self::revoked::Revoked;
use super::Origins;
use super::failure::{failure, unavailable};
use crate::Readiness;

/// An action on a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Read,
    Write,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource<'a> {
    Topic(&'a str),
    /// The results of one identifier, and its likes.
    Room(&'a str),
    Session(&'a str),
    Counts,
}

/// As permissions name it: `topic/dev-topic`.
impl fmt::Display for Resource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic(name) => write!(f, "topic/{name}"),
            Self::Room(name) => write!(f, "room/{name}"),
            Self::Session(id) => write!(f, "session/{id}"),
            Self::Counts => f.write_str("counts"),
        }
    }
}

/// Why a client is refused, in one sentence for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody knows who it is.
    Unauthenticated(String),
    /// It may not do this.
    Forbidden(String),
    /// Nobody can be known yet.
    Unavailable(String),
}

impl Refusal {
    /// 401, 403 or 503 with the sentence.
    pub fn response(&self) -> Response {
        match self {
            Self::Unauthenticated(sentence) => {
                let mut response = failure(StatusCode::UNAUTHORIZED, sentence);
                let scheme = HeaderValue::from_static("Bearer");
                response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
                response
            }
            Self::Forbidden(sentence) => failure(StatusCode::FORBIDDEN, sentence),
            Self::Unavailable(sentence) => unavailable(sentence, 2),
        }
    }

    pub fn sentence(&self) -> &str {
        let (Self::Unauthenticated(sentence)
        | Self::Forbidden(sentence)
        | Self::Unavailable(sentence)) = self;
        sentence
    }
}

/// A client, as far as it is known.
#[derive(Clone, Debug)]
pub struct Principal {
    /// What its token says it is; `None` if everyone may do everything.
    token: Option<token::Verified>,
}

impl Principal {
    /// One that may do everything for ever: where there are no keys.
    pub fn anyone() -> Self {
        Self { token: None }
    }

    /// Until when it is known.
    pub fn permit(&self) -> Permit {
        let token = self.token.as_ref();
        token.map(|token| token.permit.clone()).unwrap_or_default()
    }

    /// Whether it may perform this action on a resource, and until when.
    ///
    /// # Errors
    ///
    /// The reason, for the client.
    pub fn may(&self, action: Action, resource: Resource) -> Result<Permit, Refusal> {
        let Some(token) = &self.token else {
            return Ok(Permit::default());
        };
        let patterns = match action {
            Action::Read => &token.read,
            Action::Write => &token.write,
        };
        let name = resource.to_string();
        if !patterns.iter().any(|pattern| pattern.matches(&name)) {
            let sentence = format!("the token does not allow its owner to {action} {name:?}");
            return Err(Refusal::Forbidden(sentence));
        }
        Ok(token.permit.clone())
    }
}

/// Decides who a client is.
#[derive(Clone, Debug, Default)]
pub struct Access(Option<Verifier>);

#[derive(Clone, Debug)]
struct Verifier {
    keys: Keys,
    revoked: Revoked,
    audience: String,
    issuer: Option<String>,
    cookie: Option<String>,
}

impl Access {
    /// Reads the files of the options, and again when they change, until the service is shut down. Without keys, everyone may do
    /// everything, which is logged. While those of an address are missing, the service is not ready.
    ///
    /// # Errors
    ///
    /// If a file cannot be read, or contains no key.
    pub fn new(
        args: &AccessArgs,
        readiness: &Readiness,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let Some(keys) = &args.jwt_keys else {
            tracing::info!(
                "everyone may read and write here; --jwt-keys restricts it to owners of tokens"
            );
            return Ok(Self::default());
        };
        let verifier = Verifier {
            keys: Keys::watch(keys, args.jwt_keys_ca.as_deref(), readiness, shutdown)?,
            revoked: Revoked::watch(args.jwt_revoked.as_deref(), shutdown)?,
            audience: args.jwt_audience.clone(),
            issuer: args.jwt_issuer.clone(),
            cookie: args.jwt_cookie.clone(),
        };
        Ok(Self(Some(verifier)))
    }

    /// These origins as they must be checked here, where a cookie may contain the token.
    pub fn origins(&self, origins: Origins) -> Origins {
        match &self.0 {
            Some(Verifier {
                cookie: Some(_), ..
            }) => origins.with_cookie(),
            _ => origins,
        }
    }

    /// The same for addresses that pages of any origin may use: with a cookie, those would act in the name of whoever visits them.
    pub fn without_cookie(mut self) -> Self {
        if let Some(verifier) = &mut self.0 {
            verifier.cookie = None;
        }
        self
    }

    /// The client that sent these headers. `token` is one that it sent otherwise, and counts first.
    ///
    /// # Errors
    ///
    /// If there is no token, or it is not valid.
    pub fn principal(
        &self,
        headers: &HeaderMap,
        token: Option<&str>,
    ) -> Result<Principal, Refusal> {
        let Some(verifier) = &self.0 else {
            return Ok(Principal::anyone());
        };
        if verifier.keys.current().is_empty() {
            let sentence = "the keys of tokens have not been fetched yet; try again in a moment";
            return Err(Refusal::Unavailable(sentence.to_owned()));
        }
        let verified = match token {
            Some(token) => verifier.verify(token),
            None => verifier
                .find(headers)
                .and_then(|token| verifier.verify(token)),
        };
        verified
            .map(|token| Principal { token: Some(token) })
            .map_err(|sentence| Refusal::Unauthenticated(sentence.to_owned()))
    }
}

impl Verifier {
    /// The token in the `Authorization` header, or else in the cookie.
    fn find<'a>(&self, headers: &'a HeaderMap) -> Result<&'a str, &'static str> {
        if let Some(value) = headers.get(AUTHORIZATION) {
            let bearer = value.to_str().ok().and_then(|value| {
                let (scheme, token) = value.split_once(' ')?;
                scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
            });
            return bearer.ok_or("the Authorization header must be: Bearer <token>");
        }
        let cookie = self.cookie.as_deref().and_then(|name| {
            let cookies = headers.get_all(COOKIE).into_iter();
            // Another cookie may be no text.
            let mut pairs = cookies
                .flat_map(|value| value.as_bytes().split(|byte| *byte == b';'))
                .filter_map(|pair| std::str::from_utf8(pair).ok());
            pairs.find_map(|pair| {
                let (found, value) = pair.trim().split_once('=')?;
                (found == name).then_some(value)
            })
        });
        cookie.ok_or("a token is missing: send it as Authorization: Bearer <token>")
    }

    fn verify(&self, token: &str) -> Result<token::Verified, &'static str> {
        let claims = token::verify(token, &self.keys, &self.audience, self.issuer.as_deref())?;
        if claims
            .jti
            .as_ref()
            .is_some_and(|id| self.revoked.contains(id))
        {
            return Err("the token was revoked");
        }
        let list = |patterns: Vec<String>| -> Vec<Pattern> {
            patterns.into_iter().map(Pattern::new).collect()
        };
        Ok(token::Verified {
            permit: Permit::of(claims.exp, claims.jti, &self.revoked),
            read: list(claims.read),
            write: list(claims.write),
        })
    }
}
