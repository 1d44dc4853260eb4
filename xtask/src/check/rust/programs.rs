//! The test programs that cargo builds, run two at a time: most of their time they wait, above all for a Kafka.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Instant;

use anyhow::ensure;
use serde::Deserialize;

use crate::check::tally::Tally;
use crate::command::{command, output, read_lines, show, typed};

/// More would leave tests with a time limit too little of a machine with two cores.
const AT_ONCE: usize = 2;

/// Those that take longest. The first one takes as long as those up to the projector's, which need both cores: the two would run out
/// of their time limits beside each other.
const LONGEST: [(&str, &str); 10] = [
    ("consumer", "it"),
    ("producer", "it"),
    ("gateway", "it"),
    ("local", "it"),
    ("store", "it"),
    ("projector", "it"),
    ("consumer", "lib"),
    ("producer", "lib"),
    ("testing", "it"),
    ("runtime", "lib"),
];

/// The tests of one target of a package.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// The name of the package's folder.
    package: String,
    /// The name of an integration test; `lib` and `bin` for the tests beside the code.
    test: String,
    folder: PathBuf,
    executable: String,
}

/// Builds the test programs of the whole workspace: for one package, cargo would select other features of the
/// dependencies and rebuild them.
pub fn build() -> anyhow::Result<Vec<Program>> {
    let args = ["test", "--workspace", "--locked", "--no-run"];
    let mut build = command("cargo", args);
    // Errors of the compiler go to stderr.
    build.arg("--message-format=json-render-diagnostics");
    show(&build);
    let mut programs: Vec<Program> = output(&mut build)?.lines().filter_map(read).collect();
    ensure!(!programs.is_empty(), "cargo named no test program");
    programs.sort_by_key(Program::order);
    Ok(programs)
}

impl Program {
    pub fn is(&self, package: &str, test: &str) -> bool {
        self.package == package && self.test == test
    }

    /// The command that runs its tests where cargo would.
    pub fn command(&self) -> Command {
        let mut command = command(&self.executable, [] as [&str; 0]);
        command.current_dir(&self.folder);
        // Ours is that of xtask, which cargo runs.
        command.env("CARGO_MANIFEST_DIR", &self.folder);
        command
    }

    fn name(&self) -> String {
        format!("{} {}", self.package, self.test)
    }

    /// Those of unknown length come after the longest, in the order in which cargo built them.
    fn order(&self) -> usize {
        let known = LONGEST
            .iter()
            .position(|(package, test)| self.is(package, test));
        known.unwrap_or(LONGEST.len())
    }
}

/// Reads a message of cargo about what it has built.
fn read(message: &str) -> Option<Program> {
    #[derive(Deserialize)]
    struct Built {
        manifest_path: PathBuf,
        target: Target,
        profile: Profile,
        executable: Option<String>,
    }
    #[derive(Deserialize)]
    struct Target {
        kind: Vec<String>,
        name: String,
    }
    #[derive(Deserialize)]
    struct Profile {
        test: bool,
    }
    let built: Built = serde_json::from_str(message).ok()?;
    // The programs and examples are built as well.
    if !built.profile.test {
        return None;
    }
    let folder = built.manifest_path.parent()?;
    let kind = built.target.kind.first()?;
    Some(Program {
        package: folder.file_name()?.to_str()?.to_owned(),
        test: match kind.as_str() {
            "test" => built.target.name,
            _ => kind.clone(),
        },
        folder: folder.to_owned(),
        executable: built.executable?,
    })
}

/// What a program printed, and how long it took.
struct Run {
    name: String,
    seconds: f64,
    lines: Vec<String>,
    tally: Tally,
}

/// Runs all, also after a failure; `prepare` completes each command. What a program printed is shown when it has ended.
pub fn run(programs: &[Program], prepare: impl Fn(&mut Command) + Sync) -> Tally {
    let queue = Mutex::new(programs.iter());
    let next = || queue.lock().expect("no panic while it is held").next();
    let (ended, runs) = mpsc::channel();
    let (mut tally, mut durations) = (Tally::default(), Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            let (ended, next, prepare) = (ended.clone(), &next, &prepare);
            scope.spawn(move || {
                while let Some(program) = next() {
                    let mut command = program.command();
                    prepare(&mut command);
                    println!("$ {}  # {}", typed(&command), program.name());
                    _ = ended.send(run_one(program.name(), &mut command));
                }
            });
        }
        drop(ended);
        for run in runs {
            print!("{}", run.text());
            tally += run.tally;
            durations.push((run.seconds, run.name));
        }
    });
    durations.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    println!("\nslowest test programs:");
    for (seconds, name) in durations.iter().take(10) {
        println!("{seconds:>7.1} s  {name}");
    }
    tally
}

