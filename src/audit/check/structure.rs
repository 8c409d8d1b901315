//! Checks that the tensors are those that config.json promises, and that all layers have the same tensors.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::Value;

use super::uneven::{Roles, uneven_layers};
use super::values::is_norm;
use crate::{CheckInfo, Finding, Place, Report, Severity, Skipped};
use architecture::{
    Expected, Family, LAYER_COUNTS, Layers, Presence, Role, Rule, Size, SizeKind, StackIndex,
    TEXT_PARTS, announced, announced_mtp_layers, is_derived_buffer, is_input_embedding,
    is_output_head, layer_lists, layer_stacks, module_index, mtp_layers_in, without_mtp,
};
use checkpoint::{Checkpoint, ModelConfig, Survey, TensorEntry};

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
    KIND = "structure.layer-kind", Error,
        "A layer is of another kind than config.json says",
        "Loaders build the layers that config.json names, leave other tensors aside, and fill in random values.",
        "correct the field, or restore the layers in the order that it names";
    MTP = "structure.missing-mtp", Note,
        "config.json announces layers that predict further tokens, and they are not there",
        "Loaders that decode speculatively refuse it, or fill in random values. Others do not need them.",
        "restore their tensors, or set the field to 0";
    NO_HEAD = "structure.missing-head", Error,
        "The head is said to be its own, and none is stored",
        "Loaders make it of random values.",
        "set `tie_word_embeddings` to true if it was tied, or restore the head";
    MIXED = "structure.mixed-dtypes", Note,
        "Layers hold the same tensor in different dtypes",
        "Something changed some layers and not others.",
        "convert them to one dtype if that is not meant";
}

/// Checks the names, shapes and dtypes of all tensors, and with `values` whether tied ones are equal.
pub(super) fn check_structure(
    survey: &Survey,
    model: &Checkpoint,
    values: bool,
    report: &mut Report,
) {
    let roles = roles(model);
    mixed_dtypes(model, &roles, report);
    let missing_is_known = !survey.partial;
    if !missing_is_known {
        report.skipped.push(Skipped {
            check: &MISSING,
            why: "a file could not be read, so it is not known what it holds".into(),
            needed: true,
        });
    }
    let Some(config) = model.config() else {
        uneven_layers(&roles, model, missing_is_known, report);
        skip(report, "no config.json says of which family it is");
        return;
    };
    if is_draft(config, model) {
        skip(
            report,
            "it is a draft model for speculative decoding, which has a part of a model's tensors and some of its own",
        );
        return;
    }
    // For a model with a nested language model, this is the type of the whole model.
    let kind = config.value().get("model_type").and_then(Value::as_str);
    if missing_is_known {
        report.extend(missing_mtp(model, config));
    }
    let Some(family) = kind.and_then(Family::named) else {
        report.extend(layer_kinds(model, config));
        uneven_layers(&roles, model, missing_is_known, report);
        let unknown = Unknown {
            config,
            model,
            missing_is_known,
            values,
        };
        unknown.check(report);
        skip(
            report,
            &match kind {
                Some(kind) => format!("no table has the family `{}`", kind.escape_debug()),
                None => "config.json names no `model_type`".to_owned(),
            },
        );
        return;
    };
    let names = || model.tensors().iter().map(|tensor| tensor.name.as_str());
    let bodies = Expected::new(family, config.value(), names);
    let structure = Structure {
        family,
        model,
        missing_is_known,
        values,
    };
    let mut expected: HashSet<String> = HashSet::new();
    for body in &bodies {
        structure.check(body, &mut expected, report);
    }
    if let Some(body) = bodies.first() {
        structure.head(body, config, &mut expected, report);
    }
    structure.unexpected(&bodies, &expected, report);
}

/// Whether it is a draft for speculative decoding (EAGLE, Medusa): its config has the `model_type` of the model that it
/// drafts for, and neither its layers nor its vocabulary need be that model's.
fn is_draft(config: &ModelConfig, model: &Checkpoint) -> bool {
    const FIELDS: [&str; 5] = [
        "draft_vocab_size",
        "eagle_config",
        "medusa_num_heads",
        "speculators_config",
        "speculators_model_type",
    ];
    const CLASSES: [&str; 4] = ["eagle", "medusa", "draft", "speculator"];
    let by_class = config.architectures().iter().any(|class| {
        let class = class.to_ascii_lowercase();
        CLASSES.iter().any(|part| class.contains(part))
    });
    // EAGLE joins hidden states of the model with the embedding of a token.
    let joins = model.find("fc.weight").is_some_and(|at| {
        let shape = &model.tensors()[at].shape;
        matches!(shape[..], [out, inputs] if inputs == 2 * out || inputs == 3 * out)
    });
    let maps = ["d2t", "t2d"].iter().any(|name| model.find(name).is_some());
    by_class || maps || joins || FIELDS.iter().any(|field| config.get(field).is_some())
}

