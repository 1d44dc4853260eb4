//! The programs that checks need, and how to install them.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

/// A program, under any of its names.
pub struct Tool {
    pub names: &'static [&'static str],
    /// How to install it, in a few words.
    pub get: &'static str,
}

pub const CARGO_DENY: Tool = tool(&["cargo-deny"], "cargo install cargo-deny --locked");
pub const SHELLCHECK: Tool = tool(&["shellcheck"], "package shellcheck");
pub const SHFMT: Tool = tool(&["shfmt"], "package shfmt");
pub const CXX: Tool = tool(&["c++"], "a C++ compiler: package g++");
pub const NODE: Tool = tool(&["node"], "Node.js 20 or newer, https://nodejs.org");
pub const NPM: Tool = tool(&["npm"], "it comes with Node.js");
pub const PYTHON: Tool = tool(&["python3"], "packages python3 and python3-venv");
pub const CURL: Tool = tool(&["curl"], "package curl");
pub const KCAT: Tool = tool(&["kcat"], "package kcat");
pub const SLOWHTTPTEST: Tool = tool(&["slowhttptest"], "package slowhttptest");
pub const JAVA: Tool = tool(
    &["java"],
    "a Java runtime, 17 or newer: package openjdk-17-jre-headless, or openjdk with brew",
);
pub const MAVEN: Tool = tool(&["mvn"], "package maven");
pub const MINIKUBE: Tool = tool(&["minikube"], INSTALL);
pub const KUBECTL: Tool = tool(&["kubectl"], INSTALL);
pub const HELM: Tool = tool(&["helm"], INSTALL);
const INSTALL: &str = "./install_requirements.sh installs it";
pub const GO: Tool = tool(
    &["go"],
    "Go 1.24 or newer: package golang, or https://go.dev",
);
pub const POSTGRES: Tool = tool(
    &[
        "initdb",
        "/usr/lib/postgresql/18/bin/initdb",
        "/usr/lib/postgresql/17/bin/initdb",
        "/usr/lib/postgresql/16/bin/initdb",
        "/usr/lib/postgresql/15/bin/initdb",
    ],
    "PostgreSQL's server, 15 or newer: package postgresql",
);
pub const NGINX: Tool = tool(&["nginx", "/usr/sbin/nginx"], "package nginx-light");
pub const SKOPEO: Tool = tool(&["skopeo"], "package skopeo");
pub const PROMTOOL: Tool = tool(&["promtool"], "package prometheus");
pub const CHROMIUM: Tool = tool(
    &["chromium", "chromium-browser", "google-chrome"],
    "package chromium, or Google Chrome",
);

const fn tool(names: &'static [&'static str], get: &'static str) -> Tool {
    Tool { names, get }
}

impl Tool {
    /// Its path, if it is installed.
    pub fn find(&self) -> Option<PathBuf> {
        self.names.iter().find_map(|name| find(name))
    }

    /// The reason given in the list of checks that were left out.
    pub fn missing(&self) -> String {
        format!("{} is missing ({})", self.names[0], self.get)
    }
}

/// The PATH of the commands that we run: the folder of ./install_requirements.sh first, as in ./setup.sh.
pub fn path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let home = || env::home_dir().map(|home| home.join(".local/bin"));
    let installed = env::var_os("HERALD_BIN").map(PathBuf::from).or_else(home);
    let folders = installed.into_iter().chain(env::split_paths(&path));
    env::join_paths(folders).unwrap_or(path)
}

/// The path of a program on that PATH.
pub fn find(name: &str) -> Option<PathBuf> {
    env::split_paths(&path())
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installed_tools_take_precedence_on_the_path() {
        let first = env::split_paths(&path()).next().unwrap();
        let given = env::var_os("HERALD_BIN").map(PathBuf::from);
        let home = env::home_dir().unwrap().join(".local/bin");
        assert_eq!(first, given.unwrap_or(home));
        let command = crate::command::command("helm", ["version"]);
        let set = command
            .get_envs()
            .find(|(name, _)| *name == "PATH")
            .unwrap();
        assert_eq!(set.1, Some(path().as_os_str()));
    }
}
