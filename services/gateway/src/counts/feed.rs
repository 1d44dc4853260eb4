//! The counts as they are now, polled from the database while any client watches: one poll for all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use store::{Count, Reader};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::rows_json;
use crate::sse;

/// The pause between two polls, and the longest one while the database does not answer.
const PERIOD: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(5);

/// How often all rows are read: a database that was recreated counts its versions from 1 again.
const AUDIT: Duration = Duration::from_secs(10);

/// Polls the counts while any client watches.
pub struct Feed {
    reader: Reader,
    state: watch::Sender<State>,
    /// `None` while nobody watches.
    polling: Mutex<Option<JoinHandle<()>>>,
    failed: CancellationToken,
}

impl Feed {
    /// `failed` is cancelled when the poll panics.
    pub fn new(reader: Reader, failed: CancellationToken) -> Self {
        Self {
            reader,
            state: watch::Sender::new(State::default()),
            polling: Mutex::new(None),
            failed,
        }
    }

    /// The states from now on. The counts are polled until the last receiver is dropped.
    pub fn watch(self: &Arc<Self>) -> watch::Receiver<State> {
        let mut polling = self.polling.lock().unwrap_or_else(PoisonError::into_inner);
        let receiver = self.state.subscribe();
        if polling.is_none() {
            *polling = Some(tokio::spawn(self.clone().poll()));
        }
        receiver
    }

    async fn poll(self: Arc<Self>) {
        let failed = self.failed.clone().drop_guard();
        let mut pause = PERIOD;
        let mut audited: Option<Instant> = None;
        loop {
            let audit = audited.is_none_or(|at| at.elapsed() >= AUDIT);
            let known = self
                .state
                .borrow()
                .table
                .as_ref()
                .map(|table| table.version);
            let from = known.filter(|_| !audit).unwrap_or(0);
            match self.reader.counts_after(from).await {
                Ok(rows) => {
                    if audit {
                        audited = Some(Instant::now());
                    }
                    pause = PERIOD;
                    self.state
                        .send_if_modified(|state| state.apply(rows, audit));
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    pause = (pause * 2).min(LONGEST);
                    self.state.send_if_modified(|state| state.fail(error));
                }
            }
            tokio::time::sleep(pause).await;
            let mut polling = self.polling.lock().unwrap_or_else(PoisonError::into_inner);
            if self.state.receiver_count() == 0 {
                // The next client gets what is then in the database.
                self.state.send_replace(State::default());
                *polling = None;
                failed.disarm();
                return;
            }
        }
    }
}

/// The latest poll.
#[derive(Debug, Default)]
pub struct State {
    /// `None` before the first successful poll.
    table: Option<Table>,
    /// Why the database cannot be read.
    problem: Option<String>,
}

#[derive(Debug)]
struct Table {
    /// Changes when the database was recreated.
    epoch: u32,
    /// The greatest `changed` of the rows; 0 without rows.
    version: i64,
    /// In the order in which the foods first came.
    rows: Vec<Count>,
    /// The event that leads from a version to this one, for the clients that have that version, which are nearly all.
    change: (i64, Bytes),
}

impl State {
    /// Takes rows of the database: `all`, or those that have changed. Returns whether anything is different.
    fn apply(&mut self, rows: Vec<Count>, all: bool) -> bool {
        let recovered = self.problem.take().is_some();
        let Some(table) = self
            .table
            .as_mut()
            .filter(|table| !all || !table.is_other(&rows))
        else {
            let epoch = self.table.as_ref().map_or(0, |table| table.epoch + 1);
            self.table = Some(Table::new(epoch, rows));
            return true;
        };
        table.update(rows) || recovered
    }

    fn fail(&mut self, problem: String) -> bool {
        if self.problem.as_ref() == Some(&problem) {
            return false;
        }
        tracing::warn!(error = problem, "cannot poll the counts");
        self.problem = Some(problem);
        true
    }
}

impl Table {
    fn new(epoch: u32, rows: Vec<Count>) -> Self {
        let version = version(&rows);
        Self {
            epoch,
            version,
            rows,
            change: (version, Bytes::new()),
        }
    }

    /// Whether these, all rows of the database, do not continue this table: in the same database only rows with a newer version
    /// differ, and counts only grow.
    fn is_other(&self, rows: &[Count]) -> bool {
        let known: HashMap<&str, &Count> = self.rows.iter().map(|r| (r.food.as_str(), r)).collect();
        let continues = |row: &Count| match known.get(row.food.as_str()) {
            Some(known) if row.changed > self.version => row.count >= known.count,
            Some(known) => row.changed == known.changed && row.count == known.count,
            None => row.changed > self.version,
        };
        let kept = rows
            .iter()
            .filter(|row| known.contains_key(row.food.as_str()));
        kept.count() < known.len() || !rows.iter().all(continues)
    }

    fn update(&mut self, rows: Vec<Count>) -> bool {
        let from = self.version;
        let changed: Vec<Count> = rows.into_iter().filter(|row| row.changed > from).collect();
        if changed.is_empty() {
            return false;
        }
        self.version = version(&changed);
        let event = sse::event("change", &rows_json(&changed));
        self.change = (from, event.into());
        let places = self.rows.iter().enumerate();
        let places: HashMap<String, usize> = places
            .map(|(index, row)| (row.food.clone(), index))
            .collect();
        for row in changed {
            match places.get(&row.food) {
                Some(&index) => self.rows[index] = row,
                None => self.rows.push(row),
            }
        }
        true
    }

