//! The pages, and the description of the endpoints; all are embedded in the binary.

use herald_runtime::http::{FrameAncestors, method_not_allowed};
use hyper::Method;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY,
};
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
    (
        "/counts",
        "text/html; charset=utf-8",
        include_str!("page/counts.html"),
    ),
    (
        "/counts.css",
        "text/css; charset=utf-8",
        include_str!("page/counts.css"),
    ),
    ("/counts.js", JAVASCRIPT, include_str!("page/counts.js")),
    (
        "/likes",
        "text/html; charset=utf-8",
        include_str!("page/likes.html"),
    ),
    (
        "/likes.css",
        "text/css; charset=utf-8",
        include_str!("page/likes.css"),
    ),
    ("/likes.js", JAVASCRIPT, include_str!("page/likes.js")),
    ("/nav.js", JAVASCRIPT, include_str!("page/nav.js")),
    ("/stream.js", JAVASCRIPT, include_str!("page/stream.js")),
    ("/page.js", JAVASCRIPT, include_str!("page/page.js")),
    ("/sentence.js", JAVASCRIPT, include_str!("page/sentence.js")),
    ("/session.js", JAVASCRIPT, include_str!("page/session.js")),
    ("/data.js", JAVASCRIPT, include_str!("page/data.js")),
    ("/words.js", JAVASCRIPT, include_str!("page/words.js")),
    (
        "/openapi.json",
        "application/json",
        include_str!("openapi.json"),
    ),
];

/// The files of the page of likes, which its own listener serves too.
const OF_LIKES: &[&str] = &[
    "/likes",
    "/page.css",
    "/likes.css",
    "/likes.js",
    "/stream.js",
    "/nav.js",
    "/sentence.js",
];

/// Scripts, styles and connections of our own origin and nothing else, so that an event can never become code; and the script in
/// index.html, by its hash.
const POLICY: &str = "default-src 'none'; script-src 'self' 'sha256-aeYx85mVCNrXH5e4wvlGrh2WclmPOJlfFHEvtnE/2ls='; \
                      style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'";

/// Whether a file is at this path.
pub fn exists(path: &str) -> bool {
    FILES.iter().any(|(name, ..)| *name == path)
}

/// Whether the page of likes consists of this file, among others.
pub fn is_of_likes(path: &str) -> bool {
    OF_LIKES.contains(&path)
}

/// The file at this path; there must be one. A HEAD is answered like a GET; hyper omits the body.
pub fn file(method: &Method, path: &str, ancestors: &FrameAncestors) -> Response {
    if method != Method::GET && method != Method::HEAD {
        return method_not_allowed("GET, HEAD");
    }
    let found = FILES.iter().find(|(name, ..)| *name == path);
    let &(_, kind, text) = found.expect("the path is that of a file");
    let mut response = text.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CONTENT_SECURITY_POLICY, ancestors.policy(POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    // The files change with the binary, but their names stay the same.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use sha2::{Digest as _, Sha256};

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
                assert!(exists(&format!("/{name}")), "{name}");
            }
        }
        assert!(!exists("/other"));
        assert_eq!(
            file(&Method::POST, "/", &FrameAncestors::default()).status(),
            405
        );
    }

    #[test]
    fn no_script_and_no_style_is_inline_and_nothing_is_loaded_from_elsewhere() {
        for (name, _, html) in FILES.iter().filter(|(_, kind, _)| kind.contains("html")) {
            for inline in ["<style", "style=", "onclick", "https://"] {
                assert!(!html.contains(inline), "{name}: {inline}");
            }
            let modules = html.matches("<script type=\"module\" src=").count();
            let others = usize::from(*name == "/");
            assert_eq!(html.matches("<script").count(), modules + others, "{name}");
        }
    }

    #[test]
    fn the_policy_allows_the_script_of_the_page_which_is_that_of_the_broadcast_page() {
        let script = |html: &'static str| {
            let (_, rest) = html.split_once("<script>").unwrap();
            rest.split_once("</script>").unwrap().0
        };
        let ours = script(include_str!("page/index.html"));
        assert_eq!(
            ours,
            script(include_str!("../../consumer/src/page/index.html"))
        );
        let hash = STANDARD.encode(Sha256::digest(ours));
        assert!(
            POLICY.contains(&format!("script-src 'self' 'sha256-{hash}'; ")),
            "{hash}"
        );
    }

    #[test]
    fn each_file_names_who_may_show_it_in_a_frame() {
        let sent = |list: &str| {
            let response = file(&Method::GET, "/", &FrameAncestors::parse(list).unwrap());
            let policy = response.headers()[CONTENT_SECURITY_POLICY]
                .to_str()
                .unwrap();
            policy.rsplit("; ").next().unwrap().to_owned()
        };
        assert_eq!(sent(""), "frame-ancestors 'none'");
        assert_eq!(
            sent("https://a.example"),
            "frame-ancestors https://a.example"
        );
    }

    #[test]
    fn the_listener_of_likes_serves_all_that_their_page_loads() {
        for path in OF_LIKES {
            assert!(exists(path), "{path}");
            let (_, _, text) = FILES.iter().find(|(name, ..)| name == path).unwrap();
            for part in text.split('"') {
                let name = part.strip_prefix("./").unwrap_or(part);
                if name.ends_with(".js") || name.ends_with(".css") {
                    assert!(is_of_likes(&format!("/{name}")), "{name}");
                }
            }
        }
    }
}
