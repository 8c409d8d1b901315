//! `weld attest`: states where a checkpoint comes from. The statement covers only what was just recomputed.
//!
//! It is an in-toto statement with the predicate of SLSA provenance v1. It holds no time, host or absolute path, so the
//! same checkpoint and inputs always give the same text.
//!
//! # merge-v1
//!
//! The build type of a merge. `externalParameters` are the text of the `recipe` and the `options` that the result
//! depends on, including the seed, both as in `weldment.lock.json`. `internalParameters.numerics` is the version of the
//! arithmetic. `resolvedDependencies` are the input files that were used: weights, config, and files that were carried
//! over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::bundle;
use super::digest::{Algorithm, DigestedRange, digests};
use super::keys::PrivateKey;
use super::manifest::not_signed;
use super::sign::{SignError, whole};
use super::statement::Statement;
use crate::verify::{FolderListing, Weights};
use checkpoint::{Checkpoint, HubSnapshot, Part, tree};
use engine::Observer;
use numeric::NUMERICS;
use plan::Plan;
use run::{LOCK_FILE, Lock};

/// The predicate's type.
pub(super) const PREDICATE: &str = "https://slsa.dev/provenance/v1";

/// The build type of a merge.
pub(super) const BUILD_TYPE: &str =
    "https://docs.rs/weldment/latest/weldment/audit/provenance/attest/#merge-v1";

/// The builder, which is the tool itself: without a key, nobody else can be named.
const BUILDER: &str = "https://crates.io/crates/weldment";

/// The parts of a predicate that are read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Predicate {
    pub(super) build_definition: BuildDefinition,
}

/// What was built, and from what.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BuildDefinition {
    pub(super) build_type: String,
}

/// A statement about a checkpoint that was recomputed.
pub struct Attestation {
    /// The statement as indented JSON.
    pub statement: String,
    /// The number of files that it covers.
    pub subjects: usize,
    /// Files of the folder that it does not cover, because they were not recomputed.
    pub left_out: Vec<String>,
}

impl Attestation {
    /// The statement in a bundle that is signed with a key.
    ///
    /// # Errors
    /// The key cannot sign.
    pub fn signed(&self, key: &PrivateKey) -> Result<String, SignError> {
        bundle::write(self.statement.as_bytes(), key).ok_or(SignError::Key)
    }
}

/// A file of an input.
struct Dependency {
    /// The model's name in the lock.
    model: String,
    file: String,
    uri: Option<String>,
    path: PathBuf,
    /// The SHA-256 that the Hub's cache claims.
    claimed: Option<String>,
}

/// States what a plan made a checkpoint from. The caller must have verified that the checkpoint, whose lock is `locked`,
/// is the plan's result: see [`Proof`](crate::verify::Proof).
///
/// # Errors
/// A file cannot be read, changed after it was verified, or is an input with another SHA-256 than the lock or the Hub's
/// cache claims; or the observer cancelled the work.
pub fn attest(
    plan: &Plan,
    locked: &Lock,
    (folder, model): (&FolderListing, &Checkpoint),
    threads: usize,
    observer: &dyn Observer,
) -> Result<Attestation, SignError> {
    let proven = proven(plan, model);
    let (subjects, others): (Vec<_>, Vec<_>) = tree(&model.location().path, &not_signed)?
        .into_iter()
        .partition(|entry| entry.kind.bytes().is_some() && proven.contains(&entry.name));
    let lock = Lock::of_plan(plan);
    let dependencies = dependencies(plan, &lock);
    let mut pieces: Vec<DigestedRange> = subjects.iter().map(whole).collect();
    for dependency in &dependencies {
        pieces.push(piece(&dependency.path)?);
    }
    let mut sha256 = Vec::with_capacity(pieces.len());
    for (piece, digest) in
        pieces
            .iter()
            .zip(digests(&pieces, Algorithm::Sha256, threads, observer)?)
    {
        let digest = digest.map_err(|source| SignError::Unreadable {
            path: piece.path.clone(),
            source,
        })?;
        sha256.push(base16ct::lower::encode_string(&digest));
    }
    // The digests are of what was verified only if it is still there.
    if let Some(file) = folder.changes()?.into_iter().next() {
        return Err(SignError::Changed { file });
    }
    let (of_subjects, of_dependencies) = sha256.split_at(subjects.len());
    check_claims(&dependencies, of_dependencies, locked)?;
    let subject: Vec<Value> = subjects
        .iter()
        .zip(of_subjects)
        .map(|(entry, sha256)| json!({"name": entry.name, "digest": {"sha256": sha256}}))
        .collect();
    let resolved = dependencies.iter().zip(of_dependencies);
    let resolved: Vec<Value> = resolved
        .map(|(one, sha256)| describe(one, sha256))
        .collect();
    let predicate = json!({
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {"recipe": lock.recipe, "options": lock.options},
            "internalParameters": {"numerics": NUMERICS},
            "resolvedDependencies": resolved,
        },
        "runDetails": {
            "builder": {"id": BUILDER, "version": {"weldment": lock.tool.version}},
        },
    });
    let statement = Statement::write(subject.into(), PREDICATE, predicate);
    Ok(Attestation {
        statement: format!("{statement:#}\n"),
        subjects: subjects.len(),
        left_out: others.into_iter().map(|entry| entry.name).collect(),
    })
}

