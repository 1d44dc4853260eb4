//! The checks that run cargo.

use anyhow::Context;
use serde::Deserialize;

use super::TestEnv;
use super::tally::Tally;
use crate::command::{command, output, status, stream};

pub fn fmt(_: &TestEnv) -> anyhow::Result<Tally> {
    cargo(&["fmt", "--all", "--check"])
}

pub fn deny(_: &TestEnv) -> anyhow::Result<Tally> {
    // Dependencies of other platforms may not have been downloaded yet, and deny reads the licence of each.
    let fetched = status(&mut command("cargo", ["fetch", "--locked", "--quiet"]))?;
    if !fetched.success() {
        return Ok(Tally::of(fetched));
    }
    cargo(&[
        "deny",
        "--offline",
        "--log-level",
        "warn",
        "check",
        "--hide-inclusion-graph",
        "bans",
        "licenses",
        "sources",
    ])
}

/// With the tests, whose dependencies have more features, so that shared dependencies are built only once.
pub fn build(_: &TestEnv) -> anyhow::Result<Tally> {
    cargo(&["build", "--workspace", "--all-targets", "--locked"])
}

pub fn clippy(_: &TestEnv) -> anyhow::Result<Tally> {
    // The tests that need a cluster are not among cargo's default targets.
    const TARGETS: [&[&str]; 2] = [
        &["--workspace", "--all-targets"],
        &["--workspace", "--test", "cluster"],
    ];
    let mut tally = Tally::default();
    for targets in TARGETS {
        let mut clippy = command("cargo", ["clippy", "--locked"]);
        clippy.args(targets).args(["--", "-D", "warnings"]);
        tally += Tally::of(status(&mut clippy)?);
    }
    Ok(tally)
}

pub fn test(env: &TestEnv) -> anyhow::Result<Tally> {
    let mut tests = command(
        "cargo",
        ["test", "--workspace", "--locked", "--no-fail-fast"],
    );
    if env.long {
        tests.args(["--", "--include-ignored"]);
    }
    tests.envs(env.variables());
    let mut tally = Tally::default();
    let status = stream(&mut tests, |line| tally.read_cargo(line))?;
    Ok(tally.ended(status))
}

pub fn embedded(_: &TestEnv) -> anyhow::Result<Tally> {
    let program = test_program("consumer", "it")?;
    let mut tests = command(&program, [""; 0]);
    tests.current_dir(crate::root().join("services/consumer"));
    tests.env("HERALD_TEST_KAFKA", "embedded");
    let mut tally = Tally::default();
    let status = stream(&mut tests, |line| tally.read_cargo(line))?;
    Ok(tally.ended(status))
}

/// The program of a package's test. Builds the whole workspace, since for one package cargo would select other features
/// of the dependencies and rebuild them.
fn test_program(package: &str, test: &str) -> anyhow::Result<String> {
    #[derive(Deserialize)]
    struct Built {
        executable: Option<String>,
        manifest_path: Option<String>,
    }
    let args = [
        "test",
        "--workspace",
        "--test",
        test,
        "--locked",
        "--no-run",
    ];
    let mut build = command("cargo", args);
    let messages = output(build.arg("--message-format=json"))?;
    let ours = format!("/{package}/Cargo.toml");
    let mut built = messages.lines().filter_map(|line| {
        let built: Built = serde_json::from_str(line).ok()?;
        let is_ours = built.manifest_path?.ends_with(&ours);
        built.executable.filter(|_| is_ours)
    });
    // The package's own program is built as well.
    let named = |program: &String| {
        program
            .rsplit('/')
            .next()
            .is_some_and(|name| name.starts_with(&format!("{test}-")))
    };
    let program = built.find(named);
    program.with_context(|| format!("cargo has not built the test {test} of {package}"))
}

fn cargo(args: &[&str]) -> anyhow::Result<Tally> {
    Ok(Tally::of(status(&mut command("cargo", args))?))
}
