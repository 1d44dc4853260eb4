//! What must be so whatever a client, a record of Kafka or a file contains: one function for each fuzz target, which panics if it
//! is not.
//!
//! The consumer's and the gateway's parts are included by their files: those crates link librdkafka, and keep these modules private.

pub mod targets;

#[expect(dead_code, reason = "the consumer uses all of it")]
#[path = "../../services/consumer/src/cursor.rs"]
mod cursor;
#[expect(dead_code, reason = "the consumer uses all of it")]
#[path = "../../services/consumer/src/encode.rs"]
mod encode;
#[path = "../../services/gateway/src/cursor.rs"]
mod frame_cursor;
#[expect(dead_code, reason = "the consumer uses all of it")]
#[path = "../../services/consumer/src/record.rs"]
mod record;
