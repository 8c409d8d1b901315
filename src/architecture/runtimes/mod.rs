//! What runtimes make of checkpoints: which families each of them has, and where it reads a checkpoint otherwise than
//! the checkpoint means it.
//!
//! The facts were read in the loaders of the versions that [`Runtime::version`] names, and tried: `tests/runtimes`. A
//! family that nobody looked at has no entry, and nothing is said of it but whether the runtime has it.

mod llama_cpp;
mod meaning;
mod mlx;
mod quirk;
mod transformers;
mod vllm;

use serde_json::Value;

use super::config::TEXT_PARTS;
use super::family::Family;
use meaning::Meaning;
use quirk::Quirk;

/// A program that runs checkpoints, in one version.
#[derive(Debug)]
pub struct Runtime {
    /// What users call it: `llama.cpp`. Several versions of one may be known.
    pub name: &'static str,
    /// Its title and the version that was looked at.
    pub version: &'static str,
    families: Families,
    /// What holds for all families.
    everywhere: &'static [Quirk],
    readings: &'static [Reading],
}

/// The families that a runtime has, one a line.
#[derive(Debug)]
enum Families {
    /// By `model_type`; behind it the fields of a config without which it does not load.
    Types(&'static str),
    /// By the class in `architectures`.
    Classes(&'static str),
    /// By class, where others may run in transformers' own code; behind a dash those that it no longer has.
    ClassesOrOthers(&'static str),
}

/// How a runtime reads a family.
#[derive(Debug)]
struct Reading {
    /// The `model_type`s.
    types: &'static [&'static str],
    quirks: &'static [Quirk],
}

/// A checkpoint as a runtime sees it.
pub struct Served<'a> {
    /// Its config.json.
    pub config: &'a Value,
    /// The names of its tensors.
    pub names: Vec<&'a str>,
    /// Whether the tensor at a place among the names is all zeros; none if no value is known yet.
    pub is_zero: Option<&'a dyn Fn(usize) -> bool>,
}

/// What a runtime reads otherwise, or does not load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misreading {
    /// What it is about.
    pub topic: Topic,
    /// The field of the config that says what is meant.
    pub field: Option<&'static str>,
    /// What the checkpoint means.
    pub means: String,
    /// What the runtime does, after its name: `computes `silu``.
    pub does: String,
    /// How it ends.
    pub outcome: Outcome,
    /// What helps.
    pub remedy: &'static str,
}

/// What a misreading is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// The runtime does not have the family.
    Family,
    /// The activation of the MLPs.
    Activation,
    /// Rotary positions.
    Rope,
    /// How far back attention looks.
    Window,
    /// Which layers are of which kind.
    Layers,
    /// How experts are weighed, and the shared one.
    Experts,
    /// Heads, their width and their biases.
    Attention,
    /// The output head.
    Head,
    /// How tensors are named.
    Tensors,
    /// Fields that a loader wants.
    Config,
    /// The tokenizer.
    Tokenizer,
}

/// How a misreading ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It runs and computes something else, without a word.
    Silent,
    /// The same, but only for texts that are longer than a window, or within the rounding of an approximation.
    Slight,
    /// It does not load, or is not converted.
    Fails,
}