/// The checks that need a table of the family.
const BY_TABLE: [&CheckInfo; 5] = [&MISSING, &SHAPE, &UNEXPECTED, &EXPERTS, &NO_HEAD];

/// Records the checks that were skipped, or made only as far as all families are alike.
fn skip(report: &mut Report, why: &str) {
    let why = format!("{why}, so that it is not known which tensors it must have");
    report.skipped.extend(BY_TABLE.map(|check| Skipped {
        check,
        why: why.clone(),
        needed: false,
    }));
}

/// Whether a class has a head on top of the body.
pub(super) fn has_head(class: &str) -> bool {
    ["ForCausalLM", "LMHeadModel", "ForConditionalGeneration"]
        .iter()
        .any(|end| class.ends_with(end))
}

/// A model that is compared with what its config promises for each of its bodies.
struct Structure<'a> {
    family: &'static Family,
    model: &'a Checkpoint,
    missing_is_known: bool,
    /// Whether values may be compared; else they are not there yet.
    values: bool,
}

/// The stored layers of a body.
struct Stored {
    /// Layers with at least one tensor.
    layers: BTreeSet<usize>,
    /// The numbers of the experts of each layer with experts; a fused tensor has no numbers.
    experts: BTreeMap<usize, BTreeSet<usize>>,
}

impl Stored {
    fn new(model: &Checkpoint, body: &Expected<'_>) -> Stored {
        let mut stored = Stored {
            layers: BTreeSet::new(),
            experts: BTreeMap::new(),
        };
        let of_experts: Vec<&str> = body
            .rules
            .iter()
            .filter(|rule| matches!(rule.role, Role::Expert | Role::Router))
            .filter_map(|rule| Some(rule.name.split_once("*.")?.1))
            .map(|name| name.split('#').next().unwrap_or(name))
            .collect();
        for tensor in model.tensors() {
            let Some((layer, rest)) = body.layer_of(&tensor.name) else {
                continue;
            };
            stored.layers.insert(layer);
            let Some(of) = of_experts.iter().find_map(|start| rest.strip_prefix(start)) else {
                continue;
            };
            let number = of.split('.').next().and_then(module_index);
            stored.experts.entry(layer).or_default().extend(number);
        }
        stored
    }
}

