//! mlx-lm.

use super::quirk::Quirk::{
    Activation, AlwaysTied, LongFactors, NoCorrection, NoDenseLayers, NoHeadDim, NoHeldNames,
    NoTiedHead, NoWindow, NoWindowUnlessListed, NoZeroWidth, OlderRope, Period, RopeBases, Ropes,
    SumsToOne, TiedUnlessSaid, WantsBiases,
};
use super::{Families, Outcome, Reading, Runtime};

const SILU: super::Quirk = Activation("silu");
/// The kinds that its own helper makes; others are an error there.
const ROPES: super::Quirk = Ropes(
    &["linear", "llama3", "yarn", "dynamic", "longrope"],
    Outcome::Fails,
);
/// It rotates by the base alone.
const UNSCALED: super::Quirk = Ropes(&[], Outcome::Silent);

pub(super) static RUNTIME: Runtime = Runtime {
    name: "mlx",
    version: "mlx-lm 0.32.2",
    families: Families::Types(include_str!("mlx.txt")),
    everywhere: &[],
    readings: &[
        Reading {
            types: &["llama", "mistral"],
            quirks: &[
                SILU,
                OlderRope(Some(1e4)),
                ROPES,
                NoWindowUnlessListed,
                TiedUnlessSaid,
            ],
        },
        Reading {
            types: &["mixtral"],
            quirks: &[
                SILU,
                OlderRope(Some(1e6)),
                UNSCALED,
                NoHeadDim,
                NoWindow,
                NoHeldNames,
            ],
        },
        Reading {
            types: &["qwen2"],
            quirks: &[
                SILU,
                OlderRope(Some(1e6)),
                ROPES,
                NoHeadDim,
                NoWindow,
                WantsBiases,
                TiedUnlessSaid,
            ],
        },
        Reading {
            types: &["qwen3"],
            quirks: &[SILU, ROPES, NoWindow],
        },
        Reading {
            types: &["qwen2_moe"],
            quirks: &[
                SILU,
                OlderRope(Some(1e6)),
                Ropes(&[], Outcome::Fails),
                NoHeadDim,
                NoWindow,
                NoDenseLayers,
                NoZeroWidth,
                SumsToOne(false),
                WantsBiases,
                NoTiedHead,
                NoHeldNames,
            ],
        },
        Reading {
            types: &["qwen3_moe"],
            quirks: &[SILU, UNSCALED, NoWindow, NoHeldNames],
        },
        Reading {
            types: &["phi3"],
            quirks: &[
                SILU,
                OlderRope(Some(1e4)),
                Ropes(&["longrope", "su"], Outcome::Fails),
                LongFactors("takes the long ones always"),
                NoHeadDim,
                NoWindow,
            ],
        },
        Reading {
            types: &["gemma"],
            quirks: &[
                Activation("gelu"),
                OlderRope(Some(1e4)),
                UNSCALED,
                AlwaysTied(Outcome::Fails),
            ],
        },
        Reading {
            types: &["gemma2"],
            quirks: &[
                Activation("gelu_pytorch_tanh"),
                OlderRope(Some(1e4)),
                UNSCALED,
                NoWindow,
                AlwaysTied(Outcome::Fails),
            ],
        },
        Reading {
            types: &["gemma3_text"],
            quirks: &[
                Activation("gelu_pytorch_tanh"),
                RopeBases {
                    full: 1e6,
                    sliding: 1e4,
                },
                Period(6, Some("sliding_window_pattern")),
            ],
        },
        Reading {
            types: &["granite", "granitemoe"],
            quirks: &[SILU, ROPES, NoHeadDim, TiedUnlessSaid],
        },
        Reading {
            types: &["olmo2"],
            quirks: &[SILU, OlderRope(Some(1e4)), ROPES, TiedUnlessSaid],
        },
        Reading {
            types: &["ernie4_5"],
            quirks: &[SILU, UNSCALED],
        },
        Reading {
            types: &["ernie4_5_moe"],
            quirks: &[SILU, UNSCALED, NoCorrection],
        },
        Reading {
            types: &["hunyuan_v1_dense"],
            quirks: &[
                SILU,
                OlderRope(Some(1e4)),
                Ropes(&["dynamic"], Outcome::Fails),
            ],
        },
        Reading {
            types: &["glm4_moe"],
            quirks: &[SILU, UNSCALED, NoZeroWidth, NoHeldNames],
        },
        Reading {
            types: &["dots1"],
            quirks: &[SILU, ROPES, NoWindow, NoZeroWidth, NoHeldNames],
        },
    ],
};
