//! The whole check: what CI runs, and what a contributor runs before a pull request.

mod charts;
#[cfg(feature = "cluster")]
mod cluster;
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
use tally::Tally;

/// Format, lints, licences, scripts and all tests; starts an Apache Kafka when HERALD_TEST_KAFKA does not name one.
///
/// Every check runs, also after one that failed. What this machine lacks is left out and listed at the end with how to get
/// it; with CI=true it is a failure. The last line is `N passed, N failed`.
#[derive(clap::Args)]
pub struct Args {
    /// Only these checks; all of them when none is named.
    #[arg(value_parser = PossibleValuesParser::new(CHECKS.iter().map(|check| check.name)))]
    names: Vec<String>,

    /// Also what takes minutes: tests marked `#[ignore]`, and HERALD_TEST_LONG=1 for the suites in JavaScript.
    #[arg(long)]
    long: bool,

    /// Show the names of the checks and what each one does.
    #[arg(long)]
    list: bool,
}

struct Check {
    name: &'static str,
    about: &'static str,
    /// Without these it cannot run.
    needs: &'static [Tool],
    /// Without these a part of it is left out.
    wants: &'static [Tool],
    /// What else this machine lacks for it, in one sentence; asked when its turn comes.
    lacks: fn() -> Option<String>,
    run: fn(&Surroundings) -> anyhow::Result<Tally>,
    /// Whether it uses the programs that `build` makes.
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

/// In the order in which they run: what fails fast comes first.
const CHECKS: &[Check] = &[
    Check {
        name: "fmt",
        about: "rustfmt changes nothing",
        run: rust::fmt,
        ..PLAIN
    },
    Check {
        name: "shellcheck",
        about: "the shell scripts have none of the known mistakes",
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
        about: "licences, sources and duplicates of the dependencies are as deny.toml allows",
        needs: &[tools::CARGO_DENY],
        run: rust::deny,
        ..PLAIN
    },
    Check {
        name: "charts",
        about: "the chart and the manifests in k8s: linted, tested, rendered in every way and judged; no cluster is needed",
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
        about: "the compiler and clippy have nothing to say",
        run: rust::clippy,
        ..PLAIN
    },
    Check {
        name: "scripts",
        about: "tests/scripts: the scripts at the top, with fake package managers",
        needs: &[tools::NODE],
        wants: &[tools::PYTHON],
        run: javascript::scripts,
        ..PLAIN
    },
    Check {
        name: "rust",
        about: "cargo test, with a real Kafka",
        run: rust::test,
        after_build: true,
        kafka: true,
        ..PLAIN
    },
    Check {
        name: "embedded",
        about: "the consumer's end-to-end tests against the embedded broker; what it cannot do is declared",
        run: rust::embedded,
        after_build: true,
        ..PLAIN
    },
    Check {
        name: "clients",
        about: "tests/clients: published clients (npm, PyPI, curl, kcat) against the services",
        needs: &[tools::NODE, tools::NPM, tools::PYTHON],
        wants: &[tools::CURL, tools::KCAT],
        run: javascript::clients,
        after_build: true,
        kafka: true,
        ..PLAIN
    },
    Check {
        name: "page",
        about: "tests/page: the page in headless Chromium; screenshots in target/screenshots",
        needs: &[tools::NODE, tools::NPM, tools::CHROMIUM],
        run: javascript::page,
        after_build: true,
        kafka: true,
        ..PLAIN
    },
    Check {
        name: "strimzi",
        about: "tests/strimzi: the rights that k8s/strimzi gives, on a Kafka that knows no others",
        needs: &[tools::NODE, tools::NPM, tools::JAVA],
        run: javascript::strimzi,
        after_build: true,
        kafka: true,
        ..PLAIN
    },
    #[cfg(feature = "cluster")]
    Check {
        name: "images",
        about: "the images: small, static, not root, readable by containerd and docker; with --long the same from any folder",
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
        about: "every manifest as the cluster's API server judges it, custom resources included",
        needs: &[tools::MINIKUBE, tools::KUBECTL, tools::HELM],
        lacks: cluster::custom_resources,
        run: cluster::server,
        ..PLAIN
    },
    #[cfg(feature = "cluster")]
    Check {
        name: "delivery",
        about: "on minikube: nothing is lost while pods come and go, port-forwards follow them",
        needs: &[tools::MINIKUBE, tools::KUBECTL, tools::HELM],
        lacks: cluster::running,
        run: cluster::delivery,
        ..PLAIN
    },
    #[cfg(feature = "cluster")]
    Check {
        name: "ingress",
        about: "tests/ingress: all doors through nginx with TLS, to three replicas here and to three pods on minikube",
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
];

/// What the checks find.
struct Surroundings {
    long: bool,
    kafka: Option<Kafka>,
}

impl Surroundings {
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
    let mut surroundings = Surroundings {
        long: args.long,
        kafka: None,
    };
    if chosen.iter().any(|check| check.kafka) {
        match kafka::given_or_started() {
            Ok(kafka) => surroundings.kafka = Some(kafka),
            Err(error) => report.left_out("tests against Kafka", &format!("{error:#}")),
        }
        if surroundings
            .kafka
            .as_ref()
            .is_some_and(|kafka| kafka.jars.is_none())
        {
            let why = "a Kafka to stop and start needs java and mvn";
            report.left_out("tests that break Kafka", why);
        }
    }
    for check in chosen {
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
        report.run(check, &surroundings);
    }
    // Kafka ends before the last line is written.
    drop(surroundings);
    Ok(report.end())
}

/// The checks named, and the build when one of them uses it.
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
    /// A line for each check that ran, with its seconds.
    lines: Vec<(f64, String)>,
    missing: Vec<String>,
    left_out: Vec<String>,
    build_failed: bool,
}

impl Report {
    fn run(&mut self, check: &Check, surroundings: &Surroundings) {
        println!("\n== {}: {}", check.name, check.about);
        let begin = Instant::now();
        let tally = (check.run)(surroundings).unwrap_or_else(|error| {
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
            self.left_out.push(format!("{what}: they say why"));
        }
        self.total += tally;
    }

    /// What CI asks for must be there.
    fn left_out(&mut self, what: &str, why: &str) {
        if std::env::var("CI").as_deref() == Ok("true") {
            self.missing.push(format!("{what}: FAILED, {why}"));
            self.total += Tally::FAILED;
        } else {
            self.left_out.push(format!("{what}: {why}"));
        }
    }

    /// What takes longest comes first.
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
    fn a_check_that_uses_the_programs_brings_the_build_with_it() {
        assert_eq!(names(&chosen(&["page".into()])), ["build", "page"]);
        assert_eq!(names(&chosen(&["fmt".into()])), ["fmt"]);
    }
}
