//! The gateway binary.

use std::process::ExitCode;

use gateway::{Config, Listeners};
use herald_runtime::{config, launch, listen};

fn main() -> ExitCode {
    let config: Config = config::parse();
    let common = config.common.clone();
    launch(&common, |shutdown| async move {
        let optional = |address: Option<_>, option| {
            let bound = address.map(|address| listen::bind_chosen(address, option));
            bound.transpose()
        };
        let listeners = Listeners {
            public: listen::bind(config.listen)?,
            likes: optional(config.likes_listen, "--likes-listen")?,
            counts: optional(config.counts_listen, "--counts-listen")?,
            admin: listen::bind(config.common.admin_listen)?,
        };
        gateway::run(config, listeners, shutdown).await
    })
}
