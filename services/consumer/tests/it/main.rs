//! The consumer as a process, read by clients over real sockets, against a real Apache Kafka.

mod balancer;
mod changes;
mod client;
mod connections;
mod drain;
mod exactness;
mod faults;
mod hostile;
mod http;
mod keys;
mod latest;
mod limits;
mod read_one;
mod reader;
mod replica;
mod requests;
mod rollout;
mod rooms;
