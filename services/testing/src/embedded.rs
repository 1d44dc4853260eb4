//! The embedded broker as the tests' Kafka: `HERALD_TEST_KAFKA=embedded`.

use std::sync::{Mutex, OnceLock, mpsc};

use rdkafka::mocking::MockCluster;

/// The value of `HERALD_TEST_KAFKA` that selects it.
pub(crate) const NAME: &str = "embedded";

struct Embedded {
    address: String,
    topics: Mutex<mpsc::Sender<NewTopic>>,
}

struct NewTopic {
    name: String,
    partitions: i32,
    created: mpsc::Sender<()>,
}

/// One for all tests of a process; it stops when the process exits.
fn embedded() -> &'static Embedded {
    static EMBEDDED: OnceLock<Embedded> = OnceLock::new();
    EMBEDDED.get_or_init(|| {
        let (topics, requests) = mpsc::channel::<NewTopic>();
        let (started, address) = mpsc::channel();
        // The cluster must not leave the thread that created it.
        std::thread::spawn(move || {
            let cluster = MockCluster::new(1).expect("cannot start the embedded broker");
            _ = started.send(cluster.bootstrap_servers());
            for topic in requests {
                cluster
                    .create_topic(&topic.name, topic.partitions, 1)
                    .expect("cannot create a topic in the embedded broker");
                _ = topic.created.send(());
            }
        });
        Embedded {
            address: address.recv().expect("the embedded broker starts"),
            topics: Mutex::new(topics),
        }
    })
}

/// `host:port`.
pub(crate) fn address() -> String {
    embedded().address.clone()
}

/// Whether the tests' Kafka is the embedded broker.
pub(crate) fn is_selected() -> bool {
    std::env::var("HERALD_TEST_KAFKA").is_ok_and(|kafka| kafka == NAME)
}

/// Creates a topic; the embedded broker does not support the request that creates one in a real Kafka.
pub(crate) fn create_topic(name: &str, partitions: i32) {
    let (created, done) = mpsc::channel();
    let topic = NewTopic {
        name: name.to_owned(),
        partitions,
        created,
    };
    let topics = embedded().topics.lock().expect("no panic while it is held");
    topics.send(topic).expect("the embedded broker is running");
    done.recv().expect("the embedded broker creates the topic");
}
