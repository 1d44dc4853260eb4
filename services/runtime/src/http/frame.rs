//! Which pages may show a service's own in a frame: protection against clickjacking.

use hyper::header::HeaderValue;

use super::origin::entries;

/// The sources of the directive `frame-ancestors`; if empty, no page may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrameAncestors(Vec<String>);

impl FrameAncestors {
    /// Parses a list such as `https://a.example,https://b.example:8443`; `self` is the service's own origin.
    ///
    /// # Errors
    ///
    /// A sentence that names the entry that is not an origin.
    pub fn parse(list: &str) -> Result<Self, String> {
        const EVERY: &str = "\"*\" would let every page show this one in a frame, and mislead its visitors; list the origins";
        let source = |entry: String| {
            if entry == "self" || entry == "'self'" {
                return Ok("'self'".to_owned());
            }
            if entry == "*" {
                return Err(EVERY.to_owned());
            }
            is_origin(&entry).then_some(entry.clone()).ok_or_else(|| {
                format!(
                    "{entry:?} is not an origin; write one such as https://app.example, or self"
                )
            })
        };
        let sources = entries(list).into_iter().map(source);
        Ok(Self(sources.collect::<Result<_, _>>()?))
    }

    /// A `Content-Security-Policy` of these directives and `frame-ancestors`.
    pub fn policy(&self, directives: &str) -> HeaderValue {
        let sources = match self.0.as_slice() {
            [] => "'none'".to_owned(),
            sources => sources.join(" "),
        };
        let policy = format!("{directives}; frame-ancestors {sources}");
        HeaderValue::from_str(&policy).expect("an origin has no character that ends a header")
    }
}

/// Nothing else can be in a policy: a space would begin another source, a semicolon another directive, and a comma another policy.
/// (A policy has no way to write an IPv6 address.)
fn is_origin(entry: &str) -> bool {
    let rest = entry.strip_prefix("https://");
    let Some(rest) = rest.or_else(|| entry.strip_prefix("http://")) else {
        return false;
    };
    let (host, port) = match rest.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (rest, None),
    };
    let is_port = |port: &str| {
        let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
        is_number && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
    !host.is_empty() && host.bytes().all(is_legal) && port.is_none_or(is_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(list: &str) -> String {
        let policy = FrameAncestors::parse(list).unwrap().policy("a 'none'");
        policy.to_str().unwrap().to_owned()
    }

    #[test]
    fn only_listed_origins_may_show_a_page_in_a_frame() {
        assert_eq!(policy(""), "a 'none'; frame-ancestors 'none'");
        assert_eq!(
            policy("https://A.example, http://10.0.0.1:8080,self"),
            "a 'none'; frame-ancestors https://a.example http://10.0.0.1:8080 'self'"
        );
        assert_eq!(policy("'self'"), policy("self"));
    }

    #[test]
    fn an_entry_that_is_not_an_origin_is_rejected_by_name() {
        for wrong in [
            "a.example",
            "https://",
            "https://a.example/",
            "https://a.example:",
            "https://a.example:+1",
            "https://a.example:65536",
            "https://*.example",
            "https://a.example https://b.example",
            "https://a.example; script-src *",
            "https://a.example\r\nx: y",
            "https://[::1]",
            "https:",
            "'none'",
            "*",
        ] {
            let sentence = FrameAncestors::parse(wrong).unwrap_err();
            assert!(sentence.contains(&format!("{wrong:?}")), "{sentence}");
        }
    }
}
