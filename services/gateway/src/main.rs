//! The gateway binary.

use std::process::ExitCode;

use gateway::{Config, Listeners};
use herald_runtime::{config, launch, listen};

fn main() -> ExitCode {
    let config: Config = config::parse();
    let common = config.common.clone();
    launch(&common, |shutdown| async move {
        let listeners = Listeners {
            public: listen::bind(config.listen)?,
            admin: listen::bind(config.common.admin_listen)?,
        };
        gateway::run(config, listeners, shutdown).await
    })
}
