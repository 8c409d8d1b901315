//! Tokenizers: the meaning of a checkpoint's token ids, and files for a vocabulary merged from several.
//!
//! Nothing here splits text into tokens: merging vocabularies only needs tokens, their ids, their flags, and the rule
//! by which new tokens get ids.

mod file;
mod sentencepiece;
mod settings;
mod tekken;
mod tiktoken;
mod turns;
mod vocabulary;

pub use file::{AddedToken, Tokenizer, TokenizerKind};
pub use sentencepiece::{Piece, PieceKind, PieceModel};
pub use settings::{chat_template, default_template, settings};
pub use tiktoken::letter as byte_letter;
pub use turns::{turn_end_beside, unknown_turn_end, unknown_turn_tokens};
pub(super) use vocabulary::compare_with_folder;
pub use vocabulary::{VocabularyComparison, compare_vocabularies, vocabulary_end};
