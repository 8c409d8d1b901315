//! Statistics of a model's activations on texts, for methods that need data: a file for each model.
//!
//! The model is run layer by layer over all texts. What is kept of the inputs of a layer (Gram matrices, mean magnitudes)
//! is summed up in f64, rounded once to f32, and written before the next layer begins.
//!
//! [`Walk`] does so for several models at once, each layer on what the layers before it give that the models are merged
//! into.
//!
//! This layer knows checkpoints, [`forward`] and [`eval`]'s files of texts; it must not know recipes, or what a method
//! makes of the statistics: it is given a [`Merger`].

mod collection;
mod error;
mod sums;
mod walk;

pub use collection::{Collection, Keep, Request, Written};
pub use error::StatsError;
pub use walk::{Merger, Walk};
