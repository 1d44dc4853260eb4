//! The producer binary.

use std::process::ExitCode;

use herald_runtime::{config, launch, listen};
use producer::Config;

fn main() -> ExitCode {
    let config: Config = config::parse();
    launch(&config.common.clone(), async |shutdown| {
        let admin = listen::bind(config.common.admin_listen)?;
        producer::run(config, admin, shutdown).await
    })
}
