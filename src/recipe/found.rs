//! The text of a recipe in which lists of models stand where patterns stood for them.

use std::ops::Range;

/// A part of a recipe's text, and the list of models that it stands for.
#[derive(Debug)]
pub(super) struct FoundModels {
    pub(super) span: Range<usize>,
    pub(super) list: String,
}

/// The text with the lists in place of what they were found by.
pub(super) fn resolved(text: &str, mut found: Vec<FoundModels>) -> String {
    found.sort_by_key(|found| found.span.start);
    let mut resolved = String::new();
    let mut from = 0;
    for FoundModels { span, list } in found {
        // What an alias repeats stands in the text once.
        if span.start < from {
            continue;
        }
        resolved += text.get(from..span.start).unwrap_or_default();
        resolved += &list;
        from = span.end;
    }
    resolved + text.get(from..).unwrap_or_default()
}
