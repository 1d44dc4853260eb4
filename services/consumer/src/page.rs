//! A piece of the log, as `kafka` returns it and `feed` takes it.

use crate::cursor::Vector;
use crate::record::Event;

/// The most messages that a page may hold.
pub const MAX_MESSAGES: usize = 500;

/// The bounds of any page of history.
pub const MAX_PAGE: Limit = Limit {
    events: MAX_MESSAGES,
    bytes: 1 << 20,
};

/// The bounds of one page.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub events: usize,
    pub bytes: usize,
}

/// Events merged by timestamp, then partition; each partition's order is kept.
#[derive(Debug, Default)]
pub struct Page {
    pub events: Vec<Event>,
    /// The vector before the first event.
    pub before: Vector,
    /// The vector after the last one.
    pub after: Vector,
    /// Nothing is left between `after` and what was read towards.
    pub complete: bool,
    /// Nothing is left before `before`.
    pub from_start: bool,
}
