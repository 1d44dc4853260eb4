//! A client of the API server for long-lived connections with small writes.

use std::time::Duration;

use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::client::ConfigExt;
use tower::{BoxError, ServiceBuilder};

use crate::cluster::Cluster;

/// Not kube's own, which leaves Nagle's algorithm on (40 ms for a small write behind another) and sends no keepalives:
/// it would never detect that the cluster has vanished.
pub async fn connect(cluster: &Cluster) -> anyhow::Result<Client> {
    let config = cluster.config().await?;
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(Duration::from_secs(5)));
    // Dead after 25 s: less than a user waits for a page, more than roaming between Wi-Fi access points takes.
    tcp.set_keepalive(Some(Duration::from_secs(10)));
    tcp.set_keepalive_interval(Some(Duration::from_secs(5)));
    tcp.set_keepalive_retries(Some(3));
    // The same for unacknowledged data, which suspends keepalives.
    #[cfg(target_os = "linux")]
    tcp.set_tcp_user_timeout(Some(Duration::from_secs(25)));
    let tls = config.rustls_https_connector_with_connector(tcp)?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(legacy::Client::builder(TokioExecutor::new()).build(tls));
    Ok(Client::new(service, config.default_namespace))
}
