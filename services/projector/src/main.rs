//! The projector binary.

use std::process::ExitCode;

use herald_runtime::{config, launch, listen};
use projector::{Command, Config};

fn main() -> ExitCode {
    let config: Config = config::parse();
    launch(&config.common.clone(), async |shutdown| {
        if let Some(Command::DeleteSession { id }) = &config.command {
            return projector::delete_session(&config, id).await;
        }
        let admin = listen::bind(config.common.admin_listen)?;
        projector::run(config, admin, shutdown).await
    })
}
