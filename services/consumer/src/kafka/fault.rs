//! What an error of librdkafka about a partition means to a reader of it.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// What a reader has to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The position is not in the log any more, or not yet.
    OutOfRange,
    /// The batch at the position cannot be unpacked, or its checksum is wrong. librdkafka tries the same batch for ever.
    Unreadable,
    /// The topic cannot be read until somebody changes something; the clause is for users.
    Denied(&'static str),
    /// librdkafka goes on by itself.
    Passing,
}

impl Fault {
    pub fn of(error: &KafkaError) -> Self {
        let (KafkaError::MessageConsumption(code) | KafkaError::MessageConsumptionFatal(code)) =
            error
        else {
            return Self::Passing;
        };
        match code {
            Code::AutoOffsetReset | Code::OffsetOutOfRange => Self::OutOfRange,
            // An unknown codec or message format, and a batch over `receive.message.max.bytes`, are no better than a wrong
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
            _ => Self::Passing,
        }
    }
}

/// The topic cannot be read until somebody changes something; the clause is for users.
#[derive(Debug)]
pub struct Denied(pub &'static str);

impl std::fmt::Display for Denied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Denied {}
