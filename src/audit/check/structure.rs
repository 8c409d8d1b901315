//! Whether the tensors are those that config.json promises, and every layer has what the others have.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::families::{FAMILIES, Family};
use crate::audit::{Finding, Place, Report, Severity, Skipped};
use crate::checkpoint::{
    Checkpoint, ModelConfig, StackIndex, Survey, TensorEntry, is_derived_buffer,
    is_input_embedding, layer_stacks,
};

checks! {
    MISSING = "structure.missing-tensor", Error,
        "A tensor that the architecture has is not there",
        "Loaders leave it at fresh random values, often with no more than a warning.",
        "restore the tensor from where the checkpoint was made";
    SHAPE = "structure.shape", Error,
        "A tensor has another shape than config.json gives it",
        "The checkpoint does not load, or loads as another model.",
        "correct config.json, or take the tensor from the right model";
    UNEXPECTED = "structure.unexpected-tensor", Note,
        "The architecture has no such tensor",
        "Loaders leave it aside.",
        "remove it if nothing needs it";
    UNEVEN = "structure.uneven-layers", Warning,
        "A layer lacks a tensor that all others have",
        "Layers are mostly alike: something left it out.",
        "restore the tensor from where the checkpoint was made";
    LAYERS = "structure.layer-count", Error,
        "The number of layers is not that of config.json",
        "Loaders leave surplus layers aside, and make missing ones of random values.",
        "correct the number of layers in config.json, or restore the layers";
    EXPERTS = "structure.expert-count", Error,
        "The number of experts is not that of config.json",
        "Loaders refuse it, or leave experts at random values.",
        "correct the number of experts in config.json, or restore the experts";
    VOCAB = "structure.vocab-size", Error,
        "The embedding or head has another number of rows than `vocab_size`",
        "Loaders refuse it or make the rows anew, and ids beyond the last row crash.",
        "set `vocab_size` to the number of rows";
    TIED_DIFFERS = "structure.tied-head-differs", Error,
        "The head is said to be the embedding, and other values are stored for it",
        "Loaders that go by config.json throw the stored head away.",
        "set `tie_word_embeddings` to false, or remove the head";
    NO_HEAD = "structure.missing-head", Error,
        "The head is said to be its own, and none is stored",
        "Loaders make it of random values.",
        "set `tie_word_embeddings` to true if it was tied, or restore the head";
    MIXED = "structure.mixed-dtypes", Note,
        "Layers hold the same tensor in different dtypes",
        "Something changed some layers and not others.",
        "convert them to one dtype if that is not meant";
}

/// Looks at the names, shapes and dtypes of all tensors.
pub(super) fn check_structure(survey: &Survey, model: &Checkpoint, report: &mut Report) {
    let roles = roles(model);
    mixed_dtypes(model, &roles, report);
    let family = model.config().and_then(family_of);
    let missing_is_known = !survey.partial;
    if !missing_is_known {
        report.skipped.push(Skipped {
            check: &MISSING,
            why: "a file could not be read, so it is not known what it holds".into(),
            needed: true,
        });
    }
    match (family, model.config()) {
        (Some(family), Some(config)) => {
            Structure::of(family, config, model, missing_is_known).check(report);
        }
        (_, config) => {
            if missing_is_known {
                uneven_layers(&roles, report);
            }
            if let Some(config) = config {
                vocabulary_of_unknown(config, model, report);
                layers_of_unknown(config, model, report);
            }
        }
    }
}

/// The family by the config's own `model_type`; one that nests its language model has none.
fn family_of(config: &ModelConfig) -> Option<&'static Family> {
    family(config.value().get("model_type")?.as_str()?)
}

fn family(kind: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.types.contains(&kind))
}

/// Whether a table has the tensors of a `model_type`.
pub(super) fn is_known(kind: &str) -> bool {
    family(kind).is_some()
}

/// What the head is called in checkpoints of a `model_type`.
pub(super) fn head_of(kind: &str) -> Option<&'static str> {
    Some(family(kind)?.head?.0)
}

/// Whether a class has a head beside the body.
pub(super) fn has_head(class: &str) -> bool {
    ["ForCausalLM", "LMHeadModel"]
        .iter()
        .any(|end| class.ends_with(end))
}

