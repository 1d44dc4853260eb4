//! `POST /topics/<topic>/messages`: any program that can send HTTP publishes to the topics of `--publish-topics`. Likes go through
//! the same [`Publisher`].

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use herald_runtime::http::{
    Action, Principal, RequestId, Resource, failure, method_not_allowed, unavailable,
};
use herald_runtime::kafka::{Context, create};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE};
use hyper::{Method, Request, StatusCode};
use prometheus::IntCounterVec;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::future_producer::Delivery;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use warp::Reply as _;
use warp::reply::Response;

use crate::kafka::{RESERVED, cloud_event, traceparent};
use crate::rates::{Client, Kind};
use crate::{App, Config};

/// The time within which a client must have sent the body.
const BODY: Duration = Duration::from_secs(10);

/// After how many seconds a client should try again.
const RETRY_AFTER: u32 = 5;

/// The topics that may be published to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishTopics(Vec<String>);

impl FromStr for PublishTopics {
    type Err = String;

    fn from_str(list: &str) -> Result<Self, String> {
        let names = list.split(',').map(str::trim);
        let names: Vec<String> = names
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        match names
            .iter()
            .find(|name| name.len() > 249 || !name.bytes().all(is_legal))
        {
            Some(name) => Err(format!("{name:?} is not the name of a topic")),
            None => Ok(Self(names)),
        }
    }
}

/// Publishes the messages and the likes of HTTP clients. Its producer is not that of the frames, whose records never expire: a
/// message that was reported to its client as not acknowledged must not be published minutes later.
pub struct Publisher {
    /// `None` if there are neither topics that may be published to nor likes.
    pub producer: Option<FutureProducer<Context>>,
    topics: PublishTopics,
    /// How long a record may wait for Kafka.
    wait: Duration,
    /// Kilobytes of bodies that may be in memory.
    room: Semaphore,
}

impl Publisher {
    /// # Errors
    ///
    /// If librdkafka rejects a property. An unreachable Kafka is not an error.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let wait = config.message_timeout.as_millis().max(1).to_string();
        let defaults = [
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("message.timeout.ms", wait.as_str()),
            ("linger.ms", "1"),
            ("partitioner", "murmur2_random"),
            ("allow.auto.create.topics", "false"),
            // So that a topic that does not exist is reported before the message expires.
            ("topic.metadata.propagation.max.ms", "2000"),
        ];
        let topics = config.publish_topics.clone();
        let producer = if topics.0.is_empty() && config.likes_topic.is_empty() {
            None
        } else {
            let client = config
                .kafka
                .client_config("herald-gateway-http", &defaults, &RESERVED)?;
            Some(create(&client, Context::new())?)
        };
        Ok(Self {
            producer,
            topics,
            wait: config.message_timeout,
            room: Semaphore::new(config.total_buffer_kbytes as usize),
        })
    }

    /// Waits until Kafka has acknowledged the record.
    pub async fn deliver(
        &self,
        record: FutureRecord<'_, String, [u8]>,
    ) -> Result<Delivery, RDKafkaErrorCode> {
        let code = |error: &KafkaError| {
            let code = error.rdkafka_error_code();
            code.unwrap_or(RDKafkaErrorCode::Fail)
        };
        let producer = self.producer.as_ref().ok_or(RDKafkaErrorCode::Fail)?;
        let delivery = producer
            .send_result(record)
            .map_err(|(error, _)| code(&error))?;
        // librdkafka expires messages once a second, and waits for a request that is under way.
        match timeout(self.wait + Duration::from_secs(2), delivery).await {
            Ok(Ok(result)) => result.map_err(|(error, _)| code(&error)),
            Ok(Err(_)) | Err(_) => Err(RDKafkaErrorCode::MessageTimedOut),
        }
    }
}

/// Answers after Kafka has acknowledged the message.
pub async fn answer(
    app: &Arc<App>,
    topic: &str,
    request: Request<Incoming>,
    client: &Client,
    id: &RequestId,
    principal: &Principal,
) -> Response {
    // Before it is looked for: who may not write to it does not learn whether it exists.
    if let Err(refusal) = principal.may(Action::Write, Resource::Topic(topic)) {
        return refusal.response();
    }
    match publish(app, topic, request, client, id).await {
        Ok(response) | Err(response) => response,
    }
}

