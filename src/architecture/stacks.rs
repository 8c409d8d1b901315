//! Finds the stacks of layers in tensor names, so that no table of architectures is needed.
//!
//! A stack is a prefix under which the numbers are 0..n, and that is called a list of layers or is followed by names
//! that are mostly alike. Only the first number in a name counts: experts and other nested lists belong to the layer
//! that they are in.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::names::{is_number, module_index};

/// A run of layers under one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerStack {
    /// What stands before the number, with its dot: `model.layers.`.
    pub prefix: String,
    /// How many layers: their numbers are 0 to this, exclusive.
    pub layers: usize,
}

impl LayerStack {
    /// The layer's number and what follows it, if the name is of this stack.
    pub fn split<'a>(&self, name: &'a str) -> Option<(usize, &'a str)> {
        let (number, suffix) = name.strip_prefix(self.prefix.as_str())?.split_once('.')?;
        let layer = module_index(number)?;
        (layer < self.layers && !suffix.is_empty()).then_some((layer, suffix))
    }
}

/// Stacks by their prefixes, so that the one of a name is found at once, however many there are.
#[derive(Debug)]
pub struct StackIndex<'s>(HashMap<&'s str, &'s LayerStack>);

impl<'s> StackIndex<'s> {
    /// Of these stacks.
    pub fn new(stacks: &'s [LayerStack]) -> Self {
        let by_prefix = stacks.iter().map(|stack| (stack.prefix.as_str(), stack));
        Self(by_prefix.collect())
    }

    /// The stack that a name is of, with the layer's number and what follows it.
    pub fn split<'n>(&self, name: &'n str) -> Option<(&'s LayerStack, usize, &'n str)> {
        // Only the first number in a name counts, so what stands before it is the only prefix it can have.
        let (prefix, ..) = split_outermost(name)?;
        let stack = self.0.get(prefix)?;
        let (layer, suffix) = stack.split(name)?;
        Some((stack, layer, suffix))
    }
}

/// What lists of layers are called: a stack by such a name needs less further evidence.
const LAYER_LISTS: [&str; 6] = ["layers", "layer", "h", "blocks", "block", "resblocks"];

/// The kinds of tensors that each layer has.
type Layers = BTreeMap<usize, BTreeSet<String>>;

/// The stacks in these names: the deepest first, then by prefix.
pub fn layer_stacks<'a>(names: impl Iterator<Item = &'a str>) -> Vec<LayerStack> {
    runs_that(names, is_stack)
}

/// Every run of modules that are numbered 0, 1 and so on, two at least, beside the stacks of layers: a gradient goes
/// over the blocks of an image model, whatever they are called and however little they have in common.
pub fn numbered_runs<'a>(names: impl Iterator<Item = &'a str>) -> Vec<LayerStack> {
    runs_that(names, |prefix, layers| {
        is_stack(prefix, layers) || layers.len() > 1 && is_without_gap(layers)
    })
}

fn runs_that<'a>(
    names: impl Iterator<Item = &'a str>,
    is_wanted: impl Fn(&str, &Layers) -> bool,
) -> Vec<LayerStack> {
    let mut lists: BTreeMap<&str, Layers> = BTreeMap::new();
    for name in names {
        if let Some((prefix, layer, suffix)) = split_outermost(name) {
            let layers = lists.entry(prefix).or_default();
            layers.entry(layer).or_default().insert(kind(suffix));
        }
    }
    let mut stacks: Vec<LayerStack> = lists
        .into_iter()
        .filter(|(prefix, layers)| is_wanted(prefix, layers))
        .map(|(prefix, layers)| LayerStack {
            prefix: prefix.into(),
            layers: layers.len(),
        })
        .collect();
    // Stable: equally deep ones stay in the order of their prefixes.
    stacks.sort_by_key(|stack| std::cmp::Reverse(stack.layers));
    stacks
}

/// The numbers in these names below each prefix that is called a list of layers, whether or not they are a stack.
pub fn layer_lists<'a>(names: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, BTreeSet<usize>> {
    let mut lists: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for name in names {
        if let Some((prefix, layer, suffix)) = split_outermost(name)
            && is_layer_list(prefix)
            && suffix.contains('.')
        {
            lists.entry(prefix).or_default().insert(layer);
        }
    }
    lists
}

