//! The fields of a config that speak of layers, and what each becomes when a stack is put together anew.
//!
//! A new stack is told by the old layer that each of its layers comes from. A field that can say the same of the new
//! stack is rewritten; one that cannot is an error that names it.

use std::ops::Range;

use serde_json::{Map, Value};

use super::names::module_index;

/// How a field speaks of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// A list with an entry for each layer; anything else is about all of them.
    Each,
    /// A list of numbers of layers.
    Numbers,
    /// A list that begins again until every layer has an entry.
    Cycle,
    /// A text with a character for each layer.
    Characters,
    /// So many at the beginning are of a kind of their own.
    First,
    /// So many at the end.
    Last,
    /// The number of the last that is of a kind; below zero: to the end.
    UpTo,
    /// One in so many: the numbers that are a multiple of it once this is added.
    Every(usize),
    /// As `Every`, and the layers that this list names are not of the kind.
    EveryBut(usize, &'static str),
    /// One in so many, counted from the number in this field.
    Period(&'static str),
    /// The number of layers once more.
    Count,
    /// Its meaning differs between families: it can only stay where it is one, or zero.
    Unclear,
}

/// A field that speaks of layers.
#[derive(Debug)]
struct LayerField {
    name: &'static str,
    meaning: Meaning,
    /// A list layer by layer that is read instead of it, where it is there.
    replaced_by: &'static str,
    /// A field that, if false, says that it counts for nothing.
    only_if: &'static str,
}

const fn field(name: &'static str, meaning: Meaning) -> LayerField {
    LayerField {
        name,
        meaning,
        replaced_by: "",
        only_if: "",
    }
}

const fn replaced(name: &'static str, meaning: Meaning, replaced_by: &'static str) -> LayerField {
    LayerField {
        replaced_by,
        ..field(name, meaning)
    }
}

/// Every field, beside lists whose name has `layer` or `block` in it, which are taken for `Each`.
static FIELDS: &[LayerField] = &[
    field("num_attention_heads", Meaning::Each),
    field("num_query_heads", Meaning::Each),
    field("num_key_value_heads", Meaning::Each),
    field("num_kv_heads", Meaning::Each),
    field("intermediate_size", Meaning::Each),
    field("num_experts", Meaning::Each),
    field("num_shared_expert", Meaning::Each),
    field("moe_intermediate_size", Meaning::Each),
    field("moe_topk", Meaning::Each),
    field("ffn_multipliers", Meaning::Each),
    field("qkv_multipliers", Meaning::Each),
    field("activation_sparsity_pattern", Meaning::Each),
    field("attention_window", Meaning::Each),
    field("attn_type_list", Meaning::Each),
    field("pruned_heads", Meaning::Each),
    field("mlp_only_layers", Meaning::Numbers),
    field("moe_layers", Meaning::Numbers),
    field("cross_attention_layers", Meaning::Numbers),
    field("hybrid_layer_ids", Meaning::Numbers),
    field("full_attn_idxs", Meaning::Numbers),
    field("attn_layer_indices", Meaning::Numbers),
    field("local_layer_ids", Meaning::Numbers),
    field("global_attn_indexes", Meaning::Numbers),
    field("fullatt_block_indexes", Meaning::Numbers),
    field("window_block_indices", Meaning::Numbers),
    field("residual_block_indices", Meaning::Numbers),
    field("block_types", Meaning::Cycle),
    field("hybrid_override_pattern", Meaning::Characters),
    field("first_k_dense_replace", Meaning::First),
    field("num_dense_layers", Meaning::First),
    field("moe_layer_start_index", Meaning::First),
    field("moe_layer_end_index", Meaning::UpTo),
    field("num_kv_shared_layers", Meaning::Last),
    field("num_first_full_attention_layers", Meaning::First),
    field("num_last_full_attention_layers", Meaning::Last),
    LayerField {
        only_if: "use_sliding_window",
        ..replaced("max_window_layers", Meaning::First, "layer_types")
    },
    field(
        "decoder_sparse_step",
        Meaning::EveryBut(1, "mlp_only_layers"),
    ),
    field("encoder_sparse_step", Meaning::Unclear),
    field("moe_layer_freq", Meaning::Unclear),
    field("moe_layer_interval", Meaning::Every(1)),
    replaced("sliding_window_pattern", Meaning::Every(1), "layer_types"),
    replaced("full_attention_interval", Meaning::Every(1), "layer_types"),
    replaced(
        "global_attn_every_n_layers",
        Meaning::Every(0),
        "layer_types",
    ),
    replaced("interleave_moe_layer_step", Meaning::Every(1), "moe_layers"),
    replaced(
        "no_rope_layer_interval",
        Meaning::Every(1),
        "no_rope_layers",
    ),
    field("attn_layer_period", Meaning::Period("attn_layer_offset")),
    field(
        "expert_layer_period",
        Meaning::Period("expert_layer_offset"),
    ),
    replaced("layer_group_size", Meaning::Every(1), "layer_types"),
    field("cross_attention_frequency", Meaning::Unclear),
    field("num_blocks", Meaning::Count),
];

/// A new stack of layers.
#[derive(Debug, Clone, Copy)]
pub struct Restack<'a> {
    /// How many layers there were.
    pub before: usize,
    /// The old layer that each new one comes from, below `before`.
    pub from: &'a [usize],
    /// How many layers stand behind these that predict further tokens, and may have entries in lists.
    pub behind: usize,
    /// Whether layers differ in the shapes of their tensors.
    pub uneven: bool,
    /// How the fields begin that are about the other half of an encoder and decoder.
    pub other_half: Option<&'a str>,
}

