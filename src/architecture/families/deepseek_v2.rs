//! DeepSeek V2: as V3, with experts from the first layer on unless the config says otherwise.

use crate::family::Family;

pub(super) static FAMILY: Family = Family::decoder(
    &["deepseek_v2"],
    "DeepseekV2ForCausalLM",
    super::deepseek_v3::decoder(0),
);
