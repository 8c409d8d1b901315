//! The parts of a model whose weights lie apart: each is checked by itself, and placed in the whole.

use crate::Report;
use checkpoint::{Checkpoint, ModelConfig, Part};

/// Checks each part of a model that is a model of its own, with findings that are placed in the whole. Modules behind a
/// model and heads beside it have tensors of which no config says anything.
pub(super) fn each_part(
    model: &Checkpoint,
    report: &mut Report,
    mut check: impl FnMut(&Checkpoint, &mut Report),
) {
    if model.parts().is_empty() {
        check(model, report);
        return;
    }
    let is_model = |part: &&Part| {
        let says = |config: &ModelConfig| {
            let keys = ["model_type", "architectures"];
            keys.iter().any(|key| config.get(key).is_some())
        };
        part.prefix.is_empty() || model.is_pipeline() || part.model.config().is_some_and(says)
    };
    for part in model.parts().iter().filter(is_model) {
        let (findings, skipped) = (report.findings.len(), report.skipped.len());
        check(&part.model, report);
        for finding in &mut report.findings[findings..] {
            let place = std::mem::take(&mut finding.place);
            finding.place = place.of_part(&part.prefix);
        }
        for skipped in report.skipped[skipped..]
            .iter_mut()
            .filter(|_| !part.prefix.is_empty())
        {
            skipped.why = format!("{}: {}", part.name(), skipped.why);
        }
    }
}
