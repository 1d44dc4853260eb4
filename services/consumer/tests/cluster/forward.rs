//! Ways from this machine to pods: the product's own port-forward, and kubectl's.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use herald_testing::{KafkaProcess, eventually};

use crate::client;
use crate::release::{Pod, Release};

/// A process that forwards a port; it ends when this is dropped, and when the test ends in any other way.
pub struct Forward {
    pub address: SocketAddr,
    process: Child,
}

/// The shell ends what it has started when the pipe from us closes; Ctrl-C does not reach it.
const GUARD: &str = r#"trap '' INT; "$@" & read -r _; kill $!"#;

impl Forward {
    /// `cargo xtask forward` for the Service of a release.
    pub async fn of_service(release: &Release) -> Self {
        let xtask = Path::new(env!("CARGO_BIN_EXE_consumer")).with_file_name("xtask");
        assert!(
            xtask.exists(),
            "there is no {}; cargo build --package xtask makes it",
            xtask.display()
        );
        let port = KafkaProcess::free_port().expect("a free port");
        let service = format!("{}/consumer-service:{port}", release.namespace.name);
        let mut forward = Command::new(xtask);
        forward.args(["forward", "--service", &service]);
        let forward = Self {
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            process: guarded(&forward, Stdio::inherit()),
        };
        eventually(
            Duration::from_secs(60),
            "the forward to answer",
            async || {
                let answer = client::get(forward.address, "/config").await;
                answer.is_ok_and(|(status, _)| status == 200)
            },
        )
        .await;
        forward
    }

    /// `kubectl port-forward` to one pod.
    pub fn of_pod(release: &Release, pod: &Pod) -> Self {
        let namespace = ["--namespace", &release.namespace.name];
        let forward = ["port-forward", &format!("pod/{}", pod.name), ":5000"];
        let command = release
            .namespace
            .kubectl_command(&[&namespace, &forward[..]].concat());
        let mut process = guarded(&command, Stdio::piped());
        let mut line = String::new();
        let output = process.stdout.take().expect("stdout is a pipe");
        let mut output = BufReader::new(output);
        output.read_line(&mut line).expect("kubectl says its port");
        // A line for each connection follows, which somebody has to take.
        std::thread::spawn(move || output.lines().map_while(Result::ok).for_each(drop));
        let address = line
            .strip_prefix("Forwarding from ")
            .and_then(|rest| rest.split(" -> ").next()?.parse().ok());
        Self {
            address: address.unwrap_or_else(|| panic!("kubectl said {line:?}")),
            process,
        }
    }
}

fn guarded(command: &Command, stdout: Stdio) -> Child {
    Command::new("sh")
        .args(["-c", GUARD, "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::piped())
        .stdout(stdout)
        .spawn()
        .expect("sh runs")
}

impl Drop for Forward {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
