//! Builds an image without a container engine: one layer with one program, a configuration and a manifest, in an
//! archive that OCI tools (containerd, skopeo) and `docker load` can read. The same program gives the same bytes.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use flate2::{Compression, GzBuilder};
use oci_spec::image::{
    ANNOTATION_REF_NAME, Arch, ConfigBuilder, Descriptor, DescriptorBuilder, ImageConfiguration,
    ImageConfigurationBuilder, ImageIndexBuilder, ImageManifestBuilder, MediaType,
    OciLayoutBuilder, Os, RootFsBuilder, SCHEMA_VERSION, Sha256Digest,
};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{labels, repository};
use crate::services::Service;

/// The id of `nonroot`, common in images without a `passwd`. It is numeric, or the kubelet could not verify that it is
/// not root.
pub const USER: &str = "65532:65532";

/// The name that containerd gives the image on import.
const ANNOTATION_CONTAINERD_NAME: &str = "io.containerd.image.name";

/// What `docker load` reads, as `docker save` writes it.
const DOCKER: &str = "manifest.json";

pub struct Packed {
    /// The first 16 hex digits of the image id: the digest of its configuration, which contains the layer's digest.
    pub tag: String,
    pub archive: Vec<u8>,
}

/// `program` is the executable's content.
pub fn pack(service: &Service, program: &[u8]) -> anyhow::Result<Packed> {
    let layer = layer(service, program)?;
    let config = canonical(&configuration(service, &sha256(&layer))?)?;
    let config = Blob::new(MediaType::ImageConfig, config);
    let layer = Blob::new(MediaType::ImageLayerGzip, compress(&layer)?);
    let manifest = ImageManifestBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageManifest)
        .config(config.descriptor()?)
        .layers([layer.descriptor()?])
        .build()?;
    let manifest = Blob::new(MediaType::ImageManifest, canonical(&manifest)?);
    let tag = config.digest[..16].to_owned();
    let reference = format!("{}:{tag}", repository(service));
    let mut named = manifest.descriptor()?;
    named.set_annotations(Some(HashMap::from([
        (
            ANNOTATION_CONTAINERD_NAME.to_owned(),
            format!("docker.io/{reference}"),
        ),
        (ANNOTATION_REF_NAME.to_owned(), tag.clone()),
    ])));
    let index = ImageIndexBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageIndex)
        .manifests([named])
        .build()?;
    let layout = OciLayoutBuilder::default()
        .image_layout_version("1.0.0")
        .build()?;
    let docker = json!([{
        "Config": config.path(),
        "RepoTags": [reference],
        "Layers": [layer.path()],
    }]);
    let archive = tar(&[
        ("oci-layout", 0o644, &canonical(&layout)?),
        ("index.json", 0o644, &canonical(&index)?),
        (DOCKER, 0o644, &canonical(&docker)?),
        (&config.path(), 0o644, &config.content),
        (&manifest.path(), 0o644, &manifest.content),
        (&layer.path(), 0o644, &layer.content),
    ])?;
    Ok(Packed { tag, archive })
}

/// The tag of the image in an archive; `None` if there is none that can be read.
pub fn tag_of(archive: &Path) -> Option<String> {
    let mut archive = tar::Archive::new(File::open(archive).ok()?);
    for entry in archive.entries().ok()? {
        let entry = entry.ok()?;
        if entry.path().is_ok_and(|path| path == Path::new(DOCKER)) {
            let images: Value = serde_json::from_reader(entry).ok()?;
            let (_, tag) = images[0]["RepoTags"][0].as_str()?.split_once(':')?;
            return Some(tag.to_owned());
        }
    }
    None
}

/// Contains only the program. It includes its C library; the time zone is UTC unless TZ spells out its rules
/// (`CET-1CEST,M3.5.0,M10.5.0/3`); certificates come from options (`ssl.ca.location`, `ssl.ca.pem`).
fn layer(service: &Service, program: &[u8]) -> anyhow::Result<Vec<u8>> {
    tar(&[(&service.name, 0o755, program)])
}

/// For the architecture of this machine. Without a creation time, which would make each build a different image.
fn configuration(service: &Service, layer: &str) -> anyhow::Result<ImageConfiguration> {
    let config = ConfigBuilder::default()
        .user(USER)
        .entrypoint([format!("/{}", service.name)])
        .exposed_ports(
            service
                .ports()
                .iter()
                .map(|port| format!("{port}/tcp"))
                .collect::<Vec<_>>(),
        )
        .labels(labels(service))
        .build()?;
    let rootfs = RootFsBuilder::default()
        .typ("layers")
        .diff_ids([format!("sha256:{layer}")])
        .build()?;
    let configuration = ImageConfigurationBuilder::default()
        .architecture(Arch::default())
        .os(Os::Linux)
        .config(config)
        .rootfs(rootfs)
        .build()?;
    Ok(configuration)
}

