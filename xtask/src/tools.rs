//! The programs that a check needs, and how to get them.

use std::path::PathBuf;

/// A program that checks call by one of its names.
pub struct Tool {
    pub names: &'static [&'static str],
    /// How to get it, in a few words.
    pub get: &'static str,
}

pub const CARGO_DENY: Tool = tool(&["cargo-deny"], "cargo install cargo-deny --locked");
pub const SHELLCHECK: Tool = tool(&["shellcheck"], "package shellcheck");
pub const SHFMT: Tool = tool(&["shfmt"], "package shfmt");
pub const NODE: Tool = tool(&["node"], "Node.js 20 or newer, https://nodejs.org");
pub const NPM: Tool = tool(&["npm"], "it comes with Node.js");
pub const PYTHON: Tool = tool(&["python3"], "packages python3 and python3-venv");
pub const CURL: Tool = tool(&["curl"], "package curl");
pub const KCAT: Tool = tool(&["kcat"], "package kcat");
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
    /// The program's path.
    pub fn find(&self) -> Option<PathBuf> {
        self.names.iter().find_map(|name| find(name))
    }

    /// One sentence for the list of what was left out.
    pub fn missing(&self) -> String {
        format!("{} is missing ({})", self.names[0], self.get)
    }
}

/// Where on the PATH a program lies.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}
