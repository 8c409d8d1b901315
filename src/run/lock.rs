//! `weldment.lock.json`: the inputs and outputs of a checkpoint, so that `weld verify` can tell later whether the
//! checkpoint is unchanged.
//!
//! The same recipe, inputs and options produce the same lock: it holds no time, no host and no absolute path.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::encoded::QuantizationError;
use super::output::Written;
use super::update::UpdateKept;
use checkpoint::{Checkpoint, CheckpointError, Location, ModelRef, read_bounded};
use numeric::{NUMERICS, product_instructions};
use plan::Plan;

/// The lock's file name.
pub const LOCK_FILE: &str = "weldment.lock.json";

/// The version of the lock's format.
const FORMAT: &str = "weldment-lock/1";

/// The largest lock that is read: enough for a million tensors.
const MAX_LOCK_BYTES: u64 = 128 << 20;

/// The inputs and outputs of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// The version of this format.
    pub format: String,
    /// The tool that made the checkpoint.
    pub tool: Tool,
    /// The command that made it: `merge`, `moe`, `transplant` or `extract-lora`.
    pub command: String,
    /// The recipe, word for word, except that absolute paths of models are shortened to their last component. For
    /// `transplant` and `extract-lora` it is what was asked for, as JSON.
    pub recipe: String,
    /// The options that the result depends on.
    pub options: LockedOptions,
    /// The models that were read.
    pub inputs: Vec<LockedInput>,
    /// What was written.
    pub outputs: LockedOutputs,
}

/// A version of the tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The version of its arithmetic; see [`NUMERICS`].
    pub numerics: u32,
    /// The instructions that matrix products were computed with, if the last bits of the result depend on them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<String>,
}

/// The options of the command that the result depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedOptions {
    /// The seed of random masks.
    pub seed: u64,
    /// The most bytes of tensors in a file.
    pub shard_size: u64,
    /// The model whose tokenizer files were taken, if that was asked for.
    pub tokenizer_from: Option<String>,
    /// Whether NaN and infinity were carried through.
    pub allow_nonfinite: bool,
    /// Whether values too large for the output's dtype were clamped.
    pub saturate: bool,
    /// Whether the user allowed a mixture of experts that does not compute what its models do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inexact: bool,
    /// Whether all experts of a layer are stored in two tensors.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fused: bool,
}

/// A model that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedInput {
    /// Its name in the recipe.
    pub model: String,
    /// The repository and commit, if it came from the Hub's cache.
    pub hub: Option<LockedHub>,
    /// The repository and commit of its adapter, if that came from the Hub's cache.
    pub adapter_hub: Option<LockedHub>,
    /// The same of further adapters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further_adapter_hubs: Vec<Option<LockedHub>>,
    /// Its weight files by name, those of adapters included.
    pub files: BTreeMap<String, LockedFile>,
    /// The BLAKE3 digest of each tensor's bytes, if digests of the inputs were asked for.
    pub tensors: Option<BTreeMap<String, String>>,
}

impl LockedInput {
    /// The repositories and commits of its parts: the model's own, and those of its adapters, by their names in the
    /// recipe.
    pub fn parts(&self) -> Vec<(ModelRef, Option<&LockedHub>)> {
        let Ok(model) = ModelRef::parse(&self.model) else {
            return Vec::new();
        };
        let further = self.further_adapter_hubs.iter().map(Option::as_ref);
        let hubs = [self.hub.as_ref(), self.adapter_hub.as_ref()].into_iter();
        model.parts().into_iter().zip(hubs.chain(further)).collect()
    }
}

/// A repository at a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedHub {
    /// `org/name`.
    pub repo: String,
    /// The commit.
    pub commit: String,
}

/// A weight file that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedFile {
    /// Its length.
    pub bytes: u64,
    /// The BLAKE3 digest of its header: every name, dtype, shape and offset. Pickles have none.
    pub header: Option<String>,
    /// The SHA-256 that the Hub's cache claims for the whole file, if it came from there. It was compared with the bytes
    /// only if digests of the inputs were asked for.
    #[serde(alias = "sha256")]
    pub claimed_sha256: Option<String>,
    /// What the object store calls this state of its content (ETag), if it came from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedOutputs {
    /// The BLAKE3 digest of each file besides the weights, without those written for people only.
    pub files: BTreeMap<String, String>,
    /// The BLAKE3 digest of each tensor's bytes, whichever file it is in.
    pub tensors: BTreeMap<String, String>,
    /// The fraction of the update of the base that survives the rounding, in percent, to one decimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_kept_percent: Option<f64>,
    /// How far encoded weights are from the computed ones, relative, in percent to three decimals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization_error_percent: Option<f64>,
}

