//! Whether the tensors are those that config.json promises, and every layer has what the others have.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde_json::Value;

use super::families::{FAMILIES, Family};
use super::values::is_norm;
use crate::{Finding, Place, Report, Severity, Skipped};
use checkpoint::{
    Checkpoint, ModelConfig, StackIndex, Survey, TensorEntry, is_derived_buffer,
    is_input_embedding, is_output_head, layer_lists, layer_stacks,
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
    let families = model.config().map(families_of).unwrap_or_default();
    let missing_is_known = !survey.partial;
    if !missing_is_known {
        report.skipped.push(Skipped {
            check: &MISSING,
            why: "a file could not be read, so it is not known what it holds".into(),
            needed: true,
        });
    }
    let Some(config) = model.config() else {
        uneven_layers(&roles, missing_is_known, report);
        return;
    };
    if families.is_empty() {
        uneven_layers(&roles, missing_is_known, report);
        let unknown = Unknown {
            config,
            model,
            missing_is_known,
        };
        unknown.check(report);
        return;
    }
    let bodies: Vec<Structure<'_>> = families
        .iter()
        .map(|family| Structure::of(family, config, model, missing_is_known))
        .collect();
    let mut expected: HashSet<String> = HashSet::new();
    for body in &bodies {
        body.check(&mut expected, report);
    }
    unexpected(model, &bodies, &expected, report);
}

/// The bodies of a model, by the config's own `model_type`: one mostly, and none where no table has it.
fn families_of(config: &ModelConfig) -> Vec<&'static Family> {
    // Of a model that nests its language model, this is the type of the whole.
    let kind = config.value().get("model_type").and_then(Value::as_str);
    let classes = config.architectures();
    let encoder_alone = |class: &String| {
        ["EncoderModel", "ForTokenClassification"]
            .iter()
            .any(|end| class.ends_with(end))
    };
    let encoder_alone = classes.iter().any(encoder_alone);
    let of = kind.map(families).into_iter().flatten();
    of.filter(|family| !family.is_decoder || !encoder_alone)
        .collect()
}

fn families(kind: &str) -> impl Iterator<Item = &'static Family> {
    FAMILIES
        .iter()
        .filter(move |family| family.types.contains(&kind))
}

/// Whether a table has the tensors of a `model_type`.
pub(super) fn is_known(kind: &str) -> bool {
    families(kind).next().is_some()
}

/// What the head may be called in checkpoints of a `model_type`.
pub(super) fn heads_of(kind: &str) -> Option<&'static [&'static str]> {
    families(kind).find_map(|family| Some(family.head?.0))
}

/// Whether a class has a head beside the body.
pub(super) fn has_head(class: &str) -> bool {
    ["ForCausalLM", "LMHeadModel", "ForConditionalGeneration"]
        .iter()
        .any(|end| class.ends_with(end))
}

/// Where the sizes of a body are.
struct Sizes<'a> {
    family: &'static Family,
    /// Its own part of config.json, or all of it.
    part: ModelConfig,
    whole: &'a ModelConfig,
}

