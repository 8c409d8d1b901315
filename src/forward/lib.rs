//! Runs a decoder layer by layer over the weights of a checkpoint: hidden states and logits, on the CPU.
//!
//! One block serves all families; a config is read into its settings, and anything that the block cannot do is refused
//! by name. Weights are read once per run, a tile of a matrix at a time, and dropped. All prompts run together, one
//! after the other without padding, each with its own causal mask. Internally states are `features x tokens`, so that a
//! tile of a matrix produces contiguous rows.
//!
//! Matrices are multiplied in f32; norms, softmax sums and log-probabilities are summed in f64. The result does not
//! depend on the number of threads, because tiles depend only on the shapes of the matrices.
//!
//! This layer knows checkpoints and numbers; it must not know recipes, plans, or what the states are used for.

mod activation;
mod attention;
mod batches;
mod cache;
mod decoder;
mod error;
mod experts;
mod generate;
mod layout;
mod norm;
mod product;
mod rope;
mod scores;
mod settings;
mod states;
mod taps;
mod tokenizer;
mod weights;

#[cfg(test)]
mod tests;

pub use batches::batches;
pub use decoder::{Decoder, Observer};
pub use error::ForwardError;
pub use generate::Until;
pub use scores::{Continued, TokenScore};
pub use taps::{InputObserver, LinearInput, LinearWeight, Passage};
pub use tokenizer::Tokenizer;
pub use weights::read;
