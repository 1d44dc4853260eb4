//! The whole check: what CI runs, and what a contributor runs before a pull request.

mod ahead;
mod charts;
#[cfg(feature = "cluster")]
mod cluster;
mod fuzz;
#[cfg(feature = "cluster")]
mod images;
mod javascript;
mod python;
mod rust;
mod scripts;
mod tally;

use std::process::ExitCode;
use std::time::Instant;

use clap::builder::PossibleValuesParser;

use crate::kafka::{self, Kafka};
use crate::tools::{self, Tool};
use ahead::Ahead;
use tally::Tally;

/// Format, lints, licences, scripts and all tests; starts an Apache Kafka when HERALD_TEST_KAFKA does not name one.
///
/// Every check runs, even after a failure. Checks whose tools are missing are left out and listed at the end with how
/// to install them; with CI=true they fail. The last line is `N passed, N failed`.
#[derive(clap::Args)]
pub struct Args {
    /// Only these checks; all of them when none is named.
    #[arg(value_parser = PossibleValuesParser::new(CHECKS.iter().map(|check| check.name)))]
    names: Vec<String>,

    /// Also run tests that take minutes: those marked `#[ignore]`, and those of HERALD_TEST_LONG=1 in JavaScript.
    #[arg(long)]
    long: bool,

    /// List the checks and what each one does.
    #[arg(long)]
    list: bool,
}

struct Check {
    name: &'static str,
    about: &'static str,
    /// Tools without which it cannot run.
    needs: &'static [Tool],
    /// Tools without which a part of it is left out.
    wants: &'static [Tool],
    /// What else is missing on this machine, in one sentence; called just before the check.
    lacks: fn() -> Option<String>,
    run: fn(&TestEnv) -> anyhow::Result<Tally>,
    /// Whether it uses the programs that `build` compiles.
    after_build: bool,
    kafka: bool,
}

const PLAIN: Check = Check {
    name: "",
    about: "",
    needs: &[],
    wants: &[],
    lacks: || None,
    run: |_| Ok(Tally::default()),
    after_build: false,
    kafka: false,
};

