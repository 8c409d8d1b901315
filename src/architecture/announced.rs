//! What a config says of the kinds of its layers one by one, by the tensors that tell them apart.

use serde_json::{Map, Value};

/// What a field says of the layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// The field.
    pub field: &'static str,
    /// Parts of the names of tensors that tell the kind.
    pub markers: &'static [&'static str],
    /// For each layer, whether it has such tensors; none: the field does not say.
    pub has: Vec<Option<bool>>,
}

impl Announced {
    /// Whether what follows a layer's number in a name tells the kind.
    pub fn is_told_by(&self, suffix: &str) -> bool {
        let told = |part: &str| self.markers.iter().any(|marker| part.contains(marker));
        // A shared expert serves all tokens, beside the others or without.
        suffix
            .split('.')
            .any(|part| told(part) && !part.contains("shared"))
    }
}

const ATTENTION: &[&str] = &["attn", "attention"];
const MAMBA: &[&str] = &["mamba"];
const LINEAR: &[&str] = &["linear_attn"];
const CONVOLUTION: &[&str] = &["conv"];
const RECURRENT: &[&str] = &["rg_lru"];
const CROSS: &[&str] = &["cross_attn"];
const EXPERTS: &[&str] = &["experts", "router"];

/// What a part of a config says of so many layers.
pub fn announced(config: &Map<String, Value>, layers: usize) -> Vec<Announced> {
    let said = Said { config, layers };
    let mut found = Vec::new();
    said.by_types(&mut found);
    said.by_numbers(&mut found);
    found.extend(said.experts());
    found
}

/// A part of a config, and how many layers it is about.
struct Said<'c> {
    config: &'c Map<String, Value>,
    layers: usize,
}

