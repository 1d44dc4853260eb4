//! Programs from PyPI, in a virtual environment for each list of requirements.

use std::fs;
use std::path::{Path, PathBuf};

use crate::command::{command, run};

/// Installs `requirements` below `target/<name>`, unless they are installed; returns the folder of the programs.
pub fn programs(name: &str, requirements: &Path) -> anyhow::Result<PathBuf> {
    let venv = crate::target().join(name);
    let had = venv.join("requirements.txt");
    if fs::read(&had).ok() != Some(fs::read(requirements)?) {
        let _ = fs::remove_dir_all(&venv);
        run(command("python3", ["-m", "venv"]).arg(&venv))?;
        let pip = venv.join("bin/pip");
        let mut install = command(&pip.to_string_lossy(), ["install", "--quiet", "-r"]);
        run(install.arg(requirements))?;
        fs::copy(requirements, &had)?;
    }
    Ok(venv.join("bin"))
}
