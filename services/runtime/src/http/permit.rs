//! Who may do what: the one function that every endpoint asks, with the name of the topic, before a stream or an answer starts.

use std::time::Instant;

use hyper::HeaderMap;

/// What a client wants to do with a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Read,
    Write,
}

/// What a client may do, and until when.
#[derive(Clone, Copy, Debug, Default)]
pub struct Permit {
    /// At this time its streams end with `expired`; `None` is never.
    pub until: Option<Instant>,
}

impl Permit {
    /// Waits until the permission ends.
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

/// Whether the client that sent these headers may do this with a topic. Everyone may, today.
///
/// # Errors
///
/// One sentence for the client.
pub fn authorize(_headers: &HeaderMap, _action: Action, _topic: &str) -> Result<Permit, String> {
    Ok(Permit::default())
}
