//! The output's `config.json`: the donor's, with the fields that the merge changed.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::PlannedTensor;
use super::layers::LayerMap;
use super::problems::{Problems, some_of};
use architecture::{
    Inexpressible, LAYER_COUNTS, MTP_COUNTS, Restack, TEXT_PARTS, layer_stacks, mtp_layers_in,
    older_spelling, without_mtp,
};
use checkpoint::{Dtype, ModelConfig};
use numeric::FloatType;

/// How configs of vision towers spell it.
const VISION_COUNTS: [&str; 4] = ["depth", "num_hidden_layers", "n_layers", "num_layers"];
/// What modules of images are called whose layers `vision_config` counts.
const VISION_MODULES: [&str; 5] = [
    "visual",
    "vision_tower",
    "vision_model",
    "vision_encoder",
    "image_tower",
];
/// Further spellings, where a config has none of the others.
const OTHER_COUNTS: [&str; 5] = [
    "depth",
    "num_blocks",
    "num_layers_per_stack",
    "conf_num_hidden_layers",
    "n_blocks",
];
/// The number of encoder layers in configs with an encoder and a decoder; `num_hidden_layers` repeats it.
const ENCODER_COUNTS: [&str; 4] = [
    "encoder_layers",
    "num_encoder_layers",
    "num_layers",
    "num_hidden_layers",
];
/// The number of decoder layers there.
const DECODER_COUNTS: [&str; 2] = ["decoder_layers", "num_decoder_layers"];

/// The donor's config with the output's dtype and layers.
pub(super) fn edited(
    config: &ModelConfig,
    tensors: &[PlannedTensor],
    layer_maps: &[LayerMap],
    donor: &str,
    notes: &mut Vec<String>,
    problems: &mut Problems,
) -> Value {
    let mut value = config.value().clone();
    if let Some(object) = value.as_object_mut() {
        set_dtype(object, tensors, notes);
        // Stacks that one field counts are cut alike: it follows the first.
        let counts = |map: &LayerMap| Counts::count(object, &map.prefix, map.before);
        let counts: Vec<Counts> = layer_maps.iter().map(counts).collect();
        for (index, map) in layer_maps.iter().enumerate() {
            let counted = counts[..index]
                .iter()
                .any(|earlier| earlier.shared(&counts[index]).is_some());
            if !counted {
                set_layers(object, map, donor, notes, problems);
            }
        }
    }
    set_mtp_layers(&mut value, tensors, notes);
    set_rope(&mut value);
    value
}

/// Spells rotary positions for transformers 4 too, in the config and in that of its text model.
fn set_rope(config: &mut Value) {
    for (field, value) in older_spelling(config) {
        config[field] = value;
    }
    for part in TEXT_PARTS {
        if let Some(part) = config.get_mut(part).filter(|part| part.is_object()) {
            set_rope(part);
        }
    }
}

/// Sets the number of layers that predict further tokens to that of those that are written.
fn set_mtp_layers(config: &mut Value, tensors: &[PlannedTensor], notes: &mut Vec<String>) {
    let names = || tensors.iter().map(|tensor| tensor.name.as_str());
    let stacks = without_mtp(layer_stacks(names()), Some(config), names);
    let Some(written) = mtp_layers_in(&stacks, names()) else {
        return;
    };
    let mut set = |part: &mut Value| {
        for name in MTP_COUNTS {
            let count = part
                .get_mut(name)
                .filter(|count| count.as_u64().is_some_and(|count| count > 0));
            if let Some(count) = count.filter(|count| count.as_u64() != Some(written as u64)) {
                notes.push(format!(
                    "`{name}` of the config is {written} and not {count}, as the output has so many layers that predict \
                     further tokens"
                ));
                *count = written.into();
            }
        }
    };
    set(config);
    for part in TEXT_PARTS {
        if let Some(part) = config.get_mut(part) {
            set(part);
        }
    }
}

