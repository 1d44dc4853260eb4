//! The validators of the chart: pinned, and installed below `target/tools` on first use.

use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;

use super::PASSED;
use crate::check::python;
use crate::check::tally::Tally;
use crate::command::{command, run, typed};
use crate::tools;

/// Held while something is installed: steps that run at the same time may need the same program.
static INSTALLS: Mutex<()> = Mutex::new(());

/// A program that Go builds once per version, in a minute or two; `None` without Go, which is reported as left out.
pub fn go_tool(package: &str) -> anyhow::Result<Option<PathBuf>> {
    if tools::GO.find().is_none() {
        return Ok(None);
    }
    let _alone = INSTALLS.lock().unwrap_or_else(PoisonError::into_inner);
    let (path, _) = package.split_once('@').context("a package has a version")?;
    let name = path.rsplit('/').next().unwrap_or(path);
    let version = package.rsplit('/').next().unwrap_or(package);
    let folder = crate::target().join("tools").join(version);
    if !folder.join(name).exists() {
        let mut go = command("go", ["install", package]);
        run(go.env("GOBIN", &folder).env("CGO_ENABLED", "0"))?;
    }
    Ok(Some(folder.join(name)))
}

/// A program from helm/ci/requirements.txt, in the check's own virtual environment; `None` without Python.
pub fn python(program: &str) -> anyhow::Result<Option<PathBuf>> {
    if tools::PYTHON.find().is_none() {
        return Ok(None);
    }
    let _alone = INSTALLS.lock().unwrap_or_else(PoisonError::into_inner);
    let requirements = crate::root().join("helm/ci/requirements.txt");
    let programs = python::programs("tools/charts-python", &requirements)?;
    Ok(Some(programs.join(program)))
}

/// A copy of the program and arguments.
pub fn duplicate(template: &Command) -> Command {
    let program = template.get_program().to_string_lossy();
    command(&program, template.get_args())
}

/// Runs it, and shows it with what it printed in one piece, since others run at the same time.
pub fn shown(command: &mut Command) -> anyhow::Result<(ExitStatus, String)> {
    let (status, text) = ran(command)?;
    print!("$ {}\n{text}", typed(command));
    Ok((status, text))
}

fn ran(command: &mut Command) -> anyhow::Result<(ExitStatus, String)> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ok((output.status, text))
}

/// The same for a program that only passes or fails.
pub fn judged(command: &mut Command) -> anyhow::Result<Tally> {
    shown(command).map(|(status, _)| Tally::of(status))
}

/// The same for a program whose `expected` lines are not shown; it passes if there are no others, and it succeeded.
pub fn finds_nothing(
    checker: &mut Command,
    expected: impl Fn(&str) -> bool,
) -> anyhow::Result<Tally> {
    let (status, text) = ran(checker)?;
    let lines: Vec<&str> = text.lines().filter(|line| !expected(line)).collect();
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    print!("$ {}\n{text}", typed(checker));
    let passed = status.success() && lines.is_empty();
    Ok(if passed { PASSED } else { Tally::FAILED })
}