/// A size by its letter: `_` and what config.json does not say are any size.
fn size(family: &Family, config: &ModelConfig, letter: &str) -> Option<usize> {
    let any = |keys: &[&str]| keys.iter().find_map(|key| config.get_usize(key));
    let of = |letter: &str| size(family, config, letter);
    let hidden = || any(&["hidden_size", "n_embd", "dim"]);
    match letter {
        "1" => Some(1),
        "V" => config.vocab_size(),
        "H" => hidden(),
        "HHH" => hidden()?.checked_mul(3),
        "I" => any(&["intermediate_size", "n_inner", "hidden_dim"]).or_else(|| {
            let four_fold = family.types.contains(&"gpt2");
            hidden().filter(|_| four_fold)?.checked_mul(4)
        }),
        "II" => of("I")?.checked_mul(2),
        "MM" => of("M")?.checked_mul(2),
        "M" => any(&["moe_intermediate_size"]),
        "S" => any(&["shared_expert_intermediate_size"]),
        "E" => any(&["num_local_experts", "num_experts", "n_routed_experts"]),
        "P" => any(&["max_position_embeddings", "n_positions"]),
        "D" => any(&["head_dim"]).or_else(|| match family.head_dim_follows {
            true => hidden()?.checked_div(any(&["num_attention_heads"])?),
            false => None,
        }),
        "Q" => any(&["num_attention_heads"])?.checked_mul(of("D")?),
        "K" => any(&["num_key_value_heads", "num_attention_heads"])?.checked_mul(of("D")?),
        "QKK" => of("Q")?.checked_add(of("K")?.checked_mul(2)?),
        _ => None,
    }
}

/// One line of the table.
struct Rule {
    optional: bool,
    /// Whether only layers with experts have it, or only those without.
    experts: Option<bool>,
    name: String,
    letters: Vec<&'static str>,
    sizes: Vec<Option<usize>>,
}

struct Structure<'a> {
    family: &'static Family,
    config: &'a ModelConfig,
    model: &'a Checkpoint,
    missing_is_known: bool,
    rules: Vec<Rule>,
    layers_before: String,
}

impl<'a> Structure<'a> {
    fn of(
        family: &'static Family,
        config: &'a ModelConfig,
        model: &'a Checkpoint,
        missing_is_known: bool,
    ) -> Self {
        let names = || model.tensors().iter().map(|tensor| tensor.name.as_str());
        let whole = names().any(|name| name.starts_with(family.prefix));
        let prefix = if whole { family.prefix } else { "" };
        let is_held = || names().any(|name| name.ends_with(".mlp.experts.gate_up_proj"));
        let parts = match family.held {
            Some(held) if is_held() => held,
            _ => family.parts,
        };
        let lines = parts.iter().flat_map(|part| part.lines());
        let rules = lines.filter_map(|line| {
            let rest = line.trim_start_matches(['?', '-', '+']);
            let marks = &line[..line.len() - rest.len()];
            let mut words = rest.split_whitespace();
            let name = format!("{prefix}{}", words.next()?);
            let letters: Vec<&str> = words.collect();
            Some(Rule {
                optional: marks.contains('?'),
                experts: match (marks.contains('-'), marks.contains('+')) {
                    (true, _) => Some(false),
                    (_, true) => Some(true),
                    _ => None,
                },
                sizes: letters
                    .iter()
                    .map(|letter| size(family, config, letter))
                    .collect(),
                name,
                letters,
            })
        });
        Structure {
            rules: rules.collect(),
            family,
            config,
            model,
            missing_is_known,
            layers_before: format!("{prefix}{}", family.layers),
        }
    }

    fn check(&self, report: &mut Report) {
        let stored = self.stored_layers();
        let experts = self.layers_with_experts();
        self.layer_count(&stored, report);
        let mut expected: HashSet<String> = HashSet::new();
        for rule in &self.rules {
            if !rule.name.contains('*') {
                self.one(rule, rule.name.clone(), false, &mut expected, report);
                continue;
            }
            let applies = |layer: &&usize| {
                let with = experts.contains_key(layer);
                rule.experts.is_none_or(|only| only == with)
            };
            let of_layer = |layer: usize| rule.name.replacen('*', &layer.to_string(), 1);
            // What one layer has, or config.json promises, all have; further heads are built as they like.
            let count = self.config.num_hidden_layers().unwrap_or(usize::MAX);
            let mut body = stored.range(..count).filter(applies);
            let needed = self.promised(rule)
                || rule.optional && body.any(|layer| self.find(&of_layer(*layer)).is_some());
            for layer in stored.iter().filter(applies) {
                let name = of_layer(*layer);
                if !name.contains('#') {
                    self.one(rule, name, needed && *layer < count, &mut expected, report);
                    continue;
                }
                // Fused experts are one tensor, of which the table knows nothing.
                for expert in experts.get(layer).into_iter().flatten() {
                    let name = name.replacen('#', &expert.to_string(), 1);
                    self.one(rule, name, false, &mut expected, report);
                }
            }
        }
        self.expert_counts(&experts, report);
        self.head(&mut expected, report);
        self.unexpected(&expected, report);
    }