/// The name of a dtype in configs.
pub fn dtype_name(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::F64 => "float64",
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        Dtype::F8_E4M3 => "float8_e4m3fn",
        Dtype::F8_E5M2 => "float8_e5m2",
        _ => return None,
    })
}

/// The float dtypes of tensors, and how many elements have each.
fn elements<'t>(tensors: impl Iterator<Item = &'t PlannedTensor>) -> Vec<(Dtype, u64)> {
    let mut elements: Vec<(Dtype, u64)> = Vec::new();
    for tensor in tensors.filter(|tensor| FloatType::from_dtype(tensor.dtype).is_some()) {
        let known = elements
            .iter_mut()
            .find(|(dtype, _)| *dtype == tensor.dtype);
        match known {
            Some((_, count)) => *count += tensor.elements(),
            None => elements.push((tensor.dtype, tensor.elements())),
        }
    }
    elements
}

/// The dtype that most elements have, as configs name it.
fn most(elements: &[(Dtype, u64)]) -> Option<&'static str> {
    let most = elements.iter().max_by_key(|(_, count)| *count);
    most.and_then(|(dtype, _)| dtype_name(*dtype))
}

/// Sets the dtype that most weights have: `dtype` for transformers 5, `torch_dtype` for earlier versions.
fn set_dtype(config: &mut Map<String, Value>, tensors: &[PlannedTensor], notes: &mut Vec<String>) {
    let elements = elements(tensors.iter());
    let Some(name) = most(&elements) else {
        return;
    };
    if elements.len() > 1 {
        let all: Vec<String> = elements
            .iter()
            .map(|(dtype, _)| format!("{dtype:?}"))
            .collect();
        notes.push(format!(
            "the output has tensors of several dtypes ({}); its config says {name}, as most have",
            all.join(", ")
        ));
    }
    // Configs of diffusers say nothing of dtypes.
    if !config.contains_key("_class_name") {
        for key in ["dtype", "torch_dtype"] {
            config.insert(key.into(), name.into());
        }
    }
    set_dtype_of_parts(config, tensors, name);
}

/// Sets the dtype where the config of a part (`vision_config`) says one: what most of the part's weights have, or else
/// most of the model's.
fn set_dtype_of_parts(
    config: &mut Map<String, Value>,
    tensors: &[PlannedTensor],
    of_model: &'static str,
) {
    for (key, part) in config.iter_mut() {
        let Some(part) = part.as_object_mut() else {
            continue;
        };
        let Some(stem) = key.strip_suffix("_config") else {
            continue;
        };
        let words: &[&str] = match stem {
            "vision" => &["vision", "visual"],
            stem => &[stem],
        };
        let of_part = tensors
            .iter()
            .filter(|tensor| words.iter().any(|word| tensor.name.contains(word)));
        let name = match TEXT_PARTS.contains(&key.as_str()) {
            true => of_model,
            false => most(&elements(of_part)).unwrap_or(of_model),
        };
        for key in ["dtype", "torch_dtype"] {
            if part.contains_key(key) {
                part.insert(key.into(), name.into());
            }
        }
        set_dtype_of_parts(part, tensors, name);
    }
}

/// The fields of a config that count the layers of a stack.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Counts {
    /// The part of the config that they stand in; none: its top.
    part: Option<String>,
    /// Their names, each once.
    pub(super) fields: BTreeSet<&'static str>,
}

impl Counts {
    /// Of a stack of so many layers.
    pub(super) fn count(config: &Map<String, Value>, prefix: &str, layers: usize) -> Self {
        let (part, names) = layer_counts(config, prefix, layers);
        let object = match &part {
            Some(part) => config.get(part).and_then(Value::as_object),
            None => Some(config),
        };
        let counts = |name: &&'static str| {
            let count = object.and_then(|object| object.get(*name));
            count.and_then(Value::as_u64) == Some(layers as u64)
        };
        let fields = names.iter().chain(&OTHER_COUNTS).copied().filter(counts);
        Self {
            fields: fields.collect(),
            part,
        }
    }

    /// A field that both have.
    pub(super) fn shared(&self, other: &Self) -> Option<&'static str> {
        let mut shared = self.fields.intersection(&other.fields).copied();
        shared.next().filter(|_| self.part == other.part)
    }
}

