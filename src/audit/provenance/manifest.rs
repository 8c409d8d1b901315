//! The predicate of OpenSSF Model Signing 1.0: the files that a signature covers, and their digests.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::digest::Algorithm;
use super::short;
use super::statement::Statement;
use crate::loaders::is_below;

/// The predicate's type.
pub(super) const PREDICATE: &str = "https://model_signing/signature/v1.0";

/// Files of a repository, and the notes of the Hub's client on its downloads, which are not part of the model. At the
/// top of the folder, they are not signed.
pub(super) const NOT_SIGNED: [&str; 5] = [
    ".git",
    ".gitignore",
    ".gitattributes",
    ".github",
    ".cache/huggingface",
];

/// The longest path of a file in bytes, as in Linux.
const MAX_PATH_BYTES: usize = 4096;

/// The files that a signature covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manifest {
    /// The length of the ranges that files are hashed in; `None` if they are hashed whole.
    pub(super) shard: Option<u64>,
    /// The hash algorithm.
    pub(super) algorithm: Algorithm,
    /// Whether symbolic links are followed.
    pub(super) links: bool,
    /// Other files that are left out, besides those of a repository: normalized paths.
    pub(super) ignored: Vec<String>,
    /// The digests by resource: a path, with a range if files are hashed in ranges.
    pub(super) resources: BTreeMap<Resource, Vec<u8>>,
}

/// A file, or a range of one, that has a digest of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Resource {
    pub(super) path: String,
    /// The range's first byte and the byte after its last.
    pub(super) range: Option<(u64, u64)>,
}

impl Resource {
    pub(super) fn whole(path: impl Into<String>) -> Resource {
        Resource {
            path: path.into(),
            range: None,
        }
    }
}

#[derive(Deserialize)]
struct Predicate {
    serialization: Serialization,
    resources: Vec<Described>,
}

#[derive(Deserialize)]
struct Serialization {
    method: String,
    hash_type: String,
    allow_symlinks: bool,
    /// The package writes integers as floats.
    shard_size: Option<f64>,
    #[serde(default)]
    ignore_paths: Vec<String>,
}

#[derive(Deserialize)]
struct Described {
    name: String,
    algorithm: String,
    digest: String,
}

impl Manifest {
    /// Reads a statement.
    ///
    /// # Errors
    /// The statement has another form; returns what was expected and what was found.
    pub(super) fn read(payload: &[u8]) -> Result<Manifest, (String, String)> {
        let statement = Statement::read(payload)?;
        if statement.predicate_type != PREDICATE {
            return Err((PREDICATE.to_owned(), short(&statement.predicate_type)));
        }
        let predicate: Predicate = serde_json::from_str(statement.predicate.get())
            .map_err(|error| ("a predicate".to_owned(), short(&error.to_string())))?;
        let Serialization {
            method,
            hash_type,
            allow_symlinks,
            shard_size,
            ignore_paths,
        } = predicate.serialization;
        let shard = match (method.as_str(), shard_size) {
            ("files", None) => None,
            ("shards", Some(size)) if size.fract() == 0.0 && (1.0..1e15).contains(&size) => {
                Some(size as u64)
            }
            ("shards", size) => {
                let found = size.map_or("none".to_owned(), |size| size.to_string());
                return Err(("a shard_size in bytes".to_owned(), found));
            }
            _ => return Err(("method `files` or `shards`".to_owned(), short(&method))),
        };
        let algorithm = Algorithm::named(&hash_type)
            .ok_or_else(|| ("hash_type sha256 or blake3".to_owned(), short(&hash_type)))?;
        // The package's name of a hash in ranges.
        let in_ranges = shard.map(|size| format!("{hash_type}-sharded-{size}"));
        let mut resources = BTreeMap::new();
        let mut root = Sha256::new();
        for described in predicate.resources {
            if described.algorithm != hash_type && Some(&described.algorithm) != in_ranges.as_ref()
            {
                return Err((hash_type, short(&described.algorithm)));
            }
            let digest = base16ct::mixed::decode_vec(&described.digest)
                .ok()
                .filter(|digest| digest.len() == algorithm.bytes())
                .ok_or_else(|| ("a digest in hex".to_owned(), short(&described.digest)))?;
            root.update(&digest);
            let resource = resource(&described.name, shard.is_some())
                .ok_or_else(|| ("a path in the folder".to_owned(), short(&described.name)))?;
            if resources.insert(resource, digest).is_some() {
                let found = format!("{} twice", short(&described.name));
                return Err(("every file once".to_owned(), found));
            }
        }
        if resources.is_empty() {
            return Err(("files".to_owned(), "none".to_owned()));
        }
        let [(_, named)] = statement.subject.as_slice() else {
            let found = format!("{} subjects", statement.subject.len());
            return Err(("one subject".to_owned(), found));
        };
        // The package checks this too. A root digest that does not match the files shows that the statement was
        // altered.
        let root = base16ct::lower::encode_string(&root.finalize());
        if named.get("sha256") != Some(&root) {
            let found = named.get("sha256").map_or("none".to_owned(), |s| short(s));
            return Err((format!("root digest {root}"), found));
        }
        Ok(Manifest {
            shard,
            algorithm,
            links: allow_symlinks,
            ignored: ignore_paths
                .iter()
                .filter_map(|path| plain(path))
                .filter(|path| !not_signed(path))
                .collect(),
            resources,
        })
    }

