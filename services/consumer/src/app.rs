//! The state that the endpoints share.

use std::sync::Arc;

use herald_runtime::http::server::ServerMetrics;
use herald_runtime::http::{
    Action, Drain, Hosts, Origins, Permit, authorize, failure, unavailable,
};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{HeaderMap, StatusCode};
use tokio_util::task::TaskTracker;
use warp::reply::Response;

use crate::kafka::Topic;
use crate::metrics::Metrics;
use crate::sessions::Sessions;
use crate::stream::End;
use crate::transports::rooms::Rooms;

/// One per address.
pub struct App {
    /// The first is the default. None at an address that has nothing but rooms.
    pub topics: Vec<Arc<Topic>>,
    pub custom_header: String,
    pub origins: Origins,
    pub hosts: Hosts,
    pub drain: Drain,
    pub metrics: Metrics,
    pub server_metrics: ServerMetrics,
    /// The maximum number of connections, and of Socket.IO sessions however many share a connection.
    pub max_connections: usize,
    pub sessions: Sessions,
    /// Set if rooms are served.
    pub rooms: Option<Arc<Rooms>>,
    /// Streams that outlive their request.
    pub tasks: TaskTracker,
}

/// Why a topic is not served to a client.
#[derive(Debug)]
pub enum TopicError {
    Unknown(String),
    Forbidden(String),
}

impl TopicError {
    /// 404 or 403 with the sentence.
    pub fn response(self) -> Response {
        let status = match self {
            Self::Unknown(_) => StatusCode::NOT_FOUND,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
        };
        failure(status, &self.sentence())
    }

    /// One sentence for the client.
    pub fn sentence(self) -> String {
        match self {
            Self::Unknown(sentence) | Self::Forbidden(sentence) => sentence,
        }
    }
}

impl App {
    /// The state of an address that has nothing but rooms, for pages of these origins.
    pub fn of_rooms(&self, origins: Origins) -> Self {
        Self {
            topics: Vec::new(),
            custom_header: String::new(),
            origins,
            hosts: self.hosts.clone(),
            drain: self.drain.clone(),
            metrics: self.metrics.clone(),
            server_metrics: self.server_metrics.clone(),
            max_connections: self.max_connections,
            sessions: Sessions::default(),
            rooms: self.rooms.clone(),
            tasks: self.tasks.clone(),
        }
    }

    /// The topic of this name, or the default, and how long the client that sent these headers may read it.
    pub fn topic(
        &self,
        name: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<(Arc<Topic>, Permit), TopicError> {
        let topic = match name.filter(|name| !name.is_empty()) {
            None => self.topics.first(),
            Some(name) => self.topics.iter().find(|topic| topic.name == name),
        };
        let Some(topic) = topic.filter(|topic| topic.is_served()) else {
            let names: Vec<&str> = self
                .readable(headers)
                .map(|topic| topic.name.as_str())
                .collect();
            return Err(TopicError::Unknown(format!(
                "topic {:?} is not served here; these are: {}",
                name.unwrap_or_default(),
                names.join(", ")
            )));
        };
        let permit =
            authorize(headers, Action::Read, &topic.name).map_err(TopicError::Forbidden)?;
        Ok((topic.clone(), permit))
    }

    /// The topics that the client that sent these headers may read.
    pub fn readable<'a>(&'a self, headers: &'a HeaderMap) -> impl Iterator<Item = &'a Arc<Topic>> {
        let may_read = |topic: &&Arc<Topic>| authorize(headers, Action::Read, &topic.name).is_ok();
        let served = self.topics.iter().filter(|topic| topic.is_served());
        served.filter(may_read)
    }

    /// 503 with the reason and `Connection: close`.
    pub fn rejection(&self, end: &End) -> Response {
        self.server_metrics.rejected(end.reason());
        let sentence = match end {
            End::Overload => "this replica is full; try again in a moment",
            _ => "this replica is shutting down; try again in a moment",
        };
        let mut response = unavailable(sentence, 2);
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }
}