/// In the order in which they run: fast failures first.
const CHECKS: &[Check] = &[
    Check {
        name: "fmt",
        about: "rustfmt changes nothing",
        run: rust::fmt,
        ..PLAIN
    },
    Check {
        name: "shellcheck",
        about: "shellcheck finds nothing in the shell scripts",
        needs: &[tools::SHELLCHECK],
        run: scripts::shellcheck,
        ..PLAIN
    },
    Check {
        name: "shfmt",
        about: "the shell scripts are formatted",
        needs: &[tools::SHFMT],
        run: scripts::shfmt,
        ..PLAIN
    },
    Check {
        name: "deny",
        about: "deny.toml allows the licences, sources and duplicates of the dependencies",
        needs: &[tools::CARGO_DENY],
        run: rust::deny,
        ..PLAIN
    },
    Check {
        name: "charts",
        about: "the chart and the manifests in k8s: linted, tested, rendered in every variant, validated; needs no cluster",
        needs: &[tools::HELM],
        wants: &[tools::KUBECTL, tools::PYTHON, tools::GO, tools::PROMTOOL],
        run: charts::charts,
        ..PLAIN
    },
    Check {
        name: "build",
        about: "everything builds",
        run: rust::build,
        ..PLAIN
    },
    Check {
        name: "clippy",
        about: "the compiler and clippy report no warnings",
        run: rust::clippy,
        ..PLAIN
    },
    Check {
        name: "scripts",
        about: "tests/scripts: the scripts in the root folder, with fake package managers",
        needs: &[tools::NODE],
        wants: &[tools::PYTHON],
        run: javascript::scripts,
        ..PLAIN
    },
    Check {
        name: "rust",
        about: "cargo test, with a real Kafka and a real PostgreSQL",
        wants: &[tools::POSTGRES],
        run: rust::test,
        after_build: true,
        kafka: true,
        ..PLAIN
    },
    Check {
        name: "embedded",
        about: "the consumer's end-to-end tests against the embedded broker; what it does not support is declared",
        run: rust::embedded,
        after_build: true,
        ..PLAIN
    },
    Check {
        name: "clients",
        about: "tests/clients: published clients (npm, PyPI, curl, kcat) against the services",
        needs: &[tools::NODE, tools::NPM, tools::PYTHON],
        wants: &[tools::CURL, tools::KCAT, tools::SLOWHTTPTEST],
        run: javascript::clients,
        after_build: true,
        kafka: true,
        ..PLAIN
    },
    Check {
        name: "page",
        about: "tests/page: the page in headless Chromium; screenshots in target/screenshots",
        needs: &[tools::NODE, tools::NPM, tools::CHROMIUM],
        wants: &[tools::NGINX],
        run: javascript::page,
        after_build: true,
        kafka: true,
        ..PLAIN
    },
    Check {
        name: "strimzi",
        about: "tests/strimzi: the permissions that k8s/strimzi grants, on a Kafka that grants no others",
        needs: &[tools::NODE, tools::NPM, tools::JAVA],
        run: javascript::strimzi,
        after_build: true,
        kafka: true,
        ..PLAIN
    },
    #[cfg(feature = "cluster")]
    Check {
        name: "images",
        about: "the images: small, static, non-root, readable by containerd and docker; with --long, reproducible",
        wants: &[tools::PYTHON, tools::SKOPEO],
        run: images::images,
        ..PLAIN
    },
    #[cfg(feature = "cluster")]
    Check {
        name: "setup",
        about: "tests/cluster: ./setup.sh on minikube, from nothing, again, after changes and after damage",
        needs: &[
            tools::NODE,
            tools::NPM,
            tools::CHROMIUM,
            tools::MINIKUBE,
            tools::KUBECTL,
            tools::HELM,
        ],
        lacks: cluster::disposable,
        run: javascript::cluster,
        ..PLAIN
    },
    #[cfg(feature = "cluster")]
    Check {
        name: "server",
        about: "the cluster's API server validates every manifest, custom resources included",
        needs: &[tools::MINIKUBE, tools::KUBECTL, tools::HELM],
        lacks: cluster::custom_resources,
        run: cluster::server,
        ..PLAIN
    },
    #[cfg(feature = "cluster")]
    Check {
        name: "delivery",
        about: "on minikube: no message is lost when pods restart or scale, and port-forwards follow them",
        needs: &[tools::MINIKUBE, tools::KUBECTL, tools::HELM],
        lacks: cluster::running,
        run: cluster::delivery,
        ..PLAIN
    },
    #[cfg(feature = "cluster")]
    Check {
        name: "ingress",
        about: "tests/ingress: all transports through nginx with TLS, to three local replicas and three pods on minikube",
        needs: &[
            tools::NODE,
            tools::NPM,
            tools::NGINX,
            tools::MINIKUBE,
            tools::KUBECTL,
            tools::HELM,
        ],
        lacks: cluster::running,
        run: cluster::ingress,
        after_build: true,
        kafka: true,
        ..PLAIN
    },
    Check {
        name: "fuzz",
        about: "fuzz: what reads from clients, Kafka and files holds for made-up input; a minute per target, with --long ten",
        needs: &[tools::CXX],
        run: fuzz::fuzz,
        ..PLAIN
    },
];

/// The options and the Kafka that the checks share.
struct TestEnv {
    long: bool,
    kafka: Option<Kafka>,
    ahead: Ahead,
}

