//! The chart has another version than that of the last tag if it is another chart.

use std::path::Path;

use anyhow::{Context, ensure};

use super::{PASSED, Rendered};
use crate::check::tally::Tally;
use crate::command::{command, output};

pub fn version(_: &Rendered) -> anyhow::Result<Tally> {
    differs(&crate::root())?;
    Ok(PASSED)
}

fn differs(repository: &Path) -> anyhow::Result<()> {
    let git = |args: &[&str]| output(command("git", args).current_dir(repository));
    let Ok(tag) = git(&["describe", "--tags", "--abbrev=0", "--match", "v*"]) else {
        println!("there is no tag yet");
        return Ok(());
    };
    let tag = tag.trim();
    let changed = git(&["diff", "--name-only", tag, "--", "helm"])?;
    let line = |chart: &str| {
        let mut lines = chart.lines();
        lines
            .find(|line| line.starts_with("version:"))
            .map(str::to_owned)
    };
    let before = line(&git(&["show", &format!("{tag}:helm/Chart.yaml")])?);
    let now = std::fs::read_to_string(repository.join("helm/Chart.yaml"))?;
    let now = line(&now).context("helm/Chart.yaml must have a version")?;
    ensure!(
        changed.is_empty() || before.as_ref() != Some(&now),
        "helm/ has changed since {tag}: give helm/Chart.yaml another version than that"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_changed_chart_needs_another_version_than_the_last_tag() {
        let folder = crate::target().join("test-version");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("helm")).unwrap();
        let git = |args: &[&str]| {
            let who = [
                "-c",
                "user.name=x",
                "-c",
                "user.email=x@example.org",
                "-c",
                "commit.gpgsign=false",
            ];
            let args = [&who[..], args].concat();
            output(command("git", args).current_dir(&folder)).unwrap()
        };
        let write =
            |file: &str, text: &str| fs::write(folder.join("helm").join(file), text).unwrap();
        write("Chart.yaml", "name: x\nversion: 1.0.0\n");
        write("values.yaml", "a: 1\n");
        git(&["init", "--quiet"]);
        git(&["add", "."]);
        git(&["commit", "--quiet", "--message", "x"]);
        differs(&folder).unwrap();
        git(&["tag", "v1.0.0"]);
        differs(&folder).unwrap();
        write("values.yaml", "a: 2\n");
        let error = differs(&folder).unwrap_err().to_string();
        assert!(error.contains("since v1.0.0"), "{error}");
        write("Chart.yaml", "name: x\nversion: 1.1.0\n");
        differs(&folder).unwrap();
    }
}
