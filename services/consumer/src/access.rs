//! Who may read: the one function that every door asks before a stream or an answer starts.

use std::time::Instant;

use hyper::HeaderMap;
use hyper::header::{HOST, HeaderValue, ORIGIN};

/// The origins of pages that may read, beside the consumer's own.
#[derive(Clone, Debug, Default)]
pub struct Origins(Vec<String>);

/// What a client may do, and until when.
#[derive(Clone, Copy, Debug, Default)]
pub struct Permit {
    /// At this time its streams end with `expired`; `None` is never.
    pub until: Option<Instant>,
}

impl Permit {
    /// Waits until the permission ends.
    pub async fn expired(self) {
        match self.until {
            Some(until) => tokio::time::sleep_until(until.into()).await,
            None => std::future::pending().await,
        }
    }
}

impl Origins {
    /// Reads a list such as `https://a.example,https://b.example`, or `*`.
    ///
    /// # Errors
    ///
    /// A sentence that names the entry that is no origin.
    pub fn parse(list: &str) -> Result<Self, String> {
        let entries: Vec<String> = list
            .split(',')
            .map(|entry| entry.trim().to_ascii_lowercase())
            .filter(|entry| !entry.is_empty())
            .collect();
        for entry in &entries {
            let host = entry
                .strip_prefix("https://")
                .or_else(|| entry.strip_prefix("http://"));
            if entry != "*"
                && host
                    .is_none_or(|host| host.is_empty() || host.contains(['/', '?', '#', '*', ' ']))
            {
                return Err(format!(
                    "{entry:?} is not an origin; write one such as https://app.example, or *"
                ));
            }
        }
        Ok(Self(entries))
    }

    /// Whether a client may read. One without an `Origin` is no page of another site: a tool, a server, or a page of ours.
    ///
    /// # Errors
    ///
    /// One sentence for the client.
    pub fn may_read(&self, headers: &HeaderMap) -> Result<Permit, String> {
        let Some(origin) = headers.get(ORIGIN) else {
            return Ok(Permit::default());
        };
        if same_host(origin, headers.get(HOST)) || self.lists(origin) {
            return Ok(Permit::default());
        }
        Err(format!(
            "pages of {:?} may not read here; --allowed-origins names those that may",
            String::from_utf8_lossy(origin.as_bytes())
        ))
    }

    /// The value of `Access-Control-Allow-Origin` for a page of another site that is listed. `*` is never answered with
    /// the page's own origin, and credentials are never allowed, so a list of everyone gives nobody's cookies away.
    pub fn allow_header(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(ORIGIN).filter(|origin| self.lists(origin))?;
        let everyone = self.0.iter().any(|entry| entry == "*");
        Some(if everyone {
            HeaderValue::from_static("*")
        } else {
            origin.clone()
        })
    }

    fn lists(&self, origin: &HeaderValue) -> bool {
        self.0
            .iter()
            .any(|entry| entry == "*" || entry.as_bytes().eq_ignore_ascii_case(origin.as_bytes()))
    }
}

/// Whether an origin is of the host that the request was sent to. The scheme is not compared: TLS ends before us.
fn same_host(origin: &HeaderValue, host: Option<&HeaderValue>) -> bool {
    let (Ok(origin), Some(Ok(host))) = (origin.to_str(), host.map(HeaderValue::to_str)) else {
        return false;
    };
    let Some((scheme, of)) = origin.split_once("://") else {
        return false;
    };
    let port = match scheme {
        "https" => ":443",
        "http" => ":80",
        _ => return false,
    };
    of.trim_end_matches(port)
        .eq_ignore_ascii_case(host.trim_end_matches(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(origin: &str, host: &str) -> HeaderMap {
        [(ORIGIN, origin), (HOST, host)]
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| (name, value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn a_page_of_ours_and_a_tool_may_read_and_a_page_of_another_site_may_not() {
        let nobody = Origins::default();
        assert!(
            nobody
                .may_read(&headers("http://localhost:8001", "localhost:8001"))
                .is_ok()
        );
        assert!(
            nobody
                .may_read(&headers("https://a.example", "a.example"))
                .is_ok()
        );
        assert!(nobody.may_read(&headers("", "localhost:8001")).is_ok());
        for foreign in [
            "http://evil.example",
            "http://localhost:8002",
            "null",
            "file://",
        ] {
            assert!(
                nobody
                    .may_read(&headers(foreign, "localhost:8001"))
                    .is_err(),
                "{foreign}"
            );
        }
    }

    #[test]
    fn a_listed_origin_may_read_and_is_named_in_the_answer() {
        let origins = Origins::parse("https://a.example, https://B.example").unwrap();
        let request = headers("https://b.example", "herald");
        assert!(origins.may_read(&request).is_ok());
        assert_eq!(origins.allow_header(&request).unwrap(), "https://b.example");
        assert_eq!(
            origins.allow_header(&headers("https://c.example", "herald")),
            None
        );
    }

    #[test]
    fn everyone_is_answered_with_a_star() {
        assert_eq!(
            Origins::parse("*")
                .unwrap()
                .allow_header(&headers("https://c.example", "herald"))
                .unwrap(),
            "*"
        );
    }

    #[test]
    fn an_entry_that_is_no_origin_is_refused_by_name() {
        for wrong in [
            "a.example",
            "https://a.example/",
            "https://",
            "https://*.example",
        ] {
            assert!(
                Origins::parse(wrong).is_err_and(|error| error.contains(wrong)),
                "{wrong}"
            );
        }
    }
}
