//! Statistics of a model's activations on texts, for methods that need data: a file for each model.
//!
//! The model is run layer by layer over all texts. What is kept of the inputs of a layer (Gram matrices, mean magnitudes)
//! is summed up in f64, rounded once to f32, and written before the next layer begins.
//!
//! This layer knows checkpoints, [`forward`] and [`eval`]'s files of texts; it must not know recipes, or what a method
//! makes of the statistics.

mod collection;
mod error;
mod sums;

pub use collection::{Collection, Keep, Request, Written};
pub use error::StatsError;
