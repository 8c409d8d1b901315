//! Tokenizers: the meaning of a checkpoint's token ids, and files for a vocabulary merged from several.
//!
//! Nothing here splits text into tokens: merging vocabularies only needs tokens, their ids, their flags, and the rule
//! by which new tokens get ids.

mod file;
mod settings;
mod vocabulary;

pub use file::{AddedToken, Tokenizer, TokenizerKind};
pub use settings::{chat_template, settings};
pub use vocabulary::{VocabularyComparison, compare_vocabularies};