/// A field that cannot say of the new stack what it said of the old.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inexpressible {
    /// The field.
    pub field: String,
    /// What it says.
    pub value: String,
}

impl Inexpressible {
    fn new(field: &str, value: &Value) -> Self {
        Self {
            field: field.to_owned(),
            value: value.to_string().chars().take(80).collect(),
        }
    }
}

impl Restack<'_> {
    /// Whether a field is about the other half of an encoder and decoder.
    fn is_of_other_half(&self, name: &str) -> bool {
        let Some(start) = self.other_half else {
            return false;
        };
        // The window of Longformer's encoder, which its decoder does not have.
        name.starts_with(start) || start == "encoder_" && name == "attention_window"
    }

    /// Whether a list that is not known has a size for each layer, as image models list the widths of their stages.
    fn is_of_stages(&self, value: &Value) -> bool {
        let sizes = value.as_array().filter(|list| list.len() == self.before);
        sizes.is_some_and(|sizes| {
            sizes.len() > 1 && sizes.iter().all(|size| size.as_u64() > Some(1))
        })
    }

    /// Rewrites all that a part of a config says of layers one by one.
    ///
    /// Returns the fields that may speak of layers by their numbers, and are not known: they stay as they are.
    ///
    /// # Errors
    /// The fields that cannot say the same of the new stack; they and all others may be changed by then.
    pub fn apply(
        &self,
        config: &mut Map<String, Value>,
    ) -> Result<Vec<String>, Vec<Inexpressible>> {
        let mut doubtful = Vec::new();
        let mut failed = Vec::new();
        // By turns: what `EveryBut` adds to its list must not be taken for numbers of old layers.
        let (every_but, others): (Vec<&LayerField>, Vec<&LayerField>) = FIELDS
            .iter()
            .partition(|field| matches!(field.meaning, Meaning::EveryBut(..)));
        for field in every_but.into_iter().chain(others) {
            if self.is_of_other_half(field.name) {
                continue;
            }
            // Where a list is read instead, or a field says that it is off, nothing depends on it.
            let is_list = config.get(field.replaced_by).is_some_and(Value::is_array);
            let counts = !is_list && config.get(field.only_if) != Some(&Value::Bool(false));
            // Switch Transformers have both, and begin to count elsewhere.
            let unclear =
                field.name == "decoder_sparse_step" && config.contains_key("encoder_sparse_step");
            let meaning = if unclear {
                Meaning::Unclear
            } else {
                field.meaning
            };
            if self.field(config, field.name, meaning).is_none() && counts {
                failed.push(Inexpressible::new(field.name, &config[field.name]));
            }
        }
        for (name, value) in config.iter_mut() {
            let known = FIELDS.iter().any(|field| field.name == name);
            let by_name = name.contains("layer") || name.contains("block");
            let listed = by_name || name.ends_with("_types");
            if known || self.is_of_other_half(name) {
                continue;
            }
            if !listed && self.uneven && self.is_of_stages(value) {
                failed.push(Inexpressible::new(name, value));
            }
            if let Some(sources) = self.sources(value).filter(|_| listed) {
                match self.moved_sources(&sources) {
                    Some(new) => *value = new,
                    None => failed.push(Inexpressible::new(name, value)),
                }
                continue;
            }
            if listed && !self.each(value) && self.may_number(name, value) {
                doubtful.push(name.clone());
            }
        }
        match failed.is_empty() {
            true => Ok(doubtful),
            false => Err(failed),
        }
    }

    /// Rewrites one field; none if it cannot say the same. What is absent or of another type says nothing.
    fn field(
        &self,
        config: &mut Map<String, Value>,
        name: &'static str,
        meaning: Meaning,
    ) -> Option<()> {
        let Some(value) = config.get(name).filter(|value| !value.is_null()) else {
            return Some(());
        };
        let number = value
            .as_u64()
            .and_then(|number| usize::try_from(number).ok());
        let length = self.from.len();
        let new: Value = match (meaning, number) {
            (Meaning::Each, _) => {
                self.each(config.get_mut(name)?);
                return Some(());
            }
            (_, None) if value.is_array() && is_of_number(meaning) => {
                // Some families list layer by layer what others tell by a number.
                self.each(config.get_mut(name)?);
                return Some(());
            }
            (Meaning::Numbers, _) => self.numbers(value)?.into(),
            (Meaning::Cycle, _) => self.cycle(value)?,
            (Meaning::Characters, _) => self.characters(value)?.into(),
            (Meaning::First, Some(first)) => {
                let ends = self.run(0..first)?;
                ends_at_start(&ends)?;
                ends.len()
                    .max(if ends.len() == length { first } else { 0 })
                    .into()
            }
            (Meaning::Last, Some(last)) => {
                let kept = self.run(self.before.saturating_sub(last)..self.before)?;
                (kept.end == length || kept.is_empty()).then_some(())?;
                kept.len().into()
            }
            (Meaning::UpTo, Some(last)) => {
                let kept = self.run(0..last.saturating_add(1))?;
                ends_at_start(&kept)?;
                // None at all has no number.
                kept.len().checked_sub(1)?.into()
            }
            (Meaning::Every(offset), Some(step)) => {
                let step = step.max(1);
                let old = |layer: usize| (layer + offset).is_multiple_of(step);
                self.step(step, &old, |layer, step| {
                    (layer + offset).is_multiple_of(step)
                })?
                .into()
            }
            (Meaning::EveryBut(offset, list), Some(step)) => {
                return self.every_but(config, name, step.max(1), offset, list);
            }
            (Meaning::Period(offset), Some(period)) => {
                let (period, offset) = self.period(config, period.max(1), offset)?;
                config.insert(name.to_owned(), period.into());
                config.insert(offset.0.to_owned(), offset.1.into());
                return Some(());
            }
            (Meaning::Count, Some(count)) if count == self.before => length.into(),
            (Meaning::Count, _) => return Some(()),
            (Meaning::Unclear, Some(0 | 1)) => return Some(()),
            // Below zero, or no number at all.
            (Meaning::UpTo, None) => return Some(()),
            (Meaning::Unclear, _) => return None,
            (_, None) => return Some(()),
        };
        config.insert(name.to_owned(), new);
        Some(())
    }

    /// A list with an entry for each layer; returns whether it is one. Others stay as they are.
    fn each(&self, value: &mut Value) -> bool {
        let list = match value {
            Value::Array(list) => list,
            Value::Object(by_number) => return self.each_by_number(by_number),
            _ => return false,
        };
        let behind = list.len().checked_sub(self.before);
        if behind.is_none_or(|behind| behind > 0 && behind != self.behind) {
            return false;
        }
        let entries = self.from.iter().filter_map(|&layer| list.get(layer));
        *list = entries.chain(&list[self.before..]).cloned().collect();
        true
    }

    /// A list that names for each layer the one that it takes something from: itself, or an earlier layer that takes
    /// it from itself; none if the list is another.
    fn sources(&self, value: &Value) -> Option<Vec<usize>> {
        let list = value.as_array().filter(|list| list.len() == self.before)?;
        let of = |value: &Value| usize::try_from(value.as_u64()?).ok();
        let sources: Vec<usize> = list.iter().map(of).collect::<Option<_>>()?;
        let is_source = |(layer, &source): (usize, &usize)| {
            source <= layer && sources.get(source) == Some(&source)
        };
        // Zeros and ones may be a switch.
        let named = sources.iter().enumerate().all(is_source);
        (named && sources.iter().max() > Some(&1)).then_some(sources)
    }

    /// The same of the new layers: each takes from the nearest that comes from its source; none if there is none.
    fn moved_sources(&self, sources: &[usize]) -> Option<Value> {
        let mut new = Vec::new();
        for (place, &layer) in self.from.iter().enumerate() {
            let source = sources.get(layer)?;
            let nearest = self.from[..=place].iter().rposition(|from| from == source);
            new.push(Value::from(nearest?));
        }
        Some(new.into())
    }

    /// A mapping from the numbers of layers; returns whether it is one.
    fn each_by_number(&self, by_number: &mut Map<String, Value>) -> bool {
        let is_number = |key: &String| module_index(key).is_some_and(|layer| layer < self.before);
        if by_number.is_empty() || !by_number.keys().all(is_number) {
            return false;
        }
        let new = self.from.iter().enumerate();
        let new = new.filter_map(|(layer, from)| {
            Some((layer.to_string(), by_number.get(&from.to_string())?.clone()))
        });
        *by_number = new.collect();
        true
    }

    /// Whether a field that is not known may hold numbers of layers, or count in them.
    fn may_number(&self, name: &str, value: &Value) -> bool {
        const COUNTING: [&str; 8] = [
            "interval", "period", "offset", "every", "freq", "start", "end_", "indices",
        ];
        match value {
            Value::Array(list) => {
                let number = |value: &Value| {
                    value
                        .as_u64()
                        .is_some_and(|number| number < self.before as u64)
                };
                !list.is_empty() && list.len() < self.before && list.iter().all(number)
            }
            Value::Number(number) => {
                number.as_u64().is_some_and(|number| number > 1)
                    && COUNTING.iter().any(|part| name.contains(part))
            }
            _ => false,
        }
    }

    fn numbers(&self, value: &Value) -> Option<Vec<Value>> {
        let list = value.as_array()?;
        let old: Vec<u64> = list.iter().map(Value::as_u64).collect::<Option<_>>()?;
        let new = self.from.iter().enumerate();
        let new = new.filter(|(_, from)| old.contains(&(**from as u64)));
        Some(new.map(|(layer, _)| layer.into()).collect())
    }

    fn cycle(&self, value: &Value) -> Option<Value> {
        let list = value.as_array().filter(|list| !list.is_empty())?;
        let of = |layer: usize| &list[layer % list.len()];
        let new = self.from.iter().map(|&layer| of(layer));
        let same = new
            .clone()
            .enumerate()
            .all(|(layer, kind)| kind == of(layer));
        Some(match same {
            true => value.clone(),
            false => new.cloned().collect(),
        })
    }

    fn characters(&self, value: &Value) -> Option<String> {
        let old: Vec<char> = value.as_str()?.chars().collect();
        if old.len() != self.before {
            return None;
        }
        self.from.iter().map(|&layer| old.get(layer)).collect()
    }

    /// Where the new layers are that come from a run of old ones; none if they are no run.
    fn run(&self, old: Range<usize>) -> Option<Range<usize>> {
        let is_of = |layer: &usize| old.contains(layer);
        let Some(first) = self.from.iter().position(is_of) else {
            return Some(0..0);
        };
        let last = self.from.iter().rposition(is_of)?;
        let all = self.from[first..=last].iter().all(is_of);
        all.then_some(first..last + 1)
    }

    /// A step by which the new layers are of the kind that they were of; the old one, if it can be.
    fn step(
        &self,
        step: usize,
        old: &dyn Fn(usize) -> bool,
        new: impl Fn(usize, usize) -> bool,
    ) -> Option<usize> {
        let fits = |step: &usize| {
            let mut layers = self.from.iter().enumerate();
            layers.all(|(layer, &from)| new(layer, *step) == old(from))
        };
        let others = 1..=self.from.len() + 1;
        std::iter::once(step).chain(others).find(fits)
    }

    /// Where no step can say it, all layers are of the kind but those that are listed.
    fn every_but(
        &self,
        config: &mut Map<String, Value>,
        name: &str,
        step: usize,
        offset: usize,
        list: &str,
    ) -> Option<()> {
        let of = |layer: usize, step: usize| (layer + offset).is_multiple_of(step);
        if let Some(step) = self.step(step, &|layer| of(layer, step), of) {
            config.insert(name.to_owned(), step.into());
            return Some(());
        }
        let listed = config.get(list)?.as_array()?;
        let mut listed: Vec<u64> = listed.iter().map(Value::as_u64).collect::<Option<_>>()?;
        // Of old layers, as the list is: it is rewritten by itself.
        listed.extend(
            (0..self.before)
                .filter(|&layer| !of(layer, step))
                .map(|layer| layer as u64),
        );
        listed.sort_unstable();
        listed.dedup();
        config.insert(name.to_owned(), 1.into());
        config.insert(list.to_owned(), listed.into());
        Some(())
    }

    fn period(
        &self,
        config: &Map<String, Value>,
        period: usize,
        field: &'static str,
    ) -> Option<(usize, (&'static str, usize))> {
        let old = config.get(field)?.as_u64()?;
        let old = usize::try_from(old).ok()?;
        let kinds: Vec<bool> = self.from.iter().map(|from| from % period == old).collect();
        let holds = |&(period, offset): &(usize, usize)| {
            let mut kinds = kinds.iter().enumerate();
            kinds.all(|(layer, kind)| (layer % period == offset) == *kind)
        };
        let same = std::iter::once((period, old)).chain((0..period).map(|offset| (period, offset)));
        let others = (1..=self.from.len() + 1)
            .flat_map(|period| (0..period).map(move |offset| (period, offset)));
        let found = same.chain(others).find(holds)?;
        Some((found.0, (field, found.1)))
    }
}

