//! The frames of a record: a client reads the same record from each, and nothing in it becomes another event.

use arbitrary::{Result, Unstructured};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value as Json, json};

use crate::cursor::Position;
use crate::encode::{Encoding, Format, Kind, event, with_cursor};
use crate::record::{Event, Message, Payload, Value};

const CURSOR: &str = "AgAAAAAAAA";
const FORMATS: [Format; 5] = [
    Format::SseText,
    Format::SseJson,
    Format::Json,
    Format::WebSocket,
    Format::SocketIo,
];

pub fn check(data: &[u8]) {
    let Ok(record) = record(&mut Unstructured::new(data)) else {
        return;
    };
    for format in FORMATS {
        for binary in [false, true] {
            written(&record, Encoding { format, binary });
        }
    }
}

fn record(input: &mut Unstructured) -> Result<Event> {
    let partition = input.int_in_range(0..=255)?;
    let offset = input.int_in_range(0..=i64::MAX - 1)?;
    let timestamp = input.arbitrary()?;
    let key = input.arbitrary()?;
    let mut headers = Vec::new();
    for _ in 0..input.int_in_range(0..=4)? {
        headers.push((input.arbitrary()?, input.arbitrary()?));
    }
    let bytes: Option<Vec<u8>> = match input.arbitrary()? {
        true => Some(input.bytes(input.len())?.to_owned()),
        false => None,
    };
    let value = Value::new(bytes.as_deref());
    Ok(Event {
        partition,
        next: Position::after(offset, timestamp, bytes.as_deref()),
        payload: Payload::Message(Message {
            offset,
            timestamp,
            key,
            headers,
            value,
        }),
    })
}

fn written(record: &Event, encoding: Encoding) {
    let Payload::Message(message) = &record.payload else {
        unreachable!("only messages are made up");
    };
    let format = encoding.format;
    let frame = event(record, CURSOR, encoding);
    let replaced = with_cursor(&frame, CURSOR, "another", format);
    assert_eq!(replaced.bytes, event(record, "another", encoding).bytes);

    let is_gap = matches!(message.value, Value::Binary(_)) && !encoding.binary;
    assert_eq!(frame.kind == Kind::Gap, is_gap);
    let object = match format {
        Format::SseText | Format::SseJson => {
            let block = sse(&frame.bytes);
            assert_eq!(block.id, CURSOR);
            assert_eq!(block.event.as_deref(), is_gap.then_some("gap"));
            if format == Format::SseText && !is_gap {
                let lines = text(&message.value).replace("\r\n", "\n");
                assert_eq!(block.data, lines.replace('\r', "\n"));
                return;
            }
            serde_json::from_str(&block.data)
        }
        Format::WebSocket => serde_json::from_slice(websocket(&frame.bytes)),
        Format::Json | Format::SocketIo => serde_json::from_slice(&frame.bytes),
    };
    let object: Json = object.expect("the frame is JSON");
    assert_eq!(object["cursor"], CURSOR);
    if is_gap {
        let to = message.offset + 1;
        let range = json!({"partition": record.partition, "from": message.offset, "to": to});
        assert_eq!(object["ranges"], json!([range]));
        return;
    }
    assert_eq!(object["partition"], record.partition);
    assert_eq!(object["offset"], message.offset);
    assert_eq!(object["timestamp"], json!(message.timestamp));
    let is_binary = matches!(message.value, Value::Binary(_));
    assert_eq!(object["encoding"] == "base64", is_binary);
    if format == Format::SocketIo || message.value != Value::Null {
        assert_eq!(object["data"], text(&message.value));
    } else {
        assert_eq!(object["data"], Json::Null);
    }
    if format != Format::SocketIo {
        let key = message.key.as_ref().map_or(Json::Null, |key| bytes(key));
        assert_eq!(object["key"], key);
        assert_eq!(object["headers"], headers(message));
    }
}

fn headers(message: &Message) -> Json {
    let mut headers = serde_json::Map::new();
    for (name, _) in &message.headers {
        let same = message.headers.iter().filter(|(other, _)| other == name);
        let mut values: Vec<Json> = same
            .map(|(_, value)| value.as_ref().map_or(Json::Null, |value| bytes(value)))
            .collect();
        let value = match values.len() {
            1 => values.remove(0),
            _ => values.into(),
        };
        headers.insert(name.clone(), value);
    }
    headers.into()
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Text(text) => text.clone(),
        Value::Binary(bytes) => STANDARD.encode(bytes),
    }
}

fn bytes(bytes: &[u8]) -> Json {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({"base64": STANDARD.encode(bytes)}),
    }
}

#[derive(Default)]
struct Block {
    id: String,
    event: Option<String>,
    data: String,
}

/// Reads a stream as browsers do (HTML, section 9.2.6), which must be exactly one event.
fn sse(stream: &[u8]) -> Block {
    let stream = std::str::from_utf8(stream).expect("a stream is UTF-8");
    let stream = stream.replace("\r\n", "\n").replace('\r', "\n");
    let block = stream.strip_suffix("\n\n").expect("an event ends");
    let (mut read, mut data) = (Block::default(), Vec::new());
    for line in block.split('\n') {
        assert_ne!(line, "", "there is a second event");
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
        match name {
            "id" => {
                assert_eq!(read.id, "", "there is a second id");
                read.id = value;
            }
            "event" => assert_eq!(read.event.replace(value), None, "there is a second name"),
            "data" => data.push(value),
            _ => panic!("there is a line {line:?}"),
        }
    }
    read.data = data.join("\n");
    read
}

/// The content of the one frame of a WebSocket (RFC 6455, section 5.2).
fn websocket(frame: &[u8]) -> &[u8] {
    let [0x81, length, rest @ ..] = frame else {
        panic!("it is not a text frame");
    };
    let (length, content) = match length {
        127 => {
            let (length, content) = rest.split_first_chunk().expect("eight bytes");
            (u64::from_be_bytes(*length), content)
        }
        126 => {
            let (length, content) = rest.split_first_chunk().expect("two bytes");
            (u16::from_be_bytes(*length).into(), content)
        }
        length => ((*length).into(), rest),
    };
    assert_eq!(length, content.len() as u64);
    content
}
