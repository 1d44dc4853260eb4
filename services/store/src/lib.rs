//! The results of projections: tables, migrations and queries, for SQLite and PostgreSQL.
//!
//! The projector writes with a [`Writer`], which commits results and the positions that they were computed from together. The
//! gateway reads with a [`Reader`], which cannot write.

mod batch;
mod connect;
mod counts;
mod counts_file;
mod document;
mod migrations;
mod reader;
mod tls;
mod url;
mod writer;

pub use batch::{Advance, Arrival, Batch, NewEvent, Position, SessionChanges};
pub use connect::{DEFAULT_SCHEMA, Name};
pub use counts::{Count, Counted, Counts, CountsState};
pub use counts_file::{CountsFile, Refused};
pub use document::Session;
pub use reader::Reader;
pub use url::DatabaseUrl;
pub use writer::{Applied, Summary, Writer};

/// The name of the projection of session events, in [`Reader::has_passed`].
pub const SESSIONS: &str = "sessions";

/// The name of the projection of food counts.
pub const COUNTS: &str = "counts";
