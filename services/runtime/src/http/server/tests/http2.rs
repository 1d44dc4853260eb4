//! Over HTTP/2, where requests share a connection.

use std::collections::HashMap;

use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use hyper::header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST};
use hyper::{HeaderMap, Method, Version};
use tokio_util::task::AbortOnDropHandle;

use super::tls::{connect, tls};
use super::*;
use crate::http::tls::tests::Files;

/// A client, and the task of its connection.
struct Client {
    requests: SendRequest<Bytes>,
    connection: AbortOnDropHandle<Result<(), h2::Error>>,
}

impl Client {
    /// With this much room for each response.
    async fn new(server: &Running, files: &Files, window: u32) -> Self {
        let connected = connect(server.address, files.certificate(), b"h2").await;
        let (requests, connection) = h2::client::Builder::new()
            .initial_window_size(window)
            .initial_connection_window_size(4 << 20)
            .handshake(connected.unwrap())
            .await
            .unwrap();
        Self {
            requests,
            connection: AbortOnDropHandle::new(tokio::spawn(connection)),
        }
    }

    async fn request(
        &mut self,
        request: Request<()>,
    ) -> Result<hyper::Response<RecvStream>, h2::Error> {
        let mut requests = self.requests.clone().ready().await?;
        requests.send_request(request, true)?.0.await
    }

    async fn get(&mut self, path: &str) -> Result<RecvStream, h2::Error> {
        let uri = format!("https://localhost{path}");
        let request = Request::get(uri).version(Version::HTTP_2).body(()).unwrap();
        Ok(self.request(request).await?.into_body())
    }
}