impl Structure<'_> {
    /// Checks all tensors that a body should have, and collects their names in `expected`.
    fn check(&self, body: &Expected<'_>, expected: &mut HashSet<String>, report: &mut Report) {
        let stored = Stored::new(self.model, body);
        if !body.body.layers.is_empty() {
            self.layer_count(body, &stored.layers, report);
        }
        let without_experts = self.layers_without_experts(body, &stored, report);
        for rule in &body.rules {
            if !rule.name.contains('*') {
                self.one(rule, rule.name.clone(), false, expected, report);
                continue;
            }
            let applies = |layer: &&usize| match rule.layers {
                Layers::All => true,
                Layers::Sparse => is_sparse(body, &stored, **layer),
                Layers::Dense => !is_sparse(body, &stored, **layer),
            };
            let of_layer = |layer: usize| rule.name.replacen('*', &layer.to_string(), 1);
            // A tensor that one layer has, or that config.json promises, is required in all layers. Layers that predict
            // further tokens may differ.
            let count = body.count().unwrap_or(usize::MAX);
            let mut layers = stored.layers.range(..count).filter(applies);
            let needed = rule.presence != Presence::Optional
                || layers.any(|layer| self.find(&of_layer(*layer)).is_some());
            for layer in stored.layers.iter().filter(applies) {
                if rule.role == Role::Expert && without_experts.contains(layer) {
                    continue;
                }
                let name = of_layer(*layer);
                if !name.contains('#') {
                    self.one(rule, name, needed && *layer < count, expected, report);
                    continue;
                }
                for expert in stored.experts.get(layer).into_iter().flatten() {
                    let name = name.replacen('#', &expert.to_string(), 1);
                    self.one(rule, name, true, expected, report);
                }
            }
        }
        self.expert_counts(body, &stored.experts, report);
    }

    fn layer_count(&self, body: &Expected<'_>, stored: &BTreeSet<usize>, report: &mut Report) {
        let Some((field, expected)) = body.layers else {
            return;
        };
        let more = further_layers(body.config);
        let surplus = stored
            .iter()
            .any(|&layer| layer >= expected.saturating_add(more));
        let lacking = stored.range(..expected).count() < expected;
        if surplus || (lacking && self.missing_is_known) {
            let part = body.body.part.map(|part| format!("{part}."));
            let field = format!("{}{field}", part.unwrap_or_default());
            report.add(Finding::new(
                &LAYERS,
                Place::field("config.json", field),
                format!("{expected} layers"),
                match stored.last() {
                    Some(last) => format!("{} layers, the last of them {last}", stored.len()),
                    None => "no layer".into(),
                },
            ));
        }
    }

    /// Returns the layers that should have experts but store none. Each is one finding, instead of one per tensor.
    fn layers_without_experts(
        &self,
        body: &Expected<'_>,
        stored: &Stored,
        report: &mut Report,
    ) -> BTreeSet<usize> {
        let rules = || body.rules.iter().filter(|rule| rule.role == Role::Expert);
        if rules().next().is_none() || !self.missing_is_known {
            return BTreeSet::new();
        }
        let count = body.count().unwrap_or(usize::MAX);
        let has_any = |layer: &usize| {
            let numbers = stored.experts.get(layer);
            let fused = |rule: &Rule| {
                let name = rule.name.replacen('*', &layer.to_string(), 1);
                self.find(&name).is_some()
            };
            numbers.is_some_and(|numbers| !numbers.is_empty()) || rules().any(fused)
        };
        let layers = stored.layers.range(..count);
        let layers = layers.filter(|layer| {
            let all = rules().all(|rule| rule.layers == Layers::All);
            (all || is_sparse(body, stored, **layer)) && !has_any(layer)
        });
        let without: BTreeSet<usize> = layers.copied().collect();
        for layer in &without {
            let expected = body.experts.map(|count| format!("{count} experts"));
            report.add(Finding::new(
                &EXPERTS,
                Place::tensor(format!("{}{layer}", body.layers_before), None),
                expected.unwrap_or_else(|| "experts".to_owned()),
                "none",
            ));
        }
        without
    }

    fn expert_counts(
        &self,
        body: &Expected<'_>,
        experts: &BTreeMap<usize, BTreeSet<usize>>,
        report: &mut Report,
    ) {
        let Some(expected) = body.experts else {
            return;
        };
        for (layer, numbers) in experts {
            let surplus = numbers.iter().any(|&number| number >= expected);
            let lacking = numbers.len() < expected && self.missing_is_known;
            if !numbers.is_empty() && (surplus || lacking) {
                report.add(Finding::new(
                    &EXPERTS,
                    Place::tensor(format!("{}{layer}", body.layers_before), None),
                    format!("{expected} experts"),
                    format!("{} experts", numbers.len()),
                ));
            }
        }
    }

    fn find(&self, name: &str) -> Option<usize> {
        // Old checkpoints name the parameters of a LayerNorm like this.
        let old = name.replace("LayerNorm.weight", "LayerNorm.gamma");
        let old = old.replace("LayerNorm.bias", "LayerNorm.beta");
        self.model.find(name).or_else(|| self.model.find(&old))
    }

    /// Checks one tensor of a rule. `needed`: the tensor is required even if it is optional in general.
    fn one(
        &self,
        rule: &Rule,
        name: String,
        needed: bool,
        expected: &mut HashSet<String>,
        report: &mut Report,
    ) {
        let needed = needed || rule.presence == Presence::Always;
        let found = self.find(&name);
        let Some(tensor) = found.map(|at| &self.model.tensors()[at]) else {
            if needed && self.missing_is_known {
                report.add(Finding::new(
                    &MISSING,
                    Place::tensor(name, None),
                    format!("a tensor of shape {}", shape_text(&rule.shape)),
                    "none",
                ));
            }
            return;
        };
        expected.insert(tensor.name.clone());
        self.shape(&rule.shape, tensor, report);
    }

    fn shape(&self, shape: &[Size], tensor: &TensorEntry, report: &mut Report) {
        let same_rank = tensor.shape.len() == shape.len();
        let pairs = tensor.shape.iter().zip(shape);
        let wrong: Vec<SizeKind> = pairs
            .filter(|(found, expected)| expected.size.is_some_and(|size| size != **found))
            .map(|(_, expected)| expected.kind)
            .collect();
        if same_rank && wrong.is_empty() {
            return;
        }
        let check = match wrong[..] {
            [SizeKind::Vocabulary] if same_rank => &VOCAB,
            [SizeKind::Experts] if same_rank => &EXPERTS,
            _ => &SHAPE,
        };
        report.add(Finding::new(
            check,
            Place::entry(self.model, tensor),
            shape_text(shape),
            format!("{:?}", tensor.shape),
        ));
    }

    /// The output head; its shape and its copy are described by the first body.
    fn head(
        &self,
        body: &Expected<'_>,
        config: &ModelConfig,
        expected: &mut HashSet<String>,
        report: &mut Report,
    ) {
        let Some(head) = self.family.head else {
            return;
        };
        let tied = config.tie_word_embeddings().unwrap_or(head.tied);
        let embedding = body.embedding();
        let stored = head.names.iter().find_map(|head| self.model.find(head));
        let Some(at) = stored else {
            let classes = config.architectures();
            if !tied && self.missing_is_known && classes.iter().any(|class| has_head(class)) {
                report.add(Finding::new(
                    &NO_HEAD,
                    Place::tensor(head.names[0], None),
                    "a head, as `tie_word_embeddings` is not true",
                    "none",
                ));
            }
            return;
        };
        let tensor = &self.model.tensors()[at];
        expected.insert(tensor.name.clone());
        let Some(embedding) = embedding else {
            return;
        };
        self.shape(&embedding.shape, tensor, report);
        let Some(copied) = self.model.find(&embedding.name) else {
            return;
        };
        let differs = self.values && self.model.bytes(at) != self.model.bytes(copied);
        if tied && differs {
            report.add(Finding::new(
                &TIED_DIFFERS,
                Place::entry(self.model, tensor),
                "the bytes of the embedding",
                "other bytes",
            ));
        }
    }

    /// Reports tensors that the family does not have.
    fn unexpected(&self, bodies: &[Expected<'_>], expected: &HashSet<String>, report: &mut Report) {
        for tensor in self.model.tensors() {
            let name = tensor.name.as_str();
            // A tensor outside of all bodies is the head of some task.
            if !bodies.iter().any(|body| has(body, name)) {
                continue;
            }
            let beyond = bodies.iter().any(|body| is_beyond(body, name));
            let known = expected.contains(name) || is_derived_buffer(name) || beyond;
            if !known && !name.contains(".experts.") {
                report.add(Finding::new(
                    &UNEXPECTED,
                    Place::entry(self.model, tensor),
                    format!("a tensor of {}", self.family.types.join(" or ")),
                    format!("{:?}", tensor.shape),
                ));
            }
        }
    }
}

