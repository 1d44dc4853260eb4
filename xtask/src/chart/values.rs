//! `helm/values.yaml` with its comments.

use anyhow::{Context, bail, ensure};
use saphyr::{LoadableYamlNode, MarkedYaml, Scalar, YamlData};
use serde_json::{Map, Value as Json};

use crate::services;

/// A value of the chart, and what `values.yaml` says about it.
pub struct Value {
    pub path: Vec<String>,
    /// The comment directly above its key, in one line.
    pub comment: String,
    pub default: Json,
    /// The values in a map, in their order.
    pub values: Vec<Value>,
}

/// All values, as a map without a name.
pub fn read(text: &str) -> anyhow::Result<Value> {
    let lines: Vec<&str> = text.lines().collect();
    let documents = MarkedYaml::load_from_str(text).context("helm/values.yaml is not YAML")?;
    let [document] = &documents[..] else {
        bail!("helm/values.yaml must be one YAML document");
    };
    value(document, Vec::new(), String::new(), &lines)
}

/// Any YAML as JSON.
pub fn json(node: &MarkedYaml) -> anyhow::Result<Json> {
    Ok(match &node.data {
        YamlData::Value(Scalar::Null) => Json::Null,
        YamlData::Value(Scalar::Boolean(value)) => (*value).into(),
        YamlData::Value(Scalar::Integer(value)) => (*value).into(),
        YamlData::Value(Scalar::FloatingPoint(value)) => value.into_inner().into(),
        YamlData::Value(Scalar::String(value)) => value.as_ref().into(),
        YamlData::Sequence(items) => items.iter().map(json).collect::<Result<_, _>>()?,
        YamlData::Mapping(pairs) => {
            let mut map = Map::new();
            for (key, value) in pairs {
                map.insert(name(key)?.to_owned(), json(value)?);
            }
            map.into()
        }
        _ => bail!("line {} is not plain YAML", node.span.start.line()),
    })
}

fn value(
    node: &MarkedYaml,
    path: Vec<String>,
    comment: String,
    lines: &[&str],
) -> anyhow::Result<Value> {
    let mut values = Vec::new();
    if let YamlData::Mapping(pairs) = &node.data {
        for (key, node) in pairs {
            let mut path = path.clone();
            path.push(name(key)?.to_owned());
            let comment = comment_above(lines, key.span.start.line());
            values.push(value(node, path, comment, lines)?);
        }
    }
    Ok(Value {
        default: json(node)?,
        path,
        comment,
        values,
    })
}

fn name<'a>(key: &'a MarkedYaml) -> anyhow::Result<&'a str> {
    let line = key.span.start.line();
    key.data
        .as_str()
        .with_context(|| format!("line {line}: a key must be a string"))
}

/// The lines that begin with `#` directly above a line, which is counted from 1.
fn comment_above(lines: &[&str], line: usize) -> String {
    let above = lines[..line - 1].iter().rev();
    let mut words: Vec<&str> = above
        .map_while(|line| line.trim_start().strip_prefix('#'))
        .map(str::trim)
        .collect();
    words.reverse();
    words.join(" ")
}

impl Value {
    pub fn name(&self) -> String {
        self.path.join(".")
    }

    /// What it is for: its own comment; that of the same key of an earlier service; that of the map around it; or what an earlier
    /// service has instead. `enabled` needs none if what it enables has one.
    pub fn sentence(&self, top: &Value) -> anyhow::Result<String> {
        let is_service = |name: &String| services::names().any(|service| service == name);
        let (first, rest) = self.path.split_first().context("a value has a path")?;
        let before = top.values.iter().take_while(|of| of.path[0] != *first);
        let services = before.filter(|of| is_service(&of.path[0]));
        let same: Vec<&Value> = services
            .filter_map(|of| top.get(&[&of.path, rest].concat()))
            .collect();
        let mut sentences = vec![self.comment.clone()];
        if is_service(first) || rest.len() > 1 {
            sentences.extend(same.iter().map(|of| of.comment.clone()));
        }
        for depth in (2..self.path.len()).rev() {
            sentences.extend(top.get(&self.path[..depth]).map(|map| map.comment.clone()));
        }
        if is_service(first) {
            sentences.extend(same.iter().filter_map(|of| of.sentence(top).ok()));
        }
        if rest == ["enabled"] {
            let about = top.get(&self.path[..1]).map_or("", |of| &of.comment);
            sentences.extend((!about.is_empty()).then(|| "`true` turns this on.".to_owned()));
        }
        let sentence = sentences.into_iter().find(|text| !text.is_empty());
        let name = self.name();
        sentence.with_context(|| {
            format!("helm/values.yaml must say in a comment above {name} what it is for")
        })
    }

    /// The value below this one.
    fn get(&self, path: &[String]) -> Option<&Value> {
        let mut value = self;
        for key in path {
            value = value.values.iter().find(|of| of.path.last() == Some(key))?;
        }
        Some(value)
    }

    pub fn check_names(&self) -> anyhow::Result<()> {
        for value in &self.values {
            ensure!(
                value.path.iter().all(|key| !key.contains('.')),
                "helm/schema.yaml must say what the keys of {} may be, because they contain dots",
                self.name()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: &str = r#"
# Not about producer.

# Sends.
producer:
  image:
    # Where it is.
    tag: ""
  # How many.
  replicas: 1
# Optional: relays
# messages.
consumer:
  enabled: false
  image:
    tag: "1"
  silent: {a.b: -1}
"#;

    fn sentence(path: &[&str]) -> anyhow::Result<String> {
        let top = read(VALUES).unwrap();
        let path: Vec<String> = path.iter().map(|&key| key.to_owned()).collect();
        top.get(&path).unwrap().sentence(&top)
    }

    #[test]
    fn a_comment_is_about_the_key_below_it() {
        assert_eq!(sentence(&["producer"]).unwrap(), "Sends.");
        assert_eq!(sentence(&["producer", "replicas"]).unwrap(), "How many.");
    }

    #[test]
    fn a_service_needs_no_sentence_that_an_earlier_one_has() {
        assert_eq!(
            sentence(&["consumer", "image", "tag"]).unwrap(),
            "Where it is."
        );
        let enabled = sentence(&["consumer", "enabled"]).unwrap();
        assert_eq!(enabled, "`true` turns this on.");
        let error = sentence(&["consumer", "silent"]).unwrap_err().to_string();
        assert!(error.contains("comment above consumer.silent"), "{error}");
    }

    #[test]
    fn values_have_their_types() {
        let top = read(VALUES).unwrap();
        assert_eq!(top.default["producer"]["replicas"], 1);
        assert_eq!(top.default["consumer"]["image"]["tag"], "1");
        assert_eq!(top.default["consumer"]["silent"]["a.b"], -1);
    }
}
