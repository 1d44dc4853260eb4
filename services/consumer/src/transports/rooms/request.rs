//! What a client sends about rooms: `{"rooms": ["<id>", …]}`.

use serde_json::Value as Json;

use crate::keys::{MAX_KEY_BYTES, MAX_KEYS};

/// The most rooms of one client. A page registers again whenever its list changes, and need not leave.
pub const MAX_ROOMS: usize = 10_000;

/// Why a request is invalid: the label in metrics, and one sentence for the client.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid {
    pub reason: &'static str,
    pub sentence: String,
}

impl Invalid {
    pub fn new(reason: &'static str, sentence: impl Into<String>) -> Self {
        Self {
            reason,
            sentence: sentence.into(),
        }
    }
}

/// The rooms of a request: any number up to 100, each a string of 1 to 256 bytes.
pub fn rooms(payload: Option<&Json>) -> Result<Vec<&str>, Invalid> {
    let shape = || {
        Invalid::new(
            "shape",
            "the payload must be an object with rooms, an array of strings, such as {\"rooms\":[\"my-id\"]}",
        )
    };
    let rooms = payload.and_then(|payload| payload.get("rooms"));
    let rooms = rooms.and_then(Json::as_array).ok_or_else(shape)?;
    if rooms.len() > MAX_KEYS {
        let count = rooms.len();
        return Err(Invalid::new(
            "too-many",
            format!(
                "rooms has {count} entries; it may have at most {MAX_KEYS}, so register more with another request"
            ),
        ));
    }
    let names: Option<Vec<&str>> = rooms.iter().map(Json::as_str).collect();
    let names = names.ok_or_else(shape)?;
    for name in &names {
        if name.is_empty() {
            return Err(Invalid::new("empty", "a room is empty; give it a name"));
        }
        if name.len() > MAX_KEY_BYTES {
            let bytes = name.len();
            return Err(Invalid::new(
                "too-long",
                format!("a room has {bytes} bytes; it may have at most {MAX_KEY_BYTES}"),
            ));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rooms_are_an_array_of_at_most_100_strings_of_at_most_256_bytes() {
        for good in [
            json!({ "rooms": [] }),
            json!({ "rooms": ["a", "b"], "more": 1 }),
            json!({ "rooms": vec!["a"; 100] }),
            json!({ "rooms": ["a".repeat(256)] }),
        ] {
            assert!(rooms(Some(&good)).is_ok(), "{good}");
        }
        for (bad, reason) in [
            (json!(null), "shape"),
            (json!(["a"]), "shape"),
            (json!({ "rooms": "a" }), "shape"),
            (json!({ "rooms": ["a", 1] }), "shape"),
            (json!({ "rooms": vec!["a"; 101] }), "too-many"),
            (json!({ "rooms": ["ä".repeat(129)] }), "too-long"),
            (json!({ "rooms": [""] }), "empty"),
        ] {
            let invalid = rooms(Some(&bad)).unwrap_err();
            assert_eq!(invalid.reason, reason, "{bad}");
        }
        assert_eq!(rooms(None).unwrap_err().reason, "shape");
    }
}
