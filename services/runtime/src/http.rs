//! HTTP for browsers, for every service that has a public port.

pub mod access;
mod address;
mod caller;
pub mod cors;
pub mod drain;
mod failure;
mod finish;
mod frame;
mod origin;
mod prefix;
mod request_id;
pub mod server;
mod tls;

pub use access::{
    Access, AccessArgs, Action, Opened, Permit, Principal, Refusal, Resource, TICKETS,
};
pub use address::{Proxies, network};
pub use caller::Caller;
pub use drain::Drain;
pub use failure::{failure, method_not_allowed, unavailable};
pub use finish::finish;
pub use frame::FrameAncestors;
pub use origin::{Allow, Hosts, Origins};
pub use prefix::PathPrefix;
pub use request_id::{REQUEST_ID, RequestId};
pub use server::{Connection, Connections};
pub use tls::{Tls, TlsArgs, trusted};
