//! Running commands, with their command line shown first.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use anyhow::{Context, bail};

use crate::tools;

/// A command in the root of the repository. Programs installed by ./install_requirements.sh take precedence over those
/// of the same name on the PATH.
pub fn command<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(crate::root());
    command.env("PATH", tools::path());
    // `cargo xtask` describes xtask's own package to us; build scripts that read this would be run again for every other caller.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&*name);
        }
    }
    command
}

/// Shows the command as typed in a shell.
pub fn show(command: &Command) {
    println!("$ {}", typed(command));
}

/// The command as typed in a shell.
pub fn typed(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        let arg = arg.to_string_lossy();
        if arg.is_empty() || arg.contains(char::is_whitespace) {
            line += &format!(" '{arg}'");
        } else {
            line += &format!(" {arg}");
        }
    }
    line
}

/// Shows and runs it; it inherits our output.
pub fn status(command: &mut Command) -> anyhow::Result<ExitStatus> {
    show(command);
    command.status().with_context(|| cannot_run(command))
}

/// Shows and runs it; an exit code other than 0 is an error.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = status(command)?;
    if !status.success() {
        let program = command.get_program().to_string_lossy();
        bail!("{program} ended with {status}");
    }
    Ok(())
}

/// Runs it without showing it and returns its stdout. The error of a failed command contains its stderr.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| cannot_run(command))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let program = command.get_program().to_string_lossy();
        bail!("{program} ended with {}: {}", output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs commands for each item at the same time; fails with the error of the first item that has one.
pub fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    run: impl Fn(&T) -> anyhow::Result<R> + Sync,
) -> anyhow::Result<Vec<R>> {
    let results: Vec<_> = thread::scope(|scope| {
        let run = &run;
        let threads = items.iter().map(|item| scope.spawn(move || run(item)));
        let threads: Vec<_> = threads.collect();
        let results = threads.into_iter().map(|thread| thread.join());
        results
            .map(|result| result.expect("running a command does not panic"))
            .collect()
    });
    results.into_iter().collect()
}

/// Runs it without showing it, with a text as its stdin. What it prints to stdout is discarded.
pub fn with_input(command: &mut Command, input: &str) -> anyhow::Result<Output> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| cannot_run(command))?;
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    child
        .wait_with_output()
        .with_context(|| cannot_run(command))
}

/// Shows and runs it, prints each line of its output and passes it to `on_line`.
pub fn stream(command: &mut Command, mut on_line: impl FnMut(&str)) -> anyhow::Result<ExitStatus> {
    show(command);
    read_lines(command, |line| {
        println!("{line}");
        on_line(line);
    })
}

/// Runs it without showing it, and passes each line of its output to `on_line`.
pub fn read_lines(
    command: &mut Command,
    mut on_line: impl FnMut(&str),
) -> anyhow::Result<ExitStatus> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| cannot_run(command))?;
    let (sender, lines) = channel();
    let stdout = child.stdout.take().expect("stdout is a pipe");
    let stderr = child.stderr.take().expect("stderr is a pipe");
    let reader = sender.clone();
    thread::spawn(move || send_lines(stdout, &reader));
    thread::spawn(move || send_lines(stderr, &sender));
    for line in lines {
        on_line(&line);
    }
    child.wait().with_context(|| cannot_run(command))
}

fn send_lines(output: impl Read, lines: &Sender<String>) {
    for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        if lines.send(line).is_err() {
            return;
        }
    }
}

fn cannot_run(command: &Command) -> String {
    format!("cannot run {}", command.get_program().to_string_lossy())
}
