//! A list of what is in an image (SBOM), in CycloneDX: the crates that its program is linked from, and the C libraries that some of
//! them contain. The same sources and compilers give the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::compile::metadata;
use super::{Image, Workspace};
use crate::command::{command, output};
use crate::services;

/// Where a version of a C library stands.
enum Source {
    /// After the `+` in the version of a crate, which may be another than the one that is linked.
    Crate(&'static str),
    /// In a header of the crate, as this macro.
    Header(&'static str, &'static str),
}

/// The crates that compile a C library in: its name, its licence and its version.
const C_LIBRARIES: [(&str, &str, &str, Source); 5] = [
    (
        "rdkafka-sys",
        "librdkafka",
        "BSD-2-Clause",
        Source::Crate("rdkafka-sys"),
    ),
    (
        "openssl-sys",
        "openssl",
        "Apache-2.0",
        Source::Crate("openssl-src"),
    ),
    (
        "zstd-sys",
        "zstd",
        "BSD-3-Clause",
        Source::Crate("zstd-sys"),
    ),
    (
        "libz-sys",
        "zlib",
        "Zlib",
        Source::Header("src/zlib/zlib.h", "ZLIB_VERSION"),
    ),
    (
        "libsqlite3-sys",
        "sqlite",
        "blessing",
        Source::Header("sqlite3/sqlite3.h", "SQLITE_VERSION"),
    ),
];

/// A crate in the order of cargo's tree: name, then version.
type Crate = (String, String);

/// The crates that programs are linked from: the licence and the direct dependencies of each.
#[derive(Default)]
pub struct Tree(BTreeMap<Crate, Node>);

#[derive(Default)]
struct Node {
    license: String,
    is_ours: bool,
    dependencies: BTreeSet<Crate>,
}

impl Tree {
    /// For this target, with the features of the images: those that all of their programs need together. Macros and what only
    /// build scripts use is not in a program.
    pub fn query(workspace: &Workspace, target: &str) -> anyhow::Result<Self> {
        let args = [
            "tree",
            "--locked",
            "--edges",
            "normal,no-proc-macro",
            "--prefix",
            "depth",
        ];
        let mut tree = workspace.command("cargo", args);
        tree.args(["--format", "|{p}|{l}|", "--target", target]);
        for name in services::names() {
            tree.args(["--package", name]);
        }
        Self::parse(&output(&mut tree)?)
    }

    /// Lines such as `2|serde v1.0.0|MIT OR Apache-2.0|`. What is below a crate is there only the first time.
    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut tree = Self::default();
        let mut above: Vec<Crate> = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let unexpected = || format!("cargo tree prints {line:?}");
            let mut fields = line.split('|');
            let (depth, package, license) = (fields.next(), fields.next(), fields.next());
            let depth: usize = depth
                .and_then(|depth| depth.parse().ok())
                .with_context(unexpected)?;
            let mut words = package.unwrap_or_default().split(' ');
            let name = words.next().unwrap_or_default().to_owned();
            let version = words.next().and_then(|word| word.strip_prefix('v'));
            let id = (name, version.with_context(unexpected)?.to_owned());
            above.truncate(depth);
            if let Some(dependent) = above.last() {
                let dependent = tree.0.get_mut(dependent).with_context(unexpected)?;
                dependent.dependencies.insert(id.clone());
            }
            let node = tree.0.entry(id.clone()).or_default();
            // Older crates separate them by a slash.
            node.license = license.unwrap_or_default().replace('/', " OR ");
            // Crates of the workspace have a path.
            node.is_ours = words.next().is_some();
            above.push(id);
        }
        Ok(tree)
    }

    /// The crates of one program, that of the service included.
    fn of(&self, service: &str) -> anyhow::Result<BTreeMap<&Crate, &Node>> {
        let root = self.0.keys().find(|(name, _)| name == service);
        let mut pending =
            vec![root.with_context(|| format!("cargo tree does not name {service}"))?];
        let mut found = BTreeMap::new();
        while let Some(id) = pending.pop() {
            let node = &self.0[id];
            if found.insert(id, node).is_none() {
                pending.extend(&node.dependencies);
            }
        }
        Ok(found)
    }
}

