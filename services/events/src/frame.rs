//! A frame: a JSON array of events.

use std::fmt;

use serde_json::value::RawValue;

use crate::Event;
use crate::event::FrameDigest;

/// The deepest nesting of arrays and objects in a frame, including the frame's own array. Many JSON parsers, which read the
/// events later, fail on a few hundred.
pub const MAX_DEPTH: usize = 64;

/// What a frame may contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub events: usize,
}

impl Limits {
    /// Any number of events, for frames that were accepted before.
    pub const NONE: Self = Self { events: usize::MAX };
}

impl Default for Limits {
    fn default() -> Self {
        Self { events: 1000 }
    }
}

/// A valid frame.
#[derive(Debug)]
pub struct Frame<'a> {
    /// At least one, in the order of the frame.
    pub events: Vec<Event<'a>>,
    digest: FrameDigest,
}

impl<'a> Frame<'a> {
    /// # Errors
    ///
    /// If a rule is broken; the error names it, and the element, for the client.
    pub fn parse(bytes: &'a [u8], limits: Limits) -> Result<Self, FrameError> {
        let broken = |rule| FrameError {
            element: None,
            rule,
        };
        let text = std::str::from_utf8(bytes).map_err(|_| broken(Rule::NotUtf8))?;
        if depth(bytes) > MAX_DEPTH {
            return Err(broken(Rule::TooDeep));
        }
        if !text.trim_ascii_start().starts_with('[') {
            let is_json = serde_json::from_str::<&RawValue>(text).is_ok();
            return Err(broken(if is_json {
                Rule::NotAnArray
            } else {
                Rule::NotJson
            }));
        }
        let elements: Vec<&RawValue> =
            serde_json::from_str(text).map_err(|_| broken(Rule::NotJson))?;
        if elements.is_empty() {
            return Err(broken(Rule::Empty));
        }
        if elements.len() > limits.events {
            return Err(broken(Rule::TooManyEvents(limits.events)));
        }
        let mut events = Vec::with_capacity(elements.len());
        for (index, element) in elements.into_iter().enumerate() {
            let event = Event::parse(element).map_err(|rule| FrameError {
                element: Some(index),
                rule,
            })?;
            events.push(event);
        }
        Ok(Self {
            events,
            digest: FrameDigest::of(bytes),
        })
    }

    /// The identity of each event within its session; see [`Event::identity`].
    pub fn identities(&self) -> impl Iterator<Item = [u8; 16]> {
        let identity = |(index, event): (usize, &Event<'_>)| event.identity(&self.digest, index);
        self.events.iter().enumerate().map(identity)
    }
}

/// A frame that breaks a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameError {
    /// The element of the array, from 0; `None` if the frame as a whole breaks the rule.
    pub element: Option<usize>,
    pub rule: Rule,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.element {
            Some(element) => write!(f, "element {element}: {}", self.rule),
            None => write!(f, "{}", self.rule),
        }
    }
}

impl std::error::Error for FrameError {}

/// The rules of frames and events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    NotUtf8,
    NotJson,
    NotAnArray,
    Empty,
    TooManyEvents(usize),
    TooDeep,
    NotAnObject,
    RepeatedField,
    Timestamp,
    Type,
    Name,
}

impl Rule {
    /// A label for metrics, of a closed set.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotUtf8 => "not-utf8",
            Self::NotJson => "not-json",
            Self::NotAnArray => "not-an-array",
            Self::Empty => "empty",
            Self::TooManyEvents(_) => "too-many-events",
            Self::TooDeep => "too-deep",
            Self::NotAnObject => "not-an-object",
            Self::RepeatedField => "repeated-field",
            Self::Timestamp => "timestamp",
            Self::Type => "type",
            Self::Name => "name",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotUtf8 => f.write_str("a frame must be UTF-8"),
            Self::NotJson => f.write_str("a frame must be JSON"),
            Self::NotAnArray => f.write_str("a frame must be a JSON array of events"),
            Self::Empty => f.write_str("a frame must contain at least one event"),
            Self::TooManyEvents(limit) => write!(f, "a frame has at most {limit} events"),
            Self::TooDeep => write!(
                f,
                "a frame must not be nested deeper than {MAX_DEPTH} levels"
            ),
            Self::NotAnObject => f.write_str("an event must be a JSON object"),
            Self::RepeatedField => f.write_str(
                "\"timestamp\", \"type\", \"name\" and \"id\" must not appear more than once",
            ),
            Self::Timestamp => f.write_str("\"timestamp\" must be a finite number"),
            Self::Type => {
                f.write_str("\"type\" must be \"SESSION_START\", \"SESSION_END\" or \"EVENT\"")
            }
            Self::Name => f.write_str("\"name\" must be a string"),
        }
    }
}

