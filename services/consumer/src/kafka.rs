//! The only modules that know rdkafka: what Kafka holds becomes events and pages of the log.
//!
//! `reader` is one thread with one client that reads all topics live; a `supervisor` for each topic decides where it reads
//! when something is wrong. `pool` lends clients for everything that is asked on demand, which `log` and `range` do.

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
