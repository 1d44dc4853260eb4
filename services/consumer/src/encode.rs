//! The bytes of an event on each transport. The cursor has a fixed position, so that it can be replaced in an encoded frame.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::value::RawValue;
use serde_json::{Map, Value as Json, json};

use crate::record::{Event, Gap, GapReason, Message, Payload, Value};

/// How events are encoded for one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    pub format: Format,
    /// Values that are not UTF-8 are sent as base64, not as a gap.
    pub binary: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Server-sent events; a message's data is its text.
    SseText,
    /// Server-sent events; a message's data is the message object.
    SseJson,
    /// JSON objects: pages of history.
    Json,
    /// JSON objects, each in a WebSocket frame.
    WebSocket,
    /// The payload of a Socket.IO event.
    SocketIo,
}

impl Encoding {
    /// The number of encodings: [`Encoding::index`] is below it.
    pub const COUNT: usize = 10;

    pub fn index(self) -> usize {
        self.format as usize * 2 + usize::from(self.binary)
    }
}

/// One encoded event.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: Kind,
    /// The event as the transport writes it: an SSE block, a WebSocket frame, or a JSON object.
    pub bytes: Bytes,
    /// The same bytes as the Socket.IO library accepts them; only for that transport.
    pub value: Option<Arc<RawValue>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Message,
    Start,
    Gap,
    /// Nothing to deliver up to here: only the cursor moves.
    Position,
    Status,
    Bye,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Start => "start",
            Self::Gap => "gap",
            Self::Position => "position",
            Self::Status => "status",
            Self::Bye => "bye",
        }
    }
}

/// What a client receives of an event: a value that is not UTF-8 is a gap for clients that did not request base64.
pub fn payload_for(event: &Event, binary: bool) -> Cow<'_, Payload> {
    match &event.payload {
        Payload::Message(Message {
            offset,
            value: Value::Binary(_),
            ..
        }) if !binary => Cow::Owned(Payload::Gap(Gap::of(
            GapReason::NotUtf8,
            event.partition,
            *offset,
            Some(offset + 1),
        ))),
        payload => Cow::Borrowed(payload),
    }
}

/// Encodes an event with this cursor.
pub fn event(event: &Event, cursor: &str, encoding: Encoding) -> Frame {
    match payload_for(event, encoding.binary).as_ref() {
        Payload::Gap(gap) => control(Kind::Gap, cursor, gap_fields(gap), encoding.format),
        Payload::Message(message) => {
            let tail = match encoding.format {
                Format::SseText => sse_data(&text(&message.value)),
                Format::SocketIo => json_tail(socketio_fields(event.partition, message)),
                Format::Json | Format::WebSocket => {
                    json_tail(message_fields(event.partition, message))
                }
                Format::SseJson => json_tail(message_fields(event.partition, message)) + "\n\n",
            };
            let bytes = assemble(
                head(Kind::Message, encoding.format),
                cursor,
                tail.as_bytes(),
            );
            Frame::new(Kind::Message, bytes, encoding.format)
        }
    }
}

/// The same event with another cursor; the payload's bytes are copied unchanged.
pub fn with_cursor(frame: &Frame, old: &str, new: &str, format: Format) -> Frame {
    let head = head(frame.kind, format);
    let tail = head.0.len() + head.1.map_or(0, |second| second.len() + old.len()) + old.len();
    let before = match (format, frame.bytes.get(1)) {
        (Format::WebSocket, Some(127)) => 10,
        (Format::WebSocket, Some(126)) => 4,
        (Format::WebSocket, _) => 2,
        _ => 0,
    };
    let bytes = assemble(head, new, &frame.bytes[before + tail..]);
    Frame::new(frame.kind, bytes, format)
}

