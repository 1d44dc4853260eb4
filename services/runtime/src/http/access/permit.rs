//! A permission that was given, and the streams that are open with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::time::Instant;

use super::revoked::{Ids, Revoked};
use crate::http::Caller;
use crate::http::caller::AUDIT;

/// A permission, until its token expires or is revoked.
#[derive(Clone, Debug)]
pub struct Permit {
    pub(super) validity: Validity,
    pub(super) given: Arc<Given>,
}

/// Whom it was given to, and for what.
#[derive(Debug)]
pub(super) struct Given {
    pub caller: Caller,
    /// The name of the principal, if it has one.
    pub principal: Option<Arc<str>>,
    /// Such as `read topic/dev-topic`.
    pub request: String,
    /// `None` where streams are not counted by principal.
    pub streams: Option<Streams>,
}

impl Permit {
    /// Waits until it is no longer valid, when the client's streams end with `expired`.
    pub fn expired(&self) -> impl Future<Output = ()> + Send + Sync + 'static {
        self.validity.clone().ended()
    }

    /// Begins a stream, which the audit log shows.
    ///
    /// # Errors
    ///
    /// If the principal has too many already; one sentence for the client.
    pub fn open(&self, transport: &'static str) -> Result<Opened, String> {
        let Given {
            caller,
            principal,
            request,
            streams,
        } = &*self.given;
        let slot = match (streams, principal) {
            (Some(streams), Some(name)) => Some(streams.take(name).ok_or_else(|| {
                caller.refused("streams", principal.as_deref(), Some(request));
                let max = streams.max;
                format!("this token's owner has {max} streams open, which is the limit (--max-streams-per-principal)")
            })?),
            _ => None,
        };
        let (address, request_id) = (caller.address(), caller.request_id());
        let principal = principal.as_deref();
        tracing::info!(target: AUDIT, transport, request, principal, %address, request_id, "stream started");
        Ok(Opened {
            given: self.given.clone(),
            transport,
            begun: Instant::now(),
            _slot: slot,
        })
    }
}

/// An open stream.
#[derive(Debug)]
pub struct Opened {
    given: Arc<Given>,
    transport: &'static str,
    begun: Instant,
    _slot: Option<Slot>,
}

impl Opened {
    /// Ends it for this reason. (A stream that is dropped without it has no line in the audit log.)
    pub fn end(&self, reason: &str) {
        let Given {
            caller,
            principal,
            request,
            ..
        } = &*self.given;
        let transport = self.transport;
        let (address, request_id) = (caller.address(), caller.request_id());
        let (principal, seconds) = (principal.as_deref(), self.begun.elapsed().as_secs());
        tracing::info!(
            target: AUDIT, reason, seconds, transport, request, principal, %address, request_id, "stream ended"
        );
    }
}

/// How long a token is valid.
#[derive(Clone, Debug, Default)]
pub struct Validity {
    /// `None` means for ever.
    until: Option<Instant>,
    /// The id of the token, and those that are revoked.
    revocation: Option<(Arc<str>, watch::Receiver<Ids>)>,
}

impl Validity {
    /// That of a token which expires at `exp`, in seconds since 1970.
    pub fn of(exp: u64, id: Option<String>, revoked: &Revoked) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let left = Duration::from_secs(exp).saturating_sub(now);
        Self {
            // More than the clock can add is for ever.
            until: Instant::now().checked_add(left),
            revocation: id.map(|id| (id.into(), revoked.subscribe())),
        }
    }

    async fn ended(self) {
        let expired = async {
            match self.until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let revoked = async {
            let Some((id, mut ids)) = self.revocation else {
                return std::future::pending().await;
            };
            // Without its sender, nothing is revoked any more.
            if ids.wait_for(|ids| ids.contains(&*id)).await.is_err() {
                std::future::pending().await
            }
        };
        tokio::select! {
            () = expired => {}
            () = revoked => {}
        }
    }
}

/// The number of open streams of each principal.
#[derive(Clone, Debug)]
pub struct Streams {
    max: usize,
    open: Arc<Mutex<HashMap<Arc<str>, usize>>>,
}

impl Streams {
    /// At most `max` each; `None` for 0, which is no limit.
    pub fn new(max: usize) -> Option<Self> {
        let open = Arc::default();
        (max > 0).then_some(Self { max, open })
    }

    fn take(&self, principal: &Arc<str>) -> Option<Slot> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(principal.clone()).or_default();
        (*count < self.max).then(|| {
            *count += 1;
            Slot {
                streams: self.clone(),
                principal: principal.clone(),
            }
        })
    }
}

/// One of a principal's streams.
#[derive(Debug)]
struct Slot {
    streams: Streams,
    principal: Arc<str>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let open = &self.streams.open;
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.principal) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.principal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_principal_has_so_many_streams_and_no_more() {
        let streams = Streams::new(2).unwrap();
        let (ada, bob) = (Arc::from("ada"), Arc::from("bob"));
        let first = streams.take(&ada);
        let second = streams.take(&ada);
        assert!(first.is_some() && second.is_some() && streams.take(&ada).is_none());
        assert!(streams.take(&bob).is_some());
        drop(first);
        assert!(streams.take(&ada).is_some());
        drop(second);
        assert!(streams.open.lock().unwrap().is_empty());
        assert!(Streams::new(0).is_none());
    }
}
