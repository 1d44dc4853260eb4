//! The life of a service's process, around its `run`.

use std::process::ExitCode;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{CommonArgs, config, shutdown, telemetry};

/// Starts the log and the asynchronous runtime, and gives `run` a token that the first signal cancels. Ends with 0 when
/// `run` does in order and within the grace period, with one line on stderr and 1 or 2 when it does not.
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
    // Dropping the runtime would wait for blocking calls into librdkafka, which nobody is interested in any more.
    runtime.shutdown_timeout(Duration::ZERO);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => config::fail(&error),
    }
}
