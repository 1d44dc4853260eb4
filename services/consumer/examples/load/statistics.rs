//! Figures from many measurements.

use std::time::Duration;

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// In ms.
pub fn percentile(delays: &mut [Duration], share: f64) -> f64 {
    if delays.is_empty() {
        return f64::NAN;
    }
    let index = ((delays.len() - 1) as f64 * share) as usize;
    delays.select_nth_unstable(index).1.as_secs_f64() * 1e3
}
