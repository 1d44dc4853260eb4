//! A pool of Kafka clients for reads on demand, shared by all topics.

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

/// The timeout of a whole page of history. A stream's backlog may take longer: it is read page by page.
const PAGE_TIME: Duration = Duration::from_secs(20);

/// What a client is used for. Each purpose has its own share of the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A stream's backlog.
    Replay,
    /// A page of history.
    Page,
    /// The whole log, for what the process keeps of it.
    Index,
    /// Checking whether the log is still the same.
    Audit,
}

/// A bounded number of clients. None is held while data is written to a browser.
pub struct Pool {
    config: ClientConfig,
    context: ReaderContext,
    idle: Mutex<Vec<Client>>,
    idle_auditors: Mutex<Vec<Client>>,
    readers: Arc<Semaphore>,
    /// Pages use at most half of the readers, so that streams can always catch up.
    pages: Arc<Semaphore>,
    auditors: Arc<Semaphore>,
    pub cache: PageCache,
}

/// The limits of one read: a deadline, and cancellation.
pub struct Budget {
    deadline: Option<Instant>,
    abandoned: Arc<AtomicBool>,
}

impl Budget {
    /// # Errors
    ///
    /// If the caller no longer waits for the result, or the deadline has passed.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.abandoned.load(Ordering::Relaxed) {
            bail!("the read was cancelled");
        }
        if self
            .deadline
            .is_some_and(|deadline| Instant::now() > deadline)
        {
            bail!("timed out after {} s", PAGE_TIME.as_secs());
        }
        Ok(())
    }
}

/// Sets the flag when the caller stops waiting for the result.
struct Abandon(Arc<AtomicBool>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Pool {
    /// A pool for at most `readers` concurrent reads, besides the audits.
    pub fn new(config: &ClientConfig, context: ReaderContext, readers: usize) -> Self {
        let mut config = config.clone();
        // Data fetched beyond a page is discarded, and an empty fetch response marks the end of the log.
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

    /// Counts a page of a stream's backlog.
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
            Purpose::Replay | Purpose::Index => vec![acquire(&self.readers).await],
            Purpose::Page => vec![acquire(&self.pages).await, acquire(&self.readers).await],
            Purpose::Audit => vec![acquire(&self.auditors).await],
        };
        Permit {
            purpose,
            _held: held,
        }
    }

    /// Runs blocking work with a client of the pool. A client whose work failed is not reused.
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
            // Held until the work ends, even if the caller no longer waits for it.
            drop(permit);
            Ok(result)
        });
        answer.await.context("a Kafka reader panicked")?
    }

    fn create(&self, purpose: Purpose) -> anyhow::Result<Client> {
        let mut config = self.config.clone();
        if purpose == Purpose::Audit {
            // Only one record is compared, however busy the partitions are.
            config.set("fetch.message.max.bytes", "1024");
        }
        config
            .create_with_context(self.context.clone())
            .context("cannot create a Kafka reader")
    }
}

/// Permission to use one client.
pub struct Permit {
    purpose: Purpose,
    _held: Vec<OwnedSemaphorePermit>,
}
