//! Who vouches for a checkpoint, and for what: signatures by OpenSSF Model Signing 1.0, and attestations of where it
//! comes from.
//!
//! A signature says that the holder of a key had these bytes, but not how they were made. An attestation says what they
//! were made from. It is written only for bytes that were recomputed.

pub mod attest;
mod attested;
mod bundle;
mod checks;
mod digest;
mod inputs;
mod keys;
mod manifest;
mod sign;
mod signature;
mod signature_check;
mod statement;

use std::fs;
use std::path::Path;

pub use attest::{Attestation, attest};
pub use attested::Attested;
pub use bundle::is_bundle;
pub(crate) use checks::CHECKS;
pub use inputs::check_inputs;
pub use keys::{KeyError, KeyHalf, PrivateKey, PublicKey};
pub use sign::{SignError, Signed, ToSign};
pub use signature::Signature;
pub use signature_check::SignatureCheck;
pub use statement::is_statement;

/// The path of a file or folder to leave out, as signatures have it: from the model's folder, with plain names. `given`
/// starts there too, or is absolute. `None` if it leads elsewhere.
pub fn path_in_folder(root: &Path, given: &str) -> Option<String> {
    if !Path::new(given).is_absolute() {
        return manifest::plain(given);
    }
    let real = fs::canonicalize(root).ok()?;
    let below = [root, &real]
        .into_iter()
        .find_map(|root| Path::new(given).strip_prefix(root).ok());
    manifest::plain(below?.to_str()?)
}

/// The most characters of untrusted text that are repeated.
const MAX_SHOWN: usize = 200;

/// Untrusted text, cut to its beginning if it is long.
fn short(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
