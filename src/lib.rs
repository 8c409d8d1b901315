//! Weldment merges fine-tuned checkpoints by a recipe and writes a complete checkpoint folder.
//!
//! One direction, no way back:
//!
//! ```text
//! recipe.yml --recipe--> Recipe --plan--> Plan --run--> staged shards --commit--> checkpoint folder
//! ```
//!
//! Each layer is a crate and may use those listed after it, never those before:
//! [`cli`], [`study`], [`audit`], [`lora`], [`run`], [`moe`], [`plan`], [`recipe`], [`methods`], [`engine`], [`eval`],
//! [`forward`], [`gguf`], [`checkpoint`], [`architecture`], [`numeric`]; [`errors`] is what the errors of all have in common.
//! The library never prints and never reads the environment; [`cli`] does.
//! `docs/architecture.md` is the map.

pub use {
    architecture, audit, checkpoint, cli, engine, errors, eval, forward, gguf, lora, methods, moe,
    numeric, plan, recipe, run, study,
};
