//! The live reader: one thread and one Kafka client for all topics. It adds the records to the topics' feeds; each topic's
//! supervisor decides how to resolve problems.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use herald_runtime::kafka::{Context, create};
use herald_runtime::telemetry::{Sampler, shortened};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::{mpsc as async_mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::commands::{Command, Commands, Problem, Ready};
use super::fault::Fault;
use super::health::{Health, ReaderContext, Scope};
use super::pool::Pool;
use super::supervisor::Supervisor;
use super::{Log, Topic, decode};
use crate::config::{Config, Served};
use crate::cursor::TopicId;
use crate::feed::{Feed, Limits};
use crate::latest::Latest;
use crate::metrics::Metrics;
use crate::record::{Event, Payload, Value};

/// The most messages of a partition that are delivered at once; more would delay other partitions.
const BATCH: usize = 512;

/// The longest delay before the client's statistics and errors are handled.
const TICK: Duration = Duration::from_millis(100);

/// How long the thread may take to close its client when it ends.
const CLOSING: Duration = Duration::from_secs(5);

/// The number of characters of a message that are logged. The contract's own messages have 60.
const LOGGED_CHARACTERS: usize = 200;

type Decode = fn(&BorrowedMessage<'_>, usize) -> Event;
type Client = BaseConsumer<ReaderContext>;

/// Reads all topics.
pub struct Reader {
    config: ClientConfig,
    context: ReaderContext,
    topics: Vec<Live>,
    max_message_bytes: usize,
    decode: Decode,
    supervisors: Vec<Supervisor>,
    commands: mpsc::Receiver<Command>,
    ready: Arc<Ready>,
    problems: Vec<async_mpsc::UnboundedReceiver<Problem>>,
}

/// The thread's state of one topic.
struct Live {
    topic: Arc<Topic>,
    health: Arc<Health>,
    problems: async_mpsc::UnboundedSender<Problem>,
    /// Indexed by partition number.
    partitions: Vec<Partition>,
    pending: Vec<Event>,
    received: Sampler,
}

#[derive(Default)]
struct Partition {
    /// Set while the partition is assigned.
    queue: Option<PartitionQueue<ReaderContext>>,
    /// Records are discarded until the supervisor has decided where reading continues.
    paused: bool,
    failing: bool,
}

impl Reader {
    /// A reader that is not running yet.
    ///
    /// # Errors
    ///
    /// If the Kafka properties are invalid.
    pub fn new(config: &Config, metrics: Metrics) -> anyhow::Result<Self> {
        let mut client = config.kafka_client()?;
        // librdkafka exposes the topics' ids only in its debug log; see `ReaderContext::log`.
        let debug = client
            .get("debug")
            .map_or("topic".to_owned(), |given| format!("{given},topic"));
        client
            .set("debug", debug)
            .set_log_level(RDKafkaLogLevel::Debug);
        let served = config.topics();
        let healths: HashMap<_, _> = served
            .iter()
            .map(|served| {
                let health = Health::new(&served.name, served.optional);
                (served.name.clone(), Arc::new(health))
            })
            .collect();
        let healths = Arc::new(healths);
        // One shared connection state, so that an unreachable Kafka is logged once, not by each client.
        let context = |live| ReaderContext {
            connection: Context::new(),
            topics: healths.clone(),
            metrics: metrics.clone(),
            live,
            retired: Arc::default(),
            calls: Arc::default(),
        };
        let live = context(true);
        let pooled = ReaderContext {
            connection: live.connection.clone(),
            ..context(false)
        };
        let pool = Arc::new(Pool::new(&client, pooled, config.replay_readers));
        let limits = Limits {
            events: config.ring_messages,
            age: config.ring_time,
            bytes: config.ring_bytes,
            batch_events: 512,
        };
        let ready: Arc<Ready> = Arc::default();
        let (commands, receiver) = Commands::new(ready.clone());
        let (mut topics, mut supervisors, mut problems) = (Vec::new(), Vec::new(), Vec::new());
        for (number, Served { name, optional }) in served.iter().enumerate() {
            let health = healths[name].clone();
            let topic = Arc::new(Topic {
                name: name.clone(),
                feed: Arc::new(Feed::new(name.clone(), limits)),
                log: Arc::new(Log::new(
                    name,
                    pool.clone(),
                    health.clone(),
                    config.max_message_bytes,
                )),
                latest: Latest::new(config.latest_bytes),
                optional: *optional,
                source: health.source(),
                recheck: Arc::default(),
            });
            let (sender, receiver) = async_mpsc::unbounded_channel();
            problems.push(receiver);
            supervisors.push(Supervisor::new(
                number,
                topic.clone(),
                health.clone(),
                commands.clone(),
                config,
            ));
            topics.push(Live {
                topic,
                health,
                problems: sender,
                partitions: Vec::new(),
                pending: Vec::new(),
                received: Sampler::new(10),
            });
        }
        Ok(Self {
            config: client,
            context: live,
            topics,
            max_message_bytes: config.max_message_bytes,
            decode: decode::event,
            supervisors,
            commands: receiver,
            ready,
            problems,
        })
    }

    /// The topics, in the order of the configuration.
    pub fn topics(&self) -> Vec<Arc<Topic>> {
        self.topics.iter().map(|live| live.topic.clone()).collect()
    }

    /// Reads until `shutdown`.
    ///
    /// # Errors
    ///
    /// If the thread or a supervisor ends before. A missing broker or topic is not an error: the reader waits for it.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let client: Client = create(&self.config, self.context.clone())?;
        let mut tasks = JoinSet::new();
        for (supervisor, problems) in self.supervisors.into_iter().zip(self.problems) {
            let (mut source, feed) = (supervisor.source(), supervisor.feed());
            tasks.spawn(async move {
                while source.changed().await.is_ok() {
                    feed.wake();
                }
                Ok(())
            });
            tasks.spawn(supervisor.run(problems));
        }
        let stop = shutdown.child_token();
        let thread = Thread {
            client: Arc::new(client),
            config: self.config,
            context: self.context.clone(),
            ready: self.ready.clone(),
            commands: self.commands,
            topics: self.topics,
            metrics: self.context.metrics,
            decode: self.decode,
            max_message_bytes: self.max_message_bytes,
            stop: stop.clone(),
        };
        let (ended, mut end) = oneshot::channel();
        std::thread::Builder::new()
            .name("kafka".to_owned())
            .spawn(move || {
                let result = std::panic::catch_unwind(AssertUnwindSafe(|| thread.run()));
                _ = ended
                    .send(result.unwrap_or_else(|_| Err(anyhow!("the Kafka reader panicked"))));
            })
            .context("cannot start a thread")?;
        let ended = |result: Result<anyhow::Result<()>, _>| {
            result.unwrap_or_else(|_| Err(anyhow!("the Kafka reader ended")))
        };
        let early = tokio::select! {
            biased;
            () = shutdown.cancelled() => None,
            result = &mut end => Some(ended(result)),
            Some(task) = tasks.join_next() => match task {
                // A supervisor ends cleanly when the thread has ended, and the thread has the reason.
                Ok(result) => match tokio::time::timeout(CLOSING, &mut end).await {
                    Ok(reason) => Some(ended(reason)),
                    Err(_) => Some(result),
                },
                Err(panicked) => Some(Err(panicked).context("a topic supervisor panicked")),
            },
        };
        stop.cancel();
        self.ready.wake();
        match early {
            Some(result) => result.and(Err(anyhow!("the Kafka reader ended unexpectedly"))),
            None => end.await.unwrap_or(Ok(())),
        }
    }
}

/// The state of the reader's thread.
struct Thread {
    topics: Vec<Live>,
    /// After `topics`, because fields are dropped in this order: a `PartitionQueue` that holds the last reference to its client
    /// drops the client before its queue, which would then be freed already.
    client: Arc<Client>,
    config: ClientConfig,
    context: ReaderContext,
    ready: Arc<Ready>,
    commands: mpsc::Receiver<Command>,
    metrics: Metrics,
    decode: Decode,
    max_message_bytes: usize,
    stop: CancellationToken,
}

impl Thread {
    fn run(mut self) -> anyhow::Result<()> {
        while !self.stop.is_cancelled() {
            while let Ok(command) = self.commands.try_recv() {
                self.execute(command)?;
            }
            for (topic, partition) in self.ready.take(TICK) {
                self.poll(topic, partition);
            }
            // The partitions have their own queues. This follows their polls and precedes the delivery: the log reports a
            // recreated topic before anything is fetched from it.
            ReaderContext::serve(&self.client);
            for topic in 0..self.topics.len() {
                self.deliver(topic);
            }
        }
        Ok(())
    }

    /// Polls a partition's queue for up to a batch.
    fn poll(&mut self, topic: usize, number: usize) {
        let Live {
            topic: live_topic,
            health,
            problems,
            partitions,
            pending,
            ..
        } = &mut self.topics[topic];
        let Some(partition) = partitions.get_mut(number) else {
            return;
        };
        // When the supervisor has ended, so does the process.
        let report = |problem| _ = problems.send(problem);
        let Some(queue) = &partition.queue else {
            return;
        };
        for _ in 0..BATCH {
            let Some(polled) = queue.poll(Duration::ZERO) else {
                return;
            };
            if partition.paused {
                continue;
            }
            let fault = match &polled {
                Ok(message) => {
                    pending.push((self.decode)(message, self.max_message_bytes));
                    None
                }
                Err(KafkaError::PartitionEOF(_)) => None,
                Err(error) => Some((Fault::of(error), error)),
            };
            match fault {
                None if partition.failing => {
                    partition.failing = false;
                    health.resolve(Scope::Partition(number));
                }
                None => {}
                // librdkafka recovers by itself; the statistics report an outage.
                Some((Fault::Transient, error)) => {
                    tracing::debug!(topic = live_topic.name, partition = number, %error, "error while polling");
                }
                Some((Fault::Denied(reason), _)) => {
                    partition.failing = true;
                    health.fail(Scope::Partition(number), reason);
                    report(Problem::Denied);
                }
                Some((Fault::OutOfRange, _)) => {
                    partition.paused = true;
                    report(Problem::OutOfRange(number));
                }
                Some((Fault::Unreadable, _)) => {
                    partition.paused = true;
                    report(Problem::Unreadable(number));
                }
            }
        }
        // There may be more, and the queue's callback only fires when it was empty before.
        self.ready.add(topic, number);
    }

    /// Adds the pending events of a topic to its feed.
    fn deliver(&mut self, topic: usize) {
        let live = &mut self.topics[topic];
        if live.health.recreated.swap(false, Ordering::AcqRel) {
            // The pending events may already be from the middle of the new log.
            live.pending.clear();
            for partition in &mut live.partitions {
                partition.paused = true;
            }
            live.report(Problem::Recreated);
        }
        if live.pending.is_empty() {
            return;
        }
        let mut events = std::mem::take(&mut live.pending);
        // After a new assignment, librdkafka may return messages again that were already in its queue.
        let head = live.topic.feed.head();
        events.retain(|event| event.next.offset > head.get(event.partition).offset);
        live.log_received(&events);
        live.push(events, None, &self.metrics);
    }

    fn execute(&mut self, command: Command) -> anyhow::Result<()> {
        self.deliver(command.topic);
        let recreated = command.recreated.is_some();
        let live = &mut self.topics[command.topic];
        if recreated {
            live.health.adopt_id();
            live.partitions.clear();
        }
        live.push(command.events, command.recreated, &self.metrics);
        if recreated {
            self.replace_client()?;
        }
        let Live {
            topic, partitions, ..
        } = &mut self.topics[command.topic];
        let count = command.partitions.unwrap_or(partitions.len());
        let removed = count.min(partitions.len())..partitions.len();
        // The command may be older than a change that removed partitions.
        let read = command.read.into_iter().filter(|&number| number < count);
        let mut unassigned = TopicPartitionList::new();
        for number in read.clone().chain(removed) {
            let partition = partitions.get_mut(number);
            if partition.is_some_and(|partition| partition.queue.take().is_some()) {
                unassigned.add_partition(&topic.name, number as i32);
            }
        }
        if unassigned.count() > 0 {
            self.client
                .incremental_unassign(&unassigned)
                .with_context(|| format!("cannot stop reading topic {:?}", topic.name))?;
        }
        partitions.resize_with(count, Partition::default);
        topic.feed.shrink(count);
        topic.feed.grow(count);
        self.metrics.partitions(&topic.name, count);
        let read: Vec<_> = read.map(|number| (command.topic, number)).collect();
        self.assign(&read)?;
        for (topic, number) in read {
            self.topics[topic].partitions[number].paused = false;
        }
        Ok(())
    }

    /// Reads these partitions, given by topic and number, from the positions of their feeds.
    fn assign(&mut self, partitions: &[(usize, usize)]) -> anyhow::Result<()> {
        let mut assigned = TopicPartitionList::new();
        for &(topic, number) in partitions {
            let live = &mut self.topics[topic];
            let Topic { name, feed, .. } = &*live.topic;
            let offset = Offset::Offset(feed.position(number).offset);
            assigned
                .add_partition_offset(name, number as i32, offset)
                .context("cannot assign a partition")?;
            // Not earlier: if a partition does not exist, unassigning it makes librdkafka drop it together with its queue.
            let queue = open(&self.client, &self.ready, name, (topic, number))?;
            // Discard messages from before the assignment; librdkafka drops most of them, but not all.
            while queue.poll(Duration::ZERO).is_some() {}
            live.partitions[number].queue = Some(queue);
        }
        self.client
            .incremental_assign(&assigned)
            .with_context(|| format!("cannot read {} partitions", partitions.len()))
    }

    /// Replaces the client. librdkafka 2.12 keeps a partition's leader epoch when its topic is recreated, although epochs then
    /// restart at 0, and ignores every leader with a lower one: it would never read the new topic.
    fn replace_client(&mut self) -> anyhow::Result<()> {
        let context = self.context.successor();
        let new = Arc::new(create(&self.config, context.clone())?);
        self.context = context;
        let old = std::mem::replace(&mut self.client, new);
        let mut read = Vec::new();
        for (topic, live) in self.topics.iter().enumerate() {
            let partitions = live.partitions.iter().enumerate();
            let open = partitions.filter(|(_, partition)| partition.queue.is_some());
            read.extend(open.map(|(number, _)| (topic, number)));
        }
        self.assign(&read)?;
        // Dropping it joins its threads, which may be waiting for a broker.
        std::thread::spawn(move || drop(old));
        Ok(())
    }
}

/// Opens the queue of a partition. Called before it is assigned, so that none of its messages reach the client's own queue.
fn open(
    client: &Arc<Client>,
    ready: &Arc<Ready>,
    topic: &str,
    (number, partition): (usize, usize),
) -> anyhow::Result<PartitionQueue<ReaderContext>> {
    let mut queue = client
        .split_partition_queue(topic, partition as i32)
        .with_context(|| format!("cannot open partition {partition} of topic {topic:?}"))?;
    let ready = ready.clone();
    queue.set_nonempty_callback(move || ready.add(number, partition));
    Ok(queue)
}

impl Live {
    fn report(&self, problem: Problem) {
        // When the supervisor has ended, so does the process.
        _ = self.problems.send(problem);
    }

    fn push(&self, events: Vec<Event>, recreated: Option<TopicId>, metrics: &Metrics) {
        let Topic { name, feed, .. } = &*self.topic;
        if events.is_empty() && recreated.is_none() {
            return;
        }
        metrics.consumed(name, &events);
        match recreated {
            Some(topic_id) => feed.restart(events, topic_id),
            None => feed.push(events),
        }
        let (events, bytes) = feed.size();
        metrics.ring(name, events, bytes);
    }

    /// Logs the contract's lines: up to ten per second, then the number of skipped ones.
    fn log_received(&self, events: &[Event]) {
        for event in events {
            let Payload::Message(message) = &event.payload else {
                continue;
            };
            let Value::Text(text) = &message.value else {
                continue;
            };
            if let Some(skipped) = self.received.admit() {
                tracing::info!(
                    topic = self.topic.name,
                    partition = event.partition,
                    offset = message.offset,
                    skipped = (skipped > 0).then_some(skipped),
                    "Received: {}",
                    shortened(text, LOGGED_CHARACTERS)
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use herald_testing::{Record, create_topic, eventually, kafka, produce, random_topic};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_reader_that_panics_ends_with_an_error() {
        let Some(kafka) = kafka() else { return };
        let topic = random_topic("panic");
        create_topic(&kafka, &topic, 1, &[]).await;
        let address = ["--kafka-bootstrap-servers", &kafka, "--kafka-topic", &topic];
        let config = Config::parse_from(["consumer"].iter().chain(&address));
        let mut reader = Reader::new(&config, Metrics::new().unwrap()).unwrap();
        reader.decode = |_, _| panic!("an unexpected record");
        let feed = reader.topics()[0].feed.clone();
        let run = tokio::spawn(reader.run(CancellationToken::new()));
        let second = Duration::from_secs(1);
        eventually(30 * second, "the topic to be read", async || {
            feed.is_filled()
        })
        .await;
        produce(&kafka, &topic, &[Record::new(0, "x")]).await;
        let ended = tokio::time::timeout(10 * second, run).await;
        let ended = ended.expect("it ends promptly").expect("it ends cleanly");
        assert_eq!(ended.unwrap_err().to_string(), "the Kafka reader panicked");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_supervisor_that_ends_also_ends_the_reader() {
        let Some(kafka) = kafka() else { return };
        let topic = random_topic("supervisor");
        create_topic(&kafka, &topic, 1, &[]).await;
        let address = ["--kafka-bootstrap-servers", &kafka, "--kafka-topic", &topic];
        let config = Config::parse_from(["consumer"].iter().chain(&address));
        let mut reader = Reader::new(&config, Metrics::new().unwrap()).unwrap();
        // A supervisor ends when its channel of problems is closed.
        reader.problems = vec![async_mpsc::unbounded_channel().1];
        let ended = reader.run(CancellationToken::new());
        let ended = tokio::time::timeout(Duration::from_secs(30), ended).await;
        let error = ended.expect("it ends").unwrap_err();
        assert_eq!(error.to_string(), "the Kafka reader ended unexpectedly");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_partition_without_a_leader_does_not_block_the_others() {
        let cluster = rdkafka::mocking::MockCluster::new(2).unwrap();
        let (kafka, topic) = (cluster.bootstrap_servers(), random_topic("leaderless"));
        cluster.create_topic(&topic, 2, 1).unwrap();
        for partition in 0..2 {
            let leader = Some(partition + 1);
            cluster.partition_leader(&topic, partition, leader).unwrap();
        }
        let address = ["--kafka-bootstrap-servers", &kafka, "--kafka-topic", &topic];
        let properties = ["--kafka-properties", "fetch.wait.max.ms=20"];
        let args = ["consumer"].into_iter().chain(address).chain(properties);
        let config = Config::parse_from(args);
        let reader = Reader::new(&config, Metrics::new().unwrap()).unwrap();
        let live = reader.topics()[0].clone();
        let shutdown = CancellationToken::new();
        let run = tokio::spawn(reader.run(shutdown.clone()));
        let deadline = Duration::from_secs(30);
        let filled = async || live.feed.is_filled();
        eventually(deadline, "the topic to be read", filled).await;
        // (The mock cluster crashes on a request for a partition that has no leader at all.)
        cluster.broker_down(2).unwrap();
        let down = async || live.is_down();
        eventually(deadline, "the loss to be noticed", down).await;
        produce(&kafka, &topic, &[Record::new(0, "x")]).await;
        let read = async || live.feed.position(0).offset == 1;
        eventually(deadline, "the other partition to be read", read).await;
        cluster.broker_up(2).unwrap();
        produce(&kafka, &topic, &[Record::new(1, "y")]).await;
        let read = async || live.feed.position(1).offset == 1 && !live.is_down();
        eventually(deadline, "both partitions to be read", read).await;
        shutdown.cancel();
        run.await.unwrap().unwrap();
    }
}
