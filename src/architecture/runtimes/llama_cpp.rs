//! llama.cpp, with the converter that comes with it.

use super::quirk::Quirk::{
    Activation, AlwaysTied, LongFactors, NoDenseEnd, NoDenseLayers, NoGroupedHeads, NoHeadDim,
    NoHeldNames, NoTiedHead, NoWindow, NoZeroGate, NoZeroWidth, Period, Ropes, SharedWidthByHeads,
    SumsToOne, Tokenizer, WantsFields, WantsLists,
};
use super::{Families, Outcome, Reading, Runtime};

const SILU: super::Quirk = Activation("silu");
const TANH: super::Quirk = Activation("gelu_pytorch_tanh");
/// What the converter writes for every family.
const ROPES: super::Quirk = Ropes(&["linear", "yarn"], Outcome::Silent);
/// What it writes for Llama and its kin.
const LLAMAS: super::Quirk = Ropes(&["linear", "yarn", "llama3"], Outcome::Silent);

pub(super) static RUNTIME: Runtime = Runtime {
    name: "llama.cpp",
    version: "llama.cpp 0.5.0",
    families: Families::Classes(include_str!("llama.cpp.txt")),
    everywhere: &[],
    readings: &[
        Reading {
            types: &["llama", "mistral"],
            quirks: &[SILU, LLAMAS, NoWindow],
        },
        Reading {
            types: &["mixtral"],
            quirks: &[SILU, LLAMAS, NoWindow, NoHeldNames],
        },
        Reading {
            types: &["granite"],
            quirks: &[SILU, LLAMAS],
        },
        Reading {
            types: &["granitemoe", "granitemoeshared"],
            quirks: &[SILU, Ropes(&["linear", "yarn"], Outcome::Fails)],
        },
        Reading {
            types: &["qwen2"],
            quirks: &[SILU, ROPES, NoWindow, NoHeadDim],
        },
        Reading {
            types: &["qwen3"],
            quirks: &[SILU, ROPES, NoWindow],
        },
        Reading {
            types: &["ernie4_5"],
            quirks: &[SILU, ROPES],
        },
        Reading {
            types: &["qwen2_moe"],
            quirks: &[
                SILU,
                ROPES,
                NoWindow,
                NoHeadDim,
                NoTiedHead,
                NoDenseLayers,
                NoZeroWidth,
                NoZeroGate,
                SumsToOne(false),
            ],
        },
        Reading {
            types: &["qwen3_moe"],
            quirks: &[SILU, ROPES, NoWindow, NoDenseLayers, SumsToOne(true)],
        },
        Reading {
            types: &["phi3"],
            quirks: &[
                SILU,
                Ropes(&["linear", "yarn", "longrope", "su"], Outcome::Silent),
                LongFactors(
                    "takes the long ones if its context is set longer than the original one",
                ),
                NoWindow,
                NoHeadDim,
            ],
        },
        Reading {
            types: &["gemma"],
            quirks: &[TANH, ROPES, AlwaysTied(Outcome::Silent)],
        },
        Reading {
            types: &["gemma2"],
            quirks: &[TANH, ROPES, Period(2, None), AlwaysTied(Outcome::Silent)],
        },
        Reading {
            types: &["gemma3_text"],
            quirks: &[TANH, Period(6, None)],
        },
        Reading {
            types: &["gpt_oss"],
            quirks: &[Period(2, None)],
        },
        Reading {
            types: &["cohere2"],
            quirks: &[Period(4, None)],
        },
        Reading {
            types: &["olmo2"],
            quirks: &[SILU, ROPES, NoHeadDim, NoTiedHead],
        },
        Reading {
            types: &["glm4_moe"],
            quirks: &[
                SILU,
                ROPES,
                NoZeroWidth,
                NoHeldNames,
                Tokenizer("GLM's own", 151_552),
            ],
        },
        Reading {
            types: &["dots1"],
            quirks: &[
                WantsFields("scoring_func"),
                SILU,
                ROPES,
                NoWindow,
                NoGroupedHeads,
                NoTiedHead,
                NoZeroWidth,
            ],
        },
        Reading {
            types: &["ernie4_5_moe"],
            quirks: &[SILU, ROPES, NoDenseEnd, SharedWidthByHeads],
        },
        Reading {
            types: &["hunyuan_v1_dense"],
            quirks: &[SILU, Ropes(&["linear", "yarn", "dynamic"], Outcome::Silent)],
        },
        Reading {
            types: &["hunyuan_v1_moe"],
            quirks: &[
                WantsLists(&["moe_topk", "moe_intermediate_size", "num_shared_expert"]),
                SILU,
                Ropes(&["linear", "yarn", "dynamic"], Outcome::Silent),
                Tokenizer("Hunyuan's own", 128_167),
            ],
        },
        Reading {
            types: &["gpt_neox"],
            quirks: &[WantsFields("rotary_pct")],
        },
    ],
};
