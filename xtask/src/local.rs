//! All environments in one process on this machine, in the foreground or in the background.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::command::{command, run as run_command, show};
use crate::environments::{self, Endpoint, Environment};
use crate::pids;
use crate::port;
use crate::services;

/// `local` is the only process in port_forward_pids.txt and needs no name there.
const NAME: &str = "";

/// The pages answer a second after the start; a remote Kafka may take longer.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Run all services of every environment in one process, with an embedded broker and SQLite.
///
/// KAFKA_BOOTSTRAP_SERVERS=host:port uses that Kafka instead. All options of `local` can be set by environment variables.
#[derive(clap::Args)]
pub struct Args {
    /// default, dev, prod; all of them when none is named.
    #[arg(value_name = "ENV")]
    environments: Vec<String>,

    /// Start it in the background, wait until its pages answer, and return. ./kill_port_forward.sh stops it.
    #[arg(long)]
    background: bool,

    /// Delete the sessions of earlier runs first.
    #[arg(long)]
    fresh: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let environments = environments::chosen(&args.environments)?;
    if args.background {
        let _lock = crate::lock()?;
        in_background(&environments, args.fresh)?;
        return Ok(ExitCode::SUCCESS);
    }
    build()?;
    let mut local = local(&environments, args.fresh);
    show(&local);
    // Replaces this process, so that signals and the exit code are those of `local`.
    Err(local.exec()).context("cannot run local")
}

fn in_background(environments: &[Environment], fresh: bool) -> anyhow::Result<()> {
    let mut environments = environments.to_vec();
    if let Some(id) = running() {
        if !fresh && environments.iter().all(answers) {
            println!("Herald is running already (process {id}); ./kill_port_forward.sh stops it");
            environments::print_table(&endpoints(&environments));
            return Ok(());
        }
        let why = if fresh {
            "its data is to be deleted"
        } else {
            "not every page answers"
        };
        println!("Herald is running (process {id}), but {why}: restarting it");
        // It keeps serving the environments that it serves now.
        let mut all = environments::chosen(&[])?;
        all.retain(|one| answers(one) || environments.iter().any(|wanted| wanted.name == one.name));
        environments = all;
        run_command(&mut command("./kill_port_forward.sh", [""; 0]))?;
    }
    let endpoints = endpoints(&environments);
    let mut ports = endpoints.iter().map(|endpoint| endpoint.local_port);
    if let Some(taken) = ports.find(|&port| !port::is_free(port)) {
        bail!("{}; end it and try again", port::in_use(taken));
    }
    build()?;
    let log = crate::target().join("local.log");
    let mut local = start(&environments, fresh, &log)?;
    let started = wait(&mut local, &endpoints, &log);
    if started.is_err() {
        let _ = local.kill();
        let _ = local.wait();
        pids::remove(NAME)?;
    }
    started?;
    environments::print_table(&endpoints);
    println!(
        "\nThe log is in {}; ./kill_port_forward.sh stops it.",
        log.display()
    );
    Ok(())
}

/// `local` runs every service of the table.
fn endpoints(environments: &[Environment]) -> Vec<Endpoint<'_>> {
    let of = |environment| Environment::endpoints(environment, services::all(), false);
    environments.iter().flat_map(of).collect()
}

fn answers(environment: &Environment) -> bool {
    let endpoints = environment.endpoints(services::all(), false);
    endpoints.iter().all(Endpoint::answers)
}

fn build() -> anyhow::Result<()> {
    if !program().exists() {
        println!("building for the first time takes a few minutes");
    }
    run_command(&mut command(
        "cargo",
        ["build", "--release", "--locked", "--package", "local"],
    ))
}

fn local(environments: &[Environment], fresh: bool) -> Command {
    let names = environments.iter().map(|environment| &environment.name);
    let mut local = command(&program().to_string_lossy(), names);
    local.args(fresh.then_some("--fresh"));
    // Its pages are opened without a proxy.
    local.env_remove("PATH_PREFIX");
    local
}

fn start(environments: &[Environment], fresh: bool, log: &Path) -> anyhow::Result<Child> {
    let mut local = local(environments, fresh);
    show(&local);
    let output = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let local = local
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        // Ctrl-C in this terminal must not reach it.
        .process_group(0)
        .spawn()
        .context("cannot run local")?;
    pids::add(local.id(), NAME)?;
    Ok(local)
}

fn wait(local: &mut Child, endpoints: &[Endpoint], log: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_DEADLINE;
    for endpoint in endpoints {
        while !endpoint.answers() {
            let why = if let Some(status) = local.try_wait()? {
                format!("local ended with {status}")
            } else if Instant::now() > deadline {
                format!(
                    "{} did not answer within {START_DEADLINE:?}",
                    endpoint.url()
                )
            } else {
                sleep(Duration::from_millis(100));
                continue;
            };
            let text = fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            bail!(
                "{why}:\n{}",
                lines[lines.len().saturating_sub(10)..].join("\n")
            );
        }
        println!("{} answers", endpoint.url());
    }
    Ok(())
}

/// The process that an earlier run started, if it still runs.
fn running() -> Option<u32> {
    let ids = pids::read().into_iter().map(|listed| listed.id);
    ids.into_iter().find(|&id| is_local(id))
}

/// Whether the process with this id is `local`: the id may have been reused.
fn is_local(id: u32) -> bool {
    let line = pids::command_line(id);
    line.ends_with("/release/local") || line.contains("/release/local ")
}

fn program() -> PathBuf {
    crate::target().join("release/local")
}
