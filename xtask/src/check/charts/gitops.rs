//! What Argo CD, Flux and `helm upgrade --reuse-values` rely on: the same values always render the same resources.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::{Map, Value as Json};

use super::{PASSED, Rendered, go_tool, oldest};
use crate::check::tally::Tally;
use crate::command::{command, output, run, show};
use crate::services;

/// The newest helm 3 that Go 1.24 can build.
const HELM_3: &str = "helm.sh/helm/v3/cmd/helm@v3.19.2";

/// In a chart that is a dependency, helm adds two values: `global`, and the condition.
pub fn dependency(rendered: &Rendered) -> anyhow::Result<Tally> {
    const CHART: &str = "apiVersion: v2\nname: umbrella\nversion: 1.0.0\n\
        dependencies: [{name: herald, version: '*', condition: herald.enabled}]\n";
    let umbrella = rendered.folder.join("umbrella");
    fs::create_dir_all(umbrella.join("charts"))?;
    fs::write(umbrella.join("Chart.yaml"), CHART)?;
    let mut package = command("helm", ["package", "helm", "--destination"]);
    run(package.arg(umbrella.join("charts")))?;
    let mut tally = Tally::default();
    // The feed of foods is a second producer.
    for (enabled, deployments) in [("true", services::all().len() + 1), ("false", 0)] {
        let mut helm = command("helm", ["template", "herald"]);
        helm.arg(&umbrella);
        helm.args(services::everything().map(|value| format!("--set=herald.{value}")));
        helm.args([
            "--set",
            &format!("global.registry=x,herald.enabled={enabled}"),
        ]);
        show(&helm);
        let text = output(&mut helm)?;
        let found = text.matches("\nkind: Deployment\n").count();
        ensure!(
            found == deployments,
            "with herald.enabled={enabled} an umbrella chart has {found} Deployments, not {deployments}"
        );
        tally += PASSED;
    }
    Ok(tally)
}

/// Each variant again: helm 3 renders it as the helm on the PATH does, or without Go, that one does a second time.
pub fn same_again(rendered: &Rendered) -> anyhow::Result<Tally> {
    let helm_3 = go_tool(HELM_3)?;
    let helm = helm_3.map_or("helm".to_owned(), |path| {
        path.to_string_lossy().into_owned()
    });
    let kubernetes = format!("{}.0", oldest()?);
    for (arguments, file) in rendered.arguments.iter().zip(&rendered.releases) {
        let mut again = command(&helm, arguments);
        // A helm that Go installs knows no version of Kubernetes.
        again.args(["--kube-version", &kubernetes]);
        let text = output(&mut again)?;
        ensure!(
            sorted(&text) == sorted(&fs::read_to_string(file)?),
            "`{helm} {}` renders other resources than {}",
            arguments.join(" "),
            file.display()
        );
    }
    println!(
        "{helm} renders {} variants as before",
        rendered.releases.len()
    );
    Ok(PASSED)
}

/// helm 3 and 4 write the resources in the same order, with other empty lines between them.
fn sorted(text: &str) -> Vec<&str> {
    let documents = text.split("\n---").map(str::trim);
    let mut documents: Vec<&str> = documents
        .map(|text| text.trim_start_matches("---\n"))
        .collect();
    documents.sort_unstable();
    documents
}

/// No template depends on the cluster, the time or chance. `refusals.yaml` may look into the cluster, because it renders nothing.
pub fn depends_on_nothing_else(rendered: &Rendered) -> anyhow::Result<Tally> {
    const FUNCTIONS: [&str; 12] = [
        "lookup",
        "now",
        "ago",
        "date",
        "uuidv4",
        "shuffle",
        "getHostByName",
        "env",
        "rand",
        "gen",
        "derivePassword",
        "htpasswd",
    ];
    let mut templates = Vec::new();
    files_below(&crate::root().join("helm/templates"), &mut templates)?;
    for path in templates {
        let text = fs::read_to_string(&path)?;
        let may_look = path.ends_with("refusals.yaml");
        for word in template_words(&text) {
            let found = FUNCTIONS.iter().find(|&&name| match name {
                "rand" | "gen" => word.starts_with(name) && word.len() > name.len(),
                name => word == name,
            });
            ensure!(
                found.is_none() || (word == "lookup" && may_look),
                "{} must not call {word}: what it renders would differ from time to time, or from place to place",
                path.display()
            );
        }
    }
    for file in &rendered.releases {
        for resource in crate::chart::documents(&fs::read_to_string(file)?)? {
            let hook = &resource["metadata"]["annotations"]["helm.sh/hook"];
            ensure!(
                hook.is_null() || hook == "test",
                "{}: {} is a hook, which Argo CD and Flux treat unlike helm; only tests may be hooks",
                file.display(),
                resource["metadata"]["name"]
            );
        }
    }
    Ok(PASSED)
}

fn files_below(folder: &Path, files: &mut Vec<std::path::PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files_below(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// The words between `{{` and `}}`, without strings, comments, fields and variables.
fn template_words(text: &str) -> Vec<&str> {
    let actions = text.split("{{").skip(1);
    let actions = actions.map(|rest| rest.split("}}").next().unwrap_or_default());
    let actions = actions.filter(|action| {
        !action
            .trim_start_matches('-')
            .trim_start()
            .starts_with("/*")
    });
    actions
        .flat_map(|action| action.split('"').step_by(2))
        .flat_map(|code| code.split(|c: char| c.is_whitespace() || "()|,".contains(c)))
        .filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic()))
        .collect()
}

/// With `--reuse-values`, helm takes all values from the release's older chart: the values that it did not have must be as if they
/// had their defaults.
pub fn reused_values(rendered: &Rendered) -> anyhow::Result<Tally> {
    let chart = rendered.folder.join("reused");
    copy(&crate::root().join("helm"), &chart)?;
    let defaults = fs::read_to_string(crate::root().join("helm/files/defaults.json"))?;
    let defaults: Map<String, Json> = serde_json::from_str(&defaults)?;
    let paths: Vec<&String> = defaults.keys().collect();
    let is_required = |path: &str| path == "kafka.bootstrapServers";
    let with = |kept: &dyn Fn(usize) -> bool| -> anyhow::Result<String> {
        let mut values = Json::Object(Map::new());
        for (index, path) in paths.iter().enumerate() {
            if kept(index) || is_required(path) {
                let pointer = path.split('.').fold(&mut values, |map, key| &mut map[key]);
                *pointer = defaults[*path].clone();
            }
        }
        fs::write(chart.join("values.yaml"), values.to_string())?;
        let mut helm = command("helm", ["template", "herald"]);
        helm.arg(&chart);
        // Whatever else is there, everything is optional.
        output(helm.args(services::everything().map(|value| format!("--set={value}"))))
            .context("with values that lack some of today's")
    };
    let all = with(&|_| true)?;
    let variants: [(&str, &dyn Fn(usize) -> bool); 3] = [
        ("none but kafka.bootstrapServers", &|_| false),
        ("every second", &|index| index % 2 == 0),
        ("every other second", &|index| index % 2 == 1),
    ];
    for (what, kept) in variants {
        ensure!(
            with(kept)? == all,
            "with {what} of the values in helm/files/defaults.json, the chart renders other resources than with all of them"
        );
        println!("as with all values: with {what} of them");
    }
    Ok(PASSED)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_template_calls_is_a_function() {
        let text = "now {{- /* lookup */}} {{ .Values.now | default \"lookup\" }} {{- with (lookup \"v1\") }}{{ $now }}";
        assert_eq!(template_words(text), ["default", "with", "lookup"]);
    }
}
