//! Reads key files, and knows where the signature and the attestation of a checkpoint are by default.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::output::Failure;
use audit::provenance::{KeyError, PrivateKey, PublicKey};
use errors::Refusal;

/// The largest key file that is read.
const MAX_KEY_BYTES: u64 = 1 << 20;

/// The signature's file name in a checkpoint's folder, as in the model-signing package.
const SIGNATURE: &str = "model.sig";

/// The attestation's file name.
const ATTESTATION: &str = "weldment.intoto.json";

/// The default path of a checkpoint's signature: in its folder, or beside its only file.
pub(super) fn signature_of(model: &Path) -> PathBuf {
    of(model, SIGNATURE, ".sig")
}

/// The default path of its attestation.
pub(super) fn attestation_of(model: &Path) -> PathBuf {
    of(model, ATTESTATION, ".intoto.json")
}

/// Whether a file of a checkpoint's folder is its signature or attestation, judging by the name.
pub(super) fn vouches(name: &str) -> bool {
    [SIGNATURE, ATTESTATION].contains(&name)
}

fn of(model: &Path, in_folder: &str, beside: &str) -> PathBuf {
    match model.is_file() {
        true => {
            let mut name = model.file_name().unwrap_or_default().to_owned();
            name.push(beside);
            model.with_file_name(name)
        }
        false => model.join(in_folder),
    }
}

/// Reads a private key.
pub(super) fn private(path: &Path) -> Result<PrivateKey, Failure> {
    read(path, PrivateKey::read)
}

/// Reads a public key.
pub(super) fn public(path: &Path) -> Result<PublicKey, Failure> {
    read(path, PublicKey::read)
}

fn read<K>(path: &Path, parse: impl Fn(&str) -> Result<K, KeyError>) -> Result<K, Failure> {
    let name = path.display();
    // Pipes are allowed, so that a secret need not be stored in a file.
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_KEY_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| Failure::tool(format!("cannot read the key {name}: {error}")))?;
    if bytes.len() as u64 > MAX_KEY_BYTES {
        return Err(Failure::tool(format!(
            "the key {name} is too large: expected at most {MAX_KEY_BYTES} bytes"
        )));
    }
    let text = String::from_utf8_lossy(&bytes);
    parse(&text).map_err(|error| {
        Failure::tool(Refusal::from(&error).within(format_args!("the key {name}")))
    })
}