    /// The numbers of the layers of which any tensor is stored.
    fn stored_layers(&self) -> BTreeSet<usize> {
        let names = self.model.tensors().iter();
        names
            .filter_map(|tensor| self.layer_of(&tensor.name))
            .map(|(layer, _)| layer)
            .collect()
    }

    fn layer_of<'n>(&self, name: &'n str) -> Option<(usize, &'n str)> {
        let (number, rest) = name.strip_prefix(&self.layers_before)?.split_once('.')?;
        Some((number.parse().ok()?, rest))
    }

    /// The experts of each layer that has some; a fused or shared one has no number.
    fn layers_with_experts(&self) -> BTreeMap<usize, BTreeSet<usize>> {
        let mut found: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for tensor in self.model.tensors() {
            let Some((layer, rest)) = self.layer_of(&tensor.name) else {
                continue;
            };
            if let Some((_, expert)) = rest.split_once(".experts.") {
                let number: Option<usize> =
                    expert.split('.').next().and_then(|part| part.parse().ok());
                found.entry(layer).or_default().extend(number);
            } else if rest == "mlp.gate.weight" {
                found.entry(layer).or_default();
            }
        }
        found
    }

    fn layer_count(&self, stored: &BTreeSet<usize>, report: &mut Report) {
        let Some(expected) = self.config.num_hidden_layers() else {
            return;
        };
        // Layers that predict further tokens stand behind the others, and may be left out.
        let more = self
            .config
            .get_usize("num_nextn_predict_layers")
            .unwrap_or(0);
        let surplus = stored
            .iter()
            .any(|&layer| layer >= expected.saturating_add(more));
        let lacking = stored.range(..expected).count() < expected;
        if surplus || (lacking && self.missing_is_known) {
            report.add(Finding::new(
                &LAYERS,
                Place::field("config.json", "num_hidden_layers"),
                format!("{expected} layers"),
                match stored.last() {
                    Some(last) => format!("{} layers, the last of them {last}", stored.len()),
                    None => "no layer".into(),
                },
            ));
        }
    }

    fn expert_counts(&self, experts: &BTreeMap<usize, BTreeSet<usize>>, report: &mut Report) {
        let Some(expected) = size(self.family, self.config, "E") else {
            return;
        };
        for (layer, numbers) in experts {
            let surplus = numbers.iter().any(|&number| number >= expected);
            let lacking = numbers.len() < expected && self.missing_is_known;
            if !numbers.is_empty() && (surplus || lacking) {
                report.add(Finding::new(
                    &EXPERTS,
                    Place::tensor(format!("{}{layer}", self.layers_before), None),
                    format!("{expected} experts"),
                    format!("{} experts", numbers.len()),
                ));
            }
        }
    }

    /// Whether config.json says that the tensors of an optional rule are there: biases that loaders would look for.
    fn promised(&self, rule: &Rule) -> bool {
        const ATTENTION: [&str; 7] = [
            "llama",
            "granite",
            "qwen3",
            "qwen3_moe",
            "gemma",
            "gemma2",
            "olmo2",
        ];
        let says = |key: &str| self.config.get_bool(key) == Some(true);
        let is_of = |types: &[&str]| types.iter().any(|kind| self.family.types.contains(kind));
        // Mistral shares a table with Llama, and has neither field.
        let mistral = self.config.model_type() == Some("mistral");
        let attention = rule.name.contains(".self_attn.") && rule.name.ends_with("_proj.bias");
        let mlp = rule.name.contains(".mlp.") && rule.name.ends_with("_proj.bias");
        let promised = attention && is_of(&ATTENTION) && says("attention_bias")
            || mlp && is_of(&["llama", "granite"]) && says("mlp_bias");
        rule.optional && promised && !mistral
    }

    fn find(&self, name: &str) -> Option<usize> {
        // Old checkpoints call the parameters of a LayerNorm so.
        let old = name.replace("LayerNorm.weight", "LayerNorm.gamma");
        let old = old.replace("LayerNorm.bias", "LayerNorm.beta");
        self.model.find(name).or_else(|| self.model.find(&old))
    }

    /// One tensor of a rule; `needed` if it must be there though others may leave it out.
    fn one(
        &self,
        rule: &Rule,
        name: String,
        needed: bool,
        expected: &mut HashSet<String>,
        report: &mut Report,
    ) {
        let found = self.find(&name);
        let Some(tensor) = found.map(|at| &self.model.tensors()[at]) else {
            if (needed || !rule.optional) && self.missing_is_known {
                report.add(Finding::new(
                    &MISSING,
                    Place::tensor(name, None),
                    format!("a tensor of shape {}", shape_text(&rule.sizes)),
                    "none",
                ));
            }
            return;
        };
        expected.insert(tensor.name.clone());
        self.shape(rule, tensor, report);
    }

    fn shape(&self, rule: &Rule, tensor: &TensorEntry, report: &mut Report) {
        let same_rank = tensor.shape.len() == rule.sizes.len();
        let pairs = tensor.shape.iter().zip(&rule.sizes);
        let wrong: Vec<&str> = pairs
            .zip(&rule.letters)
            .filter(|((found, size), _)| size.is_some_and(|size| size != **found))
            .map(|(_, letter)| *letter)
            .collect();
        if same_rank && wrong.is_empty() {
            return;
        }
        let check = match wrong[..] {
            ["V"] if same_rank => &VOCAB,
            ["E"] if same_rank => &EXPERTS,
            _ => &SHAPE,
        };
        report.add(Finding::new(
            check,
            Place::of(self.model, tensor),
            shape_text(&rule.sizes),
            format!("{:?}", tensor.shape),
        ));
    }

    fn head(&self, expected: &mut HashSet<String>, report: &mut Report) {
        let Some((head, tied_by_family)) = self.family.head else {
            return;
        };
        let tied = self.config.tie_word_embeddings().unwrap_or(tied_by_family);
        let embedding = self.rules.iter().find(|rule| rule.letters == ["V", "H"]);
        let embedding = embedding.and_then(|rule| self.model.find(&rule.name));
        let Some(at) = self.model.find(head) else {
            let classes = self.config.architectures();
            if !tied && self.missing_is_known && classes.iter().any(|class| has_head(class)) {
                report.add(Finding::new(
                    &NO_HEAD,
                    Place::tensor(head, None),
                    "a head, as `tie_word_embeddings` is not true",
                    "none",
                ));
            }
            return;
        };
        let tensor = &self.model.tensors()[at];
        expected.insert(head.to_owned());
        let sizes = ["V", "H"].map(|letter| size(self.family, self.config, letter));
        let rule = Rule {
            optional: true,
            experts: None,
            name: head.to_owned(),
            letters: vec!["V", "H"],
            sizes: sizes.to_vec(),
        };
        self.shape(&rule, tensor, report);
        let Some(embedding) = embedding else {
            return;
        };
        let differs = self.model.bytes(at) != self.model.bytes(embedding);
        if tied && differs {
            report.add(Finding::new(
                &TIED_DIFFERS,
                Place::of(self.model, tensor),
                "the bytes of the embedding",
                "other bytes",
            ));
        }
    }

    fn unexpected(&self, expected: &HashSet<String>, report: &mut Report) {
        for tensor in self.model.tensors() {
            let name = tensor.name.as_str();
            // What stands outside of the body is the head of some task.
            let in_body = self.rules.iter().any(|rule| {
                let first = rule.name.split('.').next().unwrap_or_default();
                name.split('.').next() == Some(first)
            });
            let surplus_layer = self.layer_of(name).is_some_and(|(layer, _)| {
                self.config
                    .num_hidden_layers()
                    .is_some_and(|count| layer >= count)
            });
            let known = expected.contains(name) || is_derived_buffer(name) || surplus_layer;
            if in_body && !known && !name.contains(".experts.") {
                report.add(Finding::new(
                    &UNEXPECTED,
                    Place::of(self.model, tensor),
                    format!("a tensor of {}", self.family.types.join(" or ")),
                    format!("{:?}", tensor.shape),
                ));
            }
        }
    }
}

