//! Who may do what: the one place where a request becomes a principal, and a principal's request a permit.
//!
//! `keys` reads the keys that tokens are verified with, `issuer` fetches them from an address, `token` verifies one, `tickets` stand
//! for tokens, `pattern` compares the permissions in a token with what a client asks for, `permit` is what it gets, and `revoked` knows
//! the tokens that are valid no longer.

mod args;
mod issuer;
mod keys;
mod pattern;
mod permit;
mod revoked;
mod tickets;
mod token;

/// For `fuzz` alone.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing {
    pub use super::keys::{Key, Keys, of_issuer, parse};
    pub use super::pattern::Pattern;
    pub use super::token::verify;

    /// Keys that do not change.
    pub fn fixed(keys: &[Key]) -> Keys {
        Keys {
            current: tokio::sync::watch::Sender::new(keys.into()).subscribe(),
            refresh: None,
        }
    }
}

use std::fmt;
use std::sync::Arc;

use hyper::header::{AUTHORIZATION, CACHE_CONTROL, COOKIE, HeaderValue, WWW_AUTHENTICATE};
use hyper::{HeaderMap, Method, Request, StatusCode, Uri};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use warp::Reply as _;
use warp::reply::Response;

pub use self::args::AccessArgs;
use self::keys::Keys;
use self::pattern::Pattern;
use self::permit::{Given, Streams, Validity};
pub use self::permit::{Opened, Permit};
use self::revoked::Revoked;
use self::tickets::Tickets;
use self::token::Invalid;
use super::failure::{failure, method_not_allowed, unavailable};
use super::{Caller, Origins};
use crate::Readiness;

/// The path of tickets.
pub const TICKETS: &str = "/tickets";

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
    caller: Caller,
    /// What its token says it is; `None` if everyone may do everything.
    token: Option<Arc<token::Verified>>,
    streams: Option<Streams>,
}

impl Principal {
    /// One that may do everything for ever: where there are no keys.
    pub fn anyone(caller: &Caller) -> Self {
        Self {
            caller: caller.clone(),
            token: None,
            streams: None,
        }
    }

    /// The permission to receive what it is allowed to of `what`, such as the results of all rooms.
    pub fn permit(&self, what: &str) -> Permit {
        let token = self.token.as_ref();
        let validity = token.map(|token| token.validity.clone());
        Permit {
            validity: validity.unwrap_or_default(),
            given: Arc::new(Given {
                caller: self.caller.clone(),
                principal: token.and_then(|token| token.principal.clone()),
                request: what.to_owned(),
                streams: self.streams.clone(),
            }),
        }
    }

    /// Whether its token allows it to perform this action on a resource.
    pub fn allows(&self, action: Action, resource: Resource) -> bool {
        let Some(token) = &self.token else {
            return true;
        };
        let patterns = match action {
            Action::Read => &token.read,
            Action::Write => &token.write,
        };
        let name = resource.to_string();
        patterns.iter().any(|pattern| pattern.matches(&name))
    }

    /// The permission to perform this action on a resource.
    ///
    /// # Errors
    ///
    /// The reason, for the client. It is logged.
    pub fn may(&self, action: Action, resource: Resource) -> Result<Permit, Refusal> {
        let request = format!("{action} {resource}");
        if self.allows(action, resource) {
            return Ok(self.permit(&request));
        }
        let name = resource.to_string();
        let sentence = format!("the token does not allow its owner to {action} {name:?}");
        Err(self.refused(&request, sentence))
    }

