//! A Kafka of a test's own, which it may stop, kill and start again.

use std::path::PathBuf;
use std::time::Duration;

use crate::KafkaProcess;
use crate::client::blocking;
use crate::topics::answers;

/// A private Apache Kafka, started in 3 to 6 seconds. It ends, with its data, when it is dropped.
pub struct Broker {
    address: String,
    process: Option<KafkaProcess>,
}

impl Broker {
    /// Starts one from the jars in `HERALD_KAFKA_JARS`, with `java` on the PATH. Without the variable one line says why the
    /// test is left out; with `CI=true` that is a failure.
    pub async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// The same with more lines for `server.properties`, such as `("log.retention.ms", "1000")`.
    pub async fn start_with(settings: &[(&str, &str)]) -> Option<Self> {
        if crate::embedded::is_meant() {
            crate::leave_out("the embedded broker has no process that can be stopped");
            return None;
        }
        let jars = PathBuf::from(crate::needed(
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
        answers(&broker.address).await;
        Some(broker)
    }

    /// `127.0.0.1:<port>`, the same for its whole life.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Ends it in order (SIGTERM) and waits until it is gone. The data stays.
    pub async fn stop(&mut self) {
        self.with(|process| process.stop(Duration::from_secs(30)))
            .await;
    }

    /// Ends it at once (SIGKILL). The data stays.
    pub async fn kill(&mut self) {
        self.with(KafkaProcess::kill).await;
    }

    /// Starts it on the port and the data that it had before, and waits until it answers.
    pub async fn start_again(&mut self) {
        self.with(KafkaProcess::start_again).await;
        answers(&self.address).await;
    }

    /// Changes the first segment of a partition's log while it is stopped.
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

    /// Has it look at its whole logs when it starts, as after a crash in which the disk lost its last writes.
    pub async fn forget_checkpoints(&mut self) {
        self.with(|process| process.forget_checkpoints()).await;
    }

    /// Denies everybody to read a topic, or allows it again; everything else stays allowed. The broker needs an authorizer; see
    /// [`Broker::AUTHORIZER`].
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
                // Where a topic has an ACL, what none allows is denied.
                acls(&["--add", "--allow-principal", "User:*", "--operation", "All"])?;
                acls(&[&["--add"], &read[..]].concat())
            } else {
                acls(&[&["--remove", "--force"], &read[..]].concat())
            }
        })
        .await;
    }

    /// Settings of a broker that knows ACLs, and lets everybody do what none speaks of.
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
            .expect("the call before was not cancelled");
        self.process = Some(
            blocking(move || {
                action(&mut process).expect("cannot stop or start Kafka");
                process
            })
            .await,
        );
    }
}
