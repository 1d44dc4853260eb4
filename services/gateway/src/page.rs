//! The page to try the gateway, and the description of its endpoints; both are embedded in the binary.

use herald_runtime::http::failure;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY,
};
use hyper::{Method, StatusCode};
use warp::Reply as _;
use warp::reply::Response;

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

const FILES: &[(&str, &str, &str)] = &[
    (
        "/",
        "text/html; charset=utf-8",
        include_str!("page/index.html"),
    ),
    (
        "/page.css",
        "text/css; charset=utf-8",
        include_str!("page/page.css"),
    ),
    ("/page.js", JAVASCRIPT, include_str!("page/page.js")),
    ("/session.js", JAVASCRIPT, include_str!("page/session.js")),
    ("/data.js", JAVASCRIPT, include_str!("page/data.js")),
    ("/words.js", JAVASCRIPT, include_str!("page/words.js")),
    (
        "/openapi.json",
        "application/json",
        include_str!("openapi.json"),
    ),
];

/// Scripts, styles and connections of our own origin and nothing else, so that an event can never become code.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The file at this path, if there is one. A HEAD is answered like a GET; hyper omits the body.
pub fn file(method: &Method, path: &str) -> Option<Response> {
    let &(_, kind, text) = FILES.iter().find(|(name, ..)| *name == path)?;
    if method != Method::GET && method != Method::HEAD {
        let sentence = "this endpoint only supports GET";
        let mut response = failure(StatusCode::METHOD_NOT_ALLOWED, sentence);
        let allow = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allow);
        return Some(response);
    }
    let mut response = text.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    // The files change with the binary, but their names stay the same.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first two rules of a style sheet: the fonts and colours, light and dark.
    fn tokens(css: &str) -> Vec<&str> {
        let end = css.find("\n*,").expect("the rule of all elements");
        let lines = css[..end].lines();
        lines.filter(|line| !line.contains("--time")).collect()
    }

    #[test]
    fn the_page_has_the_fonts_and_colours_of_the_broadcast_page() {
        let ours = include_str!("page/page.css");
        let theirs = include_str!("../../consumer/src/page/page.css");
        assert_eq!(tokens(ours), tokens(theirs));
    }

    #[test]
    fn each_file_that_the_page_loads_is_served() {
        for (_, _, text) in FILES
            .iter()
            .filter(|(_, kind, _)| *kind != "application/json")
        {
            let loaded = text.split('"').filter_map(|part| {
                let name = part.strip_prefix("./").unwrap_or(part);
                (name.ends_with(".js") || name.ends_with(".css")).then_some(name)
            });
            for name in loaded {
                assert!(file(&Method::GET, &format!("/{name}")).is_some(), "{name}");
            }
        }
        assert!(file(&Method::GET, "/other").is_none());
        let posted = file(&Method::POST, "/").unwrap();
        assert_eq!(posted.status(), StatusCode::METHOD_NOT_ALLOWED);
    }

    #[test]
    fn no_script_and_no_style_is_inline_and_nothing_is_loaded_from_elsewhere() {
        let html = include_str!("page/index.html");
        for inline in ["<style", "style=", "onclick", "https://"] {
            assert!(!html.contains(inline), "{inline}");
        }
        assert_eq!(
            html.matches("<script").count(),
            html.matches("<script type=\"module\" src=").count()
        );
    }
}
