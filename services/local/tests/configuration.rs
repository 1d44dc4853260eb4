//! `docs/configuration.md` lists the options of the programs: its tables are compared with them, and a failing test prints the lines
//! that belong there.

use std::fs;
use std::path::Path;

use clap::{Arg, Command, CommandFactory, Parser};

const PAGE: &str = "docs/configuration.md";
/// No option, but a variable that the producer reads.
const TIME_ZONE: &str = "TZ";

#[test]
fn the_options_that_all_services_share_are_on_the_page() {
    is_on_the_page("## All services", &shared());
}

#[test]
fn the_producers_own_options_are_on_the_page() {
    is_on_the_page("## Producer", &own(&producer::Config::command()));
}

#[test]
fn the_consumers_own_options_are_on_the_page() {
    is_on_the_page("## Consumer", &own(&consumer::Config::command()));
}

#[test]
fn the_gateways_own_options_are_on_the_page() {
    is_on_the_page("## Gateway", &own(&gateway::Config::command()));
}

#[test]
fn the_projectors_own_options_are_on_the_page() {
    is_on_the_page("## Projector", &own(&projector::Config::command()));
}

#[test]
fn the_options_of_local_that_differ_are_on_the_page() {
    is_on_the_page("## Local", &own(&local::Config::command()));
}

#[test]
fn what_configmap_data_takes_are_options_and_on_the_page() {
    let names = configmap_data();
    let commands = services();
    let variables: Vec<String> = commands.iter().flat_map(|(_, of)| variables(of)).collect();
    for name in &names {
        assert!(
            name == TIME_ZONE || variables.contains(name),
            "helm/schema.yaml allows {name} in configmap.data, which no service reads"
        );
    }
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    let sentence = format!("It takes {}.", names.join(", "));
    let page = read(PAGE).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        page.contains(&sentence),
        "{PAGE}: \"## The chart\" needs this sentence:\n\n{sentence}\n"
    );
}

/// A changed option restarts the service that reads it, and no other: for that the chart has lists of its own.
#[test]
fn the_chart_knows_which_service_reads_what_configmap_data_takes() {
    let templates = read("helm/templates/_options.tpl");
    let options_of = |component: &str| -> Vec<String> {
        let head = format!("{{{{- define \"herald.optionsOf.{component}\" -}}}}\n");
        let (_, rest) = templates.split_once(&head).expect(&head);
        let (names, _) = rest.split_once("{{- end }}").expect("an end");
        names.split_whitespace().map(str::to_owned).collect()
    };
    let of_all = options_of("all");
    for (service, command) in services() {
        let (own, read) = (options_of(service), variables(&command));
        for name in configmap_data() {
            let is_read = read.contains(&name) || (service == "producer" && name == TIME_ZONE);
            let is_listed = of_all.contains(&name) || own.contains(&name);
            assert_eq!(
                is_listed, is_read,
                "helm/templates/_options.tpl, {service}, {name}: (listed, read by the service)"
            );
        }
    }
}

#[test]
fn the_properties_on_the_page_are_taken() {
    let page = read(PAGE);
    let examples: Vec<&str> = page
        .split("```properties\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap_or_default())
        .collect();
    assert!(!examples.is_empty());
    for example in examples {
        let args = ["consumer", "--kafka-properties", example];
        let config = consumer::Config::try_parse_from(args).unwrap();
        if let Err(error) = config.kafka_client() {
            panic!("{PAGE}: {error:#}, in\n{example}");
        }
    }
}

fn read(path: &str) -> String {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    fs::read_to_string(top.join(path)).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
}

/// The names that the chart takes in `configmap.data`, sorted.
fn configmap_data() -> Vec<String> {
    let schema: serde_json::Value = serde_json::from_str(&read("helm/values.schema.json")).unwrap();
    let data = &schema["properties"]["configmap"]["properties"]["data"]["properties"];
    let mut names: Vec<String> = data.as_object().unwrap().keys().cloned().collect();
    names.sort_unstable();
    names
}

/// The rows of the table under a heading, without its head.
fn rows(heading: &str) -> Vec<String> {
    read(PAGE)
        .lines()
        .skip_while(|line| *line != heading)
        .skip(1)
        .take_while(|line| !line.starts_with("## "))
        .filter(|line| line.starts_with("| `") || line.starts_with("| ["))
        .map(str::to_owned)
        .collect()
}

fn is_on_the_page(heading: &str, wanted: &[String]) {
    let found = rows(heading);
    if found == wanted {
        return;
    }
    let missing: Vec<&String> = wanted.iter().filter(|row| !found.contains(row)).collect();
    let wrong: Vec<&String> = found.iter().filter(|row| !wanted.contains(row)).collect();
    panic!(
        "{PAGE}: the rows of \"{heading}\" are not what the code says.\n\nmissing: {missing:#?}\n\nwrong: {wrong:#?}\n\n\
        all of them, to paste:\n{}\n",
        wanted.join("\n")
    );
}

/// The services that the chart installs.
fn services() -> [(&'static str, Command); 4] {
    [
        ("producer", producer::Config::command()),
        ("consumer", consumer::Config::command()),
        ("gateway", gateway::Config::command()),
        ("projector", projector::Config::command()),
    ]
}

fn variables(command: &Command) -> Vec<String> {
    command.get_arguments().filter_map(variable).collect()
}

/// What all services describe with the same words.
fn shared() -> Vec<String> {
    let [first, others @ ..] = services().map(|(_, command)| all(&command));
    let mut rows = first;
    rows.retain(|row| others.iter().all(|other| other.contains(row)));
    rows
}

fn own(command: &Command) -> Vec<String> {
    let shared = shared();
    let mut rows = all(command);
    rows.retain(|row| !shared.contains(row));
    rows
}

fn all(command: &Command) -> Vec<String> {
    command
        .get_arguments()
        .filter(|arg| !matches!(arg.get_id().as_str(), "help" | "version"))
        .map(row)
        .collect()
}

/// `| option | variable | default | what it does |`
fn row(arg: &Arg) -> String {
    let value = arg.get_value_names().map(|names| names[0].as_str());
    let option = match (arg.get_long(), value) {
        (Some(long), _) => format!("`--{long}`"),
        (None, value) => format!("`[{}]…`", value.unwrap_or_default()),
    };
    let defaults: Vec<&str> = arg
        .get_default_values()
        .iter()
        .filter_map(|value| value.to_str())
        .collect();
    format!(
        "| {option} | {} | {} | {} |",
        code(&variable(arg).unwrap_or_default()),
        code(&defaults.join(",")),
        described(arg)
    )
}

fn variable(arg: &Arg) -> Option<String> {
    Some(arg.get_env()?.to_str()?.to_owned())
}

/// Nothing where there is none.
fn code(text: &str) -> String {
    if text.is_empty() {
        "–".to_owned()
    } else {
        format!("`{text}`")
    }
}

/// The help of an option and of the values that it chooses from; clap leaves out the last full stop.
fn described(arg: &Arg) -> String {
    let sentence = |text: String| {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let text = text.replace('|', "\\|");
        if text.ends_with('.') {
            text
        } else {
            format!("{text}.")
        }
    };
    let help = arg
        .get_long_help()
        .or(arg.get_help())
        .expect("every option has a doc comment");
    let mut words = sentence(help.to_string());
    for value in arg.get_possible_values() {
        // `true` and `false` need no words.
        if let Some(help) = value.get_help() {
            let help = sentence(help.to_string());
            words += &format!(" `{}`: {help}", value.get_name());
        }
    }
    words
}
