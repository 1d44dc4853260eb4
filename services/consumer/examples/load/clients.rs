//! The clients: all connections on one epoll.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Socket, Type};

use crate::wire::{Decoder, Protocol, Told};

/// Connections that are opened before the first of them is waited for.
const AT_ONCE: usize = 200;

/// A source address has 28,000 ports, some of them still taken by a run before.
const SOURCES: usize = 8;

/// Connections that are looked at before the clock is.
const EVENTS: usize = 256;

/// Between two looks when there was nothing. A client that waited in epoll would be woken by each write, at the server's cost, and
/// by a slow server more often than by a fast one; clients on other machines cost it nothing.
const NAP: Duration = Duration::from_micros(200);

pub struct Clients {
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    connections: Vec<Connection>,
    ready: usize,
}

struct Connection {
    stream: TcpStream,
    decoder: Decoder,
    /// The number of the message that is due.
    next: u64,
    /// Between its messages: one, or the number of rooms.
    step: u64,
}

/// What was published and what came of it.
#[derive(Default)]
pub struct Tally {
    /// When each message was due to be published, by its number.
    pub published: Vec<Instant>,
    /// From there to the read of its last byte, for each delivery.
    pub delays: Vec<Duration>,
    /// Deliveries that were not the next message of their connection.
    pub misplaced: u64,
}

impl Clients {
    /// Opens the connections, each in one of the rooms in turn, and waits until all streams have started.
    pub fn open(
        server: SocketAddr,
        protocol: Protocol,
        count: usize,
        rooms: Option<u64>,
    ) -> anyhow::Result<Self> {
        let mut clients = Self {
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            buffer: vec![0; 64 << 10],
            connections: Vec::with_capacity(count),
            ready: 0,
        };
        for number in 0..count {
            let mut stream = connect(server, number)?;
            let room = rooms.map(|rooms| number as u64 % rooms);
            stream.write_all(protocol.request(room).as_bytes())?;
            clients
                .poll
                .registry()
                .register(&mut stream, Token(number), Interest::READABLE)?;
            clients.connections.push(Connection {
                stream,
                decoder: Decoder::new(protocol),
                next: room.unwrap_or(0),
                step: rooms.unwrap_or(1),
            });
            if (number + 1) % AT_ONCE == 0 || number + 1 == count {
                let deadline = Instant::now() + Duration::from_secs(20);
                while clients.ready <= number {
                    ensure!(
                        Instant::now() < deadline,
                        "{} of {} streams did not start",
                        number + 1 - clients.ready,
                        number + 1
                    );
                    clients.read_until(Instant::now() + NAP, &mut Tally::default())?;
                }
            }
        }
        Ok(clients)
    }

    /// Reads until then.
    pub fn read_until(&mut self, then: Instant, tally: &mut Tally) -> anyhow::Result<()> {
        loop {
            let left = then.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.read(tally)?;
            if self.events.is_empty() {
                std::thread::sleep(left.min(NAP));
            }
        }
    }

    /// Reads what is there.
    fn read(&mut self, tally: &mut Tally) -> anyhow::Result<()> {
        match self.poll.poll(&mut self.events, Some(Duration::ZERO)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        for event in &self.events {
            let connection = &mut self.connections[event.token().0];
            self.ready += connection
                .read(&mut self.buffer, tally)
                .context("a connection failed")?;
        }
        Ok(())
    }
}

impl Connection {
    /// Reads all there is; 1 when the stream has started.
    fn read(&mut self, buffer: &mut [u8], tally: &mut Tally) -> anyhow::Result<usize> {
        let mut ready = 0;
        let mut answer = Vec::new();
        loop {
            let count = match self.stream.read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                count => count?,
            };
            ensure!(count > 0, "the server has ended it");
            let now = Instant::now();
            self.decoder
                .read(&buffer[..count], &mut answer, |told| match told {
                    Told::Ready => ready = 1,
                    Told::Message(number) => {
                        tally.misplaced += u64::from(number != self.next);
                        self.next = number + self.step;
                        tally.delays.extend(
                            tally
                                .published
                                .get(number as usize)
                                .map(|published| now - *published),
                        );
                    }
                })?;
            // Less than there was room for: that was all.
            if count < buffer.len() {
                break;
            }
        }
        if !answer.is_empty() {
            self.stream.write_all(&answer)?;
        }
        Ok(ready)
    }
}

fn connect(server: SocketAddr, number: usize) -> anyhow::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    let source = Ipv4Addr::new(127, 0, 0, 2 + (number % SOURCES) as u8);
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket
        .connect(&server.into())
        .with_context(|| format!("cannot connect to {server}"))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    Ok(TcpStream::from_std(socket.into()))
}
