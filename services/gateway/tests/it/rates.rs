//! Rate limits, with proxies that are this test itself.

use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use herald_testing::{create_topic, random_topic};
use tokio::net::TcpStream;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::http::send;
use crate::{DEADLINE, GOOD, Gateway, Socket, close_code, next, start};

/// Behind a proxy on loopback.
const PROXY: [&str; 2] = ["--trusted-proxies", "127.0.0.0/8"];

async fn gateway(name: &str, options: &[&str]) -> Option<Gateway> {
    let kafka = herald_testing::kafka()?;
    let topic = random_topic(name);
    create_topic(&kafka, &topic, 1, &[]).await;
    Some(start(&kafka, &topic, options).await)
}

/// A connection of the client at `address`, or the status of the response.
async fn open(gateway: &Gateway, session: &str, address: &str) -> Result<Socket, u16> {
    let stream = TcpStream::connect(&gateway.address).await.unwrap();
    let url = format!(
        "ws://{}/websocket?session_id={session}&ack=1",
        gateway.address
    );
    let mut request = url.into_client_request().unwrap();
    let forwarded = format!("6.6.6.6, {address}").parse().unwrap();
    request.headers_mut().insert("x-forwarded-for", forwarded);
    match client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(response)) => {
            assert!(response.headers().contains_key("retry-after"));
            Err(response.status().as_u16())
        }
        Err(error) => panic!("{error}"),
    }
}

