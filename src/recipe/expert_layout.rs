//! `expert_layout:`: how the experts of a merged mixture are stored.

use super::nearest::suggestion;
use super::problem::{Located, ProblemKind, quoted};
use super::walk::Walk;
use super::yaml::Entry;

/// How the experts of a mixture are stored, if not as those of the model that gives the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertLayout {
    /// Those of a layer in two tensors.
    Fused,
    /// Each by itself.
    PerExpert,
}

/// The names in recipes.
const NAMES: [(&str, ExpertLayout); 2] = [
    ("fused", ExpertLayout::Fused),
    ("per_expert", ExpertLayout::PerExpert),
];

impl ExpertLayout {
    /// Its name in recipes.
    pub fn name(self) -> &'static str {
        let known = NAMES.iter().find(|(_, known)| *known == self);
        known.map_or("", |(name, _)| name)
    }
}

impl Walk<'_> {
    /// `expert_layout: NAME`.
    pub(super) fn expert_layout(&mut self, entry: &Entry) -> Option<Located<ExpertLayout>> {
        let text = self.text(entry)?;
        let at = entry.node.at;
        if let Some((_, value)) = NAMES.iter().find(|(name, _)| *name == text) {
            return Some(Located { value: *value, at });
        }
        let message = format!("unknown layout of experts {}", quoted(&text));
        let hint = suggestion(&text, "the choices are", &NAMES.map(|(name, _)| name));
        self.refuse(ProblemKind::Unknown, at, message, hint.as_deref());
        None
    }
}
