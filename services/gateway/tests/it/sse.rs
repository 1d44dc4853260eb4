//! A stream of server-sent events.

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::DEADLINE;

pub struct Events {
    stream: TcpStream,
    /// What was read and is no event yet.
    rest: String,
    pub head: String,
}

#[derive(Debug, PartialEq)]
pub struct Event {
    pub name: String,
    pub data: Value,
}

impl Events {
    pub async fn open(address: &str, path: &str, headers: &[(&str, &str)]) -> Self {
        let mut text = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n");
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all((text + "\r\n").as_bytes()).await.unwrap();
        let mut events = Self {
            stream,
            rest: String::new(),
            head: String::new(),
        };
        while !events.rest.contains("\r\n\r\n") {
            assert!(events.read().await, "{}", events.rest);
        }
        let rest = std::mem::take(&mut events.rest);
        let (head, rest) = rest.split_once("\r\n\r\n").unwrap();
        events.head = head.to_owned();
        events.rest = rest.to_owned();
        events
    }

    async fn read(&mut self) -> bool {
        let mut bytes = vec![0; 64 << 10];
        let read = timeout(DEADLINE, self.stream.read(&mut bytes)).await;
        let read = read.expect("more of the stream").unwrap();
        self.rest += std::str::from_utf8(&bytes[..read]).unwrap();
        read > 0
    }

    /// The next event; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Event> {
        // Comments, which keep the connection open, are no event.
        let next = timeout(DEADLINE, self.next_event()).await;
        next.expect("an event in time")
    }

    async fn next_event(&mut self) -> Option<Event> {
        loop {
            // The lines of the chunked encoding are between the blocks; none of them is a field.
            while let Some((block, rest)) = self.rest.split_once("\n\n") {
                let field = |name: &str| {
                    let mut lines = block.lines();
                    let found = lines.find_map(|line| line.strip_prefix(&format!("{name}: ")));
                    found.map(str::to_owned)
                };
                let event = field("data").map(|data| Event {
                    name: field("event").unwrap(),
                    data: serde_json::from_str(&data).unwrap(),
                });
                self.rest = rest.to_owned();
                if event.is_some() {
                    return event;
                }
            }
            if !self.read().await {
                return None;
            }
        }
    }

    /// The next event, which has this name.
    pub async fn take(&mut self, name: &str) -> Event {
        let event = self.next().await.expect("an event");
        assert_eq!(event.name, name, "{event:?}");
        event
    }
}
