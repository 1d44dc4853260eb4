//! As much of HTTP as the tests need, over plain sockets.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Longer than a forward waits for a pod.
const TIMEOUT: Duration = Duration::from_secs(40);

pub struct Response {
    pub status: u16,
    pub body: String,
}

/// One request on its own connection; an error if the response is incomplete.
pub fn get(port: u16, path: &str) -> io::Result<Response> {
    request(port, "GET", path, "")
}

pub fn request(port: u16, method: &str, path: &str, body: &str) -> io::Result<Response> {
    let mut stream = open(port)?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut response = BufReader::new(stream);
    let status = line(&mut response)?;
    let status = status.split(' ').nth(1).and_then(|code| code.parse().ok());
    let mut length = 0;
    loop {
        let header = line(&mut response)?.to_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length: ") {
            length = value.parse().map_err(io::Error::other)?;
        }
    }
    // Not until the connection closes: the node takes a second to pass that on.
    let mut body = vec![0; length];
    response.read_exact(&mut body)?;
    Ok(Response {
        status: status.ok_or(io::ErrorKind::InvalidData)?,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

/// A complete line; the end of the connection is an error.
fn line(response: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    response.read_line(&mut line)?;
    let line = line.strip_suffix("\r\n");
    Ok(line.ok_or(io::ErrorKind::UnexpectedEof)?.to_owned())
}

/// A stream of events whose response has begun.
pub fn events(port: u16) -> io::Result<TcpStream> {
    let mut stream = open(port)?;
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut beginning = [0; 15];
    stream.read_exact(&mut beginning)?;
    assert_eq!(&beginning, b"HTTP/1.1 200 OK");
    Ok(stream)
}

fn open(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    Ok(stream)
}
