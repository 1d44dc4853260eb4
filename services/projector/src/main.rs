//! The projector binary.

use std::process::ExitCode;

use herald_runtime::{config, launch, listen};
use projector::{Command, Config};

fn main() -> ExitCode {
    let config: Config = config::parse();
    launch(&config.common.clone(), async |shutdown| {
        match &config.command {
            Some(Command::DeleteSession { id }) => {
                return projector::delete_session(&config, id).await;
            }
            Some(Command::Verify) => return projector::verify(config).await,
            None => {}
        }
        let admin = listen::bind(config.common.admin_listen)?;
        projector::run(config, admin, shutdown).await
    })
}
