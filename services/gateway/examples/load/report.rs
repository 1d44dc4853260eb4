//! The numbers as people read them.

use std::fmt::Write as _;
use std::time::Duration;

use crate::delay::{self, Store};
use crate::frames::Frames;
use crate::measure::{Load, Measured};
use crate::statistics::{median, percentile};
use crate::{Args, Target};

/// Over this share of the server's core taken by others, times are not valid.
const DISTURBED: f64 = 0.05;

/// All rounds of all gateways.
pub struct Loads(Vec<(Target, Vec<Measured>)>);

impl Loads {
    pub fn new(targets: &[Target]) -> Self {
        Self(targets.iter().map(|target| (*target, Vec::new())).collect())
    }

    pub fn add(&mut self, target: Target, measured: Measured) {
        let of = self.0.iter_mut().find(|(of, _)| *of == target);
        of.expect("it is one of the targets").1.push(measured);
    }

    /// A table in Markdown for the checks, and one for each load. Delays are percentiles over all frames, the rest are medians over the
    /// rounds.
    pub fn table(&self, args: &Args) -> String {
        let bytes = Frames::new(args.frame_events).text().len();
        let mut text = format!(
            "{} sessions; frames of {} events and {bytes} bytes; {} partitions\n\n\
             | gateway | frames acknowledged / in Kafka | MiB resident at the end |\n| --- | --- | --- |\n",
            args.sessions, args.frame_events, args.partitions
        );
        for (target, rounds) in &self.0 {
            let sum = |of: fn(&Measured) -> u64| rounds.iter().map(of).sum::<u64>();
            let memory = median(rounds.iter().map(|round| round.memory as f64 / 1024.0));
            _ = writeln!(
                text,
                "| {} | {} / {} | {memory:.0} |",
                target.name(),
                sum(|round| round.acknowledged),
                sum(|round| round.in_kafka),
            );
        }
        let titles = [
            format!("{} frames in flight per session", args.in_flight),
            format!("{} frames per second", args.rate),
        ];
        for (index, title) in titles.iter().enumerate() {
            _ = writeln!(
                text,
                "\n| {title} | events/s | events per CPU second | / better node | acknowledgement: p50, p99 in ms | server on its core | \
                 others on it | client on the other |"
            );
            text.push_str("| --- | --- | --- | --- | --- | --- | --- | --- |\n");
            for (target, rounds) in &self.0 {
                let loads: Vec<&Load> = rounds.iter().map(|round| &round.loads[index]).collect();
                let cells = self.cells(index, &loads);
                _ = writeln!(text, "| {} | {cells} |", target.name());
            }
        }
        text
    }

    fn cells(&self, index: usize, loads: &[&Load]) -> String {
        let of = |value: fn(&Load) -> f64| median(loads.iter().map(|load| value(load)));
        let ratios = loads.iter().enumerate().filter_map(|(round, load)| {
            let better = self.better_node(index, round)?;
            Some(load.events_per_cpu / better)
        });
        let ratio = median(ratios);
        let ratio = if ratio.is_nan() {
            "-".to_owned()
        } else {
            format!("{ratio:.2}")
        };
        let mut delays: Vec<Duration> = Vec::new();
        delays.extend(loads.iter().flat_map(|load| &load.delays));
        let (half, most) = (percentile(&mut delays, 0.5), percentile(&mut delays, 0.99));
        format!(
            "{:.0} | {:.0} | {ratio} | {half:.1}, {most:.1} | {:.0} % | {} | {:.0} %",
            of(|load| load.events_per_second),
            of(|load| load.events_per_cpu),
            of(|load| load.server) * 100.0,
            others(loads.iter().map(|load| load.disturbed)),
            of(|load| load.share) * 100.0,
        )
    }

    /// Events per CPU second of the better gateway of Node.js in this round.
    fn better_node(&self, index: usize, round: usize) -> Option<f64> {
        let nodes = self
            .0
            .iter()
            .filter(|(target, _)| *target != Target::Herald);
        let loads = nodes.filter_map(|(_, rounds)| rounds.get(round));
        loads
            .map(|round| round.loads[index].events_per_cpu)
            .max_by(f64::total_cmp)
    }
}

