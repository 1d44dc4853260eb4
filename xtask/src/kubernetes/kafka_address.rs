//! The address of an existing Kafka.

use std::str::FromStr;

/// One or more `HOST:PORT`, as a pod of the cluster reaches them.
#[derive(Clone, Debug, PartialEq)]
pub struct Address(String);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        for one in text.split(',') {
            let valid = one.rsplit_once(':').filter(|(host, port)| {
                !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
            });
            let Some((host, port)) = valid else {
                return Err("write it as HOST:PORT, for example kafka.example.org:9092".to_owned());
            };
            if matches!(host, "localhost" | "127.0.0.1" | "[::1]") {
                return Err(format!(
                    "to a pod, {host} is the pod itself: a Kafka on this machine is host.minikube.internal:{port}, \
                     which it has to advertise (advertised.listeners)"
                ));
            }
        }
        Ok(Self(text.to_owned()))
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Address {
    /// The chart's values for it, as helm arguments.
    pub fn values(&self) -> Vec<String> {
        let servers = self.0.replace(',', "\\,");
        let mut values = vec![format!("--set-string=kafka.bootstrapServers={servers}")];
        match self.namespace() {
            Some(namespace) => values.push(format!("--set-string=kafka.namespace={namespace}")),
            // A NetworkPolicy selects pods or IP blocks, and this may be any host.
            None => values.push("--set=networkPolicy.enabled=false".to_owned()),
        }
        values
    }

    /// The namespace of its Service, if it is in the cluster: `NAME.NAMESPACE.svc…`.
    fn namespace(&self) -> Option<&str> {
        let host = self.0.split([',', ':']).next()?;
        let (service, _) = host.split_once(".svc")?;
        service.rsplit_once('.').map(|(_, namespace)| namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_of_a_kafka_in_the_cluster_and_of_one_outside() {
        let values = |text: &str| text.parse::<Address>().unwrap().values();
        assert_eq!(
            values("my-kafka-bootstrap.streams.svc.cluster.local:9092"),
            [
                "--set-string=kafka.bootstrapServers=my-kafka-bootstrap.streams.svc.cluster.local:9092",
                "--set-string=kafka.namespace=streams"
            ]
        );
        assert_eq!(
            values("a.example.org:9092,b.example.org:9092"),
            [
                "--set-string=kafka.bootstrapServers=a.example.org:9092\\,b.example.org:9092",
                "--set=networkPolicy.enabled=false"
            ]
        );
    }

    #[test]
    fn an_address_that_no_pod_can_reach_is_rejected_with_a_remedy() {
        let error = |text: &str| text.parse::<Address>().unwrap_err();
        for text in ["kafka", ":9092", "kafka:0", "kafka:http", "a:9092,", ""] {
            assert!(error(text).starts_with("write it as HOST:PORT"), "{text}");
        }
        assert_eq!(
            error("localhost:9092"),
            "to a pod, localhost is the pod itself: a Kafka on this machine is host.minikube.internal:9092, \
             which it has to advertise (advertised.listeners)"
        );
    }
}
