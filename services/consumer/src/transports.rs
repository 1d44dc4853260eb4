//! The ways to a client: files of the same shape, and pages of history beside them.

pub mod history;
pub mod socketio;
pub mod sse;
pub mod websocket;
