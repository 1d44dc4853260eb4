//! Authorization: the one function that every endpoint calls, with the name of the topic, before it starts a response.

use std::time::Instant;

use hyper::HeaderMap;

/// An action on a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Read,
    Write,
}

/// A permission, and its expiry.
#[derive(Clone, Copy, Debug, Default)]
pub struct Permit {
    /// When the client's streams end with `expired`; `None` means never.
    pub until: Option<Instant>,
}

impl Permit {
    /// Waits until the permission expires.
    pub fn expired(&self) -> impl Future<Output = ()> + Send + Sync + 'static {
        let until = self.until;
        async move {
            match until {
                Some(until) => tokio::time::sleep_until(until.into()).await,
                None => std::future::pending().await,
            }
        }
    }
}

/// Whether the client that sent these headers may perform this action on a topic. Currently everyone may.
///
/// # Errors
///
/// One sentence for the client.
pub fn authorize(_headers: &HeaderMap, _action: Action, _topic: &str) -> Result<Permit, String> {
    Ok(Permit::default())
}