impl Sizes<'_> {
    fn any(&self, keys: &[&str]) -> Option<usize> {
        keys.iter().find_map(|key| self.part.get_usize(key))
    }

    /// A sum of fields, times one.
    fn product(&self, of: &str, summands: &[&str]) -> Option<usize> {
        let mut sum = 0usize;
        for field in summands {
            sum = sum.checked_add(self.any(&[field])?)?;
        }
        self.any(&[of])?.checked_mul(sum)
    }

    /// A size by its letter: `_` and what config.json does not say are any size.
    fn of(&self, letter: &str) -> Option<usize> {
        let any = |keys: &[&str]| self.any(keys);
        let of = |letter: &str| self.of(letter);
        let hidden = || any(&["hidden_size", "n_embd", "dim", "d_model"]);
        let family = self.family;
        match letter {
            "1" => Some(1),
            "V" => self.part.vocab_size(),
            "H" => hidden(),
            "HHH" => hidden()?.checked_mul(3),
            "I" => any(&["intermediate_size", "n_inner", "hidden_dim", "d_ff"]).or_else(|| {
                let four_fold = family.types.contains(&"gpt2");
                hidden().filter(|_| four_fold)?.checked_mul(4)
            }),
            "II" => of("I")?.checked_mul(2),
            "MM" => of("M")?.checked_mul(2),
            "M" => any(&["moe_intermediate_size"]),
            "S" => any(&["shared_expert_intermediate_size"]),
            "SM" => of("M")?.checked_mul(any(&["n_shared_experts"])?),
            "E" => any(&["num_local_experts", "num_experts", "n_routed_experts"]),
            "P" => any(&["max_position_embeddings", "n_positions"]),
            "B" => any(&["relative_attention_num_buckets"]),
            "N" => any(&["num_attention_heads", "num_heads"]),
            "D" => any(&["head_dim", "d_kv"]).or_else(|| match family.head_dim_follows {
                true => hidden()?.checked_div(any(&["num_attention_heads"])?),
                false => None,
            }),
            "Q" => of("N")?.checked_mul(of("D")?),
            "K" => any(&["num_key_value_heads", "num_attention_heads"])?.checked_mul(of("D")?),
            "QKK" => of("Q")?.checked_add(of("K")?.checked_mul(2)?),
            // Latent attention: queries, and keys with values, through a matrix of low rank each.
            "QL" => any(&["q_lora_rank"]),
            "KL" => any(&["kv_lora_rank"]),
            "KA" => of("KL")?.checked_add(any(&["qk_rope_head_dim"])?),
            "QH" => self.product(
                "num_attention_heads",
                &["qk_nope_head_dim", "qk_rope_head_dim"],
            ),
            "KB" => self.product("num_attention_heads", &["qk_nope_head_dim", "v_head_dim"]),
            "VO" => self.product("num_attention_heads", &["v_head_dim"]),
            "VH" => {
                let vision = self.whole.value().get("vision_config")?;
                usize::try_from(vision.get("hidden_size")?.as_u64()?).ok()
            }
            _ => None,
        }
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

/// A body of a model, against its table.
struct Structure<'a> {
    family: &'static Family,
    sizes: Sizes<'a>,
    model: &'a Checkpoint,
    missing_is_known: bool,
    rules: Vec<Rule>,
    layers_before: String,
    /// The field of config.json that says how many layers it has, and how many.
    layers: Option<(&'static str, usize)>,
}

impl<'a> Structure<'a> {
    fn of(
        family: &'static Family,
        config: &'a ModelConfig,
        model: &'a Checkpoint,
        missing_is_known: bool,
    ) -> Self {
        let names = || model.tensors().iter().map(|tensor| tensor.name.as_str());
        let there = |prefix: &&&str| names().any(|name| name.starts_with(**prefix));
        let prefix = family
            .prefixes
            .iter()
            .find(there)
            .or(family.prefixes.first());
        let prefix = prefix.copied().unwrap_or_default();
        let part = match family.part {
            None => config.clone(),
            Some(part) => {
                let part = config.value().get(part).cloned().unwrap_or_default();
                ModelConfig::made(config.path().into(), part)
            }
        };
        let sizes = Sizes {
            family,
            part,
            whole: config,
        };
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
                sizes: letters.iter().map(|letter| sizes.of(letter)).collect(),
                name,
                letters,
            })
        });
        let rules = rules.collect();
        let count = |field: &&'static str| Some((*field, sizes.part.get_usize(field)?));
        Structure {
            rules,
            family,
            layers: family.counts.iter().find_map(count),
            sizes,
            model,
            missing_is_known,
            layers_before: format!("{prefix}{}", family.layers),
        }
    }

    /// How many layers config.json says that it has.
    fn count(&self) -> Option<usize> {
        self.layers.map(|(_, layers)| layers)
    }

    /// Looks at all that the table has, and says which tensors that is.
    fn check(&self, expected: &mut HashSet<String>, report: &mut Report) {
        let stored = self.stored_layers();
        let experts = self.layers_with_experts();
        if !self.family.layers.is_empty() {
            self.layer_count(&stored, report);
        }
        for rule in &self.rules {
            if !rule.name.contains('*') {
                self.one(rule, rule.name.clone(), false, expected, report);
                continue;
            }
            let applies = |layer: &&usize| {
                let with = experts.contains_key(layer);
                rule.experts.is_none_or(|only| only == with)
            };
            let of_layer = |layer: usize| rule.name.replacen('*', &layer.to_string(), 1);
            // What one layer has, or config.json promises, all have; further heads are built as they like.
            let count = self.count().unwrap_or(usize::MAX);
            let mut body = stored.range(..count).filter(applies);
            let needed = self.promised(rule)
                || rule.optional && body.any(|layer| self.find(&of_layer(*layer)).is_some());
            for layer in stored.iter().filter(applies) {
                let name = of_layer(*layer);
                if !name.contains('#') {
                    self.one(rule, name, needed && *layer < count, expected, report);
                    continue;
                }
                // Fused experts are one tensor, of which the table knows nothing.
                for expert in experts.get(layer).into_iter().flatten() {
                    let name = name.replacen('#', &expert.to_string(), 1);
                    self.one(rule, name, false, expected, report);
                }
            }
        }
        self.expert_counts(&experts, report);
        self.head(expected, report);
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
        let Some((field, expected)) = self.layers else {
            return;
        };
        let more = further_layers(&self.sizes.part);
        let surplus = stored
            .iter()
            .any(|&layer| layer >= expected.saturating_add(more));
        let lacking = stored.range(..expected).count() < expected;
        if surplus || (lacking && self.missing_is_known) {
            let part = self.family.part.map(|part| format!("{part}."));
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

    fn expert_counts(&self, experts: &BTreeMap<usize, BTreeSet<usize>>, report: &mut Report) {
        let Some(expected) = self.sizes.of("E") else {
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
        let config = &self.sizes.part;
        let says = |key: &str| config.get_bool(key) == Some(true);
        let is_of = |types: &[&str]| types.iter().any(|kind| self.family.types.contains(kind));
        let name = rule.name.as_str();
        // Mistral shares a table with Llama, and has neither field.
        let mistral = config.model_type() == Some("mistral");
        let attention = name.contains(".self_attn.") && name.ends_with("_proj.bias");
        let mlp = name.contains(".mlp.") && name.ends_with("_proj.bias");
        let biases = attention && is_of(&ATTENTION) && says("attention_bias")
            || mlp && is_of(&["llama", "granite"]) && says("mlp_bias");
        let promised = biases && !mistral
            || is_of(&["t5"]) && self.promised_by_t5(name)
            || is_of(&["deepseek_v3"]) && self.promised_by_deepseek(name);
        rule.optional && promised
    }

    /// Either one matrix leads into the MLP, or two where it is gated.
    fn promised_by_t5(&self, name: &str) -> bool {
        let kind = self
            .sizes
            .part
            .get_str("feed_forward_proj")
            .unwrap_or("relu");
        let two = name.contains(".DenseReluDense.wi_");
        let one = name.contains(".DenseReluDense.wi.");
        if kind.starts_with("gated") { two } else { one }
    }

    /// Queries come by one matrix, or by two of low rank.
    fn promised_by_deepseek(&self, name: &str) -> bool {
        let config = &self.sizes.part;
        let rank = config.value().get("q_lora_rank");
        if name.ends_with(".self_attn.q_proj.weight") {
            return rank.is_some_and(Value::is_null);
        }
        if name.contains(".self_attn.q_") && name.ends_with(".weight") {
            return rank.is_some_and(Value::is_u64);
        }
        if name.ends_with("e_score_correction_bias") {
            return config.get_str("topk_method") == Some("noaux_tc");
        }
        let shared = config
            .get_usize("n_shared_experts")
            .is_some_and(|count| count > 0);
        name.contains(".shared_experts.") && shared
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
        let Some((heads, tied_by_family)) = self.family.head else {
            return;
        };
        let whole = self.sizes.whole;
        let tied = whole.tie_word_embeddings().unwrap_or(tied_by_family);
        let embedding = self.rules.iter().find(|rule| rule.letters == ["V", "H"]);
        let embedding = embedding.and_then(|rule| self.model.find(&rule.name));
        let stored = heads.iter().find_map(|head| self.model.find(head));
        let Some(at) = stored else {
            let classes = whole.architectures();
            if !tied && self.missing_is_known && classes.iter().any(|class| has_head(class)) {
                report.add(Finding::new(
                    &NO_HEAD,
                    Place::tensor(heads[0], None),
                    "a head, as `tie_word_embeddings` is not true",
                    "none",
                ));
            }
            return;
        };
        let tensor = &self.model.tensors()[at];
        expected.insert(tensor.name.clone());
        let sizes = ["V", "H"].map(|letter| self.sizes.of(letter));
        let rule = Rule {
            optional: true,
            experts: None,
            name: tensor.name.clone(),
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

    /// Whether a tensor is of this body by its name: what stands outside is the head of some task.
    fn has(&self, name: &str) -> bool {
        let first = |name: &str| name.split('.').next().map(str::to_owned);
        self.rules
            .iter()
            .any(|rule| first(&rule.name) == first(name))
    }

    /// Whether a tensor is of a layer beyond the last.
    fn is_beyond(&self, name: &str) -> bool {
        let count = self.count().unwrap_or(usize::MAX);
        self.layer_of(name).is_some_and(|(layer, _)| layer >= count)
    }
}

/// Tensors that no table has.
fn unexpected(
    model: &Checkpoint,
    bodies: &[Structure<'_>],
    expected: &HashSet<String>,
    report: &mut Report,
) {
    for tensor in model.tensors() {
        let name = tensor.name.as_str();
        let Some(body) = bodies.iter().find(|body| body.has(name)) else {
            continue;
        };
        let beyond = bodies.iter().any(|body| body.is_beyond(name));
        let known = expected.contains(name) || is_derived_buffer(name) || beyond;
        if !known && !name.contains(".experts.") {
            report.add(Finding::new(
                &UNEXPECTED,
                Place::of(model, tensor),
                format!("a tensor of {}", body.family.types.join(" or ")),
                format!("{:?}", tensor.shape),
            ));
        }
    }
}

/// Layers that predict further tokens: they stand behind the others, and may be left out.
fn further_layers(config: &ModelConfig) -> usize {
    config.get_usize("num_nextn_predict_layers").unwrap_or(0)
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

/// The fewest of which two can be.
const EVEN_BUT_TWO: usize = 6;

/// A tensor that all layers have but one in the middle; or but the last, or but two, where nothing else of those layers
/// is different: the ends of a stack, and every other layer, may be built otherwise, but then not by one tensor.
fn uneven_layers(roles: &Roles, missing_is_known: bool, report: &mut Report) {
    if !missing_is_known {
        return;
    }
    // How many of the roles that nearly all layers have a layer lacks.
    let mut lacks: HashMap<(&str, usize), usize> = HashMap::new();
    let lacking = |layers: usize, having: &[(usize, usize)]| -> Vec<usize> {
        let having: BTreeSet<usize> = having.iter().map(|&(layer, _)| layer).collect();
        (0..layers)
            .filter(|layer| !having.contains(layer))
            .collect()
    };
    let nearly_all = |layers: usize, having: &[(usize, usize)]| {
        let without = layers - having.len().min(layers);
        without == 1 && layers >= EVEN_LAYERS || without == 2 && layers >= EVEN_BUT_TWO
    };
    for ((prefix, _), &(layers, ref having)) in roles {
        if nearly_all(layers, having) {
            for layer in lacking(layers, having) {
                *lacks.entry((prefix, layer)).or_default() += 1;
            }
        }
    }
    for ((prefix, suffix), &(layers, ref having)) in roles {
        if !nearly_all(layers, having) {
            continue;
        }
        let without = lacking(layers, having);
        let one_in_the_middle = without.len() == 1 && (1..layers - 1).contains(&without[0]);
        let alone = |layer: &usize| *layer > 0 && lacks.get(&(prefix.as_str(), *layer)) == Some(&1);
        if !one_in_the_middle && !without.iter().all(alone) {
            continue;
        }
        for layer in without {
            report.add(Finding::new(
                &UNEVEN,
                Place::tensor(format!("{prefix}{layer}.{suffix}"), None),
                format!("a tensor that {} of {layers} layers have", having.len()),
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
pub(super) fn is_nested(config: &Value) -> bool {
    let mut fields = config.as_object().into_iter().flatten();
    fields.any(|(key, part)| key.ends_with("_config") && part.get("model_type").is_some())
}

/// A model that no table has, against what its config says of all models: warnings are all that is said.
struct Unknown<'a> {
    config: &'a ModelConfig,
    model: &'a Checkpoint,
    missing_is_known: bool,
}

impl Unknown<'_> {
    fn check(&self, report: &mut Report) {
        // Of a model of several parts, nobody knows which tensors a field is about.
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
            let place = Place::of(self.model, tensor);
            let found = format!("{} rows", rows(tensor));
            Finding::new(&VOCAB, place, format!("{expected} rows"), found)
        };
        short.map(finding).collect()
    }

    /// Neither embedding nor norm is as wide as the config says.
    fn hidden_size(&self) -> Option<Finding> {
        let fields = ["hidden_size", "n_embd", "d_model"];
        let field = fields
            .iter()
            .find(|field| self.config.get_usize(field).is_some())?;
        let expected = self.config.get_usize(field)?;
        // Some widen a narrow embedding, and some save heads of attention apart: one that fits is enough.
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
            Place::of(self.model, embedding),
            format!("{expected} columns, by `{field}` of config.json"),
            format!("{:?}, and no norm as wide", embedding.shape),
        ))
    }

    /// Where there is one stack of layers, it has as many as the config says.
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
                // With one in the middle lost, the others are no stack.
                let lists = layer_lists(names());
                let mut deep = lists.values().filter(|layers| layers.len() > 1);
                let layers = deep.next().filter(|_| deep.next().is_none())?;
                (layers.len(), *layers.last()?)
            }
            _ => return None,
        };
        let right =
            stored >= expected && last < expected.saturating_add(further_layers(self.config));
        let found = format!("{stored} layers, the last of them {last}");
        let place = Place::field("config.json", "num_hidden_layers");
        (!right).then(|| Finding::new(&LAYERS, place, format!("{expected} layers"), found))
    }

    /// A model that writes text has a row for each token somewhere.
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
        let differs = self.model.bytes(head) != self.model.bytes(embedding);
        let place = Place::of(self.model, of(head));
        let finding = Finding::new(
            &TIED_DIFFERS,
            place,
            "the bytes of the embedding",
            "other bytes",
        );
        differs.then_some(finding)
    }
}