/// Whether the stack is that of an encoder or a decoder by itself, as T5's are.
fn is_coder(prefix: &str) -> bool {
    prefix.starts_with("encoder.") || prefix.starts_with("decoder.")
}

/// Where the config counts the layers of a stack: the nested object, and the keys to look for in it.
fn layer_counts(
    config: &Map<String, Value>,
    prefix: &str,
    layers: usize,
) -> (Option<String>, &'static [&'static str]) {
    let has = |key: &str, counts: &[&str]| {
        config
            .get(key)
            .and_then(Value::as_object)
            .is_some_and(|nested| counts.iter().any(|count| nested.contains_key(*count)))
    };
    let two_stacks =
        has_two_stacks(config) || is_coder(prefix) && config.contains_key("num_layers");
    let of = |part: &str| prefix.split('.').any(|found| found == part);
    let own = own_parts(config, prefix).into_iter().find(|(_, part)| {
        let counts = |count: &&str| part.get(*count).and_then(Value::as_u64) == Some(layers as u64);
        LAYER_COUNTS.iter().any(counts)
    });
    if let Some((own, _)) = own {
        return (Some(own.to_owned()), &LAYER_COUNTS);
    }
    // An image becomes text: the encoder is the tower.
    let images =
        prefix.starts_with("encoder.") && !two_stacks && has("vision_config", &VISION_COUNTS);
    if images || VISION_MODULES.iter().any(|part| of(part)) {
        let nested = has("vision_config", &VISION_COUNTS).then(|| "vision_config".to_owned());
        return (nested, &VISION_COUNTS);
    } else if ["audio_tower", "audio_model", "audio_encoder"]
        .iter()
        .any(|part| of(part))
    {
        if has("audio_config", &ENCODER_COUNTS) {
            return (Some("audio_config".to_owned()), &ENCODER_COUNTS);
        }
    } else if of("encoder") && two_stacks {
        return (None, &ENCODER_COUNTS);
    } else if of("decoder") && two_stacks {
        return (None, &DECODER_COUNTS);
    }
    let nested = TEXT_PARTS.into_iter().find(|key| has(key, &LAYER_COUNTS));
    (nested.map(str::to_owned), &LAYER_COUNTS)
}

/// The parts of a config that are called as a module in the prefix is, by its first word: `detr_decoder_config`,
/// `speech_config` of `speech_encoder_model`.
fn own_parts<'c>(
    config: &'c Map<String, Value>,
    prefix: &str,
) -> Vec<(&'c str, &'c Map<String, Value>)> {
    let is_named = |stem: &str| {
        let word = stem.split('_').next().unwrap_or(stem);
        let first = |module: &str| {
            let first = module.split('_').next().unwrap_or(module);
            first == word
                || word == "vision" && matches!(first, "visual" | "image" | "img" | "video")
        };
        let mut modules = prefix.split('.');
        modules.any(|module| module == stem || word != "model" && first(module))
    };
    let parts = config.iter().filter_map(|(name, part)| {
        let part = part.as_object()?;
        let stem = name.strip_suffix("_config")?;
        is_named(stem).then_some((name.as_str(), part))
    });
    let mut parts: Vec<_> = parts.collect();
    // The whole name says more than its first word.
    parts.sort_by_key(|(name, _)| {
        let stem = name.strip_suffix("_config").unwrap_or(name);
        !prefix.split('.').any(|module| module == stem)
    });
    parts
}

/// Whether a part of the config at any depth is called as a module of the run is, and as none of the stack.
pub(super) fn has_part_of_its_own(config: &Map<String, Value>, run: &str, stack: &str) -> bool {
    let of_stack = own_parts(config, stack);
    let own = own_parts(config, run);
    own.iter().any(|part| !of_stack.contains(part))
        || config
            .values()
            .filter_map(Value::as_object)
            .any(|part| has_part_of_its_own(part, run, stack))
}

