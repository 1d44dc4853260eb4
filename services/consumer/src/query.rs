//! A stream's parameters, the same on every transport.

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::keys::Keys;
use crate::page::MAX_MESSAGES;

/// The name of the only parameter that may occur more than once.
pub const KEY: &str = "key";

/// The error of a query that cannot be parsed.
pub const UNREADABLE_QUERY: &str =
    "the query cannot be read; give each parameter but key once, as percent-encoded UTF-8";

/// The parameters of a stream: the query of a URL, or `auth` on Socket.IO.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct StreamQuery {
    /// Every `key`.
    #[serde(skip)]
    pub key: Vec<String>,
    pub topic: Option<String>,
    pub after: Option<String>,
    pub from: Option<String>,
    pub last: Option<String>,
    pub binary: Option<String>,
    pub format: Option<String>,
    /// All other parameters.
    #[serde(flatten)]
    pub other: HashMap<String, String>,
}

/// Parses the query of a URL: the values of every `key`, and all other parameters, each of which may occur once. `None` if it
/// is not percent-encoded UTF-8, or another parameter occurs twice.
pub fn parse<T: DeserializeOwned>(query: &str) -> Option<(Vec<String>, T)> {
    // The decoder would replace what is not UTF-8 by U+FFFD, which is another key.
    if !is_utf8(query) {
        return None;
    }
    let parameters: Vec<(String, String)> = serde_urlencoded::from_str(query).ok()?;
    let (keys, others): (Vec<_>, Vec<_>) =
        parameters.into_iter().partition(|(name, _)| name == KEY);
    let others = serde_urlencoded::to_string(others).ok()?;
    let keys: Vec<String> = keys.into_iter().map(|(_, key)| key).collect();
    Some((keys, serde_urlencoded::from_str(&others).ok()?))
}

/// Whether a percent-encoded text is UTF-8. An incomplete escape stands for itself, as for the decoder of queries.
fn is_utf8(encoded: &str) -> bool {
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let mut rest = encoded.as_bytes();
    let mut decoded = Vec::with_capacity(rest.len());
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        decoded.push(byte);
        if let (b'%', [high, low, after @ ..]) = (byte, after)
            && let (Some(high), Some(low)) = (digit(*high), digit(*low))
        {
            decoded.pop();
            decoded.push(high << 4 | low);
            rest = after;
        }
    }
    std::str::from_utf8(&decoded).is_ok()
}

/// Names under which clients send a cursor if they cannot send a header (such as React Native's), lower case and letters only.
const LAST_EVENT_ID: [&str; 2] = ["lasteventid", "lasteventsourceid"];

/// Names that other systems use for a position, in the same form. They are rejected, rather than silently ignored.
const POSITIONS: [&str; 14] = [
    "offset",
    "offsets",
    "fromoffset",
    "startoffset",
    "cursor",
    "since",
    "sinceid",
    "start",
    "startat",
    "begin",
    "position",
    "seek",
    "before",
    "until",
];

/// The cursor among the other parameters.
///
/// # Errors
///
/// If one of them looks like a position: one sentence for the client.
pub fn cursor_of(other: &HashMap<String, String>) -> Result<Option<&str>, String> {
    let plain = |name: &str| -> String {
        let kept = name.chars().filter(char::is_ascii_alphanumeric);
        kept.map(|letter| letter.to_ascii_lowercase()).collect()
    };
    let mut cursor = None;
    for (name, value) in other {
        let known = plain(name);
        if LAST_EVENT_ID.contains(&known.as_str()) {
            cursor = Some(value.as_str());
        } else if POSITIONS.contains(&known.as_str()) {
            return Err(format!(
                "{name:?} is not a parameter here; set the start with after (a cursor), from (earliest or a time) or last (a number)"
            ));
        }
    }
    Ok(cursor)
}

#[derive(Clone, Debug, PartialEq)]
pub enum Start {
    Live,
    After(String),
    Earliest,
    /// Milliseconds since 1970.
    Time(i64),
    Last(usize),
    /// With the last record of each key.
    LatestPerKey,
}