impl Measured {
    /// One round, while others are still to come.
    pub fn line(&self) -> String {
        let loads = self.loads.iter().zip(["in flight", "steady"]);
        let loads = loads.map(|(load, name)| {
            format!(
                "; {name}: {:.0} events/s, {:.0} per CPU second, server {:.0} %, others {:.0} %",
                load.events_per_second,
                load.events_per_cpu,
                load.server * 100.0,
                load.disturbed * 100.0
            )
        });
        let loads: String = loads.collect();
        format!("{} / {} frames{loads}", self.acknowledged, self.in_kafka)
    }
}

/// All rounds of all databases.
pub struct Delays(Vec<(Store, Vec<delay::Measured>)>);

impl Delays {
    pub fn new(stores: &[Store]) -> Self {
        Self(
            stores
                .iter()
                .map(|store| (store.clone(), Vec::new()))
                .collect(),
        )
    }

    pub fn add(&mut self, store: &Store, measured: delay::Measured) {
        let of = self.0.iter_mut().find(|(of, _)| of == store);
        of.expect("it is one of the stores").1.push(measured);
    }

    /// A table in Markdown. Delays are percentiles over all rounds.
    pub fn table(&self, args: &Args) -> String {
        let mut text = format!(
            "{} sessions, {} frames of {} events per second\n\n\
             | database | frames acknowledged / in Kafka | events in documents | to the acknowledgement: p50, p99 in ms | \
             to the document: p50, p99, max in ms (reads) | gateway, projector on their core | others on it |\n\
             | --- | --- | --- | --- | --- | --- | --- |\n",
            args.delay_sessions, args.delay_rate, args.frame_events
        );
        for (store, rounds) in &self.0 {
            _ = writeln!(text, "| {} | {} |", store.name(), cells(rounds));
        }
        text
    }
}

fn cells(rounds: &[delay::Measured]) -> String {
    let sum = |of: fn(&delay::Measured) -> u64| rounds.iter().map(of).sum::<u64>();
    let of = |value: fn(&delay::Measured) -> f64| median(rounds.iter().map(value)) * 100.0;
    let all = |of: fn(&delay::Measured) -> &Vec<Duration>| -> Vec<Duration> {
        rounds.iter().flat_map(of).copied().collect()
    };
    let (mut kafka, mut document) = (
        all(|round| &round.to_kafka),
        all(|round| &round.to_document),
    );
    format!(
        "{} / {} | {} | {:.1}, {:.1} | {:.1}, {:.1}, {:.1} ({}) | {:.0} %, {:.0} % | {}",
        sum(|round| round.acknowledged),
        sum(|round| round.in_kafka),
        sum(|round| round.events),
        percentile(&mut kafka, 0.5),
        percentile(&mut kafka, 0.99),
        percentile(&mut document, 0.5),
        percentile(&mut document, 0.99),
        percentile(&mut document, 1.0),
        document.len(),
        of(|round| round.gateway),
        of(|round| round.projector),
        others(rounds.iter().map(|round| round.disturbed)),
    )
}

impl delay::Measured {
    /// One round, while others are still to come.
    pub fn line(&self) -> String {
        let mut delays = self.to_document.clone();
        format!(
            "{} / {} frames, {} events in documents; to the document: {:.1} ms p50, {:.1} ms p99; gateway {:.0} %, projector {:.0} %, \
             others {:.0} %, client {:.0} %",
            self.acknowledged,
            self.in_kafka,
            self.events,
            percentile(&mut delays, 0.5),
            percentile(&mut delays, 0.99),
            self.gateway * 100.0,
            self.projector * 100.0,
            self.disturbed * 100.0,
            self.share * 100.0,
        )
    }
}

/// The largest of the rounds.
fn others(shares: impl Iterator<Item = f64>) -> String {
    let disturbed = shares.fold(0.0, f64::max);
    let note = if disturbed > DISTURBED {
        ": no times"
    } else {
        ""
    };
    format!("{:.0} %{note}", disturbed * 100.0)
}
