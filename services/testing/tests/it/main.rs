//! The tools of the tests, against a real Kafka.

mod broker;
mod records;
mod topics;
