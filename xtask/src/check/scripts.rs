//! The shell scripts.

use std::fs;
use std::path::{Path, PathBuf};

use super::TestEnv;
use super::tally::Tally;
use crate::command::{command, status};

pub fn shellcheck(_: &TestEnv) -> anyhow::Result<Tally> {
    // Without style options, unlike shfmt below.
    Ok(Tally::of(status(&mut command("shellcheck", scripts()?))?))
}

pub fn shfmt(_: &TestEnv) -> anyhow::Result<Tally> {
    let mut shfmt = command("shfmt", ["-i", "2", "-ci", "-sr", "-d"]);
    Ok(Tally::of(status(shfmt.args(scripts()?))?))
}

/// Every shell script, recognised by its name or first line; paths are relative to the root.
fn scripts() -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in [
        "",
        ".ci",
        "k8s/strimzi",
        "tests/scripts",
        "xtask/images",
        "xtask/kafka",
    ] {
        for entry in fs::read_dir(crate::root().join(folder))? {
            let file = entry?.path();
            if file.is_file() && is_script(&file) {
                found.push(file.strip_prefix(crate::root())?.to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn is_script(file: &Path) -> bool {
    let by_name = file.extension().is_some_and(|extension| extension == "sh");
    by_name || fs::read(file).is_ok_and(|text| text.starts_with(b"#!/usr/bin/env bash\n"))
}
