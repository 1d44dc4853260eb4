//! The chart and the manifests: linted, tested, rendered in every variant, and validated. Needs no cluster.

mod checkers;
mod gitops;
mod platforms;
mod rendered;
mod version;

use std::fs;
use std::thread;
use std::time::Instant;

use anyhow::{Context, ensure};

use self::checkers::{duplicate, finds_nothing, go_tool, judged, python, shown};
use self::platforms::platforms;
pub use self::rendered::Rendered;
use self::rendered::values;
use self::version::version;
use super::TestEnv;
use super::tally::Tally;
use crate::command::{command, in_parallel, output, run};
use crate::{chart, environments, services, tools};

const KUBE_SCORE: &str = "github.com/zegl/kube-score/cmd/kube-score@v1.20.0";
/// The newest that `go install` accepts: later ones have a `replace` directive.
const HELM_UNITTEST: &str = "github.com/helm-unittest/helm-unittest/cmd/helm-unittest@v1.0.0";

const PASSED: Tally = Tally {
    passed: 1,
    failed: 0,
    left_out: 0,
};

type Step = fn(&Rendered) -> anyhow::Result<Tally>;

/// They run at the same time; the longest ones begin first.
const STEPS: [(&str, Step); 15] = [
    ("unit tests", unit_tests),
    ("checkov", checkov),
    ("schemas", schemas),
    ("alerts", alerts),
    ("helm 3", gitops::same_again),
    ("reused values", gitops::reused_values),
    ("umbrella chart", gitops::dependency),
    ("lint", lint),
    ("kube-score", kube_score),
    ("generated", generated),
    ("version", version),
    ("GitOps", gitops::depends_on_nothing_else),
    ("platforms", platforms),
    ("manual", manual),
    ("package", package),
];

pub fn charts(_: &TestEnv) -> anyhow::Result<Tally> {
    let rendered = &Rendered::new()?;
    let ended = in_parallel(&STEPS, |(name, step)| {
        let begin = Instant::now();
        let tally = step(rendered).unwrap_or_else(|error| {
            println!("error: {error:#}");
            Tally::FAILED
        });
        Ok((*name, begin.elapsed().as_secs_f64(), tally))
    })?;
    let mut total = Tally::default();
    for (name, seconds, tally) in ended {
        println!("{name:<16}{seconds:>6.1} s   {tally}");
        total += tally;
    }
    Ok(total)
}

/// The schema of the values and their table are those of `helm/values.yaml`.
fn generated(_: &Rendered) -> anyhow::Result<Tally> {
    chart::check().map(|()| PASSED)
}

fn lint(_: &Rendered) -> anyhow::Result<Tally> {
    let mut tally = Tally::default();
    for environment in environments::chosen(&[])? {
        let args = ["lint", "--strict", "--quiet", "helm", "--namespace"];
        let mut helm = command("helm", args);
        helm.args([
            &environment.namespace,
            "--values",
            &values(&environment.name),
        ]);
        tally += judged(&mut helm)?;
    }
    Ok(tally)
}

/// `helm/tests`: what the templates render, and which values the chart rejects. It is shared between the processors, because
/// helm-unittest uses only one.
fn unit_tests(_: &Rendered) -> anyhow::Result<Tally> {
    let Some(program) = go_tool(HELM_UNITTEST)? else {
        return Ok(Tally::default());
    };
    let mut suites = Vec::new();
    for file in fs::read_dir(crate::root().join("helm/tests"))? {
        let file = file?;
        let path = format!("tests/{}", file.file_name().to_string_lossy());
        if path.ends_with("_test.yaml") {
            suites.push((file.metadata()?.len(), path));
        }
    }
    suites.sort();
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let mut shares = vec![(0, Vec::new()); processors];
    for (size, path) in suites.into_iter().rev() {
        let smallest = shares.iter_mut().min_by_key(|(size, _)| *size);
        let (total, paths) = smallest.expect("there is a processor");
        *total += size;
        paths.push(path);
    }
    shares.retain(|(_, paths)| !paths.is_empty());
    let tallies = in_parallel(&shares, |(_, paths)| {
        let mut tests = command(&program.to_string_lossy(), ["--strict", "helm"]);
        tests.args(paths.iter().flat_map(|path| ["--file", path]));
        let (status, text) = shown(&mut tests)?;
        let counted = text.lines().find_map(counted).unwrap_or_default();
        ensure!(counted.passed > 0, "helm-unittest ran no test");
        Ok(counted.ended(status))
    })?;
    let mut tally = Tally::default();
    for share in tallies {
        tally += share;
    }
    Ok(tally)
}