    /// Logs and counts that it may not do this.
    pub fn refused(&self, request: &str, sentence: String) -> Refusal {
        let principal = self
            .token
            .as_ref()
            .and_then(|token| token.principal.as_deref());
        self.caller.refused("forbidden", principal, Some(request));
        Refusal::Forbidden(sentence)
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
    tickets: Tickets,
    streams: Option<Streams>,
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
            tickets: Tickets::default(),
            streams: Streams::new(args.max_streams_per_principal),
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
    /// If there is no token, or it is not valid. This is logged.
    pub fn principal(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        token: Option<&str>,
    ) -> Result<Principal, Refusal> {
        let Some(verifier) = &self.0 else {
            return Ok(Principal::anyone(caller));
        };
        if verifier.keys.current().is_empty() {
            caller.refused("no-keys", None, None);
            let sentence = "the keys of tokens have not been fetched yet; try again in a moment";
            return Err(Refusal::Unavailable(sentence.to_owned()));
        }
        let token = token.map_or_else(|| verifier.find(headers), Ok);
        let verified = token.and_then(|token| verifier.verify(token));
        let verified = verified.map_err(|invalid| {
            caller.refused(invalid.reason(), None, None);
            Refusal::Unauthenticated(invalid.sentence().to_owned())
        })?;
        Ok(Principal {
            caller: caller.clone(),
            token: Some(Arc::new(verified)),
            streams: verifier.streams.clone(),
        })
    }

    /// Answers a request for a ticket: 201 with `{"ticket": "…", "expires_in": 30}`, in seconds.
    pub fn ticket<B>(&self, caller: &Caller, request: &Request<B>) -> Response {
        if request.method() != Method::POST {
            return method_not_allowed("POST");
        }
        let Some(verifier) = &self.0 else {
            let sentence = "there are no tickets here, because everyone may read and write";
            return failure(StatusCode::NOT_FOUND, sentence);
        };
        let principal = match self.principal(caller, request.headers(), None) {
            Ok(principal) => principal.token.and_then(|token| token.principal.clone()),
            Err(refusal) => return refusal.response(),
        };
        let token = verifier.find(request.headers()).unwrap_or_default();
        let Some(ticket) = verifier.tickets.issue(token, principal) else {
            return unavailable(
                "there are too many unused tickets; try again in a moment",
                5,
            );
        };
        let body = json!({ "ticket": ticket, "expires_in": tickets::LIFETIME.as_secs() });
        let body = warp::reply::with_status(warp::reply::json(&body), StatusCode::CREATED);
        warp::reply::with_header(body, CACHE_CONTROL, "no-store").into_response()
    }

    /// Replaces the ticket in a request's URL by the token that it stands for, in the header.
    pub fn redeem<B>(&self, request: &mut Request<B>) {
        const NAME: &str = "ticket=";
        let query = request.uri().query().unwrap_or_default();
        let (Some(verifier), true) = (&self.0, query.contains(NAME)) else {
            return;
        };
        let parameters = query.split('&');
        let (tickets, others): (Vec<&str>, Vec<&str>) =
            parameters.partition(|parameter| parameter.starts_with(NAME));
        let Some(ticket) = tickets.first() else {
            return;
        };
        let token = verifier.tickets.redeem(&ticket[NAME.len()..]);
        let header = token.and_then(|token| HeaderValue::try_from(format!("Bearer {token}")).ok());
        let uri = format!("{}?{}", request.uri().path(), others.join("&"));
        let header = header.unwrap_or(HeaderValue::from_static(UNKNOWN_TICKET));
        request.headers_mut().insert(AUTHORIZATION, header);
        let mut parts = request.uri().clone().into_parts();
        parts.path_and_query = uri.parse().ok();
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
}

/// The header of a request whose ticket stands for no token.
const UNKNOWN_TICKET: &str = "Ticket";

impl Verifier {
    /// The token in the `Authorization` header, or else in the cookie.
    fn find<'a>(&self, headers: &'a HeaderMap) -> Result<&'a str, Invalid> {
        if let Some(value) = headers.get(AUTHORIZATION) {
            if value == UNKNOWN_TICKET {
                return Err(Invalid::Ticket);
            }
            let bearer = value.to_str().ok().and_then(|value| {
                let (scheme, token) = value.split_once(' ')?;
                scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
            });
            return bearer.ok_or(Invalid::Scheme);
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
        cookie.ok_or(Invalid::Missing)
    }

    fn verify(&self, token: &str) -> Result<token::Verified, Invalid> {
        let claims = token::verify(token, &self.keys, &self.audience, self.issuer.as_deref())?;
        if claims
            .jti
            .as_ref()
            .is_some_and(|id| self.revoked.contains(id))
        {
            return Err(Invalid::Revoked);
        }
        let list = |patterns: Vec<String>| -> Vec<Pattern> {
            patterns.into_iter().map(Pattern::new).collect()
        };
        let principal = claims.sub.as_deref().or(claims.jti.as_deref());
        Ok(token::Verified {
            principal: principal.map(Arc::from),
            validity: Validity::of(claims.exp, claims.jti, &self.revoked),
            read: list(claims.read),
            write: list(claims.write),
        })
    }
}
