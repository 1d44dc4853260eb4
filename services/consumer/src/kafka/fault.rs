//! Classifies librdkafka's errors about a partition.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// How a reader must handle an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The position is no longer in the log, or not yet.
    OutOfRange,
    /// The batch at the position cannot be decompressed, or its checksum is wrong. librdkafka retries the same batch forever.
    Unreadable,
    /// The topic cannot be read until an operator intervenes; the clause is for users.
    Denied(&'static str),
    /// librdkafka recovers without intervention.
    Transient,
}

impl Fault {
    pub fn of(error: &KafkaError) -> Self {
        let (KafkaError::MessageConsumption(code) | KafkaError::MessageConsumptionFatal(code)) =
            error
        else {
            return Self::Transient;
        };
        match code {
            Code::AutoOffsetReset | Code::OffsetOutOfRange => Self::OutOfRange,
            // An unknown codec or message format, and a batch over `receive.message.max.bytes`, are handled like a wrong
            // checksum.
            Code::BadMessage
            | Code::BadCompression
            | Code::InvalidMessage
            | Code::NotImplemented
            | Code::MessageSizeTooLarge => Self::Unreadable,
            Code::TopicAuthorizationFailed => {
                Self::Denied("Kafka does not authorize this server to read the topic")
            }
            Code::GroupAuthorizationFailed | Code::ClusterAuthorizationFailed => {
                Self::Denied("Kafka does not authorize this server")
            }
            Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => {
                Self::Denied("the topic does not exist in Kafka")
            }
            _ => Self::Transient,
        }
    }
}

/// The topic cannot be read until an operator intervenes; the clause is for users.
#[derive(Debug)]
pub struct Denied(pub &'static str);

impl std::fmt::Display for Denied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Denied {}