/// The files of a checkpoint that a verification by this plan proves. The model card is for people and is not compared.
fn proven(plan: &Plan, model: &Checkpoint) -> BTreeSet<String> {
    // Opening the checkpoint compared each index with its shards.
    let weights = Weights::of(model);
    let mut names: BTreeSet<String> = weights.iter().flat_map(Weights::files).collect();
    names.extend(plan.configs().map(|(name, ..)| name));
    names.extend(plan.made.iter().map(|(name, _)| name.clone()));
    names.extend(plan.sidecars.iter().map(|(_, file)| file.name.clone()));
    names.insert(LOCK_FILE.to_owned());
    names
}

fn piece(path: &Path) -> Result<DigestedRange, SignError> {
    let unreadable = |source| SignError::Unreadable {
        path: path.into(),
        source,
    };
    Ok(DigestedRange {
        path: path.into(),
        first: 0,
        bytes: path.metadata().map_err(unreadable)?.len(),
        ends: true,
    })
}

/// Compares the digests of the inputs' files with those that the lock and the Hub's cache claim.
fn check_claims(
    dependencies: &[Dependency],
    sha256: &[String],
    locked: &Lock,
) -> Result<(), SignError> {
    for (one, found) in dependencies.iter().zip(sha256) {
        let input = locked.inputs.iter().find(|input| input.model == one.model);
        let file = input.and_then(|input| input.files.get(&one.file));
        let by_lock = file.and_then(|file| file.claimed_sha256.as_ref());
        let claims = [by_lock, one.claimed.as_ref()];
        if let Some(expected) = claims.into_iter().flatten().find(|claim| *claim != found) {
            return Err(SignError::OtherDigest {
                path: one.path.clone(),
                expected: expected.clone(),
                found: found.clone(),
            });
        }
    }
    Ok(())
}

/// The input files that were used, by model in the order of the lock, then by name.
fn dependencies(plan: &Plan, lock: &Lock) -> Vec<Dependency> {
    let mut all = Vec::new();
    for (model, locked) in plan.stored_models().into_iter().zip(&lock.inputs) {
        let location = model.location();
        type Used<'a> = (PathBuf, Option<&'a HubSnapshot>, Option<String>);
        let mut files: BTreeMap<String, Used<'_>> = BTreeMap::new();
        let adapters = || location.parts().skip(1);
        let origin = |path: &Path| {
            let part = adapters().find(|adapter| path.starts_with(&adapter.path));
            part.unwrap_or(location).hub.as_ref()
        };
        for shard in model.shards() {
            let hub = origin(&shard.path);
            let used = (shard.path.clone(), hub, shard.hub_sha256());
            files.insert(shard.file_name(), used);
        }
        for (number, adapter) in adapters().enumerate() {
            let path = adapter.path.join("adapter_config.json");
            if path.is_file() {
                let folder = if number == 0 {
                    String::new()
                } else {
                    format!("+{}/", number + 1)
                };
                let name = format!("{folder}adapter_config.json");
                files.insert(name, (path, adapter.hub.as_ref(), None));
            }
        }
        let parts = model.parts().iter().map(Part::folder);
        for folder in parts.chain([""]).filter(|_| !model.is_single_file()) {
            let name = format!("{folder}config.json");
            let path = location.path.join(&name);
            if path.is_file() {
                files.insert(name, (path, location.hub.as_ref(), None));
            }
        }
        for (_, file) in &plan.sidecars {
            if location.paths().any(|path| file.path.starts_with(path)) {
                let from = (file.path.clone(), origin(&file.path), None);
                files.insert(file.name.clone(), from);
            }
        }
        all.extend(
            files
                .into_iter()
                .map(|(file, (path, hub, claimed))| Dependency {
                    model: locked.model.clone(),
                    uri: hub
                        .map(|hub| format!("pkg:huggingface/{}@{}#{file}", hub.repo, hub.commit)),
                    file,
                    path,
                    claimed,
                }),
        );
    }
    all
}

fn describe(dependency: &Dependency, sha256: &str) -> Value {
    let mut described = Map::new();
    let name = format!("{}/{}", dependency.model, dependency.file);
    described.insert("name".to_owned(), name.into());
    if let Some(uri) = &dependency.uri {
        described.insert("uri".to_owned(), uri.as_str().into());
    }
    described.insert("digest".to_owned(), json!({"sha256": sha256}));
    described.into()
}
