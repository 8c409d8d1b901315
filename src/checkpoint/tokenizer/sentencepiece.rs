//! `tokenizer.model`: a SentencePiece model, a protobuf message.
//!
//! Source: `sentencepiece_model.proto`. Of `ModelProto`, field 1 repeats for each piece, 2 says how it was trained, and 3
//! how text is normalised.

use super::super::bounded::plain;

/// How a value is stored, by the lowest three bits of a field's tag.
const VARINT: u64 = 0;
const EIGHT_BYTES: u64 = 1;
const BYTES: u64 = 2;
const FOUR_BYTES: u64 = 5;

/// A SentencePiece model.
#[derive(Debug, Clone, PartialEq)]
pub struct PieceModel {
    /// Its pieces; the id of each is its place.
    pub pieces: Vec<Piece>,
    /// Whether text is cut into the pieces that are likeliest together; if not, pieces are merged pair by pair.
    pub is_unigram: bool,
}

/// A piece of a SentencePiece model.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Its text, with U+2581 for a space.
    pub text: String,
    /// Pieces with higher scores are merged first.
    pub score: f32,
    /// What it stands for.
    pub kind: PieceKind,
}

/// What a piece of a SentencePiece model stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceKind {
    /// Text.
    Normal,
    /// What no piece stands for.
    Unknown,
    /// Nothing that is written, such as the beginning of a text.
    Control,
    /// Text that is always one piece.
    UserDefined,
    /// A byte, `<0x00>` to `<0xFF>`.
    Byte,
    /// Nothing: its place is kept free.
    Unused,
}

impl PieceModel {
    /// Reads the bytes of a `tokenizer.model`.
    ///
    /// # Errors
    /// The reason alone, if they are no SentencePiece model.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut model = PieceModel {
            pieces: Vec::new(),
            is_unigram: true,
        };
        if !is_sentencepiece(bytes) {
            return Err("no SentencePiece model: it does not begin with a piece".into());
        }
        for field in (Message { bytes }) {
            match field? {
                (1, Stored::Bytes(piece)) => model.pieces.push(Piece::parse(piece)?),
                (2, Stored::Bytes(bytes)) => {
                    for field in (Message { bytes }) {
                        if let (3, Stored::Varint(kind)) = field? {
                            model.is_unigram = kind == 1;
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(model)
    }
}

impl Piece {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut text = None;
        let (mut score, mut kind) = (0.0, PieceKind::Normal);
        for field in (Message { bytes }) {
            match field? {
                (1, Stored::Bytes(bytes)) => {
                    text = Some(String::from_utf8(bytes.to_vec()).map_err(|error| plain(&error))?);
                }
                (2, Stored::Four(bytes)) => score = f32::from_le_bytes(bytes),
                (3, Stored::Varint(number)) => kind = PieceKind::from_number(number),
                _ => {}
            }
        }
        let text = text.ok_or("a piece has no text")?;
        match score.is_finite() {
            true => Ok(Piece { text, score, kind }),
            false => Err("the score of a piece is NaN or infinite".into()),
        }
    }
}

impl PieceKind {
    /// By its number; one that is not known is a normal piece, as readers of protobuf have it.
    fn from_number(number: u64) -> Self {
        match number {
            2 => PieceKind::Unknown,
            3 => PieceKind::Control,
            4 => PieceKind::UserDefined,
            5 => PieceKind::Unused,
            6 => PieceKind::Byte,
            _ => PieceKind::Normal,
        }
    }
}

/// Whether a file can be such a model: it begins with a piece. Files of the same name may hold something else.
pub(super) fn is_sentencepiece(bytes: &[u8]) -> bool {
    bytes.first() == Some(&(1 << 3 | BYTES as u8))
}

/// A value of a message, as it is stored.
enum Stored<'b> {
    Varint(u64),
    Four([u8; 4]),
    Eight,
    Bytes(&'b [u8]),
}

/// The fields of a message: their numbers and values.
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

    fn field(&mut self) -> Option<(u64, Stored<'b>)> {
        let tag = self.varint()?;
        let stored = match tag & 7 {
            VARINT => Stored::Varint(self.varint()?),
            EIGHT_BYTES => self.take(8).map(|_| Stored::Eight)?,
            FOUR_BYTES => Stored::Four(self.take(4)?.try_into().ok()?),
            BYTES => {
                let count = self.varint()?;
                Stored::Bytes(self.take(count)?)
            }
            _ => return None,
        };
        Some((tag >> 3, stored))
    }
}

impl<'b> Iterator for Message<'b> {
    type Item = Result<(u64, Stored<'b>), String>;

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
        bytes.extend([0x12, 2, 8, 2, 0x19, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes
    }

    #[test]
    fn pieces_are_read_and_broken_models_are_not() {
        let texts = ["<unk>", "\u{2581}a", "b"];
        let bytes = model(&texts);
        let pieces = texts.map(|text| Piece {
            text: text.into(),
            score: 1.0,
            kind: PieceKind::Normal,
        });
        let read = PieceModel {
            pieces: pieces.into(),
            is_unigram: true,
        };
        assert_eq!(PieceModel::parse(&bytes).unwrap(), read);
        let merging = [&bytes[..], &[0x12, 2, 0x18, 2]].concat();
        assert!(!PieceModel::parse(&merging).unwrap().is_unigram);
        assert!(!is_sentencepiece(b"IQ== 0\n"));
        for cut in 1..bytes.len() - 13 {
            // Cut between two pieces it is a shorter model.
            let short = PieceModel::parse(&bytes[..cut]);
            assert!(
                short.is_err() || short.is_ok_and(|model| model.pieces.len() < 3),
                "{cut}"
            );
        }
        for odd in [
            &[0x0a, 0x02, 0x15, 0x00][..],
            &[0x0a, 0xff, 0xff, 0xff],
            &[0x0f],
            &[0x0a, 0],
            &[0x80; 20],
            // A score of NaN.
            &[0x0a, 8, 0x0a, 1, b'a', 0x15, 0, 0, 0xc0, 0x7f],
            b"{}",
        ] {
            assert!(PieceModel::parse(odd).is_err(), "{odd:?}");
        }
    }
}
