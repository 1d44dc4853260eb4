//! The manifests of the chart and of `k8s`, in every variant of configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::ensure;

use crate::command::{command, output, show};
use crate::{environments, services, tools};

/// The options with the names of topics that have the prefix of their environment.
const TOPICS: [(&str, &str); 7] = [
    ("EVENTS_TOPIC", "websocket.events"),
    ("COUNTS_TOPIC", "message"),
    ("LIKES_TOPIC", "video_clicks_ingestion"),
    ("PARTITIONED_LIKES_TOPIC", "video_clicks_partitioned"),
    (
        "LIKES_1_MIN_AGGREGATION_TOPIC_NAME",
        "one_minute_aggregation_topic",
    ),
    (
        "LIKES_5_MIN_AGGREGATION_TOPIC_NAME",
        "five_minute_aggregation_topic",
    ),
    (
        "LIKES_10_MIN_AGGREGATION_TOPIC_NAME",
        "ten_minute_aggregation_topic",
    ),
];

/// Files in `target/charts`.
pub struct Rendered {
    pub folder: PathBuf,
    /// One for each variant of configuration, below `folder`.
    pub releases: Vec<PathBuf>,
    /// What helm rendered each of them with.
    pub arguments: Vec<Vec<String>>,
    /// One for each folder of `k8s`, below `folder`; none without kubectl.
    pub manifests: Vec<PathBuf>,
}

impl Rendered {
    pub fn new() -> anyhow::Result<Self> {
        let folder = crate::target().join("charts");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("releases"))?;
        let mut rendered = Self {
            folder,
            releases: Vec::new(),
            arguments: Vec::new(),
            manifests: Vec::new(),
        };
        for environment in environments::chosen(&[])? {
            let values = values(&environment.name);
            let text = rendered.release(&environment.release, &environment.namespace, &values)?;
            let everything = output(&mut enabled(&environment.release, &values))?;
            let mut options = vec![
                (&text, "KAFKA_TOPIC", environment.topic.clone()),
                (
                    &everything,
                    "DATABASE_SCHEMA",
                    environment.database_schema.clone(),
                ),
            ];
            for (option, topic) in TOPICS {
                options.push((&everything, option, environment.prefixed(topic)));
            }
            for (text, option, value) in options {
                let line = format!("{option}: {value:?}");
                ensure!(
                    text.contains(&line),
                    "{values} must agree with environments.toml: {line}"
                );
            }
        }
        // Named as chart-testing looks for them.
        for values in files("helm/ci")? {
            let values = values.to_string_lossy();
            let name = values.strip_prefix("helm/ci/").unwrap_or(&values);
            if let Some(name) = name.strip_suffix("-values.yaml") {
                rendered.release(name, "herald", &values)?;
            }
        }
        rendered.release("strimzi-in-k8s", "herald", "k8s/strimzi/values.yaml")?;
        rendered.release("scram-in-k8s", "herald", "k8s/strimzi-scram/values.yaml")?;
        if tools::KUBECTL.find().is_some() {
            for name in ["kafka", "postgres", "strimzi", "strimzi-scram"] {
                let mut kustomize = command("kubectl", ["kustomize", &format!("k8s/{name}")]);
                show(&kustomize);
                let file = rendered.folder.join(format!("{name}.yaml"));
                fs::write(&file, output(&mut kustomize)?)?;
                rendered.manifests.push(file);
            }
        }
        Ok(rendered)
    }

    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.releases.iter().chain(&self.manifests)
    }

    /// The files as they are called in `folder`, for shorter lines.
    pub fn below<'a>(&'a self, files: &'a [PathBuf]) -> impl Iterator<Item = &'a Path> {
        files
            .iter()
            .map(|file| file.strip_prefix(&self.folder).unwrap_or(file))
    }

    fn release(&mut self, name: &str, namespace: &str, values: &str) -> anyhow::Result<String> {
        let args = [
            "template",
            name,
            "helm",
            "--namespace",
            namespace,
            "--values",
            values,
        ];
        let mut helm = command("helm", args);
        show(&helm);
        let text = output(&mut helm)?;
        let file = self.folder.join("releases").join(format!("{name}.yaml"));
        fs::write(&file, &text)?;
        self.releases.push(file);
        self.arguments.push(args.map(str::to_owned).to_vec());
        Ok(text)
    }
}

/// The release with everything that is optional.
fn enabled(name: &str, values: &str) -> Command {
    let mut helm = command("helm", ["template", name, "helm", "--values", values]);
    // Some values files allow only their own namespace.
    helm.arg("--set-string=namespace=");
    helm.args(services::everything().map(|value| format!("--set={value}")));
    helm
}

/// The values file of an environment.
pub fn values(environment: &str) -> String {
    match environment {
        "default" => "helm/values.yaml".to_owned(),
        name => format!("helm/values-{name}.yaml"),
    }
}

/// The files in a folder of the repository, in the order of their names.
fn files(folder: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for file in fs::read_dir(crate::root().join(folder))? {
        files.push(Path::new(folder).join(file?.file_name()));
    }
    files.sort();
    Ok(files)
}
