//! The loop of the projector: reads records, and commits the results of a batch together with the positions after it.

mod commit;
mod positions;
mod target;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use herald_events::{MAX_SESSION_ID_BYTES, SessionId};
use herald_runtime::kafka::Source;
use store::Position;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::Config;
use crate::clock;
use crate::kafka::{Assignment, DeadLetter, DeadLetters, Group, Polled};
use crate::metrics::Metrics;
use crate::projection::Projection;
use crate::readiness::Part;
use crate::record::Record;

use commit::Pending;
pub use target::Target;

/// The longest wait for a record, after which a shutdown or a new assignment is noticed.
const POLL: Duration = Duration::from_millis(100);

/// The pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// How long after its latest report a batch counts as unreadable.
const UNREADABLE: Duration = Duration::from_secs(30);

/// The timeout of a transaction and of a batch of dead letters.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How often sessions are looked for that have reached the age at which they are deleted, and how many are deleted at a time.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(10);
const EXPIRY_SESSIONS: u32 = 100;

/// Everything that the loop needs. It runs on a thread of its own, because librdkafka blocks.
pub struct Projector {
    pub config: Config,
    pub projection: Projection,
    pub topic: String,
    pub group: Group,
    pub dead_letters: DeadLetters,
    pub target: Target,
    pub metrics: Metrics,
    pub readiness: Part,
    pub shutdown: CancellationToken,
    pub runtime: Handle,
}

/// A partition that this projector reads.
#[derive(Clone, Copy, Debug)]
struct Owned {
    /// As the store has it.
    stored: Position,
    /// After the last record of the pending batch.
    current: Position,
    /// The fingerprint that the record before `current.next` must have, if it is to be checked.
    expected: Option<u16>,
}

/// What the loop knows.
struct State {
    /// As the group assigned them.
    assigned: Vec<i32>,
    /// The partitions that are read: those assigned, or none while their positions are looked up.
    owned: BTreeMap<i32, Owned>,
    pending: Pending,
    /// When the positions are to be looked up next; `None` while the partitions are read.
    look_up: Option<Instant>,
    /// Partitions whose record before the position is another one than before.
    replaced: Vec<i32>,
    /// The partitions that were read to their end.
    ended: BTreeSet<i32>,
    /// Everything was read once.
    caught_up: bool,
    problem: Option<String>,
    /// A batch that cannot be read, and when librdkafka reported that last.
    unreadable: Option<(Instant, String)>,
    /// The latest problem in the log.
    logged: Option<String>,
    expiry: Instant,
}

impl Projector {
    /// Returns after the shutdown, or with an error that only a new process can get over.
    pub fn run(mut self) -> anyhow::Result<()> {
        let mut state = State {
            assigned: Vec::new(),
            owned: BTreeMap::new(),
            pending: Pending::default(),
            look_up: None,
            replaced: Vec::new(),
            ended: BTreeSet::new(),
            caught_up: false,
            problem: Some("no partition is assigned yet".to_owned()),
            unreadable: None,
            logged: None,
            expiry: Instant::now(),
        };
        while !self.shutdown.is_cancelled() {
            self.step(&mut state)?;
            if state.pending.records == 0 {
                self.report(&state);
            }
        }
        self.readiness.not_ready("shutting down");
        // What cannot be committed now is read again by the next projector.
        self.commit(&mut state);
        Ok(())
    }

    fn step(&mut self, state: &mut State) -> anyhow::Result<()> {
        if let Some(assignment) = self.group.take_assignment() {
            info!(topic = self.topic, ?assignment, "the group has rebalanced");
            // What is pending is read again by the next owner.
            state.stop(Some(Instant::now()));
            state.replaced.clear();
            state.assigned = match assignment {
                Assignment::Assigned(partitions) => partitions,
                Assignment::Revoked => {
                    state.look_up = None;
                    Vec::new()
                }
            };
        }
        if self.group.take_recreated() && !state.assigned.is_empty() {
            self.check_again(state, "the topic has another id", Duration::ZERO);
        }
        if state.look_up.is_some_and(|at| at <= Instant::now()) {
            match self.look_up(state) {
                Ok(()) => (state.look_up, state.problem) = (None, None),
                Err(error) => self.fail(state, &error),
            }
        }
        let wait = if state.pending.records > 0 {
            Duration::ZERO
        } else {
            POLL
        };
        match self.group.poll(wait) {
            Polled::Record(record) => self.take(state, record),
            Polled::End(partition) => _ = state.ended.insert(partition),
            Polled::Fatal(why) => anyhow::bail!("the consumer cannot continue: {why}"),
            Polled::Suspect(why) => self.check_again(state, &why, RETRY_PAUSE),
            Polled::Denied(why) => self.fail(state, &anyhow::anyhow!(why)),
            Polled::Unreadable(why) => self.unreadable(state, why),
            Polled::Nothing if state.pending.records > 0 => self.commit(state),
            Polled::Nothing => self.expire(state),
        }
        if state.pending.is_due(&self.config) {
            self.commit(state);
        }
        let all_ended = || {
            state
                .owned
                .keys()
                .all(|partition| state.ended.contains(partition))
        };
        if state.look_up.is_none()
            && state.pending.records == 0
            && !state.owned.is_empty()
            && all_ended()
        {
            if !state.caught_up {
                info!("caught up with Kafka; ready");
            }
            state.caught_up = true;
        }
        Ok(())
    }

