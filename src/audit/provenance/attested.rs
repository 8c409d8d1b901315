//! `weld verify --attestation`: compares the files of a checkpoint with a signed attestation.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::attest::{BUILD_TYPE, PREDICATE, Predicate};
use super::bundle::{self, Refused};
use super::checks;
use super::digest::{Algorithm, DigestedRange, digests};
use super::keys::PublicKey;
use super::manifest::not_signed;
use super::short;
use super::sign::{below, whole};
use super::signature_check::{MAX_BUNDLE_BYTES, SignatureCheck, file_name};
use super::statement::Statement;
use crate::loaders::is_below;
use crate::{Finding, Place};
use checkpoint::{CheckpointError, TreeEntry, read_bounded, tree};
use engine::Observer;
use run::RunError;

/// The model card. It is for people, no verification compares it, and an attestation does not cover it.
const CARD: &str = "README.md";

/// An attestation that was opened. If it holds, the files are compared with it.
pub struct Attested {
    file: String,
    key: PublicKey,
    findings: Vec<Finding>,
    compared: Vec<(TreeEntry, String)>,
}

impl Attested {
    /// Opens the bundle in `file`, checks that it was signed by `key`, and lists the files at `root`. A file at
    /// `signature` is left out, because an attestation cannot cover a later signature, and so are the paths of
    /// `ignored`, unless they are attested.
    ///
    /// # Errors
    /// The bundle cannot be read, or the folder cannot be listed. Anything wrong in their content is a finding.
    pub fn open(
        root: &Path,
        file: &Path,
        signature: &Path,
        key: &PublicKey,
        ignored: &[String],
    ) -> Result<Attested, CheckpointError> {
        let bytes = read_bounded(file, MAX_BUNDLE_BYTES, "attestation, in bytes")?;
        let mut opened = Attested {
            file: file_name(file),
            key: key.clone(),
            findings: Vec::new(),
            compared: Vec::new(),
        };
        let subjects = match subjects(&bytes, key) {
            Ok(subjects) => subjects,
            Err((expected, found)) => {
                let place = Place::file(opened.file.as_str());
                let finding = Finding::new(&checks::ATTESTATION, place, expected, found);
                opened.findings.push(finding);
                return Ok(opened);
            }
        };
        let real =
            fs::canonicalize(root).map_err(|source| CheckpointError::io("open", root, source))?;
        let beside = [file, signature].map(|file| below(&real, file).flatten());
        let skip = |path: &str| {
            let is_ignored = |ignored: &String| is_below(path, ignored);
            let covers = |subject: &String| is_below(subject, path);
            not_signed(path)
                || path == CARD
                || ignored.iter().any(is_ignored) && !subjects.keys().any(covers)
                || beside.iter().any(|own| own.as_deref() == Some(path))
        };
        let entries = tree(&real, &skip)?;
        opened.list(entries, subjects);
        Ok(opened)
    }

    fn list(&mut self, entries: Vec<TreeEntry>, mut subjects: BTreeMap<String, String>) {
        for entry in entries {
            let attested = subjects.remove(&entry.name);
            match (attested, entry.kind.bytes()) {
                (Some(sha256), Some(_)) => self.compared.push((entry, sha256)),
                (Some(_), None) => self.differs(&entry.name, "a file", "something else"),
                (None, _) => self.differs(&entry.name, "a file that is attested", "another"),
            }
        }
        for name in subjects.keys() {
            self.differs(name, "a file that is attested", "none");
        }
    }

    fn differs(&mut self, file: &str, expected: &str, found: &str) {
        let place = Place::file(short(file));
        self.findings
            .push(Finding::new(&checks::ATTESTED, place, expected, found));
    }

    /// Number of bytes that [`Attested::check`] reads.
    pub fn bytes(&self) -> u64 {
        let bytes = self
            .compared
            .iter()
            .filter_map(|(entry, _)| entry.kind.bytes());
        bytes.sum()
    }

    /// Hashes the files and returns the result.
    ///
    /// # Errors
    /// The observer cancelled the work, or the threads could not be started.
    pub fn check(
        mut self,
        threads: usize,
        observer: &dyn Observer,
    ) -> Result<SignatureCheck, RunError> {
        let compared = std::mem::take(&mut self.compared);
        let pieces: Vec<DigestedRange> = compared.iter().map(|(entry, _)| whole(entry)).collect();
        let found = digests(&pieces, Algorithm::Sha256, threads, observer)?;
        let mut files = 0;
        for ((entry, sha256), found) in compared.into_iter().zip(found) {
            let found = match found {
                Ok(found)
                    if base16ct::lower::encode_string(&found) == sha256.to_ascii_lowercase() =>
                {
                    files += 1;
                    continue;
                }
                Ok(found) => base16ct::lower::encode_string(&found),
                Err(error) => format!("a file that cannot be read: {error}"),
            };
            self.differs(&entry.name, &format!("sha256 {}", short(&sha256)), &found);
        }
        Ok(SignatureCheck::new(
            "attestation",
            self.file,
            &self.key,
            files,
            self.findings,
        ))
    }
}

/// The files that a signed attestation covers, and their digests.
fn subjects(bytes: &[u8], key: &PublicKey) -> Result<BTreeMap<String, String>, (String, String)> {
    let payload = bundle::open(bytes, key).map_err(|refused| match refused {
        Refused::Unreadable { expected, found } => (expected.to_owned(), found),
        Refused::OtherKey { expected, found } => (format!("key {expected}"), found),
        Refused::Invalid => (
            format!("a signature by the key {}", key.fingerprint()),
            "another".to_owned(),
        ),
    })?;
    let statement = Statement::read(&payload)?;
    if statement.predicate_type != PREDICATE {
        return Err((PREDICATE.to_owned(), short(&statement.predicate_type)));
    }
    let predicate: Predicate = serde_json::from_str(statement.predicate.get())
        .map_err(|error| ("SLSA provenance".to_owned(), short(&error.to_string())))?;
    let build_type = predicate.build_definition.build_type;
    if build_type != BUILD_TYPE {
        return Err((BUILD_TYPE.to_owned(), short(&build_type)));
    }
    let mut subjects = BTreeMap::new();
    for (name, mut digests) in statement.subject {
        let Some(sha256) = digests.remove("sha256") else {
            return Err(("the SHA-256 of every file".to_owned(), short(&name)));
        };
        if let Some(other) = subjects.insert(name.clone(), sha256) {
            let found = format!("{} also as {}", short(&name), short(&other));
            return Err(("every file once".to_owned(), found));
        }
    }
    Ok(subjects)
}
