//! The pages and the description of the endpoints.

use crate::http::send;
use crate::start;

#[tokio::test]
async fn each_page_is_served_with_a_policy_that_allows_only_its_own_files() {
    let gateway = start("127.0.0.1:1", "page", &[]).await;
    for path in ["/", "/counts", "/likes"] {
        let page = send(&gateway.address, "GET", path, &[], "").await;
        assert_eq!(page.status, 200);
        assert_eq!(
            page.header("content-type"),
            Some("text/html; charset=utf-8")
        );
        let policy = page.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self'"));
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    }
}

#[tokio::test]
async fn each_endpoint_is_described_and_each_description_is_an_endpoint() {
    let gateway = start("127.0.0.1:1", "described", &["--publish-topics", "a"]).await;
    let description = send(&gateway.address, "GET", "/openapi.json", &[], "").await;
    let paths = description.json()["paths"].as_object().unwrap().clone();
    let described: Vec<&str> = paths.keys().map(String::as_str).collect();
    let expected = [
        "/",
        "/aggregated",
        "/aggregated/stream",
        "/counts",
        "/data",
        "/dev/videos/metadata",
        "/dev/videos/{video_id}/likes",
        "/likes",
        "/openapi.json",
        "/tickets",
        "/topics/{topic}/messages",
        "/videos/metadata",
        "/videos/{video_id}/likes",
        "/websocket",
        "/windows/stream",
        "/windows/{window}/{start}/{video_id}/messages",
    ];
    assert_eq!(described, expected);
    for (path, operations) in paths {
        let names = [
            ("{topic}", "a"),
            ("{video_id}", "a"),
            ("{window}", "1min"),
            ("{start}", "0"),
        ];
        let path = names
            .iter()
            .fold(path, |path, (name, value)| path.replace(name, value));
        let operations = operations.as_object().unwrap();
        // A method that the endpoint does not have: an unknown path would be answered with 404.
        let mut others = ["GET", "POST", "PUT"].into_iter();
        let is_other = |method: &&str| !operations.contains_key(&method.to_lowercase());
        let other = others.find(is_other).unwrap();
        let answer = send(&gateway.address, other, &path, &[], "").await;
        assert_eq!(answer.status, 405, "{other} {path}: {}", answer.body);
    }
}

#[tokio::test]
async fn below_a_path_each_address_begins_with_it_except_those_of_likes_and_counts_alone() {
    let options = ["--path-prefix", "/tools/herald", "--publish-topics", "a"];
    let gateway = start("127.0.0.1:1", "prefix", &options).await;
    for path in ["/", "/counts", "/openapi.json", "/videos/metadata"] {
        let below = format!("/tools/herald{path}");
        let answer = send(&gateway.address, "GET", &below, &[], "").await;
        assert_eq!(answer.status, 200, "{below}");
        let answer = send(&gateway.address, "GET", path, &[], "").await;
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(
            answer.json()["error"],
            "there is nothing at this address; this server is below /tools/herald/ (--path-prefix)"
        );
        assert!(answer.header("x-request-id").is_some());
    }
    let nothing = send(&gateway.address, "GET", "/tools/herald/nothing", &[], "").await;
    assert!(nothing.body.contains("/tools/herald/openapi.json"));
    let session = "/tools/herald/websocket?session_id=a";
    let answer = send(&gateway.address, "GET", session, &[], "").await;
    assert_eq!(answer.status, 426);
    let redirect = send(&gateway.address, "GET", "/tools/herald?a=b", &[], "").await;
    assert_eq!(redirect.status, 308);
    assert_eq!(redirect.header("location"), Some("herald/?a=b"));
    let likes = send(&gateway.likes, "GET", "/videos/metadata", &[], "").await;
    assert_eq!(likes.status, 200);
    let counts = send(&gateway.counts, "GET", "/aggregated", &[], "").await;
    // It has no database.
    assert_eq!(counts.status, 501);
}