/// Whether a layer has experts. The config decides; the stored tensors do for layers that predict further tokens, and
/// if the config says nothing.
fn is_sparse(body: &Expected<'_>, stored: &Stored, layer: usize) -> bool {
    let counted = body.count().is_none_or(|count| layer < count);
    let by_config = body.is_sparse(layer).filter(|_| counted);
    by_config.unwrap_or_else(|| stored.experts.contains_key(&layer))
}

/// Whether a tensor belongs to a body by its name.
fn has(body: &Expected<'_>, name: &str) -> bool {
    let first = |name: &str| name.split('.').next().map(str::to_owned);
    body.rules
        .iter()
        .any(|rule| first(&rule.name) == first(name))
}

/// Whether a tensor belongs to a layer after the last one.
fn is_beyond(body: &Expected<'_>, name: &str) -> bool {
    let count = body.count().unwrap_or(usize::MAX);
    body.layer_of(name).is_some_and(|(layer, _)| layer >= count)
}

/// The number of layers that predict further tokens. They follow the others and may be left out.
fn further_layers(config: &Value) -> usize {
    announced_mtp_layers(config).map_or(0, |(_, layers)| layers)
}

/// Reports that config.json announces layers that predict further tokens, and none is there.
fn missing_mtp(model: &Checkpoint, config: &ModelConfig) -> Option<Finding> {
    let (field, expected) = announced_mtp_layers(config.value())?;
    let names = || model.tensors().iter().map(|tensor| tensor.name.as_str());
    let decoder = without_mtp(layer_stacks(names()), Some(config.value()), names);
    let none = mtp_layers_in(&decoder, names()) == Some(0);
    let place = Place::field("config.json", field);
    none.then(|| Finding::new(&MTP, place, format!("{expected} layers"), "none"))
}