fn run_one(name: String, command: &mut Command) -> Run {
    let begin = Instant::now();
    let (mut lines, mut tally, mut has_result) = (Vec::new(), Tally::default(), false);
    let status = read_lines(command, |line| {
        tally.read_cargo(line);
        has_result |= line.starts_with("test result: ");
        lines.push(line.to_owned());
    });
    match status {
        Ok(status) if has_result => tally = tally.ended(status),
        Ok(status) => {
            lines.push(format!("error: no test result, ended with {status}"));
            tally += Tally::FAILED;
        }
        Err(error) => {
            lines.push(format!("error: {error:#}"));
            tally += Tally::FAILED;
        }
    }
    Run {
        name,
        seconds: begin.elapsed().as_secs_f64(),
        lines,
        tally,
    }
}

impl Run {
    fn text(&self) -> String {
        let (name, seconds, lines) = (&self.name, self.seconds, self.lines.join("\n"));
        format!("\n-- {name}: {}, {seconds:.1} s\n{lines}\n", self.tally)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn message(package: &str, kind: &str, name: &str, is_test: bool) -> String {
        serde_json::json!({
            "reason": "compiler-artifact",
            "manifest_path": format!("/herald/services/{package}/Cargo.toml"),
            "target": { "kind": [kind], "name": name },
            "profile": { "test": is_test },
            "executable": format!("/herald/target/debug/deps/{name}-0123"),
        })
        .to_string()
    }

    fn shell(script: &str) -> Run {
        run_one("a test".to_owned(), &mut command("sh", ["-c", script]))
    }

    #[test]
    fn a_message_about_a_test_program_names_its_package_and_folder() {
        let program = read(&message("consumer", "test", "it", true)).expect("a program");
        assert!(program.is("consumer", "it"));
        assert_eq!(program.folder, Path::new("/herald/services/consumer"));
        assert_eq!(program.executable, "/herald/target/debug/deps/it-0123");
        let beside = read(&message("consumer", "lib", "consumer", true)).expect("a program");
        assert_eq!(beside.name(), "consumer lib");
    }

    #[test]
    fn messages_about_anything_else_are_no_test_program() {
        assert_eq!(read(&message("consumer", "example", "load", false)), None);
        assert_eq!(read(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(read("   Compiling consumer v0.1.0"), None);
    }

    #[test]
    fn the_longest_programs_start_first() {
        let built = [
            ("events", "lib", "events"),
            ("consumer", "lib", "consumer"),
            ("store", "test", "it"),
            ("gateway", "test", "it"),
            ("consumer", "test", "it"),
        ];
        let built = built.map(|(package, kind, name)| message(package, kind, name, true));
        let mut programs: Vec<Program> = built.iter().filter_map(|line| read(line)).collect();
        programs.sort_by_key(Program::order);
        let names: Vec<String> = programs.iter().map(Program::name).collect();
        assert_eq!(
            names,
            [
                "consumer it",
                "gateway it",
                "store it",
                "consumer lib",
                "events lib"
            ]
        );
    }

    #[test]
    fn a_program_that_dies_without_a_result_has_failed() {
        assert_eq!(shell("kill -9 $$").tally, Tally::FAILED);
        assert_eq!(shell("exit 0").tally, Tally::FAILED);
        let passed = shell("echo 'test result: ok. 7 passed; 0 failed'").tally;
        assert_eq!((passed.passed, passed.failed), (7, 0));
        let failed = shell("echo 'test result: FAILED. 7 passed; 2 failed'; exit 101").tally;
        assert_eq!((failed.passed, failed.failed), (7, 2));
    }

    #[test]
    fn all_programs_run_after_one_has_failed() {
        let program = Program {
            package: "events".to_owned(),
            test: "lib".to_owned(),
            folder: crate::root(),
            executable: "/nothing".to_owned(),
        };
        let programs = vec![program; 5];
        assert_eq!(run(&programs, |_| {}).failed, 5);
    }
}
