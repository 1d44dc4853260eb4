//! Who sent a request: what the audit log names before, and besides, what a token says.
//!
//! The audit log has one line for each refusal, and for each stream's start and end, with the target `audit`. It never contains a
//! token or a ticket.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::Request;

use super::server::ServerMetrics;
use super::{Connection, Proxies, RequestId};

/// The target of the audit log's lines.
pub const AUDIT: &str = "audit";

/// The sender of a request, stored as its extension.
#[derive(Clone, Debug)]
pub struct Caller(Arc<Sent>);

#[derive(Debug)]
struct Sent {
    address: IpAddr,
    request_id: Box<str>,
    metrics: ServerMetrics,
}

impl Caller {
    /// That of a request. These proxies are believed whom they forward for.
    pub fn of<B>(
        request: &Request<B>,
        id: &RequestId,
        proxies: &Proxies,
        metrics: &ServerMetrics,
    ) -> Self {
        let connection = request.extensions().get::<Arc<Connection>>();
        let peer = connection.map_or(IpAddr::from([0; 4]), |connection| connection.peer.ip());
        Self(Arc::new(Sent {
            address: proxies.client(peer, request.headers()),
            request_id: id.as_str().into(),
            metrics: metrics.clone(),
        }))
    }

    pub fn address(&self) -> IpAddr {
        self.0.address
    }

    pub fn request_id(&self) -> &str {
        &self.0.request_id
    }

    /// Logs and counts that it was refused. `principal` is its name if that is known, `request` what it asked for.
    pub fn refused(&self, reason: &'static str, principal: Option<&str>, request: Option<&str>) {
        let (address, request_id) = (self.0.address, self.request_id());
        self.0.metrics.rejected(reason);
        tracing::warn!(target: AUDIT, reason, principal, request, %address, request_id, "refused");
    }
}
