//! Input that arrives in parts, cut anywhere.

/// Reads what is in `rest` and in `input`, piece by piece, and keeps in `rest` what is not yet whole. `piece` reads one from the
/// start of its bytes and returns its length; `None` if it is not whole.
///
/// # Errors
///
/// Those of `piece`.
pub fn read(
    rest: &mut Vec<u8>,
    input: &[u8],
    mut piece: impl FnMut(&[u8]) -> anyhow::Result<Option<usize>>,
) -> anyhow::Result<()> {
    let mut before = std::mem::take(rest);
    let mut whole = input;
    if !before.is_empty() {
        before.extend_from_slice(input);
        whole = &before;
    }
    let mut at = 0;
    while let Some(taken) = piece(&whole[at..])? {
        at += taken;
    }
    *rest = whole[at..].to_vec();
    Ok(())
}
