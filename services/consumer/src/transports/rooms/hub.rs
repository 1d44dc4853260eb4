//! Who is in which room, and the last result of each room. A result costs as much as it has receivers.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::Serialize;
use serde_json::Value as Json;
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::Notify;

use super::request::{self, Invalid};
use super::{LABELS, WINDOWS};
use crate::keys::MAX_KEYS;
use crate::metrics::Metrics;

/// The most results that wait for a client: all of its rooms, three windows, and as much again and again. A client with more is
/// slow.
const MAX_WAITING: usize = 1_000;

/// The most errors that wait for a client; more are only counted.
const MAX_ERRORS: usize = 8;

/// Approximate bytes of the last result of a room, besides its name, which occurs twice.
const LAST_OVERHEAD: usize = 192;

/// The rooms of a process.
pub struct Rooms {
    /// The names of the events, one for each window.
    events: [Arc<str>; WINDOWS],
    /// The limit for the last results of one window.
    max_bytes: usize,
    metrics: Metrics,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    windows: [Window; WINDOWS],
    rooms: HashMap<Arc<str>, HashMap<u64, Weak<Member>>>,
    /// The number of the next member.
    next: u64,
}

/// The last results of one window.
#[derive(Default)]
struct Window {
    /// The results since the last time that these were half of the limit, and those before. When they are again, the older
    /// ones are dropped: rooms without a new result for the longest time.
    newer: HashMap<Arc<str>, Last>,
    older: HashMap<Arc<str>, Last>,
    /// Bytes of `newer`.
    bytes: usize,
    dropped: bool,
    /// The log has been read up to its end. Until then no member receives anything: it joins at that moment.
    live: bool,
}

impl Window {
    fn last(&self, room: &str) -> Option<&Last> {
        self.newer.get(room).or_else(|| self.older.get(room))
    }

    /// Returns whether older results were dropped for the first time.
    fn insert(&mut self, room: &str, last: Last, max_bytes: usize) -> bool {
        if let Some(former) = self.newer.get_mut(room) {
            *former = last;
            return false;
        }
        let room = match self.older.remove_entry(room) {
            Some((room, _)) => room,
            None => room.into(),
        };
        self.bytes += 2 * room.len() + LAST_OVERHEAD;
        self.newer.insert(room, last);
        if self.bytes <= max_bytes / 2 {
            return false;
        }
        self.bytes = 0;
        let dropped = std::mem::replace(&mut self.older, std::mem::take(&mut self.newer));
        !dropped.is_empty() && !std::mem::replace(&mut self.dropped, true)
    }

    fn retain(&mut self, keep: impl Fn(&Last) -> bool) {
        for results in [&mut self.newer, &mut self.older] {
            results.retain(|_, last| keep(last));
        }
    }
}

/// What a client receives: exactly this.
#[derive(Serialize)]
struct Payload<'a> {
    id: &'a str,
    count: i128,
}

struct Last {
    payload: Arc<RawValue>,
    /// Partition and offset.
    place: (usize, i64),
}

/// One client.
pub struct Member {
    rooms: Arc<Rooms>,
    number: u64,
    own: Mutex<Own>,
    notify: Notify,
}

/// What a member wants, and what waits for it. Its lock is only ever taken while the state's is held, or alone.
#[derive(Default)]
struct Own {
    rooms: HashSet<Arc<str>>,
    windows: [bool; WINDOWS],
    waiting: Vec<Sent>,
    errors: usize,
    /// More came than may wait.
    slow: bool,
    ended: bool,
}

/// What a member is to receive.
pub enum Outgoing {
    Events(Vec<Sent>),
    /// It is too slow.
    Slow,
}

/// One event for a member.
pub struct Sent {
    name: Arc<str>,
    payload: Arc<RawValue>,
    /// The window of a result, to count it.
    window: Option<usize>,
    metrics: Metrics,
}

impl Sent {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn payload(&self) -> &RawValue {
        &self.payload
    }

    /// Counts it.
    pub fn delivered(&self) {
        if let Some(window) = self.window {
            self.metrics.result_delivered(LABELS[window]);
        }
    }
}

