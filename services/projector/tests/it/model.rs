//! Sessions in random order with frames sent again, and their documents computed in the most straightforward way.

use std::collections::BTreeSet;

use herald_testing::Record;
use rand::RngExt as _;
use rand::seq::{IndexedRandom as _, SliceRandom as _};

use crate::frame;

/// The frames of all sessions, in the order in which they are produced.
pub struct Script {
    /// The partition, the session and the events of each frame.
    pub frames: Vec<(i32, String, Vec<String>)>,
    pub sessions: Vec<String>,
}

impl Script {
    /// `sessions` sessions over `partitions` partitions.
    pub fn random(sessions: usize, partitions: usize) -> Self {
        let mut rng = rand::rng();
        let mut frames = Vec::new();
        let mut names = Vec::new();
        for number in 0..sessions {
            let name = format!("session-{number}");
            let partition = (number % partitions) as i32;
            let own = frames_of_session(&mut rng);
            frames.extend(
                own.into_iter()
                    .map(|events| (partition, name.clone(), events)),
            );
            names.push(name);
        }
        frames.shuffle(&mut rng);
        // Frames that are sent again, some at once and some later.
        for _ in 0..frames.len() / 4 {
            let again = frames.choose(&mut rng).expect("there are frames").clone();
            let at = rng.random_range(0..=frames.len());
            frames.insert(at, again);
        }
        Self {
            frames,
            sessions: names,
        }
    }

    pub fn records(&self) -> Vec<Record> {
        let record = |(partition, session, events): &(i32, String, Vec<String>)| {
            frame(*partition, session, &format!("[{}]", events.join(",")))
        };
        self.frames.iter().map(record).collect()
    }

    /// The document of a session.
    pub fn document(&self, session: &str) -> String {
        let mut frames = BTreeSet::new();
        let mut ids = BTreeSet::new();
        let (mut start, mut end) = (None, None);
        let mut children: Vec<(f64, &str)> = Vec::new();
        for (_, _, events) in self.frames.iter().filter(|(_, name, _)| name == session) {
            let is_new = frames.insert(events);
            for event in events {
                let fields: serde_json::Value = serde_json::from_str(event).unwrap();
                let id = fields.get("id").map(ToString::to_string);
                let counts = match id {
                    Some(id) => ids.insert((fields["type"].to_string(), id)),
                    None => is_new,
                };
                let timestamp = &fields["timestamp"];
                match fields["type"].as_str().unwrap() {
                    _ if !counts => {}
                    "SESSION_START" => _ = start.get_or_insert(timestamp.to_string()),
                    "SESSION_END" => end = Some(timestamp.to_string()),
                    _ => children.push((timestamp.as_f64().unwrap(), event)),
                }
            }
        }
        children.sort_by(|a, b| a.0.total_cmp(&b.0));
        let children: Vec<&str> = children.into_iter().map(|(_, event)| event).collect();
        let (start, end) = (
            start.unwrap_or("null".to_owned()),
            end.unwrap_or("null".to_owned()),
        );
        format!(
            r#"{{"session_id":"{session}","type":"SESSION","start":{start},"end":{end},"children":[{}]}}"#,
            children.join(",")
        )
    }
}

/// A start, an end and some events in any order, split into frames anywhere.
fn frames_of_session(rng: &mut impl rand::Rng) -> Vec<Vec<String>> {
    let mut events = Vec::new();
    let bounds = rng.random_range(1..=2);
    for kind in ["SESSION_START", "SESSION_END"] {
        for _ in 0..bounds {
            let time = rng.random_range(0..100);
            events.push(format!(r#"{{"timestamp":{time},"type":"{kind}"}}"#));
        }
    }
    for _ in 0..rng.random_range(0..20) {
        // Few times, so that some are equal, and sometimes an id, of which some are equal.
        let time = rng.random_range(0..10);
        let id = match rng.random_range(0..3) {
            0 => format!(r#","id":{}"#, rng.random_range(0..6)),
            _ => String::new(),
        };
        let name = rng.next_u32();
        events.push(format!(
            r#"{{"timestamp":{time},"type":"EVENT","name":"{name}"{id}}}"#
        ));
    }
    events.shuffle(rng);
    let mut frames = Vec::new();
    while !events.is_empty() {
        let size = rng.random_range(1..=events.len().min(5));
        frames.push(events.drain(..size).collect());
    }
    frames
}
