//! `weld verify --signature`: checks the signature, then compares every file with what was signed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::bundle::{self, Refused};
use super::checks;
use super::digest::{DigestedRange, digests};
use super::keys::PublicKey;
use super::manifest::{Manifest, Resource};
use super::short;
use super::sign::{below, whole};
use super::signature_check::{MAX_BUNDLE_BYTES, SignatureCheck, file_name};
use crate::loaders::is_below;
use crate::{Finding, Place};
use checkpoint::{CheckpointError, TreeEntry, TreeKind, read_bounded, tree};
use engine::Observer;
use run::RunError;

/// A signature that was opened. If it holds, the files are compared with it.
pub struct Signature {
    file: String,
    key: PublicKey,
    findings: Vec<Finding>,
    expected: Option<Manifest>,
    compared: Vec<Compared>,
}

/// A range of bytes that must have a given digest.
struct Compared {
    place: Place,
    piece: DigestedRange,
    digest: Vec<u8>,
}

impl Signature {
    /// Opens the bundle in `file`, checks that it was signed by `key`, and lists the files at `root`, a folder or a
    /// file. What lies at the paths of `ignored`, relative to `root`, need not be signed.
    ///
    /// # Errors
    /// The bundle cannot be read, or the folder cannot be listed. Anything wrong in their content is a finding.
    pub fn open(
        root: &Path,
        file: &Path,
        key: &PublicKey,
        ignored: &[String],
    ) -> Result<Signature, CheckpointError> {
        let bytes = read_bounded(file, MAX_BUNDLE_BYTES, "signature, in bytes")?;
        let name = file_name(file);
        let mut opened = Signature {
            file: name.clone(),
            key: key.clone(),
            findings: Vec::new(),
            expected: None,
            compared: Vec::new(),
        };
        let place = Place::file(name);
        let manifest = match bundle::open(&bytes, key) {
            Ok(payload) => Manifest::read(&payload),
            Err(refused) => {
                opened.findings.push(refusal(refused, place, key));
                return Ok(opened);
            }
        };
        match manifest {
            Ok(manifest) => opened.list(root, file, ignored, manifest)?,
            Err((expected, found)) => {
                let finding = Finding::new(&checks::UNREADABLE, place, expected, found);
                opened.findings.push(finding);
            }
        }
        Ok(opened)
    }

    /// Compares the names of the files with those that were signed.
    fn list(
        &mut self,
        root: &Path,
        file: &Path,
        ignored: &[String],
        manifest: Manifest,
    ) -> Result<(), CheckpointError> {
        let real =
            fs::canonicalize(root).map_err(|source| CheckpointError::io("open", root, source))?;
        let own = below(&real, file).flatten();
        let is_ignored = |path: &str| ignored.iter().any(|ignored| is_below(path, ignored));
        let unsigned = |path: &str| manifest.leaves_out(path) || is_ignored(path);
        let mut signed: BTreeMap<&str, Vec<(&Resource, &[u8])>> = BTreeMap::new();
        for (resource, digest) in &manifest.resources {
            let of_path = signed.entry(&resource.path).or_default();
            of_path.push((resource, digest));
        }
        // A signature may cover files of git, say, which weld itself does not sign.
        let covers = |path: &str| {
            let mut from = signed
                .range(path..)
                .take_while(|(signed, _)| signed.starts_with(path));
            from.any(|(signed, _)| is_below(signed, path))
        };
        let skip = |path: &str| own.as_deref() == Some(path) || unsigned(path) && !covers(path);
        let entries = tree(&real, &skip)?;
        for path in manifest.ignored.iter().filter(|path| !is_ignored(path)) {
            if own.as_ref() != Some(path) && real.join(path).symlink_metadata().is_ok() {
                let finding = Finding::new(
                    &checks::LEFT_OUT,
                    Place::file(path),
                    "nothing at a path that is not signed",
                    "something",
                );
                self.findings.push(finding);
            }
        }
        let mut seen = BTreeSet::new();
        for entry in &entries {
            let name = signed_name(entry, &real, &signed);
            let resources = signed.get(name.as_str()).map_or(&[][..], Vec::as_slice);
            if resources.is_empty() && unsigned(&name) {
                continue;
            }
            seen.insert(name);
            self.entry(entry, resources, &manifest);
        }
        for path in signed.keys().filter(|path| !seen.contains(**path)) {
            let finding = Finding::new(
                &checks::ABSENT,
                Place::file(short(path)),
                "the file",
                "none",
            );
            self.findings.push(finding);
        }
        self.expected = Some(manifest);
        Ok(())
    }