impl Rooms {
    /// `events` are the names of the events, one for each window; `max_bytes` limits the last results of each window.
    pub fn new(events: [&str; WINDOWS], max_bytes: usize, metrics: Metrics) -> Self {
        for label in LABELS {
            metrics.results_of(label);
        }
        Self {
            events: events.map(Arc::from),
            max_bytes,
            metrics,
            state: Mutex::default(),
        }
    }

    /// A new member, in no room.
    pub fn admit(rooms: &Arc<Self>) -> Arc<Member> {
        let mut state = rooms.lock();
        let number = state.next;
        state.next += 1;
        drop(state);
        Arc::new(Member {
            rooms: rooms.clone(),
            number,
            own: Mutex::default(),
            notify: Notify::new(),
        })
    }

    /// A result was read.
    pub fn publish(&self, window: usize, room: &str, count: i128, place: (usize, i64)) {
        let payload = to_raw_value(&Payload { id: room, count });
        let payload: Arc<RawValue> = payload.expect("a text and a number are JSON").into();
        let mut state = self.lock();
        let state = &mut *state;
        let of = &mut state.windows[window];
        let last = Last {
            payload: payload.clone(),
            place,
        };
        if of.insert(room, last, self.max_bytes) {
            tracing::warn!(
                window = LABELS[window],
                limit = self.max_bytes,
                "the last results are over --latest-bytes; rooms without a new one for the longest time have none any more"
            );
        }
        if !of.live {
            return;
        }
        for member in state.rooms.get(room).into_iter().flat_map(HashMap::values) {
            if let Some(member) = member.upgrade() {
                let mut own = member.lock();
                if own.windows[window] {
                    member.send(&mut own, window, payload.clone());
                }
            }
        }
    }

    /// A room has no result any more.
    pub fn remove(&self, window: usize, room: &str) {
        let mut state = self.lock();
        let of = &mut state.windows[window];
        of.newer.remove(room);
        of.older.remove(room);
    }

    /// A partition has lost its records from this offset on.
    pub fn forget(&self, window: usize, partition: usize, from: i64) {
        let mut state = self.lock();
        let lost = |last: &Last| last.place.0 == partition && last.place.1 >= from;
        state.windows[window].retain(|last| !lost(last));
    }