/// Encodes an event that is not a message. If the cursor is empty (none is known yet), the client keeps its own.
pub fn control(kind: Kind, cursor: &str, fields: Map<String, Json>, format: Format) -> Frame {
    let mut tail = json_tail(fields);
    if matches!(format, Format::SseText | Format::SseJson) {
        tail.push_str("\n\n");
    }
    let bytes = if cursor.is_empty() {
        let json = format!("{{\"type\":\"{}\"{}", kind.name(), &tail[1..]);
        match format {
            Format::SseText | Format::SseJson => {
                format!("event: {}\ndata: {json}", kind.name()).into()
            }
            Format::Json | Format::WebSocket | Format::SocketIo => json.into(),
        }
    } else {
        assemble(head(kind, format), cursor, tail.as_bytes())
    };
    Frame::new(kind, bytes, format)
}

impl Frame {
    /// The bytes that the frame occupies on the heap.
    pub fn weight(&self) -> usize {
        // `Bytes` counts its references in a separate allocation.
        self.bytes.len() + 64 + size_of::<Self>()
    }

    fn new(kind: Kind, text: Vec<u8>, format: Format) -> Self {
        let (bytes, value) = match format {
            Format::WebSocket => (websocket_frame(&text), None),
            Format::SocketIo => {
                let value: Box<RawValue> = serde_json::from_slice(&text)
                    .expect("an event of this format is one JSON value");
                let value: Arc<RawValue> = value.into();
                (Bytes::from_owner(Shared(value.clone())), Some(value))
            }
            _ => (text.into(), None),
        };
        Self { kind, bytes, value }
    }
}

/// The bytes of a JSON value that is also kept as a value.
struct Shared(Arc<RawValue>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.get().as_bytes()
    }
}