    /// Compares a file with what was signed for it.
    fn entry(&mut self, entry: &TreeEntry, resources: &[(&Resource, &[u8])], manifest: &Manifest) {
        let place = Place::file(short(&entry.name));
        let mut find = |check, expected: &str, found: String| {
            self.findings
                .push(Finding::new(check, place.clone(), expected, found));
        };
        let bytes = match &entry.kind {
            TreeKind::Other(found) => {
                let check = match resources {
                    [] => &checks::ADDED,
                    _ => &checks::CHANGED,
                };
                return find(check, "files only", (*found).to_owned());
            }
            TreeKind::File(bytes) => *bytes,
            TreeKind::Link { .. } if !manifest.links => {
                return find(&checks::LINK, "a file", "a link".to_owned());
            }
            TreeKind::Link { bytes, outside } => {
                if *outside {
                    find(&checks::OUTSIDE, "a file", "a link".to_owned());
                }
                *bytes
            }
        };
        // An empty file has no ranges.
        if resources.is_empty() && !(manifest.shard.is_some() && bytes == 0) {
            return find(&checks::ADDED, "no such file", format!("{bytes} bytes"));
        }
        let Some(size) = manifest.shard else {
            let whole = resources.iter().map(|(_, digest)| (whole(entry), digest));
            self.compared.extend(whole.map(|(piece, digest)| Compared {
                place: place.clone(),
                piece,
                digest: digest.to_vec(),
            }));
            return;
        };
        let count = bytes.div_ceil(size);
        let ranges = (0..count).map(|at| (at * size, (at + 1).saturating_mul(size).min(bytes)));
        let as_signed = count == resources.len() as u64
            && ranges
                .zip(resources)
                .all(|(range, (resource, _))| resource.range == Some(range));
        if !as_signed {
            let found = format!("{bytes} bytes, which are other ranges");
            return find(&checks::CHANGED, "the ranges that were signed", found);
        }
        for (resource, digest) in resources {
            let Some((first, last)) = resource.range else {
                continue;
            };
            self.compared.push(Compared {
                place: place.clone(),
                piece: DigestedRange {
                    path: entry.path.clone(),
                    first,
                    bytes: last.saturating_sub(first),
                    ends: last == bytes,
                },
                digest: digest.to_vec(),
            });
        }
    }

    /// Number of bytes that [`Signature::check`] reads.
    pub fn bytes(&self) -> u64 {
        self.compared.iter().map(|one| one.piece.bytes).sum()
    }

    /// Hashes the files and returns the result.
    ///
    /// # Errors
    /// The observer cancelled the work, or the threads could not be started.
    pub fn check(
        self,
        threads: usize,
        observer: &dyn Observer,
    ) -> Result<SignatureCheck, RunError> {
        let Signature {
            file,
            key,
            mut findings,
            expected,
            compared,
        } = self;
        let pieces: Vec<DigestedRange> = compared.iter().map(|one| one.piece.clone()).collect();
        let mut files = BTreeSet::new();
        if let Some(manifest) = &expected {
            let algorithm = manifest.algorithm;
            let digests = digests(&pieces, algorithm, threads, observer)?;
            for (one, digest) in compared.into_iter().zip(digests) {
                let found = match digest {
                    Ok(digest) if digest == one.digest => {
                        files.insert(one.place);
                        continue;
                    }
                    Ok(digest) => base16ct::lower::encode_string(&digest),
                    Err(error) => format!("a file that cannot be read: {error}"),
                };
                let expected = format!(
                    "{} {}",
                    algorithm.name(),
                    base16ct::lower::encode_string(&one.digest)
                );
                findings.push(Finding::new(&checks::CHANGED, one.place, expected, found));
            }
        }
        Ok(SignatureCheck::new(
            "signature",
            file,
            &key,
            files.len(),
            findings,
        ))
    }
}

/// The name of a file in a signature. For a model that is a single file, the model-signing package uses `.`, the
/// specification uses its name.
fn signed_name(
    entry: &TreeEntry,
    root: &Path,
    signed: &BTreeMap<&str, Vec<(&Resource, &[u8])>>,
) -> String {
    if entry.name == "." && !signed.contains_key(".") {
        return file_name(root);
    }
    entry.name.clone()
}

fn refusal(refused: Refused, place: Place, key: &PublicKey) -> Finding {
    match refused {
        Refused::Unreadable { expected, found } => {
            Finding::new(&checks::UNREADABLE, place, expected, found)
        }
        Refused::OtherKey { expected, found } => {
            Finding::new(&checks::OTHER_KEY, place, format!("key {expected}"), found)
        }
        Refused::Invalid => {
            let expected = format!("a signature by the key {}", key.fingerprint());
            Finding::new(&checks::INVALID, place, expected, "another")
        }
    }
}
