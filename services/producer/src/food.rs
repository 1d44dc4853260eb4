//! The foods that the feed names.

/// A random one of the 107 names.
pub fn random() -> &'static str {
    let all: Vec<&str> = all().collect();
    all[rand::random_range(0..all.len())]
}

fn all() -> impl Iterator<Item = &'static str> {
    include_str!("foods.txt").lines()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn there_are_107_names_that_need_no_escape_in_json() {
        let names: BTreeSet<&str> = all().collect();
        assert_eq!((names.len(), all().count()), (107, 107));
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
        assert!(
            names
                .iter()
                .all(|name| !name.is_empty() && name.bytes().all(plain))
        );
    }
}
