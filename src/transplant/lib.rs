//! A model with the vocabulary of another: rows of tokens that both have are copied, the others are approximated.
//!
//! The new rows are written to an unnamed file first. Then the model with them in place is planned like any merge of one
//! model, so that its folder is written, checked and put in place as all others are.

mod overlay;
mod pursuit;
mod recipe;
mod report;
mod rows;
mod tokens;
mod transplant;

pub use recipe::TransplantRecipe;
pub use report::{Approximation, Report, TableReport};
pub use rows::Method;
pub use transplant::{Failure, Request, Transplant};
