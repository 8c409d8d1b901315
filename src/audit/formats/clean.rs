//! Makes names and values from untrusted checkpoints safe to show, and short.

use errors::printable;

/// The most characters of a text that are shown; a hostile header may hold names of many megabytes.
const SHOWN: usize = 400;

/// The text made [`printable`], and cut if it is long.
pub(crate) fn clean(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}… ({} bytes)", printable(&text[..end]), text.len()),
        None => printable(text).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut() {
        let text = clean(&"x".repeat(5_000_000));
        assert!(text.len() < 500, "{}", text.len());
        assert!(text.ends_with("… (5000000 bytes)"), "{text}");
        assert_eq!(clean("a\x1b"), "a\\u{1b}");
    }
}
