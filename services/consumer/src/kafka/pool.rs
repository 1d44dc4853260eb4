//! Clients of Kafka that are lent for one question at a time, for all topics together.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rdkafka::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::cache::PageCache;
use super::health::ReaderContext;

pub type Client = BaseConsumer<ReaderContext>;

/// How long a page of history may take in all. What a stream missed may take longer: it is read piece by piece.
const PAGE_TIME: Duration = Duration::from_secs(20);

/// What a question is asked for. The clients of one purpose cannot be taken by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// What a stream missed.
    Replay,
    /// A page of history.
    Page,
    /// Whether the log is still the same one.
    Audit,
}

/// A bounded number of clients. Nobody holds one while a browser is written to.
pub struct Pool {
    config: ClientConfig,
    context: ReaderContext,
    idle: Mutex<Vec<Client>>,
    idle_auditors: Mutex<Vec<Client>>,
    readers: Arc<Semaphore>,
    /// Pages take at most half of the readers, so that streams catch up whatever is asked for.
    pages: Arc<Semaphore>,
    auditors: Arc<Semaphore>,
    pub cache: PageCache,
}

/// What bounds the work of a question.
pub struct Budget {
    deadline: Option<Instant>,
    abandoned: Arc<AtomicBool>,
}

impl Budget {
    /// # Errors
    ///
    /// When nobody waits for the answer any more, or it takes too long.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.abandoned.load(Ordering::Relaxed) {
            bail!("nobody waits for the answer any more");
        }
        if self
            .deadline
            .is_some_and(|deadline| Instant::now() > deadline)
        {
            bail!("not read within {} s", PAGE_TIME.as_secs());
        }
        Ok(())
    }
}

/// Set when the one who waits for an answer stops waiting.
struct Abandon(Arc<AtomicBool>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Pool {
    /// At most `readers` questions are answered at the same time, beside the audits.
    pub fn new(config: &ClientConfig, context: ReaderContext, readers: usize) -> Self {
        let mut config = config.clone();
        // What a reader fetches beyond its page is thrown away, and its end is found by an empty answer.
        config
            .set("enable.partition.eof", "true")
            .set("fetch.message.max.bytes", "262144")
            .set("fetch.wait.max.ms", "10")
            .set("fetch.error.backoff.ms", "10")
            .set("queued.max.messages.kbytes", "8192")
            .set("statistics.interval.ms", "0");
        Self {
            config,
            context,
            idle: Mutex::default(),
            idle_auditors: Mutex::default(),
            readers: Arc::new(Semaphore::new(readers)),
            pages: Arc::new(Semaphore::new(readers.div_ceil(2))),
            auditors: Arc::new(Semaphore::new(1)),
            cache: PageCache::default(),
        }
    }

    /// Counts a page of what a stream missed.
    pub fn replayed(&self, source: &str) {
        self.context.metrics.replayed(source);
    }

    /// Waits for a client.
    pub async fn permit(&self, purpose: Purpose) -> Permit {
        let acquire = async |semaphore: &Arc<Semaphore>| {
            let permit = semaphore.clone().acquire_owned().await;
            permit.expect("the semaphore is never closed")
        };
        let held = match purpose {
            Purpose::Replay => vec![acquire(&self.readers).await],
            Purpose::Page => vec![acquire(&self.pages).await, acquire(&self.readers).await],
            Purpose::Audit => vec![acquire(&self.auditors).await],
        };
        Permit {
            purpose,
            _held: held,
        }
    }

    /// Lends a client to blocking work. A client that failed is not used again.
    pub async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        permit: Permit,
        work: impl FnOnce(&Client, &Budget) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let pool = self.clone();
        let abandon = Abandon(Arc::default());
        let budget = Budget {
            deadline: (permit.purpose == Purpose::Page).then(|| Instant::now() + PAGE_TIME),
            abandoned: abandon.0.clone(),
        };
        let answer = tokio::task::spawn_blocking(move || {
            let idle = match permit.purpose {
                Purpose::Audit => &pool.idle_auditors,
                _ => &pool.idle,
            };
            let idle = || idle.lock().unwrap_or_else(PoisonError::into_inner);
            let taken = idle().pop();
            let client = match taken {
                Some(client) => client,
                None => pool.create(permit.purpose)?,
            };
            let result = work(&client, &budget)?;
            idle().push(client);
            // Held until the work ends, also when nobody waits for it any more.
            drop(permit);
            Ok(result)
        });
        answer.await.context("a reader of Kafka panicked")?
    }

    fn create(&self, purpose: Purpose) -> anyhow::Result<Client> {
        let mut config = self.config.clone();
        if purpose == Purpose::Audit {
            // One record is compared, however busy the partitions are.
            config.set("fetch.message.max.bytes", "1024");
        }
        config
            .create_with_context(self.context.clone())
            .context("cannot create a Kafka reader")
    }
}

/// The right to one client.
pub struct Permit {
    purpose: Purpose,
    _held: Vec<OwnedSemaphorePermit>,
}
