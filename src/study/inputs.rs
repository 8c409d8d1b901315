//! What the scores of trials depend on, and what of it has changed since.

use std::fmt;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::StudyError;
use super::folder::Settings;
use checkpoint::{Checkpoint, FileState, Location, read_bounded};
use engine::Observer;
use eval::Tasks;
use numeric::{NUMERICS, product_instructions};
use plan::Plan;

/// The files beside weights that scores depend on.
const FILES: [&str; 4] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
];
/// Those that scores depend on where prompts are written by a chat template.
const OF_CHAT: [&str; 2] = ["chat_template.jinja", "chat_template.json"];
/// The largest of them that is read.
const MAX_FILE_BYTES: u64 = 512 << 20;

/// A part of a model that scores depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The model, as the recipe names it.
    pub model: String,
    /// Which part of it: `tensors`, `adapter`, or the name of a file.
    pub part: String,
    /// The digest of the part; empty if it is not there.
    pub digest: String,
    /// Of tensors: tells whether their files were written to since, without reading them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Input { model, part, .. } = self;
        match part.as_str() {
            "tensors" | "adapter" => write!(f, "the {part} of `{model}`"),
            file => write!(f, "{file} of `{model}`"),
        }
    }
}

/// What computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MadeWith {
    /// The version of Weldment.
    pub weldment: String,
    /// The version of its arithmetic.
    pub numerics: u32,
    /// The instructions that multiply matrices: they decide the last digits of scores.
    pub instructions: String,
}

impl MadeWith {
    /// This program on this machine.
    pub(crate) fn now() -> MadeWith {
        MadeWith {
            weldment: env!("CARGO_PKG_VERSION").to_owned(),
            numerics: NUMERICS,
            instructions: product_instructions().to_owned(),
        }
    }

    /// What is another version than in `now`.
    pub(crate) fn changes(&self, now: &MadeWith) -> Vec<String> {
        let mut changes = Vec::new();
        if self.weldment != now.weldment {
            let (then, now) = (&self.weldment, &now.weldment);
            changes.push(format!("Weldment ({then} then, {now} now)"));
        }
        if self.numerics != now.numerics {
            let (then, now) = (self.numerics, now.numerics);
            changes.push(format!(
                "the version of the arithmetic ({then} then, {now} now)"
            ));
        }
        changes
    }

    /// A note where only the last digits of scores may differ.
    pub(crate) fn note(&self, now: &MadeWith) -> Option<String> {
        (self.instructions != now.instructions).then(|| {
            format!(
                "the study was begun with matrix products by {}, and this machine has {}: the last digits may differ",
                self.instructions, now.instructions
            )
        })
    }
}

/// The files beside weights that scores depend on.
fn files(chat_template: bool) -> impl Iterator<Item = &'static str> {
    let of_chat = OF_CHAT.into_iter().filter(move |_| chat_template);
    FILES.into_iter().chain(of_chat)
}

/// Reads the parts of models, each once.
pub(crate) struct Inputs {
    chat_template: bool,
    known: Vec<(Arc<Checkpoint>, Vec<Input>)>,
}

impl Inputs {
    /// Of a study whose prompts may be written by chat templates.
    pub(crate) fn new(chat_template: bool) -> Inputs {
        Inputs {
            chat_template,
            known: Vec::new(),
        }
    }

    /// The parts of the models that a plan reads. Tensors whose files are in a state of `before` are not read: they have
    /// the digest that they had.
    ///
    /// # Errors
    /// A file cannot be read, or the observer cancelled.
    pub(crate) fn of(
        &mut self,
        plan: &Plan,
        before: &[Input],
        threads: usize,
        observer: &dyn Observer,
    ) -> Result<Vec<Input>, StudyError> {
        let mut inputs = Vec::new();
        for model in plan.models.iter().filter(|model| model.is_stored()) {
            let known = self.known.iter();
            let mut known = known.filter(|(known, _)| Arc::ptr_eq(known, model));
            if let Some((_, parts)) = known.next() {
                inputs.extend(parts.iter().cloned());
                continue;
            }
            let files = files(self.chat_template);
            let parts = parts(model, files, before, threads, observer)?;
            inputs.extend(parts.iter().cloned());
            self.known.push((Arc::clone(model), parts));
        }
        Ok(inputs)
    }
}

fn parts(
    model: &Checkpoint,
    files: impl Iterator<Item = &'static str>,
    before: &[Input],
    threads: usize,
    observer: &dyn Observer,
) -> Result<Vec<Input>, StudyError> {
    let input = |part: &str, digest: String| Input {
        model: model.label().to_owned(),
        part: part.to_owned(),
        digest,
        state: None,
    };
    let state = state(model);
    let known = before.iter().find(|known| {
        (known.model.as_str(), known.part.as_str()) == (model.label(), "tensors")
            && known.state.is_some()
            && known.state == state
    });
    let digest = match known {
        Some(known) => known.digest.clone(),
        None => digest_of_tensors(model, threads, observer)?,
    };
    let mut parts = vec![Input {
        state,
        ..input("tensors", digest)
    }];
    for name in files {
        let digest = match (name, model.config()) {
            // Its layout does not count.
            ("config.json", Some(config)) => {
                Some(blake3::hash(config.value().to_string().as_bytes()))
            }
            _ => match model.file_beside(name)? {
                Some(path) => Some(blake3::hash(&read_bounded(
                    &path,
                    MAX_FILE_BYTES,
                    "file beside a model, in bytes",
                )?)),
                None => None,
            },
        };
        let digest = digest.map(|digest| digest.to_string());
        parts.push(input(name, digest.unwrap_or_default()));
    }
    let adapters: Vec<&Location> = model.location().parts().skip(1).collect();
    if !adapters.is_empty() {
        let mut hasher = blake3::Hasher::new();
        for adapter in adapters {
            hash_adapter(&adapter.path, &mut hasher)?;
        }
        parts.push(input("adapter", hasher.finalize().to_string()));
    }
    Ok(parts)
}

