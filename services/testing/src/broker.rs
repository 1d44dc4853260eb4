//! A private Kafka for one test, which may stop, kill and restart it.

use std::path::PathBuf;
use std::time::Duration;

use crate::KafkaProcess;
use crate::client::blocking;
use crate::topics::wait_until_reachable;

/// A private Apache Kafka, started in 3 to 6 seconds. Dropping it stops it and deletes its data.
pub struct Broker {
    address: String,
    process: Option<KafkaProcess>,
}

impl Broker {
    /// Starts one from the jars in `HERALD_KAFKA_JARS`, with `java` on the PATH. Without the variable, the test is skipped with
    /// one line; with `CI=true` it fails.
    pub async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// Like [`start`](Self::start), with additional `server.properties`, such as `("log.retention.ms", "1000")`.
    pub async fn start_with(settings: &[(&str, &str)]) -> Option<Self> {
        if crate::embedded::is_selected() {
            crate::leave_out("the embedded broker has no process that can be stopped");
            return None;
        }
        let jars = PathBuf::from(crate::required_var(
            "HERALD_KAFKA_JARS",
            "a folder with the jars of Apache Kafka",
        )?);
        let settings: Vec<(String, String)> = settings
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let process = blocking(move || {
            let settings: Vec<(&str, &str)> = settings
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str()))
                .collect();
            KafkaProcess::start(&jars, &settings).expect("cannot start a Kafka")
        })
        .await;
        let broker = Self {
            address: process.address(),
            process: Some(process),
        };
        wait_until_reachable(&broker.address).await;
        Some(broker)
    }

    /// `127.0.0.1:<port>`, unchanged across restarts.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Stops it cleanly (SIGTERM) and waits until it has exited. The data is kept.
    pub async fn stop(&mut self) {
        self.with(|process| process.stop(Duration::from_secs(30)))
            .await;
    }

    /// Kills it (SIGKILL). The data is kept.
    pub async fn kill(&mut self) {
        self.with(KafkaProcess::kill).await;
    }

    /// Starts it again with the same port and data, and waits until it is reachable.
    pub async fn start_again(&mut self) {
        self.with(KafkaProcess::start_again).await;
        wait_until_reachable(&self.address).await;
    }

    /// Edits the first segment of a partition's log. Kafka must be stopped.
    pub async fn edit_log(
        &mut self,
        topic: &str,
        partition: i32,
        edit: impl FnOnce(&mut Vec<u8>) + Send + 'static,
    ) {
        let topic = topic.to_owned();
        self.with(move |process| process.edit_log(&topic, partition, edit))
            .await;
    }

    /// Makes it recover its whole logs at the next start, as after a crash in which the disk lost its last writes.
    pub async fn forget_checkpoints(&mut self) {
        self.with(|process| process.forget_checkpoints()).await;
    }

    /// Denies all users read access to a topic, or allows it again; everything else stays allowed. The broker needs an
    /// authorizer; see [`Broker::AUTHORIZER`].
    pub async fn deny_read(&mut self, topic: &str, deny: bool) {
        let (topic, address) = (topic.to_owned(), self.address.clone());
        self.with(move |process| {
            let acls = |args: &[&str]| {
                let common = ["--bootstrap-server", &address, "--topic", &topic];
                let class = "org.apache.kafka.tools.AclCommand";
                process.tool(class, &[&common, args].concat())
            };
            let read = ["--deny-principal", "User:*", "--operation", "Read"];
            if deny {
                // If a topic has any ACL, whatever no ACL allows is denied.
                acls(&["--add", "--allow-principal", "User:*", "--operation", "All"])?;
                acls(&[&["--add"], &read[..]].concat())
            } else {
                acls(&[&["--remove", "--force"], &read[..]].concat())
            }
        })
        .await;
    }

    /// Settings of a broker that supports ACLs, and allows everything on resources without one.
    pub const AUTHORIZER: [(&str, &str); 2] = [
        (
            "authorizer.class.name",
            "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        ),
        ("allow.everyone.if.no.acl.found", "true"),
    ];

    async fn with(
        &mut self,
        action: impl FnOnce(&mut KafkaProcess) -> anyhow::Result<()> + Send + 'static,
    ) {
        let mut process = self
            .process
            .take()
            .expect("the previous call was not cancelled");
        self.process = Some(
            blocking(move || {
                action(&mut process).expect("cannot stop or start Kafka");
                process
            })
            .await,
        );
    }
}
