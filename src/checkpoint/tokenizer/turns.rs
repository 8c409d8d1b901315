//! The tokens by which chat templates mark turns.

use std::collections::BTreeSet;

use super::file::Tokenizer;

/// Tokens that end a turn.
const ENDS: [&str; 11] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eot|>",
    "<|end|>",
    "<|return|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<|endofturn|>",
    "[|endofturn|]",
    "<|END_OF_TURN_TOKEN|>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
];

/// Tokens that begin one, of templates that are made for them.
const STARTS: [&str; 5] = [
    "<|im_start|>",
    "<|start_header_id|>",
    "<start_of_turn>",
    "<|START_OF_TURN_TOKEN|>",
    "<|start_of_role|>",
];

/// The tokens that a template marks turns with, and that a vocabulary lacks.
pub fn unknown_turn_tokens(template: &str, tokenizer: &Tokenizer) -> Vec<&'static str> {
    let used = ENDS
        .into_iter()
        .chain(STARTS)
        .filter(|token| template.contains(token));
    used.filter(|token| tokenizer.id(token).is_none()).collect()
}

/// The token that ends turns by a template, where neither it nor another that may do so is in the vocabulary: what the
/// model writes then is text, at which nothing stops.
pub fn unknown_turn_end(template: &str, tokenizer: &Tokenizer) -> Option<&'static str> {
    if template.contains("eos_token") {
        return None;
    }
    let used = || ENDS.into_iter().filter(|token| template.contains(token));
    let known = used().any(|token| tokenizer.id(token).is_some());
    used().next().filter(|_| !known)
}

/// The token that ends turns by a template, and its id, where generation stops at no such token.
///
/// None where the template ends turns with the tokenizer's own end of sequence, or by no token that is known.
pub fn turn_end_beside(
    template: &str,
    tokenizer: &Tokenizer,
    stops: &BTreeSet<u64>,
) -> Option<(&'static str, u32)> {
    if template.contains("eos_token") {
        return None;
    }
    let used = ENDS.into_iter().filter(|token| template.contains(token));
    let ends: Vec<(&str, u32)> = used
        .filter_map(|token| Some((token, tokenizer.id(token)?)))
        .collect();
    let stops_at_one = ends.iter().any(|(_, id)| stops.contains(&u64::from(*id)));
    ends.first().copied().filter(|_| !stops_at_one)
}