impl StreamQuery {
    /// Parses the query of a URL; `None` if it cannot be read.
    pub fn parse(query: &str) -> Option<Self> {
        let (key, others) = parse::<Self>(query)?;
        Some(Self { key, ..others })
    }

    /// The keys that the client wants; `None` for all records.
    ///
    /// # Errors
    ///
    /// One sentence for the client.
    pub fn keys(&self) -> Result<Option<Keys>, String> {
        Keys::parse(&self.key)
    }

    /// Where to start: `Last-Event-ID` takes precedence over `after`, then `from`, then `last`. A browser that reconnects
    /// sends its header to the same URL, so the others are not even validated.
    ///
    /// # Errors
    ///
    /// One sentence for the client.
    pub fn start(&self, last_event_id: Option<&str>) -> Result<Start, String> {
        // A client that has no cursor yet may send an empty value.
        let given =
            |value: Option<&str>| value.filter(|value| !value.is_empty()).map(str::to_owned);
        let named = cursor_of(&self.other)?;
        let cursor = given(last_event_id)
            .or_else(|| given(named))
            .or_else(|| given(self.after.as_deref()));
        if let Some(cursor) = cursor {
            return Ok(Start::After(cursor));
        }
        match given(self.from.as_deref()).as_deref() {
            Some(LATEST_PER_KEY) => return Ok(Start::LatestPerKey),
            Some(from) => return start_from(from),
            None => {}
        }
        match given(self.last.as_deref()) {
            Some(last) => number("last", &last, 0).map(Start::Last),
            None => Ok(Start::Live),
        }
    }

    /// Whether values that are not UTF-8 are sent as base64.
    pub fn binary(&self) -> Result<bool, String> {
        choice("binary", self.binary.as_deref(), &[("base64", true)], false)
    }

    /// Whether server-sent events carry message objects.
    pub fn json(&self) -> Result<bool, String> {
        choice(
            "format",
            self.format.as_deref(),
            &[("json", true), ("text", false)],
            false,
        )
    }
}

/// The `from` of a stream that starts with the last record of each key.
const LATEST_PER_KEY: &str = "latest-per-key";

/// Parses `earliest` or a time.
pub fn start_from(from: &str) -> Result<Start, String> {
    if from == "earliest" {
        return Ok(Start::Earliest);
    }
    // An unescaped "+" in the URL arrives as a space.
    match from.replace(' ', "+").parse::<jiff::Timestamp>() {
        // Kafka has no time before 1970.
        Ok(time) => Ok(Start::Time(time.as_millisecond().max(0))),
        Err(_) => Err(format!(
            "from is {from:?}; it must be \"earliest\" or a time such as 2026-01-31T12:00:00Z"
        )),
    }
}

/// Parses a number of messages between `least` and [`MAX_MESSAGES`].
pub fn number(name: &str, value: &str, least: usize) -> Result<usize, String> {
    match value.parse() {
        Ok(number) if (least..=MAX_MESSAGES).contains(&number) => Ok(number),
        _ => Err(format!(
            "{name} is {value:?}; it must be a number from {least} to {MAX_MESSAGES}"
        )),
    }
}

