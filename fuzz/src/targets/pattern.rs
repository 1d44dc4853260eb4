//! Permissions, against another way of saying what they cover.

use arbitrary::{Result, Unstructured};
use herald_runtime::http::access::fuzzing::Pattern;

pub fn check(data: &[u8]) {
    _ = compare(&mut Unstructured::new(data));
}

fn compare(input: &mut Unstructured) -> Result<()> {
    let (pattern, name): (String, String) = (input.arbitrary()?, input.arbitrary()?);
    covers(&pattern, &name);
    // Names that have something in common with it.
    let prefix: String = pattern.chars().take(input.choose_index(9)?).collect();
    for name in [
        pattern.clone(),
        prefix.clone(),
        prefix + &name,
        pattern.clone() + &name,
        pattern.trim_end_matches('*').to_owned() + &name,
    ] {
        covers(&pattern, &name);
    }
    Ok(())
}

fn covers(pattern: &str, name: &str) {
    let covered = Pattern::new(pattern.to_owned()).matches(name);
    assert_eq!(covered, is_covered(pattern, name), "{pattern:?} {name:?}");
}

/// Character by character: up to a `*` that nothing follows, they are equal.
fn is_covered(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern.chars().peekable(), name.chars());
    while let Some(expected) = pattern.next() {
        if expected == '*' && pattern.peek().is_none() {
            return true;
        }
        if name.next() != Some(expected) {
            return false;
        }
    }
    name.next().is_none()
}
