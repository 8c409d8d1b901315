//! What a fine-tune changed in its base, or a recipe makes of adapters, as a LoRA adapter that PEFT reads.
//!
//! Each matrix is read, decomposed and written before the next one. The adapter's config and the header of its weights
//! follow from the ranks that were found, so they are written last. What an adapter cannot hold is measured and told.

mod difference;
mod error;
mod extract;
mod factors;
mod files;
mod merge;
mod modules;
mod patterns;
mod recipe;
mod report;
mod request;
mod space;

pub use error::ExtractError;
pub use extract::Extraction;
pub use merge::AdapterMerge;
pub use patterns::Patterns;
pub use recipe::ExtractionRecipe;
pub use report::{Fit, LeftOut, Made, Report, Share};
pub use request::{Rank, Request};
