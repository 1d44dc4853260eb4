//! The bytes of a TCP connection.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::slots::Slot;
use super::{Connection, Limits};

/// The socket of a connection. Dropping it closes the connection and updates the count.
#[derive(Debug)]
pub struct Socket {
    pub stream: TcpStream,
    pub slot: Slot,
}

impl Socket {
    pub fn new(stream: TcpStream, slot: Slot, limits: &Limits) -> Self {
        prepare(&stream, limits);
        Self { stream, slot }
    }

    pub fn shutdown(&self, how: std::net::Shutdown) -> io::Result<()> {
        SockRef::from(&self.stream).shutdown(how)
    }

    /// Reads and discards until the client has closed the connection, which was closed for writing: see
    /// [`finish`](crate::http::finish).
    pub async fn linger(&self) -> io::Result<()> {
        let mut rest = [0; 4 << 10];
        loop {
            self.stream.readable().await?;
            match self.stream.try_read(&mut rest) {
                Ok(0) => return Ok(()),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
    }
}

/// Sets the socket's options. Failures are ignored: the defaults also work, only less well.
fn prepare(stream: &TcpStream, limits: &Limits) {
    let socket = SockRef::from(stream);
    _ = stream.set_nodelay(true);
    _ = socket.set_send_buffer_size(limits.send_buffer);
    // Unacknowledged heartbeats end the connection of a client that vanished.
    #[cfg(target_os = "linux")]
    {
        _ = socket.set_tcp_user_timeout(Some(Duration::from_secs(30)));
    }
}

/// The bytes of a connection; records when they are transferred.
pub struct Io {
    pub socket: Arc<Socket>,
    pub connection: Arc<Connection>,
}

impl Io {
    fn poll_write_with(
        &self,
        cx: &mut Context<'_>,
        length: usize,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.socket.stream.poll_write_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.connection.record_blocked();
                    return Poll::Pending;
                }
            }
            match write(&self.socket.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    if let Ok(taken) = result {
                        self.connection.record_taken(taken);
                        if taken == length {
                            self.connection.record_caught_up();
                        }
                    }
                    return Poll::Ready(result);
                }
            }
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.socket.stream.poll_read_ready(cx))?;
            // Not `initialize_unfilled`: zeroing would make the kernel allocate pages that are rarely used.
            match self.socket.stream.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(_) => {
                    self.connection.record_active();
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, bytes.len(), |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        self.poll_write_with(cx, length, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.shutdown(std::net::Shutdown::Write))
    }
}