/// Strictly, against the oldest Kubernetes that Chart.yaml allows and the newest that the validator knows.
fn schemas(rendered: &Rendered) -> anyhow::Result<Tally> {
    // Custom resources have no schema in Kubernetes; check `server` validates them on a cluster.
    const CUSTOM: [&str; 3] = [
        "gateway.networking.k8s.io/",
        "kafka.strimzi.io/",
        "monitoring.coreos.com/",
    ];
    let Some(program) = python("kubernetes-validate")? else {
        return Ok(Tally::default());
    };
    let oldest = oldest()?;
    let mut tally = Tally::default();
    for version in [&["--kubernetes-version", &oldest][..], &[]] {
        let mut validate = command(&program.to_string_lossy(), ["--strict", "--quiet"]);
        validate.args(version).current_dir(&rendered.folder);
        validate.args(rendered.below(&rendered.releases));
        validate.args(rendered.below(&rendered.manifests));
        // It only warns about an unknown kind.
        tally += finds_nothing(&mut validate, |line| {
            line.contains("Couldn't find schema") && CUSTOM.iter().any(|group| line.contains(group))
        })?;
    }
    Ok(tally)
}

/// The alerting rules are valid, and fire as `helm/ci/alerts_test.yaml` expects.
fn alerts(rendered: &Rendered) -> anyhow::Result<Tally> {
    const ON: &str = "monitoring.alerts=true,monitoring.podMonitor=true";
    const RULES: &str = "templates/prometheusrule.yaml";
    let args = ["template", "herald", "helm", "--set", ON];
    let mut helm = command("helm", args);
    helm.args(services::everything().map(|value| format!("--set={value}")));
    let text = output(helm.args(["--show-only", RULES]))?;
    let (_, rules) = text
        .split_once("\nspec:\n")
        .context("a PrometheusRule has a spec")?;
    fs::write(rendered.folder.join("alerts.yaml"), rules)?;
    let mut tally = Tally::default();
    if let Some(promtool) = tools::PROMTOOL.find() {
        let test = "alerts_test.yaml";
        fs::copy(
            crate::root().join("helm/ci").join(test),
            rendered.folder.join(test),
        )?;
        for args in [
            &["check", "rules", "--lint-fatal", "alerts.yaml"][..],
            &["test", "rules", test],
        ] {
            let mut promtool = command(&promtool.to_string_lossy(), args);
            tally += judged(promtool.current_dir(&rendered.folder))?;
        }
    }
    Ok(tally)
}

/// Every alert has a section in the operations manual.
fn manual(_: &Rendered) -> anyhow::Result<Tally> {
    const MANUAL: &str = "docs/operations.md";
    let manual = fs::read_to_string(crate::root().join(MANUAL)).context(MANUAL)?;
    let headings: Vec<&str> = manual
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| line.trim_start_matches('#').trim())
        .collect();
    let rules = fs::read_to_string(crate::root().join("helm/templates/prometheusrule.yaml"))?;
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    for alert in &alerts {
        ensure!(
            rules.contains(&format!("\"alert\" \"{alert}\"")),
            "{alert} must name its own section of {MANUAL} as its runbook"
        );
    }
    let missing: Vec<&str> = alerts
        .into_iter()
        .filter(|alert| !headings.contains(alert))
        .collect();
    ensure!(
        missing.is_empty(),
        "{MANUAL} must have a heading for each alert; there is none for {}",
        missing.join(", ")
    );
    Ok(PASSED)
}

fn checkov(rendered: &Rendered) -> anyhow::Result<Tally> {
    let Some(program) = python("checkov")? else {
        return Ok(Tally::default());
    };
    let args = ["--config-file", "helm/ci/checkov.yaml", "--directory"];
    let mut checkov = command(&program.to_string_lossy(), args);
    judged(checkov.arg(rendered.folder.join("releases")))
}

/// One file at a time, or kube-score would mix up the resources of the releases.
fn kube_score(rendered: &Rendered) -> anyhow::Result<Tally> {
    let Some(program) = go_tool(KUBE_SCORE)? else {
        return Ok(Tally::default());
    };
    let exceptions = fs::read_to_string(crate::root().join("helm/ci/kube-score.args"))?;
    let exceptions = exceptions.lines().filter(|line| line.starts_with("--"));
    let version = format!("v{}", oldest()?);
    let mut score = command(
        &program.to_string_lossy(),
        ["score", "--exit-one-on-warning", "--output-format", "ci"],
    );
    score.args(["--kubernetes-version", &version]);
    score.args(exceptions);
    let mut tally = Tally::default();
    for file in rendered.below(&rendered.releases) {
        let mut score = duplicate(&score);
        score.arg(file).current_dir(&rendered.folder);
        tally += finds_nothing(&mut score, |line| {
            line.starts_with("[OK]") || line.starts_with("[SKIPPED]")
        })?;
    }
    Ok(tally)
}

/// The package does not contain the chart's own checks.
fn package(rendered: &Rendered) -> anyhow::Result<Tally> {
    let mut helm = command("helm", ["package", "helm", "--destination"]);
    run(helm.arg(&rendered.folder))?;
    let mut packages = fs::read_dir(&rendered.folder)?.flatten();
    let package = packages
        .find(|file| file.path().extension().is_some_and(|end| end == "tgz"))
        .context("helm package made no file")?;
    let unpacked = flate2::read::GzDecoder::new(fs::File::open(package.path())?);
    let mut names = Vec::new();
    for entry in tar::Archive::new(unpacked).entries()? {
        names.push(entry?.path()?.display().to_string());
    }
    let packed = |start: &str| names.iter().any(|name| name.starts_with(start));
    ensure!(
        packed("herald/templates/tests/")
            && !packed("herald/tests/")
            && !packed("herald/ci/")
            && !packed("herald/schema.yaml"),
        "helm/.helmignore must keep helm/tests, helm/ci and helm/schema.yaml out of the package, and nothing else: {names:?}"
    );
    Ok(PASSED)
}

