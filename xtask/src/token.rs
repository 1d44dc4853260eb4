//! Tokens for trying out who may do what.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value as Json, json};

/// Print a token for trying out who may do what, signed with a secret that is made the first time.
///
/// Start a service with the file of the secret as --jwt-keys. In production, sign tokens where users sign in, with a key pair whose
/// public half alone is in that file.
#[derive(clap::Args)]
pub struct Args {
    /// What its owner may read: topic/NAME, room/NAME, session/ID or counts, with * at the end for all that begin so; repeatable.
    #[arg(long, value_name = "PATTERN")]
    read: Vec<String>,

    /// What its owner may write to: topic/NAME, room/NAME (likes) or session/ID; repeatable.
    #[arg(long, value_name = "PATTERN")]
    write: Vec<String>,

    /// How long it is valid, such as 90s, 1h or 30d.
    #[arg(long = "for", value_name = "DURATION", default_value = "1h")]
    valid_for: SignedDuration,

    /// Its owner (`sub`).
    #[arg(long, default_value = "me")]
    subject: String,

    /// Its audience (`aud`), which --jwt-audience names.
    #[arg(long, default_value = "herald")]
    audience: String,

    /// Its id (`jti`), by which it can be revoked.
    #[arg(long)]
    id: Option<String>,

    /// File with the secret, as a JWKS; target/token-keys.json if not set.
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let keys = args.keys.clone().unwrap_or_else(file);
    if !keys.exists() {
        create(&keys)?;
        eprintln!(
            "created {}: start services with --jwt-keys {0}",
            keys.display()
        );
    }
    let secret = secret(&keys).with_context(|| format!("cannot use {}", keys.display()))?;
    let expiry = Timestamp::now().checked_add(args.valid_for)?;
    let mut claims = BTreeMap::from([
        ("sub", json!(args.subject)),
        ("aud", json!(args.audience)),
        ("exp", json!(expiry.as_second())),
        ("read", json!(args.read)),
        ("write", json!(args.write)),
    ]);
    if let Some(id) = &args.id {
        claims.insert("jti", json!(id));
    }
    let token = encode(&Header::new(Algorithm::HS256), &claims, &secret)?;
    println!("{token}");
    Ok(ExitCode::SUCCESS)
}

/// The secret of this machine, as a JWKS. It is made the first time.
pub fn keys() -> anyhow::Result<String> {
    let file = file();
    if !file.exists() {
        create(&file)?;
    }
    fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
}

fn file() -> PathBuf {
    crate::target().join("token-keys.json")
}

/// Writes a new secret that its owner alone may read.
fn create(file: &Path) -> anyhow::Result<()> {
    let secret = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
    let keys = json!({"keys": [{"kty": "oct", "alg": "HS256", "k": secret}]});
    let context = || format!("cannot write {}", file.display());
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut opened = options.open(file).with_context(context)?;
    std::io::Write::write_all(&mut opened, keys.to_string().as_bytes()).with_context(context)
}

fn secret(file: &Path) -> anyhow::Result<EncodingKey> {
    let keys: Json = serde_json::from_slice(&fs::read(file)?).context("it is not JSON")?;
    let secret = keys.pointer("/keys/0/k").and_then(Json::as_str);
    let secret = secret
        .context("its first key is not a secret; tokens of a key pair are signed elsewhere")?;
    Ok(EncodingKey::from_secret(&URL_SAFE_NO_PAD.decode(secret)?))
}
