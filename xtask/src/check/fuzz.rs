//! The targets of `fuzz`, built for libFuzzer and run side by side.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};

use anyhow::{Context, ensure};

use super::tally::Tally;
use super::{TestEnv, ahead};
use crate::command::{command, output, run, show};

/// What cargo-fuzz gives the compiler, without the sanitizers, which need a nightly one and find what Rust without `unsafe` excludes.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0";

pub fn fuzz(env: &TestEnv) -> anyhow::Result<Tally> {
    if let Some(status) = env.ahead.wait("fuzz") {
        let log = fs::read_to_string(ahead::log("fuzz"))?;
        return Ok(ended(&log, status));
    }
    let programs = build()?;
    let folder = crate::target().join("fuzz");
    let seconds = if env.long { 600 } else { 60 };
    let started = targets()?
        .into_iter()
        .map(|name| Fuzzer::start(name, &programs, &folder, seconds));
    let fuzzers: Vec<Fuzzer> = started.collect::<anyhow::Result<_>>()?;
    let mut tally = Tally::default();
    for fuzzer in fuzzers {
        let line = match fuzzer.end() {
            Ok(line) => format!("ok      {line}"),
            Err(error) => format!("FAILED  {error:#}"),
        };
        println!("{line}");
        tally.read_case(&line);
    }
    Ok(tally)
}

/// What an earlier run printed: all of it if it failed.
fn ended(log: &str, status: ExitStatus) -> Tally {
    let mut tally = Tally::default();
    for line in log.lines() {
        tally.read_case(line);
        if !status.success() || line.starts_with("ok      ") {
            println!("{line}");
        }
    }
    tally.ended(status)
}

/// The names of the targets, each of which is a file.
fn targets() -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for file in fs::read_dir(crate::root().join("fuzz/fuzz_targets"))? {
        let name = file?.path().with_extension("");
        names.extend(
            name.file_name()
                .map(|name| name.to_string_lossy().into_owned()),
        );
    }
    ensure!(!names.is_empty(), "fuzz/fuzz_targets contains no target");
    names.sort();
    Ok(names)
}

/// Builds their programs; returns the folder that they are in.
fn build() -> anyhow::Result<PathBuf> {
    let version = output(&mut command("rustc", ["-vV"]))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc -vV does not print its host")?;
    let target = crate::target().join("fuzz");
    let args = [
        "build",
        "--locked",
        "--package",
        "herald-fuzz",
        "--bins",
        "--features",
        "libfuzzer",
    ];
    let mut cargo = command("cargo", args);
    // With an explicit target, build scripts and macros have other flags: they could not be linked with these.
    cargo.args(["--profile", "fuzz", "--target", host, "--target-dir"]);
    cargo.arg(&target).env("RUSTFLAGS", COVERAGE);
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS");
    run(&mut cargo)?;
    Ok(target.join(host).join("fuzz"))
}

/// The process of a target.
struct Fuzzer {
    name: String,
    process: Child,
    log: PathBuf,
}

impl Fuzzer {
    fn start(name: String, programs: &Path, folder: &Path, seconds: u32) -> anyhow::Result<Self> {
        let seeds = crate::root().join("fuzz/seeds").join(&name);
        // What it finds worth keeping is where it continues from the next time.
        let corpus = folder.join("corpus").join(&name);
        fs::create_dir_all(&corpus)?;
        let log = folder.join(format!("{name}.log"));
        let output = File::create(&log)?;
        let mut command = command(&programs.join(&name).to_string_lossy(), [&corpus, &seeds]);
        command
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-artifact_prefix={}/{name}-", folder.display()))
            // At idle priority, a run may have to wait for long.
            .args(["-timeout=300", "-rss_limit_mb=1024", "-print_final_stats=1"])
            .stdout(output.try_clone()?)
            .stderr(output);
        show(&command);
        let process = command
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        Ok(Self { name, process, log })
    }

    /// Waits until its time is over; the sentence says how many runs there were.
    fn end(mut self) -> anyhow::Result<String> {
        let status = self.process.wait()?;
        let bytes = fs::read(&self.log)?;
        let log = String::from_utf8_lossy(&bytes);
        if !status.success() {
            println!("{}", panic(&log));
        }
        let Self {
            name, log: file, ..
        } = &self;
        ensure!(
            status.success(),
            "{name}: ended with {status}; see {}",
            file.display()
        );
        let runs = runs(&log).with_context(|| format!("{name}: it printed no number of runs"))?;
        ensure!(runs > 0, "{name}: there was no run");
        Ok(format!("{name}: {runs} runs, no panic"))
    }
}

/// From the statistics at the end.
fn runs(log: &str) -> Option<u64> {
    let of = |line: &str| {
        line.strip_prefix("stat::number_of_executed_units:")?
            .trim()
            .parse()
            .ok()
    };
    log.lines().find_map(of)
}

/// From the panic on: its message, and the file with the input.
fn panic(log: &str) -> &str {
    let begin = log.find("\nthread ").unwrap_or(0);
    log[begin..].trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "INFO: Seed: 1\n#2\tINITED cov: 3\n";

    #[test]
    fn the_number_of_runs_is_in_the_statistics() {
        let statistics = "stat::number_of_executed_units: 4711\nstat::average_exec_per_sec: 9\n";
        assert_eq!(runs(&format!("{LOG}{statistics}")), Some(4711));
        assert_eq!(runs(LOG), None);
    }

    #[test]
    fn a_panic_is_shown_without_what_came_before() {
        let crash =
            "thread '<unnamed>' panicked at a.rs:1:2:\nwrong\nTest unit written to cursor-crash-0";
        assert_eq!(panic(&format!("{LOG}\n{crash}\n")), crash);
        assert_eq!(panic(LOG), LOG.trim());
    }

    #[test]
    fn there_is_a_program_for_each_target() {
        let manifest = include_str!("../../../fuzz/Cargo.toml");
        let targets = targets().unwrap();
        assert_eq!(manifest.matches("[[bin]]").count(), targets.len());
        for name in targets {
            assert!(
                manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")),
                "{name}"
            );
        }
    }
}
