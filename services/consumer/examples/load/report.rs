//! The numbers as people read them.

use std::fmt::Write as _;
use std::time::Duration;

use crate::Target;
use crate::measure::{Load, Measured, PENDING};
use crate::statistics::{median, percentile};

/// Over this share of the server's core taken by others, times say nothing.
const DISTURBED: f64 = 0.05;

/// All rounds of all servers.
pub struct Report(Vec<(Target, Vec<Measured>)>);

impl Report {
    pub fn new(targets: &[Target]) -> Self {
        Self(targets.iter().map(|target| (*target, Vec::new())).collect())
    }

    pub fn add(&mut self, target: Target, measured: Measured) {
        let of = self.0.iter_mut().find(|(of, _)| *of == target);
        of.expect("it is one of the targets").1.push(measured);
    }

    /// A table in Markdown for each load, and one for memory. CPU and its ratio to the floor are medians over the rounds, delays
    /// percentiles over all deliveries.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "| server | KiB per idle connection | after traffic |\n| --- | --- | --- |\n",
        );
        for (target, rounds) in &self.0 {
            let (idle, after) = (
                median(rounds.iter().map(|round| round.idle)),
                median(rounds.iter().map(|round| round.after)),
            );
            _ = writeln!(text, "| {} | {idle:.1} | {after:.1} |", target.name());
        }
        for (index, pending) in PENDING.into_iter().enumerate() {
            _ = writeln!(
                text,
                "\n| {pending} pending | delivered / expected | µs CPU per delivery | / floor | p50, p99, max in ms | client's core | others on the server's |"
            );
            text.push_str("| --- | --- | --- | --- | --- | --- | --- |\n");
            for (target, rounds) in &self.0 {
                let loads: Vec<&Load> = rounds.iter().map(|round| &round.loads[index]).collect();
                _ = writeln!(
                    text,
                    "| {} | {} |",
                    target.name(),
                    self.cells(index, &loads)
                );
            }
        }
        text
    }

    fn cells(&self, index: usize, loads: &[&Load]) -> String {
        let sum = |of: fn(&Load) -> u64| loads.iter().map(|load| of(load)).sum::<u64>();
        let delivered = format!(
            "{} / {}",
            sum(|load| load.delivered),
            sum(|load| load.expected)
        );
        let misplaced = match sum(|load| load.misplaced) {
            0 => String::new(),
            misplaced => format!(", {misplaced} misplaced"),
        };
        let share = loads.iter().map(|load| load.share).fold(0.0, f64::max);
        if loads.iter().any(|load| !load.counts()) {
            return format!(
                "{delivered}{misplaced} | not reported: the client used {:.0} % of its core | | | |",
                share * 100.0
            );
        }
        let floor = self.0.iter().find(|(target, _)| *target == Target::Floor);
        let ratios = floor.map(|(_, rounds)| {
            median(
                loads
                    .iter()
                    .zip(rounds)
                    .map(|(load, floor)| load.cpu / floor.loads[index].cpu),
            )
        });
        let mut delays: Vec<Duration> = loads
            .iter()
            .flat_map(|load| load.delays.iter().copied())
            .collect();
        let (half, most, all) = (
            percentile(&mut delays, 0.5),
            percentile(&mut delays, 0.99),
            percentile(&mut delays, 1.0),
        );
        let disturbed = loads.iter().map(|load| load.disturbed).fold(0.0, f64::max);
        format!(
            "{delivered}{misplaced} | {:.2} | {} | {half:.1}, {most:.1}, {all:.1} | {:.0} % | {:.0} %{}",
            median(loads.iter().map(|load| load.cpu)),
            ratios.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
            share * 100.0,
            disturbed * 100.0,
            if disturbed > DISTURBED {
                ": no times"
            } else {
                ""
            },
        )
    }
}

impl Measured {
    /// One round, while others are still to come.
    pub fn line(&self) -> String {
        let loads = self.loads.iter().zip(PENDING).map(|(load, pending)| {
            let (cpu, disturbed) = (load.cpu, load.disturbed * 100.0);
            format!(
                "; {pending} pending: {} / {}, {cpu:.2} µs, disturbed {disturbed:.0} %",
                load.delivered, load.expected
            )
        });
        format!(
            "{:.1} KiB idle, {:.1} KiB after{}",
            self.idle,
            self.after,
            loads.collect::<String>()
        )
    }
}