/// Writes it for each image, beside the archive: `consumer.cdx.json`.
pub fn write(images: &[Image], workspace: &Workspace) -> anyhow::Result<()> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let tree = Tree::query(workspace, &target)?;
    let libraries = libraries(workspace, &target)?;
    for image in images {
        let file = image.sbom();
        let content = sbom(image.service, &tree, &libraries)?;
        fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// A C library that a crate compiles in; `None` if it is in every program.
struct Library {
    within: Option<&'static str>,
    name: &'static str,
    license: &'static str,
    version: String,
}

fn libraries(workspace: &Workspace, target: &str) -> anyhow::Result<Vec<Library>> {
    let packages = metadata(workspace, target)?.packages;
    let package = |name: &str| {
        let found = packages.iter().find(|package| package.name == name);
        found.with_context(|| format!("cargo metadata does not name {name}"))
    };
    let mut libraries = Vec::new();
    for (within, name, license, source) in C_LIBRARIES {
        let version = match source {
            Source::Crate(of) => {
                let version = &package(of)?.version;
                let (_, version) = version.split_once('+').with_context(|| {
                    format!("the version of {of}, {version}, does not name that of {name}")
                })?;
                version.trim_start_matches("zstd.").to_owned()
            }
            Source::Header(header, name) => {
                let folder = package(within)?.manifest_path.with_file_name("");
                defined(&folder.join(header), name)?
            }
        };
        libraries.push(Library {
            within: Some(within),
            name,
            license,
            version,
        });
    }
    // Only where the programs are linked on this machine is its C library in them.
    if cfg!(target_os = "linux") {
        let version = output(&mut command("getconf", ["GNU_LIBC_VERSION"]))?;
        let version = version.trim().trim_start_matches("glibc ").to_owned();
        libraries.push(Library {
            within: None,
            name: "glibc",
            license: "LGPL-2.1-or-later",
            version,
        });
    }
    Ok(libraries)
}

/// The text of a macro: `#define ZLIB_VERSION "1.3.1"`.
fn defined(header: &Path, name: &str) -> anyhow::Result<String> {
    let text = fs::read(header).with_context(|| format!("cannot read {}", header.display()))?;
    let text = String::from_utf8_lossy(&text);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if (words.next(), words.next()) == (Some("#define"), Some(name)) {
            return Ok(words
                .next()
                .unwrap_or_default()
                .trim_matches('"')
                .to_owned());
        }
    }
    bail!("{} does not define {name}", header.display())
}

fn sbom(service: &str, tree: &Tree, libraries: &[Library]) -> anyhow::Result<Vec<u8>> {
    let crates = tree.of(service)?;
    let (mut root, mut components, mut dependencies) = (None, Vec::new(), Vec::new());
    for (id, node) in &crates {
        let (name, version) = id;
        let mut component = component(name, version, &node.license);
        if !node.is_ours {
            component["purl"] = format!("pkg:cargo/{name}@{}", version.replace('+', "%2B")).into();
        }
        let is_root = name == service;
        if is_root {
            component["type"] = "application".into();
            root = Some(component);
        } else {
            components.push(component);
        }
        let mut below: Vec<String> = node.dependencies.iter().map(reference).collect();
        for library in libraries {
            if library.within.map_or(is_root, |within| within == name) {
                let id = (library.name.to_owned(), library.version.clone());
                let mut component = self::component(&id.0, &id.1, library.license);
                component["purl"] = format!("pkg:generic/{}@{}", id.0, id.1).into();
                below.push(reference(&id));
                dependencies.push(json!({"ref": reference(&id)}));
                components.push(component);
            }
        }
        dependencies.push(json!({"ref": reference(id), "dependsOn": below}));
    }
    // Neither a serial number nor a time, which would make each build another one.
    let sbom = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": root},
        "components": components,
        "dependencies": dependencies,
    });
    Ok(serde_json::to_vec_pretty(&sbom)?)
}

fn component(name: &str, version: &str, license: &str) -> Value {
    json!({
        "type": "library",
        "bom-ref": reference(&(name.to_owned(), version.to_owned())),
        "name": name,
        "version": version,
        "licenses": [{"expression": license}],
    })
}

fn reference((name, version): &Crate) -> String {
    format!("{name}@{version}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = "\
0|consumer v0.1.0 (/a/consumer)|Apache-2.0|
1|bytes v1.0.0|MIT|
1|rdkafka v0.39.0|MIT/Apache-2.0|
2|rdkafka-sys v4.0.0+2.12.1|MIT|

0|producer v0.1.0 (/a/producer)|Apache-2.0|
1|rdkafka v0.39.0|MIT/Apache-2.0| (*)
";

    fn names(of: &str) -> Vec<String> {
        let tree = Tree::parse(TREE).unwrap();
        let crates = tree.of(of).unwrap();
        crates.keys().map(|(name, _)| name.clone()).collect()
    }

    #[test]
    fn a_program_has_what_is_below_it_also_where_cargo_prints_it_only_once() {
        assert_eq!(
            names("consumer"),
            ["bytes", "consumer", "rdkafka", "rdkafka-sys"]
        );
        assert_eq!(names("producer"), ["producer", "rdkafka", "rdkafka-sys"]);
        assert!(Tree::parse(TREE).unwrap().of("gateway").is_err());
        assert!(Tree::parse("consumer").is_err());
    }

    #[test]
    fn a_c_library_is_below_the_crate_that_contains_it() {
        let library = Library {
            within: Some("rdkafka-sys"),
            name: "librdkafka",
            license: "BSD-2-Clause",
            version: "2.12.1".to_owned(),
        };
        let json = sbom("producer", &Tree::parse(TREE).unwrap(), &[library]).unwrap();
        let json: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json["metadata"]["component"]["name"], "producer");
        assert_eq!(json.get("serialNumber"), None);
        let purl = &json["components"][0]["purl"];
        assert_eq!(purl, "pkg:cargo/rdkafka@0.39.0");
        let of = json["dependencies"].as_array().unwrap().iter();
        let below = of
            .clone()
            .find(|of| of["ref"] == "rdkafka-sys@4.0.0+2.12.1");
        assert_eq!(below.unwrap()["dependsOn"][0], "librdkafka@2.12.1");
        let license = &json["components"][0]["licenses"][0]["expression"];
        assert_eq!(license, "MIT OR Apache-2.0");
    }
}
