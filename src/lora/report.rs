//! What an adapter holds of a fine-tune, and what it does not.

use architecture::{StackIndex, layer_stacks};
use run::Recorded;
use serde_json::{Value, json};

use super::patterns::module_of;

/// A module that got factors. All sums are of squares of elements.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// The tensor, by its name in the base.
    pub tensor: String,
    /// The module, as PEFT names it.
    pub module: String,
    /// The rank of its factors.
    pub rank: usize,
    /// The base's values.
    pub base: f64,
    /// What the fine-tune changed.
    pub change: f64,
    /// What the factors leave out of that.
    pub left_out: f64,
}

/// A tensor whose change is not in the adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct LeftOut {
    /// Its name.
    pub tensor: String,
    /// Why it is not there.
    pub why: String,
    /// The sum of the squares of what the fine-tune changed, and of the base's values; `None` where the two cannot be
    /// subtracted.
    pub sums: Option<(f64, f64)>,
}

impl LeftOut {
    pub(super) fn unmeasured(tensor: &str, why: String) -> Self {
        Self {
            tensor: tensor.to_owned(),
            why,
            sums: None,
        }
    }

    /// The length of the change, as a share of the length of the base's tensor.
    pub fn relative(&self) -> Option<f64> {
        self.sums.map(|(change, base)| ratio(change, base))
    }
}

/// Modules taken together: a role in all layers, or a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// What they are.
    pub name: String,
    /// How many.
    pub modules: usize,
    /// The smallest and the largest rank.
    pub ranks: (usize, usize),
    /// The relative error: the length of what the factors leave out, as a share of that of the change.
    pub error: f64,
}

/// What was written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The modules that got factors, in the base's order.
    pub fits: Vec<Fit>,
    /// The tensors that were saved as they are, by their names in the base.
    pub saved: Vec<String>,
    /// The sum of the squares of what the fine-tune changed in them.
    pub saved_change: f64,
    /// The tensors that differ, and are not in the adapter.
    pub left_out: Vec<LeftOut>,
    /// The `r` of the adapter's config.
    pub rank: usize,
    /// Bytes of the weights' file.
    pub bytes: u64,
    /// Bytes that are held at the most for one matrix.
    pub memory: u64,
}

/// An adapter that was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    /// What it holds, and what it does not.
    pub report: Report,
    /// Its lock, and notes for the user.
    pub recorded: Recorded,
}

impl Report {
    /// The relative error of all modules with factors: the length of what the factors leave out, as a share of that of
    /// the change.
    pub fn error(&self) -> f64 {
        error(self.fits.iter())
    }

    /// The same for the whole model: what is not in the adapter at all counts too.
    pub fn whole_error(&self) -> f64 {
        let missing = self
            .left_out
            .iter()
            .filter_map(|tensor| Some(tensor.sums?.0))
            .sum::<f64>();
        let of = |sum: fn(&Fit) -> f64| self.fits.iter().map(sum).sum::<f64>();
        let left_out = of(|fit| fit.left_out) + missing;
        ratio(left_out, of(|fit| fit.change) + self.saved_change + missing)
    }

    /// The modules by role.
    pub fn roles(&self) -> Vec<Share> {
        self.grouped(|prefix, _, suffix| format!("{prefix}*.{suffix}"))
    }

    /// The modules by layer.
    pub fn layers(&self) -> Vec<Share> {
        self.grouped(|prefix, layer, _| format!("{prefix}{layer}"))
    }

    fn grouped(&self, name: impl Fn(&str, usize, &str) -> String) -> Vec<Share> {
        let names = || self.fits.iter().map(|fit| fit.tensor.as_str());
        let stacks = layer_stacks(names());
        let index = StackIndex::new(&stacks);
        let mut groups: Vec<(String, Vec<&Fit>)> = Vec::new();
        for fit in &self.fits {
            let module = module_of(&fit.tensor);
            let split = index.split(&fit.tensor);
            let group = split.map_or_else(
                || module.to_owned(),
                |(stack, layer, suffix)| name(&stack.prefix, layer, module_of(suffix)),
            );
            match groups.iter_mut().find(|(other, _)| *other == group) {
                Some((_, fits)) => fits.push(fit),
                None => groups.push((group, vec![fit])),
            }
        }
        let share = |(name, fits): (String, Vec<&Fit>)| {
            let ranks = || fits.iter().map(|fit| fit.rank);
            Share {
                name,
                modules: fits.len(),
                ranks: (ranks().min().unwrap_or(0), ranks().max().unwrap_or(0)),
                error: error(fits.iter().copied()),
            }
        };
        groups.into_iter().map(share).collect()
    }

    /// The report for programs.
    pub fn json(&self) -> Value {
        let share = |share: &Share| {
            json!({
                "name": share.name,
                "modules": share.modules,
                "least_rank": share.ranks.0,
                "largest_rank": share.ranks.1,
                "error": share.error,
            })
        };
        let fit = |fit: &Fit| {
            json!({
                "tensor": fit.tensor,
                "module": fit.module,
                "rank": fit.rank,
                "error": ratio(fit.left_out, fit.change),
                "change": ratio(fit.change, fit.base),
            })
        };
        let left = |tensor: &LeftOut| {
            json!({
                "tensor": tensor.tensor,
                "why": tensor.why,
                "change": tensor.relative(),
            })
        };
        json!({
            "rank": self.rank,
            "bytes": self.bytes,
            "memory_for_a_matrix": self.memory,
            "error": self.error(),
            "error_of_the_whole": self.whole_error(),
            "roles": self.roles().iter().map(share).collect::<Vec<Value>>(),
            "layers": self.layers().iter().map(share).collect::<Vec<Value>>(),
            "modules": self.fits.iter().map(fit).collect::<Vec<Value>>(),
            "saved": self.saved,
            "left_out": self.left_out.iter().map(left).collect::<Vec<Value>>(),
        })
    }
}

fn error<'f>(fits: impl Iterator<Item = &'f Fit> + Clone) -> f64 {
    let left_out = fits.clone().map(|fit| fit.left_out).sum();
    ratio(left_out, fits.map(|fit| fit.change).sum())
}

/// The ratio of two lengths, of which the squares are given.
fn ratio(part: f64, whole: f64) -> f64 {
    match part == 0.0 {
        true => 0.0,
        false => (part / whole).sqrt(),
    }
}
