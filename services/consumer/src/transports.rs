//! The transports, and pages of history.

pub mod history;
pub mod rooms;
pub mod socketio;
pub mod sse;
pub mod websocket;
