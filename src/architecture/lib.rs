//! What each family of models is: one entry of data, which every other layer reads.
//!
//! A [`Family`] says which tensors a config promises and in which shapes, which layers have experts, what a class
//! takes a field for that the config leaves out, and whether `forward` can run it or `moe` can write it. A new family
//! is one file in `families/`.
//! A [`Runtime`] says what llama.cpp, mlx-lm, vLLM and transformers read otherwise than a checkpoint means it.
//! It knows configs as JSON and the names of tensors. It must not know files, recipes, methods or weights.

mod announced;
mod config;
mod decoder;
mod differences;
mod expected;
mod families;
mod family;
mod fields;
mod kept;
mod layouts;
mod linear;
pub mod llama_cpp;
mod mixture;
mod mtp;
mod names;
mod renames;
mod restack;
mod rope;
mod rules;
mod runtimes;
mod sizes;
mod stacks;

pub use announced::{Announced, announced};
pub use config::{LAYER_COUNTS, TEXT_PARTS, field, in_all_layers};
pub use decoder::{Attention, Bias, Decoder, HeadDim, NormPlacement, QueryNorms, WindowRule};
pub use differences::{Difference, differences};
pub use expected::{Expected, Presence, Rule, Size, SizeKind};
pub use family::{Body, Family, Head};
pub use fields::{FieldError, Fields};
pub use kept::keeps_dtype;
pub use layouts::{ExpertLayouts, expert_layouts};
pub use linear::{WeightOrder, has_conv1d, is_conv1d_module, linear_weight};
pub use mixture::{
    Absent, Correction, Counts, Experts, Listed, Matrix, Mixture, Names, RoutingRule, Shared,
    SharedLayout, SharedWidth, Sparse, SparseLayers, Written,
};
pub use mtp::{
    MTP_COUNTS, announced_mtp_layers, decoder_layers, is_mtp_module, mtp_layers_in, without_mtp,
};
pub use names::{
    has_part_for_each_layer, is_derived_buffer, is_input_embedding, is_number, is_observed_range,
    is_output_head, is_router, is_shared_expert, is_update_factor, may_be_infinite, may_hold_zeros,
    module_index,
};
pub use renames::{other_spelling, unwrapped};
pub use restack::{Inexpressible, Restack};
pub use rope::{ONE_SPELLING, RopeFields, older_spelling};
pub use rules::{Layers, Role};
pub use runtimes::{Misreading, Outcome, Runtime, Served, Topic};
pub use stacks::{LayerStack, StackIndex, layer_lists, layer_stacks, numbered_runs};

#[cfg(test)]
mod tests;
