use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::time::{sleep, timeout};
use warp::Reply as _;
use warp::reply::Response;

use super::*;

mod http2;
mod tls;

struct Running {
    address: SocketAddr,
    metrics: ServerMetrics,
    open: IntGauge,
    tasks: TaskTracker,
    stop: Stop,
}

impl Running {
    /// How many connections were rejected for this reason.
    fn rejected(&self, reason: &str) -> u64 {
        self.metrics.rejected.with_label_values(&[reason]).get()
    }
}

/// A server whose responses are eight megabytes.
async fn server(limits: Limits) -> Running {
    serve(limits, None, async |_| {
        Ok("x".repeat(8 << 20).into_response())
    })
    .await
}

async fn serve<F>(
    limits: Limits,
    tls: Option<Tls>,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) -> Running
where
    F: Future<Output = Result<Response, Infallible>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = ServerMetrics::new(&Registry::new()).unwrap();
    let server = Server {
        limits,
        connections: Connections::default(),
        metrics: metrics.clone(),
        tls,
        tasks: TaskTracker::new(),
        stop: Stop::default(),
    };
    let running = Running {
        address,
        open: metrics.connections.clone(),
        metrics,
        tasks: server.tasks.clone(),
        stop: server.stop.clone(),
    };
    tokio::spawn(server.serve(listener, answer));
    running
}

/// Limits with a short window.
fn limits() -> Limits {
    Limits {
        min_bytes: 32 << 10,
        min_bytes_window: Duration::from_secs(1),
        ..Limits::new(100, 0, Duration::from_secs(75))
    }
}

/// A client with a small receive buffer.
async fn request(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: herald\r\n\r\n";
    stream.write_all(request).await.unwrap();
    stream
}

/// Reads this many bytes ten times a second; `Err` if the server has cut the connection.
async fn read(stream: &mut TcpStream, bytes: usize, duration: Duration) -> Result<(), ()> {
    let began = Instant::now();
    let mut piece = vec![0; bytes];
    while began.elapsed() < duration {
        stream.read_exact(&mut piece).await.map_err(drop)?;
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_reads_only_a_trickle_is_cut() {
    let server = server(limits()).await;
    let mut stream = request(server.address).await;
    // The bytes in the kernels' buffers last for a while.
    let cut = read(&mut stream, 1_000, Duration::from_secs(30)).await;
    assert!(
        cut.is_err(),
        "a client that reads 10 KB/s was served for 30 s"
    );
    assert_eq!(server.open.get(), 0);
}

#[tokio::test]
async fn a_moderately_slow_client_is_not_cut() {
    let server = server(limits()).await;
    let mut stream = request(server.address).await;
    let read = read(&mut stream, 10_000, Duration::from_secs(8)).await;
    assert!(read.is_ok(), "a client that reads 100 KB/s was cut");
    assert_eq!(server.open.get(), 1);
}

#[tokio::test]
async fn idle_connections_close_at_once_and_the_others_after_their_response() {
    let server = server(limits()).await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    let mut busy = request(server.address).await;
    busy.read_exact(&mut [0; 100]).await.unwrap();
    server.stop.shutdown.cancel();
    server.stop.closing.cancel();
    let mut rest = Vec::new();
    let closed = timeout(Duration::from_secs(1), idle.read_to_end(&mut rest)).await;
    assert_eq!(closed.expect("at once").unwrap(), 0);
    let read = timeout(Duration::from_secs(10), busy.read_to_end(&mut rest)).await;
    assert!(read.expect("the response ends").unwrap() > 8 << 20);
    server.tasks.close();
    let ended = timeout(Duration::from_secs(2), server.tasks.wait()).await;
    ended.expect("no task is left");
    assert_eq!(server.open.get(), 0);
}

#[tokio::test]
async fn an_address_far_over_its_cap_is_closed_at_once_and_one_slightly_over_it_is_answered() {
    let limits = Limits {
        per_address: 2,
        ..limits()
    };
    let answer = async |request: Request<Incoming>| {
        let connection = request.extensions().get::<Arc<Connection>>().unwrap();
        Ok(format!("overload: {}", connection.overload).into_response())
    };
    let server = serve(limits, None, answer).await;
    let mut open = Vec::new();
    let mut responses = Vec::new();
    for _ in 0..18 {
        let mut stream = request(server.address).await;
        let mut response = [0; 400];
        let length = stream.read(&mut response).await.unwrap();
        let response = String::from_utf8_lossy(&response[..length]);
        responses.push(response.ends_with("overload: true"));
        open.push(stream);
    }
    assert_eq!(responses[..3], [false, false, true]);
    assert_eq!(responses.iter().filter(|over| **over).count(), 16);
    let mut far_over = TcpStream::connect(server.address).await.unwrap();
    let closed = timeout(Duration::from_secs(1), far_over.read(&mut [0; 10])).await;
    assert_eq!(closed.expect("at once").unwrap(), 0);
    assert_eq!(server.rejected("address"), 1);
    drop(open.pop());
    while server.open.get() == 18 {
        sleep(Duration::from_millis(10)).await;
    }
    let mut next = request(server.address).await;
    assert!(next.read(&mut [0; 10]).await.unwrap() > 0);
}
