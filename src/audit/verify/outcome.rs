//! How each tensor of a plan compares with the checkpoint. The report and the proof are based on it.

use serde_json::{Value, json};

use super::numerics::Fit;
use plan::PlannedTensor;

/// The result of comparing a tensor with the recomputed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Equal to the recomputed tensor.
    Exact,
    /// Equal to the input that the recipe copies.
    Copied,
    /// No value is more than one ULP off.
    WithinStep,
    /// It differs.
    Wrong,
    /// It depends on random masks that were not recorded. No value is outside of what they could produce.
    NotTold,
    /// It could not be compared.
    NotCompared,
    /// It is of another part of the plan than the one that was asked for.
    OtherPart,
}

impl Outcome {
    const ALL: [Outcome; 7] = [
        Outcome::Exact,
        Outcome::Copied,
        Outcome::WithinStep,
        Outcome::Wrong,
        Outcome::NotTold,
        Outcome::NotCompared,
        Outcome::OtherPart,
    ];

    /// The name in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Outcome::Exact => "exact",
            Outcome::Copied => "copied",
            Outcome::WithinStep => "within a step",
            Outcome::Wrong => "wrong",
            Outcome::NotTold => "not told",
            Outcome::NotCompared => "not compared",
            Outcome::OtherPart => "of other parts",
        }
    }
}

/// A tensor of the plan and the result of its comparison.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judged<'a> {
    /// The tensor's name.
    pub(super) name: &'a str,
    /// The result of the comparison.
    pub(super) outcome: Outcome,
    /// The arithmetic that it was compared with.
    pub(super) fit: Fit,
    /// Number of elements.
    pub(super) elements: u64,
    /// Number of elements that were compared.
    pub(super) compared: u64,
    /// Number of elements that differ.
    pub(super) differing: u64,
    /// The largest distance between two elements, in ULPs.
    pub(super) steps: u64,
}

impl<'a> Judged<'a> {
    /// A tensor that was not asked for.
    pub(super) fn of_another_part(tensor: &'a PlannedTensor) -> Self {
        Self {
            name: &tensor.name,
            outcome: Outcome::OtherPart,
            fit: Fit::Weldment,
            elements: tensor.elements(),
            compared: 0,
            differing: 0,
            steps: 0,
        }
    }

    /// The result as JSON, for programs.
    pub(super) fn details(&self) -> Value {
        json!({
            "name": self.name,
            "outcome": self.outcome.name(),
            "numerics": self.fit.name(),
            "compared": self.compared,
            "differing": self.differing,
            "steps": self.steps,
        })
    }
}

/// All tensors of a plan, in its order.
#[derive(Debug)]
pub(super) struct Outcomes<'a> {
    pub(super) tensors: Vec<Judged<'a>>,
}

impl Outcomes<'_> {
    /// Whether every element was compared, and every tensor is exact or a copy.
    pub(super) fn are_exact(&self) -> bool {
        self.tensors.iter().all(|judged| {
            matches!(judged.outcome, Outcome::Exact | Outcome::Copied)
                && judged.compared == judged.elements
        })
    }

    /// Number of elements in all tensors that were asked for.
    pub(super) fn elements(&self) -> u64 {
        let tensors = self.tensors.iter();
        let asked = tensors.filter(|judged| judged.outcome != Outcome::OtherPart);
        asked.map(|judged| judged.elements).sum()
    }

    /// Number of elements that were compared.
    pub(super) fn compared(&self) -> u64 {
        self.tensors.iter().map(|judged| judged.compared).sum()
    }

    /// Whether any tensor has this outcome.
    pub(super) fn any(&self, outcome: Outcome) -> bool {
        self.tensors.iter().any(|judged| judged.outcome == outcome)
    }

    /// The number of tensors by outcome, in words.
    pub(super) fn counts(&self) -> String {
        let counts = Outcome::ALL.into_iter().filter_map(|kind| {
            let tensors = self.tensors.iter();
            let count = tensors.filter(|judged| judged.outcome == kind).count();
            (count > 0).then(|| format!("{count} {}", kind.name()))
        });
        counts.collect::<Vec<String>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tensor_among_a_hundred_thousand_decides() {
        let judged = |outcome, compared| Judged {
            name: "w",
            outcome,
            fit: Fit::Weldment,
            elements: 7,
            compared,
            differing: 0,
            steps: 0,
        };
        let mut tensors = vec![judged(Outcome::Exact, 7); 100_000];
        tensors[70_000] = judged(Outcome::Copied, 7);
        let mut outcomes = Outcomes { tensors };
        assert!(outcomes.are_exact());
        for other in [
            judged(Outcome::WithinStep, 7),
            judged(Outcome::Wrong, 7),
            judged(Outcome::NotTold, 7),
            judged(Outcome::NotCompared, 0),
            judged(Outcome::OtherPart, 0),
            judged(Outcome::Exact, 6),
        ] {
            outcomes.tensors[99_999] = other;
            assert!(!outcomes.are_exact(), "{other:?}");
        }
    }
}
