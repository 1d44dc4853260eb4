//! The key of a record: the session id, as JSON or raw.

use std::fmt;
use std::str::FromStr;

use crate::{InvalidSessionId, SessionId};

/// How a record's key contains the session id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyFormat {
    /// As a JSON string, with its quotes.
    #[default]
    Json,
    /// As plain UTF-8, as the first version of the original did.
    Raw,
}

impl KeyFormat {
    /// The key of the records of a session.
    pub fn encode(self, id: &SessionId) -> String {
        match self {
            Self::Json => {
                serde_json::to_string(id.as_str()).expect("a string can be written as JSON")
            }
            Self::Raw => id.as_str().to_owned(),
        }
    }

    /// The session of a record with this key.
    ///
    /// # Errors
    ///
    /// If the key is missing, or contains no session id in this format.
    pub fn decode(self, key: Option<&[u8]>) -> Result<SessionId, KeyError> {
        let key = key.ok_or(KeyError::Missing)?;
        let text = match self {
            Self::Json => serde_json::from_slice(key).map_err(|_| KeyError::NotJson)?,
            Self::Raw => String::from_utf8(key.to_vec()).map_err(|_| KeyError::NotUtf8)?,
        };
        SessionId::new(text).map_err(KeyError::Invalid)
    }
}

impl fmt::Display for KeyFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Json => "json",
            Self::Raw => "raw",
        })
    }
}

impl FromStr for KeyFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "json" => Ok(Self::Json),
            "raw" => Ok(Self::Raw),
            _ => Err("give json or raw".to_owned()),
        }
    }
}

/// Why a key contains no session id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    Missing,
    NotJson,
    NotUtf8,
    Invalid(InvalidSessionId),
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("the record has no key"),
            Self::NotJson => f.write_str("the key is not a JSON string"),
            Self::NotUtf8 => f.write_str("the key is not UTF-8"),
            Self::Invalid(error) => write!(f, "the key is not a session id: {error}"),
        }
    }
}

impl std::error::Error for KeyError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_decoded_as_it_was_encoded() {
        let id = SessionId::new("a \"quoted\" id").unwrap();
        assert_eq!(KeyFormat::Json.encode(&id), r#""a \"quoted\" id""#);
        assert_eq!(KeyFormat::Raw.encode(&id), r#"a "quoted" id"#);
        for format in [KeyFormat::Json, KeyFormat::Raw] {
            assert_eq!(
                format.decode(Some(format.encode(&id).as_bytes())),
                Ok(id.clone())
            );
        }
    }

    #[test]
    fn a_key_without_a_session_id_is_an_error() {
        let json = |key| KeyFormat::Json.decode(key);
        assert_eq!(json(None), Err(KeyError::Missing));
        for key in [&b""[..], b"e6fa", b"1", b"null", b"\"\xff\""] {
            assert_eq!(json(Some(key)), Err(KeyError::NotJson), "{key:?}");
        }
        let nul = KeyError::Invalid(InvalidSessionId::Nul);
        assert_eq!(json(Some(br#""\u0000""#)), Err(nul));
        assert_eq!(KeyFormat::Raw.decode(Some(b"\xff")), Err(KeyError::NotUtf8));
    }
}
