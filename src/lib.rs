//! Weldment merges fine-tuned checkpoints by a recipe and writes a complete checkpoint folder.
//!
//! One direction, no way back:
//!
//! ```text
//! recipe.yml --recipe--> Recipe --plan--> Plan --run--> staged shards --commit--> checkpoint folder
//! ```
//!
//! Each module is a layer and may use those listed after it, never those before:
//! [`cli`], [`audit`], [`run`], [`moe`], [`plan`], [`recipe`], [`methods`], [`engine`], [`forward`],
//! [`checkpoint`], [`numeric`].
//! The library never prints and never reads the environment; [`cli`] does.
//! `docs/architecture.md` is the map.

pub mod audit;
pub mod checkpoint;
pub mod cli;
pub mod engine;
pub mod forward;
pub mod methods;
pub mod moe;
pub mod numeric;
pub mod plan;
pub mod recipe;
pub mod run;
