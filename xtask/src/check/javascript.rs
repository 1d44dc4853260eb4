//! The suites in JavaScript, the language of the clients that they drive.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::TestEnv;
use super::python;
use super::tally::Tally;
use crate::command::{command, run, stream};
use crate::tools;

pub fn scripts(env: &TestEnv) -> anyhow::Result<Tally> {
    node(env, &folder("scripts"), &mut command("node", TEST))
}

pub fn clients(env: &TestEnv) -> anyhow::Result<Tally> {
    let folder = folder("clients");
    npm_ci(&folder)?;
    let mut tests = command("node", TEST);
    tests.env(
        "PATH",
        path_with(&python::programs(
            "python",
            &folder.join("requirements.txt"),
        )?)?,
    );
    node(env, &folder, &mut tests)
}

pub fn page(env: &TestEnv) -> anyhow::Result<Tally> {
    let folder = folder("page");
    node(env, &folder, &mut in_browser(&TEST)?)
}

/// Each file starts its own Kafka, with TLS and ACLs, and mostly waits for it.
pub fn strimzi(env: &TestEnv) -> anyhow::Result<Tally> {
    let folder = folder("strimzi");
    npm_ci(&folder)?;
    let mut tests = command("node", TEST);
    node(env, &folder, tests.arg("--test-concurrency=2"))
}

/// `upstream`: the consumers behind the proxy, `host:port` with commas; without it, the suite starts its own.
pub fn ingress(env: &TestEnv, upstream: Option<&str>) -> anyhow::Result<Tally> {
    let folder = folder("ingress");
    npm_ci(&folder)?;
    let mut tests = command("node", TEST);
    if let Some(upstream) = upstream {
        tests.env("HERALD_INGRESS_UPSTREAM", upstream);
    }
    node(env, &folder, &mut tests)
}

/// The whole of ./setup.sh on minikube.
pub fn cluster(env: &TestEnv) -> anyhow::Result<Tally> {
    // The first run builds everything.
    let test = [TEST[0], TEST[1], "--test-timeout=3600000"];
    // One of its clients is that of Socket.IO.
    npm_ci(&folder("clients"))?;
    node(env, &folder("cluster"), &mut in_browser(&test)?)
}

/// Tests that drive Chromium with the packages of tests/page.
fn in_browser(args: &[&str]) -> anyhow::Result<Command> {
    npm_ci(&folder("page"))?;
    let screenshots = crate::target().join("screenshots");
    fs::create_dir_all(&screenshots)?;
    let mut tests = command("node", args);
    tests.env("HERALD_SCREENSHOTS", screenshots);
    if let Some(chromium) = tools::CHROMIUM.find() {
        tests.env("CHROMIUM", chromium);
    }
    Ok(tests)
}

/// A test that hangs is cancelled after ten minutes.
const TEST: [&str; 3] = ["--test", "--test-reporter=spec", "--test-timeout=600000"];

fn node(env: &TestEnv, folder: &Path, tests: &mut Command) -> anyhow::Result<Tally> {
    tests
        .current_dir(folder)
        .env("HERALD_BIN_DIR", crate::target().join("debug"))
        .envs(env.variables());
    let mut tally = Tally::default();
    let status = stream(tests, |line| tally.read_node(line))?;
    Ok(tally.ended(status))
}

fn folder(suite: &str) -> PathBuf {
    crate::root().join("tests").join(suite)
}

/// Installs the packages of package-lock.json, unless they are up to date.
fn npm_ci(folder: &Path) -> anyhow::Result<()> {
    let modified = |file: PathBuf| fs::metadata(file).and_then(|file| file.modified()).ok();
    let wanted = modified(folder.join("package-lock.json"));
    let had = modified(folder.join("node_modules/.package-lock.json"));
    if wanted.is_some() && had >= wanted {
        return Ok(());
    }
    run(command("npm", ["ci", "--no-audit", "--no-fund"]).current_dir(folder))
}

fn path_with(first: &Path) -> anyhow::Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(first.to_owned()).chain(std::env::split_paths(&path));
    Ok(std::env::join_paths(folders)?)
}
