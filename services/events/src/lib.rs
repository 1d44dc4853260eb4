//! Frames of session events: what the gateway accepts, and what the projector reads from Kafka.
//!
//! Both check a frame with [`Frame::parse`], so that a frame that was accepted is never rejected later.

mod event;
mod frame;
mod key;
mod session;
mod windows;

pub use event::{Event, Kind};
pub use frame::{Frame, FrameError, Limits, MAX_DEPTH, Rule};
pub use key::{KeyError, KeyFormat};
pub use session::{InvalidSessionId, MAX_SESSION_ID_BYTES, SessionId};
pub use windows::{WindowSize, Windows};
