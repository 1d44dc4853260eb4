//! The checks that run cargo.

mod programs;

use std::process::Command;

use anyhow::Context;

use super::TestEnv;
use super::tally::Tally;
use crate::command::{command, status, stream};

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
    let long: &[&str] = if env.long {
        &["--include-ignored"]
    } else {
        &[]
    };
    let variables = env.variables();
    let mut tally = programs::run(&programs::build()?, |tests| {
        tests.args(long).envs(variables.clone());
    });
    let args = ["test", "--workspace", "--doc", "--locked", "--no-fail-fast"];
    let mut examples = command("cargo", args);
    examples.arg("--").args(long).envs(variables);
    tally += count(&mut examples)?;
    Ok(tally)
}

pub fn embedded(_: &TestEnv) -> anyhow::Result<Tally> {
    let programs = programs::build()?;
    let program = programs.iter().find(|program| program.is("consumer", "it"));
    let program = program.context("cargo has not built the consumer's end-to-end tests")?;
    count(program.command().env("HERALD_TEST_KAFKA", "embedded"))
}

fn count(tests: &mut Command) -> anyhow::Result<Tally> {
    let mut tally = Tally::default();
    let status = stream(tests, |line| tally.read_cargo(line))?;
    Ok(tally.ended(status))
}

fn cargo(args: &[&str]) -> anyhow::Result<Tally> {
    Ok(Tally::of(status(&mut command("cargo", args))?))
}
