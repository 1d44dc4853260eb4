//! The options of rooms.

use std::net::SocketAddr;
use std::str::FromStr;

use clap::Args;
use herald_runtime::config::invalid;
use herald_runtime::http::Origins;

/// Results of windows for the rooms of Socket.IO clients.
#[derive(Args, Clone, Debug)]
pub struct RoomsArgs {
    /// Whether to serve rooms: the results of windows, to Socket.IO clients that registered the room of an identifier. The three
    /// topics of results are then served too, besides those of `--kafka-topic`, and their `.live` topics where they exist.
    #[arg(long, env, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub rooms: bool,

    /// A second address with Socket.IO and nothing but rooms, such as `[::]:8000`.
    #[arg(long, env)]
    pub rooms_listen: Option<SocketAddr>,

    /// Origins of pages that may use the second address: `https://a.example,https://b.example`, or `*`.
    #[arg(long, env, default_value = "*", value_parser = Origins::parse)]
    pub rooms_allowed_origins: Origins,

    /// Topic of the results of windows of one minute.
    #[arg(long, env, default_value = "one_minute_aggregation_topic")]
    pub likes_1_min_aggregation_topic_name: TopicName,

    /// Topic of the results of windows of five minutes.
    #[arg(long, env, default_value = "five_minute_aggregation_topic")]
    pub likes_5_min_aggregation_topic_name: TopicName,

    /// Topic of the results of windows of ten minutes.
    #[arg(long, env, default_value = "ten_minute_aggregation_topic")]
    pub likes_10_min_aggregation_topic_name: TopicName,

    /// Name of the Socket.IO event with a result of a window of one minute.
    #[arg(long, env, default_value = "live_aggregations_1")]
    pub one_minute_aggregations_event_name: EventName,

    /// Name of the Socket.IO event with a result of a window of five minutes.
    #[arg(long, env, default_value = "live_aggregations_5")]
    pub five_minute_aggregations_event_name: EventName,

    /// Name of the Socket.IO event with a result of a window of ten minutes.
    #[arg(long, env, default_value = "live_aggregations_10")]
    pub ten_minute_aggregations_event_name: EventName,
}

impl RoomsArgs {
    /// The topics of results: one, five, ten minutes.
    pub fn topics(&self) -> [&TopicName; 3] {
        [
            &self.likes_1_min_aggregation_topic_name,
            &self.likes_5_min_aggregation_topic_name,
            &self.likes_10_min_aggregation_topic_name,
        ]
    }

    /// The names of the events, in the same order.
    pub fn events(&self) -> [&EventName; 3] {
        [
            &self.one_minute_aggregations_event_name,
            &self.five_minute_aggregations_event_name,
            &self.ten_minute_aggregations_event_name,
        ]
    }

    /// Whether the options fit each other.
    ///
    /// # Errors
    ///
    /// One sentence.
    pub fn check(&self) -> anyhow::Result<()> {
        if !self.rooms {
            return match self.rooms_listen {
                None => Ok(()),
                Some(_) => Err(invalid("--rooms-listen requires --rooms".to_owned())),
            };
        }
        let [one, five, ten] = self.topics();
        if one == five || five == ten || one == ten {
            return Err(invalid(
                "the topics of the results of one, five and ten minutes must differ".to_owned(),
            ));
        }
        let [one, five, ten] = self.events();
        if one == five || five == ten || one == ten {
            return Err(invalid(
                "the names of the events for one, five and ten minutes must differ".to_owned(),
            ));
        }
        Ok(())
    }
}

/// The name of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicName(pub String);

impl FromStr for TopicName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        super::check_topic(name)?;
        Ok(Self(name.to_owned()))
    }
}

/// The name of an event that a client of rooms receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventName(pub String);

impl FromStr for EventName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        // The others are the library's, or ours.
        const RESERVED: [&str; 13] = [
            "connect",
            "connect_error",
            "disconnect",
            "disconnecting",
            "error",
            "message",
            "env",
            "custom_header",
            "start",
            "gap",
            "position",
            "status",
            "bye",
        ];
        if name.is_empty() || RESERVED.contains(&name) {
            return Err(format!("{name:?} cannot be the name of this event"));
        }
        Ok(Self(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::Config;

    fn parse(args: &[&str]) -> Result<Config, clap::Error> {
        let kafka = ["consumer", "--kafka-bootstrap-servers", "a:1"];
        Config::try_parse_from(kafka.iter().chain(args))
    }

    #[test]
    fn the_results_are_served_beside_the_other_topics_and_their_live_topics_may_be_missing() {
        let config =
            parse(&["--rooms", "--kafka-topic", "a,ten_minute_aggregation_topic"]).unwrap();
        let topics = config.topics();
        let names: Vec<_> = topics.iter().map(|topic| topic.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "a",
                "ten_minute_aggregation_topic",
                "one_minute_aggregation_topic",
                "five_minute_aggregation_topic",
                "one_minute_aggregation_topic.live",
                "five_minute_aggregation_topic.live",
                "ten_minute_aggregation_topic.live"
            ]
        );
        let optional = topics.iter().filter(|topic| topic.optional);
        assert!(
            optional
                .map(|topic| &topic.name)
                .all(|name| name.ends_with(".live"))
        );
        assert_eq!(parse(&["--kafka-topic", "a"]).unwrap().topics().len(), 1);
        assert!(!parse(&["--rooms", "false"]).unwrap().rooms.rooms);
    }

    #[test]
    fn the_names_of_the_original_are_options_and_contradictions_are_refused() {
        let config = parse(&[
            "--rooms=true",
            "--likes-1-min-aggregation-topic-name",
            "one",
            "--ten-minute-aggregations-event-name",
            "ten",
            "--kafka-group-id-for-consumer",
            "group",
        ])
        .unwrap();
        assert_eq!(config.rooms.topics()[0].0, "one");
        assert_eq!(config.rooms.events()[2].0, "ten");
        assert_eq!(
            config.kafka_client().unwrap().get("group.id"),
            Some("group")
        );
        assert!(config.check().is_ok());
        let same = [
            "--rooms",
            "--likes-1-min-aggregation-topic-name",
            "five_minute_aggregation_topic",
        ];
        assert!(parse(&same).unwrap().check().is_err());
        assert!(
            parse(&["--rooms-listen", "[::]:8000"])
                .unwrap()
                .check()
                .is_err()
        );
        assert!(parse(&["--one-minute-aggregations-event-name", "bye"]).is_err());
    }
}
