//! The message: one line of text, with headers for its source and time.

use jiff::{Timestamp, Zoned};

/// One for each pause of 1 to 10 seconds, from impatient to asleep.
pub const FACES: [&str; 10] = [
    "(ノ°▽°)ノ",
    "ヽ(^o^)丿",
    "(づ｡◕‿◕｡)づ",
    "(^‿^)",
    "(・ω・)",
    "(¬‿¬)",
    "(-_-)ゞ",
    "┐(￣ー￣)┌",
    "(´-﹏-`；)",
    "(－ω－) zzZ",
];

/// A message, as it is sent to the topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broadcast {
    /// The value of the record, UTF-8.
    pub text: String,
    /// The headers of the record: CloudEvents in binary mode, and a W3C trace context.
    pub headers: Vec<(&'static str, String)>,
    /// The timestamp of the record, ms since 1970.
    pub timestamp: i64,
}

impl Broadcast {
    /// `Hello world from <environment> producer - HH:MM:SS<TAB><face>`, in the time of `now`'s zone.
    pub fn new(environment: &str, face: &str, now: &Zoned) -> Broadcast {
        let time = now.strftime("%H:%M:%S");
        Broadcast {
            text: format!("Hello world from {environment} producer - {time}\t{face}"),
            headers: headers(
                format!("/herald/{environment}/producer"),
                "herald.broadcast",
                "text/plain; charset=utf-8",
                now.timestamp(),
            ),
            timestamp: now.timestamp().as_millisecond(),
        }
    }

    /// `{"food": "<name>"}`.
    pub fn food(name: &str, now: &Zoned) -> Broadcast {
        Broadcast {
            text: format!("{{\"food\": \"{name}\"}}"),
            headers: headers(
                "/herald/producer".to_owned(),
                "herald.food",
                "application/json",
                now.timestamp(),
            ),
            timestamp: now.timestamp().as_millisecond(),
        }
    }

    /// The size of the value and the headers in bytes, without Kafka's overhead.
    pub fn bytes(&self) -> usize {
        let headers = self.headers.iter();
        self.text.len()
            + headers
                .map(|(key, value)| key.len() + value.len())
                .sum::<usize>()
    }
}

fn headers(
    source: String,
    kind: &str,
    content_type: &str,
    time: Timestamp,
) -> Vec<(&'static str, String)> {
    vec![
        ("ce_specversion", "1.0".to_owned()),
        ("ce_id", format!("{:032x}", rand::random::<u128>())),
        ("ce_source", source),
        ("ce_type", kind.to_owned()),
        ("ce_time", rfc3339(time)),
        ("content-type", content_type.to_owned()),
        ("traceparent", traceparent()),
    ]
}

fn rfc3339(at: Timestamp) -> String {
    format!("{at:.3}")
}

/// A new trace: `version-trace-parent-flags`. An id of zeros would be invalid; the flags mean that the producer itself
/// records no span.
fn traceparent() -> String {
    let trace = rand::random_range(1..=u128::MAX);
    let parent = rand::random_range(1..=u64::MAX);
    format!("00-{trace:032x}-{parent:016x}-00")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn broadcast() -> Broadcast {
        let now: Zoned = "2026-01-31T09:08:07.125+01:00[Europe/Berlin]"
            .parse()
            .unwrap();
        Broadcast::new("dev", FACES[2], &now)
    }

    fn header<'a>(broadcast: &'a Broadcast, name: &str) -> &'a str {
        let mut values = broadcast.headers.iter().filter(|(key, _)| *key == name);
        let value = &values.next().expect("the header exists").1;
        assert!(values.next().is_none(), "{name} occurs once");
        value
    }

    #[test]
    fn the_text_is_the_contracts_in_local_time() {
        assert_eq!(
            broadcast().text,
            format!("Hello world from dev producer - 09:08:07\t{}", FACES[2])
        );
    }

    #[test]
    fn the_ten_faces_differ_and_fit_on_one_line() {
        assert_eq!(FACES.iter().collect::<BTreeSet<_>>().len(), 10);
        assert!(
            FACES
                .iter()
                .all(|face| !face.is_empty() && !face.contains(char::is_control))
        );
    }

    #[test]
    fn the_headers_are_cloudevents_in_binary_mode() {
        let message = broadcast();
        assert_eq!(header(&message, "ce_specversion"), "1.0");
        assert_eq!(header(&message, "ce_source"), "/herald/dev/producer");
        assert_eq!(header(&message, "ce_type"), "herald.broadcast");
        assert_eq!(header(&message, "ce_time"), "2026-01-31T08:08:07.125Z");
        assert_eq!(
            header(&message, "content-type"),
            "text/plain; charset=utf-8"
        );
        assert_eq!(message.timestamp, 1_769_846_887_125);
        assert_ne!(header(&message, "ce_id"), header(&broadcast(), "ce_id"));
    }

    #[test]
    fn a_food_is_an_object_with_its_name() {
        let message = Broadcast::food("foie-gras", &Zoned::now());
        assert_eq!(message.text, r#"{"food": "foie-gras"}"#);
        assert_eq!(header(&message, "content-type"), "application/json");
    }

    #[test]
    fn the_trace_context_is_valid() {
        let message = broadcast();
        let parts: Vec<&str> = header(&message, "traceparent").split('-').collect();
        assert_eq!((parts[0], parts[3], parts.len()), ("00", "00", 4));
        for (part, length) in [(parts[1], 32), (parts[2], 16)] {
            assert_eq!(part.len(), length);
            assert!(
                part.bytes()
                    .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
            );
            assert!(part.bytes().any(|byte| byte != b'0'));
        }
    }
}
