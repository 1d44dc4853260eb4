//! What every request passes: hosts, origins, methods, parameters, ids.

use std::time::Duration;

use herald_testing::{Record, produce};
use tokio_tungstenite::tungstenite::Message;

use crate::client::{Client, TRANSPORTS, Transport};
use crate::http::{Http, header, once};
use crate::replica::{Replica, with_topic};

const ADDRESSES: [&str; 8] = [
    "/",
    "/page.js",
    "/config",
    "/messages",
    "/events",
    "/ws",
    "/socket.io/?EIO=4&transport=polling",
    "/nothing",
];

const UPGRADE: [(&str, &str); 4] = [
    ("connection", "upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_to_another_host_is_rejected_on_every_address() {
    let options = ["--allowed-hosts", "localhost, herald.example"];
    let Some((.., replica)) = with_topic("hosts", &options).await else {
        return;
    };
    for path in ADDRESSES {
        for host in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example:5000",
        ] {
            let answer = once(replica.public, "GET", path, &[("host", host)]).await;
            assert_eq!(answer.status(), 421, "{path} at {host}");
            assert!(
                answer.body().contains("--allowed-hosts"),
                "{}",
                answer.body()
            );
        }
        for host in ["localhost", "localhost:8001", "HERALD.example"] {
            let mut http = Http::connect(replica.public).await.expect("a connection");
            let answer = http.head_of(path, &[]).await.expect("an answer");
            assert_eq!(answer.status(), 421, "{path} at herald");
            drop(http);
            if path != "/events" {
                let answer = once(replica.public, "GET", path, &[("host", host)]).await;
                assert_ne!(answer.status(), 421, "{path} at {host}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_a_path_each_address_begins_with_it() {
    let options = ["--path-prefix", "/tools/herald/"];
    let replica = Replica::launch("127.0.0.1:1", "prefix", "127.0.0.1:0", &options).await;
    for path in ADDRESSES {
        let answer = once(replica.public, "GET", path, &[]).await;
        assert_eq!(answer.status(), 404, "{path}");
        let sentence = "this server is below /tools/herald/ (--path-prefix)";
        assert!(answer.body().contains(sentence), "{}", answer.body());
        assert_ne!(header(&answer, "x-request-id"), "");
    }
    for (path, status) in [
        ("/", 200),
        ("/client.js", 200),
        ("/config", 200),
        ("/events?last=many", 400),
        ("/messages?limit=many", 400),
        ("/ws", 426),
        ("/socket.io/?EIO=4&transport=polling", 200),
        ("/nothing", 404),
    ] {
        let below = format!("/tools/herald{path}");
        let answer = once(replica.public, "GET", &below, &[]).await;
        assert_eq!(answer.status(), status, "{below}: {}", answer.body());
    }
    let redirect = once(replica.public, "GET", "/tools/herald?topic=a", &[]).await;
    assert_eq!(redirect.status(), 308);
    assert_eq!(header(&redirect, "location"), "herald/?topic=a");
    // The checks of every request come first.
    let other = [("origin", "https://a.example")];
    let answer = once(replica.public, "GET", "/tools/herald/config", &other).await;
    assert_eq!(answer.status(), 403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_element_of_another_sites_page_gets_nothing_and_a_link_opens_the_page() {
    let Some((.., replica)) = with_topic("embedded", &[]).await else {
        return;
    };
    let image = [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-mode", "no-cors"),
    ];
    for path in ADDRESSES {
        let answer = once(replica.public, "GET", path, &image).await;
        assert_eq!(answer.status(), 403, "{path}");
    }
    let link = [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-mode", "navigate"),
    ];
    assert_eq!(once(replica.public, "GET", "/", &link).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_a_listed_origin_may_send_headers_of_its_own_and_reads_the_answer() {
    let options = ["--allowed-origins", "https://app.example"];
    let Some((.., replica)) = with_topic("preflight", &options).await else {
        return;
    };
    let wanted = "cache-control, x-requested-with, traceparent";
    for path in [
        "/events",
        "/messages",
        "/config",
        "/socket.io/?EIO=4&transport=polling",
    ] {
        let preflight = |origin: &'static str| {
            [
                ("origin", origin),
                ("access-control-request-method", "GET"),
                ("access-control-request-headers", wanted),
            ]
        };
        let answer = once(
            replica.public,
            "OPTIONS",
            path,
            &preflight("https://app.example"),
        )
        .await;
        assert_eq!(answer.status(), 204, "{path}");
        assert_eq!(header(&answer, "access-control-allow-headers"), wanted);
        assert!(header(&answer, "access-control-allow-methods").contains("GET"));
        assert_eq!(
            header(&answer, "access-control-allow-origin"),
            "https://app.example"
        );
        let answer = once(
            replica.public,
            "OPTIONS",
            path,
            &preflight("https://b.example"),
        )
        .await;
        assert_eq!(answer.status(), 403, "{path}");
        let mut http = Http::connect(replica.public).await.expect("a connection");
        let headers = [
            ("origin", "https://app.example"),
            ("cache-control", "no-cache"),
            ("x-requested-with", "XMLHttpRequest"),
            (
                "traceparent",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ),
        ];
        let answer = http.head_of(path, &headers).await.expect("an answer");
        assert_eq!(answer.status(), 200, "{path}");
        assert_eq!(
            header(&answer, "access-control-allow-origin"),
            "https://app.example"
        );
        assert!(header(&answer, "access-control-expose-headers").contains("retry-after"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn head_is_get_without_a_body_and_holds_no_stream_open() {
    let Some((.., replica)) = with_topic("head", &[]).await else {
        return;
    };
    let mut http = Http::connect(replica.public).await.expect("a connection");
    for path in ["/", "/config", "/messages"] {
        let get = http.send("GET", path, &[], "").await.expect("an answer");
        let head = http.send("HEAD", path, &[], "").await.expect("an answer");
        assert_eq!((head.status(), head.body().as_str()), (get.status(), ""));
        for name in ["content-type", "content-length", "cache-control"] {
            assert_eq!(header(&head, name), header(&get, name), "{name} of {path}");
        }
    }
    let head = http
        .send("HEAD", "/events", &[], "")
        .await
        .expect("an answer");
    assert_eq!((head.status().as_u16(), head.body().as_str()), (200, ""));
    assert!(header(&head, "content-type").starts_with("text/event-stream"));
    tokio::time::timeout(Duration::from_secs(1), http.closed())
        .await
        .expect("the connection ends");
    let open = replica.metric("herald_streams{transport=\"sse\"}").await;
    assert_eq!(open, 0.0);
    assert_eq!(
        once(replica.public, "HEAD", "/events?last=x", &[])
            .await
            .status(),
        400
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_address_is_404_whatever_the_method_and_a_wrong_method_is_405() {
    let Some((.., replica)) = with_topic("methods", &[]).await else {
        return;
    };
    for method in ["GET", "POST", "PUT", "DELETE"] {
        for path in [
            "/nothing",
            "/socket.io/x?EIO=4&transport=polling",
            "/socket.io/a/b",
        ] {
            let answer = once(replica.public, method, path, &[]).await;
            assert_eq!(answer.status(), 404, "{method} {path}");
        }
    }
    for path in ["/", "/page.js", "/config", "/events", "/messages"] {
        let answer = once(replica.public, "POST", path, &[]).await;
        assert_eq!(answer.status(), 405, "{path}");
        assert!(header(&answer, "allow").contains("GET"));
    }
    let policy = once(replica.public, "GET", "/", &[]).await;
    let policy = header(&policy, "content-security-policy");
    assert!(policy.contains("form-action 'none'"), "{policy}");
    let open = once(
        replica.public,
        "GET",
        "/socket.io?EIO=4&transport=polling",
        &[],
    )
    .await;
    assert_eq!(open.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_has_the_id_of_its_request_and_so_has_the_log() {
    let Some((.., mut replica)) = with_topic("ids", &["--log-level", "debug"]).await else {
        return;
    };
    for path in ADDRESSES {
        let mut http = Http::connect(replica.public).await.expect("a connection");
        let id = [("x-request-id", "id-of-a-test")];
        let answer = http.head_of(path, &id).await.expect("an answer");
        assert_eq!(header(&answer, "x-request-id"), "id-of-a-test", "{path}");
        let mut http = Http::connect(replica.public).await.expect("a connection");
        let answer = http.head_of(path, &[]).await.expect("an answer");
        assert_eq!(header(&answer, "x-request-id").len(), 16, "{path}");
    }
    for path in ["/ws", "/socket.io/?EIO=4&transport=websocket"] {
        let mut http = Http::connect(replica.public).await.expect("a connection");
        let headers = [&UPGRADE[..], &[("x-request-id", "id-of-an-upgrade")]].concat();
        let answer = http.head_of(path, &headers).await.expect("an answer");
        assert_eq!(answer.status(), 101);
        assert_eq!(
            header(&answer, "x-request-id"),
            "id-of-an-upgrade",
            "{path}"
        );
    }
    replica.said("\"request_id\":\"id-of-an-upgrade\"").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_polyfills_last_event_id_in_the_url_resumes_on_every_transport_and_in_pages() {
    let Some((kafka, topic, replica)) = with_topic("polyfill", &[]).await else {
        return;
    };
    produce(
        &kafka,
        &topic,
        &[Record::new(0, "seen"), Record::new(0, "missed")],
    )
    .await;
    let mut first = Client::connect(
        replica.public,
        Transport::Sse,
        &[("from", "earliest".into())],
    );
    let cursor = loop {
        let event = first.next().await.expect("the stream goes on");
        if event["data"] == "seen" {
            break event["cursor"].as_str().expect("a cursor").to_owned();
        }
    };
    for name in [
        "lastEventId",
        "last-event-id",
        "last_event_id",
        "Last-Event-ID",
    ] {
        for transport in TRANSPORTS {
            let parameters = [(name, cursor.clone()), ("from", "earliest".into())];
            let mut client = Client::connect(replica.public, transport, &parameters);
            let message = loop {
                let event = client.next().await.expect("the stream goes on");
                if event["type"] == "message" {
                    break event;
                }
            };
            assert_eq!(message["data"], "missed", "{name} over {transport:?}");
        }
        let (status, page) = replica.get(&format!("/messages?{name}={cursor}")).await;
        assert_eq!(status, 200);
        assert_eq!(
            page["messages"][0]["data"], "missed",
            "{name} in a page: {page}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parameter_that_was_meant_as_a_position_is_rejected_on_every_transport() {
    let Some((.., replica)) = with_topic("mistaken", &[]).await else {
        return;
    };
    for name in ["offset", "cursor", "since", "from_offset"] {
        for path in ["/events", "/messages"] {
            let (status, answer) = replica.get(&format!("{path}?{name}=5&_=1")).await;
            let sentence = answer["error"].as_str().unwrap_or_default();
            assert!(
                status == 400 && sentence.contains(name) && sentence.contains("after"),
                "{answer}"
            );
        }
        let mut client =
            Client::connect(replica.public, Transport::WebSocket, &[(name, "5".into())]);
        let bye = client.next().await.expect("a bye");
        assert_eq!(
            (&bye["type"], &bye["reason"]),
            (&"bye".into(), &"invalid".into())
        );
        assert!(
            bye["detail"]
                .as_str()
                .is_some_and(|detail| detail.contains(name))
        );
        assert_eq!(client.next().await.expect("a close")["code"], 4400);
        for transport in [Transport::SocketIo, Transport::Polling] {
            let mut client = Client::connect(replica.public, transport, &[(name, "5".into())]);
            let error = client.next().await.expect("an error");
            assert_eq!(error["type"], "connect_error");
            assert!(
                error["error"]
                    .as_str()
                    .is_some_and(|error| error.contains(name)),
                "{error}"
            );
        }
    }
    for ignored in ["_=1&_=2", "t=5", "v=1"] {
        assert_eq!(replica.get(&format!("/messages?{ignored}")).await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parameter_given_twice_is_rejected_over_the_socket() {
    let Some((.., replica)) = with_topic("twice", &[]).await else {
        return;
    };
    let twice = [("last", "1".to_owned()), ("last", "2".to_owned())];
    let mut client = Client::connect(replica.public, Transport::WebSocket, &twice);
    let bye = client.next().await.expect("a bye");
    assert_eq!(
        (&bye["type"], &bye["reason"]),
        (&"bye".into(), &"invalid".into())
    );
    assert_eq!(client.next().await.expect("a close")["code"], 4400);
    assert_eq!(replica.get("/events?last=1&last=2").await.0, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_cannot_be_read_are_rejected_rather_than_ignored() {
    use futures_util::{SinkExt as _, StreamExt as _};
    let Some((.., replica)) = with_topic("no-keys", &[]).await else {
        return;
    };
    assert_eq!(replica.get("/events?key=%ff").await.0, 400);
    for (query, auth, sentence) in [
        ("&key=%ff", "", "the query cannot be read"),
        ("", r#"{"key":[]}"#, "key is an empty array"),
        (
            "&key=a",
            r#"{"key":{}}"#,
            "key must be a string or an array",
        ),
    ] {
        let url = format!(
            "ws://{}/socket.io/?EIO=4&transport=websocket{query}",
            replica.public
        );
        let stream = tokio::net::TcpStream::connect(replica.public).await;
        let stream = stream.expect("a connection");
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream)
            .await
            .expect("a handshake");
        let connect = Message::text(format!("40{auth}"));
        socket.send(connect).await.expect("it is connected");
        let error = loop {
            let packet = socket.next().await.expect("an error").expect("a packet");
            let packet = packet.to_text().expect("a text").to_owned();
            assert!(!packet.starts_with("40"), "accepted: {packet}");
            if packet.starts_with("44") {
                break packet;
            }
        };
        assert!(error.contains(sentence), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_sends_too_much_gets_the_code_and_no_reset() {
    use futures_util::{SinkExt as _, StreamExt as _};
    let Some((.., replica)) = with_topic("too-big", &[]).await else {
        return;
    };
    for _ in 0..10 {
        let url = format!("ws://{}/ws", replica.public);
        let stream = tokio::net::TcpStream::connect(replica.public).await;
        let stream = stream.expect("a connection");
        let (socket, _) = tokio_tungstenite::client_async(url, stream)
            .await
            .expect("a handshake");
        let (mut sink, mut stream) = socket.split();
        let sending =
            tokio::spawn(async move { sink.send(Message::text("x".repeat(10 << 20))).await });
        let code = loop {
            match stream.next().await.expect("a close frame") {
                Ok(Message::Close(frame)) => break u16::from(frame.expect("a code").code),
                Ok(_) => {}
                Err(error) => panic!("reset before the code: {error}"),
            }
        };
        assert_eq!(code, 1009);
        sending.await.expect("sent").expect("all of it was read");
    }
}
