//! The page and the description of the endpoints.

use crate::http::send;
use crate::start;

#[tokio::test]
async fn the_page_is_served_with_a_policy_that_allows_only_its_own_files() {
    let gateway = start("127.0.0.1:1", "page", &[]).await;
    let page = send(&gateway.address, "GET", "/", &[], "").await;
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

#[tokio::test]
async fn each_endpoint_is_described_and_each_description_is_an_endpoint() {
    let gateway = start("127.0.0.1:1", "described", &["--publish-topics", "a"]).await;
    let description = send(&gateway.address, "GET", "/openapi.json", &[], "").await;
    let paths = description.json()["paths"].as_object().unwrap().clone();
    let described: Vec<&str> = paths.keys().map(String::as_str).collect();
    let expected = [
        "/",
        "/data",
        "/openapi.json",
        "/topics/{topic}/messages",
        "/websocket",
    ];
    assert_eq!(described, expected);
    // `/data` needs a database.
    for (path, operations) in paths.into_iter().filter(|(path, _)| path != "/data") {
        let path = path.replace("{topic}", "a");
        let method = operations.as_object().unwrap().keys().next().unwrap();
        // A method that the endpoint does not have: an unknown path would be answered with 404.
        let other = if method == "get" { "POST" } else { "GET" };
        let answer = send(&gateway.address, other, &path, &[], "").await;
        assert_eq!(answer.status, 405, "{other} {path}: {}", answer.body);
    }
}
