//! A permission that was given.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::time::Instant;

use super::revoked::{Ids, Revoked};

/// A permission, until its token expires or is revoked.
#[derive(Clone, Debug, Default)]
pub struct Permit {
    /// `None` means never.
    until: Option<Instant>,
    /// The id of the token, and those that are revoked.
    revocation: Option<(Arc<str>, watch::Receiver<Ids>)>,
}

impl Permit {
    /// That of a token which expires at `exp`, in seconds since 1970.
    pub(super) fn of(exp: u64, id: Option<String>, revoked: &Revoked) -> Self {
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

    /// Waits until it is no longer valid, when the client's streams end with `expired`.
    pub fn expired(&self) -> impl Future<Output = ()> + Send + Sync + 'static {
        let Self { until, revocation } = self.clone();
        async move {
            let expired = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            let revoked = async {
                let Some((id, mut ids)) = revocation else {
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
}
