//! The `main` of a service, around its `run`.

use std::process::ExitCode;
use std::time::Duration;

use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;

use crate::{CommonArgs, config, shutdown, telemetry};

/// Starts the log and the asynchronous runtime, and passes `run` a token that the first signal cancels. The exit code is 0 if
/// `run` succeeds within the grace period; otherwise it is 1 or 2, with one line on stderr.
pub fn launch<F>(common: &CommonArgs, run: impl FnOnce(CancellationToken) -> F) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
{
    telemetry::init(common);
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            return config::fail(
                &anyhow::Error::new(error).context("cannot start the asynchronous runtime"),
            );
        }
    };
    let result = runtime.block_on(async {
        let shutdown = shutdown::on_signals();
        shutdown::within(common.shutdown_grace, &shutdown, run(shutdown.clone())).await
    });
    // Dropping the runtime would wait for blocking calls into librdkafka, whose results are no longer needed.
    runtime.shutdown_timeout(Duration::ZERO);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => config::fail(&error),
    }
}

/// The error of a service when a task that should run until the shutdown has ended; `panicked` if that is why.
pub fn task_ended(task: &str, panicked: Option<JoinError>) -> anyhow::Error {
    match panicked {
        Some(reason) => anyhow::Error::new(reason).context(format!("{task} failed")),
        None => anyhow::anyhow!("{task} ended"),
    }
}
