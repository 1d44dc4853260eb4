//! What the windows need of Kafka besides a consumer group: transactions, and the state of topics and groups.

mod observer;
mod results;
mod transactions;

pub use observer::Observer;
pub use results::latest_result;
pub use transactions::{Failure, Outgoing, Position, Rejection, Transactions};
