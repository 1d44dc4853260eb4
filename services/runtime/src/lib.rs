//! What every service of Herald needs word for word: configuration, logs, signals, the admin server, Kafka's client context.

pub mod admin;
pub mod config;
mod environment;
#[cfg(feature = "http")]
pub mod http;
pub mod kafka;
pub mod listen;
mod process;
pub mod shutdown;
pub mod telemetry;

pub use admin::Readiness;
pub use config::CommonArgs;
pub use environment::environment_name;
pub use process::launch;
