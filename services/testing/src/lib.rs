//! What tests need of a real Kafka: the shared one, one of their own to break, topics, records, and conditions to wait for.
//!
//! `cargo xtask check` starts the shared Kafka and sets `HERALD_TEST_KAFKA` and `HERALD_KAFKA_JARS`. A test that needs one
//! of them begins with a line that leaves it out where it is not set:
//!
//! ```no_run
//! # async fn test() {
//! let Some(kafka) = herald_testing::kafka() else { return };
//! let topic = herald_testing::random_topic("exactness");
//! herald_testing::create_topic(&kafka, &topic, 3, &[]).await;
//! # }
//! ```
//!
//! Every call has a deadline of its own and panics with what it attempted: in a test that is the clearest end.

mod kafka_process;

#[cfg(feature = "clients")]
mod broker;
#[cfg(feature = "clients")]
mod client;
#[cfg(feature = "clients")]
mod embedded;
#[cfg(feature = "clients")]
mod records;
#[cfg(feature = "clients")]
mod topics;
#[cfg(feature = "clients")]
mod wait;

pub use kafka_process::KafkaProcess;

#[cfg(feature = "clients")]
pub use broker::Broker;
#[cfg(feature = "clients")]
pub use records::{
    Outcome, Record, Stored, produce, produce_compressed, produce_in_open_transaction,
    produce_in_transaction, read_all,
};
#[cfg(feature = "clients")]
pub use topics::{
    add_partitions, create_topic, delete_records_before, delete_topic, random_topic, watermarks,
};
#[cfg(feature = "clients")]
pub use wait::eventually;

#[cfg(feature = "clients")]
use std::io::Write;

/// The address of the Kafka that all tests share, from `HERALD_TEST_KAFKA`; without it one line says why the test is left
/// out. With `CI=true` that is a failure.
///
/// With `HERALD_TEST_KAFKA=embedded` it is the broker that `local` has inside.
#[cfg(feature = "clients")]
pub fn kafka() -> Option<String> {
    if embedded::is_meant() {
        return Some(embedded::address());
    }
    needed("HERALD_TEST_KAFKA", "the address of a Kafka for tests")
}

/// Whether the tests' Kafka is the embedded broker, which keeps the newest 5 MiB of a partition.
#[cfg(feature = "clients")]
pub fn is_embedded() -> bool {
    embedded::is_meant()
}

/// Like [`kafka`], for what the embedded broker cannot do: with it the test is left out, and one line declares the exception.
#[cfg(feature = "clients")]
pub fn kafka_with(ability: &str) -> Option<String> {
    if embedded::is_meant() {
        leave_out(&format!("the embedded broker has no {ability}"));
        return None;
    }
    kafka()
}

/// The value of an environment variable that a test cannot do without.
#[cfg(feature = "clients")]
fn needed(name: &str, what: &str) -> Option<String> {
    if let Some(value) = std::env::var(name).ok().filter(|value| !value.is_empty()) {
        return Some(value);
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{name} is not set: {what}"
    );
    leave_out(&format!(
        "{name} is not set ({what}); cargo xtask check sets it"
    ));
    None
}

#[cfg(feature = "clients")]
fn leave_out(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let line = format!("left out: {test}: {why}\n");
    // Not eprintln!, which the test harness keeps to itself when the test passes; in one piece, as others write too.
    let _ = std::io::stderr().write_all(line.as_bytes());
}
