//! Restarts the API server by moving its manifest out of the folder that the node's kubelet watches, and back.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

const MANIFESTS: &str = "/etc/kubernetes/manifests";

/// One script, so that the manifest is restored even if the test is killed.
const SCRIPT: &str = "cd /etc/kubernetes && mv manifests/kube-apiserver.yaml . && sleep 10; \
                      mv kube-apiserver.yaml manifests/";

/// Returns when the API server has stopped and is ready again.
pub fn restart(context: &str) {
    let mut script = on_the_node(context)
        .arg(SCRIPT)
        .process_group(0)
        .spawn()
        .unwrap();
    wait(context, false);
    assert!(script.wait().unwrap().success(), "the script failed");
    wait(context, true);
}

fn wait(context: &str, ready: bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    let timeout = "--request-timeout=2s";
    let args = ["--context", context, "get", "--raw", "/readyz", timeout];
    let is_ready = || {
        let output = Command::new("kubectl").args(args).output().unwrap();
        output.status.success()
    };
    while is_ready() != ready {
        let is = if ready { "not ready" } else { "still ready" };
        assert!(
            Instant::now() < deadline,
            "the API server is {is} after 120 s"
        );
        sleep(Duration::from_millis(100));
    }
}

/// A shell on the node, which takes a script as its next argument.
fn on_the_node(context: &str) -> Command {
    // With minikube's driver "none", the node is this machine.
    if Path::new(MANIFESTS).exists() {
        let mut sh = Command::new("sh");
        sh.arg("-c");
        return sh;
    }
    let mut ssh = Command::new("minikube");
    ssh.args(["--profile", context, "ssh", "--", "sudo", "sh", "-c"]);
    ssh
}
