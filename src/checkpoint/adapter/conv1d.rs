//! How square matrices are stored.

use super::config::AdapterConfig;
use super::cuts::{Cut, Lies, placement};
use super::pieces::{Placed, TensorUpdate};
use super::subject::Subject;
use super::weights::AdapterWeights;
use architecture::{has_conv1d, is_conv1d_module};

/// Decides how square matrices are stored, because their shape does not tell.
pub(super) struct Conv1d {
    /// Whether the model is of a family whose layers use GPT-2's Conv1D.
    family: bool,
    /// How the adapter's other matrices are stored, if all in the same way; else what its config says.
    otherwise: Lies,
}

impl Conv1d {
    /// The config's `fan_in_fan_out` comes last: PEFT corrects it module by module during training, so it only
    /// describes the last module.
    pub(super) fn new(
        weights: &AdapterWeights,
        config: &AdapterConfig,
        model: &Subject,
        placed: &[Placed],
        found: &[Option<usize>],
    ) -> Self {
        let kind = model.config.as_ref().and_then(|config| config.model_type());
        let mut seen: Vec<Lies> = Vec::new();
        for (piece, found) in placed.iter().zip(found) {
            let (TensorUpdate::Product(piece), Some(tensor)) = (&piece.piece, *found) else {
                continue;
            };
            if piece.is_embedding || piece.cut != Cut::WHOLE {
                continue;
            }
            let shape = &model.tensors[tensor].shape;
            let (a, b) = (weights.shape(piece.a), weights.shape(piece.b));
            let fitting = |lies| placement(shape, a, b, &piece.cut, lies).is_some();
            match (fitting(Lies::OutIn), fitting(Lies::InOut)) {
                (true, false) => seen.push(Lies::OutIn),
                (false, true) => seen.push(Lies::InOut),
                _ => {}
            }
        }
        let said = match config.fan_in_fan_out {
            true => Lies::InOut,
            false => Lies::OutIn,
        };
        let unanimous = seen
            .first()
            .filter(|first| seen.iter().all(|lies| lies == *first));
        Self {
            family: kind.is_some_and(has_conv1d),
            otherwise: unanimous.copied().unwrap_or(said),
        }
    }

    pub(super) fn lies(&self, module: &str) -> Lies {
        let last = module.rsplit('.').next().unwrap_or(module);
        match (self.family, is_conv1d_module(last)) {
            (true, true) => Lies::InOut,
            (true, false) => Lies::OutIn,
            (false, _) => self.otherwise,
        }
    }
}
