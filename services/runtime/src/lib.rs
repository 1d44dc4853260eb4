//! The code that Herald's services share: configuration, logging, signals, the admin server, and the Kafka client context.

pub mod admin;
pub mod config;
mod environment;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod listen;
mod process;
pub mod shutdown;
pub mod telemetry;
#[cfg(feature = "http")]
mod watch;

pub use admin::Readiness;
pub use config::CommonArgs;
pub use environment::environment_name;
pub use process::{launch, task_ended};