/// `kubeVersion: ">=1.30.0-0"` is 1.30.
fn oldest() -> anyhow::Result<String> {
    let chart = fs::read_to_string(crate::root().join("helm/Chart.yaml"))?;
    chart
        .lines()
        .find_map(|line| line.strip_prefix("kubeVersion: \">="))
        .and_then(|version| version.split_once(".0-0"))
        .map(|(version, _)| version.to_owned())
        .context("helm/Chart.yaml must have kubeVersion: \">=<major>.<minor>.0-0\"")
}

/// The last lines of helm-unittest: `Tests:       2 failed, 1 errored, 85 passed, 88 total`.
fn counted(line: &str) -> Option<Tally> {
    let mut tally = Tally::default();
    for count in line.strip_prefix("Tests:")?.split(',') {
        match count.trim().split_once(' ')? {
            (n, "passed") => tally.passed += n.parse::<u32>().ok()?,
            (n, "failed" | "errored") => tally.failed += n.parse::<u32>().ok()?,
            _ => {}
        }
    }
    Some(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_helm_unittest_are_counted() {
        let line = "Tests:       2 failed, 1 errored, 85 passed, 88 total";
        let tally = Tally {
            passed: 85,
            failed: 3,
            left_out: 0,
        };
        assert_eq!(counted(line), Some(tally));
        assert_eq!(counted("Test Suites: 8 passed, 8 total"), None);
    }

    #[test]
    fn the_chart_names_the_oldest_kubernetes() {
        assert!(oldest().unwrap().starts_with("1."));
    }

    #[test]
    fn alerts_and_dashboard_use_existing_metrics() {
        let read = |path: &str| fs::read_to_string(crate::root().join(path)).unwrap();
        let paths = services::names().map(|name| format!("services/{name}/src/metrics.rs"));
        let others = [
            "services/projector/src/windows/metrics.rs",
            "services/runtime/src/http/server.rs",
        ];
        let services: Vec<String> = paths
            .chain(others.map(str::to_owned))
            .map(|path| read(&path))
            .collect();
        let services = services.join("\n");
        for path in [
            "helm/templates/prometheusrule.yaml",
            "helm/files/dashboard.json",
        ] {
            let text = read(path);
            let names: Vec<&str> = text
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .filter(|word| word.starts_with("herald_"))
                .map(|name| name.trim_end_matches("_bucket"))
                .collect();
            assert!(!names.is_empty());
            for name in names {
                assert!(
                    services.contains(&format!("\"{name}\"")),
                    "{name} in {path} is no metric"
                );
            }
        }
    }

    /// The chart names no user: `runAsNonRoot` then needs a number, and "nonroot" would keep every pod from starting.
    #[cfg(feature = "cluster")]
    #[test]
    fn the_images_have_a_numeric_user() {
        let user = crate::kubernetes::images::USER
            .split(':')
            .next()
            .unwrap_or_default();
        assert!(user.parse::<u32>().is_ok_and(|id| id > 0), "{user}");
    }

    /// The chart computes with its own copies of the services' defaults.
    #[test]
    fn the_chart_has_the_defaults_of_the_services() {
        let read = |path: &str| fs::read_to_string(crate::root().join(path)).unwrap();
        let options = read("helm/templates/_options.tpl");
        let (_, defaults) = options
            .split_once("\"herald.optionDefaults\" -}}\n")
            .unwrap();
        let (defaults, _) = defaults.split_once("{{-").unwrap();
        let paths = services::names().map(|name| format!("services/{name}/src/config.rs"));
        let services: Vec<String> = paths
            .chain(["services/runtime/src/config.rs".to_owned()])
            .map(|path| read(&path))
            .collect();
        let services = services.join("\n");
        assert!(defaults.lines().count() >= 5, "{defaults}");
        for line in defaults.lines() {
            let (option, default) = line.split_once(": ").unwrap();
            let field = format!("pub {}: ", option.to_lowercase());
            let (before, _) = services.split_once(&field).unwrap();
            let (comment, attribute) = before.rsplit_once("#[arg(").unwrap();
            let (_, comment) = comment.rsplit_once("\n\n").unwrap_or_default();
            if comment.contains(&format!("By default {default},")) {
                continue;
            }
            let attribute = attribute.replace('_', "");
            let default = default.trim_matches('"');
            // The services write some as `64 << 20`.
            let number: u64 = default.parse().unwrap_or(0);
            let shifted = |bits: u32| format!("= {} << {bits},", number >> bits);
            assert!(
                attribute.contains(&format!("\"{default}\""))
                    || attribute.contains(&format!("= {default},"))
                    || [10, 20]
                        .iter()
                        .any(|&bits| attribute.contains(&shifted(bits))),
                "{option}: {default} is not what its #[arg({attribute} says"
            );
        }
    }
}
