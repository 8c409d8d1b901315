//! Makes names and values from untrusted checkpoints safe to show: on one line, with every character visible.

use std::fmt::Write;

/// The most characters of a text that are shown; a hostile header may hold names of many megabytes.
const SHOWN: usize = 400;

/// Returns the text with unsafe characters written as `\u{1b}`: those that control a terminal, a CI's log or the
/// direction of writing, and those that XML cannot hold. Long texts are cut.
///
/// GitHub's runner takes `::` at the start of a line and `##[` anywhere as commands, whichever program prints them.
pub(super) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(SHOWN));
    let mut command = text.trim_start().starts_with("::");
    for (count, c) in text.chars().enumerate() {
        if count == SHOWN {
            let _ = write!(out, "… ({} bytes)", text.len());
            break;
        }
        let starts_command = (c == ':' && command) || (c == '[' && out.ends_with("##"));
        if starts_command || is_invisible(c) {
            let _ = match c {
                '\n' => write!(out, "\\n"),
                '\t' => write!(out, "\\t"),
                '\r' => write!(out, "\\r"),
                c => write!(out, "\\u{{{:x}}}", u32::from(c)),
            };
            command &= c != ':';
        } else {
            out.push(c);
        }
    }
    out
}

/// Whether a character is invisible or changes how others are displayed.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(u32::from(c),
            0xAD | 0x61C | 0x180E
            | 0x200B..=0x200F     // zero width, directions
            | 0x2028..=0x202E     // line separators, directions
            | 0x2060..=0x206F     // joiners, directions
            | 0xFDD0..=0xFDEF | 0xFEFF | 0xFFF9..=0xFFFB
            | 0xE0000..=0xE0FFF)  // tags
        || u32::from(c) & 0xFFFE == 0xFFFE // no characters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_is_shown() {
        let check = |text: &str, expected: &str| assert_eq!(clean(text), expected, "{text:?}");
        check(
            "model.layers.0.mlp.up_proj.weight",
            "model.layers.0.mlp.up_proj.weight",
        );
        check("Gewicht größer als 注意", "Gewicht größer als 注意");
        check("\x1b[31mred\x07", "\\u{1b}[31mred\\u{7}");
        check("a\nb\r\tc\0", "a\\nb\\r\\tc\\u{0}");
        check(
            "a\u{202e}b\u{2028}\u{ffff}\u{1fffe}",
            "a\\u{202e}b\\u{2028}\\u{ffff}\\u{1fffe}",
        );
        check("::error::x", "\\u{3a}:error::x");
        check("  ::error::x", "  \\u{3a}:error::x");
        check("std::vec", "std::vec");
        check("a ##[error] b", "a ##\\u{5b}error] b");
    }

    #[test]
    fn long_texts_are_cut() {
        let text = clean(&"x".repeat(5_000_000));
        assert!(text.len() < 500, "{}", text.len());
        assert!(text.ends_with("… (5000000 bytes)"), "{text}");
    }
}
