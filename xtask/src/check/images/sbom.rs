//! The lists of what the images contain.

use std::fs;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::check::python;
use crate::command::{command, run};
use crate::kubernetes::images::{self, Image, Workspace};

/// Whether one describes this image, and has the libraries of its program but not those of others.
pub fn lists(image: &Image) -> anyhow::Result<()> {
    let sbom: Value = serde_json::from_slice(&read(image)?)?;
    let described = &sbom["metadata"]["component"]["name"];
    ensure!(described == image.service, "it describes {described}");
    for part in [&sbom["serialNumber"], &sbom["metadata"]["timestamp"]] {
        ensure!(part.is_null(), "each build would have another {part}");
    }
    let components = sbom["components"]
        .as_array()
        .context("it has no components")?;
    let has = |name: &str| components.iter().any(|component| component["name"] == name);
    for name in [
        "herald-runtime",
        "rdkafka",
        "librdkafka",
        "openssl",
        "zstd",
        "zlib",
        "glibc",
    ] {
        ensure!(has(name), "it lacks {name}");
    }
    // Of the check itself, of tests, of macros and of build scripts.
    for name in [
        "xtask",
        "kube",
        "proptest",
        "herald-testing",
        "serde_derive",
        "syn",
        "cc",
    ] {
        ensure!(!has(name), "it has {name}");
    }
    // Only these two have a database.
    let has_database = ["gateway", "projector"].contains(&image.service);
    for name in ["sqlx", "sqlite"] {
        ensure!(has(name) == has_database, "it is wrong about {name}");
    }
    for component in components {
        let version = component["version"].as_str().unwrap_or_default();
        let is_known = version.starts_with(|c: char| c.is_ascii_digit());
        ensure!(is_known, "a version is missing: {component}");
    }
    Ok(())
}

/// Whether they have the schema of CycloneDX, licences included.
pub fn valid(images: &[Image]) -> anyhow::Result<()> {
    let requirements = crate::root().join("xtask/images/requirements.txt");
    let programs = python::programs("tools/images-python", &requirements)?;
    let python = programs.join("python").to_string_lossy().into_owned();
    let mut validator = command(&python, ["xtask/images/validate_sboms.py"]);
    run(validator.args(images.iter().map(Image::sbom)))
}

/// Whether writing them again gives the same bytes.
pub fn same(images: &[Image]) -> anyhow::Result<()> {
    let folder = crate::target().join("images/sbom");
    fs::create_dir_all(&folder)?;
    let elsewhere = |image: &Image| Image {
        archive: folder.join(format!("{}.tar", image.service)),
        ..image.clone()
    };
    let again: Vec<Image> = images.iter().map(elsewhere).collect();
    images::write_sboms(&again, &Workspace::here())?;
    for (image, again) in images.iter().zip(&again) {
        ensure!(read(image)? == read(again)?, "{} differs", image.service);
    }
    fs::remove_dir_all(&folder)?;
    Ok(())
}

fn read(image: &Image) -> anyhow::Result<Vec<u8>> {
    let file = image.sbom();
    fs::read(&file).with_context(|| format!("cannot read {}", file.display()))
}