/// A text frame (RFC 6455, section 5.2). A server's frames are not masked, so all connections share one.
fn websocket_frame(text: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(text.len() + 10);
    frame.push(0x81);
    match text.len() {
        length @ ..126 => frame.push(length as u8),
        length @ ..0x1_0000 => {
            frame.push(126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(text);
    frame.into()
}

pub fn gap_fields(gap: &Gap) -> Map<String, Json> {
    fields(json!({ "reason": gap.reason, "ranges": gap.ranges }))
}

/// The message object of `docs/protocol.md`, without `type` and `cursor`.
pub fn message_fields(partition: usize, message: &Message) -> Map<String, Json> {
    let mut headers = Map::new();
    for (name, value) in &message.headers {
        let value = value
            .as_ref()
            .map_or(Json::Null, |value| utf8_or_base64(value));
        match headers.get_mut(name) {
            None => _ = headers.insert(name.clone(), value),
            Some(Json::Array(values)) => values.push(value),
            Some(first) => *first = json!([first.take(), value]),
        }
    }
    let mut object = fields(json!({
        "partition": partition,
        "offset": message.offset,
        "timestamp": message.timestamp,
        "key": message.key.as_ref().map(|key| utf8_or_base64(key)),
        "headers": headers,
        "data": match &message.value {
            Value::Null => None,
            value => Some(text(value)),
        },
    }));
    insert_encoding(&mut object, &message.value);
    object
}

/// The object of the original Socket.IO protocol: `data` is always a string.
fn socketio_fields(partition: usize, message: &Message) -> Map<String, Json> {
    let mut object = fields(json!({
        "data": text(&message.value),
        "partition": partition,
        "offset": message.offset,
        "timestamp": message.timestamp,
    }));
    insert_encoding(&mut object, &message.value);
    object
}

/// Marks a base64 value, which is otherwise indistinguishable from text that looks like it.
fn insert_encoding(object: &mut Map<String, Json>, value: &Value) {
    if matches!(value, Value::Binary(_)) {
        object.insert("encoding".into(), "base64".into());
    }
}

fn text(value: &Value) -> Cow<'_, str> {
    match value {
        Value::Null => Cow::Borrowed(""),
        Value::Text(text) => Cow::Borrowed(text),
        Value::Binary(bytes) => Cow::Owned(STANDARD.encode(bytes)),
    }
}

fn utf8_or_base64(bytes: &[u8]) -> Json {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

/// The rest of an SSE block after its id: one `data:` line for each line of the text. CR, LF and CRLF all end a line in
/// SSE, so a line must contain none of them; the space after the colon preserves a leading space of the text.
fn sse_data(text: &str) -> String {
    let mut block = String::with_capacity(text.len() + 16);
    let text = if text.contains('\r') {
        Cow::Owned(text.replace("\r\n", "\n").replace('\r', "\n"))
    } else {
        Cow::Borrowed(text)
    };
    for line in text.split('\n') {
        block.push_str("\ndata: ");
        block.push_str(line);
    }
    block.push_str("\n\n");
    block
}

/// The text before the cursor, and before its second occurrence if there is one.
type Head = (&'static str, Option<&'static str>);

fn head(kind: Kind, format: Format) -> Head {
    match (format, kind) {
        (Format::SseText, Kind::Message) => ("id: ", None),
        (Format::SseJson, Kind::Message) => {
            ("id: ", Some("\ndata: {\"type\":\"message\",\"cursor\":\""))
        }
        (Format::SseText | Format::SseJson, Kind::Start) => (
            "id: ",
            Some("\nevent: start\ndata: {\"type\":\"start\",\"cursor\":\""),
        ),
        (Format::SseText | Format::SseJson, Kind::Gap) => (
            "id: ",
            Some("\nevent: gap\ndata: {\"type\":\"gap\",\"cursor\":\""),
        ),
        (Format::SseText | Format::SseJson, Kind::Position) => (
            "id: ",
            Some("\nevent: position\ndata: {\"type\":\"position\",\"cursor\":\""),
        ),
        (Format::SseText | Format::SseJson, Kind::Status) => (
            "id: ",
            Some("\nevent: status\ndata: {\"type\":\"status\",\"cursor\":\""),
        ),
        (Format::SseText | Format::SseJson, Kind::Bye) => (
            "id: ",
            Some("\nevent: bye\ndata: {\"type\":\"bye\",\"cursor\":\""),
        ),
        (Format::SocketIo, Kind::Message) => ("{\"cursor\":\"", None),
        (_, Kind::Message) => ("{\"type\":\"message\",\"cursor\":\"", None),
        (_, Kind::Start) => ("{\"type\":\"start\",\"cursor\":\"", None),
        (_, Kind::Gap) => ("{\"type\":\"gap\",\"cursor\":\"", None),
        (_, Kind::Position) => ("{\"type\":\"position\",\"cursor\":\"", None),
        (_, Kind::Status) => ("{\"type\":\"status\",\"cursor\":\"", None),
        (_, Kind::Bye) => ("{\"type\":\"bye\",\"cursor\":\"", None),
    }
}

fn assemble((first, second): Head, cursor: &str, tail: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(
        first.len() + second.map_or(0, str::len) + 2 * cursor.len() + tail.len(),
    );
    bytes.extend(first.as_bytes());
    bytes.extend(cursor.as_bytes());
    if let Some(second) = second {
        bytes.extend(second.as_bytes());
        bytes.extend(cursor.as_bytes());
    }
    bytes.extend(tail);
    bytes
}

/// The text after the cursor in an object: its closing quote and the other fields.
fn json_tail(fields: Map<String, Json>) -> String {
    let object = Json::Object(fields).to_string();
    match &object[1..] {
        "}" => "\"}".into(),
        fields => format!("\",{fields}"),
    }
}

/// The fields of an object literal.
pub fn fields(object: Json) -> Map<String, Json> {
    match object {
        Json::Object(fields) => fields,
        _ => unreachable!("only object literals are passed"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cursor::Position;

    const FORMATS: [Format; 5] = [
        Format::SseText,
        Format::SseJson,
        Format::Json,
        Format::WebSocket,
        Format::SocketIo,
    ];

    fn message(value: Value) -> Event {
        let message = Message {
            offset: 3,
            timestamp: Some(1),
            key: None,
            headers: vec![],
            value,
        };
        Event {
            partition: 0,
            next: Position::at(4),
            payload: Payload::Message(message),
        }
    }

    fn written(event_: &Event, format: Format) -> String {
        String::from_utf8(
            event(
                event_,
                "CUR",
                Encoding {
                    format,
                    binary: false,
                },
            )
            .bytes
            .to_vec(),
        )
        .unwrap()
    }

    #[test]
    fn no_kind_of_line_break_can_forge_a_field() {
        let hostile = message(Value::Text("a\rid: x\nevent: y\r\ndata: z\n\n".into()));
        assert_eq!(
            written(&hostile, Format::SseText),
            "id: CUR\ndata: a\ndata: id: x\ndata: event: y\ndata: data: z\ndata: \ndata: \n\n"
        );
        assert_eq!(written(&hostile, Format::SseJson).lines().count(), 3);
    }

    #[test]
    fn a_leading_space_and_an_empty_text_are_preserved() {
        assert_eq!(
            written(&message(Value::Text(" x".into())), Format::SseText),
            "id: CUR\ndata:  x\n\n"
        );
        assert_eq!(
            written(&message(Value::Null), Format::SseText),
            "id: CUR\ndata: \n\n"
        );
    }

    #[test]
    fn a_null_value_is_null_in_json_and_empty_text_elsewhere() {
        assert!(written(&message(Value::Null), Format::Json).contains(r#""data":null"#));
        assert!(written(&message(Value::Null), Format::SocketIo).contains(r#""data":"""#));
    }

    #[test]
    fn bytes_that_are_not_utf8_are_a_gap_or_base64() {
        let binary = message(Value::Binary(vec![0xff]));
        assert_eq!(
            written(&binary, Format::Json),
            r#"{"type":"gap","cursor":"CUR","ranges":[{"from":3,"partition":0,"to":4}],"reason":"not-utf8"}"#
        );
        let base64 = event(
            &binary,
            "CUR",
            Encoding {
                format: Format::Json,
                binary: true,
            },
        );
        let object: Json = serde_json::from_slice(&base64.bytes).unwrap();
        assert_eq!(
            (&object["data"], &object["encoding"]),
            (&json!("/w=="), &json!("base64"))
        );
    }

    #[test]
    fn a_repeated_header_is_an_array_and_a_null_header_null() {
        let headers = vec![
            ("a".into(), Some(b"1".to_vec())),
            ("b".into(), None),
            ("a".into(), Some(vec![0xff])),
        ];
        let message = Message {
            offset: 0,
            timestamp: None,
            key: None,
            headers,
            value: Value::Null,
        };
        assert_eq!(
            message_fields(0, &message)["headers"],
            json!({"a": ["1", {"base64": "/w=="}], "b": null})
        );
    }

    #[test]
    fn an_event_before_the_first_cursor_has_no_cursor() {
        let frame = control(
            Kind::Status,
            "",
            fields(json!({"source": "down"})),
            Format::SseText,
        );
        assert_eq!(
            frame.bytes,
            "event: status\ndata: {\"type\":\"status\",\"source\":\"down\"}\n\n"
        );
    }

    proptest! {
        #[test]
        fn a_frame_with_its_cursor_replaced_is_the_frame_written_with_that_cursor(
            text in any::<String>(), old in "[A-Za-z0-9_-]{0,20}", new in "[A-Za-z0-9_-]{1,20}", binary in any::<bool>(),
        ) {
            prop_assume!(!old.is_empty());
            for value in [Value::Text(text.clone()), Value::Null, Value::Binary(vec![0xff])] {
                let record = message(value);
                for format in FORMATS {
                    let encoding = Encoding { format, binary };
                    let replaced = with_cursor(&event(&record, &old, encoding), &old, &new, format);
                    prop_assert_eq!(replaced.bytes, event(&record, &new, encoding).bytes);
                }
            }
        }

        #[test]
        fn json_preserves_any_text(text in any::<String>()) {
            let frame = event(&message(Value::Text(text.clone())), "C", Encoding { format: Format::Json, binary: false });
            let object: Json = serde_json::from_slice(&frame.bytes).unwrap();
            prop_assert_eq!(object["data"].as_str(), Some(&*text));
        }
    }
}