struct Blob {
    media_type: MediaType,
    digest: String,
    content: Vec<u8>,
}

impl Blob {
    fn new(media_type: MediaType, content: Vec<u8>) -> Self {
        Self {
            media_type,
            digest: sha256(&content),
            content,
        }
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }

    fn descriptor(&self) -> anyhow::Result<Descriptor> {
        Ok(DescriptorBuilder::default()
            .media_type(self.media_type.clone())
            .digest(self.digest.parse::<Sha256Digest>()?)
            .size(self.content.len() as u64)
            .build()?)
    }
}

/// JSON with sorted keys: oci-spec keeps labels and annotations in hash maps, whose order changes from run to run.
fn canonical(content: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    Ok(serde_json::to_vec(&sorted(serde_json::to_value(content)?))?)
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields: BTreeMap<_, _> = fields.into_iter().collect();
            fields
                .into_iter()
                .map(|(key, value)| (key, sorted(value)))
                .collect()
        }
        Value::Array(values) => values.into_iter().map(sorted).collect(),
        plain => plain,
    }
}

/// An archive of files owned by root, with modification time 0.
fn tar(files: &[(&str, u32, &[u8])]) -> anyhow::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, mode, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(*mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, *content)?;
    }
    Ok(archive.into_inner()?)
}

fn compress(content: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut gzip = GzBuilder::new().write(Vec::new(), Compression::new(2));
    gzip.write_all(content)?;
    gzip.finish().context("cannot compress the layer")
}

pub fn sha256(content: &[u8]) -> String {
    let digest = Sha256::digest(content);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::services;

    fn producer() -> &'static Service {
        services::named("producer")
    }

    fn consumer() -> &'static Service {
        services::named("consumer")
    }

    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), content);
        }
        files
    }

    fn json(files: &BTreeMap<String, Vec<u8>>, name: &str) -> Value {
        serde_json::from_slice(&files[name]).unwrap()
    }

    #[test]
    fn the_same_program_gives_the_same_bytes() {
        let first = pack(consumer(), b"program").unwrap();
        // The order of hash maps differs each time.
        for _ in 0..20 {
            assert!(first.archive == pack(consumer(), b"program").unwrap().archive);
        }
    }

    #[test]
    fn an_archive_names_its_tag() {
        let file = std::env::temp_dir().join(format!("herald-{}.tar", std::process::id()));
        assert_eq!(tag_of(&file), None);
        let Packed { tag, archive } = pack(consumer(), b"program").unwrap();
        std::fs::write(&file, &archive).unwrap();
        assert_eq!(tag_of(&file), Some(tag));
        std::fs::write(&file, &archive[..1000]).unwrap();
        assert_eq!(tag_of(&file), None);
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn a_different_program_or_service_has_a_different_tag() {
        let tags = [
            pack(consumer(), b"program").unwrap().tag,
            pack(consumer(), b"another").unwrap().tag,
            pack(producer(), b"program").unwrap().tag,
        ];
        assert!(tags[0] != tags[1] && tags[0] != tags[2]);
        assert!(tags.iter().all(|tag| tag.len() == 16));
    }

    #[test]
    fn containerd_and_docker_read_the_same_image() {
        let Packed { tag, archive } = pack(consumer(), b"program").unwrap();
        let files = files(&archive);
        let named = &json(&files, "index.json")["manifests"][0];
        let annotations = &named["annotations"];
        assert_eq!(
            annotations["io.containerd.image.name"],
            format!("docker.io/herald/consumer:{tag}")
        );
        assert_eq!(annotations["org.opencontainers.image.ref.name"], tag);
        let path = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            digest.replace("sha256:", "blobs/sha256/")
        };
        let manifest = json(&files, &path(named));
        let expected = json!([{
            "Config": path(&manifest["config"]),
            "RepoTags": [format!("herald/consumer:{tag}")],
            "Layers": [path(&manifest["layers"][0])],
        }]);
        assert_eq!(json(&files, "manifest.json"), expected);
        // The image id, as engines list it.
        assert!(path(&manifest["config"]).contains(&tag));
    }

    #[test]
    fn the_configuration_has_what_an_engine_needs_to_run_it() {
        let configuration = configuration(producer(), &sha256(b"layer")).unwrap();
        let configuration: Value =
            serde_json::from_slice(&canonical(&configuration).unwrap()).unwrap();
        let labels = &configuration["config"]["Labels"];
        assert_eq!(labels["org.opencontainers.image.title"], "herald-producer");
        assert_eq!(labels["org.opencontainers.image.licenses"], "Apache-2.0");
        assert_eq!(configuration["os"], "linux");
        assert_eq!(configuration["config"]["User"], "65532:65532");
        assert_eq!(configuration["config"]["Entrypoint"], json!(["/producer"]));
        assert_eq!(
            configuration["config"]["ExposedPorts"],
            json!({"9090/tcp": {}})
        );
        assert_eq!(configuration["created"], Value::Null);
    }
}
