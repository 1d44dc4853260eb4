//! Support for tests with a real Kafka: the shared one, a private one to break, topics, records, and conditions to wait for.
//!
//! `cargo xtask check` starts the shared Kafka and sets `HERALD_TEST_KAFKA` and `HERALD_KAFKA_JARS`. A test that needs one
//! of them begins with a line that skips it if the variable is not set:
//!
//! ```no_run
//! # async fn test() {
//! let Some(kafka) = herald_testing::kafka() else { return };
//! let topic = herald_testing::random_topic("exactness");
//! herald_testing::create_topic(&kafka, &topic, 3, &[]).await;
//! # }
//! ```
//!
//! Every call has its own deadline, and panics with what it attempted: in a test, that is the clearest failure.

mod kafka_process;

#[cfg(feature = "clients")]
mod broker;
#[cfg(feature = "clients")]
mod certificates;
#[cfg(feature = "clients")]
mod client;
#[cfg(feature = "clients")]
mod database;
#[cfg(feature = "clients")]
mod embedded;
#[cfg(feature = "clients")]
mod postgres;
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
pub use certificates::{Authority, Certificate};
#[cfg(feature = "clients")]
pub use database::Database;
#[cfg(feature = "clients")]
pub use postgres::{Postgres, postgres};
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

/// The address of the Kafka that all tests share, from `HERALD_TEST_KAFKA`. Without the variable, the test is skipped with one
/// line; with `CI=true` it fails.
///
/// With `HERALD_TEST_KAFKA=embedded` it is the broker that is embedded in `local`.
#[cfg(feature = "clients")]
pub fn kafka() -> Option<String> {
    if embedded::is_selected() {
        return Some(embedded::address());
    }
    required_var("HERALD_TEST_KAFKA", "the address of a Kafka for tests")
}

/// Whether the tests' Kafka is the embedded broker, which keeps the newest 5 MiB of a partition.
#[cfg(feature = "clients")]
pub fn is_embedded() -> bool {
    embedded::is_selected()
}

/// Like [`kafka`], for tests that need more than the embedded broker supports: with it, the test is skipped with one line.
#[cfg(feature = "clients")]
pub fn kafka_with(ability: &str) -> Option<String> {
    if embedded::is_selected() {
        leave_out(&format!("the embedded broker has no {ability}"));
        return None;
    }
    kafka()
}

/// The value of an environment variable that a test requires.
#[cfg(feature = "clients")]
fn required_var(name: &str, what: &str) -> Option<String> {
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

/// Whether a program is installed that a test needs. Without it, the test is skipped with one line; with `CI=true` it fails.
#[cfg(feature = "clients")]
pub fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    if !found {
        let why = format!("{name} is not installed");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}");
        leave_out(&why);
    }
    found
}

#[cfg(feature = "clients")]
fn leave_out(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let line = format!("left out: {test}: {why}\n");
    // Not eprintln!, which the test harness hides if the test passes; in a single write, because other tests write too.
    let _ = std::io::stderr().write_all(line.as_bytes());
}
