//! What Herald's Kafka clients share: options, logging, and whether Kafka is available.

mod args;
mod certificate;
mod context;
mod properties;
mod remedy;
pub mod source;

pub use args::{KafkaArgs, addresses, create};
pub use context::Context;
pub use properties::{Property, parse as properties};
pub use source::Source;