/// Whether a prefix ends in what lists of layers are called.
fn is_layer_list(prefix: &str) -> bool {
    let list = prefix.trim_end_matches('.').rsplit('.').next();
    list.is_some_and(|list| LAYER_LISTS.contains(&list))
}

/// Prefix with its dot, number, what follows.
fn split_outermost(name: &str) -> Option<(&str, usize, &str)> {
    let mut start = 0;
    for part in name.split('.') {
        let end = start + part.len();
        if is_number(part) {
            let suffix = name.get(end + 1..).filter(|suffix| !suffix.is_empty())?;
            return Some((&name[..start], module_index(part)?, suffix));
        }
        start = end + 1;
    }
    None
}

/// A suffix with its numbers left out, so that 256 experts count as much as one linear map.
fn kind(suffix: &str) -> String {
    let parts: Vec<&str> = suffix
        .split('.')
        .map(|part| if is_number(part) { "*" } else { part })
        .collect();
    parts.join(".")
}

/// Whether the numbers are 0, 1 and so on.
fn is_without_gap(layers: &Layers) -> bool {
    let last = layers.last_key_value().map(|(&last, _)| last);
    last == Some(layers.len().wrapping_sub(1))
}

fn is_stack(prefix: &str, layers: &Layers) -> bool {
    if !is_without_gap(layers) {
        return false;
    }
    // Layers of a hybrid may share no name at all: what the list is called says enough.
    if is_layer_list(prefix) {
        return true;
    }
    let count = layers.len();
    if count == 1 {
        return false;
    }
    let mut layers_with: HashMap<&str, usize> = HashMap::new();
    for kind in layers.values().flatten() {
        *layers_with.entry(kind).or_default() += 1;
    }
    let is_core = |kind: &String| {
        let with = layers_with[kind.as_str()];
        with >= 2 && with * 2 >= count
    };
    layers.values().all(|kinds| {
        let core = kinds.iter().filter(|kind| is_core(kind)).count();
        // A Sequential's linear maps have no submodules; layers have.
        core * 2 >= kinds.len() && kinds.iter().any(|kind| kind.contains('.'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(names: &[String], expected: &[(&str, usize)]) {
        let stacks = layer_stacks(names.iter().map(String::as_str));
        let found: Vec<(&str, usize)> = stacks
            .iter()
            .map(|stack| (stack.prefix.as_str(), stack.layers))
            .collect();
        assert_eq!(found, expected);
        let backwards = layer_stacks(names.iter().rev().map(String::as_str));
        assert_eq!(backwards, stacks);
    }

    fn under(prefix: &str, layers: usize, suffixes: &[&str]) -> Vec<String> {
        let layer = |layer| {
            suffixes
                .iter()
                .map(move |suffix| format!("{prefix}{layer}.{suffix}"))
        };
        (0..layers).flat_map(layer).collect()
    }

    const LLAMA: [&str; 3] = [
        "self_attn.q_proj.weight",
        "mlp.up_proj.weight",
        "input_layernorm.weight",
    ];

    #[test]
    fn stacks_are_found_in_the_names() {
        let plain = [
            "model.embed_tokens.weight".to_owned(),
            "lm_head.weight".to_owned(),
        ];
        check(&[], &[]);
        check(&plain, &[]);
        check(
            &[under("model.layers.", 12, &LLAMA), plain.to_vec()].concat(),
            &[("model.layers.", 12)],
        );
        check(&under("", 3, &LLAMA), &[("", 3)]);
        check(&under("h.", 2, &["w"]), &[("h.", 2)]);
        check(&under("model.layers.", 1, &LLAMA), &[("model.layers.", 1)]);
        check(&under("model.things.", 1, &LLAMA), &[]);
        let t5 = [
            "layer.0.SelfAttention.q.weight",
            "layer.1.DenseReluDense.wi.weight",
        ];
        check(
            &[
                under("encoder.block.", 4, &t5),
                under("decoder.block.", 4, &t5),
            ]
            .concat(),
            &[("decoder.block.", 4), ("encoder.block.", 4)],
        );
        check(
            &[
                under("visual.blocks.", 3, &LLAMA),
                under("model.layers.", 5, &LLAMA),
            ]
            .concat(),
            &[("model.layers.", 5), ("visual.blocks.", 3)],
        );
    }

    #[test]
    fn layers_may_differ_within_reason() {
        let experts: Vec<String> = (0..64)
            .map(|e| format!("mlp.experts.{e}.up_proj.weight"))
            .collect();
        let mut moe: Vec<&str> = experts.iter().map(String::as_str).collect();
        moe.extend([
            "self_attn.q_proj.weight",
            "input_layernorm.weight",
            "mlp.gate.weight",
        ]);
        let mut deepseek = under("model.layers.", 1, &LLAMA);
        deepseek.extend(
            under("model.layers.", 6, &moe)
                .into_iter()
                .filter(|n| !n.contains("layers.0.")),
        );
        check(&deepseek, &[("model.layers.", 6)]);

        let mut hybrid = Vec::new();
        for layer in 0..9 {
            let mixer = ["in_proj", "q_proj", "up_proj"][layer % 3];
            hybrid.push(format!("backbone.layers.{layer}.norm.weight"));
            hybrid.push(format!("backbone.layers.{layer}.mixer.{mixer}.weight"));
            hybrid.push(format!("backbone.layers.{layer}.mixer.{mixer}.bias"));
        }
        check(&hybrid, &[("backbone.layers.", 9)]);
    }

    /// Zamba2 shares no name between its plain and its hybrid layers.
    #[test]
    fn a_list_of_layers_may_have_nothing_in_common() {
        let names: Vec<String> = (0..6)
            .map(|layer| match layer % 3 {
                2 => format!("model.layers.{layer}.shared.linear.weight"),
                _ => format!("model.layers.{layer}.mamba.in_proj.weight"),
            })
            .collect();
        check(&names, &[("model.layers.", 6)]);
        check(
            &["decoder.block.0.a.weight", "decoder.block.1.b.weight"].map(String::from),
            &[("decoder.block.", 2)],
        );
    }

    #[test]
    fn runs_for_gradients_need_no_more_than_numbers() {
        let check = |names: &[&str], expected: &[(&str, usize)]| {
            let runs = numbered_runs(names.iter().copied());
            let found: Vec<(&str, usize)> = runs
                .iter()
                .map(|run| (run.prefix.as_str(), run.layers))
                .collect();
            assert_eq!(found, expected, "{names:?}");
        };
        check(
            &[
                "unet.input_blocks.0.0.weight",
                "unet.input_blocks.1.0.in_layers.0.weight",
                "unet.input_blocks.2.1.proj.weight",
                "unet.out.0.weight",
                "unet.out.2.weight",
                "unet.middle_block.0.weight",
                "model.layers.0.w",
            ],
            &[("unet.input_blocks.", 3), ("model.layers.", 1)],
        );
        check(&["0.weight", "1.bias"], &[("", 2)]);
        check(&["a.1.w", "a.2.w"], &[]);
    }

    #[test]
    fn other_lists_are_no_stacks() {
        let sequential =
            ["mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"].map(String::from);
        check(&sequential, &[]);
        check(&under("classifier.", 2, &["weight", "bias"]), &[]);
        check(
            &["head.0.dense.weight", "head.1.norm.scale"].map(String::from),
            &[],
        );
        check(
            &["layers.1.a.weight", "layers.2.a.weight"].map(String::from),
            &[],
        );
        check(
            &["layers.00.a.weight", "layers.01.a.weight"].map(String::from),
            &[],
        );
        check(
            &["p.0", "p.1", "p.0.", "0", "", ".", "1."].map(String::from),
            &[],
        );
        check(&["layers.99999999999999999999999.a.b".to_owned()], &[]);
    }

    #[test]
    fn names_are_split_at_their_layer() {
        let stack = LayerStack {
            prefix: "model.layers.".into(),
            layers: 12,
        };
        for (name, expected) in [
            (
                "model.layers.3.mlp.experts.5.w1.weight",
                Some((3, "mlp.experts.5.w1.weight")),
            ),
            ("model.layers.11.w", Some((11, "w"))),
            ("model.layers.12.w", None),
            ("model.layers.03.w", None),
            ("model.layers.3", None),
            ("model.layers.x.w", None),
            ("layers.3.w", None),
        ] {
            assert_eq!(stack.split(name), expected, "{name}");
            let stacks = [stack.clone()];
            let found = StackIndex::new(&stacks)
                .split(name)
                .map(|(_, at, rest)| (at, rest));
            assert_eq!(found, expected, "{name}");
        }
    }
}