    fn snapshot(&self) -> String {
        sse::event("snapshot", &rows_json(&self.rows))
    }

    /// The event that leads from a version to this one.
    fn since(&self, version: i64) -> Bytes {
        if self.change.0 == version {
            return self.change.1.clone();
        }
        let changed = self.rows.iter().filter(|row| row.changed > version);
        sse::event("change", &rows_json(changed)).into()
    }
}

fn version(rows: &[Count]) -> i64 {
    rows.iter().map(|row| row.changed).max().unwrap_or(0)
}

/// What one client was sent.
#[derive(Default)]
pub struct Client {
    /// The epoch and the version of the latest event.
    sent: Option<(u32, i64)>,
    status: sse::Status,
}

impl Client {
    /// The events that this state adds.
    pub fn take(&mut self, state: &State) -> Option<Bytes> {
        let status = self.status.event(state.problem.as_deref());
        let events = state.table.as_ref().and_then(|table| self.events(table));
        match (status, events) {
            (None, events) => events,
            (Some(status), None) => Some(status.into()),
            (Some(status), Some(events)) => Some([status.as_bytes(), &events].concat().into()),
        }
    }

    fn events(&mut self, table: &Table) -> Option<Bytes> {
        match self.sent.replace((table.epoch, table.version)) {
            Some((epoch, version)) if epoch == table.epoch => {
                (version != table.version).then(|| table.since(version))
            }
            _ => Some(table.snapshot().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(food: &str, count: i64, changed: i64) -> Count {
        Count {
            food: food.to_owned(),
            count,
            changed,
        }
    }

    #[tokio::test]
    async fn one_poll_serves_all_clients_and_ends_with_the_last_one() {
        let url = "sqlite:///no/such/folder/herald.db".parse().unwrap();
        let reader = Reader::new(&url, &store::Name::default());
        let failed = CancellationToken::new();
        let feed = Arc::new(Feed::new(reader, failed.clone()));
        let task = || feed.polling.lock().unwrap().as_ref().map(JoinHandle::id);
        let mut clients = vec![feed.watch()];
        let first = task();
        clients.extend((0..100).map(|_| feed.watch()));
        assert!(first.is_some() && task() == first);
        clients.truncate(1);
        tokio::time::sleep(4 * PERIOD).await;
        assert_eq!(task(), first);
        clients.clear();
        let ended = async || task().is_none();
        herald_testing::eventually(Duration::from_secs(10), "the poll to end", ended).await;
        let _client = feed.watch();
        assert!(task().is_some_and(|id| Some(id) != first));
        assert!(!failed.is_cancelled());
    }

    fn take(client: &mut Client, state: &State) -> String {
        let taken = client.take(state).unwrap_or_default();
        String::from_utf8(taken.to_vec()).unwrap()
    }

    #[test]
    fn a_client_gets_a_snapshot_and_then_what_has_changed_since_its_last_event() {
        let mut state = State::default();
        let (mut fast, mut slow) = (Client::default(), Client::default());
        assert_eq!(take(&mut fast, &state), "");
        assert!(state.apply(vec![count("pie", 1, 1), count("fig", 1, 1)], true));
        let all = "event: snapshot\ndata: [{\"count\":1,\"food\":\"pie\"},{\"count\":1,\"food\":\"fig\"}]\n\n";
        assert_eq!(take(&mut fast, &state), all);
        assert_eq!(take(&mut slow, &state), all);
        assert!(!state.apply(vec![], false));
        assert!(state.apply(vec![count("fig", 2, 2)], false));
        let two = "event: change\ndata: [{\"count\":2,\"food\":\"fig\"}]\n\n";
        assert_eq!(take(&mut fast, &state), two);
        assert_eq!(take(&mut fast, &state), "");
        assert!(state.apply(vec![count("fig", 3, 3), count("nut", 1, 3)], false));
        let both = "event: change\ndata: [{\"count\":3,\"food\":\"fig\"},{\"count\":1,\"food\":\"nut\"}]\n\n";
        assert_eq!(take(&mut slow, &state), both);
    }

    #[test]
    fn a_database_that_was_recreated_is_a_new_snapshot() {
        let mut state = State::default();
        let mut client = Client::default();
        state.apply(vec![count("pie", 5, 4)], true);
        take(&mut client, &state);
        assert!(!state.apply(vec![count("pie", 5, 4)], true));
        for rows in [
            // It has counted more than the one before.
            vec![count("pie", 6, 3), count("fig", 1, 9)],
            vec![count("fig", 1, 4)],
            vec![count("fig", 1, 1)],
            vec![],
        ] {
            assert!(state.apply(rows, true));
            assert!(take(&mut client, &state).starts_with("event: snapshot\n"));
        }
    }

    #[test]
    fn a_database_that_does_not_answer_is_reported_once_and_its_recovery_too() {
        let mut state = State::default();
        let mut client = Client::default();
        assert!(state.fail("it is away".to_owned()));
        assert!(!state.fail("it is away".to_owned()));
        let down = take(&mut client, &state);
        assert!(
            down.contains(r#"{"reason":"it is away","source":"down"}"#),
            "{down}"
        );
        assert_eq!(take(&mut client, &state), "");
        assert!(state.apply(vec![], true));
        let up = take(&mut client, &state);
        assert_eq!(
            up,
            "event: status\ndata: {\"source\":\"up\"}\n\nevent: snapshot\ndata: []\n\n"
        );
    }
}
