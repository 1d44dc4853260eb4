//! A second build, which shares only the sources and the compilers with the first.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::kubernetes::images::{self, Image, Wanted, Workspace};

/// Builds a copy of the repository in another folder, with another CARGO_HOME, and compares.
pub fn same(images: &[Image]) -> anyhow::Result<()> {
    let archives = archives(images)?;
    let folder = crate::target().join("images/elsewhere");
    let _ = fs::remove_dir_all(&folder);
    let copy = Workspace {
        root: folder.join("a-copy-of-the-repository"),
        target: folder.join("target"),
        cargo_home: Some(folder.join("cargo")),
    };
    copy_folder(&crate::root(), &copy.root)?;
    let others = images::from_programs(&Wanted::all(), &copy, &folder)?;
    images::write_sboms(&others, &copy)?;
    for (image, other) in images.iter().zip(&others) {
        let (here, there) = (image.reference(), other.reference());
        ensure!(here == there, "{here} is {there} in another folder");
    }
    ensure!(
        archives == self::archives(&others)?,
        "the archives or SBOMs differ, though the images do not"
    );
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))
}

fn archives(images: &[Image]) -> anyhow::Result<Vec<Vec<u8>>> {
    let read =
        |file: PathBuf| fs::read(&file).with_context(|| format!("cannot read {}", file.display()));
    let files = images
        .iter()
        .flat_map(|image| [image.archive.clone(), image.sbom()]);
    files.map(read).collect()
}

/// Without build output and downloads.
fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (file, name) = (entry.path(), entry.file_name());
        if file == crate::target() || name == ".git" || name == "node_modules" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy_folder(&file, &to.join(name))?;
        } else {
            fs::copy(&file, to.join(name))
                .with_context(|| format!("cannot copy {}", file.display()))?;
        }
    }
    Ok(())
}
