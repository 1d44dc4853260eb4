//! The store as its users see it, with each database.

mod access;
mod concurrency;
mod counts;
mod counts_file;
mod documents;
mod tls;

use std::collections::BTreeMap;

use herald_events::{Frame, Limits, SessionId};
use herald_testing::Database;
use store::{
    Advance, Applied, Arrival, Batch, DatabaseUrl, Name, NewEvent, Position, Reader,
    SessionChanges, Writer,
};

const TOPIC: &str = "websocket.events";

fn url_of(database: &Database) -> DatabaseUrl {
    database.address.parse().unwrap()
}

fn schema_of(database: &Database) -> Name {
    database.schema.parse().unwrap()
}

async fn writer_of(database: &Database) -> Writer {
    Writer::open(&url_of(database), &schema_of(database), None)
        .await
        .unwrap()
}

fn reader_of(database: &Database) -> Reader {
    Reader::new(&url_of(database), &schema_of(database))
}

fn id(text: &str) -> SessionId {
    SessionId::new(text).unwrap()
}

/// A batch of one record of partition 0: a frame of a session.
fn batch(session: &str, offset: i64, frame: &str) -> Batch {
    let parsed = Frame::parse(frame.as_bytes(), Limits::NONE).unwrap();
    let events = parsed.identities().zip(&parsed.events).zip(0..);
    let event = |((identity, event), index): (([u8; 16], &herald_events::Event<'_>), u32)| {
        let arrival = Arrival {
            record_time: 1000 + offset,
            epoch: 0,
            partition: 0,
            offset,
            index,
        };
        let event = NewEvent {
            kind: event.kind,
            timestamp: event.timestamp,
            arrival,
            json: event.json.to_owned(),
        };
        (identity, event)
    };
    let changes = SessionChanges {
        touched: 1000 + offset,
        events: events.map(event).collect(),
    };
    let at = |next| Position {
        next,
        ..Position::default()
    };
    Batch {
        advances: vec![Advance {
            partition: 0,
            from: at(offset),
            to: at(offset + 1),
        }],
        sessions: BTreeMap::from([(id(session), changes)]),
        ..Batch::default()
    }
}

/// Commits the frames as records 0, 1 and so on.
async fn apply(writer: &Writer, session: &str, frames: &[&str]) {
    let begin = Position::default();
    writer
        .begin(store::SESSIONS, TOPIC, 0, begin)
        .await
        .unwrap();
    for frame in frames {
        let position = writer.position(store::SESSIONS, TOPIC, 0).await.unwrap();
        let batch = batch(session, position.unwrap().next, frame);
        let applied = writer.apply(store::SESSIONS, TOPIC, &batch).await.unwrap();
        assert!(matches!(applied, Applied::Committed(_)), "{applied:?}");
    }
}

async fn document(reader: &Reader, session: &str) -> Option<String> {
    let session = reader.session(&id(session)).await.unwrap()?;
    Some(String::from_utf8(session.into_bytes().await.unwrap()).unwrap())
}
