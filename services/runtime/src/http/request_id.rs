//! `X-Request-Id`: kept if a client or proxy sent one, otherwise generated, and returned in the response.

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

/// The header's name.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longer ids, and ids that are not printable ASCII, are replaced, because they appear in log lines.
const MAX_LENGTH: usize = 128;

/// The id of a request, stored as its extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(pub HeaderValue);

impl RequestId {
    /// The id that was sent, or a new one of 16 hexadecimal digits.
    pub fn of(headers: &HeaderMap) -> Self {
        let usable = |value: &&HeaderValue| {
            let bytes = value.as_bytes();
            (1..=MAX_LENGTH).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
        };
        let sent = headers.get(REQUEST_ID).filter(usable).cloned();
        Self(sent.unwrap_or_else(|| {
            HeaderValue::from_str(&format!("{:016x}", rand::random::<u64>()))
                .expect("hexadecimal digits are a header value")
        }))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_valid_id_is_kept_and_an_invalid_one_is_replaced() {
        let sent = |id: &str| {
            let value = HeaderValue::from_bytes(id.as_bytes()).unwrap();
            RequestId::of(&HeaderMap::from_iter([(REQUEST_ID, value)]))
        };
        assert_eq!(sent("abc-1").as_str(), "abc-1");
        for unusable in ["", "a b", "ä", &"x".repeat(129)] {
            assert_eq!(sent(unusable).as_str().len(), 16, "{unusable}");
        }
        assert_ne!(
            RequestId::of(&HeaderMap::new()),
            RequestId::of(&HeaderMap::new())
        );
    }
}
