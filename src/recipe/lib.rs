//! Recipes: the user's YAML, strictly typed, with line and column in every error.
//!
//! The grammar is mergekit's, without its leniency: an unknown key, an unknown parameter or a value of the wrong type
//! is a [`Problem`] with a position, and all problems of a recipe are reported at once. What a method accepts comes
//! from its [`MethodInfo`](methods::MethodInfo); no method is known by name. This layer opens no file but the recipe,
//! and lists folders only where a recipe names models by a pattern. Whether models exist, how many layers they have and
//! which tensors they hold is for the plan, which reports its findings as problems of the same recipe.

mod assign;
mod checkpoints;
mod contract;
mod documents;
mod edit;
mod exceptions;
mod expert_layout;
mod found;
mod keys;
mod model;
mod moe;
mod nearest;
mod output;
mod parameters;
mod parse;
mod places;
mod problem;
mod quantization;
mod renames;
mod render;
mod schema;
mod setting;
mod tokenizer;
mod walk;
mod whole;
mod yaml;

#[cfg(test)]
mod tests;

pub use assign::{Assignment, assign};
pub use edit::{Change, EditRecipe, Edited, Member, Which};
pub use exceptions::{Exception, Fallback};
pub use expert_layout::ExpertLayout;
pub use moe::MAX_EXPERTS;
pub use moe::{Expert, GateMode, MoeRecipe, PromptTokens, Ranges, RouterRecipe, Split, Upcycle};
pub use nearest::nearest;
pub use output::{AdapterOutput, AdapterWay};
pub use parse::{
    AnyRecipe, parse, parse_any, parse_with_registry, read, read_any, read_recorded,
    read_regular_text, read_text, text_from,
};
pub use problem::{Located, Position, Problem, ProblemKind, RecipeError};
pub use quantization::Quantization;
pub use renames::{Rename, RenameRule};
pub use render::render;
pub use schema::{Inputs, Module, Recipe, RecipeText, Rounding, Slice, SliceSource, Source};
pub use setting::{Parameters, Setting, resolve};
pub use tokenizer::{RowSource, TokenName, TokenRule, Tokenizer, VocabularySource};
pub use yaml::{Entry, Node, Value, read as read_yaml};