fn shape_text(sizes: &[Option<usize>]) -> String {
    let sizes = sizes
        .iter()
        .map(|size| size.map_or("any".into(), |size| size.to_string()));
    format!("[{}]", sizes.collect::<Vec<String>>().join(", "))
}

/// By prefix and suffix: how many layers the stack has, and layer and tensor of those that have one.
type Roles = BTreeMap<(String, String), (usize, Vec<(usize, usize)>)>;

/// The tensors of each stack by what follows the layer's number.
fn roles(model: &Checkpoint) -> Roles {
    let names = || model.tensors().iter().map(|tensor| tensor.name.as_str());
    let stacks = layer_stacks(names());
    let index = StackIndex::of(&stacks);
    let mut roles: Roles = BTreeMap::new();
    for (at, name) in names().enumerate() {
        if let Some((stack, layer, suffix)) = index.split(name) {
            let role = (stack.prefix.clone(), suffix.to_owned());
            let (_, layers) = roles.entry(role).or_insert((stack.layers, Vec::new()));
            layers.push((layer, at));
        }
    }
    roles
}

/// The fewest layers of which one can be the exception: first and last layers often are.
const EVEN_LAYERS: usize = 4;

/// A tensor that all layers have but one in the middle: the ends of a stack may differ by design.
fn uneven_layers(roles: &Roles, report: &mut Report) {
    for ((prefix, suffix), &(layers, ref having)) in roles {
        if layers < EVEN_LAYERS || having.len() + 1 != layers {
            continue;
        }
        let having: BTreeSet<usize> = having.iter().map(|&(layer, _)| layer).collect();
        if let Some(without) = (1..layers - 1).find(|layer| !having.contains(layer)) {
            report.add(Finding::new(
                &UNEVEN,
                Place::tensor(format!("{prefix}{without}.{suffix}"), None),
                format!("a tensor that the other {} layers have", layers - 1),
                "none",
            ));
        }
    }
}

