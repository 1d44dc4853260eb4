//! The same images from the Dockerfile, on systems that cannot build programs for Linux directly.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};

use super::{Image, Profile, Wanted, archive, repository};
use crate::command::{command, output, run};

/// Builds them with docker and saves them into `folder`.
pub fn build(wanted: &Wanted, folder: &Path) -> anyhow::Result<Vec<Image>> {
    ensure!(
        answers(),
        "on this system images are built with docker, and its engine does not answer: start Docker Desktop, or colima"
    );
    let profile = match wanted.profile {
        Profile::Release => "PROFILE=release",
        Profile::Debug => "PROFILE=dev",
    };
    let mut images = Vec::new();
    for service in &wanted.services {
        let id = folder.join(format!("{}.id", service.name));
        // Without provenance and build time, an unchanged program keeps its id.
        let mut build = command("docker", ["build", "--load", "--provenance=false"]);
        build.args(["--build-arg", "SOURCE_DATE_EPOCH=0", "--build-arg", profile]);
        build.args(["--target", &service.name]);
        run(build.arg("--iidfile").arg(&id).arg("."))?;
        let text =
            fs::read_to_string(&id).with_context(|| format!("cannot read {}", id.display()))?;
        let tag = tag(&text)?;
        let archive = archive(folder, service);
        let image = Image {
            service: &service.name,
            repository: repository(service),
            tag,
            archive,
        };
        run(&mut command(
            "docker",
            ["tag", text.trim(), &image.reference()],
        ))?;
        let mut save = command("docker", ["save", "--output"]);
        run(save.arg(&image.archive).arg(image.reference()))?;
        images.push(image);
    }
    Ok(images)
}

/// Whether the docker engine answers.
pub fn answers() -> bool {
    let version = ["version", "--format", "{{.Server.Version}}"];
    output(&mut command("docker", version)).is_ok()
}

/// From an id like `sha256:0123…`.
fn tag(id: &str) -> anyhow::Result<String> {
    let digits = id
        .trim()
        .strip_prefix("sha256:")
        .and_then(|id| id.get(..16));
    Ok(digits
        .with_context(|| format!("docker gave the image the id {id:?}"))?
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_is_the_beginning_of_the_id() {
        let id = format!("sha256:{}\n", "0123456789abcdef".repeat(4));
        assert_eq!(tag(&id).unwrap(), "0123456789abcdef");
        assert!(tag("sha256:0123").is_err());
    }
}