impl Lock {
    /// The lock of a finished plan: with the digests of its tensors by number, of its files, and, if they
    /// were computed, of the tensors of [`Plan::stored_models`].
    pub(super) fn new(
        plan: &Plan,
        tensors: &BTreeMap<usize, blake3::Hash>,
        files: &BTreeMap<String, Written>,
        inputs: Option<Vec<BTreeMap<String, String>>>,
    ) -> Lock {
        let short = Shortened::new(&plan.stored_models());
        let subject = Subject {
            command: plan.command(),
            recipe: &plan.recipe.1,
            options: LockedOptions::of_plan(plan, &short),
            models: plan.stored_models(),
            has_products: plan.cost.matrix > 0 || plan.has_switch("products"),
        };
        let tensors = tensors.iter();
        let named = tensors.filter_map(|(&number, digest)| {
            Some((plan.tensors.get(number)?.name.as_str(), digest))
        });
        subject.lock(named, files, inputs)
    }

    /// Adds how much of the update of the base survives the rounding.
    pub(super) fn with_update(mut self, update: Option<&UpdateKept>) -> Lock {
        self.outputs.update_kept_percent = update.map(UpdateKept::percent);
        self
    }

    /// Adds how far encoded weights are from the computed ones.
    pub(super) fn with_quantization_error(mut self, error: Option<&QuantizationError>) -> Lock {
        self.outputs.quantization_error_percent = error.map(QuantizationError::percent);
        self
    }

    /// The lock of a plan before it is run: everything but the outputs.
    pub fn of_plan(plan: &Plan) -> Lock {
        Lock::new(plan, &BTreeMap::new(), &BTreeMap::new(), None)
    }

    /// Reads the lock of a checkpoint's folder, if there is one.
    ///
    /// # Errors
    /// It cannot be read, or is of another version.
    pub fn read(folder: &Path) -> Result<Option<Lock>, CheckpointError> {
        let path = folder.join(LOCK_FILE);
        if path.symlink_metadata().is_err() {
            return Ok(None);
        }
        let bytes = read_bounded(&path, MAX_LOCK_BYTES, "lock, in bytes")?;
        let malformed = |detail: String| CheckpointError::JsonMalformed {
            path: path.clone(),
            detail,
        };
        let lock: Lock =
            serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        if lock.format != FORMAT {
            return Err(malformed(format!(
                "expected a lock of the form `{FORMAT}`, found `{}`",
                lock.format.escape_debug()
            )));
        }
        Ok(Some(lock))
    }

    /// The BLAKE3 digest of its text, by which records on this machine refer to it.
    pub fn digest(&self) -> blake3::Hash {
        blake3::hash(self.text().as_bytes())
    }

    /// The text of the file.
    pub fn text(&self) -> String {
        // Strings, numbers and maps of strings can always be written as JSON.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

/// What a lock says of an output, but for the digests of what was read and written.
pub(super) struct Subject<'a> {
    /// The command that made it.
    pub(super) command: &'a str,
    /// The recipe, with the models' names as they were given.
    pub(super) recipe: &'a str,
    pub(super) options: LockedOptions,
    /// The models that were read.
    pub(super) models: Vec<&'a Checkpoint>,
    /// Whether its last bits depend on the instructions that products were computed with.
    pub(super) has_products: bool,
}

impl Subject<'_> {
    /// The lock with the digests of tensors by name, of files, and, if they were computed, of the models' tensors.
    pub(super) fn lock<'t>(
        self,
        tensors: impl Iterator<Item = (&'t str, &'t blake3::Hash)>,
        files: &BTreeMap<String, Written>,
        inputs: Option<Vec<BTreeMap<String, String>>>,
    ) -> Lock {
        let short = Shortened::new(&self.models);
        let mut locked = locked_inputs(&self.models);
        for (input, digests) in locked.iter_mut().zip(inputs.into_iter().flatten()) {
            input.tensors = Some(digests);
        }
        Lock {
            format: FORMAT.to_owned(),
            tool: Tool {
                name: "weldment".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                numerics: NUMERICS,
                instructions: self.has_products.then(|| product_instructions().to_owned()),
            },
            command: self.command.to_owned(),
            recipe: short.apply(self.recipe),
            options: self.options,
            inputs: locked,
            outputs: LockedOutputs {
                files: files
                    .iter()
                    .map(|(name, file)| (name.clone(), file.digest.to_string()))
                    .collect(),
                tensors: tensors
                    .map(|(name, digest)| (name.to_owned(), digest.to_string()))
                    .collect(),
                update_kept_percent: None,
                quantization_error_percent: None,
            },
        }
    }
}

impl LockedOptions {
    pub(super) fn of_plan(plan: &Plan, short: &Shortened) -> Self {
        Self {
            seed: plan.seed,
            shard_size: plan.shard_size,
            tokenizer_from: plan.tokenizer_from.as_deref().map(|text| short.apply(text)),
            allow_nonfinite: plan.settings.allow_non_finite,
            saturate: plan.settings.saturate,
            inexact: plan.has_switch("inexact"),
            fused: plan.has_switch("fused"),
        }
    }
}

