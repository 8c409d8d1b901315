//! The output's `config.json`: the donor's, with the fields that the merge changed.

use serde_json::{Map, Value};

use super::PlannedTensor;
use super::layers::LayerMap;
use super::problems::{Problems, some_of};
use architecture::{
    Inexpressible, LAYER_COUNTS, MTP_COUNTS, Restack, TEXT_PARTS, layer_stacks, mtp_layers_in,
    without_mtp,
};
use checkpoint::{Dtype, ModelConfig};
use numeric::FloatType;

/// How configs of vision towers spell it.
const VISION_COUNTS: [&str; 4] = ["depth", "num_hidden_layers", "n_layers", "num_layers"];
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
        for map in layer_maps {
            set_layers(object, map, donor, notes, problems);
        }
    }
    set_mtp_layers(&mut value, tensors, notes);
    value
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
    for tensor in tensors.filter(|tensor| FloatType::of(tensor.dtype).is_some()) {
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

/// Where the config counts the layers of a stack: the nested object, and the keys to look for in it.
fn layer_counts(
    config: &Map<String, Value>,
    prefix: &str,
) -> (Option<&'static str>, &'static [&'static str]) {
    let has = |key: &str, counts: &[&str]| {
        config
            .get(key)
            .and_then(Value::as_object)
            .is_some_and(|nested| counts.iter().any(|count| nested.contains_key(*count)))
    };
    let two_stacks =
        config.contains_key("decoder_layers") || config.contains_key("num_decoder_layers");
    let of = |part: &str| prefix.split('.').any(|found| found == part);
    if ["visual", "vision_tower", "vision_model", "vision_encoder"]
        .iter()
        .any(|part| of(part))
    {
        if has("vision_config", &VISION_COUNTS) {
            return (Some("vision_config"), &VISION_COUNTS);
        }
        return (None, &VISION_COUNTS);
    } else if ["audio_tower", "audio_model", "audio_encoder"]
        .iter()
        .any(|part| of(part))
    {
        if has("audio_config", &ENCODER_COUNTS) {
            return (Some("audio_config"), &ENCODER_COUNTS);
        }
    } else if of("encoder") && two_stacks {
        return (None, &ENCODER_COUNTS);
    } else if of("decoder") && two_stacks {
        return (None, &DECODER_COUNTS);
    }
    let nested = TEXT_PARTS.into_iter().find(|key| has(key, &LAYER_COUNTS));
    (nested, &LAYER_COUNTS)
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
    let coder = map.prefix.starts_with("encoder.") || map.prefix.starts_with("decoder.");
    if let (true, Some(both)) = (coder, config.get("num_layers").cloned())
        && config.get("num_decoder_layers").is_none_or(Value::is_null)
    {
        config.insert("num_decoder_layers".into(), both);
    }
    let (nested, keys) = layer_counts(config, &map.prefix);
    let object = match nested {
        Some(key) => config.get_mut(key).and_then(Value::as_object_mut),
        None => Some(config),
    };
    let Some(config) = object else { return };
    let mut found = false;
    for key in keys.iter().chain(&OTHER_COUNTS) {
        let count = config.get_mut(*key);
        if let Some(count) = count.filter(|count| count.as_u64() == Some(map.before as u64)) {
            *count = map.from.len().into();
            found = true;
        }
    }
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
    let unchanged = map.from.iter().copied().eq(0..map.before);
    if unchanged {
        return;
    }
    let restack = Restack {
        before: map.before,
        from: &map.from,
        behind: map.behind,
        other_half: match coder && map.prefix.starts_with("encoder.") {
            true => Some("decoder_"),
            false => coder.then_some("encoder_"),
        },
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
