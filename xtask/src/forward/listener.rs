//! The port on this machine.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::connection::forward;
use super::log::Log;
use super::service::Target;
use crate::port;

/// Each has its own connection to the API server, so it takes two descriptors. Further ones wait in the backlog.
const MAX_CONNECTIONS: usize = 1000;

/// For all connections and other open files. The default limit is 1,024 (Linux) or 256 (macOS).
const DESCRIPTORS: u64 = 4096;

/// Raises this process's limit of open files, as far as the system allows.
pub fn raise_limit() {
    if let Err(error) = rlimit::increase_nofile_limit(DESCRIPTORS) {
        println!(
            "cannot raise the limit of open files, so there may be fewer than {MAX_CONNECTIONS} connections: {error}"
        );
    }
}

/// Listens on both addresses that a browser may use for `localhost`.
pub async fn bind(port: u16) -> anyhow::Result<Vec<TcpListener>> {
    if !port::is_free(port) {
        bail!("{}; end it and try again", port::in_use(port));
    }
    let mut listeners = Vec::new();
    for address in [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    ] {
        match TcpListener::bind((address, port)).await {
            Ok(listener) => listeners.push(listener),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                bail!("{}; end it and try again", port::in_use(port))
            }
            // A machine without IPv6.
            Err(_) if address.is_ipv6() => {}
            Err(error) => bail!("cannot listen on {address}, port {port}: {error}"),
        }
    }
    Ok(listeners)
}

/// Forwards every connection; does not return.
pub async fn accept(
    listeners: Vec<TcpListener>,
    target: watch::Receiver<Option<Target>>,
    log: Arc<Log>,
) {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = JoinSet::new();
    for listener in listeners {
        tasks.spawn(accept_on(
            listener,
            free.clone(),
            target.clone(),
            log.clone(),
        ));
    }
    while tasks.join_next().await.is_some() {}
}

async fn accept_on(
    listener: TcpListener,
    free: Arc<Semaphore>,
    target: watch::Receiver<Option<Target>>,
    log: Arc<Log>,
) {
    loop {
        let permit = free.clone().acquire_owned().await;
        match listener.accept().await {
            Ok((client, _)) => {
                let connection = forward(client, target.clone(), log.clone());
                tokio::spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Most likely out of descriptors, until other connections close.
                log.print(&format!("cannot accept a connection: {error}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_rejected_in_one_sentence() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let why = bind(port).await.unwrap_err().to_string();
        assert!(
            why.starts_with(&format!("port {port} is in use by ")),
            "{why}"
        );
        assert!(why.ends_with("; end it and try again"), "{why}");
    }
}
