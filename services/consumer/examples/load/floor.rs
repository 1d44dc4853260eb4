//! The floor: a bare epoll server that writes the bytes it is handed to all connections.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpListener as StdListener;

use anyhow::Context as _;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

const LISTENER: Token = Token(usize::MAX - 1);
const CONTROL: Token = Token(usize::MAX - 2);

struct Connection {
    stream: TcpStream,
    /// What the socket has not taken yet.
    rest: Vec<u8>,
}

/// Serves until its control connection ends. Each block on that is a length (four bytes, big endian) and the bytes to write.
pub fn run() -> anyhow::Result<()> {
    let control = StdListener::bind("127.0.0.1:0")?;
    let public = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    public.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    public.listen(4096)?;
    public.set_nonblocking(true)?;
    let mut listener = TcpListener::from_std(public.into());
    println!(
        "{{\"public\":\"{}\",\"control\":\"{}\"}}",
        listener.local_addr()?,
        control.local_addr()?
    );
    let (control, _) = control.accept()?;
    control.set_nonblocking(true)?;
    let mut control = TcpStream::from_std(control);

    let mut poll = Poll::new()?;
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    poll.registry()
        .register(&mut control, CONTROL, Interest::READABLE)?;
    let mut connections: Vec<Connection> = Vec::new();
    let mut events = Events::with_capacity(1024);
    let mut orders = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        }
        for event in &events {
            match event.token() {
                LISTENER => accept(&listener, &poll, &mut connections)?,
                CONTROL => {
                    if !read(&mut control, &mut orders, &mut buffer)? {
                        return Ok(());
                    }
                    obey(&mut orders, &mut connections);
                }
                Token(number) if event.is_writable() => connections[number].write(&[]),
                _ => {}
            }
        }
    }
}

fn accept(
    listener: &TcpListener,
    poll: &Poll,
    connections: &mut Vec<Connection>,
) -> anyhow::Result<()> {
    loop {
        let mut stream = match listener.accept() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            accepted => accepted.context("cannot accept a connection")?.0,
        };
        stream.set_nodelay(true)?;
        poll.registry().register(
            &mut stream,
            Token(connections.len()),
            Interest::READABLE | Interest::WRITABLE,
        )?;
        let mut connection = Connection {
            stream,
            rest: Vec::new(),
        };
        connection.write(b"event: start\n\n");
        connections.push(connection);
    }
}

/// Reads all there is; false at the end.
fn read(control: &mut TcpStream, orders: &mut Vec<u8>, buffer: &mut [u8]) -> anyhow::Result<bool> {
    loop {
        match control.read(buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => orders.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// One write for each connection and whole order.
fn obey(orders: &mut Vec<u8>, connections: &mut [Connection]) {
    while let Some((length, rest)) = orders.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let Some(block) = rest.get(..length) else {
            return;
        };
        for connection in connections.iter_mut() {
            connection.write(block);
        }
        orders.drain(..4 + length);
    }
}

impl Connection {
    /// A connection that has failed is the other side's to notice.
    fn write(&mut self, block: &[u8]) {
        if !self.rest.is_empty() {
            let taken = self.stream.write(&self.rest).unwrap_or(0);
            self.rest.drain(..taken);
        }
        let taken = if self.rest.is_empty() {
            self.stream.write(block).unwrap_or(0)
        } else {
            0
        };
        self.rest.extend_from_slice(&block[taken..]);
        if self.rest.is_empty() {
            self.rest = Vec::new();
        }
    }
}
