//! The loop of a stage: reads the partitions that its consumer group assigns, and has the stage commit what is due.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use herald_runtime::kafka::Source;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::metrics::StageMetrics;
use crate::clock;
use crate::kafka::{Assignment, Group, Polled};
use crate::readiness::Part;
use crate::record::Record;

/// The longest time between two looks at what is due.
const TICK: Duration = Duration::from_millis(50);

/// The pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// How long the other partitions may still be committed after one has failed: if Kafka is unavailable, each would wait for a timeout.
pub const COMMIT_OTHERS: Duration = Duration::from_secs(5);

/// How long after its latest report a batch counts as unreadable.
const UNREADABLE: Duration = Duration::from_secs(30);

/// What a stage does with its partitions. After any error it is asked to drop all of them, and to begin again.
pub trait Work {
    /// Takes over a partition, and returns the offset to read from.
    fn begin(&mut self, group: &Group, partition: i32) -> anyhow::Result<i64>;

    /// Takes a record; whether so much is pending that it should be committed.
    fn take(&mut self, record: Record) -> bool;

    /// The partition was read up to this offset.
    fn reached(&mut self, partition: i32, position: i64);

    /// Commits what is due.
    fn commit(&mut self, group: &Group) -> anyhow::Result<()>;

    /// Drops all partitions, and what is pending. Their next owner reads it again.
    fn drop_all(&mut self);
}

/// A stage. It runs on a thread of its own, because librdkafka blocks.
pub struct Stage<W> {
    pub topic: String,
    pub group: Group,
    pub work: W,
    pub metrics: StageMetrics,
    pub part: Part,
}

#[derive(Default)]
struct State {
    /// As the group assigned them.
    assigned: Vec<i32>,
    /// The partitions that are read.
    reading: BTreeMap<i32, Reading>,
    /// When the partitions are to be begun next; `None` while they are read.
    begin: Option<Instant>,
    ticked: Option<Instant>,
    /// Everything was read once.
    caught_up: bool,
    problem: Option<String>,
    /// A batch that cannot be read, and when librdkafka reported that last.
    unreadable: Option<(Instant, String)>,
    /// The latest problem in the log.
    logged: Option<String>,
}

#[derive(Clone, Copy)]
struct Reading {
    position: i64,
    begun: Instant,
    /// The timestamp of the latest record.
    time: Option<i64>,
    /// A record or the end was read since the partition was begun; before, librdkafka may know the position of an earlier reader.
    started: bool,
    ended: bool,
}

impl<W: Work> Stage<W> {
    /// Returns after the shutdown, or with an error that only a new process can get over.
    pub fn run(mut self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let mut state = State {
            problem: Some("no partition is assigned yet".to_owned()),
            ..State::default()
        };
        while !shutdown.is_cancelled() {
            self.step(&mut state)?;
        }
        self.part.not_ready("shutting down");
        Ok(())
    }

    fn step(&mut self, state: &mut State) -> anyhow::Result<()> {
        if let Some(assignment) = self.group.take_assignment() {
            info!(topic = self.topic, ?assignment, "the group has rebalanced");
            let begin = match assignment {
                Assignment::Assigned(partitions) => {
                    state.assigned = partitions;
                    Some(Instant::now())
                }
                Assignment::Revoked => {
                    state.assigned.clear();
                    None
                }
            };
            self.stop(state, begin);
        }
        if self.group.take_recreated() && !state.assigned.is_empty() {
            self.suspect(state, "the topic has another id", Duration::ZERO);
        }
        if state.begin.is_some_and(|at| at <= Instant::now()) {
            match self.begin(state) {
                Ok(()) => (state.begin, state.problem) = (None, None),
                Err(error) => self.fail(state, &error),
            }
        }
        let mut due = false;
        match self.group.poll(TICK) {
            Polled::Record(record) => due = self.take(state, record),
            Polled::End(partition) => {
                if let Some(reading) = state.reading.get_mut(&partition) {
                    (reading.started, reading.ended) = (true, true);
                }
                due = true;
            }
            Polled::Suspect(why) => self.suspect(state, &why, RETRY_PAUSE),
            Polled::Denied(why) => self.fail(state, &anyhow::anyhow!(why)),
            Polled::Unreadable(why) => unreadable(state, why),
            Polled::Fatal(why) => {
                anyhow::bail!("the consumer group has rejected this projector: {why}")
            }
            Polled::Nothing => {}
        }
        if due || state.ticked.is_none_or(|at| at.elapsed() >= TICK) {
            self.tick(state);
            state.ticked = Some(Instant::now());
        }
        Ok(())
    }

    /// Takes over the assigned partitions, and begins to read them.
    fn begin(&mut self, state: &mut State) -> anyhow::Result<()> {
        if state.assigned.is_empty() {
            // There are more projectors than partitions: this one replaces another.
            self.group.check_topic()?;
            state.caught_up = true;
            return Ok(());
        }
        let mut offsets = Vec::new();
        for &partition in &state.assigned {
            let position = self.work.begin(&self.group, partition)?;
            offsets.push((partition, position));
            let reading = Reading {
                position,
                begun: Instant::now(),
                time: None,
                started: false,
                ended: false,
            };
            state.reading.insert(partition, reading);
        }
        self.group.assign(&offsets)
    }

