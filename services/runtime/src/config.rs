//! The options of every service, and the reporting of invalid ones: one sentence on stderr and exit code 2.

use std::ffi::OsStr;
use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use jiff::SignedDuration;

/// The configuration of every service. Each option is also an environment variable: `--log-level` is `LOG_LEVEL`.
#[derive(clap::Args, Clone, Debug)]
pub struct CommonArgs {
    /// Address of the admin server: `/livez`, `/readyz` and `/metrics`. It is for operators; no Ingress should reach it.
    #[arg(long, env, default_value = "[::]:9090")]
    pub admin_listen: SocketAddr,

    /// Format of the log on stdout. By default text on a terminal, otherwise json.
    #[arg(long, env)]
    pub log_format: Option<LogFormat>,

    /// Log level (error, warn, info, debug, trace), or levels by target, such as `info,librdkafka=debug`.
    #[arg(long, env, default_value = "info", value_parser = log_level)]
    pub log_level: String,

    /// How long a clean shutdown may take after SIGTERM or SIGINT; then the service exits with code 1.
    #[arg(long, env, default_value = "30s", value_parser = duration)]
    pub shutdown_grace: Duration,
}

/// The format of the log's lines.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object per line, for machines.
    Json,
}

/// The configuration from the command line and the environment of this process. If it is invalid, the process exits with one
/// sentence and code 2; `--help` and `--version` work as usual.
pub fn parse<C: clap::Parser>() -> C {
    C::try_parse().unwrap_or_else(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => error.exit(),
        _ => {
            eprintln!("error: {}", sentence(&error));
            std::process::exit(2);
        }
    })
}

/// The configuration from `args`, of which the first is the name of the program, and from the environment of this process.
/// The error is for the user.
pub fn parse_from<C: clap::Parser>(args: &[&str]) -> anyhow::Result<C> {
    C::try_parse_from(args).map_err(|error| invalid(sentence(&error)))
}

/// A value such as `500ms`, `30s` or `2m`, for `#[arg(value_parser = config::duration)]`.
pub fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| "give a duration such as 500ms, 30s or 2m".to_owned())
}

/// A value that may contain a password, for `#[arg(value_parser = config::secret::<T>())]`: an error does not print it. Use it
/// with `hide_env_values`.
pub fn secret<T>() -> Secret<T> {
    Secret(PhantomData)
}

/// See [`secret`].
pub struct Secret<T>(PhantomData<fn() -> T>);

// Not derived, which would ask the same of `T`.
impl<T> Clone for Secret<T> {
    fn clone(&self) -> Self {
        Secret(PhantomData)
    }
}

impl<T> TypedValueParser for Secret<T>
where
    T: FromStr<Err = String> + Clone + Send + Sync + 'static,
{
    type Value = T;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<T, clap::Error> {
        let text = value.to_str().ok_or_else(|| "it is not UTF-8".to_owned());
        text.and_then(str::parse).map_err(|why| {
            let argument =
                argument.map_or_else(String::new, |argument| format!(" for '{argument}'"));
            clap::Error::raw(
                ErrorKind::ValueValidation,
                format!("invalid value{argument}: {why}"),
            )
            .with_cmd(command)
        })
    }
}

/// An error in the configuration, which the user can fix: [`fail`] returns code 2 for it.
pub fn invalid(sentence: impl Into<String>) -> anyhow::Error {
    Invalid(sentence.into()).into()
}

/// Prints `error` as one line on stderr. The exit code is 2 if the configuration is [`invalid`], otherwise 1.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {}", one_line(&format!("{error:#}")));
    ExitCode::from(if is_invalid(error) { 2 } else { 1 })
}

/// Whether `error` came from [`invalid`], under whatever context.
pub fn is_invalid(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Invalid>().is_some()
}

#[derive(Debug)]
struct Invalid(String);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}

/// clap's errors are a paragraph, a tip and the usage, on separate lines. The usage is dropped, the rest joined.
fn sentence(error: &clap::Error) -> String {
    let rendered = error.render().to_string();
    let lines: Vec<&str> = rendered
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    let joined = lines.join(" ").replace(" tip:", "; tip:");
    format!(
        "{}; --help lists all options",
        joined.trim_start_matches("error: ")
    )
}