/// Whether the config counts the layers of an encoder and of a decoder.
fn has_two_stacks(config: &Map<String, Value>) -> bool {
    config.contains_key("decoder_layers") || config.contains_key("num_decoder_layers")
}

/// How the fields begin that are about the other half of an encoder and decoder, if the stack is in one of them.
fn other_half(config: &Map<String, Value>, prefix: &str) -> Option<&'static str> {
    let of = |part: &str| prefix.split('.').any(|found| found == part);
    if !has_two_stacks(config) && !is_coder(prefix) {
        return None;
    }
    match (of("encoder"), of("decoder")) {
        (true, false) => Some("decoder_"),
        (false, true) => Some("encoder_"),
        _ => None,
    }
}

/// The list by whose length Nemotron-H counts its layers, without a number of them.
const LIST_THAT_COUNTS: &str = "layers_block_type";

/// Whether the layers of a stack are counted by a list with an entry for each, and by nothing else.
fn is_counted_by_list(config: &Map<String, Value>, layers: usize) -> bool {
    let number = |field: &&str| config.get(*field).is_some_and(|number| !number.is_null());
    let list = config.get(LIST_THAT_COUNTS).and_then(Value::as_array);
    !LAYER_COUNTS.iter().any(number) && list.is_some_and(|list| list.len() == layers)
}

/// Sets the number of layers of a stack, and reorders what is listed by layer.
fn set_layers(
    config: &mut Map<String, Value>,
    map: &LayerMap,
    donor: &str,
    notes: &mut Vec<String>,
    problems: &mut Problems,
) {
    // T5's decoder has as many layers as its encoder, unless the config says otherwise.
    if let (true, Some(both)) = (is_coder(&map.prefix), config.get("num_layers").cloned())
        && config.get("num_decoder_layers").is_none_or(Value::is_null)
    {
        config.insert("num_decoder_layers".into(), both);
    }
    let other_half = other_half(config, &map.prefix);
    let counts = Counts::count(config, &map.prefix, map.before);
    let object = match &counts.part {
        Some(part) => config.get_mut(part).and_then(Value::as_object_mut),
        None => Some(config),
    };
    let Some(config) = object else { return };
    for field in &counts.fields {
        config.insert((*field).to_owned(), map.from.len().into());
    }
    let found = !counts.fields.is_empty() || is_counted_by_list(config, map.before);
    if !found && map.from.len() != map.before {
        problems.add(
            None,
            format!(
                "the config of `{donor}` has no field that is known to count the {} layers of `{}`, so it cannot say that \
                 the output has {}",
                map.before,
                map.prefix,
                map.from.len()
            ),
            Some("take as many layers as there were, or merge such models whole, with `models:`".to_owned()),
        );
        return;
    }
    if !map.is_changed() {
        return;
    }
    let restack = Restack {
        before: map.before,
        from: &map.from,
        behind: map.behind,
        uneven: map.uneven,
        other_half,
    };
    let failed = match restack.apply(config) {
        Ok(doubtful) if doubtful.is_empty() => return,
        Ok(doubtful) => {
            notes.push(format!(
                "fields of the config may speak of layers by their numbers, and stay as they are: {}",
                some_of(&doubtful)
            ));
            return;
        }
        Err(failed) => failed,
    };
    for Inexpressible { field, value } in failed {
        problems.add(
            None,
            format!(
                "the config of `{donor}` says `{field}`: {value}, which cannot say of the {} output layers of `{}` \
                 what it says of the {} that they come from",
                map.from.len(),
                map.prefix,
                map.before
            ),
            Some(
                "take layers in an order that keeps the pattern, such as whole periods of it, or a donor whose config \
                 lists its layers one by one"
                    .to_owned(),
            ),
        );
    }
}
