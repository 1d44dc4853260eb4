//! The headers of a Kafka record, even if their names are not UTF-8.
//!
//! Kafka does not validate header names, and clients in C, Go and PHP write names that are not UTF-8. `rdkafka` 0.39 unwraps
//! them (`Headers::get`, `Headers::iter`), so one such record would make the reading thread panic.

use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use rdkafka::bindings::{rd_kafka_header_get_all, rd_kafka_headers_t, rd_kafka_message_headers};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;

/// The name and the value of each header, in order; a value may be null.
///
/// A name ends at its first NUL byte, because librdkafka returns names as C strings.
pub fn of<'a>(message: &'a BorrowedMessage<'_>) -> Vec<(&'a [u8], Option<&'a [u8]>)> {
    let mut headers: *mut rd_kafka_headers_t = ptr::null_mut();
    // SAFETY: the message is alive for `'a`, and owns the headers that are returned.
    let error = unsafe { rd_kafka_message_headers(message.ptr(), &mut headers) };
    // Usually RD_KAFKA_RESP_ERR__NOENT: the record has none.
    if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR || headers.is_null() {
        return Vec::new();
    }
    (0..).map_while(|index| header(headers, index)).collect()
}

/// The header at this index, if it exists. Its lifetime is that of the message that owns `headers`.
fn header<'a>(
    headers: *const rd_kafka_headers_t,
    index: usize,
) -> Option<(&'a [u8], Option<&'a [u8]>)> {
    let mut name: *const c_char = ptr::null();
    let mut value: *const c_void = ptr::null();
    let mut size = 0;
    // SAFETY: `headers` comes from a message that is alive; the index is checked by librdkafka.
    let error =
        unsafe { rd_kafka_header_get_all(headers, index, &mut name, &mut value, &mut size) };
    if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        return None;
    }
    // SAFETY: librdkafka ends every name with a NUL, and keeps it as long as the message.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    let value = (!value.is_null()).then(|| {
        // SAFETY: librdkafka returned this address with this size, and keeps it as long as the message.
        unsafe { std::slice::from_raw_parts(value.cast::<u8>(), size) }
    });
    Some((name, value))
}
