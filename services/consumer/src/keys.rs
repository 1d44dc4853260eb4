//! The keys that a client requests: it receives only records with one of them, and every gap.

use std::sync::Arc;

use crate::record::{Event, Payload};

/// The most keys of one client.
pub const MAX_KEYS: usize = 100;

/// The longest key, in bytes of UTF-8.
pub const MAX_KEY_BYTES: usize = 256;

/// At least one key, each once, in ascending order. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys(Arc<[Box<[u8]>]>);

impl Keys {
    /// The keys of a request; `None` if it names none, and wants all records.
    ///
    /// # Errors
    ///
    /// One sentence for the client.
    pub fn parse(given: &[String]) -> Result<Option<Self>, String> {
        if given.is_empty() {
            return Ok(None);
        }
        if given.len() > MAX_KEYS {
            return Err(format!(
                "there are {} keys; give at most {MAX_KEYS}",
                given.len()
            ));
        }
        for key in given {
            if key.is_empty() {
                return Err("a key is empty; give key a value, or leave it out".to_owned());
            }
            if key.len() > MAX_KEY_BYTES {
                return Err(format!(
                    "a key has {} bytes; it may have at most {MAX_KEY_BYTES}",
                    key.len()
                ));
            }
        }
        let mut keys: Vec<Box<[u8]>> = given.iter().map(|key| key.as_bytes().into()).collect();
        keys.sort_unstable();
        keys.dedup();
        Ok(Some(Self(keys.into())))
    }

    /// Whether a record with this key is wanted.
    pub fn contain(&self, key: Option<&[u8]>) -> bool {
        key.is_some_and(|key| self.0.binary_search_by(|own| (**own).cmp(key)).is_ok())
    }

    /// Whether the client receives an event: a record with one of the keys, or a gap, which may hide one.
    pub fn want(&self, event: &Event) -> bool {
        match &event.payload {
            Payload::Message(message) => self.contain(message.key.as_deref()),
            Payload::Gap(_) => true,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|key| &**key)
    }
}

/// Whether a client with these keys, or with none, receives an event.
pub fn want(keys: Option<&Keys>, event: &Event) -> bool {
    keys.is_none_or(|keys| keys.want(event))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(keys: &[&str]) -> Result<Option<Keys>, String> {
        Keys::parse(&keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_key_equals_its_bytes() {
        let keys = parse(&["b", "ä", "a", "b"]).unwrap().unwrap();
        assert_eq!(keys.iter().count(), 3);
        for key in ["a", "b", "ä"] {
            assert!(keys.contain(Some(key.as_bytes())));
        }
        assert!(!keys.contain(Some(b"c")) && !keys.contain(Some(b"")) && !keys.contain(None));
    }

    #[test]
    fn too_many_or_too_long_or_empty_keys_are_rejected_with_one_sentence() {
        assert_eq!(parse(&[]), Ok(None));
        assert!(parse(&["a"; MAX_KEYS]).is_ok());
        assert_eq!(
            parse(&["a"; MAX_KEYS + 1]).unwrap_err(),
            "there are 101 keys; give at most 100"
        );
        let long = "ä".repeat(MAX_KEY_BYTES / 2);
        assert!(parse(&[&long]).is_ok());
        assert_eq!(
            parse(&[&(long + "a")]).unwrap_err(),
            "a key has 257 bytes; it may have at most 256"
        );
        assert!(parse(&["a", ""]).is_err_and(|error| error.contains("empty")));
    }
}
