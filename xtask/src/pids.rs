//! port_forward_pids.txt: the background processes, for ./kill_port_forward.sh and for us.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

/// A line: a process id, and a name where several processes may run.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    pub id: u32,
    pub name: String,
}

pub fn read() -> Vec<Listed> {
    parse(&fs::read_to_string(file()).unwrap_or_default())
}

/// Lists a process, replacing the one of the same name.
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

/// The command line of the process with this id, which may have been reused; empty when there is none.
pub fn command_line(id: u32) -> String {
    if let Ok(words) = fs::read(format!("/proc/{id}/cmdline")) {
        let line = String::from_utf8_lossy(&words).replace('\0', " ");
        return line.trim_end().to_owned();
    }
    let ps = Command::new("ps")
        .args(["-ww", "-o", "args=", "-p", &id.to_string()])
        .output();
    ps.map_or(String::new(), |ps| {
        String::from_utf8_lossy(&ps.stdout).trim().to_owned()
    })
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
    fn a_line_is_an_id_and_an_optional_name() {
        let listed = |id, name: &str| Listed {
            id,
            name: name.to_owned(),
        };
        let expected = [listed(12, "dev"), listed(34, "")];
        assert_eq!(parse("12 dev\n\nnonsense\n34\n"), expected);
    }

    #[test]
    fn a_running_process_has_a_command_line_and_a_missing_one_does_not() {
        assert!(command_line(std::process::id()).contains("xtask"));
        assert_eq!(command_line(u32::MAX), "");
    }
}
