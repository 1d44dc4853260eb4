//! The log of a forward: a line when something changes, none per connection.

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

    /// Prints the line, unless it repeats the last one.
    pub fn print(&self, line: &str) {
        self.print_after("", line);
    }

    /// Prints the line if the last one begins with `beginning`, which is then out of date.
    pub fn print_after(&self, beginning: &str, line: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.starts_with(beginning) && *last != line {
            // Not println!, which panics when the reader has closed the pipe.
            let _ = writeln!(std::io::stdout(), "{}: {line}", self.name);
            line.clone_into(&mut last);
        }
    }
}
