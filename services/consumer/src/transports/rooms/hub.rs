//! The members of each room, and its last result. A result costs as much as it has receivers.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use herald_runtime::http::{Action, Principal, Resource};
use serde::Serialize;
use serde_json::Value as Json;
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::Notify;

use super::request::{self, Invalid, MAX_ROOMS};
use super::{LABELS, WINDOWS};
use crate::metrics::Metrics;

/// The most results of which each waits for a client. Of those that come while as many wait, only the newest of each room and
/// window does.
const MAX_WAITING: usize = 1_000;

/// The most events that a member takes at once.
const TAKE: usize = 64;

/// The most errors that wait for a client; more are only counted.
const MAX_ERRORS: usize = 8;

/// Approximate bytes of the last result of a room, besides its name, which occurs twice.
const LAST_OVERHEAD: usize = 192;

fn last_bytes(room: &str) -> usize {
    2 * room.len() + LAST_OVERHEAD
}

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
    /// Why the log cannot be read now.
    problem: Option<String>,
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
        self.bytes += last_bytes(&room);
        self.newer.insert(room, last);
        if self.bytes <= max_bytes / 2 {
            return false;
        }
        self.bytes = 0;
        let dropped = std::mem::replace(&mut self.older, std::mem::take(&mut self.newer));
        !dropped.is_empty() && !std::mem::replace(&mut self.dropped, true)
    }

    fn remove(&mut self, room: &str) {
        if self.newer.remove(room).is_some() {
            self.bytes -= last_bytes(room);
        }
        self.older.remove(room);
    }

    fn retain(&mut self, keep: impl Fn(&Last) -> bool) {
        let bytes = &mut self.bytes;
        self.newer.retain(|room, last| {
            let kept = keep(last);
            if !kept {
                *bytes -= last_bytes(room);
            }
            kept
        });
        self.older.retain(|_, last| keep(last));
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
    position: (usize, i64),
}

/// One client.
pub struct Member {
    rooms: Arc<Rooms>,
    principal: Principal,
    number: u64,
    own: Mutex<Own>,
    notify: Notify,
}

