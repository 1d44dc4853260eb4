//! A listening socket for a service.

use std::io;
use std::net::SocketAddr;

use anyhow::Context;
use tokio::net::{TcpListener, TcpSocket};

use crate::config::invalid;

/// Connections that wait to be accepted. The default of 128 loses SYNs when a thousand browsers come back at once.
const BACKLOG: u32 = 4096;

/// Listens on `addr`. A port that is taken is one sentence for the user, with exit code 2.
pub fn bind(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }
    .context("cannot open a socket")?;
    // Without it a service that is started again has to wait for the old connections' TIME_WAIT.
    socket
        .set_reuseaddr(true)
        .context("cannot set SO_REUSEADDR")?;
    socket.bind(addr).and_then(|()| socket.listen(BACKLOG)).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => invalid(format!(
            "cannot listen on {addr}: another process uses this port; end it, or choose another address with --listen or --admin-listen"
        )),
        io::ErrorKind::AddrNotAvailable => invalid(format!(
            "cannot listen on {addr}: this machine does not have this address; choose another with --listen or --admin-listen"
        )),
        io::ErrorKind::PermissionDenied => invalid(format!(
            "cannot listen on {addr}: not permitted; choose a port above 1023 with --listen or --admin-listen"
        )),
        _ => anyhow::Error::new(error).context(format!("cannot listen on {addr}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::is_invalid;

    #[tokio::test]
    async fn a_port_in_use_is_one_sentence_with_the_address_and_a_remedy() {
        let first = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let taken = first.local_addr().unwrap();
        let error = bind(taken).unwrap_err();
        let sentence = format!("{error:#}");
        assert!(
            is_invalid(&error)
                && sentence.contains(&taken.to_string())
                && sentence.contains("--listen"),
            "{sentence}"
        );
    }
}
