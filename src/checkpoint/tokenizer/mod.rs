//! Tokenizers: what the token ids of a checkpoint mean, and files for a vocabulary made from several.
//!
//! Nothing here cuts text into tokens: merging vocabularies needs to know tokens, their ids and their flags, and
//! how ids are given to new ones.

mod file;
mod settings;
mod vocabulary;

pub use file::{AddedToken, Tokenizer, TokenizerKind};
pub use settings::{chat_template, settings};
pub use vocabulary::{VocabularyComparison, compare_vocabularies};