    fn take(&mut self, state: &mut State, record: Record) -> bool {
        let Some(reading) = state.reading.get_mut(&record.partition) else {
            return false;
        };
        if record.offset < reading.position {
            return false;
        }
        reading.position = record.offset + 1;
        reading.time = record.timestamp.or(reading.time);
        (reading.started, reading.ended) = (true, false);
        self.work.take(record)
    }

    fn tick(&mut self, state: &mut State) {
        if state.begin.is_none() && !state.reading.is_empty() {
            // Offsets also pass without records: markers of transactions, and what was aborted.
            for (partition, position) in self.group.positions() {
                if let Some(reading) = state.reading.get_mut(&partition)
                    && reading.started
                {
                    reading.position = reading.position.max(position);
                }
            }
            for (&partition, reading) in &state.reading {
                self.work.reached(partition, reading.position);
            }
            match self.work.commit(&self.group) {
                Ok(()) if state.problem.is_none() && state.unreadable.is_none() => {
                    state.logged = None
                }
                Ok(()) => {}
                Err(error) => self.fail(state, &error),
            }
            let all_ended = state.reading.values().all(|reading| reading.ended);
            if !state.reading.is_empty() && all_ended && !state.caught_up {
                info!(topic = self.topic, "caught up with Kafka");
                state.caught_up = true;
            }
        }
        self.report(state);
    }

    fn stop(&mut self, state: &mut State, begin: Option<Instant>) {
        self.work.drop_all();
        state.unreadable = None;
        state.reading.clear();
        state.begin = begin;
    }

    fn pause(&mut self, state: &mut State, pause: Duration) {
        self.group.stop_reading();
        self.stop(state, Some(Instant::now() + pause));
    }

    fn suspect(&mut self, state: &mut State, why: &str, pause: Duration) {
        if state.begin.is_none() && !state.assigned.is_empty() {
            info!(topic = self.topic, why, "checking the positions");
            self.pause(state, pause);
        }
    }

    fn fail(&mut self, state: &mut State, error: &anyhow::Error) {
        let problem = format!("{error:#}");
        self.metrics.failed();
        if is_new(state, &problem) {
            warn!(
                topic = self.topic,
                "{problem}; trying again until it succeeds"
            );
        }
        state.problem = Some(problem);
        self.pause(state, RETRY_PAUSE);
    }

    /// Updates readiness, and the metrics that are not counters.
    fn report(&self, state: &State) {
        let ends = self.group.ends();
        let (mut lag, mut seconds) = (0, 0.0_f64);
        for (partition, reading) in &state.reading {
            let behind = ends.get(partition).map_or(0, |end| end - reading.position);
            if behind > 0 {
                lag += behind;
                let age = match reading.time {
                    Some(time) => (clock::now() - time).max(0) as f64 / 1000.0,
                    None => reading.begun.elapsed().as_secs_f64(),
                };
                seconds = seconds.max(age);
            }
        }
        self.metrics.progress(lag, seconds, state.reading.len());
        // librdkafka tries again every second.
        let unreadable = state.unreadable.as_ref();
        let unreadable = unreadable.filter(|(at, _)| at.elapsed() < UNREADABLE);
        let problem = state.problem.as_ref().or(unreadable.map(|(_, why)| why));
        let problem = match (problem, self.group.source()) {
            (_, Source::Down { reason, .. }) => Some(reason.to_owned()),
            (Some(problem), _) => Some(problem.clone()),
            (None, _) if !state.caught_up => Some("reading the topic to its end".to_owned()),
            (None, _) => None,
        };
        match problem {
            Some(problem) => self.part.not_ready(problem),
            None => self.part.ready(),
        }
    }
}

/// librdkafka stays before such a batch: only an operator can decide to lose it.
fn unreadable(state: &mut State, why: String) {
    if is_new(state, &why) {
        error!(
            why,
            "a batch of records in Kafka cannot be read; its partition does not go on"
        );
    }
    state.unreadable = Some((Instant::now(), why));
}

/// Commits each of these partitions: one that fails does not stop the others. Returns the first error.
pub fn each(
    partitions: Vec<i32>,
    mut commit: impl FnMut(i32) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut result = Ok(());
    for partition in partitions {
        if result.is_err() && began.elapsed() > COMMIT_OTHERS {
            break;
        }
        result = result.and(commit(partition));
    }
    result
}

/// Whether the problem was not logged yet since the last success.
fn is_new(state: &mut State, problem: &str) -> bool {
    let is_new = state.logged.as_deref() != Some(problem);
    if is_new {
        state.logged = Some(problem.to_owned());
    }
    is_new
}