    /// Writes the statement about a model with this name.
    ///
    /// Files are sorted by name, as the specification requires, and hashed whole with SHA-256.
    pub(super) fn write(&self, model: &str) -> String {
        let mut root = Sha256::new();
        let mut resources = Vec::with_capacity(self.resources.len());
        for (resource, digest) in &self.resources {
            root.update(digest);
            resources.push(json!({
                "name": resource.path,
                "algorithm": self.algorithm.name(),
                "digest": base16ct::lower::encode_string(digest),
            }));
        }
        let ignored: Vec<&str> = NOT_SIGNED
            .into_iter()
            .chain(self.ignored.iter().map(String::as_str))
            .collect();
        let subject = json!([{"name": model, "digest": {"sha256": base16ct::lower::encode_string(&root.finalize())}}]);
        let predicate = json!({
            "serialization": {
                "method": "files",
                "hash_type": self.algorithm.name(),
                "allow_symlinks": self.links,
                "ignore_paths": ignored,
            },
            "resources": resources,
        });
        Statement::write(subject, PREDICATE, predicate).to_string()
    }

    /// Whether a path is not covered.
    pub(super) fn leaves_out(&self, path: &str) -> bool {
        not_signed(path) || self.ignored.iter().any(|ignored| is_below(path, ignored))
    }
}

/// Whether a path is never signed by weld.
pub(super) fn not_signed(path: &str) -> bool {
    NOT_SIGNED.iter().any(|apart| is_below(path, apart))
}

/// Parses `path`, or `path:first:last`; the path itself may contain colons.
fn resource(name: &str, in_ranges: bool) -> Option<Resource> {
    let (path, range) = match in_ranges {
        false => (name, None),
        true => {
            let mut parts = name.rsplitn(3, ':');
            let last = parts.next()?.parse().ok()?;
            let first = parts.next()?.parse().ok()?;
            (parts.next()?, Some((first, last)))
        }
    };
    let is_plain = path == "." || plain(path).as_deref() == Some(path);
    is_plain.then(|| Resource {
        path: path.to_owned(),
        range,
    })
}

/// Normalizes a path inside the folder: removes `.` and doubled separators. Returns `None` if it leads out of the
/// folder or is empty.
pub(super) fn plain(path: &str) -> Option<String> {
    if path.starts_with('/') || path.len() > MAX_PATH_BYTES || path.contains('\0') {
        return None;
    }
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    (!parts.is_empty() && !parts.contains(&"..")).then(|| parts.join("/"))
}
