//! Layers that predict further tokens (MTP): they stand behind the decoder or beside it, and are none of its layers.

use std::collections::BTreeSet;

use serde_json::Value;

use super::config::{LAYER_COUNTS, field};
use super::names::{is_number, module_index};
use super::stacks::LayerStack;

/// The fields that count them.
pub const MTP_COUNTS: [&str; 4] = [
    "num_nextn_predict_layers",
    "num_mtp_layers",
    "mtp_num_hidden_layers",
    "num_mtp_modules",
];

/// Tensors that only such a layer has where it is numbered behind the decoder's: it joins a state and an embedding.
const JOINS: [&str; 3] = ["eh_proj.weight", "enorm.weight", "hnorm.weight"];

/// How many such layers a config announces, and the field that says so; none if it announces none.
pub fn announced_mtp_layers(config: &Value) -> Option<(&'static str, usize)> {
    MTP_COUNTS.iter().find_map(|name| {
        let count = usize::try_from(field(config, name)?.as_u64()?).ok()?;
        (count > 0).then_some((*name, count))
    })
}

/// Whether a tensor is of a module for such layers by name: `mtp.layers.0.norm.weight`, `model.mtp_block.0.x`.
pub fn is_mtp_module(name: &str) -> bool {
    name.split('.')
        .any(|part| part == "mtp" || part.starts_with("mtp_"))
}

/// How many layers of a stack are the decoder's, without those behind them that predict further tokens.
///
/// `names` are the tensors of the model; `config` is its config.json.
pub fn decoder_layers<'n>(
    config: Option<&Value>,
    prefix: &str,
    names: impl Iterator<Item = &'n str>,
) -> usize {
    let any = LayerStack {
        prefix: prefix.to_owned(),
        layers: usize::MAX,
    };
    let mut layers = 0;
    let mut joining = BTreeSet::new();
    for name in names {
        if let Some((layer, suffix)) = any.split(name) {
            layers = layers.max(layer + 1);
            if JOINS.contains(&suffix) {
                joining.insert(layer);
            }
        }
    }
    let mut own = layers;
    while own > 0 && joining.contains(&(own - 1)) {
        own -= 1;
    }
    let tower = ["vis", "audio"].iter().any(|part| prefix.contains(part));
    let Some(config) = config.filter(|_| own == layers && !tower) else {
        return own;
    };
    let counted = LAYER_COUNTS
        .iter()
        .find_map(|name| field(config, name)?.as_u64());
    let counted = counted.and_then(|count| usize::try_from(count).ok());
    match (counted, announced_mtp_layers(config)) {
        (Some(counted), Some((_, more))) if counted.checked_add(more) == Some(layers) => counted,
        _ => own,
    }
}

/// The stacks of the model itself: without modules and layers that predict further tokens.
pub fn without_mtp<'n, I>(
    stacks: Vec<LayerStack>,
    config: Option<&Value>,
    names: impl Fn() -> I,
) -> Vec<LayerStack>
where
    I: Iterator<Item = &'n str>,
{
    let stacks = stacks
        .into_iter()
        .filter(|stack| !is_mtp_module(&stack.prefix));
    let own = stacks.map(|stack| LayerStack {
        layers: decoder_layers(config, &stack.prefix, names()).min(stack.layers),
        ..stack
    });
    own.filter(|stack| stack.layers > 0).collect()
}

/// How many layers that predict further tokens are among these tensors; none if they are not counted by their names.
///
/// `decoder` are the stacks of the decoder, by their own layers.
pub fn mtp_layers_in<'n>(
    decoder: &[LayerStack],
    names: impl Iterator<Item = &'n str>,
) -> Option<usize> {
    let mut found: BTreeSet<(String, usize)> = BTreeSet::new();
    let mut uncounted = false;
    for name in names {
        let behind = decoder.iter().find_map(|stack| {
            let any = LayerStack {
                layers: usize::MAX,
                ..stack.clone()
            };
            let (layer, _) = any.split(name)?;
            (layer >= stack.layers).then(|| (stack.prefix.clone(), layer))
        });
        if let Some(behind) = behind {
            found.insert(behind);
        } else if is_mtp_module(name) {
            match numbered(name) {
                Some(layer) => {
                    found.insert(layer);
                }
                // Norms and projections that all of them share.
                None => uncounted = true,
            }
        }
    }
    (!uncounted || !found.is_empty()).then_some(found.len())
}

/// The list of such layers that a tensor is in, and its number there.
fn numbered(name: &str) -> Option<(String, usize)> {
    let parts: Vec<&str> = name.split('.').collect();
    let module = parts.iter().position(|part| is_mtp_module(part))?;
    let at = parts.iter().skip(module).position(|part| is_number(part))? + module;
    Some((parts[..at].join("."), module_index(parts[at])?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stack(prefix: &str, layers: usize) -> LayerStack {
        LayerStack {
            prefix: prefix.into(),
            layers,
        }
    }

    #[test]
    fn layers_behind_the_decoder_are_none_of_it() {
        let names = |joins: &[usize]| -> Vec<String> {
            let all = (0..4).map(|layer| format!("model.layers.{layer}.mlp.up_proj.weight"));
            let joins = joins
                .iter()
                .map(|layer| format!("model.layers.{layer}.eh_proj.weight"));
            all.chain(joins).collect()
        };
        let own = |names: &[String], config: Option<&Value>| {
            decoder_layers(config, "model.layers.", names.iter().map(String::as_str))
        };
        assert_eq!(own(&names(&[3]), None), 3);
        assert_eq!(own(&names(&[2, 3]), None), 2);
        assert_eq!(own(&names(&[1]), None), 4);
        let announced = json!({"num_hidden_layers": 3, "num_nextn_predict_layers": 1});
        assert_eq!(own(&names(&[]), Some(&announced)), 3);
        let further = json!({"num_hidden_layers": 2, "num_nextn_predict_layers": 1});
        assert_eq!(own(&names(&[]), Some(&further)), 4);
        let stacks = vec![stack("model.layers.", 4), stack("mtp.layers.", 2)];
        let names = names(&[3]);
        let own = without_mtp(stacks, None, || names.iter().map(String::as_str));
        assert_eq!(own, [stack("model.layers.", 3)]);
    }

    #[test]
    fn what_predicts_further_tokens_is_counted() {
        let decoder = [stack("model.layers.", 2)];
        let count = |names: &[&str]| mtp_layers_in(&decoder, names.iter().copied());
        assert_eq!(count(&["model.layers.1.x", "model.norm.weight"]), Some(0));
        assert_eq!(
            count(&["model.layers.2.x", "model.layers.2.y", "model.layers.3.x"]),
            Some(2)
        );
        assert_eq!(
            count(&["mtp.fc.weight", "mtp.layers.0.x", "mtp.layers.1.x"]),
            Some(2)
        );
        assert_eq!(count(&["model.mtp_block.0.x"]), Some(1));
        assert_eq!(count(&["mtp.fc.weight"]), None);
    }
}
