//! Vocabularies of tiktoken: a line for each token, its bytes in base64 and its id.

use std::collections::BTreeMap;

use base64ct::{Base64, Encoding};

/// Whether a file can be such a vocabulary, judging by its first line. Files of the same name may hold something else.
pub(super) fn is_tiktoken(bytes: &[u8]) -> bool {
    let first = bytes.split(|byte| *byte == b'\n').next();
    first.is_some_and(|line| token(line).is_some())
}

/// Tokens by id, their bytes written as `tokenizer.json` writes those of byte-level BPE. The error is the reason alone.
pub(super) fn tokens(bytes: &[u8]) -> Result<BTreeMap<u64, String>, String> {
    let mut tokens = BTreeMap::new();
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let (token, id) = token(line)
            .ok_or_else(|| format!("line {number}: expected a token in base64 and its id"))?;
        if tokens.insert(id, token).is_some() {
            return Err(format!("line {number}: the id {id} is given twice"));
        }
    }
    Ok(tokens)
}

/// The token and the id of a line.
fn token(line: &[u8]) -> Option<(String, u64)> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let bytes = Base64::decode_vec(words.next()?).ok()?;
    let id = words.next()?.parse().ok()?;
    let text = letters(bytes);
    words.next().is_none().then_some((text, id))
}

/// What byte-level BPE writes for the bytes of a token.
pub(super) fn letters(bytes: Vec<u8>) -> String {
    bytes.into_iter().map(letter).collect()
}

/// The letter that byte-level BPE writes for a byte: that of Latin-1 where one can see it; else one from U+0100 on, in
/// the order of the bytes.
pub fn letter(byte: u8) -> char {
    let beyond = match byte {
        0..=32 => u32::from(byte),
        127..=160 => u32::from(byte) - 127 + 33,
        173 => 33 + 34,
        _ => return char::from(byte),
    };
    char::from_u32(256 + beyond).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_byte_level_bpe_writes_them() {
        let letters: String = [
            0, b'\n', b' ', b'!', b'~', 127, 160, 161, 172, 173, 174, 255,
        ]
        .map(letter)
        .into_iter()
        .collect();
        assert_eq!(letters, "\u{100}ĊĠ!~\u{121}\u{142}¡¬\u{143}®ÿ");
        let all: std::collections::BTreeSet<char> = (0..=255).map(letter).collect();
        assert_eq!(all.len(), 256);
    }

    #[test]
    fn each_line_is_a_token_and_its_id() {
        let text = b"IQ== 0\nIHRoZQ== 1\r\n\n5Q== 3\n";
        assert!(is_tiktoken(text));
        let expected = [(0, "!"), (1, "Ġthe"), (3, "å")];
        let expected = expected.map(|(id, token)| (id, token.to_owned()));
        assert_eq!(tokens(text), Ok(BTreeMap::from(expected)));
        assert_eq!(tokens(b""), Ok(BTreeMap::new()));
        for (wrong, reason) in [
            (&b"IQ== 0\nIQ 1"[..], "line 2: expected a token"),
            (b"IQ== 0\nIg== x", "line 2: expected a token"),
            (b"IQ== 0\nIg== -1", "line 2: expected a token"),
            (b"IQ== 0\nIg==", "line 2: expected a token"),
            (b"IQ== 0\nIg== 1 1", "line 2: expected a token"),
            (b"IQ== 0\n\xff 1", "line 2: expected a token"),
            (b"IQ== 0\nIg== 0", "line 2: the id 0 is given twice"),
        ] {
            let error = tokens(wrong).unwrap_err();
            assert!(error.starts_with(reason), "{error}");
        }
        assert!(!is_tiktoken(b"") && !is_tiktoken(b"\x0a\x0b") && !is_tiktoken(b"version 0"));
    }
}
