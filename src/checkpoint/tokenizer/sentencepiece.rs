//! `tokenizer.model`: the pieces of a SentencePiece model, by id.
//!
//! The file is a protobuf message whose field 1 repeats for each piece; field 1 of that is its text.

use super::super::bounded::plain;

/// How a value is stored, by the lowest three bits of a field's tag.
const VARINT: u64 = 0;
const EIGHT_BYTES: u64 = 1;
const BYTES: u64 = 2;
const FOUR_BYTES: u64 = 5;

/// Whether a file can be such a model: it begins with a piece. Files of the same name may hold something else.
pub(super) fn is_sentencepiece(bytes: &[u8]) -> bool {
    bytes.first() == Some(&(1 << 3 | BYTES as u8))
}

/// The texts of all pieces; the id of each is its place. The error is the reason alone.
pub(super) fn pieces(bytes: &[u8]) -> Result<Vec<String>, String> {
    let mut pieces = Vec::new();
    for field in (Message { bytes }) {
        if let (1, Some(piece)) = field? {
            let mut text = None;
            for field in (Message { bytes: piece }) {
                if let (1, Some(bytes)) = field? {
                    text = Some(String::from_utf8(bytes.to_vec()).map_err(|error| plain(&error))?);
                }
            }
            pieces.push(text.ok_or("a piece has no text")?);
        }
    }
    Ok(pieces)
}

/// The fields of a message: their numbers, and their bytes where they hold bytes.
struct Message<'b> {
    bytes: &'b [u8],
}

impl<'b> Message<'b> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.bytes.split_first()?;
            self.bytes = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, count: u64) -> Option<&'b [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(usize::try_from(count).ok()?)?;
        self.bytes = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Option<&'b [u8]>)> {
        let tag = self.varint()?;
        let bytes = match tag & 7 {
            VARINT => self.varint().map(|_| None)?,
            EIGHT_BYTES => self.take(8).map(|_| None)?,
            FOUR_BYTES => self.take(4).map(|_| None)?,
            BYTES => {
                let count = self.varint()?;
                Some(self.take(count)?)
            }
            _ => return None,
        };
        Some((tag >> 3, bytes))
    }
}

impl<'b> Iterator for Message<'b> {
    type Item = Result<(u64, Option<&'b [u8]>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() {
            return None;
        }
        let before = self.bytes.len();
        let field = self.field();
        if field.is_none() {
            // Nothing can be read behind what cannot be read.
            self.bytes = &[];
        }
        Some(field.ok_or_else(|| {
            format!("no SentencePiece model: a field {before} bytes before the end is cut short")
        }))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A model with these pieces, each with a score and a kind, and settings behind them.
    pub(in super::super) fn model(pieces: &[&str]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in pieces {
            let mut message = vec![0x0a, u8::try_from(piece.len()).unwrap()];
            message.extend(piece.as_bytes());
            message.extend([0x15, 0, 0, 0x80, 0x3f, 0x18, 1]);
            bytes.extend([0x0a, u8::try_from(message.len()).unwrap()]);
            bytes.extend(message);
        }
        bytes.extend([0x12, 3, 1, 2, 3, 0x19, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes
    }

    #[test]
    fn pieces_are_read_and_broken_models_are_not() {
        let bytes = model(&["<unk>", "\u{2581}a", "b"]);
        assert!(is_sentencepiece(&bytes));
        assert_eq!(pieces(&bytes).unwrap(), ["<unk>", "\u{2581}a", "b"]);
        assert!(!is_sentencepiece(b"IQ== 0\n"));
        for cut in 1..bytes.len() - 14 {
            // Cut between two pieces it is a shorter model.
            let short = pieces(&bytes[..cut]);
            assert!(
                short.is_err() || short.is_ok_and(|pieces| pieces.len() < 3),
                "{cut}"
            );
        }
        for odd in [
            &[0x0a, 0x02, 0x15, 0x00][..],
            &[0x0a, 0xff, 0xff, 0xff],
            &[0x0f],
            &[0x0a, 0],
            &[0x80; 20],
        ] {
            assert!(pieces(odd).is_err(), "{odd:?}");
        }
    }
}
