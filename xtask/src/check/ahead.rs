//! What is built and run in the time that other checks leave of the processor: they wait more than they compute.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, ExitStatus};

use crate::command::command;
use crate::tools;

/// Commands of this program, one after the other.
#[derive(Default)]
pub struct Ahead(RefCell<Queue>);

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Task>,
    started: Vec<(&'static str, Child)>,
}

struct Task {
    /// Of the check that uses the result.
    check: &'static str,
    args: Vec<&'static str>,
}

impl Ahead {
    /// For the checks that were chosen.
    pub fn new(chosen: impl Iterator<Item = &'static str>, long: bool) -> Self {
        let tasks = chosen.filter_map(|check| {
            let mut args = match check {
                "images" => vec!["images"],
                "fuzz" if tools::CXX.find().is_some() => vec!["check", "fuzz"],
                _ => return None,
            };
            if check == "fuzz" && long {
                args.push("--long");
            }
            Some(Task { check, args })
        });
        Self(RefCell::new(Queue {
            waiting: tasks.collect(),
            started: Vec::new(),
        }))
    }

    /// Starts the next one, unless one is running.
    pub fn start(&self) {
        let mut queue = self.0.borrow_mut();
        let last = queue.started.last_mut();
        if last.is_some_and(|(_, child)| matches!(child.try_wait(), Ok(None))) {
            return;
        }
        if let Some(Task { check, args }) = queue.waiting.pop_front()
            && let Ok(child) = spawn(check, &args)
        {
            queue.started.push((check, child));
        }
    }

    /// Waits for that of a check to end; `None` if it was not started, and will not be.
    pub fn wait(&self, check: &str) -> Option<ExitStatus> {
        let mut queue = self.0.borrow_mut();
        queue.waiting.retain(|task| task.check != check);
        let (_, child) = queue.started.iter_mut().find(|(name, _)| *name == check)?;
        child.wait().ok()
    }
}

/// What the one of a check prints.
pub fn log(check: &str) -> PathBuf {
    crate::target().join(format!("{check}.log"))
}

fn spawn(check: &str, args: &[&str]) -> anyhow::Result<Child> {
    // The check has built this program again, so the file that it was started from may be gone.
    let program = match cfg!(target_os = "linux") {
        true => PathBuf::from(format!("/proc/{}/exe", std::process::id())),
        false => std::env::current_exe()?,
    };
    let program = program.to_string_lossy();
    // A process that is idle to the scheduler stops as soon as a test has something to do; one that is only nice ends its slice.
    let mut idle = match tools::find("chrt") {
        Some(chrt) => command(&chrt.to_string_lossy(), ["--idle", "0", &program]),
        None => command("nice", ["-n", "19", &program]),
    };
    let log = File::create(log(check))?;
    idle.args(args).stdout(log.try_clone()?).stderr(log);
    Ok(idle.spawn()?)
}
