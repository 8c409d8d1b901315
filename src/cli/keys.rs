//! Key files, and where the signature and the attestation of a checkpoint are looked for.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::output::Failure;
use audit::provenance::{KeyError, PrivateKey, PublicKey};
use errors::Refusal;

/// The largest key file.
const MAX_KEY_BYTES: u64 = 1 << 20;

/// The signature's file in a checkpoint's folder, as the model-signing package calls it.
const SIGNATURE: &str = "model.sig";

/// The attestation's.
const ATTESTATION: &str = "weldment.intoto.json";

/// Where a checkpoint's signature is unless another place is named: in its folder, or beside its only file.
pub(super) fn signature_of(model: &Path) -> PathBuf {
    of(model, SIGNATURE, ".sig")
}

/// Where its attestation is unless another place is named.
pub(super) fn attestation_of(model: &Path) -> PathBuf {
    of(model, ATTESTATION, ".intoto.json")
}

/// Whether a file of a checkpoint's folder is its signature or attestation, by its name.
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

/// A key that signs.
pub(super) fn private(path: &Path) -> Result<PrivateKey, Failure> {
    read(path, PrivateKey::read)
}

/// A key that checks.
pub(super) fn public(path: &Path) -> Result<PublicKey, Failure> {
    read(path, PublicKey::read)
}

fn read<K>(path: &Path, parse: impl Fn(&str) -> Result<K, KeyError>) -> Result<K, Failure> {
    let name = path.display();
    // A pipe will do, so that a secret need not be a file.
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
