//! Counts passed and failed tests from the output of the test runners.

use std::fmt;
use std::ops::AddAssign;
use std::process::ExitStatus;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    pub passed: u32,
    pub failed: u32,
    /// Tests that did not run and printed the reason.
    pub left_out: u32,
}

impl Tally {
    const PASSED: Self = Self {
        passed: 1,
        failed: 0,
        left_out: 0,
    };
    pub const FAILED: Self = Self {
        passed: 0,
        failed: 1,
        left_out: 0,
    };

    /// A check without tests to count.
    pub fn of(status: ExitStatus) -> Self {
        if status.success() {
            Self::PASSED
        } else {
            Self::FAILED
        }
    }

    /// Counts a runner that failed without a failed test (it did not build, or crashed) as one failure.
    pub fn ended(self, status: ExitStatus) -> Self {
        let failed = if status.success() { 0 } else { 1 };
        Self {
            failed: self.failed.max(failed),
            ..self
        }
    }

    /// Reads a line of `cargo test`: `test result: ok. 7 passed; 0 failed; 1 ignored; …`, or the `left out: ` of a test
    /// whose requirements are missing (cargo counts it as passed).
    pub fn read_cargo(&mut self, line: &str) {
        if line.starts_with("left out: ") {
            self.passed = self.passed.saturating_sub(1);
            self.left_out += 1;
        }
        let Some((_, counts)) = line
            .strip_prefix("test result: ")
            .and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.split("; ") {
            match count.split_once(' ') {
                Some((n, "passed")) => self.passed += n.parse().unwrap_or(0),
                Some((n, "failed")) => self.failed += n.parse().unwrap_or(0),
                Some((n, "ignored")) => self.left_out += n.parse().unwrap_or(0),
                _ => {}
            }
        }
    }

    /// Reads a line of a check's own cases: `ok      name`.
    pub fn read_case(&mut self, line: &str) {
        self.passed += u32::from(line.starts_with("ok      "));
        self.failed += u32::from(line.starts_with("FAILED  "));
    }

    /// Reads a line of `node --test --test-reporter=spec`: `ℹ pass 7`.
    pub fn read_node(&mut self, line: &str) {
        let Some((what, count)) = line
            .strip_prefix("ℹ ")
            .and_then(|rest| rest.split_once(' '))
        else {
            return;
        };
        let count = count.parse().unwrap_or(0);
        match what {
            "pass" => self.passed += count,
            "fail" | "cancelled" => self.failed += count,
            "skipped" | "todo" => self.left_out += count,
            _ => {}
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.left_out += other.left_out;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.left_out > 0 {
            write!(f, ", {} left out", self.left_out)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn read(lines: &[&str], read: fn(&mut Tally, &str)) -> (u32, u32, u32) {
        let mut tally = Tally::default();
        for line in lines {
            read(&mut tally, line);
        }
        (tally.passed, tally.failed, tally.left_out)
    }

    #[test]
    fn the_results_of_cargo_test_are_summed() {
        let lines = [
            "test a ... ok",
            "test result: ok. 7 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ];
        assert_eq!(read(&lines, Tally::read_cargo), (8, 2, 1));
    }

    #[test]
    fn a_test_that_is_left_out_has_not_passed() {
        let result = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        let mut tally = Tally::default();
        tally.read_cargo(result);
        tally.read_cargo("left out: topics::a: HERALD_TEST_KAFKA is not set");
        assert_eq!((tally.passed, tally.left_out), (2, 1));
    }

    #[test]
    fn the_cases_of_a_check_are_counted() {
        let lines = [
            "$ cargo build",
            "ok      a: 7 runs",
            "FAILED  b: ended",
            "ok",
        ];
        assert_eq!(read(&lines, Tally::read_case), (1, 1, 0));
    }

    #[test]
    fn the_results_of_node_are_summed() {
        let lines = [
            "ℹ tests 9",
            "ℹ suites 0",
            "ℹ pass 6",
            "ℹ fail 1",
            "ℹ cancelled 1",
            "ℹ skipped 1",
            "ℹ todo 0",
            "ℹ duration_ms 12.3",
        ];
        assert_eq!(read(&lines, Tally::read_node), (6, 2, 1));
    }

    #[test]
    fn a_runner_that_crashes_is_a_failure_even_if_no_test_failed() {
        let crashed = ExitStatus::from_raw(9);
        let tally = Tally {
            passed: 5,
            ..Tally::default()
        };
        assert_eq!(tally.ended(crashed).failed, 1);
        assert_eq!(tally.ended(ExitStatus::from_raw(0)).failed, 0);
        let named = Tally { failed: 3, ..tally };
        assert_eq!(named.ended(crashed).failed, 3);
    }
}
