//! What a config promises of a body: its tensors with names and sizes, how many layers, which of them have experts.

use serde_json::Value;

use super::config::field;
use super::family::{Body, Family};
use super::fields::Fields;
use super::mixture::SparseLayers;
use super::names::module_index;
use super::rules::{Condition, Layers, Line, Role};
use super::sizes::Sizes;

/// A body as a config has it, in the names that a checkpoint uses.
#[derive(Debug)]
pub struct Expected<'c> {
    /// Its entry.
    pub body: &'static Body,
    /// Its part of the config, or all of it.
    pub config: &'c Value,
    /// What stands before the number of a layer.
    pub layers_before: String,
    /// The field that says how many layers there are, and how many.
    pub layers: Option<(&'static str, usize)>,
    /// Experts of each layer that has some.
    pub experts: Option<usize>,
    /// Which layers have experts; none if the config does not say it in a way that is understood.
    pub sparse: Option<SparseLayers>,
    /// Its tensors.
    pub rules: Vec<Rule>,
}

/// A tensor, or one of each layer or expert.
#[derive(Debug)]
pub struct Rule {
    /// Its name, `*` for the number of a layer and `#` for that of an expert.
    pub name: String,
    /// Its shape.
    pub shape: Vec<Size>,
    /// Whether it must be there.
    pub presence: Presence,
    /// Which layers have it.
    pub layers: Layers,
    /// What it is for.
    pub role: Role,
}

/// A size of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// What is counted, as far as anybody must know.
    pub kind: SizeKind,
    /// How many; none: any number, or the config does not say.
    pub size: Option<usize>,
}

/// What a size counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeKind {
    /// Tokens.
    Vocabulary,
    /// Experts.
    Experts,
    /// Anything else.
    Other,
}

/// Whether a tensor must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It must, whatever the config says.
    Always,
    /// It must, as the config says.
    Promised,
    /// It may be left out, in all layers or in none.
    Optional,
}

impl<'c> Expected<'c> {
    /// What a config promises of the bodies of a family, for a checkpoint with these names.
    pub fn new<'n, I>(
        family: &'static Family,
        config: &'c Value,
        names: impl Fn() -> I,
    ) -> Vec<Self>
    where
        I: Iterator<Item = &'n str>,
    {
        let bodies = family.bodies.iter();
        let bodies = bodies.filter(|body| !body.only_writes || !is_encoder_alone(config));
        bodies
            .map(|body| Expected::of_body(family, body, config, &names))
            .collect()
    }

    fn of_body<'n, I>(
        family: &'static Family,
        body: &'static Body,
        config: &'c Value,
        names: &impl Fn() -> I,
    ) -> Self
    where
        I: Iterator<Item = &'n str>,
    {
        let there = |prefix: &&&str| names().any(|name| name.starts_with(**prefix));
        let prefix = body.prefixes.iter().find(there).or(body.prefixes.first());
        let prefix = prefix.copied().unwrap_or_default();
        let part = match body.part {
            None => config,
            Some(part) => config.get(part).unwrap_or(&Value::Null),
        };
        let decoder = family.decoder.as_ref().filter(|_| body.is_decoder);
        let sizes = Sizes {
            part,
            whole: config,
            decoder,
        };
        let layers_before = format!("{prefix}{}", body.layers);
        let mixture = decoder.and_then(|decoder| decoder.mixture.as_ref());
        let suffixes = || {
            names().filter_map(|name| Some(name.strip_prefix(&layers_before)?.split_once('.')?.1))
        };
        let used = mixture.map(|mixture| mixture.names_among(suffixes()));
        let of_decoder = decoder.map(|decoder| decoder.lines(used));
        let listed = body.tensors.iter().flat_map(|text| Line::parsed(text));
        let fields = Fields::of_part(part);
        let lines = of_decoder.into_iter().flatten().chain(listed);
        let count = |field: &'static str| Some((field, sizes.any(&[field])?));
        let experts = sizes.experts();
        Expected {
            body,
            config: part,
            layers: body.counts.iter().copied().find_map(count),
            experts,
            sparse: mixture.and_then(|mixture| mixture.sparse.layers(&fields).ok()),
            rules: lines
                .map(|line| Rule::new(line, prefix, &fields, &sizes))
                .collect(),
            layers_before,
        }
    }

    /// How many layers the config says that it has.
    pub fn count(&self) -> Option<usize> {
        self.layers.map(|(_, layers)| layers)
    }

    /// The number of the layer that a tensor is of, and what follows it in the name.
    pub fn layer_of<'n>(&self, name: &'n str) -> Option<(usize, &'n str)> {
        let (number, rest) = name.strip_prefix(&self.layers_before)?.split_once('.')?;
        Some((module_index(number)?, rest))
    }

    /// Whether a layer has experts; none if the config does not say.
    pub fn is_sparse(&self, layer: usize) -> Option<bool> {
        let sparse = self.sparse.as_ref()?;
        Some(self.experts != Some(0) && sparse.has(layer))
    }

    /// The embedding of tokens.
    pub fn embedding(&self) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.role == Role::Embedding)
    }
}

impl Rule {
    fn new(line: Line, prefix: &str, config: &Fields<'_>, sizes: &Sizes<'_>) -> Rule {
        let size = |letter: &String| Size {
            kind: match letter.as_str() {
                "V" => SizeKind::Vocabulary,
                "E" => SizeKind::Experts,
                _ => SizeKind::Other,
            },
            size: sizes.of(letter),
        };
        Rule {
            name: format!("{prefix}{}", line.name),
            shape: line.letters.iter().map(size).collect(),
            presence: match line.when {
                Condition::Always => Presence::Always,
                when if when.holds(config) => Presence::Promised,
                _ => Presence::Optional,
            },
            layers: line.layers,
            role: line.role,
        }
    }
}

/// Whether a config is of an encoder that was saved without its decoder.
fn is_encoder_alone(config: &Value) -> bool {
    let classes = field(config, "architectures").and_then(Value::as_array);
    let mut classes = classes.into_iter().flatten().filter_map(Value::as_str);
    classes.any(|class| {
        ["EncoderModel", "ForTokenClassification"]
            .iter()
            .any(|end| class.ends_with(end))
    })
}
