//! Clients that use the raw wire protocols, and turn them into the same events.

use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value as Json, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    Sse,
    WebSocket,
    SocketIo,
    Polling,
}

pub const TRANSPORTS: [Transport; 4] = [
    Transport::Sse,
    Transport::WebSocket,
    Transport::SocketIo,
    Transport::Polling,
];

/// An open stream of events, each the JSON object of the protocol with `type`.
pub struct Client {
    events: mpsc::Receiver<Json>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Client {
    /// Connects with these parameters: `[("after", cursor)]`.
    pub fn connect(
        address: SocketAddr,
        transport: Transport,
        parameters: &[(&str, String)],
    ) -> Self {
        // A client that does not read is a client whose buffers are full: the channel holds only a few.
        let (sender, events) = mpsc::channel(16);
        let parameters: Vec<(String, String)> = parameters
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        let task = tokio::spawn(async move {
            // When the line breaks the channel closes; that is all a client sees too.
            _ = match transport {
                Transport::Sse => sse(address, &parameters, &sender).await,
                Transport::WebSocket => websocket(address, &parameters, &sender).await,
                Transport::SocketIo => socketio(address, &parameters, &sender).await,
                Transport::Polling => polling(address, &parameters, &sender).await,
            };
        });
        Self { events, task }
    }

    /// The next event; `None` when the connection is gone.
    pub async fn next(&mut self) -> Option<Json> {
        self.events.recv().await
    }
}

type Events = mpsc::Sender<Json>;
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn query(parameters: &[(String, String)]) -> String {
    let escape = |byte: u8| match byte {
        byte if byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte) => (byte as char).into(),
        byte => format!("%{byte:02X}"),
    };
    parameters
        .iter()
        .map(|(name, value)| {
            let value: String = value.bytes().map(escape).collect();
            format!("&{name}={value}")
        })
        .collect()
}

async fn open(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>, Failure> {
    let (sender, connection) = handshake(TokioIo::new(TcpStream::connect(address).await?)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn send(
    sender: &mut SendRequest<Full<Bytes>>,
    method: &str,
    path: &str,
    body: String,
) -> Result<hyper::Response<Incoming>, Failure> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "herald")
        .body(Full::from(body))?;
    Ok(sender.send_request(request).await?)
}

async fn body(response: hyper::Response<Incoming>) -> Result<String, Failure> {
    Ok(String::from_utf8(
        response.into_body().collect().await?.to_bytes().to_vec(),
    )?)
}

/// Status and body of an address.
pub async fn get(address: SocketAddr, path: &str) -> Result<(u16, String), Failure> {
    let mut sender = open(address).await?;
    let response = send(&mut sender, "GET", path, String::new()).await?;
    Ok((response.status().as_u16(), body(response).await?))
}

async fn sse(
    address: SocketAddr,
    parameters: &[(String, String)],
    events: &Events,
) -> Result<(), Failure> {
    let mut sender = open(address).await?;
    let path = format!("/events?format=json{}", query(parameters));
    let mut stream = send(&mut sender, "GET", &path, String::new())
        .await?
        .into_body();
    let mut text = String::new();
    while let Some(frame) = stream.frame().await {
        text.push_str(std::str::from_utf8(
            &frame?.into_data().unwrap_or_default(),
        )?);
        while let Some((block, rest)) = text.split_once("\n\n") {
            let data = block.lines().find_map(|line| line.strip_prefix("data: "));
            let id = block.lines().find_map(|line| line.strip_prefix("id: "));
            if let Some(data) = data {
                let event: Json = serde_json::from_str(data)?;
                assert_eq!(
                    event["cursor"].as_str(),
                    id,
                    "the id of an event is its cursor"
                );
                events.send(event).await?;
            }
            text = rest.to_owned();
        }
    }
    Ok(())
}

async fn websocket(
    address: SocketAddr,
    parameters: &[(String, String)],
    events: &Events,
) -> Result<(), Failure> {
    let url = format!("ws://{address}/ws?{}", query(parameters));
    let (mut socket, _) =
        tokio_tungstenite::client_async(url, TcpStream::connect(address).await?).await?;
    while let Some(message) = socket.next().await {
        match message? {
            Message::Text(text) => events.send(serde_json::from_str(&text)?).await?,
            Message::Close(Some(frame)) => {
                events
                    .send(json!({ "type": "close", "code": u16::from(frame.code) }))
                    .await?
            }
            _ => {}
        }
    }
    Ok(())
}

/// Reads one Engine.IO packet. Returns what is to be answered.
async fn packet(packet: &str, connect: &str, events: &Events) -> Result<Option<String>, Failure> {
    if packet.starts_with('0') {
        return Ok(Some(format!("40{connect}")));
    }
    if packet.starts_with('2') {
        return Ok(Some("3".into()));
    }
    if let Some(event) = packet.strip_prefix("42") {
        let Json::Array(mut event) = serde_json::from_str(event)? else {
            return Err("no array".into());
        };
        let mut payload = event.remove(1);
        payload["type"] = event.remove(0);
        events.send(payload).await?;
    }
    if packet.starts_with("41") || packet.starts_with('1') {
        return Err("the server closed the session".into());
    }
    if let Some(error) = packet.strip_prefix("44") {
        events
            .send(json!({ "type": "connect_error", "error": error }))
            .await?;
    }
    Ok(None)
}

/// A parameter that occurs more than once is an array.
fn auth(parameters: &[(String, String)]) -> String {
    let mut auth = serde_json::Map::new();
    for (name, value) in parameters {
        match auth.get_mut(name) {
            None => _ = auth.insert(name.clone(), value.as_str().into()),
            Some(Json::Array(values)) => values.push(value.as_str().into()),
            Some(first) => *first = json!([first.take(), value]),
        }
    }
    Json::Object(auth).to_string()
}

async fn socketio(
    address: SocketAddr,
    parameters: &[(String, String)],
    events: &Events,
) -> Result<(), Failure> {
    let url = format!("ws://{address}/socket.io/?EIO=4&transport=websocket");
    let (mut socket, _) =
        tokio_tungstenite::client_async(url, TcpStream::connect(address).await?).await?;
    while let Some(message) = socket.next().await {
        if let Message::Text(text) = message?
            && let Some(answer) = packet(&text, &auth(parameters), events).await?
        {
            socket.send(Message::text(answer)).await?;
        }
    }
    Ok(())
}

async fn polling(
    address: SocketAddr,
    parameters: &[(String, String)],
    events: &Events,
) -> Result<(), Failure> {
    let (mut reading, mut writing) = (open(address).await?, open(address).await?);
    let mut path = "/socket.io/?EIO=4&transport=polling".to_owned();
    loop {
        let response = send(&mut reading, "GET", &path, String::new()).await?;
        if response.status() != 200 {
            return Err("the session has ended".into());
        }
        for one in body(response).await?.split('\x1e') {
            if let Some(open) = one.strip_prefix('0') {
                let open: Json = serde_json::from_str(open)?;
                path += &format!("&sid={}", open["sid"].as_str().ok_or("no sid")?);
            }
            if let Some(answer) = packet(one, &auth(parameters), events).await? {
                let response = send(&mut writing, "POST", &path, answer).await?;
                body(response).await?;
            }
        }
    }
}
