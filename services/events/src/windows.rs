//! Tumbling windows: their sizes, and the topics that their results go to.

use std::fmt;
use std::str::FromStr;

/// The largest window: a day.
const MAX_SECONDS: i64 = 86_400;

/// The most windows at once.
const MAX_WINDOWS: usize = 16;

/// The longest name of a topic, with room for `.live` after it.
const MAX_TOPIC_BYTES: usize = 244;

/// The size of a tumbling window: 1 to 86,400 whole seconds. Windows are aligned to the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WindowSize {
    seconds: i64,
}

impl WindowSize {
    /// `None` unless it is 1 to 86,400 seconds.
    pub fn from_seconds(seconds: i64) -> Option<Self> {
        (1..=MAX_SECONDS)
            .contains(&seconds)
            .then_some(Self { seconds })
    }

    /// Its length in milliseconds.
    pub fn millis(self) -> i64 {
        self.seconds * 1000
    }

    /// As in the results: `1min`, `10min`, or `90s` if it is not a number of whole minutes.
    pub fn label(self) -> String {
        match self.seconds {
            seconds if seconds % 60 == 0 => format!("{}min", seconds / 60),
            seconds => format!("{seconds}s"),
        }
    }

    /// The start of the window that contains this time, both in milliseconds since 1970.
    pub fn start_of(self, timestamp: i64) -> i64 {
        timestamp.saturating_sub(timestamp.rem_euclid(self.millis()))
    }

    /// The end of the window that starts then: the first millisecond that is no longer in it.
    pub fn end_of(self, start: i64) -> i64 {
        start.saturating_add(self.millis())
    }
}

/// As in the option: `1m`, `90s`.
impl fmt::Display for WindowSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seconds {
            seconds if seconds % 60 == 0 => write!(f, "{}m", seconds / 60),
            seconds => write!(f, "{seconds}s"),
        }
    }
}

impl FromStr for WindowSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("\"{text}\" is not the size of a window: give 1s to 24h, such as 30s, 5m or 1h")
        };
        let (digits, unit) = text
            .split_at_checked(text.len().saturating_sub(1))
            .ok_or_else(wrong)?;
        let unit = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(wrong()),
        };
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.parse::<i64>().ok().filter(|_| is_number);
        let seconds = number.and_then(|number| number.checked_mul(unit));
        seconds.and_then(Self::from_seconds).ok_or_else(wrong)
    }
}

/// Window sizes, each with the topic of its results: `1m=one_minute,5m=five_minutes`. From 1 to 16; no size and no topic occurs
/// twice. Interim counts go to the topic of the same name with `.live` added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows(Vec<(WindowSize, String)>);

impl Windows {
    /// The sizes and topics, in the order in which they were given.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (WindowSize, &str)> {
        self.0.iter().map(|(size, topic)| (*size, topic.as_str()))
    }

    /// The topic of the interim counts that belongs to a topic of results.
    pub fn live_topic(topic: &str) -> String {
        format!("{topic}.live")
    }
}

impl fmt::Display for Windows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (size, topic)) in self.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{size}={topic}")?;
        }
        Ok(())
    }
}

impl FromStr for Windows {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut windows: Vec<(WindowSize, String)> = Vec::new();
        for item in text.split(',').map(str::trim) {
            let (size, topic) = item
                .split_once('=')
                .ok_or_else(|| format!("\"{item}\" is not size=topic, such as 5m=five_minutes"))?;
            let size: WindowSize = size.parse()?;
            if !is_topic(topic) {
                return Err(format!(
                    "\"{topic}\" is not a topic: give 1 to {MAX_TOPIC_BYTES} letters, digits, dots, underscores and hyphens"
                ));
            }
            if windows.iter().any(|(other, _)| *other == size) {
                return Err(format!("the window {size} occurs twice"));
            }
            let live = Self::live_topic(topic);
            let shared = |other: &String| {
                other == topic || *other == live || Self::live_topic(other) == topic
            };
            if windows.iter().any(|(_, other)| shared(other)) {
                return Err(format!("two windows share the topic \"{topic}\""));
            }
            windows.push((size, topic.to_owned()));
        }
        if windows.len() > MAX_WINDOWS {
            return Err(format!("there are more than {MAX_WINDOWS} windows"));
        }
        Ok(Self(windows))
    }
}

fn is_topic(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=MAX_TOPIC_BYTES).contains(&text.len())
        && text.chars().all(legal)
        && text != "."
        && text != ".."
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size(text: &str) -> WindowSize {
        text.parse().unwrap()
    }

    #[test]
    fn a_size_has_the_label_of_the_contract() {
        let labels = ["1m", "5m", "10m", "60s", "2s", "90s", "1h"].map(|text| size(text).label());
        assert_eq!(
            labels,
            ["1min", "5min", "10min", "1min", "2s", "90s", "60min"]
        );
        assert_eq!(size("60s").to_string(), "1m");
    }

    #[test]
    fn a_size_is_a_second_to_a_day() {
        for wrong in [
            "",
            "s",
            "5",
            "0s",
            "-1s",
            "+1s",
            "1.5m",
            "25h",
            "1d",
            "5 m",
            "99999999999999999m",
            "5µ",
        ] {
            assert!(wrong.parse::<WindowSize>().is_err(), "{wrong}");
        }
        assert_eq!(size("24h").millis(), 86_400_000);
    }

    #[test]
    fn windows_are_aligned_to_the_epoch() {
        let minute = size("1m");
        assert_eq!(minute.start_of(0), 0);
        assert_eq!(minute.start_of(59_999), 0);
        assert_eq!(minute.start_of(60_000), 60_000);
        assert_eq!(minute.start_of(-1), -60_000);
        assert_eq!(minute.end_of(60_000), 120_000);
    }

    proptest! {
        #[test]
        fn every_time_is_in_one_window(seconds in 1i64..=86_400, time in any::<i64>()) {
            let size = WindowSize::from_seconds(seconds).unwrap();
            let start = size.start_of(time);
            prop_assert!(start <= time);
            prop_assert!(time < size.end_of(start) || size.end_of(start) == i64::MAX);
        }
    }

    #[test]
    fn windows_are_printed_as_they_are_parsed() {
        let text = "1m=one_minute_aggregation_topic,5m=five.minutes,90s=x-y";
        let windows: Windows = text.parse().unwrap();
        assert_eq!(windows.to_string(), text);
        let topics: Vec<&str> = windows.iter().map(|(_, topic)| topic).collect();
        assert_eq!(
            topics,
            ["one_minute_aggregation_topic", "five.minutes", "x-y"]
        );
    }

    #[test]
    fn wrong_windows_are_one_clear_sentence() {
        let error = |text: &str| text.parse::<Windows>().unwrap_err();
        assert!(error("").contains("is not size=topic"));
        assert!(error("1m").contains("is not size=topic"));
        assert!(error("1m=a,").contains("is not size=topic"));
        assert!(error("1x=a").contains("is not the size of a window"));
        assert!(error("1m=a b").contains("is not a topic"));
        assert!(error("1m=a,60s=b").contains("occurs twice"));
        assert!(error("1m=a,2m=a").contains("share the topic"));
        assert!(error("1m=a,2m=a.live").contains("share the topic"));
        let many: Vec<String> = (1..=17).map(|n| format!("{n}s=t{n}")).collect();
        assert!(error(&many.join(",")).contains("more than 16"));
    }
}
