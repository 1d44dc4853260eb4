//! Permissions.

/// What a permission covers: the resource of this name, or with a `*` at its end, all whose names begin with what is before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    pub fn new(pattern: String) -> Self {
        Self(pattern)
    }

    /// Whether it covers a resource, such as `topic/dev-topic`.
    pub fn matches(&self, resource: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(prefix) => resource.starts_with(prefix),
            None => resource == self.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_covers_one_name_or_all_that_begin_with_it() {
        let covers = [
            ("topic/a", "topic/a", true),
            ("topic/a", "topic/ab", false),
            ("topic/a", "room/a", false),
            ("topic/*", "topic/a", true),
            ("topic/*", "topic/", true),
            ("topic/*", "room/a", false),
            ("topic/team-*", "topic/team-a", true),
            ("topic/team-*", "topic/other", false),
            ("*", "counts", true),
            ("counts", "counts", true),
            ("counts", "counts/a", false),
            // Only the last one is special.
            ("topic/*/a", "topic/b/a", false),
            ("topic/*/a", "topic/*/a", true),
            ("", "counts", false),
        ];
        for (pattern, resource, expected) in covers {
            let covered = Pattern::new(pattern.to_owned()).matches(resource);
            assert_eq!(covered, expected, "{pattern} covers {resource}");
        }
    }
}
