//! The schema of the values: their defaults show most of it, and `helm/schema.yaml` the rest.

use anyhow::{Context, ensure};
use saphyr::{LoadableYamlNode, MarkedYaml};
use serde_json::{Map, Value as Json, json};

use super::values::{self, Value};

/// `helm/schema.yaml`, which says what it contains.
pub struct Rules(Map<String, Json>);

/// The word of `helm/schema.yaml` that is not JSON Schema.
const WHOLE: &str = "whole";

impl Rules {
    pub fn read(text: &str) -> anyhow::Result<Self> {
        let documents = MarkedYaml::load_from_str(text).context("helm/schema.yaml is not YAML")?;
        let document = documents.first().context("helm/schema.yaml is empty")?;
        let mut json = values::json(document).context("helm/schema.yaml")?;
        match json["values"].take() {
            Json::Object(rules) => Ok(Self(rules)),
            _ => anyhow::bail!("helm/schema.yaml must have a map `values`"),
        }
    }

    /// Every rule must be about some value.
    pub fn fit(&self, top: &Value) -> anyhow::Result<()> {
        fn names(value: &Value) -> Vec<&Value> {
            let below = value.values.iter().flat_map(names);
            [value].into_iter().chain(below).collect()
        }
        let values = names(top);
        for key in self.0.keys() {
            ensure!(
                values.iter().any(|value| matches(key, &value.name())),
                "helm/schema.yaml has a line for {key}, which helm/values.yaml does not have"
            );
        }
        Ok(())
    }

    /// The rule with the longest key.
    fn of(&self, value: &Value) -> Option<&Json> {
        let name = value.name();
        let rules = self.0.iter().filter(|(key, _)| matches(key, &name));
        let (_, rule) = rules.max_by_key(|(key, _)| key.len())?;
        Some(rule)
    }

    /// A map whose keys are the user's own.
    pub fn is_free(&self, value: &Value) -> bool {
        let has_rule = self
            .of(value)
            .is_some_and(|rule| rule.get("additionalProperties").is_some());
        has_rule || (value.default.is_object() && value.values.is_empty())
    }

    pub fn schema(&self, top: &Value) -> Json {
        let mut schema = self.of_value(top);
        schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
        schema["title"] = json!("Values of the Herald chart; written by `cargo xtask chart`");
        schema
    }

    fn of_value(&self, value: &Value) -> Json {
        let mut schema = self.shown(value);
        if !value.comment.is_empty() {
            schema["description"] = value.comment.clone().into();
        }
        if let Some(rule) = self.of(value) {
            merge(&mut schema, rule);
        }
        if let Json::Object(schema) = &mut schema {
            schema.remove(WHOLE);
        }
        schema
    }

    /// What the default shows.
    fn shown(&self, value: &Value) -> Json {
        match &value.default {
            Json::Null => json!({}),
            Json::Bool(_) => json!({"type": "boolean"}),
            Json::Number(number) if number.is_f64() => json!({"type": "number"}),
            Json::Number(_) => json!({"type": "integer"}),
            Json::String(_) => json!({"type": "string"}),
            Json::Array(items) => match items.first() {
                Some(Json::String(_)) => json!({"type": "array", "items": {"type": "string"}}),
                Some(Json::Number(_)) => json!({"type": "array", "items": {"type": "number"}}),
                _ => json!({"type": "array", "items": {"type": "object"}}),
            },
            Json::Object(_) if self.is_free(value) => json!({"type": "object"}),
            Json::Object(_) => {
                let of = |value: &Value| Some((value.path.last()?.clone(), self.of_value(value)));
                let properties: Map<String, Json> = value.values.iter().filter_map(of).collect();
                json!({"type": "object", "additionalProperties": false, "properties": properties})
            }
        }
    }

    /// By path, the default of each value that is used if a release does not have it.
    pub fn defaults(&self, top: &Value) -> anyhow::Result<Json> {
        let mut defaults = Map::new();
        self.add_defaults(top, &mut defaults)?;
        Ok(defaults.into())
    }

    fn add_defaults(&self, value: &Value, defaults: &mut Map<String, Json>) -> anyhow::Result<()> {
        let is_whole = self.of(value).is_some_and(|rule| rule[WHOLE] == true);
        if value.values.is_empty() || is_whole || self.is_free(value) {
            defaults.insert(value.name(), value.default.clone());
            return Ok(());
        }
        value.check_names()?;
        for value in &value.values {
            self.add_defaults(value, defaults)?;
        }
        Ok(())
    }
}

/// A key is a path or its end; the empty one is the map of all values.
fn matches(key: &str, name: &str) -> bool {
    let end = name.strip_suffix(key);
    end.is_some_and(|start| start.is_empty() || (start.ends_with('.') && !key.is_empty()))
}

/// Maps are merged, and anything else is replaced.
fn merge(into: &mut Json, from: &Json) {
    match (into, from) {
        (Json::Object(into), Json::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Json::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: &str = "
# The first.
a:
  port: 80
  hosts: []
  config: {retention.ms: \"-1\"}
  node: {}
b: {port: 1, size: {cpu: 1m}}
";

    const RULES: &str = "
values:
  port: {minimum: 1}
  a.port: {minimum: 2}
  a.hosts: {items: {type: string}}
  config: {additionalProperties: {type: string}}
  b.size: {whole: true}
";

    #[test]
    fn a_default_shows_the_type_and_a_rule_the_rest() {
        let (top, rules) = (values::read(VALUES).unwrap(), Rules::read(RULES).unwrap());
        rules.fit(&top).unwrap();
        let schema = rules.schema(&top);
        assert_eq!(schema["additionalProperties"], false);
        let [a, b] = ["a", "b"].map(|key| &schema["properties"][key]);
        assert_eq!(a["description"], "The first.");
        let a = &a["properties"];
        assert_eq!(a["port"], json!({"type": "integer", "minimum": 2}));
        assert_eq!(b["properties"]["port"]["minimum"], 1);
        assert_eq!(a["hosts"]["items"]["type"], "string");
        assert_eq!(
            a["config"],
            json!({"type": "object", "additionalProperties": {"type": "string"}})
        );
        assert_eq!(a["node"], json!({"type": "object"}));
        assert_eq!(b["properties"]["size"]["additionalProperties"], false);
        assert_eq!(b["properties"]["size"]["whole"], Json::Null);
    }

    #[test]
    fn only_maps_that_a_user_takes_from_are_used_as_a_whole() {
        let (top, rules) = (values::read(VALUES).unwrap(), Rules::read(RULES).unwrap());
        let defaults = json!({
            "a.port": 80, "a.hosts": [], "a.config": {"retention.ms": "-1"}, "a.node": {},
            "b.port": 1, "b.size": {"cpu": "1m"},
        });
        assert_eq!(rules.defaults(&top).unwrap(), defaults);
    }

    #[test]
    fn a_rule_for_no_value_is_an_error() {
        let rules = Rules::read("values: {c.port: {minimum: 1}}").unwrap();
        let error = rules.fit(&values::read(VALUES).unwrap()).unwrap_err();
        assert!(error.to_string().contains("a line for c.port"), "{error}");
    }
}