impl Said<'_> {
    fn number(&self, name: &str) -> Option<usize> {
        usize::try_from(self.config.get(name)?.as_u64()?).ok()
    }

    fn list(&self, name: &str) -> Option<&[Value]> {
        self.config.get(name)?.as_array().map(Vec::as_slice)
    }

    /// A list with a text for each layer, or one that begins again.
    fn texts(&self, name: &str, cycles: bool) -> Option<Vec<&str>> {
        let list = self.list(name)?;
        let texts: Vec<&str> = list.iter().map(Value::as_str).collect::<Option<_>>()?;
        match texts.len() {
            0 => None,
            count if count == self.layers => Some(texts),
            _ if cycles => Some(texts.iter().copied().cycle().take(self.layers).collect()),
            _ => None,
        }
    }

    /// For each layer whether its number is in a list.
    fn numbered(&self, name: &str) -> Option<Vec<Option<bool>>> {
        let list = self.list(name)?;
        let numbers: Vec<u64> = list.iter().map(Value::as_u64).collect::<Option<_>>()?;
        Some(self.each(|layer| numbers.contains(&(layer as u64))))
    }

    fn each(&self, has: impl Fn(usize) -> bool) -> Vec<Option<bool>> {
        (0..self.layers).map(|layer| Some(has(layer))).collect()
    }

    /// By lists of what each layer mixes tokens with.
    fn by_types(&self, found: &mut Vec<Announced>) {
        for (field, cycles) in [
            ("layer_types", false),
            ("layers_block_type", false),
            ("block_types", true),
        ] {
            let Some(types) = self.texts(field, cycles) else {
                continue;
            };
            let is_attention = |kind: &str| kind.contains("attention") && !kind.contains("linear");
            let is_other =
                |kind: &str| kind.starts_with("mamba") || kind == "conv" || kind == "recurrent";
            let mut add = |markers, has: &dyn Fn(&str) -> Option<bool>| {
                let has = types.iter().map(|kind| has(kind)).collect();
                found.push(Announced {
                    field,
                    markers,
                    has,
                });
            };
            add(
                ATTENTION,
                &|kind| match (is_attention(kind), is_other(kind)) {
                    (true, _) => Some(true),
                    (_, other) => other.then_some(false),
                },
            );
            for (markers, own) in [
                (MAMBA, "mamba"),
                (LINEAR, "linear_attention"),
                (CONVOLUTION, "conv"),
                (RECURRENT, "recurrent"),
            ] {
                add(markers, &|kind| match kind.strip_prefix(own) {
                    Some("" | "2") => Some(true),
                    _ => is_attention(kind).then_some(false),
                });
            }
        }
    }

    /// By numbers of layers, and by one in so many.
    fn by_numbers(&self, found: &mut Vec<Announced>) {
        for (field, markers) in [
            ("cross_attention_layers", CROSS),
            ("full_attn_idxs", ATTENTION),
            ("attn_layer_indices", ATTENTION),
        ] {
            if let Some(has) = self.numbered(field) {
                found.push(Announced {
                    field,
                    markers,
                    has,
                });
            }
        }
        let listed = self.config.contains_key("layers_block_type");
        let period = self
            .number("attn_layer_period")
            .zip(self.number("attn_layer_offset"));
        if let Some((period, offset)) = period.filter(|(period, _)| *period > 0 && !listed) {
            let field = "attn_layer_period";
            let is_attention = |layer: usize| layer % period == offset;
            found.push(Announced {
                field,
                markers: ATTENTION,
                has: self.each(is_attention),
            });
            found.push(Announced {
                field,
                markers: MAMBA,
                has: self.each(|layer| !is_attention(layer)),
            });
        }
    }

    /// By the fields for experts; the first that says which layers have some.
    fn experts(&self) -> Option<Announced> {
        let told = |field: &'static str, has: Vec<Option<bool>>| {
            Some(Announced {
                field,
                markers: EXPERTS,
                has,
            })
        };
        if let Some(types) = self.texts("mlp_layer_types", false) {
            let has = types.iter().map(|kind| match *kind {
                "sparse" | "moe" => Some(true),
                "dense" => Some(false),
                _ => None,
            });
            return told("mlp_layer_types", has.collect());
        }
        if let Some(has) = self.numbered("moe_layers") {
            return told("moe_layers", has);
        }
        if let Some(step) = self
            .number("interleave_moe_layer_step")
            .filter(|step| *step > 0)
        {
            return told(
                "interleave_moe_layer_step",
                self.each(|layer| (layer + 1).is_multiple_of(step)),
            );
        }
        let period = self
            .number("expert_layer_period")
            .zip(self.number("expert_layer_offset"));
        if let Some((period, offset)) = period.filter(|(period, _)| *period > 0) {
            return told(
                "expert_layer_period",
                self.each(|layer| layer % period == offset),
            );
        }
        for field in ["first_k_dense_replace", "num_dense_layers"] {
            if let Some(first) = self.number(field) {
                // Where further layers are left out as well, families differ in how they count.
                let all = self
                    .config
                    .get("moe_layer_freq")
                    .is_none_or(|every| every.as_u64() == Some(1));
                return all.then(|| told(field, self.each(|layer| layer >= first)))?;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn has(config: Value, field: &str, marker: &str) -> Vec<Option<bool>> {
        let found = announced(config.as_object().unwrap(), 4);
        let of = |said: &&Announced| said.field == field && said.markers.contains(&marker);
        found
            .iter()
            .find(of)
            .map(|said| said.has.clone())
            .unwrap_or_default()
    }

    #[test]
    fn every_kind_of_field_is_read() {
        let (yes, no) = (Some(true), Some(false));
        let types =
            || json!({"layer_types": ["linear_attention", "mamba", "full_attention", "hybrid"]});
        assert_eq!(has(types(), "layer_types", "attn"), [None, no, yes, None]);
        assert_eq!(
            has(types(), "layer_types", "linear_attn"),
            [yes, None, no, None]
        );
        assert_eq!(has(types(), "layer_types", "mamba"), [None, yes, no, None]);
        let cycle = json!({"block_types": ["recurrent", "recurrent", "attention"]});
        assert_eq!(has(cycle, "block_types", "rg_lru"), [yes, yes, no, yes]);
        let jamba = || {
            json!({"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 4,
            "expert_layer_offset": 0})
        };
        assert_eq!(
            has(jamba(), "attn_layer_period", "attn"),
            [no, yes, no, yes]
        );
        assert_eq!(
            has(jamba(), "attn_layer_period", "mamba"),
            [yes, no, yes, no]
        );
        assert_eq!(
            has(jamba(), "expert_layer_period", "experts"),
            [yes, no, no, no]
        );
        let llama4 = json!({"moe_layers": [0, 3], "interleave_moe_layer_step": 1});
        assert_eq!(has(llama4, "moe_layers", "experts"), [yes, no, no, yes]);
        let dense = json!({"first_k_dense_replace": 1});
        assert_eq!(
            has(dense, "first_k_dense_replace", "experts"),
            [no, yes, yes, yes]
        );
        let unclear =
            json!({"first_k_dense_replace": 1, "moe_layer_freq": 2, "layer_types": ["mamba"]});
        assert_eq!(announced(unclear.as_object().unwrap(), 4), []);
    }

    #[test]
    fn names_tell_a_kind() {
        let of = |markers| Announced {
            field: "",
            markers,
            has: Vec::new(),
        };
        assert!(of(EXPERTS).is_told_by("mlp.experts.3.up_proj.weight"));
        assert!(!of(EXPERTS).is_told_by("mlp.shared_experts.up_proj.weight"));
        // Granite's are fused; Kimi's dense layers have a module of that name.
        assert!(of(EXPERTS).is_told_by("block_sparse_moe.router.layer.weight"));
        assert!(!of(EXPERTS).is_told_by("block_sparse_moe.down_proj.weight"));
        assert!(of(ATTENTION).is_told_by("self_attn.q_proj.weight"));
    }
}
