//! Forwards in the background: a process for each environment.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::command::{command, run as run_command, show};
use crate::environments::{self, Endpoint, Environment};
use crate::pids;
use crate::port;

/// If the consumers are ready, their pages answer within a second.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// A forward exits immediately on SIGTERM.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// Starts the forwards that are not already running and answering.
pub fn start(endpoints: &[Endpoint]) -> anyhow::Result<ExitCode> {
    let mut wanted = Vec::new();
    // Those of one environment follow each other.
    for ours in endpoints.chunk_by(|a, b| a.environment.name == b.environment.name) {
        let name = &ours[0].environment.name;
        let urls = urls(ours);
        match running(name) {
            Some(id) if answer(ours) => {
                println!("{name}: {urls} is already forwarded (process {id})");
                continue;
            }
            Some(id) => {
                println!(
                    "{name}: {urls} is forwarded (process {id}), but does not answer: restarting it"
                );
                end(name, id)?;
            }
            None => {}
        }
        wanted.push(ours);
    }
    for endpoint in wanted.iter().copied().flatten() {
        if !port::is_free(endpoint.local_port) {
            bail!(
                "{}; end it and try again",
                port::in_use(endpoint.local_port)
            );
        }
    }
    let mut processes = Vec::new();
    for ours in wanted {
        processes.push((ours, spawn(ours[0].environment)?));
    }
    let deadline = Instant::now() + ANSWER_DEADLINE;
    let mut code = ExitCode::SUCCESS;
    for (ours, process) in &mut processes {
        for endpoint in ours.iter() {
            if let Err(why) = wait(endpoint, process, deadline) {
                eprintln!("error: {why:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    if code == ExitCode::SUCCESS {
        environments::print_table(endpoints);
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

fn answer(endpoints: &[Endpoint]) -> bool {
    endpoints.iter().all(Endpoint::answers)
}

fn urls(endpoints: &[Endpoint]) -> String {
    let urls: Vec<String> = endpoints.iter().map(Endpoint::url).collect();
    urls.join(" and ")
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

fn wait(endpoint: &Endpoint, process: &mut Child, deadline: Instant) -> anyhow::Result<()> {
    let Environment { name, .. } = endpoint.environment;
    let log = log(endpoint.environment);
    while !endpoint.answers() {
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
                endpoint.url(),
                process.id(),
                log.display()
            );
        }
        sleep(Duration::from_millis(100));
    }
    println!("{} answers", endpoint.url());
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;
    use crate::services;

    /// A server that answers 200 to every request; returns its port.
    fn server() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let _ = client.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            }
        });
        port
    }

    #[test]
    fn an_environment_answers_when_each_of_its_services_answers() {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let free_port = free.local_addr().unwrap().port();
        drop(free);
        let (page, gate) = (server(), server());
        let services = services::fake();
        for (gate, expected) in [(gate, true), (free_port, false)] {
            let mut environment = environments::chosen(&["dev".to_owned()]).unwrap().remove(0);
            environment.local_ports =
                [("consumer".to_owned(), page), ("gate".to_owned(), gate)].into();
            assert_eq!(answer(&environment.endpoints(&services, false)), expected);
        }
    }
}