fn one_line(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Rejects a lone word that is not a level: it would be taken for a target, and silence the log.
fn log_level(text: &str) -> Result<String, String> {
    let wrong = || {
        "give a level (error, warn, info, debug, trace, off) or levels by target, such as info,librdkafka=debug".to_owned()
    };
    for directive in text.split(',') {
        if !directive.contains('=')
            && directive
                .parse::<tracing_subscriber::filter::LevelFilter>()
                .is_err()
        {
            return Err(wrong());
        }
    }
    tracing_subscriber::EnvFilter::try_new(text).map_err(|_| wrong())?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use clap::Parser;

    use super::*;

    #[derive(Parser, Debug)]
    struct Config {
        #[command(flatten)]
        common: CommonArgs,
    }

    fn parsed(args: &[&str]) -> Result<Config, String> {
        parse_from(&[&["service"], args].concat()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn defaults_hold() {
        let common = parsed(&[]).unwrap().common;
        assert_eq!(common.admin_listen.to_string(), "[::]:9090");
        assert_eq!(common.shutdown_grace, Duration::from_secs(30));
        assert_eq!(
            (common.log_format, common.log_level.as_str()),
            (None, "info")
        );
    }

    #[test]
    fn a_wrong_value_is_one_sentence_that_names_option_and_value() {
        let sentence = parsed(&["--admin-listen", "here"]).unwrap_err();
        assert_eq!(
            sentence,
            "invalid value 'here' for '--admin-listen <ADMIN_LISTEN>': invalid socket address syntax; --help lists all options"
        );
        let sentence = parsed(&["--log-format", "xml"]).unwrap_err();
        assert!(
            sentence.contains("'xml'") && sentence.contains("[possible values: text, json]"),
            "{sentence}"
        );
        let sentence = parsed(&["--shutdown-grace", "soon"]).unwrap_err();
        assert!(
            sentence.contains("'soon'") && sentence.contains("500ms, 30s or 2m"),
            "{sentence}"
        );
    }

    #[test]
    fn a_wrong_secret_is_not_printed() {
        #[derive(Clone, Debug)]
        struct Never;
        impl FromStr for Never {
            type Err = String;
            fn from_str(_: &str) -> Result<Self, String> {
                Err("give another".to_owned())
            }
        }
        #[derive(Parser, Debug)]
        struct Config {
            #[arg(long, value_parser = secret::<Never>())]
            password: Option<Never>,
        }
        let error = parse_from::<Config>(&["service", "--password", "hush"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid value for '--password <PASSWORD>': give another; --help lists all options"
        );
    }

    #[test]
    fn an_unknown_option_is_one_sentence_with_the_tip() {
        let sentence = parsed(&["--admin-listn", "0.0.0.0:1"]).unwrap_err();
        assert!(!sentence.contains('\n'), "{sentence}");
        assert!(
            sentence.starts_with("unexpected argument '--admin-listn' found; tip:"),
            "{sentence}"
        );
        assert!(sentence.contains("'--admin-listen'"), "{sentence}");
    }

    #[test]
    fn durations_are_parsed_and_negative_ones_rejected() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert!(duration("-5s").is_err() && duration("5").is_err() && duration("").is_err());
    }

    #[test]
    fn a_word_that_is_not_a_level_is_rejected() {
        assert!(
            log_level("loud").is_err()
                && log_level("info,loud").is_err()
                && log_level("a=loud").is_err()
        );
        assert!(log_level("debug").is_ok() && log_level("info,librdkafka=debug").is_ok());
    }

    #[test]
    fn an_invalid_configuration_is_recognized_under_its_context() {
        let error = Err::<(), _>(invalid("not so"))
            .context("cannot start")
            .unwrap_err();
        assert!(is_invalid(&error));
        assert_eq!(format!("{error:#}"), "cannot start: not so");
        assert!(!is_invalid(&anyhow::anyhow!("broken pipe")));
    }
}
