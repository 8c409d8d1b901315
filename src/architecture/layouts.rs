//! The two layouts of a mixture's experts.

use super::family::Family;
use super::mixture::{Experts, HELD, Names};

/// The two ways in which checkpoints store the experts of a family.
#[derive(Debug, Clone, Copy)]
pub struct ExpertLayouts {
    /// Each by itself.
    pub each: Names,
    /// All in two tensors.
    pub fused: Names,
}

/// The layouts of a family's experts, by its `model_type`; of a family that is not known, those that most have.
pub fn expert_layouts(model_type: Option<&str>) -> ExpertLayouts {
    static EACH: Experts = Experts::EACH;
    let family = model_type.and_then(Family::named);
    let mixture = family.and_then(Family::mixture);
    let each = mixture.filter(|mixture| matches!(mixture.experts, Experts::Each { .. }));
    match each {
        Some(mixture) => ExpertLayouts {
            each: mixture.names(false),
            fused: mixture.names(true),
        },
        None => ExpertLayouts {
            each: Names {
                router: "mlp.gate.weight",
                experts: &EACH,
            },
            fused: Names {
                router: "mlp.gate.weight",
                experts: &HELD,
            },
        },
    }
}