/// Whether a field is a number in the families that have it so.
fn is_of_number(meaning: Meaning) -> bool {
    !matches!(
        meaning,
        Meaning::Numbers | Meaning::Cycle | Meaning::Characters
    )
}

/// A run that is at the beginning, or no run.
fn ends_at_start(run: &Range<usize>) -> Option<()> {
    (run.start == 0).then_some(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What a config becomes, or the fields that cannot say it.
    fn restacked(config: Value, before: usize, from: &[usize]) -> Result<Value, Vec<String>> {
        let mut config = config.as_object().unwrap().clone();
        let restack = Restack {
            before,
            from,
            behind: 0,
            uneven: false,
            other_half: None,
        };
        let done = restack.apply(&mut config);
        let names = |failed: Vec<Inexpressible>| failed.into_iter().map(|failed| failed.field);
        done.map(|_| config.into())
            .map_err(|failed| names(failed).collect())
    }

    #[track_caller]
    fn becomes(config: Value, before: usize, from: &[usize], expected: Value) {
        assert_eq!(restacked(config, before, from), Ok(expected));
    }

    #[track_caller]
    fn is_refused(config: Value, before: usize, from: &[usize], field: &str) {
        assert_eq!(restacked(config, before, from), Err(vec![field.to_owned()]));
    }

    #[test]
    fn every_field_stands_once() {
        let names: std::collections::BTreeSet<&str> =
            FIELDS.iter().map(|field| field.name).collect();
        assert_eq!(names.len(), FIELDS.len());
    }

    #[test]
    fn entries_by_the_number_of_a_layer_follow_it() {
        becomes(
            json!({"pruned_heads": {"0": [1], "2": [0, 3]}, "id2label": {"0": "a", "1": "b"}}),
            3,
            &[0, 1, 2, 2],
            json!({"pruned_heads": {"0": [1], "2": [0, 3], "3": [0, 3]}, "id2label": {"0": "a", "1": "b"}}),
        );
    }

    #[test]
    fn lists_of_an_entry_for_each_layer_follow_it() {
        let config = json!({"layer_types": ["a", "b", "c"], "attention_window": [8, 16, 32], "eos_token_id": [1, 2, 3],
            "intermediate_size": 7, "num_attention_heads": [1, 2]});
        let expected = json!({"layer_types": ["a", "c", "c", "b"], "attention_window": [8, 32, 32, 16],
            "eos_token_id": [1, 2, 3], "intermediate_size": 7, "num_attention_heads": [1, 2]});
        becomes(config, 3, &[0, 2, 2, 1], expected);
    }

    #[test]
    fn lists_that_name_earlier_layers_name_them_anew() {
        let sources = |list: &[usize]| json!({"kv_source_layers": list});
        becomes(
            sources(&[0, 1, 2, 3]),
            4,
            &[0, 1, 2, 1, 2, 3],
            sources(&[0, 1, 2, 3, 4, 5]),
        );
        becomes(
            sources(&[0, 0, 2, 2]),
            4,
            &[0, 1, 0, 2, 3],
            sources(&[0, 0, 2, 3, 3]),
        );
        // Its source is not taken, or comes later.
        for from in [[1, 2], [3, 2]] {
            is_refused(sources(&[0, 0, 2, 2]), 4, &from, "kv_source_layers");
        }
        // Switches stay switches.
        becomes(
            json!({"no_rope_layers": [0, 1, 1]}),
            3,
            &[2, 0],
            json!({"no_rope_layers": [1, 0]}),
        );
    }

    #[test]
    fn sizes_of_stages_and_fields_of_the_other_half() {
        let apply = |uneven, other_half, config: &mut Value| {
            let restack = Restack {
                before: 2,
                from: &[0, 1, 1],
                behind: 0,
                uneven,
                other_half,
            };
            restack.apply(config.as_object_mut().unwrap())
        };
        let stages = || json!({"depths": [2, 6], "ratios": [0.5, 0.25]});
        let failed = apply(true, None, &mut stages()).unwrap_err();
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].field, "depths");
        assert_eq!(apply(false, None, &mut stages()), Ok(Vec::new()));
        let longformer = || json!({"attention_window": [8, 16], "encoder_layer_types": ["a", "b"], "decoder_layer_types": ["c", "d"]});
        let mut decoder = longformer();
        apply(false, Some("encoder_"), &mut decoder).unwrap();
        let expected = json!({"attention_window": [8, 16], "encoder_layer_types": ["a", "b"],
            "decoder_layer_types": ["c", "d", "d"]});
        assert_eq!(decoder, expected);
        let mut encoder = longformer();
        apply(false, Some("decoder_"), &mut encoder).unwrap();
        let expected = json!({"attention_window": [8, 16, 16], "encoder_layer_types": ["a", "b", "b"],
            "decoder_layer_types": ["c", "d"]});
        assert_eq!(encoder, expected);
    }

    #[test]
    fn entries_behind_the_layers_stay_and_unknown_fields_are_told() {
        let mut config = json!({"layer_types": ["a", "b", "mtp"], "foo_layers": [1], "bar_block_interval": 2,
            "layer_norms": [0.5], "num_layer_groups": 3, "indexer_types": ["x", "y"], "layer_overrides": {"1": "z"}});
        let restack = Restack {
            before: 2,
            from: &[1, 1],
            behind: 1,
            uneven: false,
            other_half: None,
        };
        let doubtful = restack.apply(config.as_object_mut().unwrap()).unwrap();
        assert_eq!(doubtful, ["foo_layers", "bar_block_interval"]);
        assert_eq!(config["layer_types"], json!(["b", "b", "mtp"]));
        assert_eq!(config["indexer_types"], json!(["y", "y"]));
        assert_eq!(config["layer_overrides"], json!({"0": "z", "1": "z"}));
    }

    #[test]
    fn numbers_of_layers_are_those_of_the_new_ones() {
        // Llama 4: as many numbers as layers are numbers all the same.
        let all = json!({"moe_layers": [0, 1, 2, 3]});
        becomes(
            all,
            4,
            &[0, 1, 2, 1, 2, 3],
            json!({"moe_layers": [0, 1, 2, 3, 4, 5]}),
        );
        let some = json!({"cross_attention_layers": [1, 3], "mlp_only_layers": []});
        let expected = json!({"cross_attention_layers": [0, 2, 3], "mlp_only_layers": []});
        becomes(some, 4, &[1, 2, 3, 1], expected);
        is_refused(json!({"full_attn_idxs": ["1"]}), 2, &[1], "full_attn_idxs");
    }

    #[test]
    fn what_begins_again_is_written_out_where_it_must_be() {
        let types = || json!({"block_types": ["r", "r", "a"]});
        becomes(types(), 6, &[0, 1, 2, 3, 4, 5, 3, 4, 5], types());
        becomes(
            types(),
            6,
            &[0, 2, 3],
            json!({"block_types": ["r", "a", "r"]}),
        );
        let text = json!({"hybrid_override_pattern": "M*-M"});
        becomes(
            text,
            4,
            &[0, 1, 1, 3],
            json!({"hybrid_override_pattern": "M**M"}),
        );
        is_refused(
            json!({"hybrid_override_pattern": "M*"}),
            4,
            &[0, 1],
            "hybrid_override_pattern",
        );
    }

    #[test]
    fn so_many_at_an_end_are_counted_anew() {
        let first = || json!({"first_k_dense_replace": 2});
        becomes(
            first(),
            4,
            &[0, 1, 1, 2, 3],
            json!({"first_k_dense_replace": 3}),
        );
        becomes(first(), 4, &[2, 3], json!({"first_k_dense_replace": 0}));
        is_refused(first(), 4, &[0, 2, 1, 3], "first_k_dense_replace");
        is_refused(first(), 4, &[2, 3, 0], "first_k_dense_replace");
        let window = json!({"max_window_layers": 4, "use_sliding_window": true});
        let expected = json!({"max_window_layers": 6, "use_sliding_window": true});
        becomes(window, 4, &[0, 1, 2, 1, 2, 3], expected);
        let unused = || json!({"max_window_layers": 2, "use_sliding_window": false});
        becomes(unused(), 4, &[3, 0], unused());
        let listed = json!({"max_window_layers": 2, "layer_types": ["f", "f", "s", "s"]});
        let expected = json!({"max_window_layers": 2, "layer_types": ["s", "f"]});
        becomes(listed, 4, &[3, 0], expected);
        let last = || json!({"num_kv_shared_layers": 2});
        becomes(
            last(),
            4,
            &[0, 1, 2, 3, 3],
            json!({"num_kv_shared_layers": 3}),
        );
        becomes(last(), 4, &[0, 1], json!({"num_kv_shared_layers": 0}));
        is_refused(last(), 4, &[3, 0], "num_kv_shared_layers");
        let run = || json!({"moe_layer_start_index": 1, "moe_layer_end_index": 2});
        let expected = json!({"moe_layer_start_index": 1, "moe_layer_end_index": 3});
        becomes(run(), 4, &[0, 1, 2, 2, 3], expected);
        let to_the_end = || json!({"moe_layer_start_index": 0, "moe_layer_end_index": -1});
        becomes(to_the_end(), 4, &[3, 0], to_the_end());
    }

    #[test]
    fn one_in_so_many_keeps_its_step_or_finds_another() {
        let every = |step: usize| json!({"full_attention_interval": step});
        becomes(every(2), 4, &[0, 1, 2, 3, 2, 3], every(2));
        // Of layers 1 and 3 all are of the kind.
        becomes(every(2), 4, &[1, 3], every(1));
        becomes(every(2), 6, &[0, 2, 3, 4, 4, 5], every(3));
        becomes(every(2), 4, &[0, 2], every(2 + 1));
        is_refused(every(2), 4, &[0, 1, 1, 2], "full_attention_interval");
        becomes(every(1), 4, &[3, 0], every(1));
        let listed = json!({"sliding_window_pattern": 2, "layer_types": ["s", "f"]});
        let expected = json!({"sliding_window_pattern": 2, "layer_types": ["f", "f", "s"]});
        becomes(listed, 2, &[1, 1, 0], expected);
    }

    #[test]
    fn a_step_that_no_longer_holds_becomes_a_list_where_there_is_one() {
        let config = json!({"decoder_sparse_step": 2, "mlp_only_layers": [3]});
        // Old layers 1 and 5 have experts; as new ones they are 0, 2 and 3, and every step but the list says so.
        let expected = json!({"decoder_sparse_step": 1, "mlp_only_layers": [1]});
        becomes(config, 6, &[1, 3, 5, 5], expected);
        // Layers 1 and 3 again, by turns with one that had none: no step says that.
        let config = json!({"decoder_sparse_step": 2, "mlp_only_layers": [3]});
        let expected = json!({"decoder_sparse_step": 1, "mlp_only_layers": [1, 3]});
        becomes(config, 4, &[1, 0, 1, 3], expected);
        let without = json!({"decoder_sparse_step": 2});
        is_refused(without, 4, &[1, 1, 2], "decoder_sparse_step");
    }

    /// Jamba: both fields move together.
    #[test]
    fn a_period_keeps_its_layers_by_another_offset() {
        let jamba = |period: usize, offset: usize| json!({"attn_layer_period": period, "attn_layer_offset": offset});
        becomes(jamba(4, 2), 8, &[1, 2, 3, 4, 5, 6], jamba(4, 1));
        becomes(jamba(4, 2), 8, &[2, 6], jamba(1, 0));
        is_refused(jamba(4, 2), 8, &[0, 2, 2, 3, 4, 5, 6], "attn_layer_period");
    }

    #[test]
    fn what_nobody_can_tell_is_refused_unless_it_says_nothing() {
        becomes(
            json!({"moe_layer_freq": 1}),
            2,
            &[1],
            json!({"moe_layer_freq": 1}),
        );
        is_refused(
            json!({"encoder_sparse_step": 2}),
            2,
            &[1],
            "encoder_sparse_step",
        );
        let listed = json!({"moe_layer_freq": [0, 1]});
        becomes(listed, 2, &[1, 1, 0], json!({"moe_layer_freq": [1, 1, 0]}));
        becomes(
            json!({"num_blocks": 2}),
            2,
            &[1, 1, 0],
            json!({"num_blocks": 3}),
        );
        let odd = || json!({"num_blocks": 7, "attn_layer_period": "x", "mlp_only_layers": null});
        becomes(odd(), 2, &[1], odd());
    }
}
