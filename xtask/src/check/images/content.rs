//! The content of an image archive, read as an engine reads it: from the index through the digests.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;

use anyhow::{Context, bail, ensure};
use flate2::read::GzDecoder;
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde_json::{Value, json};

use crate::kubernetes::images::{self, Image, USER, sha256};
use crate::services;

pub struct Content {
    configuration: ImageConfiguration,
    /// Of the layer.
    files: Vec<File>,
}

struct File {
    name: String,
    mode: u32,
    owner: u64,
    group: u64,
    modified: u64,
    content: Vec<u8>,
}

impl Content {
    /// Rejects archives that an engine would reject.
    pub fn read(image: &Image) -> anyhow::Result<Self> {
        let archive = fs::read(&image.archive)
            .with_context(|| format!("cannot read {}", image.archive.display()))?;
        let archive: BTreeMap<_, _> = files(&archive)?
            .into_iter()
            .map(|file| (file.name, file.content))
            .collect();
        let file = |name: &str| {
            let content = archive.get(name);
            content.with_context(|| format!("the archive lacks {name}"))
        };
        let blob = |descriptor: &Descriptor| {
            let digest = descriptor.digest().digest();
            let content = file(&format!("blobs/sha256/{digest}"))?;
            ensure!(
                sha256(content) == digest,
                "a blob does not match its digest"
            );
            ensure!(
                content.len() as u64 == descriptor.size(),
                "a blob has the wrong size"
            );
            anyhow::Ok(content.as_slice())
        };
        let index = ImageIndex::from_reader(file("index.json")?.as_slice())?;
        let manifest = ImageManifest::from_reader(blob(&index.manifests()[0])?)?;
        let config = blob(manifest.config())?;
        ensure!(
            sha256(config).starts_with(&image.tag),
            "the tag does not match the content"
        );
        let configuration = ImageConfiguration::from_reader(config)?;
        let [layer] = manifest.layers().as_slice() else {
            bail!("there are {} layers", manifest.layers().len());
        };
        let docker: Value = serde_json::from_slice(file("manifest.json")?)?;
        let expected = json!([{
            "Config": format!("blobs/sha256/{}", manifest.config().digest().digest()),
            "RepoTags": [image.reference()],
            "Layers": [format!("blobs/sha256/{}", layer.digest().digest())],
        }]);
        ensure!(
            docker == expected,
            "docker would read a different image: {docker}"
        );
        let mut tar = Vec::new();
        GzDecoder::new(blob(layer)?).read_to_end(&mut tar)?;
        let digest = format!("sha256:{}", sha256(&tar));
        ensure!(
            *configuration.rootfs().diff_ids() == [digest],
            "the layer does not match the configuration"
        );
        Ok(Self {
            configuration,
            files: files(&tar)?,
        })
    }

    pub fn is_one_static_program(&self, service: &str) -> anyhow::Result<()> {
        let [file] = self.files.as_slice() else {
            bail!("there are {} files", self.files.len());
        };
        ensure!(file.name == service, "the file is {}", file.name);
        let numbers = (file.mode, file.owner, file.group, file.modified);
        ensure!(
            numbers == (0o755, 0, 0, 0),
            "mode, owner, group and time are {numbers:?}"
        );
        is_static(&file.content)
    }

    pub fn is_described(&self, service: &str) -> anyhow::Result<()> {
        let config = self
            .configuration
            .config()
            .as_ref()
            .context("it has no configuration")?;
        ensure!(
            config.user().as_deref() == Some(USER),
            "the user is {:?}",
            config.user()
        );
        let number = |id: &str| id.parse::<u32>().is_ok_and(|id| id > 0);
        ensure!(
            USER.split(':').all(number),
            "a kubelet cannot tell that {USER} is not root"
        );
        let program = [format!("/{service}")];
        ensure!(
            config.entrypoint().as_deref() == Some(&program),
            "it runs {:?}",
            config.entrypoint()
        );
        ensure!(
            self.configuration.created().is_none(),
            "it has a creation time"
        );
        let labels = images::labels(services::named(service));
        ensure!(
            config.labels().as_ref() == Some(&labels),
            "the labels are {:?}",
            config.labels()
        );
        Ok(())
    }
}

fn files(archive: &[u8]) -> anyhow::Result<Vec<File>> {
    let mut files = Vec::new();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        let header = entry.header();
        files.push(File {
            name: entry.path()?.display().to_string(),
            mode: header.mode()?,
            owner: header.uid()?,
            group: header.gid()?,
            modified: header.mtime()?,
            content,
        });
    }
    Ok(files)
}

/// Checks that a program requests no loader (`PT_INTERP`): the image has none. The offsets are those of 64-bit ELF.
fn is_static(program: &[u8]) -> anyhow::Result<()> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, bytes: usize| {
        let field = program.get(at..at + bytes).context("it is not a program")?;
        let mut number = [0; 8];
        number[..bytes].copy_from_slice(field);
        anyhow::Ok(u64::from_le_bytes(number))
    };
    ensure!(
        program.starts_with(b"\x7fELF\x02\x01"),
        "it is not a 64-bit ELF file"
    );
    let (offset, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for header in 0..count {
        let kind = number((offset + header * size) as usize, 4)?;
        ensure!(
            kind != PT_INTERP,
            "the program is not static: it requests a loader"
        );
    }
    Ok(())
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_needs_a_loader_is_not_static() {
        let program = fs::read(std::env::current_exe().unwrap()).unwrap();
        let error = is_static(&program).unwrap_err();
        assert!(error.to_string().contains("loader"), "{error}");
        assert!(is_static(b"#!/bin/sh").is_err());
        assert!(is_static(&program[..70]).is_err());
    }
}