/// The next bytes of a response, for which its client makes room again.
async fn next(body: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    let data = body.data().await?;
    if let Ok(data) = &data {
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    Some(data)
}

async fn text(mut body: RecvStream) -> String {
    let mut text = String::new();
    while let Some(data) = next(&mut body).await {
        text.push_str(std::str::from_utf8(&data.unwrap()).unwrap());
    }
    text
}

/// `/ticks` is a stream of a tick every 50 ms, which ends at the drain; `/large` and `/small` are texts; anything else describes the
/// request.
async fn answer(
    request: Request<Incoming>,
    drain: CancellationToken,
) -> Result<Response, Infallible> {
    let mut response = match request.uri().path() {
        "/ticks" => {
            let ticks = futures_util::stream::unfold(drain, async |drain| {
                let tick = drain.run_until_cancelled(sleep(Duration::from_millis(50)));
                tick.await?;
                Some((Ok::<_, Infallible>("tick"), drain))
            });
            warp::reply::stream(ticks).into_response()
        }
        "/large" => "x".repeat(8 << 20).into_response(),
        "/small" => "x".repeat(1_000).into_response(),
        "/never" => std::future::pending().await,
        _ => {
            let connection = request.extensions().get::<Arc<Connection>>().unwrap();
            let header = |name| {
                request
                    .headers()
                    .get(name)
                    .map(|value| value.to_str().unwrap())
            };
            let of: HashMap<&str, String> = HashMap::from([
                ("overload", connection.overload.to_string()),
                ("host", header(HOST).unwrap_or_default().to_owned()),
                ("cookie", header(COOKIE).unwrap_or_default().to_owned()),
            ]);
            warp::reply::json(&of).into_response()
        }
    };
    response
        .headers_mut()
        .insert(CONNECTION, "close".parse().unwrap());
    Ok(response)
}

async fn server(limits: Limits) -> (Running, Files, CancellationToken) {
    let (files, drain) = (Files::new(), CancellationToken::new());
    let ends = drain.clone();
    let answer = move |request| answer(request, ends.clone());
    (serve(limits, tls(&files), answer).await, files, drain)
}

fn quick() -> Limits {
    Limits {
        stalled: Duration::from_secs(1),
        ..limits()
    }
}

/// Waits until so many connections and requests are in progress.
async fn until_open(server: &Running, count: i64) {
    let began = Instant::now();
    while server.open.get() != count {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{} are open",
            server.open.get()
        );
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_request_has_the_headers_that_it_has_over_http_1() {
    let (server, files, _) = server(limits()).await;
    let mut client = Client::new(&server, &files, 65_535).await;
    let request = Request::get("https://localhost:8443/")
        .version(Version::HTTP_2)
        .header(HOST, "evil.example")
        .header(COOKIE, "a=1")
        .header(COOKIE, "b=2")
        .body(())
        .unwrap();
    let response = client.request(request).await.unwrap();
    assert!(
        !response.headers().contains_key(CONNECTION),
        "illegal over HTTP/2"
    );
    let of: HashMap<String, String> =
        serde_json::from_str(&text(response.into_body()).await).unwrap();
    assert_eq!(of["host"], "localhost:8443");
    assert_eq!(of["cookie"], "a=1; b=2");
}

#[tokio::test]
async fn a_head_request_is_answered_without_a_body() {
    let (server, files, _) = server(limits()).await;
    let mut client = Client::new(&server, &files, 65_535).await;
    for (path, length) in [("/small", Some("1000")), ("/ticks", None)] {
        let request = Request::builder()
            .method(Method::HEAD)
            .uri(format!("https://localhost{path}"))
            .version(Version::HTTP_2)
            .body(())
            .unwrap();
        let response = client.request(request).await.unwrap();
        let sent = |headers: &HeaderMap| headers.get(CONTENT_LENGTH).cloned();
        assert_eq!(
            sent(response.headers()),
            length.map(|length| length.parse().unwrap())
        );
        assert!(response.into_body().is_end_stream());
    }
    until_open(&server, 1).await;
}

#[tokio::test]
async fn a_response_of_many_pieces_is_complete() {
    let (server, files, _) = server(limits()).await;
    let mut client = Client::new(&server, &files, 65_535).await;
    let body = client.get("/large").await.unwrap();
    assert_eq!(text(body).await.len(), 8 << 20);
    let body = client.get("/small").await.unwrap();
    assert_eq!(text(body).await.len(), 1_000);
}

#[tokio::test]
async fn a_stream_that_is_not_read_ends_alone() {
    let (server, files, _) = server(quick()).await;
    let mut client = Client::new(&server, &files, 100_000).await;
    let mut read = client.get("/ticks").await.unwrap();
    let mut unread = client.get("/large").await.unwrap();
    until_open(&server, 2).await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        assert_eq!(next(&mut read).await.unwrap().unwrap(), "tick");
    }
    assert_eq!(server.open.get(), 1);
    let error = loop {
        match unread.data().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("the response ended as if it were complete"),
        }
    };
    assert_eq!(error.reason(), Some(Reason::CANCEL));
}

#[tokio::test]
async fn a_stream_of_which_only_a_trickle_is_read_ends_alone() {
    let (server, files, _) = server(limits()).await;
    let mut client = Client::new(&server, &files, 10_000).await;
    let mut read = client.get("/ticks").await.unwrap();
    let mut slow = client.get("/large").await.unwrap();
    let began = Instant::now();
    let mut taken = 0;
    let error = loop {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{taken} bytes in 20 s were enough"
        );
        assert_eq!(next(&mut read).await.unwrap().unwrap(), "tick");
        // At most 400 bytes every 50 ms, which is less than 32 KiB a second.
        if let Ok(data) = timeout(Duration::from_millis(1), slow.data()).await {
            match data.unwrap() {
                Ok(data) => taken += data.len(),
                Err(error) => break error,
            }
        }
        let room = slow.flow_control().used_capacity().min(400);
        slow.flow_control().release_capacity(room).unwrap();
    };
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    assert_eq!(next(&mut read).await.unwrap().unwrap(), "tick");
}

#[tokio::test]
async fn a_moderately_slow_stream_is_not_cut() {
    let (server, files, _) = server(limits()).await;
    let mut client = Client::new(&server, &files, 65_535).await;
    let mut slow = client.get("/large").await.unwrap();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(6) {
        assert!(next(&mut slow).await.unwrap().is_ok());
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.open.get(), 1);
}

