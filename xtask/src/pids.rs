//! port_forward_pids.txt: what runs in the background, for ./kill_port_forward.sh and for us.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

/// A line: a process id, and a name where there may be several.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    pub id: u32,
    pub name: String,
}

pub fn read() -> Vec<Listed> {
    parse(&fs::read_to_string(file()).unwrap_or_default())
}

/// Lists a process in the place of the one that had its name.
pub fn add(id: u32, name: &str) -> anyhow::Result<()> {
    let mut all = read();
    all.retain(|listed| listed.name != name);
    all.push(Listed {
        id,
        name: name.to_owned(),
    });
    write(&all)
}

pub fn remove(name: &str) -> anyhow::Result<()> {
    let mut all = read();
    all.retain(|listed| listed.name != name);
    write(&all)
}

/// The words of the command that runs under this id; none when it has ended, perhaps leaving its number to a stranger.
pub fn arguments(id: u32) -> Vec<String> {
    if let Ok(line) = fs::read(format!("/proc/{id}/cmdline")) {
        let words = line
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty());
        return words
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
    }
    let ps = Command::new("ps")
        .args(["-o", "args=", "-p", &id.to_string()])
        .output();
    let line = ps.map_or(String::new(), |ps| {
        String::from_utf8_lossy(&ps.stdout).into_owned()
    });
    line.split_whitespace().map(str::to_owned).collect()
}

fn parse(text: &str) -> Vec<Listed> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some(Listed {
            id: words.next()?.parse().ok()?,
            name: words.next().unwrap_or_default().to_owned(),
        })
    });
    lines.collect()
}

fn write(all: &[Listed]) -> anyhow::Result<()> {
    let file = file();
    let written = if all.is_empty() {
        fs::remove_file(&file).or_else(|error| match error.kind() {
            ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })
    } else {
        let lines = all
            .iter()
            .map(|listed| format!("{} {}", listed.id, listed.name));
        let lines: Vec<String> = lines.map(|line| line.trim().to_owned() + "\n").collect();
        fs::write(&file, lines.concat())
    };
    written.with_context(|| format!("cannot write {}", file.display()))
}

fn file() -> PathBuf {
    crate::root().join("port_forward_pids.txt")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_id_and_perhaps_a_name() {
        let listed = |id, name: &str| Listed {
            id,
            name: name.to_owned(),
        };
        let expected = [listed(12, "dev"), listed(34, "")];
        assert_eq!(parse("12 dev\n\nnonsense\n34\n"), expected);
    }

    #[test]
    fn the_words_of_a_running_process_are_known_and_those_of_none_are_not() {
        let words = arguments(std::process::id());
        assert!(words[0].contains("xtask"), "{words:?}");
        assert!(arguments(u32::MAX).is_empty());
    }
}
