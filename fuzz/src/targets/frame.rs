//! Frames of session events, and the ids of sessions in the keys of records.

use herald_events::{Frame, FrameError, KeyFormat, Limits, MAX_DEPTH, Rule, SessionId};
use serde_json::Value as Json;

const LIMITS: Limits = Limits { events: 20 };

pub fn check(data: &[u8]) {
    session(data);
    let parsed = Frame::parse(data, LIMITS);
    let json = serde_json::from_slice::<Json>(data).ok();
    match &parsed {
        Ok(frame) => {
            assert!((1..=LIMITS.events).contains(&frame.events.len()));
            // The projector accepts what the gateway has, and finds the same events.
            let again = Frame::parse(data, Limits::NONE).expect("it was accepted");
            let identities: Vec<_> = frame.identities().collect();
            assert_eq!(identities.len(), frame.events.len());
            assert!(again.identities().eq(identities));
            for event in &frame.events {
                assert!(event.timestamp.is_finite());
                let alone = format!("[{}]", event.json);
                let alone = Frame::parse(alone.as_bytes(), LIMITS).expect("a part is valid");
                assert_eq!(alone.events[0].json, event.json);
            }
        }
        Err(FrameError { rule, .. }) => assert!(!rule.to_string().is_empty()),
    }
    // Another parser, with the rules as the documentation has them, is of the same opinion.
    if let Some(json) = json {
        match (is_valid(&json), parsed) {
            (true, Err(FrameError { rule, .. })) => {
                let is_deep = rule == Rule::TooDeep && depth(&json) > MAX_DEPTH;
                // That parser takes the last of equal fields.
                assert!(is_deep || rule == Rule::RepeatedField, "{rule:?}: {json}");
            }
            (false, Ok(_)) => panic!("accepted: {json}"),
            _ => {}
        }
    }
}

fn is_valid(frame: &Json) -> bool {
    let is_event = |event: &Json| {
        let types = ["SESSION_START", "EVENT", "SESSION_END"];
        event.is_object()
            && event["timestamp"].is_number()
            && types.iter().any(|name| event["type"] == *name)
            && (event["name"].is_null() || event["name"].is_string())
    };
    let events = frame.as_array();
    events.is_some_and(|events| {
        (1..=LIMITS.events).contains(&events.len()) && events.iter().all(is_event)
    })
}

fn depth(json: &Json) -> usize {
    match json {
        Json::Array(values) => 1 + values.iter().map(depth).max().unwrap_or(0),
        Json::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// The key of a record leads back to the session that it was made for.
fn session(data: &[u8]) {
    let formats = [KeyFormat::Json, KeyFormat::Raw];
    let id = std::str::from_utf8(data).ok().map(SessionId::new);
    for format in formats {
        if let Some(Ok(id)) = &id {
            let key = format.encode(id);
            assert_eq!(format.decode(Some(key.as_bytes())).as_ref(), Ok(id));
        }
        if let Ok(id) = format.decode(Some(data)) {
            let key = format.encode(&id);
            assert_eq!(format.decode(Some(key.as_bytes())), Ok(id));
        }
    }
}
