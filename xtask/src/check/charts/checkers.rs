//! The validators of the chart: pinned, and installed below `target/tools` on first use.

use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use anyhow::Context;

use crate::check::python;
use crate::command::{command, run, show};
use crate::tools;

/// A program that Go builds once per version, in a minute or two; `None` without Go, which is reported as left out.
pub fn go_tool(package: &str) -> anyhow::Result<Option<PathBuf>> {
    if tools::GO.find().is_none() {
        return Ok(None);
    }
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
    let requirements = crate::root().join("helm/ci/requirements.txt");
    let programs = python::programs("tools/charts-python", &requirements)?;
    Ok(Some(programs.join(program)))
}

/// A copy of the program and arguments.
pub fn duplicate(template: &Command) -> Command {
    let program = template.get_program().to_string_lossy();
    command(&program, template.get_args())
}

/// Runs a validator; prints and counts the lines that are not `expected`.
pub fn findings(
    checker: &mut Command,
    expected: impl Fn(&str) -> bool,
) -> anyhow::Result<(ExitStatus, usize)> {
    show(checker);
    let output = checker
        .output()
        .with_context(|| format!("cannot run {}", checker.get_program().to_string_lossy()))?;
    let lines = [output.stdout, output.stderr].concat();
    let mut count = 0;
    for line in String::from_utf8_lossy(&lines).lines() {
        if !expected(line) {
            println!("{line}");
            count += 1;
        }
    }
    Ok((output.status, count))
}