    /// The log of a window has been read up to its end: its members receive the last results of their rooms, and from then on
    /// every one. Repeated calls change nothing.
    pub fn caught_up(&self, window: usize) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.windows[window].live, true) {
            return;
        }
        tracing::info!(
            window = LABELS[window],
            rooms = state.windows[window].newer.len() + state.windows[window].older.len(),
            "read the last results of all rooms"
        );
        for (room, members) in &state.rooms {
            let Some(last) = state.windows[window].last(room) else {
                continue;
            };
            for member in members.values().filter_map(Weak::upgrade) {
                let mut own = member.lock();
                if own.windows[window] {
                    member.send(&mut own, window, last.payload.clone());
                }
            }
        }
    }

    /// Counts records that are no results.
    pub fn skipped(&self, topic: &str, records: u64) {
        self.metrics.results_skipped(topic, records);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    /// Adds rooms. Of each window that the member has asked for, it receives their last results.
    pub fn register(self: &Arc<Self>, payload: Option<&Json>) {
        let result = request::rooms(payload).and_then(|names| {
            let mut state = self.rooms.lock();
            let mut own = self.lock();
            if own.ended {
                return Ok(());
            }
            let new: HashSet<&str> = names.into_iter().collect();
            let new: Vec<&str> = new
                .into_iter()
                .filter(|name| !own.rooms.contains(*name))
                .collect();
            if own.rooms.len() + new.len() > MAX_KEYS {
                return Err(Invalid::new(
                    "too-many",
                    format!(
                        "a client may be in at most {MAX_KEYS} rooms; leave some with leave_room"
                    ),
                ));
            }
            for name in new {
                let room = match state.rooms.get_key_value(name) {
                    Some((room, _)) => room.clone(),
                    None => Arc::from(name),
                };
                let members = state.rooms.entry(room.clone()).or_default();
                members.insert(self.number, Arc::downgrade(self));
                for window in 0..WINDOWS {
                    let of = &state.windows[window];
                    if let Some(last) = of.last(&room).filter(|_| of.live && own.windows[window]) {
                        self.send(&mut own, window, last.payload.clone());
                    }
                }
                own.rooms.insert(room);
            }
            self.rooms.metrics.rooms(state.rooms.len());
            Ok(())
        });
        self.reject(result);
    }

    /// Leaves rooms; those that the member is not in are ignored.
    pub fn leave(self: &Arc<Self>, payload: Option<&Json>) {
        let result = request::rooms(payload).map(|names| {
            let mut state = self.rooms.lock();
            let mut own = self.lock();
            for name in names {
                if own.rooms.remove(name) {
                    self.leave_room(&mut state, name);
                }
            }
            self.rooms.metrics.rooms(state.rooms.len());
        });
        self.reject(result);
    }

    /// Asks for a window. The member receives its last results of the rooms that it is in.
    pub fn consume(&self, window: usize) {
        let state = self.rooms.lock();
        let mut own = self.lock();
        if own.ended || std::mem::replace(&mut own.windows[window], true) {
            return;
        }
        let of = &state.windows[window];
        if !of.live {
            return;
        }
        let found = own.rooms.iter().filter_map(|room| of.last(room));
        let found: Vec<_> = found.map(|last| last.payload.clone()).collect();
        for payload in found {
            self.send(&mut own, window, payload);
        }
    }

    /// Waits for what the member is to receive. Cancel-safe.
    pub async fn next(&self) -> Outgoing {
        loop {
            {
                let mut own = self.lock();
                if own.slow {
                    return Outgoing::Slow;
                }
                if !own.waiting.is_empty() {
                    own.errors = 0;
                    return Outgoing::Events(std::mem::take(&mut own.waiting));
                }
            }
            self.notify.notified().await;
        }
    }

    /// Leaves all rooms, for ever.
    pub fn end(&self) {
        let mut state = self.rooms.lock();
        let mut own = self.lock();
        own.ended = true;
        own.waiting = Vec::new();
        for room in std::mem::take(&mut own.rooms) {
            self.leave_room(&mut state, &room);
        }
        self.rooms.metrics.rooms(state.rooms.len());
    }

    fn leave_room(&self, state: &mut State, room: &str) {
        if let Some(members) = state.rooms.get_mut(room) {
            members.remove(&self.number);
            if members.is_empty() {
                state.rooms.remove(room);
            }
        }
    }

    fn send(&self, own: &mut Own, window: usize, payload: Arc<RawValue>) {
        if own.waiting.len() >= MAX_WAITING {
            own.slow = true;
            own.waiting = Vec::new();
        }
        if !own.slow {
            own.waiting.push(Sent {
                name: self.rooms.events[window].clone(),
                payload,
                window: Some(window),
                metrics: self.rooms.metrics.clone(),
            });
        }
        self.notify.notify_one();
    }

    /// Counts an invalid request, and has the client told.
    fn reject(&self, result: Result<(), Invalid>) {
        let Err(invalid) = result else { return };
        self.rooms.metrics.invalid_rooms(invalid.reason);
        let mut own = self.lock();
        if own.slow || own.errors >= MAX_ERRORS {
            return;
        }
        own.errors += 1;
        let payload = to_raw_value(&json!({ "error": invalid.sentence }));
        own.waiting.push(Sent {
            name: "error".into(),
            payload: payload.expect("a text is JSON").into(),
            window: None,
            metrics: self.rooms.metrics.clone(),
        });
        self.notify.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    fn rooms() -> Arc<Rooms> {
        let rooms = Arc::new(Rooms::new(
            ["one", "five", "ten"],
            usize::MAX,
            Metrics::new().unwrap(),
        ));
        (0..WINDOWS).for_each(|window| rooms.caught_up(window));
        rooms
    }

    #[test]
    fn the_memory_for_last_results_is_limited_and_the_oldest_are_dropped() {
        let limit = 100_000;
        let rooms = Rooms::new(["one", "five", "ten"], limit, Metrics::new().unwrap());
        let measured = allocation_counter::measure(|| {
            for count in 0..10_000 {
                let room = format!("93f98662-8907-4f43-bb4c-{count:012}");
                rooms.publish(0, &room, count, (0, count as i64));
                rooms.publish(0, "steady", count, (1, count as i64));
            }
        });
        assert!(
            measured.bytes_current < 3 * limit as i64 / 2,
            "{measured:?}"
        );
        let state = rooms.lock();
        let window = &state.windows[0];
        assert!(
            window
                .last("93f98662-8907-4f43-bb4c-000000000000")
                .is_none()
        );
        assert!(
            window
                .last("93f98662-8907-4f43-bb4c-000000009999")
                .is_some()
        );
        assert!(
            window
                .last("steady")
                .is_some_and(|last| last.place.1 == 9_999)
        );
        assert!(window.dropped && window.newer.len() + window.older.len() > 100);
    }

    fn register(member: &Arc<Member>, rooms: &[&str]) {
        member.register(Some(&json!({ "rooms": rooms })));
    }

    /// What waits for a member: `one a 3`, or `error`.
    fn taken(member: &Member) -> Vec<String> {
        let mut taken = Vec::new();
        while let Some(Outgoing::Events(events)) = member.next().now_or_never() {
            taken.extend(events.iter().map(|event| {
                let payload: Json = serde_json::from_str(event.payload().get()).unwrap();
                match payload["id"].as_str() {
                    Some(id) => format!("{} {id} {}", event.name(), payload["count"]),
                    None => event.name().to_owned(),
                }
            }));
        }
        taken.sort_unstable();
        taken
    }

    #[test]
    fn a_member_receives_the_windows_and_rooms_it_asked_for_in_whichever_order() {
        let rooms = rooms();
        let members = [Rooms::admit(&rooms), Rooms::admit(&rooms)];
        let [first, second] = &members;
        register(first, &["a"]);
        first.consume(0);
        second.consume(0);
        register(second, &[]);
        register(second, &["a", "b"]);
        rooms.publish(0, "a", 3, (0, 0));
        rooms.publish(1, "a", 4, (0, 0));
        rooms.publish(0, "b", 5, (0, 1));
        rooms.publish(0, "c", 6, (0, 2));
        assert_eq!(taken(first), ["one a 3"]);
        assert_eq!(taken(second), ["one a 3", "one b 5"]);
        second.leave(Some(&json!({ "rooms": ["a", "never"] })));
        rooms.publish(0, "a", 7, (0, 3));
        assert_eq!(
            (taken(first), taken(second)),
            (vec!["one a 7".to_owned()], vec![])
        );
        members.iter().for_each(|member| member.end());
        assert!(rooms.lock().rooms.is_empty());
    }

    #[test]
    fn a_late_joiner_receives_the_last_value_of_each_window_once() {
        let rooms = rooms();
        rooms.publish(0, "a", 1, (0, 0));
        rooms.publish(0, "a", 2, (0, 1));
        rooms.publish(2, "a", 3, (0, 0));
        let member = Rooms::admit(&rooms);
        register(&member, &["a"]);
        assert_eq!(taken(&member), [""; 0]);
        member.consume(0);
        member.consume(2);
        assert_eq!(taken(&member), ["one a 2", "ten a 3"]);
        register(&member, &["a", "a", "b"]);
        member.consume(0);
        assert_eq!(taken(&member), [""; 0]);
        rooms.publish(0, "b", 4, (0, 2));
        assert_eq!(taken(&member), ["one b 4"]);
    }

    #[test]
    fn members_that_came_before_the_log_was_read_join_when_it_has_been() {
        let rooms = Arc::new(Rooms::new(
            ["one", "five", "ten"],
            usize::MAX,
            Metrics::new().unwrap(),
        ));
        let member = Rooms::admit(&rooms);
        register(&member, &["a"]);
        member.consume(0);
        rooms.publish(0, "a", 1, (0, 0));
        rooms.publish(0, "a", 2, (0, 1));
        assert_eq!(taken(&member), [""; 0]);
        rooms.caught_up(0);
        rooms.caught_up(0);
        assert_eq!(taken(&member), ["one a 2"]);
    }

    #[test]
    fn an_invalid_request_is_answered_and_changes_nothing() {
        let rooms = rooms();
        let member = Rooms::admit(&rooms);
        member.consume(0);
        let many: Vec<String> = (0..99).map(|room| room.to_string()).collect();
        member.register(Some(&json!({ "rooms": many })));
        for wrong in [
            json!({}),
            json!({ "rooms": ["a", 1] }),
            json!({ "rooms": ["a", "b"] }),
        ] {
            member.register(Some(&wrong));
            assert_eq!(taken(&member), ["error"], "{wrong}");
        }
        rooms.publish(0, "a", 1, (0, 0));
        assert_eq!(taken(&member), [""; 0]);
        register(&member, &["a", "98"]);
        assert_eq!(taken(&member), ["one a 1"]);
        // A client that sends nothing but errors does not fill our memory.
        (0..1_000).for_each(|_| member.register(None));
        assert_eq!(taken(&member).len(), MAX_ERRORS);
    }

    #[test]
    fn a_member_that_takes_nothing_is_slow_and_holds_nothing() {
        let rooms = rooms();
        let member = Rooms::admit(&rooms);
        register(&member, &["a"]);
        member.consume(0);
        for count in 0..=MAX_WAITING {
            rooms.publish(0, "a", count as i128, (0, count as i64));
        }
        assert!(matches!(member.next().now_or_never(), Some(Outgoing::Slow)));
        assert!(member.lock().waiting.is_empty());
    }

    #[test]
    fn only_what_the_log_has_lost_is_forgotten() {
        let rooms = rooms();
        for (room, place) in [("a", (0, 5)), ("b", (0, 9)), ("c", (1, 9))] {
            rooms.publish(0, room, 1, place);
        }
        rooms.forget(0, 0, 9);
        rooms.remove(0, "never");
        let member = Rooms::admit(&rooms);
        register(&member, &["a", "b", "c"]);
        member.consume(0);
        assert_eq!(taken(&member), ["one a 1", "one c 1"]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Publish(usize, usize),
        Register(usize, Vec<usize>),
        Consume(usize, usize),
        Leave(usize, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..WINDOWS, 0..4usize).prop_map(|(window, room)| Step::Publish(window, room)),
            2 => (0..3usize, proptest::collection::vec(0..4usize, 0..3)).prop_map(|(member, rooms)| Step::Register(member, rooms)),
            1 => (0..3usize, 0..WINDOWS).prop_map(|(member, window)| Step::Consume(member, window)),
            1 => (0..3usize, 0..4usize).prop_map(|(member, room)| Step::Leave(member, room)),
        ]
    }

    proptest! {
        #[test]
        fn each_member_receives_the_last_value_at_its_joining_and_every_one_after_it(
            steps in proptest::collection::vec(step(), 0..60),
        ) {
            const ROOMS: [&str; 4] = ["a", "b", "c", "d"];
            const NAMES: [&str; WINDOWS] = ["one", "five", "ten"];
            let rooms = rooms();
            let members = [0; 3].map(|_| Rooms::admit(&rooms));
            let mut last: HashMap<(usize, usize), usize> = HashMap::new();
            let mut wanted = vec![(HashSet::new(), [false; WINDOWS], Vec::new()); members.len()];
            for (count, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Publish(window, room) => {
                        rooms.publish(window, ROOMS[room], count as i128, (0, count as i64));
                        last.insert((window, room), count);
                        for (of, windows, expected) in &mut wanted {
                            if of.contains(&room) && windows[window] {
                                expected.push(format!("{} {} {count}", NAMES[window], ROOMS[room]));
                            }
                        }
                    }
                    Step::Register(member, names) => {
                        let named: Vec<&str> = names.iter().map(|&room| ROOMS[room]).collect();
                        register(&members[member], &named);
                        let (of, windows, expected) = &mut wanted[member];
                        for room in names {
                            if !of.insert(room) {
                                continue;
                            }
                            for window in (0..WINDOWS).filter(|&window| windows[window]) {
                                let found = last.get(&(window, room));
                                expected.extend(found.map(|count| format!("{} {} {count}", NAMES[window], ROOMS[room])));
                            }
                        }
                    }
                    Step::Consume(member, window) => {
                        members[member].consume(window);
                        let (of, windows, expected) = &mut wanted[member];
                        if !std::mem::replace(&mut windows[window], true) {
                            for room in of.iter() {
                                let found = last.get(&(window, *room));
                                expected.extend(found.map(|count| format!("{} {} {count}", NAMES[window], ROOMS[*room])));
                            }
                        }
                    }
                    Step::Leave(member, room) => {
                        members[member].leave(Some(&json!({ "rooms": [ROOMS[room]] })));
                        wanted[member].0.remove(&room);
                    }
                }
            }
            for (member, (_, _, mut expected)) in members.iter().zip(wanted) {
                expected.sort_unstable();
                prop_assert_eq!(taken(member), expected);
            }
        }
    }
}
