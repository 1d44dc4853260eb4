//! A running `cargo xtask forward`.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// It is killed when it is dropped.
pub struct Forward {
    process: Child,
    pub port: u16,
    log: PathBuf,
}

impl Forward {
    /// Forwards a free port; `service` returns the argument of `--service` for it.
    pub fn start(service: impl Fn(u16) -> String) -> Self {
        let port = free_port();
        let log = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("forward-{port}.log"));
        let output = File::create(&log).unwrap();
        let process = command(&service(port))
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Self { process, port, log }
    }

    /// Its whole output.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until its output contains this text.
    pub fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.log().contains(text) {
            let ended = self.process.try_wait().unwrap();
            assert_eq!(ended, None, "it has ended: {}", self.log());
            let log = self.log();
            assert!(Instant::now() < deadline, "waited 30 s for {text:?}: {log}");
            sleep(Duration::from_millis(20));
        }
    }

    pub fn signal(&self, signal: &str) {
        let id = self.process.id().to_string();
        let kill = Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(kill.success());
    }

    /// Waits up to five seconds for it to exit.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it did not end within 5 s");
            sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `cargo xtask forward --service …` in the cluster for tests.
pub fn command(service: &str) -> Command {
    let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
    xtask.args(["forward", "--service", service]);
    if let Ok(context) = std::env::var("HERALD_TEST_CLUSTER") {
        xtask.env("MINIKUBE_PROFILE", context);
    }
    xtask.stdin(Stdio::null());
    xtask
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
