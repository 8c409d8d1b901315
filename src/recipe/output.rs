//! `output:`: what the merge becomes, where that is no model.

use super::keys::Place;
use super::nearest::suggestion;
use super::problem::{Located, ProblemKind, quoted};
use super::walk::Walk;
use super::yaml::{Entry, Value};

/// A LoRA adapter as the result of a merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdapterOutput {
    /// How the adapter comes about.
    pub way: AdapterWay,
    /// The highest rank of a module; `None` for as many as the way gives.
    pub rank: Option<usize>,
}

/// How a merge becomes an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterWay {
    /// The adapters' factors side by side; their ranks add up.
    Cat,
    /// The method merges what the adapters do between the directions that they use.
    CoreSpace,
    /// The method merges what the adapters do, seen from the output directions that they use.
    Knots,
    /// The method merges models, and the change of the base is decomposed.
    Svd,
}

const WAYS: [(&str, AdapterWay); 4] = [
    ("cat", AdapterWay::Cat),
    ("core_space", AdapterWay::CoreSpace),
    ("knots", AdapterWay::Knots),
    ("svd", AdapterWay::Svd),
];

const OUTPUT: Place = Place {
    name: "`output`",
    keys: &["adapter", "rank"],
};

impl AdapterWay {
    /// Its name in recipes.
    pub fn name(self) -> &'static str {
        let known = WAYS.iter().find(|(_, way)| *way == self);
        known.map_or("", |(name, _)| name)
    }
}

impl Walk<'_> {
    /// `output: adapter`, or `output: {adapter: WAY, rank: N}`.
    pub(super) fn output(&mut self, entry: &Entry) -> Option<Located<AdapterOutput>> {
        let at = entry.node.at;
        let found = match &entry.node.value {
            Value::Map(entries) => return self.adapter_output(entry, entries),
            Value::Text(text) if text == "adapter" => {
                let (way, rank) = (AdapterWay::CoreSpace, None);
                let value = AdapterOutput { way, rank };
                return Some(Located { value, at });
            }
            other => other.found(),
        };
        let message = format!("expected `adapter` for `output`, found {found}");
        let hint = "leave `output` out for a model; `output: {adapter: svd, rank: 32}` chooses how an adapter is made";
        self.refuse(ProblemKind::Invalid, at, message, Some(hint));
        None
    }

    fn adapter_output(
        &mut self,
        entry: &Entry,
        entries: &[Entry],
    ) -> Option<Located<AdapterOutput>> {
        let at = entry.node.at;
        let before = self.problems.len();
        let (mut way, mut rank) = (None, None);
        for entry in entries {
            match entry.key.as_str() {
                "adapter" => way = self.way(entry),
                "rank" if entry.node.is_null() => {}
                "rank" => rank = self.whole(entry, 1),
                _ => self.other_key(&OUTPUT, entry),
            }
        }
        if self.problems.len() != before {
            return None;
        }
        let Some(way) = way else {
            self.missing("adapter", &entry.node, &OUTPUT);
            return None;
        };
        if way == AdapterWay::Svd && rank.is_none() {
            let message = "`adapter: svd` needs a `rank`";
            let hint = "say how many ranks each module keeps: `output: {adapter: svd, rank: 32}`";
            self.refuse(ProblemKind::Missing, at, message, Some(hint));
            return None;
        }
        let value = AdapterOutput { way, rank };
        Some(Located { value, at })
    }

    fn way(&mut self, entry: &Entry) -> Option<AdapterWay> {
        let text = self.text(entry)?;
        if let Some((_, way)) = WAYS.iter().find(|(name, _)| *name == text) {
            return Some(*way);
        }
        let names = WAYS.map(|(name, _)| name);
        let hint = suggestion(&text, "they are", &names);
        let message = format!("unknown way to make an adapter: {}", quoted(&text));
        self.refuse(
            ProblemKind::Unknown,
            entry.node.at,
            message,
            hint.as_deref(),
        );
        None
    }
}
