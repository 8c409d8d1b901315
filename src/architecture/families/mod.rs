//! One file for each family, and the list of them: those that experts are taken from, then those that hold experts,
//! then the others. Of several targets that hold a family, `moe` takes the first unless it is told: those that more
//! runtimes compute right come first.

use super::family::Family;

mod bert;
mod deepseek_v2;
mod deepseek_v3;
mod distilbert;
mod dots1;
mod ernie4_5;
mod ernie4_5_moe;
mod flex_olmo;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma3_text;
mod glm4_moe;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod granitemoe;
mod granitemoeshared;
mod hunyuan_v1_dense;
mod hunyuan_v1_moe;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod roberta;
mod t5;

/// Every family.
pub(super) static FAMILIES: &[&Family] = &[
    &llama::FAMILY,
    &mistral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &phi3::FAMILY,
    &gemma::FAMILY,
    &granite::FAMILY,
    &olmo2::FAMILY,
    &ernie4_5::FAMILY,
    &hunyuan_v1_dense::FAMILY,
    &mixtral::FAMILY,
    &granitemoe::FAMILY,
    &granitemoeshared::FAMILY,
    &qwen2_moe::FAMILY,
    &qwen3_moe::FAMILY,
    &glm4_moe::FAMILY,
    &dots1::FAMILY,
    &flex_olmo::FAMILY,
    &ernie4_5_moe::FAMILY,
    &hunyuan_v1_moe::FAMILY,
    &deepseek_v2::FAMILY,
    &deepseek_v3::FAMILY,
    &gpt_oss::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &gemma3_text::FAMILY,
    &t5::FAMILY,
    &gpt_neox::FAMILY,
    &gpt2::FAMILY,
    &bert::FAMILY,
    &roberta::FAMILY,
    &distilbert::FAMILY,
];
