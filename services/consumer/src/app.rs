//! The state that the endpoints share.

use std::sync::Arc;

use herald_runtime::http::server::ServerMetrics;
use herald_runtime::http::{
    Access, Action, Caller, Drain, FrameAncestors, Hosts, Origins, PathPrefix, Permit, Principal,
    Proxies, Refusal, Resource, failure, unavailable,
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
    pub path_prefix: PathPrefix,
    pub origins: Origins,
    pub hosts: Hosts,
    pub frame_ancestors: FrameAncestors,
    pub access: Access,
    pub trusted_proxies: Proxies,
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
    Refused(Refusal),
}

impl TopicError {
    /// 404, 401 or 403 with the sentence.
    pub fn response(self) -> Response {
        match self {
            Self::Unknown(sentence) => failure(StatusCode::NOT_FOUND, &sentence),
            Self::Refused(refusal) => refusal.response(),
        }
    }

    /// One sentence for the client.
    pub fn sentence(&self) -> &str {
        match self {
            Self::Unknown(sentence) => sentence,
            Self::Refused(refusal) => refusal.sentence(),
        }
    }
}

impl App {
    /// The state of an address that has nothing but rooms, for pages of these origins.
    pub fn of_rooms(&self, origins: Origins) -> Self {
        let access = match origins.contains_all() {
            true => self.access.clone().without_cookie(),
            false => self.access.clone(),
        };
        Self {
            topics: Vec::new(),
            custom_header: String::new(),
            // The system that Herald replaces has rooms at the root.
            path_prefix: PathPrefix::default(),
            origins: access.origins(origins),
            access,
            hosts: self.hosts.clone(),
            frame_ancestors: self.frame_ancestors.clone(),
            trusted_proxies: self.trusted_proxies.clone(),
            drain: self.drain.clone(),
            metrics: self.metrics.clone(),
            server_metrics: self.server_metrics.clone(),
            max_connections: self.max_connections,
            sessions: Sessions::default(),
            rooms: self.rooms.clone(),
            tasks: self.tasks.clone(),
        }
    }

    /// The client that sent these headers.
    pub fn principal(&self, caller: &Caller, headers: &HeaderMap) -> Result<Principal, TopicError> {
        let principal = self.access.principal(caller, headers, None);
        principal.map_err(TopicError::Refused)
    }

    /// The topic of this name, or the first one that this client may read, and how long it may.
    pub fn topic(
        &self,
        name: Option<&str>,
        principal: &Principal,
    ) -> Result<(Arc<Topic>, Permit), TopicError> {
        let may_read = |name: &str| {
            let permit = principal.may(Action::Read, Resource::Topic(name));
            permit.map_err(TopicError::Refused)
        };
        let mut topics = self.topics.iter();
        let (topic, permit) = match name.filter(|name| !name.is_empty()) {
            None => {
                let allows = |name| principal.allows(Action::Read, Resource::Topic(name));
                let topic = topics.find(|topic| allows(&topic.name)).ok_or_else(|| {
                    let sentence =
                        "the token does not allow its owner to read a topic that is served here";
                    TopicError::Refused(principal.refused("read topic", sentence.to_owned()))
                })?;
                (Some(topic), may_read(&topic.name)?)
            }
            Some(name) => {
                // Before it is looked for: who may not read it does not learn whether it exists.
                let permit = may_read(name)?;
                (topics.find(|topic| topic.name == name), permit)
            }
        };
        let Some(topic) = topic.filter(|topic| topic.is_served()) else {
            let names: Vec<&str> = self
                .readable(principal)
                .map(|topic| topic.name.as_str())
                .collect();
            return Err(TopicError::Unknown(format!(
                "topic {:?} is not served here; these are: {}",
                name.unwrap_or_default(),
                names.join(", ")
            )));
        };
        Ok((topic.clone(), permit))
    }

    /// The topics that this client may read.
    pub fn readable<'a>(
        &'a self,
        principal: &'a Principal,
    ) -> impl Iterator<Item = &'a Arc<Topic>> {
        let served = self.topics.iter().filter(|topic| topic.is_served());
        served.filter(|topic| principal.allows(Action::Read, Resource::Topic(&topic.name)))
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
