//! The binary that runs all environments locally.

use std::process::ExitCode;

use herald_runtime::{config, launch};
use local::Config;

fn main() -> ExitCode {
    let config: Config = config::parse();
    let common = config.common.clone();
    launch(&common, async |shutdown| {
        let listeners = config.bind()?;
        local::run(config, listeners, shutdown).await
    })
}
