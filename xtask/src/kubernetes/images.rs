//! The container images of the services: from scratch, with one static program each, tagged by their content.

mod cluster;
mod compile;
pub mod docker;
mod pack;
mod sbom;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use oci_spec::image::{
    ANNOTATION_DESCRIPTION, ANNOTATION_LICENSES, ANNOTATION_TITLE, ANNOTATION_VERSION,
};

pub use cluster::load;
pub use compile::{Profile, Workspace};
pub use pack::{USER, sha256};
pub use sbom::write as write_sboms;

use crate::kubernetes::cluster::Cluster;
use crate::services::{self, Service};
use compile::compile;
use pack::pack;

/// Build the services' container images into target/images: on Linux without a container engine, elsewhere with docker.
///
/// Each contains only one static program; beside each archive is its SBOM (NAME.cdx.json, CycloneDX). The tag is a digest of the
/// content: an unchanged image keeps its tag, even when it is built from another folder. Prints a line for each, `REFERENCE ARCHIVE`.
#[derive(clap::Args)]
pub struct Args {
    /// Only these services; all of them when none is named.
    #[arg(value_parser = PossibleValuesParser::new(services::names()))]
    services: Vec<String>,

    /// Build without optimisation, which takes seconds after the first time; for the inner loop.
    #[arg(long)]
    debug: bool,

    /// Also load them into minikube's cluster.
    #[arg(long)]
    load: bool,
}

pub fn repository(service: &Service) -> String {
    format!("herald/{}", service.name)
}

