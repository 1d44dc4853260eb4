//! The producer binary.

use std::process::ExitCode;

use herald_runtime::{config, launch, listen};
use producer::{Config, CreateTopic};

fn main() -> ExitCode {
    let config: Config = config::parse();
    launch(&config.common.clone(), async |shutdown| {
        if config.create_topic == CreateTopic::Only {
            return producer::create_topic(&config, &shutdown).await;
        }
        let admin = listen::bind(config.common.admin_listen)?;
        producer::run(config, admin, shutdown).await
    })
}
