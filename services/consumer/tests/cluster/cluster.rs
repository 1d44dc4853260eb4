//! The cluster, by its commands.

use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};

/// kubectl and helm for one cluster, and the turn of the one test that uses it.
pub struct Cluster {
    context: String,
    _turn: File,
}

impl Cluster {
    /// The cluster for tests, as soon as no other test uses it; `None`, and a line that says so, where there is none.
    ///
    /// That is no failure with `CI=true`: these tests have a check of their own, which needs a cluster.
    pub fn given() -> Option<Self> {
        const NAME: &str = "HERALD_TEST_CLUSTER";
        let Some(context) = std::env::var(NAME).ok().filter(|name| !name.is_empty()) else {
            leave_out(&format!(
                "{NAME} is not set (the kubectl context of a cluster); cargo xtask check delivery sets it"
            ));
            return None;
        };
        // The system gives the lock back however its owner ends. Two tests at once would be each other's disturbance.
        let path = std::env::temp_dir().join("herald-delivery-tests.lock");
        let turn = File::create(&path).expect("a file for the lock");
        turn.lock().expect("the lock");
        Some(Self {
            context,
            _turn: turn,
        })
    }

    /// What kubectl prints. It panics with what kubectl complains about.
    pub fn kubectl(&self, args: &[&str]) -> String {
        said(&mut self.kubectl_command(args), "").unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same where it may fail.
    pub fn try_kubectl(&self, args: &[&str]) -> Result<String, String> {
        said(&mut self.kubectl_command(args), "")
    }

    /// The same for one that reads its standard input.
    pub fn kubectl_with(&self, input: &str, args: &[&str]) -> String {
        said(&mut self.kubectl_command(args), input).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The command alone.
    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut kubectl = Command::new("kubectl");
        kubectl.args(["--context", &self.context]).args(args);
        kubectl
    }

    /// Runs helm with these values.
    pub fn helm(&self, values: &serde_json::Value, args: &[&str]) {
        let mut helm = Command::new("helm");
        helm.args(["--kube-context", &self.context]).args(args);
        helm.args(["--values", "-"]);
        // JSON is YAML.
        said(&mut helm, &values.to_string()).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Runs a command and returns its output; the error is its line and what it complained about.
fn said(command: &mut Command, input: &str) -> Result<String, String> {
    let line = || {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    };
    let line = line();
    let mut process = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot run {line}: {error}"))?;
    let mut stdin = process.stdin.take().expect("stdin is a pipe");
    // One that ends before it has read everything says why below.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = process
        .wait_with_output()
        .map_err(|error| format!("cannot wait for {line}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "{line}\nended with {}: {}",
        output.status,
        complaint.trim()
    ))
}

/// Says that this test, or a part of it, does not run.
pub fn leave_out(why: &str) {
    let thread = std::thread::current();
    say(&format!(
        "left out: {}: {why}",
        thread.name().unwrap_or("a test")
    ));
}

/// Prints a line that is shown also when the test passes: the test harness keeps what `eprintln!` prints to itself.
pub fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