/// The same as in the Dockerfile.
pub fn labels(service: &Service) -> HashMap<String, String> {
    [
        (
            ANNOTATION_TITLE,
            format!("herald-{}", service.name).as_str(),
        ),
        (ANNOTATION_DESCRIPTION, &service.description),
        (ANNOTATION_LICENSES, env!("CARGO_PKG_LICENSE")),
        (ANNOTATION_VERSION, env!("CARGO_PKG_VERSION")),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// An image in an archive, for `minikube image load`, `docker load` and `ctr images import`.
#[derive(Clone, Debug)]
pub struct Image {
    pub service: &'static str,
    pub repository: String,
    /// 16 hex digits that change with the content.
    pub tag: String,
    pub archive: PathBuf,
}

impl Image {
    /// The list of what it contains, in CycloneDX.
    pub fn sbom(&self) -> PathBuf {
        self.archive.with_extension("cdx.json")
    }

    /// As in a pod's manifest: `herald/consumer:0123456789abcdef`.
    pub fn reference(&self) -> String {
        format!("{}:{}", self.repository, self.tag)
    }

    /// The values of the chart: it is in the cluster already, and whatever a registry has under this name is somebody else's.
    pub fn values(&self) -> [String; 3] {
        let image = format!("{}.image", self.service);
        [
            format!("--set={image}.repository={}", self.repository),
            format!("--set-string={image}.tag={}", self.tag),
            format!("--set={image}.pullPolicy=Never"),
        ]
    }
}

/// What to build.
pub struct Wanted {
    pub services: Vec<&'static Service>,
    pub profile: Profile,
}

impl Wanted {
    /// The images that an environment runs.
    pub fn all() -> Self {
        Self {
            services: services::all().iter().collect(),
            profile: Profile::Release,
        }
    }
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut wanted = Wanted::all();
    if !args.services.is_empty() {
        let named = |service: &&Service| args.services.contains(&service.name);
        wanted.services.retain(named);
    }
    if args.debug {
        wanted.profile = Profile::Debug;
    }
    let images = build_wanted(&wanted)?;
    write_sboms(&images, &Workspace::here())?;
    if args.load {
        load(&images, &Cluster::minikube())?;
    }
    for image in images {
        println!("{} {}", image.reference(), image.archive.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds all images, in the order of the table of services; takes about a second when nothing has changed.
pub fn build() -> anyhow::Result<Vec<Image>> {
    build_wanted(&Wanted::all())
}

fn build_wanted(wanted: &Wanted) -> anyhow::Result<Vec<Image>> {
    let folder = crate::target().join("images");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    if cfg!(target_os = "linux") {
        from_programs(wanted, &Workspace::here(), &folder)
    } else {
        docker::build(wanted, &folder)
    }
}

/// Compiles the workspace and packs its programs into `folder`.
pub fn from_programs(
    wanted: &Wanted,
    workspace: &Workspace,
    folder: &Path,
) -> anyhow::Result<Vec<Image>> {
    let programs = compile(wanted.profile, workspace)?;
    let mut images = Vec::new();
    for service in &wanted.services {
        let program = programs.join(&service.name);
        let archive = archive(folder, service);
        let tag = match pack::tag_of(&archive) {
            Some(tag) if is_newer(&archive, &program) => tag,
            _ => write(service, &program, &archive)?,
        };
        println!(
            "{}: program {}, image {}",
            service.name,
            megabytes(fs::metadata(&program)?.len()),
            megabytes(fs::metadata(&archive)?.len())
        );
        images.push(Image {
            service: &service.name,
            repository: repository(service),
            tag,
            archive,
        });
    }
    Ok(images)
}

/// Packs a program; returns the image's tag. An interruption leaves no incomplete archive.
fn write(service: &Service, program: &Path, archive: &Path) -> anyhow::Result<String> {
    let program =
        fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let packed = pack(service, &program)?;
    let incomplete = archive.with_extension("incomplete");
    fs::write(&incomplete, &packed.archive)
        .and_then(|()| fs::rename(&incomplete, archive))
        .with_context(|| format!("cannot write {}", archive.display()))?;
    Ok(packed.tag)
}

/// Whether an archive was packed after its program and this one, which packs it, were built. If in doubt, it was not.
fn is_newer(archive: &Path, program: &Path) -> bool {
    let built = |file: &Path| fs::metadata(file).and_then(|file| file.modified()).ok();
    let packed = built(archive);
    let this = std::env::current_exe().ok();
    let newest = built(program).max(this.as_deref().and_then(built));
    newest.is_some() && this.is_some_and(|this| this.exists()) && packed > newest
}

/// The name does not change, since minikube keeps a copy of each file that it loads.
fn archive(folder: &Path, service: &Service) -> PathBuf {
    folder.join(format!("{}.tar", service.name))
}

pub fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The Dockerfile builds the same images without reading our tables.
    #[test]
    fn the_dockerfile_agrees_with_the_tables() {
        let text = include_str!("../../../Dockerfile");
        for service in services::all() {
            let (_, stage) = text
                .split_once(&format!("FROM scratch AS {}\n", service.name))
                .unwrap();
            let stage = stage.split("FROM ").next().unwrap();
            for (key, value) in labels(service) {
                let label = format!("{key}=\"{value}\"");
                assert!(stage.contains(&label), "{}: {label}", service.name);
            }
            assert!(stage.contains(&format!("\nUSER {USER}\n")));
            assert!(stage.contains(&format!("\nENTRYPOINT [\"/{}\"]\n", service.name)));
            let ports: Vec<String> = service.ports().iter().map(u16::to_string).collect();
            assert!(stage.contains(&format!("\nEXPOSE {}\n", ports.join(" "))));
        }
    }

    #[test]
    fn the_dockerfile_compiles_the_services_of_the_table_and_no_others() {
        let text = include_str!("../../../Dockerfile");
        let packages: Vec<String> = services::names()
            .map(|name| format!("--package {name}"))
            .collect();
        let programs: Vec<&str> = services::names().collect();
        let installed = format!(" for program in {}; do \\\n", programs.join(" "));
        for list in [format!(" {} \\\n", packages.join(" ")), installed] {
            assert!(text.contains(&list), "{list}");
        }
        let stages = text.matches("\nFROM scratch AS ").count();
        assert_eq!(stages, services::all().len());
    }

    #[test]
    fn a_release_publishes_the_images_of_the_table() {
        let text = include_str!("../../../.github/workflows/release.yaml");
        let names: Vec<&str> = services::names().collect();
        let each = format!("for service in {}; do", names.join(" "));
        assert_eq!(text.matches("for service in ").count(), 2);
        assert_eq!(text.matches(&each).count(), 2, "{each}");
        for name in names {
            let attested = format!("subject-digest: ${{{{ steps.push.outputs.{name} }}}}\n");
            assert!(text.contains(&attested), "{attested}");
        }
    }

    #[test]
    fn the_dockerfile_uses_the_compiler_of_the_repository() {
        let toolchain: toml::Table =
            toml::from_str(include_str!("../../../rust-toolchain.toml")).unwrap();
        let version = toolchain["toolchain"]["channel"].as_str().unwrap();
        let base = format!("\nFROM rust:{version}-slim-");
        assert!(
            include_str!("../../../Dockerfile").contains(&base),
            "{base}"
        );
    }
}
