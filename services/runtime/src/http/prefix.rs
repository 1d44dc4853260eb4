//! The path below which a proxy publishes a service, if it passes requests on with it.

use std::fmt;
use std::str::FromStr;

use hyper::header::{HeaderValue, LOCATION};
use hyper::{Request, StatusCode, Uri};
use warp::Reply as _;
use warp::reply::Response;

use super::failure;

/// A path such as `/tools/herald`, without its last slash; if empty, there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathPrefix(String);

impl FromStr for PathPrefix {
    type Err = String;

    /// The last slash may be left out.
    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_suffix('/').unwrap_or(text);
        // The characters that no browser and no proxy writes in another way.
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
        let is_segment = |segment: &str| {
            !segment.is_empty() && !segment.starts_with('.') && segment.chars().all(is_plain)
        };
        let is_path = |path: &str| match path.strip_prefix('/') {
            Some(segments) => segments.split('/').all(is_segment),
            None => path.is_empty(),
        };
        is_path(path).then(|| Self(path.to_owned())).ok_or_else(|| {
            "give a path such as /tools/herald, of names that consist of letters, digits and -._~ and do not begin with a dot".to_owned()
        })
    }
}

impl PathPrefix {
    /// Removes the prefix from the path of a request, so that the routes need not know it.
    ///
    /// Returns the response to a request that has no route: the prefix without its last slash is redirected, because a page loads
    /// its files relative to its address; what is outside of the prefix is not found.
    pub fn strip<B>(&self, request: &mut Request<B>) -> Option<Response> {
        if self.0.is_empty() {
            return None;
        }
        let uri = request.uri();
        let rest = uri.path().strip_prefix(&self.0);
        match rest {
            Some("") => Some(self.redirect(uri.query())),
            Some(rest) if rest.starts_with('/') => {
                let query = uri.query().map(|query| format!("?{query}"));
                let rest = format!("{rest}{}", query.unwrap_or_default());
                let mut parts = uri.clone().into_parts();
                parts.path_and_query = Some(rest.parse().expect("a part of a path is one"));
                *request.uri_mut() = Uri::from_parts(parts).expect("only the path is another");
                None
            }
            _ => {
                let prefix = &self.0;
                let sentence = format!(
                    "there is nothing at this address; this server is below {prefix}/ (--path-prefix)"
                );
                Some(failure(StatusCode::NOT_FOUND, &sentence))
            }
        }
    }

    /// To the same address with its last slash. Relative, because only the proxies know the scheme, the host, and what comes
    /// before the prefix.
    fn redirect(&self, query: Option<&str>) -> Response {
        let (_, last) = self.0.rsplit_once('/').expect("it begins with a slash");
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        let location = HeaderValue::from_str(&format!("{last}/{query}")).expect("it was in a URI");
        let mut response = StatusCode::PERMANENT_REDIRECT.into_response();
        response.headers_mut().insert(LOCATION, location);
        response
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "/tools/herald";

    /// What is left of the address of a request, or the response and its `Location`.
    fn stripped(prefix: &str, uri: &str) -> Result<String, (u16, Option<String>)> {
        let mut request = Request::builder().uri(uri).body(()).unwrap();
        let prefix: PathPrefix = prefix.parse().unwrap();
        match prefix.strip(&mut request) {
            None => Ok(request.uri().to_string()),
            Some(response) => {
                let location = response.headers().get(LOCATION);
                let location = location.map(|location| location.to_str().unwrap().to_owned());
                Err((response.status().as_u16(), location))
            }
        }
    }

    #[test]
    fn the_prefix_is_removed_and_the_rest_stays() {
        for (uri, rest) in [
            ("/tools/herald/", "/"),
            (
                "/tools/herald/events?last=10&key=/a",
                "/events?last=10&key=/a",
            ),
            ("/tools/herald/socket.io/?EIO=4", "/socket.io/?EIO=4"),
            ("/tools/herald/videos/a%2Fb/likes", "/videos/a%2Fb/likes"),
            ("/tools/herald//events", "//events"),
            ("/tools/herald/tools/herald/", "/tools/herald/"),
            // As over HTTP/2, and as some proxies write it.
            (
                "https://herald.example:8443/tools/herald/ws?a",
                "https://herald.example:8443/ws?a",
            ),
        ] {
            assert_eq!(stripped(PREFIX, uri), Ok(rest.to_owned()), "{uri}");
        }
    }

    #[test]
    fn without_a_prefix_nothing_changes() {
        for prefix in ["", "/"] {
            assert_eq!(stripped(prefix, "/events?a"), Ok("/events?a".to_owned()));
        }
    }

    #[test]
    fn the_prefix_without_its_last_slash_is_redirected_relative_to_itself() {
        for (uri, location) in [
            ("/tools/herald", "herald/"),
            ("/tools/herald?topic=a&b=%20", "herald/?topic=a&b=%20"),
        ] {
            let redirected = (308, Some(location.to_owned()));
            assert_eq!(stripped(PREFIX, uri), Err(redirected), "{uri}");
        }
    }

    #[test]
    fn what_is_outside_of_the_prefix_is_not_found() {
        for uri in [
            "/",
            "/events",
            "/tools",
            "/tools/heralds",
            "/Tools/herald/",
            "*",
        ] {
            assert_eq!(stripped(PREFIX, uri), Err((404, None)), "{uri}");
        }
    }

    #[test]
    fn the_last_slash_of_the_option_may_be_left_out() {
        let parsed = |text: &str| text.parse::<PathPrefix>().unwrap().0;
        assert_eq!(parsed("/tools/herald/"), parsed("/tools/herald"));
        assert_eq!(parsed("/a-b/c.d/_~1"), "/a-b/c.d/_~1");
        assert_eq!([parsed(""), parsed("/")], ["", ""]);
    }

    #[test]
    fn what_is_no_plain_path_is_refused_with_an_example() {
        for bad in [
            "tools/herald",
            "//",
            "/tools//herald",
            "/tools/herald//",
            "/tools/../herald",
            "/./herald",
            "/..",
            "/.herald",
            "/herald?topic=a",
            "/herald#top",
            "/her ald",
            "/her%61ld",
            "/héraut",
            "https://herald.example/tools",
            "/tools/herald\n",
        ] {
            let error = bad.parse::<PathPrefix>().unwrap_err();
            assert!(
                error.starts_with("give a path such as /tools/herald"),
                "{bad}"
            );
        }
    }
}
