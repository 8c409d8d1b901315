//! Models in object stores: addresses such as `s3://bucket/folder`, and what is known of what lies there.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::remote::RemoteFiles;
use super::scratch_folder::ScratchFolder;
use errors::Refusal;

/// What addresses begin with.
const SCHEMES: [&str; 7] = [
    "s3://", "gs://", "az://", "abfs://", "abfss://", "http://", "https://",
];

/// Whether a name is the address of an object store.
pub fn is_store_address(text: &str) -> bool {
    let begins = |scheme: &&str| {
        let start = text.as_bytes().get(..scheme.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(scheme.as_bytes()))
    };
    SCHEMES.iter().any(begins)
}

/// The address without what may be secret: names of users, passwords, signatures.
pub fn without_secrets(address: &str) -> String {
    let end = address.find(['?', '#']).unwrap_or(address.len());
    let (plain, secret) = address.split_at(end);
    let (scheme, rest) = plain.split_once("://").unwrap_or(("", plain));
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = match host.rsplit_once('@') {
        // Azure has the container there.
        Some((user, host)) if user.contains(':') || !scheme.starts_with('a') => {
            format!("...@{host}")
        }
        _ => host.to_owned(),
    };
    let secret = if secret.is_empty() { "" } else { "?..." };
    format!("{scheme}://{host}{path}{secret}")
}

/// Fetches models from object stores.
pub trait Stores: fmt::Debug + Send + Sync {
    /// Fetches what is at an address: a folder, or a single file of weights.
    ///
    /// # Errors
    /// Nothing is there, it cannot be reached or read, or the address is none.
    fn fetch(&self, address: &str) -> Result<StoreFolder, Refusal>;
}

/// A model of an object store on this machine.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreFolder {
    /// Its folder, or its single file.
    pub path: PathBuf,
    /// The weight files of which only the headers are there.
    pub remote: RemoteFiles,
    /// What lies in the store.
    pub model: StoredModel,
}

/// What a store says of a model that was read from it.
#[derive(Debug, Clone)]
pub struct StoredModel {
    /// Its address.
    pub address: String,
    /// Its weight files by their paths in its folder.
    pub objects: BTreeMap<String, StoredObject>,
    /// The folder that holds it here, which stays as long as this.
    pub folder: std::sync::Arc<ScratchFolder>,
}

impl PartialEq for StoredModel {
    fn eq(&self, other: &StoredModel) -> bool {
        self.address == other.address && self.objects == other.objects
    }
}

/// One state of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredObject {
    /// Its length.
    pub bytes: u64,
    /// What the store calls this state of its content.
    pub etag: Option<String>,
    /// Its version, where the store keeps several.
    pub version: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_paths_and_repositories() {
        for address in ["s3://b/x", "S3://b", "https://host/x", "az://c@account/x"] {
            assert!(is_store_address(address), "{address}");
        }
        for other in [
            "s3:/b",
            "org/name",
            "./s3://b",
            "file:///x",
            "s3",
            "é3://b",
            "",
        ] {
            assert!(!is_store_address(other), "{other}");
        }
    }

    #[test]
    fn what_may_be_secret_is_not_shown() {
        for (address, shown) in [
            ("s3://b/x", "s3://b/x"),
            ("https://h/x?X-Amz-Signature=abc", "https://h/x?..."),
            ("https://me:secret@h:1/x@y", "https://...@h:1/x@y"),
            ("https://token@h", "https://...@h"),
            ("az://c@account/x", "az://c@account/x"),
            ("s3://key:secret@b/x", "s3://...@b/x"),
            ("https://h/x#frag", "https://h/x?..."),
        ] {
            assert_eq!(without_secrets(address), shown);
        }
    }
}
