//! How much of the update of the base survives the rounding to the output's dtype.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use checkpoint::Dtype;
use numeric::Survival;
use plan::Plan;
use recipe::Rounding;

/// The fraction below which the user is warned.
const LEAST_KEPT: f64 = 0.9;

/// The fraction from which on an update is not kept, but the rounding changes more than it does.
const MOST_KEPT: f64 = 1.5;

/// Whether what is written has lost much of an update.
fn is_lost(kept: f64) -> bool {
    !(LEAST_KEPT..MOST_KEPT).contains(&kept)
}

/// How much of the update of the base survives the rounding, measured in a sample of each tensor's elements.
///
/// A fraction is the projection of what was kept on what was meant: the changes of the base that are written, along
/// those that were computed.
#[derive(Debug, Clone, PartialEq)]
pub struct UpdateKept {
    /// Of all tensors together.
    pub fraction: f64,
    /// The tensor that keeps least, and its fraction.
    pub least: (String, f64),
    /// How many tensors keep less than nine tenths.
    pub below: usize,
    /// How many tensors have an update.
    pub tensors: usize,
    /// The widest dtype of those that lose much.
    narrow: Option<Dtype>,
}

/// What survives of a tensor's update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Survivor {
    /// Its number in the output.
    pub(super) number: usize,
    tensor: String,
    dtype: Dtype,
    kept: f64,
    meant: f64,
}

impl Survivor {
    fn survival(&self) -> Survival {
        Survival {
            kept: self.kept,
            meant: self.meant,
        }
    }
}

/// What survives of each tensor of a plan that has an update, from what was measured, by number.
pub(super) fn survivors(plan: &Plan, found: &BTreeMap<usize, Survival>) -> Vec<Survivor> {
    let changed = (found.iter()).filter(|(_, survival)| survival.fraction().is_some());
    let survivor = |(&number, survival): (&usize, &Survival)| {
        let tensor = plan.tensors.get(number)?;
        Some(Survivor {
            number,
            tensor: tensor.name.clone(),
            dtype: tensor.dtype,
            kept: survival.kept,
            meant: survival.meant,
        })
    };
    changed.filter_map(survivor).collect()
}

/// What a plan could say otherwise so that more of an update survives, but for a wider dtype.
pub(super) fn remedies(plan: &Plan) -> Vec<String> {
    let mut remedies = Vec::new();
    if plan.method.params.iter().any(|info| info.name == "lambda") {
        remedies.push("a larger `lambda`".to_owned());
    }
    if plan.rounding == Rounding::Nearest {
        remedies.push("`rounding: stochastic`, which keeps it in the mean".to_owned());
    }
    remedies
}

impl UpdateKept {
    /// Sums up what was measured of each tensor of a plan, by number; `None` if no tensor has an update.
    pub fn new(plan: &Plan, found: &BTreeMap<usize, Survival>) -> Option<Self> {
        Self::of(&survivors(plan, found))
    }

    /// Sums up what was measured of tensors, in the order of the output; `None` if none has an update.
    pub(super) fn of(survivors: &[Survivor]) -> Option<Self> {
        let mut sum = Survival::default();
        let mut tensors = Vec::new();
        for tensor in survivors {
            let survival = tensor.survival();
            if let Some(fraction) = survival.fraction() {
                sum += survival;
                tensors.push((tensor, fraction));
            }
        }
        let (least, fraction) = tensors.iter().min_by(|(_, a), (_, b)| a.total_cmp(b))?;
        let lost = tensors.iter().filter(|(_, kept)| is_lost(*kept));
        Some(Self {
            fraction: sum.fraction()?,
            least: (least.tensor.clone(), *fraction),
            below: lost.clone().filter(|(_, kept)| *kept < LEAST_KEPT).count(),
            tensors: tensors.len(),
            narrow: lost
                .map(|(tensor, _)| tensor.dtype)
                .max_by_key(|dtype| dtype.bitsize()),
        })
    }

    /// The fraction in percent, to one decimal.
    pub fn percent(&self) -> f64 {
        (1000.0 * self.fraction).round() / 10.0
    }

    /// How much survives, as a sentence without its full stop.
    pub fn said(&self) -> String {
        match self.is_drowned() {
            true => "the rounding changes more than the update of the base does".to_owned(),
            false => format!(
                "{} of the update of the base survives the rounding",
                percent(self.fraction)
            ),
        }
    }

    /// Whether what is written tells nothing of the update.
    fn is_drowned(&self) -> bool {
        !(0.0..MOST_KEPT).contains(&self.fraction)
    }

    /// A warning if much is lost: of the whole update, or of most tensors. `remedies` are those beside a wider dtype.
    pub(super) fn warning(&self, remedies: &[String]) -> Option<String> {
        let narrow = self.narrow?;
        if !is_lost(self.fraction) && 2 * self.below <= self.tensors {
            return None;
        }
        let wider = match narrow.bitsize() {
            // Codes have the dtype of their scheme, whatever `out_dtype` says.
            8 => "`out_dtype: float32`, without `quantization`",
            16 => "`out_dtype: float32`",
            _ => "`out_dtype: float64`",
        };
        let remedies = [&[wider.to_owned()], remedies].concat();
        if self.is_drowned() {
            return Some(format!(
                "the rounding to {narrow:?} changes more than the update of the base does. Remedies: {}",
                remedies.join(", or ")
            ));
        }
        let (name, least) = &self.least;
        Some(format!(
            "{} of the update of the base survives the rounding to {narrow:?}: {} of {} tensors keep less than {}; \
             `{name}` keeps {}. Remedies: {}",
            percent(self.fraction),
            self.below,
            self.tensors,
            percent(LEAST_KEPT),
            percent(*least),
            remedies.join(", or ")
        ))
    }
}

/// A fraction as people read it.
fn percent(fraction: f64) -> String {
    format!("{:.1} %", 100.0 * fraction)
}
