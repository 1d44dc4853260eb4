//! One connection, its requests one after the other, and the whole of each answer.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

type Failure = Box<dyn std::error::Error + Send + Sync>;

pub struct Http {
    sender: SendRequest<Full<Bytes>>,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Http {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Http {
    pub async fn connect(address: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(async move { _ = connection.await });
        Ok(Self { sender, connection })
    }

    /// The answer with its whole body, within five seconds. Without a `host` among the headers it is `herald`.
    pub async fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<Response<String>, Failure> {
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "herald");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body.to_owned()))?;
        let answer = async {
            self.sender.ready().await?;
            let (head, body) = self.sender.send_request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Response::from_parts(
                head,
                String::from_utf8(body.to_vec())?,
            ))
        };
        tokio::time::timeout(Duration::from_secs(5), answer).await?
    }

    /// Only the head of the answer: a stream has no end.
    pub async fn head_of(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Response<()>, Failure> {
        let mut request = Request::builder().uri(path).header("host", "herald");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = self.sender.send_request(request.body(Full::default())?);
        let answer = tokio::time::timeout(Duration::from_secs(5), answer).await??;
        Ok(Response::from_parts(answer.into_parts().0, ()))
    }

    /// Waits until the server has closed the connection.
    pub async fn closed(&mut self) {
        while !self.sender.is_closed() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

/// One request on a connection of its own.
pub async fn once(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Response<String> {
    let mut http = Http::connect(address).await.expect("a connection");
    let answer = http.send(method, path, headers, "").await;
    answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
}

/// The value of a header, empty when it is not there.
pub fn header<'a, B>(answer: &'a Response<B>, name: &str) -> &'a str {
    let value = answer.headers().get(name);
    value.map_or("", |value| value.to_str().expect("text"))
}