/// Reports layers whose tensors are not of the kind that config.json names, the first for each field.
///
/// What kind a layer is of is told by its tensors only where another layer has tensors of that kind.
fn layer_kinds(model: &Checkpoint, config: &ModelConfig) -> Vec<Finding> {
    let names = || model.tensors().iter().map(|tensor| tensor.name.as_str());
    let part = TEXT_PARTS
        .iter()
        .find_map(|part| config.value().get(part)?.as_object());
    let Some(part) = part.or_else(|| config.value().as_object()) else {
        return Vec::new();
    };
    let count = LAYER_COUNTS
        .iter()
        .find_map(|name| part.get(*name)?.as_u64());
    let stacks = without_mtp(layer_stacks(names()), Some(config.value()), names);
    let mut stacks = stacks
        .iter()
        .filter(|stack| Some(stack.layers as u64) == count);
    let (Some(stack), None) = (stacks.next(), stacks.next()) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for said in announced(part, stack.layers) {
        let of_kind = names().filter_map(|name| stack.split(name));
        let of_kind = of_kind.filter(|(_, suffix)| said.is_told_by(suffix));
        let has: BTreeSet<usize> = of_kind.map(|(layer, _)| layer).collect();
        let layers = said.has.iter().enumerate();
        let mut wrong = layers
            .filter(|(layer, said)| said.is_some_and(|said| said != has.contains(layer)))
            .filter(|_| !has.is_empty());
        let Some((layer, expected)) = wrong.next() else {
            continue;
        };
        let kind = said.markers[0];
        let with = |there: bool| match there {
            true => format!("tensors of `{kind}`"),
            false => format!("no tensors of `{kind}`"),
        };
        let expected = *expected == Some(true);
        let more = match wrong.count() {
            0 => String::new(),
            more => format!(", as in {more} more layers"),
        };
        found.push(Finding::new(
            &KIND,
            Place::tensor(format!("{}{layer}", stack.prefix), None),
            format!("{}, by `{}` of config.json", with(expected), said.field),
            format!("{}{more}", with(!expected)),
        ));
    }
    found
}

fn shape_text(shape: &[Size]) -> String {
    let sizes = shape
        .iter()
        .map(|size| size.size.map_or("any".into(), |size| size.to_string()));
    format!("[{}]", sizes.collect::<Vec<String>>().join(", "))
}

/// The tensors of each stack, by the part of their names after the layer's number.
fn roles(model: &Checkpoint) -> Roles {
    let names = || model.tensors().iter().map(|tensor| tensor.name.as_str());
    let stacks = layer_stacks(names());
    let index = StackIndex::new(&stacks);
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

/// Whether parts of the model have configs of their own, so that the top-level fields do not describe all tensors.
pub(super) fn is_nested(config: &Value) -> bool {
    let mut fields = config.as_object().into_iter().flatten();
    fields.any(|(key, part)| key.ends_with("_config") && part.get("model_type").is_some())
}

/// A model that is in no table, compared with fields that every config has. All findings are warnings.
struct Unknown<'a> {
    config: &'a ModelConfig,
    model: &'a Checkpoint,
    missing_is_known: bool,
    /// Whether values may be compared; else they are not there yet.
    values: bool,
}

