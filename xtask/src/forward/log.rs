//! What a forward says: a line when something changes, none per connection.

use std::io::Write;
use std::sync::{Mutex, PoisonError};

pub struct Log {
    name: String,
    last: Mutex<String>,
}

impl Log {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            last: Mutex::default(),
        }
    }

    /// Prints the line, unless it is the one printed last.
    pub fn say(&self, line: &str) {
        self.say_after("", line);
    }

    /// Prints the line if the last one begins so: what that one said is over.
    pub fn say_after(&self, beginning: &str, line: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.starts_with(beginning) && *last != line {
            // Not println!, which ends us when nobody reads any more.
            let _ = writeln!(std::io::stdout(), "{}: {line}", self.name);
            line.clone_into(&mut last);
        }
    }
}
