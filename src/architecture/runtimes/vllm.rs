//! vLLM, as its loader reads: it was not run. A class that it does not have runs in transformers' code within it.

use super::quirk::Quirk::{Activation, NoBiases, NoHeadDim, OnlyActivation, WantsBiases};
use super::{Families, Reading, Runtime};

const SILU: super::Quirk = OnlyActivation("silu");

pub(super) static RUNTIME: Runtime = Runtime {
    name: "vllm",
    version: "vLLM 0.33.0",
    families: Families::ClassesOrOthers(include_str!("vllm.txt")),
    everywhere: &[],
    readings: &[
        Reading {
            types: &[
                "llama",
                "mistral",
                "qwen3",
                "granite",
                "qwen3_moe",
                "glm4_moe",
                "ernie4_5",
                "ernie4_5_moe",
            ],
            quirks: &[SILU],
        },
        Reading {
            types: &["qwen2"],
            quirks: &[SILU, NoHeadDim, WantsBiases],
        },
        Reading {
            types: &["qwen2_moe"],
            quirks: &[SILU, NoHeadDim, WantsBiases],
        },
        Reading {
            types: &["mixtral"],
            quirks: &[Activation("silu")],
        },
        Reading {
            types: &["granitemoe"],
            quirks: &[Activation("silu"), NoHeadDim, NoBiases],
        },
        Reading {
            types: &["granitemoeshared"],
            quirks: &[SILU, NoHeadDim, NoBiases],
        },
        Reading {
            types: &["gemma2"],
            quirks: &[OnlyActivation("gelu_pytorch_tanh")],
        },
    ],
};
