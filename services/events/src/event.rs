//! One event of a frame.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::frame::Rule;

/// What an event reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Start,
    Event,
    End,
}

/// A valid event.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    pub kind: Kind,
    /// As the client gave it; finite.
    pub timestamp: f64,
    /// The whole event as it was sent, with all its fields.
    pub json: &'a str,
    id: Option<&'a RawValue>,
}

/// The fields with a rule; others are kept in the text.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
}

impl<'a> Event<'a> {
    pub(crate) fn parse(json: &'a RawValue) -> Result<Self, Rule> {
        let json = json.get();
        // A list of values would be accepted as a struct, too.
        if !json.starts_with('{') {
            return Err(Rule::NotAnObject);
        }
        let fields: Fields<'a> = serde_json::from_str(json).map_err(|_| Rule::RepeatedField)?;
        let timestamp = fields.timestamp.and_then(finite).ok_or(Rule::Timestamp)?;
        let kind = fields.kind.and_then(kind).ok_or(Rule::Type)?;
        if fields.name.is_some_and(|name| !is_string(name)) {
            return Err(Rule::Name);
        }
        Ok(Self {
            kind,
            timestamp,
            json,
            id: fields.id,
        })
    }

    /// Equal for events that are the same event sent again: with equal `id` (a string or a number), or without one with equal
    /// content at the same place of an equal frame, of which this is the digest.
    pub fn identity(&self, frame: &FrameDigest, index: usize) -> [u8; 16] {
        let mut hasher = Sha256::new();
        hasher.update([match self.kind {
            Kind::Start => 0,
            Kind::Event => 1,
            Kind::End => 2,
        }]);
        match self.id.and_then(comparable) {
            Some(id) => {
                hasher.update(b"id");
                hasher.update(id.as_bytes());
            }
            None => {
                hasher.update(b"at");
                hasher.update(frame.0);
                hasher.update(u64::try_from(index).expect("an index fits").to_be_bytes());
            }
        }
        half(hasher)
    }
}

/// Identifies a frame by its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameDigest([u8; 16]);

impl FrameDigest {
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(bytes);
        Self(half(hasher))
    }
}

fn half(hasher: Sha256) -> [u8; 16] {
    let digest = hasher.finalize();
    std::array::from_fn(|index| digest[index])
}

fn is_string(value: &RawValue) -> bool {
    value.get().starts_with('"')
}

fn is_number(value: &RawValue) -> bool {
    value
        .get()
        .starts_with(|c: char| c == '-' || c.is_ascii_digit())
}

fn finite(value: &RawValue) -> Option<f64> {
    // serde_json rejects what is not finite, such as 1e400.
    is_number(value)
        .then(|| serde_json::from_str::<f64>(value.get()).ok())?
        .filter(|number| number.is_finite())
}

fn kind(value: &RawValue) -> Option<Kind> {
    match &*serde_json::from_str::<Cow<'_, str>>(value.get()).ok()? {
        "SESSION_START" => Some(Kind::Start),
        "EVENT" => Some(Kind::Event),
        "SESSION_END" => Some(Kind::End),
        _ => None,
    }
}

/// The id such that equal ids are equal texts: a number as it is written, a string in one way of writing it. Other values do not
/// identify an event.
fn comparable(id: &RawValue) -> Option<String> {
    if is_number(id) {
        return Some(id.get().to_owned());
    }
    let text = serde_json::from_str::<String>(id.get()).ok()?;
    Some(format!("\"{text}"))
}