impl Unknown<'_> {
    fn check(&self, report: &mut Report) {
        // If a model has several parts, it is not known which tensors a field describes.
        if is_nested(self.config.value()) {
            return;
        }
        let warn = |finding: Finding| finding.with_severity(Severity::Warning);
        report.extend(self.vocabulary().into_iter().map(warn));
        report.extend(self.hidden_size().map(warn));
        report.extend(self.tied_head().into_iter().map(warn));
        if self.missing_is_known {
            report.extend(self.layers().map(warn));
            report.extend(self.embedding().map(warn));
        }
    }

    fn embeddings(&self) -> impl Iterator<Item = &TensorEntry> {
        let tensors = self.model.tensors().iter();
        tensors
            .filter(|tensor| is_input_embedding(&tensor.name) && !tensor.name.contains("per_layer"))
    }

    fn vocabulary(&self) -> Vec<Finding> {
        let Some(expected) = self.config.vocab_size() else {
            return Vec::new();
        };
        let rows = |tensor: &TensorEntry| tensor.shape.first().copied().unwrap_or(0);
        let short = self.embeddings().filter(|tensor| rows(tensor) < expected);
        let finding = |tensor: &TensorEntry| {
            let place = Place::entry(self.model, tensor);
            let found = format!("{} rows", rows(tensor));
            Finding::new(&VOCAB, place, format!("{expected} rows"), found)
        };
        short.map(finding).collect()
    }

    /// Reports it if neither the embedding nor any norm is as wide as the config states.
    fn hidden_size(&self) -> Option<Finding> {
        let fields = ["hidden_size", "n_embd", "d_model"];
        let field = fields
            .iter()
            .find(|field| self.config.get_usize(field).is_some())?;
        let expected = self.config.get_usize(field)?;
        // Some models widen a narrow embedding, and some store attention heads separately, so one match is enough.
        let embedding = self
            .embeddings()
            .next()
            .filter(|tensor| tensor.shape.len() == 2)?;
        let norms = self.model.tensors().iter();
        let mut norms = norms
            .filter(|tensor| is_norm(&tensor.name) && tensor.shape.len() == 1)
            .peekable();
        norms.peek()?;
        if embedding.shape[1] == expected || norms.any(|tensor| tensor.shape[0] == expected) {
            return None;
        }
        Some(Finding::new(
            &SHAPE,
            Place::entry(self.model, embedding),
            format!("{expected} columns, by `{field}` of config.json"),
            format!("{:?}, and no norm as wide", embedding.shape),
        ))
    }

    /// If there is a single stack of layers, it must have as many as the config states.
    fn layers(&self) -> Option<Finding> {
        let expected = self.config.num_hidden_layers()?;
        let names = || {
            self.model
                .tensors()
                .iter()
                .map(|tensor| tensor.name.as_str())
        };
        let (stored, last) = match &layer_stacks(names())[..] {
            [stack] => (stack.layers, stack.layers.checked_sub(1)?),
            [] => {
                // With a layer missing in the middle, the remaining ones do not count as a stack.
                let lists = layer_lists(names());
                let mut deep = lists.values().filter(|layers| layers.len() > 1);
                let layers = deep.next().filter(|_| deep.next().is_none())?;
                (layers.len(), *layers.last()?)
            }
            _ => return None,
        };
        let right = stored >= expected
            && last < expected.saturating_add(further_layers(self.config.value()));
        let found = format!("{stored} layers, the last of them {last}");
        let place = Place::field("config.json", "num_hidden_layers");
        (!right).then(|| Finding::new(&LAYERS, place, format!("{expected} layers"), found))
    }

    /// A model that writes text must have a tensor with a row for each token.
    fn embedding(&self) -> Option<Finding> {
        let vocabulary = self.config.vocab_size()?;
        let classes = self.config.architectures();
        let is_row = |tensor: &&TensorEntry| {
            let rows = tensor.shape.len() == 2 && tensor.shape[0] >= vocabulary;
            rows && !is_output_head(&tensor.name)
        };
        let rows = self.model.tensors().iter().find(is_row);
        let needed = classes.iter().any(|class| has_head(class));
        if !needed || rows.is_some() || self.embeddings().next().is_some() {
            return None;
        }
        let expected = format!("an embedding of {vocabulary} rows");
        Some(Finding::new(&MISSING, Place::default(), expected, "none"))
    }

    fn tied_head(&self) -> Option<Finding> {
        if self.config.tie_word_embeddings() != Some(true) {
            return None;
        }
        let mut embeddings = self.embeddings();
        let embedding = embeddings.next().filter(|_| embeddings.next().is_none())?;
        let embedding = self.model.find(&embedding.name)?;
        let of = |at: usize| &self.model.tensors()[at];
        let same_kind = |at: &usize| {
            let head = of(*at);
            is_output_head(&head.name)
                && head.shape == of(embedding).shape
                && head.dtype == of(embedding).dtype
        };
        let head = (0..self.model.tensors().len()).find(same_kind)?;
        let differs = self.values && self.model.bytes(head) != self.model.bytes(embedding);
        let place = Place::entry(self.model, of(head));
        let finding = Finding::new(
            &TIED_DIFFERS,
            place,
            "the bytes of the embedding",
            "other bytes",
        );
        differs.then_some(finding)
    }
}
