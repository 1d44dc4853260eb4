//! Computes results again from Kafka, and compares them with what is stored.

mod counts;
mod log;
mod windows;

use anyhow::{Context as _, bail};
use herald_runtime::config::invalid;

use crate::projection::Projection;
use crate::{Config, Kind};
use log::Log;

/// Verifies the counts and the windows of the chosen projections, and prints for each what was compared, from which offset on,
/// and whether it is equal.
///
/// # Errors
///
/// If a result differs, or cannot be compared.
pub async fn verify(config: Config) -> anyhow::Result<()> {
    let counts = config.chosen()?.contains(&Projection::Counts);
    let windows = config.projections.contains(&Kind::Windows);
    if !counts && !windows {
        return Err(invalid(
            "there are no counts and no windows in --projections",
        ));
    }
    let state = match counts {
        true => Some(counts::stored(&config).await?),
        false => None,
    };
    // librdkafka blocks.
    let reports = tokio::task::spawn_blocking(move || {
        let log = Log::new(&config)?;
        let mut reports = Vec::new();
        if let Some(state) = state {
            reports.push(counts::compare(&config, &log, &state)?);
        }
        if windows {
            reports.push(windows::compare(&config, &log)?);
        }
        anyhow::Ok(reports)
    });
    let reports = reports.await.context("the verification panicked")??;
    for report in &reports {
        print!("{report}");
    }
    if reports.iter().any(|report| !report.differences.is_empty()) {
        bail!("the results differ from those computed from Kafka");
    }
    Ok(())
}

/// The result of a comparison.
#[derive(Debug, Default)]
struct Report {
    /// What was compared, and what could not be: sentences.
    compared: Vec<String>,
    /// What differs: sentences. The results are equal if there are none.
    differences: Vec<String>,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        /// More would hide the rest.
        const SHOWN: usize = 20;
        for sentence in &self.compared {
            writeln!(f, "{sentence}")?;
        }
        for sentence in self.differences.iter().take(SHOWN) {
            writeln!(f, "  different: {sentence}")?;
        }
        match self.differences.len() {
            0 => writeln!(f, "  equal"),
            count if count > SHOWN => writeln!(f, "  and {} more", count - SHOWN),
            _ => Ok(()),
        }
    }
}