/// How long Kafka's acknowledgement of one frame takes, in the median of 15.
async fn delay(socket: &mut Socket) -> Duration {
    let mut delays = Vec::new();
    for _ in 0..15 {
        let began = Instant::now();
        socket.send(Message::text(GOOD)).await.unwrap();
        let ack = next(socket).await.into_text().unwrap();
        assert!(ack.contains(r#""type":"ack""#), "{ack}");
        delays.push(began.elapsed());
    }
    delays.sort();
    delays[7]
}

#[tokio::test]
async fn a_session_that_sends_too_fast_is_slowed_down_and_loses_nothing() {
    let options = ["--session-frames-per-second", "20"];
    let Some(gateway) = gateway("slowed", &options).await else {
        return;
    };
    let mut socket = gateway.open("?session_id=a&ack=1").await.unwrap();
    let mut other = gateway.open("?session_id=b&ack=1").await.unwrap();
    let began = Instant::now();
    for _ in 0..60 {
        socket.send(Message::text(GOOD)).await.unwrap();
    }
    // Twenty pass at once, the other forty take two seconds.
    assert!(delay(&mut other).await < Duration::from_secs(1));
    for offset in 0..60 {
        let ack = next(&mut socket).await.into_text().unwrap();
        assert!(ack.contains(r#""type":"ack""#), "{offset}: {ack}");
    }
    let took = began.elapsed();
    assert!(took > Duration::from_millis(1_800), "{took:?}");
}

#[tokio::test]
async fn pings_count_like_other_frames() {
    let options = ["--session-frames-per-second", "20"];
    let Some(gateway) = gateway("pings", &options).await else {
        return;
    };
    let mut socket = gateway.open("?session_id=a&ack=1").await.unwrap();
    let began = Instant::now();
    for _ in 0..40 {
        socket.send(Message::Ping("".into())).await.unwrap();
    }
    socket.send(Message::text(GOOD)).await.unwrap();
    while !next(&mut socket).await.is_text() {}
    let took = began.elapsed();
    assert!(took > Duration::from_millis(900), "{took:?}");
}

#[tokio::test]
async fn a_frame_that_would_wait_too_long_is_answered_and_closes_the_socket() {
    let options = ["--session-bytes-per-second", "1000"];
    let Some(gateway) = gateway("too-long", &options).await else {
        return;
    };
    let mut socket = gateway.open("?session_id=a&ack=1").await.unwrap();
    let padding = " ".repeat(200 << 10);
    for _ in 0..2 {
        let frame = format!("{GOOD}{padding}");
        socket.send(Message::text(frame)).await.unwrap();
    }
    let (mut acks, mut errors) = (0, 0);
    let code = loop {
        match next(&mut socket).await {
            Message::Text(text) if text.contains(r#""type":"ack""#) => acks += 1,
            Message::Text(text) => {
                assert!(text.contains("--session-bytes-per-second"), "{text}");
                errors += 1;
            }
            message => break close_code(message),
        }
    };
    assert_eq!((acks, errors, code), (1, 1, 1008));
}

#[tokio::test]
async fn connections_and_requests_over_the_limit_of_an_address_are_answered_429() {
    let limits = [
        "--address-connections-per-second",
        "2",
        "--address-requests-per-second",
        "3",
    ];
    let gateway = start("127.0.0.1:1", "many", &[&PROXY[..], &limits].concat()).await;
    let mut opened = Vec::new();
    for _ in 0..6 {
        opened.push(open(&gateway, "a", "1.1.1.1").await.map(drop));
    }
    assert_eq!(opened[..2], [Ok(()), Ok(())]);
    assert!(opened.contains(&Err(429)), "{opened:?}");
    assert!(open(&gateway, "a", "2.2.2.2").await.is_ok());

    let request = async |address| {
        let headers = [("x-forwarded-for", address)];
        send(&gateway.address, "GET", "/nothing", &headers, "").await
    };
    let mut statuses = Vec::new();
    for _ in 0..8 {
        let answer = request("1.1.1.1").await;
        if answer.status == 429 {
            assert_eq!(answer.header("retry-after"), Some("1"));
            assert!(answer.body.contains("--address-requests-per-second"));
        }
        statuses.push(answer.status);
    }
    assert_eq!(statuses[..3], [404; 3]);
    assert!(statuses.contains(&429), "{statuses:?}");
    // What stands to the left of the address that the proxy has added is the client's own claim.
    assert_eq!(request("9.9.9.9, 1.1.1.1").await.status, 429);
    assert_eq!(request("1.1.1.1, 2.2.2.2").await.status, 404);
}

#[tokio::test]
async fn a_flood_from_one_address_leaves_the_delay_of_another_unchanged() {
    let limits = ["--address-frames-per-second", "50"];
    let options = [&PROXY[..], &limits].concat();
    let Some(gateway) = gateway("flood", &options).await else {
        return;
    };
    let mut calm = open(&gateway, "calm", "1.1.1.1").await.unwrap();
    delay(&mut calm).await;
    let before = delay(&mut calm).await;

    // Ten sockets, each with another session, that send without waiting for anything.
    let mut floods = Vec::new();
    for number in 0..10 {
        let mut socket = open(&gateway, &format!("flood-{number}"), "2.2.2.2")
            .await
            .unwrap();
        floods.push(tokio::spawn(async move {
            let mut acks = 0;
            let mut closed = None;
            let end = tokio::time::sleep(Duration::from_secs(4));
            let mut end = std::pin::pin!(end.fuse());
            while closed.is_none() {
                tokio::select! {
                    () = &mut end => break,
                    sent = socket.feed(Message::text(GOOD)) => if sent.is_err() { break },
                }
                while let Some(Some(Ok(message))) = socket.next().now_or_never() {
                    match message {
                        Message::Text(text) => acks += u32::from(text.contains(r#""type":"ack""#)),
                        Message::Close(frame) => closed = frame.map(|frame| u16::from(frame.code)),
                        _ => {}
                    }
                }
                tokio::task::yield_now().await;
            }
            (acks, closed)
        }));
    }
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    let during = delay(&mut calm).await;
    // The flood is also work for this test's own process, and the machine may be busy.
    assert!(
        during < before * 3 + Duration::from_millis(250),
        "{before:?} before, {during:?} during"
    );
    let mut acks = 0;
    for flood in floods {
        let (acknowledged, closed) = tokio::time::timeout(DEADLINE, flood)
            .await
            .unwrap()
            .unwrap();
        assert!(matches!(closed, None | Some(1008)), "{closed:?}");
        acks += acknowledged;
    }
    // A burst of 50, and 50 in each second.
    assert!((50..=50 + 50 * 7).contains(&acks), "{acks}");
}