/// What a lock says of models, without digests of their tensors.
pub fn locked_inputs(models: &[&Checkpoint]) -> Vec<LockedInput> {
    let short = Shortened::new(models);
    let locked = |model: &&Checkpoint| {
        let adapters = model.location().adapters.iter();
        let hubs: Vec<_> = adapters
            .map(|adapter| locked_hub(&adapter.location))
            .collect();
        LockedInput {
            model: short.apply(model.label()),
            hub: locked_hub(model.location()),
            adapter_hub: hubs.first().cloned().flatten(),
            further_adapter_hubs: hubs.into_iter().skip(1).collect(),
            files: files_of(model),
            tensors: None,
        }
    };
    models.iter().map(locked).collect()
}

/// The repository and commit of a location in the Hub's cache.
pub fn locked_hub(location: &Location) -> Option<LockedHub> {
    location.hub.as_ref().map(|hub| LockedHub {
        repo: hub.repo.clone(),
        commit: hub.commit.clone(),
    })
}

/// The weight files of a model as they are now.
fn files_of(model: &Checkpoint) -> BTreeMap<String, LockedFile> {
    let files = model.shards().into_iter().map(|shard| {
        let file = LockedFile {
            bytes: shard.file_size,
            header: shard.header_digest().map(|digest| digest.to_string()),
            claimed_sha256: shard.hub_sha256(),
            etag: etag_of(model.location(), &shard.path),
        };
        (shard.file_name(), file)
    });
    files.collect()
}

/// The ETag of a weight file that was fetched from an object store.
fn etag_of(location: &Location, file: &Path) -> Option<String> {
    let tag = |part: &Location| {
        let within = match part.path.is_dir() {
            true => file.strip_prefix(&part.path).ok()?,
            false => Path::new(file.file_name().filter(|_| file == part.path)?),
        };
        part.store
            .as_ref()?
            .objects
            .get(within.to_str()?)?
            .etag
            .clone()
    };
    location.parts().find_map(tag)
}

/// The text of a recipe of these models, as the lock stores it.
pub fn locked_recipe(recipe: &str, models: &[&Checkpoint]) -> String {
    Shortened::new(models).apply(recipe)
}

/// Where models are, as absolute paths by the names that a lock gives them. Those from the Hub's cache are left out, as
/// they are found there again.
pub fn input_places(models: &[&Checkpoint]) -> Vec<(String, PathBuf)> {
    let short = Shortened::new(models);
    let place = |name: &str, location: &Location| {
        let path = std::path::absolute(&location.path).ok()?;
        let is_here = location.hub.is_none() && location.store.is_none();
        is_here.then(|| (short.apply(name), path))
    };
    let places = models.iter().flat_map(|model| {
        let named = ModelRef::parse(model.label()).map(|model| model.parts());
        let named = named.unwrap_or_default();
        let parts: Vec<&Location> = model.location().parts().collect();
        match named.len() == parts.len() {
            true => (named.iter().zip(parts))
                .map(|(model, location)| place(model.text(), location))
                .collect(),
            false => vec![place(model.label(), model.location())],
        }
    });
    places.flatten().collect()
}

/// Whether a name needs no quotes in YAML and is read as a string there.
fn is_plain_text(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let words = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(plain)
        && name.parse::<f64>().is_err()
        && !words.contains(&name.to_ascii_lowercase().as_str())
}

/// The names of a model and of its adapters, as a label has them.
fn parts_of(label: &str) -> Vec<String> {
    match ModelRef::parse(label) {
        Ok(model) => model
            .parts()
            .iter()
            .map(|part| part.text().to_owned())
            .collect(),
        Err(_) => vec![label.to_owned()],
    }
}

/// Absolute paths of models, and the replacement for each in a lock.
pub(super) struct Shortened(Vec<(String, String)>);

impl Shortened {
    pub(super) fn new(models: &[&Checkpoint]) -> Shortened {
        let named: Vec<String> = models
            .iter()
            .flat_map(|model| parts_of(model.label()))
            .collect();
        let mut paths: Vec<&str> = named
            .iter()
            .filter(|part| part.starts_with('/'))
            .map(|part| part.trim_end_matches('/'))
            .filter(|part| !part.is_empty())
            .collect();
        // The longest first, because one path may begin with another.
        paths.sort_by_key(|path| (std::cmp::Reverse(path.len()), *path));
        paths.dedup();
        let short = |(number, path): (usize, &&str)| {
            let name = path.rsplit('/').next().unwrap_or_default();
            let alike = |other: &&&str| other.rsplit('/').next() == Some(name);
            // No other model may have the short name, whether it was shortened to it or is called so.
            let usable = is_plain_text(name)
                && paths.iter().filter(alike).count() == 1
                && !named.iter().any(|label| label == name);
            let short = match usable {
                true => name.to_owned(),
                false => format!("input-{}", number + 1),
            };
            ((*path).to_owned(), short)
        };
        Shortened(paths.iter().enumerate().map(short).collect())
    }

    /// Replaces the paths in a text.
    pub(super) fn apply(&self, text: &str) -> String {
        let replaced = |text: String, (path, short): &(String, String)| text.replace(path, short);
        self.0.iter().fold(text.to_owned(), replaced)
    }
}
