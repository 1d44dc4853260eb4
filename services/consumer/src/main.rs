//! The consumer binary.

use std::process::ExitCode;

use consumer::{Config, Listeners};
use herald_runtime::{config, launch, listen};

fn main() -> ExitCode {
    let config: Config = config::parse();
    let common = config.common.clone();
    launch(&common, |shutdown| async move {
        if let Some(server) = &config.read_one.read_one {
            println!("{}", consumer::read_one(server, &config.read_one).await?);
            return Ok(());
        }
        let listeners = Listeners {
            public: listen::bind(config.listen)?,
            rooms: config.rooms.rooms_listen.map(listen::bind).transpose()?,
            admin: listen::bind(config.common.admin_listen)?,
        };
        consumer::run(config, listeners, shutdown).await
    })
}