    /// Adds a record to the pending batch.
    fn take(&mut self, state: &mut State, record: Record) {
        let partition = record.partition;
        let Some(owned) = state.owned.get_mut(&partition) else {
            return;
        };
        if record.offset < owned.current.next {
            if let Some(expected) = owned.expected.take()
                && record.offset + 1 == owned.current.next
                && expected != record.fingerprint()
            {
                state.replaced.push(partition);
                self.check_again(state, "a record is another one than before", Duration::ZERO);
            }
            return;
        }
        owned.expected = None;
        let after = record.after(owned.current);
        owned.current = after;
        let pending = &mut state.pending;
        pending.since.get_or_insert_with(Instant::now);
        pending.records += 1;
        pending.bytes += record.bytes();
        let added = self.projection.add(&mut pending.batch, &record, after);
        let (offset, request_id) = (record.offset, record.request_id());
        match added {
            Ok(session_id) => debug!(
                session_id = session_id.as_ref().map(SessionId::as_str),
                request_id, partition, offset, "record read"
            ),
            Err(reason) => {
                // One line per batch: there may be many.
                if pending.dead_letters.is_empty() {
                    let key = String::from_utf8_lossy(record.key.as_deref().unwrap_or_default());
                    let session_id: String = key.chars().take(MAX_SESSION_ID_BYTES).collect();
                    warn!(session_id, request_id, partition, offset, %reason, "malformed record");
                }
                pending.dead_letters.push(DeadLetter { record, reason });
            }
        }
    }

    /// Stops reading, and looks up the positions after a pause.
    fn pause(&self, state: &mut State, pause: Duration) {
        self.group.stop_reading();
        state.stop(Some(Instant::now() + pause));
    }

    fn check_again(&self, state: &mut State, why: &str, pause: Duration) {
        if state.look_up.is_none() && !state.assigned.is_empty() {
            info!(topic = self.topic, why, "checking the positions");
            self.pause(state, pause);
        }
    }

    fn fail(&self, state: &mut State, error: &anyhow::Error) {
        let problem = format!("{error:#}");
        if state.is_new(&problem) {
            warn!("{problem}; trying again until it succeeds");
        }
        state.problem = Some(problem);
        self.pause(state, RETRY_PAUSE);
    }

    /// librdkafka stays before such a batch: only an operator can decide to lose it.
    fn unreadable(&self, state: &mut State, why: String) {
        if state.is_new(&why) {
            error!(
                why,
                "a batch of records in Kafka cannot be read; its partition does not go on"
            );
        }
        state.unreadable = Some((Instant::now(), why));
    }

    fn expire(&self, state: &mut State) {
        let Some(retention) = self.config.retention else {
            return;
        };
        if !matches!(self.projection, Projection::Sessions(_)) {
            return;
        }
        // One projector is enough.
        if !state.owned.contains_key(&0) || state.expiry > Instant::now() {
            return;
        }
        state.expiry = Instant::now() + EXPIRY_INTERVAL;
        let before = (clock::now() - clock::millis(retention)).max(0);
        let deleted = self.target.delete_older(before, EXPIRY_SESSIONS);
        let deleted = self
            .runtime
            .block_on(tokio::time::timeout(TIMEOUT, deleted));
        match deleted.context("the database did not delete old sessions in time") {
            Ok(Ok(count)) => {
                self.metrics.expired.inc_by(count);
                if count == u64::from(EXPIRY_SESSIONS) {
                    state.expiry = Instant::now();
                }
            }
            Ok(Err(error)) | Err(error) => warn!("{error:#}"),
        }
    }

    /// Updates readiness, and the metrics that are not counters.
    fn report(&self, state: &State) {
        let ends = self.group.ends();
        let lagging = state.owned.iter().filter_map(|(partition, owned)| {
            let lag = ends.get(partition)? - owned.stored.next;
            (lag > 0).then_some((lag, owned.stored.record_time))
        });
        let lagging: Vec<(i64, i64)> = lagging.collect();
        self.metrics
            .lag
            .set(lagging.iter().map(|(lag, _)| lag).sum());
        let times = lagging.iter().map(|&(_, time)| time);
        self.metrics.lag_seconds.set(oldest_age(times));
        self.metrics.partitions.set(state.owned.len() as i64);
        let source = self.group.source();
        // librdkafka tries again every second.
        let unreadable = state.unreadable.as_ref();
        let unreadable = unreadable.filter(|(at, _)| at.elapsed() < UNREADABLE);
        let problem = state.problem.as_ref().or(unreadable.map(|(_, why)| why));
        let problem = match (problem, source) {
            (_, Source::Down { reason, .. }) => Some(reason.to_owned()),
            (Some(problem), _) => Some(problem.clone()),
            (None, _) if !state.caught_up => Some("reading the topic to its end".to_owned()),
            (None, _) => None,
        };
        match problem {
            Some(problem) => self.readiness.not_ready(problem),
            None => self.readiness.ready(),
        }
    }
}

impl State {
    /// Whether the problem was not logged yet since the last success.
    fn is_new(&mut self, problem: &str) -> bool {
        let is_new = self.logged.as_deref() != Some(problem);
        if is_new {
            self.logged = Some(problem.to_owned());
        }
        is_new
    }

    /// Drops what is pending.
    fn stop(&mut self, look_up: Option<Instant>) {
        self.owned.clear();
        self.ended.clear();
        self.pending = Pending::default();
        self.look_up = look_up;
    }
}

/// The age in seconds of the oldest of these times, in milliseconds since 1970; 0 is no time.
fn oldest_age(times: impl Iterator<Item = i64>) -> f64 {
    let Some(oldest) = times.filter(|&time| time > 0).min() else {
        return 0.0;
    };
    (clock::now() - oldest).max(0) as f64 / 1000.0
}
