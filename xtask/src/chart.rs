//! What the chart tells about its values, written from `helm/values.yaml` and `helm/schema.yaml`.

mod readme;
mod schema;
mod values;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use saphyr::{LoadableYamlNode, MarkedYaml};
use serde_json::Value as Json;

use self::schema::Rules;

const README: &str = "helm/README.md";
const SCHEMA: &str = "helm/values.schema.json";
/// The values that a release of an older chart does not have, for `helm/templates/before/others/defaults.yaml`.
const DEFAULTS: &str = "helm/files/defaults.json";

/// Writes the files that are not up to date.
pub fn run() -> anyhow::Result<ExitCode> {
    for (path, text) in generated()? {
        if read(path).ok().as_ref() != Some(&text) {
            fs::write(crate::root().join(path), text)
                .with_context(|| format!("cannot write {path}"))?;
            println!("{path} has changed");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Fails if a file is not what `run` writes.
pub fn check() -> anyhow::Result<()> {
    for (path, text) in generated()? {
        ensure!(
            read(path).ok().as_ref() == Some(&text),
            "{path} is not what helm/values.yaml and helm/schema.yaml say; run `cargo xtask chart`"
        );
    }
    Ok(())
}

/// The resources in a manifest.
pub fn documents(text: &str) -> anyhow::Result<Vec<Json>> {
    let documents = MarkedYaml::load_from_str(text).context("a manifest is not YAML")?;
    documents.iter().map(values::json).collect()
}

/// The paths and the contents of the files.
fn generated() -> anyhow::Result<[(&'static str, String); 3]> {
    let top = values::read(&read("helm/values.yaml")?)?;
    let rules = Rules::read(&read("helm/schema.yaml")?)?;
    rules.fit(&top)?;
    let pretty = |json| serde_json::to_string_pretty(&json).map(|text| text + "\n");
    Ok([
        (SCHEMA, pretty(rules.schema(&top))?),
        (DEFAULTS, pretty(rules.defaults(&top)?)?),
        (README, readme::with_table(&read(README)?, &top, &rules)?),
    ])
}

fn read(path: &str) -> anyhow::Result<String> {
    fs::read_to_string(crate::root().join(path)).with_context(|| format!("cannot read {path}"))
}