async fn publish(
    app: &App,
    topic: &str,
    request: Request<Incoming>,
    client: &Client,
    id: &RequestId,
) -> Result<Response, Response> {
    if request.method() != Method::POST {
        return Err(method_not_allowed("POST"));
    }
    let publisher = &app.publisher;
    let listed = publisher.topics.0.iter().any(|name| name == topic);
    if !listed {
        let sentence =
            format!("topic {topic:?} cannot be published to; add it to --publish-topics");
        return Err(failure(StatusCode::NOT_FOUND, &sentence));
    }
    let key = key(request.uri().query().unwrap_or_default())
        .map_err(|sentence| failure(StatusCode::BAD_REQUEST, &sentence))?;
    let (head, body) = request.into_parts();
    let max = app.config.max_publish_bytes as usize;
    // Without a `Content-Length`, the body may be as large as any.
    let bytes = body.size_hint().upper().map_or(max, |n| n as usize);
    if bytes > max {
        return Err(too_large(max));
    }
    let counter = &app.metrics.messages_failed;
    let kbytes = bytes.div_ceil(1 << 10).max(1) as u32;
    let Ok(_room) = publisher.room.try_acquire_many(kbytes) else {
        return Err(failed(counter, topic, id, RDKafkaErrorCode::QueueFull));
    };
    let value = read(body, max).await?;
    if let Some(response) = app.rates.reject(client, Kind::Bytes, value.len()) {
        return Err(response);
    }

    let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let headers = cloud_event(
        "herald.message",
        text(CONTENT_TYPE.as_str()),
        id.as_str(),
        text("traceparent").and_then(traceparent).as_deref(),
    );
    let mut record = FutureRecord::to(topic).payload(&value[..]).headers(headers);
    if let Some(key) = &key {
        record = record.key(key);
    }
    let delivery = publisher.deliver(record).await;
    let delivery = delivery.map_err(|code| failed(counter, topic, id, code))?;
    app.metrics.messages.inc();
    let (partition, offset) = (delivery.partition, delivery.offset);
    let body = json!({"topic": topic, "partition": partition, "offset": offset});
    let response = warp::reply::json(&body);
    Ok(warp::reply::with_header(response, CACHE_CONTROL, "no-store").into_response())
}

/// The whole body.
async fn read(body: Incoming, max: usize) -> Result<Bytes, Response> {
    match timeout(BODY, Limited::new(body, max).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(max)),
        Ok(Err(_)) => Err(failure(StatusCode::BAD_REQUEST, "the body is incomplete")),
        Err(_) => {
            let sentence = format!("the body did not arrive within {BODY:?}");
            Err(failure(StatusCode::REQUEST_TIMEOUT, &sentence))
        }
    }
}

/// The `key` parameter, which becomes the record's key.
fn key(query: &str) -> Result<Option<String>, String> {
    let parameters: Vec<(String, String)> =
        serde_urlencoded::from_str(query).map_err(|error| error.to_string())?;
    let mut key = None;
    for (name, value) in parameters {
        if name != "key" {
            return Err(format!("there is no parameter {name:?} here; only key"));
        }
        if key.replace(value).is_some() {
            return Err("give key once".to_owned());
        }
    }
    Ok(key)
}

fn too_large(max: usize) -> Response {
    let sentence = format!("the message is over {max} bytes (--max-publish-bytes)");
    failure(StatusCode::PAYLOAD_TOO_LARGE, &sentence)
}

/// The response to a message that Kafka has not acknowledged, which `counter` counts by reason.
pub fn failed(
    counter: &IntCounterVec,
    topic: &str,
    id: &RequestId,
    code: RDKafkaErrorCode,
) -> Response {
    let (reason, sentence) = match code {
        RDKafkaErrorCode::MessageSizeTooLarge => (
            "too-large",
            "the message is larger than kafka accepts for this topic".to_owned(),
        ),
        RDKafkaErrorCode::UnknownTopic
        | RDKafkaErrorCode::UnknownTopicOrPartition
        | RDKafkaErrorCode::UnknownPartition => (
            "unknown-topic",
            format!("topic {topic:?} does not exist in kafka"),
        ),
        RDKafkaErrorCode::QueueFull => (
            "full",
            "too many messages are waiting for kafka; try again in a moment".to_owned(),
        ),
        RDKafkaErrorCode::MessageTimedOut => (
            "timeout",
            "kafka did not acknowledge the message in time; it may have been published all the same".to_owned(),
        ),
        _ => (
            "kafka",
            format!("kafka did not accept the message: {code}"),
        ),
    };
    counter.with_label_values(&[reason]).inc();
    let request_id = id.as_str();
    tracing::warn!(request_id, topic, error = %code, "cannot publish a message");
    match code {
        RDKafkaErrorCode::MessageSizeTooLarge => failure(StatusCode::PAYLOAD_TOO_LARGE, &sentence),
        _ => unavailable(&sentence, RETRY_AFTER),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_topics_may_be_empty_and_names_what_is_no_topic() {
        assert_eq!("".parse(), Ok(PublishTopics::default()));
        let two = PublishTopics(vec!["a".to_owned(), "b.c".to_owned()]);
        assert_eq!("a, b.c,".parse(), Ok(two));
        assert!(
            "a,b c"
                .parse::<PublishTopics>()
                .unwrap_err()
                .contains("b c")
        );
    }
}
