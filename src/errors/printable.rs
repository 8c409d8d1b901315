//! Makes text from untrusted files safe to print: on one line, with every character visible.
//!
//! Names, tokens, metadata and paths come from checkpoints and recipes. Printed as they are, they could control a
//! terminal, change the direction of writing, forge lines, or give commands to a CI system that reads the log.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// A text that is displayed by [`printable`].
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&printable(self.0))
    }
}

/// The text on one line, with unsafe characters written as `\u{1b}`: those that control a terminal, a CI's log or the
/// direction of writing, and those that XML cannot hold.
///
/// A CI system takes `::` at the start of a line (GitHub) and `##[`, `##vso[` or `##teamcity[` anywhere as commands,
/// whichever program prints them.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) && !may_command(text) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    let mut starts_command = text.trim_start().starts_with("::");
    for c in text.chars() {
        let is_command = (c == ':' && starts_command) || (c == '[' && follows_hashes(&out));
        if is_command || is_unsafe(c) {
            starts_command &= c != ':';
            escape(&mut out, c);
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Several lines, each made [`printable`]. For text that is made of safe parts: a name with a line break in it would
/// become two lines.
pub fn printable_lines(text: &str) -> String {
    let lines: Vec<Cow<'_, str>> = text.split('\n').map(printable).collect();
    lines.join("\n")
}

/// JSON with unsafe characters in its strings escaped, so that it can be printed and means the same. Line breaks
/// between values stay.
pub fn printable_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        // serde_json has escaped what is below U+0020 within strings; a line break here is one between values.
        let is_unsafe = c != '\n' && is_unsafe(c);
        if is_unsafe || (c == '[' && follows_hashes(&out)) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// The same text with every unsafe character but a line break replaced by question marks, as many as it has bytes: for
/// text in which positions must stay right.
pub fn printable_in_place(text: &str) -> Cow<'_, str> {
    let stays = |c: char| c == '\n' || c == '\t' || !is_unsafe(c);
    if text.chars().all(stays) && !may_command(text) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '[' if follows_hashes(&out) => out.push('?'),
            c if stays(c) => out.push(c),
            c => out.extend(std::iter::repeat_n('?', c.len_utf8())),
        }
    }
    Cow::Owned(out)
}

fn may_command(text: &str) -> bool {
    text.contains("##") || text.trim_start().starts_with("::")
}

/// Whether a text ends with `##` and perhaps a word, so that a `[` would start a command.
fn follows_hashes(text: &str) -> bool {
    text.trim_end_matches(|c: char| c.is_ascii_alphabetic())
        .ends_with("##")
}

fn escape(out: &mut String, c: char) {
    // Writing to a string cannot fail.
    let _ = match c {
        '\n' => out.write_str("\\n"),
        '\t' => out.write_str("\\t"),
        '\r' => out.write_str("\\r"),
        c => write!(out, "\\u{{{:x}}}", u32::from(c)),
    };
}

/// Whether a character is invisible or changes how others are displayed.
fn is_unsafe(c: char) -> bool {
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
        let check = |text: &str, expected: &str| {
            assert_eq!(printable(text), expected, "{text:?}");
            assert_eq!(printable(expected), expected, "twice: {text:?}");
        };
        check(
            "model.layers.0.mlp.up_proj.weight",
            "model.layers.0.mlp.up_proj.weight",
        );
        check("Gewicht größer als 注意", "Gewicht größer als 注意");
        check("\x1b[31mred\x07", "\\u{1b}[31mred\\u{7}");
        check("a\nb\r\tc\0", "a\\nb\\r\\tc\\u{0}");
        check(
            "a\u{202e}b\u{2028}\u{9b}\u{ffff}\u{1fffe}",
            "a\\u{202e}b\\u{2028}\\u{9b}\\u{ffff}\\u{1fffe}",
        );
        check("::error::x", "\\u{3a}:error::x");
        check("  ::error::x", "  \\u{3a}:error::x");
        check("std::vec", "std::vec");
        check("a ##[error] b", "a ##\\u{5b}error] b");
        check("##vso[task.x]", "##vso\\u{5b}task.x]");
        check("## a [b]", "## a [b]");
    }

    #[test]
    fn lines_stay_lines() {
        assert_eq!(
            printable_lines("a\n  ::stop\x1b\nb"),
            "a\n  \\u{3a}:stop\\u{1b}\nb"
        );
    }

    #[test]
    fn json_means_the_same() {
        let text = "{\n  \"a\u{202e}\": \"##[x]\u{e0041}\u{7f}\"\n}";
        let safe = printable_json(text);
        assert_eq!(
            safe,
            "{\n  \"a\\u202e\": \"##\\u005bx]\\udb40\\udc41\\u007f\"\n}"
        );
    }

    #[test]
    fn positions_stay_right() {
        let text = "a\x1b: é\u{202e} ##[x]\n\tb";
        let safe = printable_in_place(text);
        assert_eq!(safe, "a?: é??? ##?x]\n\tb");
        assert_eq!(safe.len(), text.len());
    }
}
