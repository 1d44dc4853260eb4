//! Reproducible static programs: they contain no path of this machine and no date.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::command::{command, output, run};
use crate::services;

/// Variables that would override our flags, or affect C code.
const FOREIGN: [&str; 8] = [
    "CARGO_BUILD_TARGET",
    "CFLAGS",
    "CPPFLAGS",
    "CXXFLAGS",
    "LDFLAGS",
    "OPENSSL_DIR",
    "OPENSSL_NO_VENDOR",
    "RUSTFLAGS",
];

#[derive(Clone, Copy, PartialEq)]
pub enum Profile {
    Release,
    Debug,
}

/// Where to build.
pub struct Workspace {
    pub root: PathBuf,
    pub target: PathBuf,
    /// `None` for the user's own.
    pub cargo_home: Option<PathBuf>,
}

impl Workspace {
    pub fn here() -> Self {
        Self {
            root: crate::root(),
            target: crate::target(),
            cargo_home: None,
        }
    }

    pub fn command<A: AsRef<OsStr>>(
        &self,
        program: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = command(program, args);
        command.current_dir(&self.root);
        if let Some(home) = &self.cargo_home {
            command.env("CARGO_HOME", home);
        }
        command
    }
}

/// Compiles the services; returns the folder of their programs.
pub fn compile(profile: Profile, workspace: &Workspace) -> anyhow::Result<PathBuf> {
    let Workspace { root, target, .. } = workspace;
    let release = profile == Profile::Release;
    let rustc = Rustc::query(workspace)?;
    let crates = crates(workspace, &rustc)?;
    has_static_libc()?;
    let args = ["build", "--locked", "--bins", "--target", &rustc.host];
    let mut cargo = workspace.command("cargo", args);
    let mut flags = rustc.flags(root, target, &crates);
    if release {
        cargo.arg("--release");
    } else {
        // As in the release profile: an image with all symbols would be ten times as large.
        flags.push("\x1f-Cstrip=symbols");
    }
    // Always all of them: cargo unifies features, so a package built alone would be another program.
    for name in services::names() {
        cargo.args(["--package", name]);
    }
    for variable in FOREIGN {
        cargo.env_remove(variable);
    }
    // An explicit target has its own folder, separate from builds with other flags. Cargo excludes path remapping from
    // its digests, so these do not depend on the folder either.
    cargo
        .env("CARGO_TARGET_DIR", target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env("PATH", path_with(&root.join("xtask/images"))?)
        .env("CC", "herald-cc")
        .env("HERALD_TARGET", target)
        .env("HERALD_CRATES", &crates)
        // OpenSSL compiles its build date in; 0 would mean now.
        .env("SOURCE_DATE_EPOCH", "1")
        // The crate's own zlib, whatever this machine has.
        .env("LIBZ_SYS_STATIC", "1");
    run(&mut cargo)?;
    let folder = if release { "release" } else { "debug" };
    Ok(target.join(&rustc.host).join(folder))
}

/// The properties of the compiler that affect its output.
struct Rustc {
    /// The target triple of this machine: `x86_64-unknown-linux-gnu`.
    host: String,
    commit: String,
    sysroot: PathBuf,
}

impl Rustc {
    fn query(workspace: &Workspace) -> anyhow::Result<Self> {
        let version = output(&mut workspace.command("rustc", ["-vV"]))?;
        let field = |name: &str| {
            let value = version.lines().find_map(|line| line.strip_prefix(name));
            let value = value.with_context(|| format!("rustc -vV does not print its {name}"))?;
            anyhow::Ok(value.to_owned())
        };
        let sysroot = output(&mut workspace.command("rustc", ["--print", "sysroot"]))?;
        Ok(Self {
            host: field("host: ")?,
            commit: field("commit-hash: ")?,
            sysroot: sysroot.trim().into(),
        })
    }

    /// In cargo's encoding: separated by a character that occurs in no path.
    fn flags(&self, root: &Path, target: &Path, crates: &Path) -> OsString {
        let mut flags = OsString::from("-Ctarget-feature=+crt-static");
        // The build id is a digest that includes symbols, which strip then removes.
        flags.push("\x1f-Clink-arg=-Wl,--build-id=none");
        // The name that it has where the component rust-src is not installed.
        let library = self.sysroot.join("lib/rustlib/src/rust");
        let library_name = format!("/rustc/{}", self.commit);
        // If two prefixes match, the last one wins.
        for (path, name) in [
            (root, "/herald"),
            (target, "/target"),
            (crates, "/crates"),
            (&library, &library_name),
        ] {
            flags.push("\x1f--remap-path-prefix=");
            flags.push(path);
            flags.push(format!("={name}"));
        }
        flags
    }
}

#[derive(Deserialize)]
pub struct Metadata {
    pub packages: Vec<Package>,
}

#[derive(Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub manifest_path: PathBuf,
}

/// All packages of the workspace and its dependencies, which cargo downloads if missing.
pub fn metadata(workspace: &Workspace, target: &str) -> anyhow::Result<Metadata> {
    let args = [
        "metadata",
        "--locked",
        "--format-version=1",
        "--filter-platform",
    ];
    let text = output(workspace.command("cargo", args).arg(target))?;
    serde_json::from_str(&text).context("cannot read the output of cargo metadata")
}

/// The folder with the sources of the dependencies.
fn crates(workspace: &Workspace, rustc: &Rustc) -> anyhow::Result<PathBuf> {
    let packages = metadata(workspace, &rustc.host)?.packages;
    let one = packages
        .iter()
        .find(|package| package.name == "rdkafka-sys");
    let folder = one.and_then(|package| package.manifest_path.ancestors().nth(2));
    Ok(folder
        .context("cargo metadata does not name rdkafka-sys")?
        .to_owned())
}

/// The compiler prints the library's path, or its bare name if it is missing.
fn has_static_libc() -> anyhow::Result<()> {
    let file = output(&mut command("cc", ["-print-file-name=libc.a"]))?;
    ensure!(
        file.starts_with('/'),
        "there is no C library for static programs: install glibc-static (Fedora) or libc6-dev (Debian)"
    );
    Ok(())
}

fn path_with(first: &Path) -> anyhow::Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(first.to_owned()).chain(std::env::split_paths(&path));
    Ok(std::env::join_paths(folders)?)
}
