//! A listening socket for a service.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{TcpListener, TcpSocket};

use crate::config::invalid;

/// Maximum number of connections waiting to be accepted. The default of 128 loses SYNs when a thousand browsers reconnect at
/// once.
const BACKLOG: u32 = 4096;

/// Listens on `addr`, which the user set with `--listen` or `--admin-listen`. A port in use is a configuration error: one
/// sentence, with exit code 2.
pub fn bind(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    bind_chosen(addr, "--listen or --admin-listen")
}

/// Like [`bind`], for an address that the user set with another `option`.
pub fn bind_chosen(addr: SocketAddr, option: &str) -> anyhow::Result<TcpListener> {
    listen(addr).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another process uses this port; stop it, or choose another"
            }
            io::ErrorKind::AddrNotAvailable => {
                "this machine does not have this address; choose another"
            }
            io::ErrorKind::PermissionDenied => "not permitted; choose a port above 1023",
            _ => return anyhow::Error::new(error).context(format!("cannot listen on {addr}")),
        };
        invalid(format!("cannot listen on {addr}: {why} with {option}"))
    })
}

/// `[::]` takes connections over IPv4 too; where the kernel has no IPv6 it becomes `0.0.0.0`.
fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    if addr.ip() == Ipv6Addr::UNSPECIFIED && TcpSocket::new_v6().is_err() {
        return listen_on(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), addr.port()));
    }
    listen_on(addr)
}

fn listen_on(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    // Otherwise a restarted service has to wait for the old connections' TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::is_invalid;

    #[tokio::test]
    async fn by_default_both_versions_of_ip_are_served() {
        let listener = bind("[::]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        for address in ["127.0.0.1", "::1"] {
            let address = SocketAddr::new(address.parse().unwrap(), port);
            if address.is_ipv6() && TcpSocket::new_v6().is_err() {
                continue;
            }
            let client = tokio::net::TcpStream::connect(address).await;
            client.unwrap_or_else(|error| panic!("{address}: {error}"));
            listener.accept().await.unwrap();
        }
    }

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