fn choice(
    name: &str,
    value: Option<&str>,
    choices: &[(&str, bool)],
    default: bool,
) -> Result<bool, String> {
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        return Ok(default);
    };
    let found = choices
        .iter()
        .find(|(choice, _)| *choice == value)
        .map(|(_, meaning)| *meaning);
    let names: Vec<&str> = choices.iter().map(|(choice, _)| *choice).collect();
    found.ok_or_else(|| format!("{name} is {value:?}; it must be {}", names.join(" or ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(after: &str, from: &str, last: &str) -> StreamQuery {
        let given = |value: &str| (!value.is_empty()).then(|| value.to_owned());
        StreamQuery {
            after: given(after),
            from: given(from),
            last: given(last),
            ..StreamQuery::default()
        }
    }

    #[test]
    fn the_header_takes_precedence_over_after_then_from_then_last() {
        assert_eq!(
            query("b", "earliest", "3").start(Some("a")),
            Ok(Start::After("a".into()))
        );
        assert_eq!(
            query("b", "nonsense", "3").start(None),
            Ok(Start::After("b".into()))
        );
        assert_eq!(
            query("", "earliest", "900").start(Some("")),
            Ok(Start::Earliest)
        );
        assert_eq!(query("", "", "3").start(None), Ok(Start::Last(3)));
        assert_eq!(query("", "", "").start(None), Ok(Start::Live));
    }

    #[test]
    fn a_cursor_may_have_its_headers_name_but_other_systems_positions_are_rejected() {
        let with = |name: &str| StreamQuery {
            other: HashMap::from([(name.to_owned(), "a".to_owned())]),
            ..query("", "", "3")
        };
        for name in ["lastEventId", "Last-Event-ID", "last_event_id"] {
            assert_eq!(
                with(name).start(None),
                Ok(Start::After("a".into())),
                "{name}"
            );
        }
        for name in ["offset", "Since", "start_offset"] {
            let rejected = with(name).start(None);
            assert!(
                rejected.is_err_and(|error| error.contains(name) && error.contains("after")),
                "{name}"
            );
        }
        for name in ["_", "t", "access"] {
            assert_eq!(with(name).start(None), Ok(Start::Last(3)), "{name}");
        }
    }

    #[test]
    fn only_key_may_occur_more_than_once() {
        let query = StreamQuery::parse("key=a&topic=t&key=b%20c&x=1&x=2&key=d+e").unwrap();
        assert_eq!(query.key, ["a", "b c", "d e"]);
        assert_eq!(query.topic.as_deref(), Some("t"));
        assert!(!query.other.contains_key("key"));
        assert!(StreamQuery::parse("last=1&key=a&last=2").is_none());
        assert!(
            StreamQuery::parse("offset=1&key=a")
                .unwrap()
                .start(None)
                .is_err()
        );
        assert!(StreamQuery::parse("key=").unwrap().keys().is_err());
        assert_eq!(StreamQuery::parse("").unwrap().keys(), Ok(None));
        assert!(StreamQuery::parse("key=%ff").is_none());
        assert!(StreamQuery::parse("key=%ff&after=%EF%BF%BD").is_none());
        assert!(StreamQuery::parse("topic=%C3%28").is_none());
        for same in ["key=%EF%BF%BD", "key=%ef%bf%bd", "key=\u{FFFD}"] {
            assert_eq!(StreamQuery::parse(same).unwrap().key, ["\u{FFFD}"]);
        }
        assert_eq!(StreamQuery::parse("key=100%&x=%4").unwrap().key, ["100%"]);
    }

    #[test]
    fn the_latest_of_each_key_is_a_start_but_no_page() {
        assert_eq!(
            query("", "latest-per-key", "3").start(None),
            Ok(Start::LatestPerKey)
        );
        assert!(start_from("latest-per-key").is_err());
    }

    #[test]
    fn a_time_is_rfc_3339_even_with_an_unescaped_plus() {
        assert_eq!(
            start_from("1970-01-01T01:00:01+01:00"),
            Ok(Start::Time(1000))
        );
        assert_eq!(
            start_from("1970-01-01T01:00:01 01:00"),
            Ok(Start::Time(1000))
        );
        assert_eq!(start_from("1960-01-01T00:00:00Z"), Ok(Start::Time(0)));
        assert!(start_from("yesterday").is_err_and(|error| error.contains("yesterday")));
    }

    #[test]
    fn last_is_at_most_500() {
        assert_eq!(query("", "", "500").start(None), Ok(Start::Last(500)));
        for wrong in ["501", "-1", "x", "1.5"] {
            assert!(
                query("", "", wrong)
                    .start(None)
                    .is_err_and(|error| error.contains(wrong)),
                "{wrong}"
            );
        }
    }
}
