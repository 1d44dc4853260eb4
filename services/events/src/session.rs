//! The id of a session.

use std::fmt;
use std::str::FromStr;

/// The longest id of a session, in bytes of UTF-8.
pub const MAX_SESSION_ID_BYTES: usize = 256;

/// The id of a session: 1 to 256 bytes of UTF-8 without NUL, which PostgreSQL cannot store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(String);

impl SessionId {
    /// # Errors
    ///
    /// If the text is not a session id; the error is for the client.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidSessionId> {
        let text = text.into();
        if text.is_empty() {
            Err(InvalidSessionId::Empty)
        } else if text.len() > MAX_SESSION_ID_BYTES {
            Err(InvalidSessionId::TooLong)
        } else if text.contains('\0') {
            Err(InvalidSessionId::Nul)
        } else {
            Ok(Self(text))
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SessionId {
    type Err = InvalidSessionId;

    fn from_str(text: &str) -> Result<Self, InvalidSessionId> {
        Self::new(text)
    }
}

/// Why a text is not a session id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidSessionId {
    Empty,
    TooLong,
    Nul,
}

impl fmt::Display for InvalidSessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a session id must not be empty"),
            Self::TooLong => write!(
                f,
                "a session id has at most {MAX_SESSION_ID_BYTES} bytes of UTF-8"
            ),
            Self::Nul => f.write_str("a session id must not contain NUL"),
        }
    }
}

impl std::error::Error for InvalidSessionId {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_1_to_256_bytes_without_nul() {
        assert!(SessionId::new("a").is_ok() && SessionId::new("ä".repeat(128)).is_ok());
        assert_eq!(SessionId::new(""), Err(InvalidSessionId::Empty));
        assert_eq!(
            SessionId::new("ä".repeat(129)),
            Err(InvalidSessionId::TooLong)
        );
        assert_eq!(SessionId::new("a\0b"), Err(InvalidSessionId::Nul));
    }
}
