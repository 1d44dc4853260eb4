//! A plain TCP balancer in front of replicas, as a Service is: it knows connections, not requests.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::{TcpListener, TcpStream};

pub struct Balancer {
    pub address: SocketAddr,
    backends: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Balancer {
    /// Sends each connection to one of the backends, by the address that it comes from: polling clients need the same
    /// replica for all requests of a session.
    pub async fn start(backends: &[SocketAddr]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let backends = Arc::new(Mutex::new(backends.to_vec()));
        let shared = backends.clone();
        tokio::spawn(async move {
            while let Ok((mut client, from)) = listener.accept().await {
                let backend = {
                    let backends = shared.lock().expect("no panic");
                    let SocketAddr::V4(from) = from else {
                        unreachable!("listens on IPv4")
                    };
                    backends[usize::from(from.ip().octets()[3]) % backends.len()]
                };
                tokio::spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(backend).await {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        Self { address, backends }
    }

    /// From now on new connections go to these.
    pub fn point_to(&self, backends: &[SocketAddr]) {
        *self.backends.lock().expect("no panic") = backends.to_vec();
    }
}
