//! transformers, in the two versions that are in use.

use super::quirk::Quirk::{NoHeldNames, OlderRope};
use super::{Families, Runtime};

pub(super) static RUNTIMES: [Runtime; 2] = [
    Runtime {
        name: "transformers",
        version: "transformers 5.24.0",
        families: Families::Types(include_str!("transformers-5.txt")),
        everywhere: &[],
        readings: &[],
    },
    Runtime {
        name: "transformers",
        version: "transformers 4.57.6",
        families: Families::Types(include_str!("transformers-4.txt")),
        everywhere: &[OlderRope(None), NoHeldNames],
        readings: &[],
    },
];
