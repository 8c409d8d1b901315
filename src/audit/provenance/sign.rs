//! `weld sign`: signs the digests of all files with a key.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::bundle;
use super::digest::{Algorithm, DigestedRange, digests};
use super::keys::PrivateKey;
use super::manifest::{Manifest, Resource, not_signed};
use checkpoint::{CheckpointError, TreeEntry, TreeKind, tree};
use engine::Observer;
use errors::Hint;
use run::RunError;

/// Why a checkpoint is not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The files cannot be listed.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The work was cancelled, or threads could not be started.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The folder holds something other than files and folders.
    #[error(
        "{path}: expected files only, found {found}", path = .path.display()
    )]
    NotAFile {
        /// Its path.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Unreadable {
        /// The file's path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// There are no files to sign.
    #[error("{path}: expected files to sign, found none", path = .path.display())]
    Empty {
        /// The folder's path.
        path: PathBuf,
    },
    /// The signature's path cannot be written into the statement, which must tell verifiers to leave it out.
    #[error(
        "the signature's path {path} is no UTF-8, so nobody could be told to leave it out",
        path = .path.display()
    )]
    BadPlace {
        /// The signature's path.
        path: PathBuf,
    },
    /// A file changed after it was verified.
    #[error("{} changed after it was verified", file.escape_debug())]
    Changed {
        /// Its path in the folder.
        file: String,
    },
    /// A file is not what its name in the Hub's cache claims.
    #[error("{path}: expected SHA-256 {expected}, as the Hub's cache or the lock claims, found {found}", path = .path.display())]
    OtherDigest {
        /// The file's path.
        path: PathBuf,
        /// The claimed digest.
        expected: String,
        /// The digest of its bytes.
        found: String,
    },
    /// The key cannot sign.
    #[error("the key cannot sign")]
    Key,
}

impl Hint for SignError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let hint = match self {
            Self::Checkpoint(source) => return source.hint(),
            Self::Run(source) => return source.hint(),
            Self::NotAFile { .. } => {
                "put the file itself there, as what a link leads to can be exchanged"
            }
            Self::BadPlace { .. } => "choose another name",
            Self::Changed { .. } => "attest it again when nothing writes to it",
            Self::OtherDigest { .. } => {
                "the file was damaged or replaced: download it again, and merge again"
            }
            Self::Key => "make another one",
            Self::Unreadable { .. } | Self::Empty { .. } => return None,
        };
        Some(Cow::Borrowed(hint))
    }
}

/// The files that will be signed: those of a folder, or a single one.
pub struct ToSign {
    name: String,
    entries: Vec<TreeEntry>,
    ignored: Vec<String>,
}

/// A signature, and what it covers.
pub struct Signed {
    /// The text of the bundle.
    pub bundle: String,
    /// The number of files that it covers.
    pub files: usize,
}

impl ToSign {
    /// Lists the files at `root`. The files of a repository are left out, and so are the paths of `ignored`, which are
    /// relative to `root`, and the signature's own path if it is below `root`.
    ///
    /// # Errors
    /// The folder cannot be listed, is empty, or holds something other than files.
    pub fn list(root: &Path, signature: &Path, ignored: Vec<String>) -> Result<ToSign, SignError> {
        let real =
            fs::canonicalize(root).map_err(|source| CheckpointError::io("open", root, source))?;
        let mut ignored = ignored;
        if let Some(place) = below(&real, signature) {
            let place = place.ok_or_else(|| SignError::BadPlace {
                path: signature.into(),
            })?;
            ignored.push(place);
        }
        ignored.retain(|path| !not_signed(path));
        let left_out = Manifest {
            shard: None,
            algorithm: Algorithm::Sha256,
            links: false,
            ignored,
            resources: BTreeMap::new(),
        };
        let entries = tree(&real, &|path| left_out.leaves_out(path))?;
        for entry in &entries {
            let found = match entry.kind {
                TreeKind::File(_) => continue,
                TreeKind::Link { .. } => "a link",
                TreeKind::Other(found) => found,
            };
            return Err(SignError::NotAFile {
                path: entry.path.clone(),
                found,
            });
        }
        if entries.is_empty() {
            return Err(SignError::Empty { path: root.into() });
        }
        let name = real.file_name().unwrap_or(real.as_os_str());
        Ok(ToSign {
            name: name.to_string_lossy().into_owned(),
            entries,
            ignored: left_out.ignored,
        })
    }

    /// Number of bytes that will be read.
    pub fn bytes(&self) -> u64 {
        let bytes = self.entries.iter().filter_map(|entry| entry.kind.bytes());
        bytes.sum()
    }

    /// Signs the files.
    ///
    /// The same files and key always give the same signature.
    ///
    /// # Errors
    /// A file cannot be read, or the observer cancelled the work.
    pub fn sign(
        self,
        key: &PrivateKey,
        threads: usize,
        observer: &dyn Observer,
    ) -> Result<Signed, SignError> {
        let pieces: Vec<DigestedRange> = self.entries.iter().map(whole).collect();
        let digests = digests(&pieces, Algorithm::Sha256, threads, observer)?;
        let mut resources = BTreeMap::new();
        for (entry, digest) in self.entries.iter().zip(digests) {
            let digest = digest.map_err(|source| SignError::Unreadable {
                path: entry.path.clone(),
                source,
            })?;
            resources.insert(Resource::whole(&entry.name), digest);
        }
        let files = resources.len();
        let manifest = Manifest {
            shard: None,
            algorithm: Algorithm::Sha256,
            links: false,
            ignored: self.ignored,
            resources,
        };
        let payload = manifest.write(&self.name);
        let bundle = bundle::write(payload.as_bytes(), key).ok_or(SignError::Key)?;
        Ok(Signed { bundle, files })
    }
}

/// A whole file as one piece.
pub(super) fn whole(entry: &TreeEntry) -> DigestedRange {
    DigestedRange {
        path: entry.path.clone(),
        first: 0,
        bytes: entry.kind.bytes().unwrap_or(0),
        ends: true,
    }
}

/// The path of a file relative to a folder, if it is below it. The file's parent must exist, the file need not.
/// `Some(None)` if the path is not UTF-8.
pub(super) fn below(folder: &Path, file: &Path) -> Option<Option<String>> {
    let parent = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let parent = fs::canonicalize(parent).ok()?;
    let inside = parent.strip_prefix(folder).ok()?;
    let path = inside.join(file.file_name()?);
    let mut names = Vec::new();
    for name in &path {
        let Some(name) = name.to_str() else {
            return Some(None);
        };
        names.push(name);
    }
    Some(Some(names.join("/")))
}
