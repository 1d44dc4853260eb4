//! The clients: the connections of all sessions on one epoll.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::frames::{Decoder, Frames, Input, handshake};

/// Connections that are read before the clock is.
const EVENTS: usize = 256;

/// Between two looks if there was nothing. A client that waited in epoll would be woken by each write, at the server's cost, and by a
/// slow server more often than by a fast one; clients on other machines cost it nothing.
const NAP: Duration = Duration::from_micros(200);

/// When frames are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Each session has this many in flight.
    InFlight(usize),
    /// This many a second in all, whatever is acknowledged; the sessions in turn.
    Rate(u32),
    /// None.
    Stop,
}

pub struct Sessions {
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    output: Vec<u8>,
    frames: Frames,
    connections: Vec<Connection>,
    open: usize,
    in_flight: usize,
    /// The session whose turn it is, with a rate.
    turn: usize,
}

struct Connection {
    stream: TcpStream,
    decoder: Decoder,
    /// When each frame in flight was due.
    due: VecDeque<Instant>,
}

/// What came back.
#[derive(Default)]
pub struct Tally {
    /// From the time at which a frame was due to the read of its acknowledgement.
    pub delays: Vec<Duration>,
}

impl Sessions {
    /// Opens the connections.
    pub fn open(server: SocketAddr, count: usize, events: usize) -> anyhow::Result<Self> {
        let mut sessions = Self {
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            buffer: vec![0; 64 << 10],
            output: Vec::new(),
            frames: Frames::new(events),
            connections: Vec::with_capacity(count),
            open: 0,
            in_flight: 0,
            turn: 0,
        };
        for number in 0..count {
            let stream = std::net::TcpStream::connect(server)
                .with_context(|| format!("cannot connect to {server}"))?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            stream.write_all(handshake(number).as_bytes())?;
            let registry = sessions.poll.registry();
            registry.register(&mut stream, Token(number), Interest::READABLE)?;
            sessions.connections.push(Connection {
                stream,
                decoder: Decoder::default(),
                due: VecDeque::new(),
            });
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while sessions.open < count {
            ensure!(
                Instant::now() < deadline,
                "{} of {count} connections were not accepted",
                count - sessions.open
            );
            let soon = Instant::now() + NAP;
            sessions.run(Pace::Stop, soon, &mut Tally::default())?;
        }
        Ok(sessions)
    }

    /// Sends and reads until then. With a rate, the first frame is due now.
    pub fn run(&mut self, pace: Pace, until: Instant, tally: &mut Tally) -> anyhow::Result<()> {
        let start = Instant::now();
        if let Pace::InFlight(window) = pace {
            for index in 0..self.connections.len() {
                self.fill(index, window)?;
            }
        }
        let mut sent = 0;
        loop {
            let now = Instant::now();
            if now >= until {
                return Ok(());
            }
            if let Pace::Rate(rate) = pace {
                let due = |number| start + Duration::from_secs(1) * number / rate;
                while due(sent) <= now {
                    self.send(self.turn, 1, due(sent))?;
                    self.turn = (self.turn + 1) % self.connections.len();
                    sent += 1;
                }
            }
            self.read(pace, tally)?;
            if self.events.is_empty() {
                std::thread::sleep(NAP);
            }
        }
    }

    /// Reads until every frame is acknowledged.
    pub fn drain(&mut self, limit: Duration, tally: &mut Tally) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        while self.in_flight > 0 {
            ensure!(
                Instant::now() < deadline,
                "{} frames are not acknowledged after {limit:?}",
                self.in_flight
            );
            self.run(Pace::Stop, Instant::now() + NAP, tally)?;
        }
        Ok(())
    }

    /// Reads what is there.
    fn read(&mut self, pace: Pace, tally: &mut Tally) -> anyhow::Result<()> {
        match self.poll.poll(&mut self.events, Some(Duration::ZERO)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        let ready: Vec<usize> = self.events.iter().map(|event| event.token().0).collect();
        for index in ready {
            self.read_one(index, tally)
                .with_context(|| format!("the connection of session {index} failed"))?;
            if let Pace::InFlight(window) = pace {
                self.fill(index, window)?;
            }
        }
        Ok(())
    }

    fn read_one(&mut self, index: usize, tally: &mut Tally) -> anyhow::Result<()> {
        let connection = &mut self.connections[index];
        let mut answer = Vec::new();
        loop {
            let count = match connection.stream.read(&mut self.buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                count => count?,
            };
            ensure!(count > 0, "the server has ended it");
            let now = Instant::now();
            let mut unexpected = false;
            let each = |input| match input {
                Input::Open => self.open += 1,
                Input::Acknowledged => match connection.due.pop_front() {
                    Some(due) => {
                        self.in_flight -= 1;
                        tally.delays.push(now - due);
                    }
                    None => unexpected = true,
                },
            };
            let input = &self.buffer[..count];
            connection.decoder.read(input, &mut answer, each)?;
            ensure!(!unexpected, "more acknowledgements than frames");
            // Less than there was room for: that was all.
            if count < self.buffer.len() {
                break;
            }
        }
        if !answer.is_empty() {
            connection.stream.write_all(&answer)?;
        }
        Ok(())
    }

    /// Sends until so many frames are in flight.
    fn fill(&mut self, index: usize, window: usize) -> anyhow::Result<()> {
        let missing = window.saturating_sub(self.connections[index].due.len());
        self.send(index, missing, Instant::now())
    }

    /// In one write. A socket's buffer has room for all frames in flight.
    fn send(&mut self, index: usize, count: usize, due: Instant) -> anyhow::Result<()> {
        if count == 0 {
            return Ok(());
        }
        self.output.clear();
        for _ in 0..count {
            self.frames.write(&mut self.output);
        }
        let connection = &mut self.connections[index];
        connection
            .stream
            .write_all(&self.output)
            .with_context(|| format!("cannot send to session {index}"))?;
        connection.due.extend(std::iter::repeat_n(due, count));
        self.in_flight += count;
        Ok(())
    }
}