fn mixed_dtypes(model: &Checkpoint, roles: &Roles, report: &mut Report) {
    for ((prefix, suffix), (_, having)) in roles {
        let dtypes: BTreeSet<String> = having
            .iter()
            .map(|&(_, at)| model.tensors()[at].dtype.to_string())
            .collect();
        if dtypes.len() > 1 {
            report.add(Finding::new(
                &MIXED,
                Place::tensor(format!("{prefix}*.{suffix}"), None),
                "one dtype in all layers",
                dtypes.into_iter().collect::<Vec<String>>().join(", "),
            ));
        }
    }
}

/// Whether parts of the model have configs of their own, so that the fields at the top are not of all tensors.
fn is_nested(config: &ModelConfig) -> bool {
    let value = config.value().as_object();
    let mut fields = value.into_iter().flatten();
    fields.any(|(key, part)| key.ends_with("_config") && part.get("model_type").is_some())
}

/// Whose embeddings are those of the vocabulary cannot be known: a warning is all that is said.
fn vocabulary_of_unknown(config: &ModelConfig, model: &Checkpoint, report: &mut Report) {
    let vocabulary = config
        .value()
        .get("vocab_size")
        .and_then(|size| size.as_u64());
    let (Some(expected), false) = (vocabulary, is_nested(config)) else {
        return;
    };
    for tensor in model
        .tensors()
        .iter()
        .filter(|tensor| is_input_embedding(&tensor.name))
    {
        let rows = tensor.shape.first().map_or(0, |&rows| rows as u64);
        if rows < expected && !tensor.name.contains("per_layer") {
            let found = Finding::new(
                &VOCAB,
                Place::of(model, tensor),
                format!("{expected} rows"),
                format!("{rows} rows"),
            );
            report.add(found.with_severity(Severity::Warning));
        }
    }
}

/// The same with layers, where there is one stack.
fn layers_of_unknown(config: &ModelConfig, model: &Checkpoint, report: &mut Report) {
    let stacks = layer_stacks(model.tensors().iter().map(|tensor| tensor.name.as_str()));
    let ([stack], Some(expected), false) =
        (&stacks[..], config.num_hidden_layers(), is_nested(config))
    else {
        return;
    };
    if stack.layers < expected {
        let found = Finding::new(
            &LAYERS,
            Place::field("config.json", "num_hidden_layers"),
            format!("{expected} layers"),
            format!("{} layers", stack.layers),
        );
        report.add(found.with_severity(Severity::Warning));
    }
}