/// The state of the files of a model's tensors; none if one cannot be looked at.
fn state(model: &Checkpoint) -> Option<String> {
    let mut hasher = blake3::Hasher::new();
    let shards = model.shards();
    for shard in &shards {
        let state = FileState::at(&shard.path).ok()?;
        hasher.update(format!("{}\n{state}\n", shard.file_name()).as_bytes());
    }
    (!shards.is_empty()).then(|| hasher.finalize().to_string())
}

fn digest_of_tensors(
    model: &Checkpoint,
    threads: usize,
    observer: &dyn Observer,
) -> Result<String, StudyError> {
    let digests = run::all_digests(model, threads, observer)?;
    let mut hasher = blake3::Hasher::new();
    for (tensor, digest) in model.tensors().iter().zip(digests) {
        let digest = digest.map(|digest| digest.to_string()).unwrap_or_default();
        let (name, dtype, shape) = (&tensor.name, tensor.dtype, &tensor.shape);
        hasher.update(format!("{name:?} {dtype:?} {shape:?} {digest}\n").as_bytes());
    }
    Ok(hasher.finalize().to_string())
}

/// The names and bytes of the files of an adapter: a folder, or a file.
fn hash_adapter(path: &Path, hasher: &mut blake3::Hasher) -> Result<(), StudyError> {
    let failed = || StudyError::file("read", path);
    let mut files = Vec::new();
    if path.is_dir() {
        for entry in fs::read_dir(path).map_err(failed())? {
            let path = entry.map_err(failed())?.path();
            if path.is_file() {
                files.push(path);
            }
        }
    } else {
        files.push(path.to_owned());
    }
    files.sort();
    for path in files {
        let failed = || StudyError::file("read", &path);
        hasher.update(
            path.file_name()
                .map(|name| name.as_encoded_bytes())
                .unwrap_or_default(),
        );
        let mut of_file = blake3::Hasher::new();
        of_file
            .update_reader(File::open(&path).map_err(failed())?)
            .map_err(failed())?;
        hasher.update(of_file.finalize().as_bytes());
    }
    Ok(())
}

/// The parts that are others now. Of those that only some trials read nothing is known here.
pub(crate) fn changed(before: &[Input], now: &[Input]) -> Vec<String> {
    let digest = |inputs: &[Input], wanted: &Input| {
        let mut inputs = inputs.iter();
        let same = |one: &&Input| (&one.model, &one.part) == (&wanted.model, &wanted.part);
        inputs.find(same).map(|one| one.digest.clone())
    };
    let is_changed = |now: &&Input| digest(before, now).is_some_and(|then| then != now.digest);
    now.iter()
        .filter(is_changed)
        .map(ToString::to_string)
        .collect()
}

/// The names of tasks, and the digests of their items.
pub(crate) fn digest_of(task: &eval::Task) -> String {
    let mut hasher = blake3::Hasher::new();
    for item in &task.items {
        let digest = serde_json::to_string(&item.digest).unwrap_or_default();
        hasher.update(digest.as_bytes());
    }
    hasher.finalize().to_string()
}

/// What of the recipes, the tasks and the program is another than when the study was begun. Files that are gone have
/// not changed: the study holds what it needs of them.
pub(crate) fn changed_beside_models(settings: &Settings) -> Vec<String> {
    let mut changes = settings.made_with.changes(&MadeWith::now());
    for search in &settings.searches {
        let recipe = || recipe::read_regular_text(&search.file).ok();
        if search.file.exists() && recipe().is_none_or(|text| digest(&text) != search.digest) {
            changes.push(format!("the recipe {}", search.file.display()));
        }
    }
    for task in &settings.tasks {
        let read = || Tasks::read(&[&task.file]).ok();
        let digest = || Some(digest_of(read()?.tasks.first()?));
        if task.file.exists() && digest().is_none_or(|digest| digest != task.digest) {
            changes.push(format!("the task {}", task.file.display()));
        }
    }
    changes
}

/// The digest of a text.
pub(crate) fn digest(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_string()
}

/// The digest of all that the scores of a merge depend on.
///
/// # Errors
/// A file beside a model cannot be read.
pub(crate) fn key(
    settings: &Settings,
    plan: &Plan,
    inputs: &[Input],
) -> Result<String, StudyError> {
    let mut hasher = blake3::Hasher::new();
    let mut feed = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    let MadeWith {
        weldment,
        numerics,
        instructions,
    } = &settings.made_with;
    feed(&format!("{weldment} {numerics} {instructions}"));
    feed(&plan.recipe.1);
    feed(&plan.seed.to_string());
    for input in inputs {
        feed(&input.to_string());
        feed(&input.digest);
    }
    // What the merge has beside its weights may come from elsewhere than its models.
    for (name, bytes) in run::files_beside(plan)? {
        if files(settings.chat_template).any(|file| file == name) {
            feed(&name);
            feed(&blake3::hash(&bytes).to_string());
        }
    }
    for task in &settings.tasks {
        feed(&task.name);
        feed(&task.digest);
    }
    if let Some(command) = &settings.command {
        feed(command);
    }
    let Settings {
        score,
        chat_template,
        split_seed,
        halving,
        ..
    } = settings;
    feed(&format!("{} {split_seed} {halving:?}", score.name()));
    if *chat_template {
        feed("chat_template");
    }
    Ok(hasher.finalize().to_string())
}