/// The deepest nesting of brackets outside of strings. serde_json has no limit of its own for values that it only skips.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for &byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Kind;

    fn error(frame: &str) -> String {
        let error = Frame::parse(frame.as_bytes(), Limits::default()).unwrap_err();
        error.to_string()
    }

    #[test]
    fn the_frames_of_the_original_are_valid_and_kept_as_sent() {
        let text = br#"[{"timestamp": 1569972082, "type": "SESSION_START", "session_id": "e6fa"},
            {"timestamp":1.5e9,"type":"EVENT","name":"a","x":{"deep":[1.10]}}, {"timestamp":-1,"type":"SESSION_END"}]"#;
        let frame = Frame::parse(text, Limits::default()).unwrap();
        let kinds: Vec<Kind> = frame.events.iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [Kind::Start, Kind::Event, Kind::End]);
        assert_eq!(frame.events[1].timestamp, 1.5e9);
        assert_eq!(
            frame.events[1].json,
            r#"{"timestamp":1.5e9,"type":"EVENT","name":"a","x":{"deep":[1.10]}}"#
        );
    }

    #[test]
    fn an_error_names_the_element_and_the_rule() {
        let good = r#"{"timestamp":1,"type":"EVENT"}"#;
        let cases = [
            ("", "a frame must be JSON"),
            ("[1", "a frame must be JSON"),
            ("{}", "a frame must be a JSON array of events"),
            ("\"a\"", "a frame must be a JSON array of events"),
            ("[]", "a frame must contain at least one event"),
            ("[7]", "element 0: an event must be a JSON object"),
            (
                r#"[[1,"EVENT"]]"#,
                "element 0: an event must be a JSON object",
            ),
            ("[{}]", "element 0: \"timestamp\" must be a finite number"),
        ];
        for (frame, expected) in cases {
            assert_eq!(error(frame), expected, "{frame}");
        }
        for timestamp in ["\"1\"", "null", "1e400", "true"] {
            let frame = format!(r#"[{good},{{"timestamp":{timestamp},"type":"EVENT"}}]"#);
            assert_eq!(
                error(&frame),
                "element 1: \"timestamp\" must be a finite number"
            );
        }
        let of = |fields: &str| error(&format!(r#"[{good},{{"timestamp":1,{fields}}}]"#));
        let types = "element 1: \"type\" must be \"SESSION_START\", \"SESSION_END\" or \"EVENT\"";
        assert_eq!(of(r#""type":"OTHER""#), types);
        assert_eq!(of(r#""type":1"#), types);
        assert_eq!(
            of(r#""type":"EVENT","name":1"#),
            "element 1: \"name\" must be a string"
        );
        assert!(of(r#""type":"EVENT","timestamp":2"#).contains("more than once"));
    }

    #[test]
    fn a_frame_that_is_too_deep_or_too_long_is_rejected() {
        let deep = |levels: usize| {
            let (open, close) = ("[".repeat(levels), "]".repeat(levels));
            format!(r#"[{{"timestamp":1,"type":"EVENT","x":{open}{close}}}]"#)
        };
        assert!(Frame::parse(deep(62).as_bytes(), Limits::default()).is_ok());
        assert!(error(&deep(63)).contains("64 levels"));
        assert!(error(&deep(1_000_000)).contains("64 levels"));
        let brackets = r#"[{"timestamp":1,"type":"EVENT","name":"\"[[[["}]"#;
        assert_eq!(depth(brackets.as_bytes()), 2);

        let events = vec![r#"{"timestamp":1,"type":"EVENT"}"#; 1001].join(",");
        let many = format!("[{events}]");
        assert_eq!(error(&many), "a frame has at most 1000 events");
        assert!(Frame::parse(many.as_bytes(), Limits::NONE).is_ok());
    }

    fn identities(frame: &str) -> Vec<[u8; 16]> {
        let frame = Frame::parse(frame.as_bytes(), Limits::NONE).unwrap();
        frame.identities().collect()
    }

    #[test]
    fn events_with_an_id_are_the_same_in_every_frame() {
        let event = |id: &str| format!(r#"{{"timestamp":1,"type":"EVENT","id":{id}}}"#);
        let one = identities(&format!("[{}]", event(r#""a""#)))[0];
        let again = identities(&format!("[{},{}]", event("7"), event(r#""\u0061""#)));
        assert_eq!(one, again[1]);
        assert_ne!(one, again[0]);
        let number = identities(&format!("[{}]", event("1")))[0];
        let text = identities(&format!("[{}]", event(r#""1""#)))[0];
        assert_ne!(number, text);
    }

    #[test]
    fn events_without_an_id_are_the_same_in_equal_frames_only() {
        let twice = r#"[{"timestamp":1,"type":"EVENT"},{"timestamp":1,"type":"EVENT"}]"#;
        let ids = identities(twice);
        assert_ne!(ids[0], ids[1]);
        assert_eq!(ids, identities(twice));
        assert_ne!(ids[0], identities(&twice.replace(',', ", "))[0]);
        for useless in ["null", "{}", "true"] {
            let frame = |id| format!(r#"[{{"timestamp":1,"type":"EVENT","id":{id}}}]"#);
            assert_ne!(
                identities(&frame(useless)),
                identities(&format!(" {}", frame(useless)))
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            _ = Frame::parse(&bytes, Limits::default());
        }
    }
}
