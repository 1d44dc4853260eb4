//! The log: structured lines on stdout, as text for people or JSON for machines.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;

use crate::config::{CommonArgs, LogFormat};

/// Starts the log of this process. Called once, by `main`; later calls have no effect.
pub fn init(common: &CommonArgs) {
    let terminal = std::io::stdout().is_terminal();
    let format = common.log_format.unwrap_or(if terminal {
        LogFormat::Text
    } else {
        LogFormat::Json
    });
    let log = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&common.log_level))
        .with_ansi(terminal);
    let started = match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .try_init(),
    };
    if let Err(error) = started {
        eprintln!("the log is already started: {error}");
    }
}

/// A text as one log line: at most this many characters, and control characters escaped, so that content cannot forge log lines.
pub fn shortened(text: &str, characters: usize) -> String {
    let mut line = String::new();
    for (index, character) in text.chars().enumerate() {
        if index == characters {
            return format!("{line}… ({} bytes)", text.len());
        }
        // The contract's messages contain a tab.
        if character.is_control() && character != '\t'
            || matches!(character, '\u{2028}' | '\u{2029}')
        {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// Admits a few log lines per second, for events that may occur thousands of times.
#[derive(Debug)]
pub struct Sampler {
    per_second: u32,
    second: Mutex<Second>,
}

#[derive(Debug)]
struct Second {
    began: Instant,
    admitted: u32,
    skipped: u64,
}

impl Sampler {
    /// At most `per_second` lines in each second.
    pub fn new(per_second: u32) -> Sampler {
        Sampler {
            per_second,
            second: Mutex::new(Second {
                began: Instant::now(),
                admitted: 0,
                skipped: 0,
            }),
        }
    }

    /// `Some(skipped)` if a line may be logged now; `skipped` is the number of lines skipped since the last one.
    pub fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut second = self
            .second
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if now.saturating_duration_since(second.began) >= Duration::from_secs(1) {
            second.began = now;
            second.admitted = 0;
        }
        if second.admitted == self.per_second {
            second.skipped += 1;
            return None;
        }
        second.admitted += 1;
        Some(std::mem::take(&mut second.skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_in_the_log_is_one_line_of_bounded_length() {
        assert_eq!(shortened("a\tb", 10), "a\tb");
        assert_eq!(
            shortened("a\r\nlevel=ERROR\u{1b}[0m\u{2028}", 99),
            "a\\r\\nlevel=ERROR\\u{1b}[0m\\u{2028}"
        );
        assert_eq!(shortened(&"ä".repeat(300), 3), "äää… (600 bytes)");
    }

    #[test]
    fn a_sampler_admits_a_few_per_second_and_counts_the_rest() {
        let sampler = Sampler::new(2);
        let start = Instant::now();
        assert_eq!(
            (0..5).map(|_| sampler.admit_at(start)).collect::<Vec<_>>(),
            [Some(0), Some(0), None, None, None]
        );
        let later = start + Duration::from_secs(2);
        assert_eq!(
            (0..3).map(|_| sampler.admit_at(later)).collect::<Vec<_>>(),
            [Some(3), Some(0), None]
        );
    }
}