impl TestEnv {
    fn variables(&self) -> Vec<(&'static str, String)> {
        let mut variables = self.kafka.as_ref().map_or(Vec::new(), Kafka::variables);
        if self.long {
            variables.push(("HERALD_TEST_LONG", "1".to_owned()));
        }
        variables
    }
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.list {
        for check in CHECKS {
            println!("{:<12}{}", check.name, check.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = chosen(&args.names);
    let mut report = Report::default();
    let mut env = TestEnv {
        long: args.long,
        kafka: None,
        ahead: Ahead::new(chosen.iter().map(|check| check.name), args.long),
    };
    if chosen.iter().any(|check| check.kafka) {
        match kafka::given_or_started() {
            Ok(kafka) => env.kafka = Some(kafka),
            Err(error) => report.left_out("tests against Kafka", &format!("{error:#}")),
        }
        if env.kafka.as_ref().is_some_and(|kafka| kafka.jars.is_none()) {
            let why = "stopping and starting a Kafka needs java and mvn";
            report.left_out("tests that break Kafka", why);
        }
    }
    let mut tests_wait = false;
    for check in chosen {
        // From here on, most tests wait for Kafka.
        tests_wait |= check.kafka && !report.build_failed;
        if tests_wait {
            env.ahead.start();
        }
        if check.after_build && report.build_failed {
            println!("\n{}: not run, since the build failed", check.name);
            continue;
        }
        if let Some(tool) = check.needs.iter().find(|tool| tool.find().is_none()) {
            report.left_out(check.name, &tool.missing());
            continue;
        }
        if let Some(why) = (check.lacks)() {
            report.left_out(check.name, &why);
            continue;
        }
        for tool in check.wants.iter().filter(|tool| tool.find().is_none()) {
            report.left_out(&format!("a part of {}", check.name), &tool.missing());
        }
        report.run(check, &env);
    }
    // Kafka stops before the last line is written.
    drop(env);
    Ok(report.end())
}

/// The named checks, and the build if one of them uses it.
fn chosen(names: &[String]) -> Vec<&'static Check> {
    let named = |check: &Check| names.is_empty() || names.iter().any(|name| name == check.name);
    let build = CHECKS.iter().any(|check| check.after_build && named(check));
    CHECKS
        .iter()
        .filter(|check| named(check) || (build && check.name == "build"))
        .collect()
}

#[derive(Default)]
struct Report {
    total: Tally,
    /// The duration in seconds and the line of each check that ran.
    lines: Vec<(f64, String)>,
    missing: Vec<String>,
    left_out: Vec<String>,
    build_failed: bool,
}

impl Report {
    fn run(&mut self, check: &Check, env: &TestEnv) {
        println!("\n== {}: {}", check.name, check.about);
        let begin = Instant::now();
        let tally = (check.run)(env).unwrap_or_else(|error| {
            println!("error: {error:#}");
            Tally::FAILED
        });
        let seconds = begin.elapsed().as_secs_f64();
        let result = if tally.failed == 0 { "ok" } else { "FAILED" };
        let line = format!("{:<12}{result:<8}{seconds:>7.1} s   {tally}", check.name);
        println!("{line}");
        self.lines.push((seconds, line));
        self.build_failed |= check.name == "build" && tally.failed > 0;
        if tally.left_out > 0 {
            let what = format!("{} tests of {}", tally.left_out, check.name);
            self.left_out.push(format!("{what}: see their output"));
        }
        self.total += tally;
    }

    /// In CI, a missing requirement is a failure.
    fn left_out(&mut self, what: &str, why: &str) {
        if std::env::var("CI").as_deref() == Ok("true") {
            self.missing.push(format!("{what}: FAILED, {why}"));
            self.total += Tally::FAILED;
        } else {
            self.left_out.push(format!("{what}: {why}"));
        }
    }

    /// Prints the slowest checks first.
    fn end(mut self) -> ExitCode {
        self.lines.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let seconds: f64 = self.lines.iter().map(|(seconds, _)| seconds).sum();
        println!();
        for (_, line) in &self.lines {
            println!("{line}");
        }
        println!("{:<20}{seconds:>7.1} s", "in all");
        for line in &self.missing {
            println!("{line}");
        }
        if !self.left_out.is_empty() {
            println!("\nleft out:\n  {}", self.left_out.join("\n  "));
        }
        println!(
            "\n{} passed, {} failed",
            self.total.passed, self.total.failed
        );
        if self.total.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(chosen: &[&Check]) -> Vec<&'static str> {
        chosen.iter().map(|check| check.name).collect()
    }

    #[test]
    fn without_names_all_checks_run() {
        assert_eq!(chosen(&[]).len(), CHECKS.len());
    }

    #[test]
    fn a_check_that_uses_the_programs_includes_the_build() {
        assert_eq!(names(&chosen(&["page".into()])), ["build", "page"]);
        assert_eq!(names(&chosen(&["fmt".into()])), ["fmt"]);
    }
}