/// What a member wants, and what waits for it. Its lock is only ever taken while the state's is held, or alone.
#[derive(Default)]
struct Own {
    rooms: HashSet<Arc<str>>,
    windows: [bool; WINDOWS],
    waiting: VecDeque<Sent>,
    /// The newest results by window and room, of those that came while [`MAX_WAITING`] waited. They follow these.
    newest: HashMap<(usize, Arc<str>), Arc<RawValue>>,
    /// Errors among `waiting`.
    errors: usize,
    ended: bool,
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
    fn is_error(&self) -> bool {
        self.window.is_none()
    }

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
            metrics.rooms_live(label, false);
        }
        Self {
            events: events.map(Arc::from),
            max_bytes,
            metrics,
            state: Mutex::default(),
        }
    }

    /// Whether the last results of all rooms of a window have been read, so that clients receive them.
    pub fn is_live(&self, window: usize) -> bool {
        self.lock().windows[window].live
    }

    /// Why the results of a window cannot be read now.
    pub fn problem(&self, window: usize) -> Option<String> {
        self.lock().windows[window].problem.clone()
    }

    pub fn set_problem(&self, window: usize, problem: Option<&str>) {
        let mut state = self.lock();
        if state.windows[window].problem.as_deref() != problem {
            state.windows[window].problem = problem.map(str::to_owned);
        }
    }

    /// A new member, in no room.
    pub fn admit(rooms: &Arc<Self>, principal: Principal) -> Arc<Member> {
        let mut state = rooms.lock();
        let number = state.next;
        state.next += 1;
        drop(state);
        Arc::new(Member {
            rooms: rooms.clone(),
            principal,
            number,
            own: Mutex::default(),
            notify: Notify::new(),
        })
    }

    /// A result was read.
    pub fn publish(&self, window: usize, room: &str, count: i128, position: (usize, i64)) {
        let payload = to_raw_value(&Payload { id: room, count });
        let payload: Arc<RawValue> = payload.expect("a text and a number are JSON").into();
        let mut state = self.lock();
        let state = &mut *state;
        let of = &mut state.windows[window];
        let last = Last {
            payload: payload.clone(),
            position,
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
        let Some((room, members)) = state.rooms.get_key_value(room) else {
            return;
        };
        let mut disconnected = Vec::new();
        for (number, member) in members {
            let Some(member) = member.upgrade() else {
                disconnected.push(*number);
                continue;
            };
            let mut own = member.lock();
            if own.windows[window] {
                member.send(&mut own, window, room, payload.clone());
            }
        }
        if !disconnected.is_empty() {
            // They were never served, so they have not left.
            let room = room.clone();
            for number in disconnected {
                leave_room(state, &room, number);
            }
            self.metrics.rooms(state.rooms.len());
        }
    }

    /// A room has no result any more.
    pub fn remove(&self, window: usize, room: &str) {
        let mut state = self.lock();
        state.windows[window].remove(room);
    }

    /// A partition has lost its records from this offset on.
    pub fn forget(&self, window: usize, partition: usize, from: i64) {
        let mut state = self.lock();
        let lost = |last: &Last| last.position.0 == partition && last.position.1 >= from;
        state.windows[window].retain(|last| !lost(last));
    }

    /// The log of a window has been read up to its end: its members receive the last results of their rooms, and from then on
    /// every one. Repeated calls change nothing.
    pub fn caught_up(&self, window: usize) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.windows[window].live, true) {
            return;
        }
        self.metrics.rooms_live(LABELS[window], true);
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
                    member.send(&mut own, window, room, last.payload.clone());
                }
            }
        }
    }

    /// Counts records that are not results, or gaps.
    pub fn skipped(&self, topic: &str, reason: &str, count: u64) {
        self.metrics.results_skipped(topic, reason, count);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    /// Adds rooms. Of each window that the member has requested, it receives their last results.
    pub fn register(self: &Arc<Self>, payload: Option<&Json>) {
        let result = request::rooms(payload).and_then(|names| {
            for name in &names {
                let permit = self.principal.may(Action::Read, Resource::Room(name));
                permit.map_err(|refusal| Invalid::new("forbidden", refusal.sentence()))?;
            }
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
            if own.rooms.len() + new.len() > MAX_ROOMS {
                return Err(Invalid::new(
                    "too-many",
                    format!(
                        "a client may be in at most {MAX_ROOMS} rooms; leave some with leave_room"
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
                        self.send(&mut own, window, &room, last.payload.clone());
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
                    leave_room(&mut state, name, self.number);
                }
            }
            self.rooms.metrics.rooms(state.rooms.len());
        });
        self.reject(result);
    }

    /// Requests a window. The member receives its last results of the rooms that it is in.
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
        let found = own.rooms.iter().filter_map(|room| {
            let last = of.last(room)?;
            Some((room.clone(), last.payload.clone()))
        });
        let found: Vec<_> = found.collect();
        for (room, payload) in found {
            self.send(&mut own, window, &room, payload);
        }
    }

    /// Waits for the next events that the member is to receive: a few. Cancel-safe.
    pub async fn next(&self) -> Vec<Sent> {
        loop {
            {
                let mut own = self.lock();
                if own.waiting.is_empty() {
                    let newest = std::mem::take(&mut own.newest);
                    let newest = newest.into_iter();
                    own.waiting = newest
                        .map(|((window, _), payload)| self.result(window, payload))
                        .collect();
                }
                if !own.waiting.is_empty() {
                    let count = own.waiting.len().min(TAKE);
                    let events: Vec<Sent> = own.waiting.drain(..count).collect();
                    own.errors -= events.iter().filter(|event| event.is_error()).count();
                    return events;
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
        own.waiting = VecDeque::new();
        own.newest = HashMap::new();
        for room in std::mem::take(&mut own.rooms) {
            leave_room(&mut state, &room, self.number);
        }
        self.rooms.metrics.rooms(state.rooms.len());
    }

    fn send(&self, own: &mut Own, window: usize, room: &Arc<str>, payload: Arc<RawValue>) {
        if own.waiting.len() < MAX_WAITING && own.newest.is_empty() {
            own.waiting.push_back(self.result(window, payload));
        } else {
            own.newest.insert((window, room.clone()), payload);
        }
        self.notify.notify_one();
    }

    fn result(&self, window: usize, payload: Arc<RawValue>) -> Sent {
        Sent {
            name: self.rooms.events[window].clone(),
            payload,
            window: Some(window),
            metrics: self.rooms.metrics.clone(),
        }
    }

    /// Counts an invalid request, and sends the client an error, unless as many wait as may.
    fn reject(&self, result: Result<(), Invalid>) {
        let Err(invalid) = result else { return };
        self.rooms.metrics.invalid_rooms(invalid.reason);
        let mut own = self.lock();
        if own.errors >= MAX_ERRORS {
            return;
        }
        own.errors += 1;
        let payload = to_raw_value(&json!({ "error": invalid.sentence }));
        own.waiting.push_back(Sent {
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

fn leave_room(state: &mut State, room: &str, number: u64) {
    if let Some(members) = state.rooms.get_mut(room) {
        members.remove(&number);
        if members.is_empty() {
            state.rooms.remove(room);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;
    use herald_runtime::http::server::ServerMetrics;
    use herald_runtime::http::{Caller, Proxies, RequestId};
    use hyper::{HeaderMap, Request};

    fn anyone() -> Principal {
        let metrics = ServerMetrics::new(&Default::default()).unwrap();
        let id = RequestId::of(&HeaderMap::new());
        Principal::anyone(&Caller::of(
            &Request::new(()),
            &id,
            &Proxies::default(),
            &metrics,
        ))
    }

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
                .is_some_and(|last| last.position.1 == 9_999)
        );
        assert!(window.dropped && window.newer.len() + window.older.len() > 100);
    }

    fn register(member: &Arc<Member>, rooms: &[&str]) {
        member.register(Some(&json!({ "rooms": rooms })));
    }

    /// What waits for a member: `one a 3`, or `error`.
    fn taken(member: &Member) -> Vec<String> {
        let mut taken = Vec::new();
        while let Some(events) = member.next().now_or_never() {
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
    fn a_member_receives_the_windows_and_rooms_it_requested_in_whichever_order() {
        let rooms = rooms();
        let members = [
            Rooms::admit(&rooms, anyone()),
            Rooms::admit(&rooms, anyone()),
        ];
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
        let member = Rooms::admit(&rooms, anyone());
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
        let member = Rooms::admit(&rooms, anyone());
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
        let member = Rooms::admit(&rooms, anyone());
        member.consume(0);
        let many: Vec<String> = (1..MAX_ROOMS).map(|room| room.to_string()).collect();
        for some in many.chunks(100) {
            member.register(Some(&json!({ "rooms": some })));
        }
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
    fn beyond_a_limit_only_the_newest_result_of_each_room_and_window_waits() {
        let rooms = rooms();
        let member = Rooms::admit(&rooms, anyone());
        register(&member, &["a", "b"]);
        member.consume(0);
        member.consume(1);
        for count in 0..MAX_WAITING {
            rooms.publish(0, "a", count as i128, (0, count as i64));
        }
        for count in 0..5_000 {
            rooms.publish(1, "a", count, (0, count as i64));
            rooms.publish(0, "b", count, (0, count as i64));
        }
        assert_eq!(member.lock().newest.len(), 2);
        let mut received = HashSet::new();
        while let Some(events) = member.next().now_or_never() {
            assert!(events.len() <= TAKE);
            let texts = events
                .iter()
                .map(|event| format!("{} {}", event.name(), event.payload()));
            received.extend(texts);
        }
        assert_eq!(received.len(), MAX_WAITING + 2);
        assert!(received.contains(r#"five {"id":"a","count":4999}"#));
        assert!(received.contains(r#"one {"id":"b","count":4999}"#));
        rooms.publish(0, "a", 1, (0, 0));
        assert_eq!(taken(&member), ["one a 1"]);
    }

    #[test]
    fn removed_results_give_their_memory_back() {
        let rooms = rooms();
        for offset in 0..100 {
            rooms.publish(0, &format!("room {offset}"), 1, (0, offset));
        }
        (0..50).for_each(|offset| rooms.remove(0, &format!("room {offset}")));
        rooms.remove(0, "room 0");
        rooms.forget(0, 0, 99);
        assert_eq!(rooms.lock().windows[0].bytes, 49 * last_bytes("room 50"));
        rooms.forget(0, 0, 0);
        assert_eq!(rooms.lock().windows[0].bytes, 0);
    }

    #[test]
    fn a_client_that_disconnected_before_it_was_served_leaves_no_room_behind() {
        let rooms = rooms();
        let member = Rooms::admit(&rooms, anyone());
        register(&member, &["a"]);
        drop(member);
        rooms.publish(0, "a", 1, (0, 0));
        assert!(rooms.lock().rooms.is_empty());
    }

    #[test]
    fn only_what_the_log_has_lost_is_forgotten() {
        let rooms = rooms();
        for (room, position) in [("a", (0, 5)), ("b", (0, 9)), ("c", (1, 9))] {
            rooms.publish(0, room, 1, position);
        }
        rooms.forget(0, 0, 9);
        rooms.remove(0, "never");
        let member = Rooms::admit(&rooms, anyone());
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
            let members = [0; 3].map(|_| Rooms::admit(&rooms, anyone()));
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
