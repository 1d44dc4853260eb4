//! Properties in the format of Kafka's own tools: one `key=value` per line.

use std::collections::HashSet;

/// One property, with its line number, from 1.
#[derive(Debug, PartialEq, Eq)]
pub struct Property<'a> {
    pub line: usize,
    pub key: &'a str,
    pub value: &'a str,
}

/// The properties in `text`; white space around keys and values is ignored. The error names a line, but no value.
pub fn parse(text: &str) -> Result<Vec<Property<'_>>, String> {
    let mut properties = Vec::new();
    let mut keys = HashSet::new();
    for (line, content) in (1..).zip(text.lines().map(str::trim)) {
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let (key, value) = content
            .split_once('=')
            .map(|(key, value)| (key.trim_end(), value.trim_start()))
            .filter(|(key, _)| !key.is_empty() && !key.contains(char::is_whitespace))
            .ok_or_else(|| format!("line {line}: not key=value"))?;
        if !keys.insert(key) {
            return Err(format!("line {line}: \"{key}\" is set for the second time"));
        }
        properties.push(Property { line, key, value });
    }
    Ok(properties)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_contain_an_equals_sign_and_be_empty() {
        let parsed = parse("a=b=c\nd=").unwrap();
        assert_eq!(
            parsed,
            [
                Property {
                    line: 1,
                    key: "a",
                    value: "b=c"
                },
                Property {
                    line: 2,
                    key: "d",
                    value: ""
                }
            ]
        );
    }

    #[test]
    fn empty_lines_and_comments_are_ignored_but_counted() {
        assert_eq!(
            parse("\r\n# a=b\n\n  c = d \r\n").unwrap(),
            [Property {
                line: 4,
                key: "c",
                value: "d"
            }]
        );
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn a_line_without_a_key_and_a_repeated_key_are_rejected() {
        assert_eq!(parse("a=1\n=2"), Err("line 2: not key=value".to_owned()));
        assert_eq!(parse("a b=2"), Err("line 1: not key=value".to_owned()));
        assert_eq!(
            parse("a=1\na=2"),
            Err("line 2: \"a\" is set for the second time".to_owned())
        );
    }
}