impl Runtime {
    /// All runtimes.
    pub fn all() -> impl Iterator<Item = &'static Runtime> {
        let both = transformers::RUNTIMES.iter();
        [&llama_cpp::RUNTIME, &mlx::RUNTIME, &vllm::RUNTIME]
            .into_iter()
            .chain(both)
    }

    /// The names that runtimes go by, each once.
    pub fn names() -> Vec<&'static str> {
        let mut names: Vec<&str> = Runtime::all().map(|runtime| runtime.name).collect();
        names.dedup();
        names
    }

    /// What it reads otherwise than the checkpoint means it; empty if nothing is known.
    pub fn misreadings(&self, served: &Served<'_>) -> Vec<Misreading> {
        if let Some(lacks) = self.lacks_family(served.config) {
            return vec![lacks];
        }
        let Some((part, family)) = parts(served.config).find_map(|part| {
            let kind = part.get("model_type")?.as_str()?;
            Some((part, kind))
        }) else {
            return Vec::new();
        };
        let reading = parts(served.config).find_map(|part| {
            let kind = part.get("model_type")?.as_str()?;
            let reading = self
                .readings
                .iter()
                .find(|reading| reading.types.contains(&kind))?;
            Some((part, kind, reading.quirks))
        });
        let (part, family, own) = reading.unwrap_or((part, family, &[]));
        let meaning = Meaning::new(part, family, served);
        let wanted = self.wanted_fields(served.config);
        let quirks = wanted.iter().chain(self.everywhere).chain(own);
        let mut found: Vec<Misreading> = Vec::new();
        for misreading in quirks.filter_map(|quirk| quirk.misreading(&meaning)) {
            // What does not load is no longer misread in silence.
            let told = |other: &Misreading| other.topic == misreading.topic;
            if !found.iter().any(told) {
                found.push(misreading);
            }
        }
        found
    }

    /// The fields that the config's family wants, where they are known.
    fn wanted_fields(&self, config: &Value) -> Option<Quirk> {
        let Families::Types(list) = self.families else {
            return None;
        };
        let named = config.get("model_type")?.as_str()?;
        let fields = list.lines().find_map(|line| {
            let (kind, fields) = line.split_once(' ')?;
            (kind == named).then_some(fields)
        });
        fields.map(Quirk::WantsFields)
    }

    /// That it does not have the family of a config, finds none there, or takes the model for one of another family.
    fn lacks_family(&self, config: &Value) -> Option<Misreading> {
        let kind = config.get("model_type").and_then(Value::as_str);
        let classes = config.get("architectures");
        let class = classes.and_then(|classes| classes.get(0)?.as_str());
        let own_code = self.name == "transformers" && config.get("auto_map").is_some();
        let (field, named, has) = match self.families {
            Families::Types(list) => {
                let mut types = list.lines().filter_map(|line| line.split(' ').next());
                (
                    "model_type",
                    kind,
                    own_code || types.any(|known| Some(known) == kind),
                )
            }
            Families::Classes(list) => {
                let has = list.lines().any(|known| Some(known) == class);
                ("architectures", class, has)
            }
            Families::ClassesOrOthers(list) => {
                let mut gone = list.lines().filter_map(|line| line.strip_prefix('-'));
                let is_gone = gone.any(|gone| Some(gone) == class);
                ("architectures", class, class.is_some() && !is_gone)
            }
        };
        let told = |means: String, does: String, outcome, remedy| Misreading {
            topic: Topic::Family,
            field: Some(field),
            means,
            does,
            outcome,
            remedy,
        };
        match named {
            None if !has => Some(told(
                format!("a family, named by `{field}`"),
                "knows a family by it alone, and it is not there".into(),
                Outcome::Fails,
                "write the field into config.json, as the model's makers have it",
            )),
            Some(named) if !has => Some(told(
                format!("a family that {} has", self.name),
                format!("has no `{}`", shown(named)),
                Outcome::Fails,
                "serve it with another runtime, or see whether a newer version has the family",
            )),
            _ if field == "model_type" => None,
            _ => {
                let (kind, class) = (kind?, class?);
                let own = Family::named(kind)?;
                let other = Family::all().find(|family| family.class == class)?;
                (!std::ptr::eq(own, other)).then(|| {
                    told(
                        format!("a model of the family `{}`, by `model_type`", shown(kind)),
                        format!(
                            "goes by `architectures`, and takes it for `{}`",
                            shown(class)
                        ),
                        Outcome::Silent,
                        "make `model_type` and `architectures` name the same family",
                    )
                })
            }
        }
    }
}

/// The config, and the part of its language model.
fn parts(config: &Value) -> impl Iterator<Item = &Value> {
    std::iter::once(config).chain(TEXT_PARTS.iter().filter_map(|part| config.get(part)))
}

/// A text of a config as messages repeat it.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests;
