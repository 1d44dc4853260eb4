//! The projector as a process, which can be killed.

use herald_testing::Database;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, Stdio};

use crate::arguments;

/// A process that does not outlive its test.
pub struct Process(Child);

impl Process {
    /// Starts one as the member `member` of its group, whose partitions its successor of the same name gets at once.
    pub fn start(kafka: &str, topic: &str, database: &Database, member: &str) -> Self {
        Self::run(
            Command::new(env!("CARGO_BIN_EXE_projector")),
            &arguments(kafka, topic, database),
            member,
        )
    }

    /// The same for a `command` that runs the program, and any `arguments`.
    pub fn run(mut command: Command, arguments: &[String], member: &str) -> Self {
        let child = command
            .args(arguments)
            .args(["--admin-listen", "127.0.0.1:0"])
            .env("BATCH_RECORDS", "5")
            .env("KAFKA_PROPERTIES", format!("group.instance.id={member}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        Self(child)
    }

    /// The signal that has ended it.
    pub fn signal(&mut self) -> Option<i32> {
        let ended = self.0.try_wait().unwrap()?;
        assert!(ended.signal().is_some(), "it ended by itself: {ended}");
        ended.signal()
    }

    /// Kills it (SIGKILL).
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The whole group: a program that is traced outlives its tracer.
        let group = format!("-{}", self.0.id());
        let mut kill = Command::new("kill");
        kill.args(["-KILL", "--", &group]).stderr(Stdio::null());
        _ = kill.status();
        _ = self.0.wait();
    }
}

#[test]
fn wrong_input_is_one_line_and_exit_code_2() {
    let output = Command::new(env!("CARGO_BIN_EXE_projector"))
        .env_clear()
        .args(["--database-url", "mysql://me:secret@db/herald"])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(
        stderr.contains("give sqlite:///path/to/file.db or postgres://"),
        "{stderr}"
    );
}
