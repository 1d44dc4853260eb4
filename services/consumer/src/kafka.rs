//! The only modules that use rdkafka: they turn Kafka's records into events and pages.
//!
//! `reader` is one thread with one client that reads all topics live; a `supervisor` for each topic decides where it continues
//! after a problem. `pool` provides clients for reads on demand, which `log` and `range` perform.

mod cache;
mod commands;
mod decode;
mod fault;
mod health;
mod log;
mod pool;
mod range;
mod reader;
mod supervisor;
mod topic;

pub use self::log::Log;
pub use self::pool::Purpose;
pub use self::reader::Reader;
pub use self::topic::Topic;
