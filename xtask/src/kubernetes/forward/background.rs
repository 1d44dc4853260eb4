//! Forwards in the background: a process for each environment.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::command::{command, run as run_command, show};
use crate::environments::{self, Environment};
use crate::pids;
use crate::port;

/// If the consumers are ready, their pages answer within a second.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// A forward exits immediately on SIGTERM.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// Starts the forwards that are not already running and answering.
pub fn start(environments: &[Environment]) -> anyhow::Result<ExitCode> {
    let mut wanted = Vec::new();
    for environment in environments {
        let Environment { name, .. } = environment;
        let url = environment.url();
        match running(name) {
            Some(id) if answers(environment) => {
                println!("{name}: {url} is already forwarded (process {id})");
                continue;
            }
            Some(id) => {
                println!(
                    "{name}: {url} is forwarded (process {id}), but does not answer: restarting it"
                );
                end(name, id)?;
            }
            None => {}
        }
        wanted.push(environment);
    }
    for environment in &wanted {
        if !port::is_free(environment.local_port) {
            bail!(
                "{}; end it and try again",
                port::in_use(environment.local_port)
            );
        }
    }
    let mut processes = Vec::new();
    for environment in wanted {
        processes.push((environment, spawn(environment)?));
    }
    let deadline = Instant::now() + ANSWER_DEADLINE;
    let mut code = ExitCode::SUCCESS;
    for (environment, process) in &mut processes {
        if let Err(why) = wait(environment, process, deadline) {
            eprintln!("error: {why:#}");
            code = ExitCode::FAILURE;
        }
    }
    if code == ExitCode::SUCCESS {
        environments::print_table(environments);
        println!("\n./kill_port_forward.sh stops the forwards.");
    }
    Ok(code)
}

/// Stops the running forwards of these environments.
pub fn stop(environments: &[Environment]) -> anyhow::Result<()> {
    for Environment { name, .. } in environments {
        match running(name) {
            Some(id) => end(name, id)?,
            None => println!("{name}: not forwarded in the background"),
        }
        pids::remove(name)?;
    }
    Ok(())
}

/// The process that forwards this environment in the background.
pub fn running(environment: &str) -> Option<u32> {
    let listed = pids::read();
    let mut ids = listed
        .into_iter()
        .filter(|listed| listed.name == environment)
        .map(|listed| listed.id);
    ids.find(|&id| is_forward(id, environment))
}

fn is_forward(id: u32, environment: &str) -> bool {
    // Not split into words: the folder's name may contain spaces.
    pids::command_line(id).ends_with(&format!("/xtask forward {environment}"))
}

fn answers(environment: &Environment) -> bool {
    port::answers(environment.local_port)
}

fn spawn(environment: &Environment) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("cannot find our own program")?;
    let mut forward = command(&program.to_string_lossy(), ["forward", &environment.name]);
    show(&forward);
    let log = log(environment);
    let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let process = forward
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        // Ctrl-C in this terminal must not reach it.
        .process_group(0)
        .spawn()
        .context("cannot run our own program")?;
    pids::add(process.id(), &environment.name)?;
    Ok(process)
}

fn wait(environment: &Environment, process: &mut Child, deadline: Instant) -> anyhow::Result<()> {
    let Environment { name, .. } = environment;
    let log = log(environment);
    while !answers(environment) {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let last = text.lines().next_back().unwrap_or("no output");
        let last = last.trim_start_matches(&format!("{name}: "));
        if let Some(status) = process.try_wait()? {
            pids::remove(name)?;
            bail!("the forward of {name} ended with {status}: {last}");
        }
        if Instant::now() > deadline {
            bail!(
                "{} does not answer: {last}\nthe forward keeps trying (process {}); its log is {}",
                environment.url(),
                process.id(),
                log.display()
            );
        }
        sleep(Duration::from_millis(100));
    }
    println!("{} answers", environment.url());
    Ok(())
}

fn end(name: &str, id: u32) -> anyhow::Result<()> {
    let pid = id.to_string();
    run_command(&mut command("kill", [&pid]))?;
    let deadline = Instant::now() + END_DEADLINE;
    while is_forward(id, name) {
        if Instant::now() > deadline {
            println!("it did not end within {} s", END_DEADLINE.as_secs());
            return run_command(&mut command("kill", ["-KILL", &pid]));
        }
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn log(environment: &Environment) -> PathBuf {
    crate::target().join(format!("forward-{}.log", environment.name))
}
