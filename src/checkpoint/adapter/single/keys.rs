//! The names in such a file: the module and the part that each tensor is.

use crate::adapter::lycoris;

/// A part of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// `[rank, in]`, or a kernel.
    A,
    /// `[out, rank]`, or a kernel of one.
    B,
    /// What the product is multiplied with, times the rank.
    Alpha,
    /// A part of LoHa's or LoKr's, by its name.
    OfPair(&'static str),
}

/// How names end.
const ENDS: [(&str, Part); 11] = [
    (".lora_down.weight", Part::A),
    (".lora_up.weight", Part::B),
    (".lora_A.weight", Part::A),
    (".lora_B.weight", Part::B),
    (".lora_A.default.weight", Part::A),
    (".lora_B.default.weight", Part::B),
    (".lora.down.weight", Part::A),
    (".lora.up.weight", Part::B),
    ("_lora.down.weight", Part::A),
    ("_lora.up.weight", Part::B),
    (".alpha", Part::Alpha),
];

/// What the last words of names begin with that are of other kinds of adapters, and what these are.
const OTHERS: [(&str, &str); 8] = [
    (
        "lora_mid",
        "is of a Tucker decomposition (`lora_mid`), which is not supported",
    ),
    (
        "dora_scale",
        "is of a DoRA in a file of its own, which is not supported",
    ),
    (
        "lora_magnitude_vector",
        "is of a DoRA in a file of its own, which is not supported",
    ),
    ("oft_", "is of OFT, which is not supported"),
    (
        "diff",
        "is a whole difference and no factor (`diff`), which is not supported",
    ),
    (
        "w_norm",
        "is a whole difference and no factor (`w_norm`), which is not supported",
    ),
    (
        "b_norm",
        "is a whole difference and no factor (`b_norm`), which is not supported",
    ),
    ("on_input", "is of IA3, which is not supported"),
];

/// The module and the part of a name; the error says what it is instead.
pub(super) fn split(key: &str) -> Result<(&str, Part), &'static str> {
    if key.starts_with("base_model.model.") {
        return Err(
            "is of an adapter of PEFT, whose scale is in its adapter_config.json: name a folder with both",
        );
    }
    if let Some((module, word)) = key.rsplit_once('.')
        && let Some(part) = lycoris::part(word)
        && !module.is_empty()
    {
        return Ok((module, Part::OfPair(part)));
    }
    for word in key.split('.') {
        let other = OTHERS.iter().find(|(begin, _)| {
            word.strip_prefix(begin)
                .is_some_and(|rest| begin.ends_with('_') || rest.is_empty() || rest == "_b")
        });
        if let Some((_, why)) = other {
            return Err(why);
        }
    }
    ENDS.iter()
        .find_map(|(end, part)| Some((key.strip_suffix(end)?, *part)))
        .filter(|(module, _)| !module.is_empty())
        .ok_or("is no part of a LoRA file, and an adapter of PEFT is a folder with adapter_config.json")
}

/// A module without what older versions of diffusers put into its name: attention processors.
pub(super) fn plain(module: &str) -> String {
    match module.rsplit_once(".processor.") {
        Some((attention, "to_out")) => format!("{attention}.to_out.0"),
        Some((attention, projection)) => format!("{attention}.{projection}"),
        None => module.to_owned(),
    }
}
