//! The table of the values in `helm/README.md`.

use anyhow::Context;
use serde_json::Value as Json;

use super::schema::Rules;
use super::values::Value;

const BEGIN: &str = "<!-- The rest of this section is written by `cargo xtask chart`. -->\n";
const END: &str = "<!-- Until here. -->\n";

/// The page with the current table.
pub fn with_table(page: &str, top: &Value, rules: &Rules) -> anyhow::Result<String> {
    let context = || format!("helm/README.md must have the lines {BEGIN}and {END}");
    let (before, rest) = page.split_once(BEGIN).with_context(context)?;
    let (_, after) = rest.split_once(END).with_context(context)?;
    let table = table(top, rules)?;
    Ok(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}

/// A table for each map at the top, under its comment; first those values that are in none.
fn table(top: &Value, rules: &Rules) -> anyhow::Result<String> {
    let (maps, single): (Vec<_>, Vec<_>) = top
        .values
        .iter()
        .partition(|value| !value.values.is_empty());
    let mut sections = vec![section("release", "The release as a whole.", &single, top)?];
    for map in maps {
        let leaves = leaves(map, rules);
        sections.push(section(&map.name(), &map.comment, &leaves, top)?);
    }
    Ok(sections.join("\n"))
}

fn section(name: &str, about: &str, leaves: &[&Value], top: &Value) -> anyhow::Result<String> {
    let mut text = format!("### {name}\n\n");
    if !about.is_empty() {
        text += &format!("{}\n\n", escaped(about));
    }
    text += "| value | default | purpose |\n| --- | --- | --- |\n";
    for value in leaves {
        let sentence = escaped(&value.sentence(top)?);
        text += &format!(
            "| `{}` | {} | {sentence} |\n",
            value.name(),
            shown(&value.default)
        );
    }
    Ok(text)
}

/// The values in a map, in their order; a map whose keys are the user's own is one value.
fn leaves<'a>(value: &'a Value, rules: &Rules) -> Vec<&'a Value> {
    if value.values.is_empty() || rules.is_free(value) {
        return vec![value];
    }
    let below = value.values.iter();
    below.flat_map(|value| leaves(value, rules)).collect()
}

fn shown(default: &Json) -> String {
    match default {
        Json::String(text) if text.is_empty() => "–".to_owned(),
        Json::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    }
}

/// Characters that would be Markdown or HTML.
fn escaped(text: &str) -> String {
    let text = text.replace('<', "\\<").replace('|', "\\|");
    text.replace('*', "\\*")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::values;

    #[test]
    fn the_table_has_a_section_for_each_map() {
        let values = "# One.\na: x\n# All of b.\nb:\n  # A <c>.\n  c: {}\n  # Why.\n  d: \"\"\n";
        let top = values::read(values).unwrap();
        let rules = Rules::read("values: {}").unwrap();
        let page = format!("head\n{BEGIN}old\n{END}tail\n");
        let page = with_table(&page, &top, &rules).unwrap();
        assert!(page.starts_with("head\n") && page.ends_with("tail\n"));
        assert!(!page.contains("old"));
        assert!(
            page.contains("| `a` | `x` | One. |\n\n### b\n\nAll of b.\n"),
            "{page}"
        );
        assert!(
            page.contains("| `b.c` | `{}` | A \\<c>. |\n| `b.d` | – | Why. |\n"),
            "{page}"
        );
    }
}