#[tokio::test]
async fn a_short_response_that_nobody_reads_is_in_progress_until_it_is_cut() {
    let (server, files, _) = server(quick()).await;
    let mut client = Client::new(&server, &files, 10).await;
    let _read = client.get("/ticks").await.unwrap();
    let mut unread = client.get("/small").await.unwrap();
    assert_eq!(unread.data().await.unwrap().unwrap().len(), 10);
    sleep(Duration::from_millis(300)).await;
    assert_eq!(server.open.get(), 2);
    let error = loop {
        if let Err(error) = unread.data().await.expect("it does not end") {
            break error;
        }
    };
    assert_eq!(error.reason(), Some(Reason::CANCEL));
}

#[tokio::test]
async fn a_request_without_an_answer_ends_alone() {
    let limits = Limits {
        idle: Duration::from_secs(1),
        ..limits()
    };
    let (server, files, _) = server(limits).await;
    let mut client = Client::new(&server, &files, 65_535).await;
    let mut read = client.get("/ticks").await.unwrap();
    let error = client.get("/never").await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    assert_eq!(next(&mut read).await.unwrap().unwrap(), "tick");
}

#[tokio::test]
async fn each_request_in_progress_counts_as_a_connection() {
    let limits = Limits {
        connections: 3,
        ..limits()
    };
    let (server, files, _) = server(limits).await;
    let mut client = Client::new(&server, &files, 65_535).await;
    async fn overload(client: &mut Client) -> bool {
        text(client.get("/").await.unwrap())
            .await
            .contains(r#""overload":"true""#)
    }
    let mut streams = Vec::new();
    for count in 1..=3 {
        assert!(!overload(&mut client).await, "{count}");
        streams.push(client.get("/ticks").await.unwrap());
        until_open(&server, count).await;
    }
    assert!(overload(&mut client).await);
    // Another connection is over the cap for as long as this one takes all.
    let mut other = Client::new(&server, &files, 65_535).await;
    assert!(overload(&mut other).await);
    streams.truncate(1);
    until_open(&server, 2).await;
    assert!(!overload(&mut other).await);
    assert!(!overload(&mut client).await);
    drop((streams, client, other));
    until_open(&server, 0).await;
}

#[tokio::test]
async fn a_server_that_drains_asks_for_another_connection_and_finishes_the_streams_of_this_one() {
    let (server, files, drain) = server(limits()).await;
    let mut client = Client::new(&server, &files, 65_535).await;
    let mut stream = client.get("/ticks").await.unwrap();
    server.stop.rejecting.cancel();
    let began = Instant::now();
    while client.get("/").await.is_ok() {
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "it takes more requests"
        );
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(next(&mut stream).await.unwrap().unwrap(), "tick");
    server.stop.shutdown.cancel();
    drain.cancel();
    assert_eq!(text(stream).await.replace("tick", ""), "");
    let ended = timeout(Duration::from_secs(2), client.connection).await;
    ended.expect("the connection ends").unwrap().unwrap();
    server.tasks.close();
    let ended = timeout(Duration::from_secs(3), server.tasks.wait()).await;
    ended.expect("no task is left");
    assert_eq!(server.open.get(), 0);
}

#[tokio::test]
async fn a_connection_without_requests_is_closed() {
    let limits = Limits {
        keep_alive: Duration::from_secs(1),
        ..limits()
    };
    let (server, files, _) = server(limits).await;
    let mut client = Client::new(&server, &files, 65_535).await;
    let mut stream = client.get("/ticks").await.unwrap();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        assert_eq!(next(&mut stream).await.unwrap().unwrap(), "tick");
    }
    drop(stream);
    let ended = timeout(Duration::from_secs(3), client.connection).await;
    ended.expect("the connection ends").unwrap().unwrap();
    until_open(&server, 0).await;
}
