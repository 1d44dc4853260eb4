//! What cargo checks.

use super::Surroundings;
use super::tally::Tally;
use crate::command::{command, status, stream};

pub fn fmt(_: &Surroundings) -> anyhow::Result<Tally> {
    cargo(&["fmt", "--all", "--check"])
}

pub fn deny(_: &Surroundings) -> anyhow::Result<Tally> {
    // What is not of this platform may not have been fetched yet, and deny reads the licence of each.
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

/// With the tests, whose dependencies have more features: what the tests need is then built once, not twice.
pub fn build(_: &Surroundings) -> anyhow::Result<Tally> {
    cargo(&["build", "--workspace", "--all-targets", "--locked"])
}

pub fn clippy(_: &Surroundings) -> anyhow::Result<Tally> {
    // The tests that need a cluster are none of cargo's targets by default.
    const TARGETS: [&[&str]; 2] = [
        &["--workspace", "--all-targets"],
        &[
            "--package",
            "xtask",
            "--package",
            "consumer",
            "--test",
            "cluster",
        ],
    ];
    let mut tally = Tally::default();
    for targets in TARGETS {
        let mut clippy = command("cargo", ["clippy", "--locked"]);
        clippy.args(targets).args(["--", "-D", "warnings"]);
        tally += Tally::of(status(&mut clippy)?);
    }
    Ok(tally)
}

pub fn test(surroundings: &Surroundings) -> anyhow::Result<Tally> {
    let mut tests = command(
        "cargo",
        ["test", "--workspace", "--locked", "--no-fail-fast"],
    );
    if surroundings.long {
        tests.args(["--", "--include-ignored"]);
    }
    tests.envs(surroundings.variables());
    let mut tally = Tally::default();
    let status = stream(&mut tests, |line| tally.read_cargo(line))?;
    Ok(tally.ended(status))
}

pub fn embedded(_: &Surroundings) -> anyhow::Result<Tally> {
    let mut tests = command(
        "cargo",
        ["test", "--package", "consumer", "--test", "it", "--locked"],
    );
    tests.env("HERALD_TEST_KAFKA", "embedded");
    let mut tally = Tally::default();
    let status = stream(&mut tests, |line| tally.read_cargo(line))?;
    Ok(tally.ended(status))
}

fn cargo(args: &[&str]) -> anyhow::Result<Tally> {
    Ok(Tally::of(status(&mut command("cargo", args))?))
}
