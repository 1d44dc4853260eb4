//! The only modules that know rdkafka: what Kafka holds becomes events and pages of the log.

mod decode;
mod log;
mod range;
mod reader;

pub use self::log::Log;
pub use self::reader::Live;
