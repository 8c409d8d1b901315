//! Finds out in which arithmetic a tensor was computed: weldment's or mergekit's.
//!
//! If weldment's result is equal, it is taken. Otherwise the tensor is computed again with mergekit's arithmetic, and
//! it is compared with the closer of the two results.

use super::checks;
use super::compare::{Comparison, Difference, There};
use super::mergekit::{self, Evidence, Profile, Replay};
use super::outcome::{Outcome, Outcomes};
use super::{FEW, Request};
use crate::{Finding, Place};
use checkpoint::Dtype;
use engine::Observer;
use methods::{Context, Tensor};
use numeric::{FloatType, Stored};
use plan::{Operation, Plan, PlannedTensor};
use run::{self, RunError, Share};

/// This many differing elements count as single ones, however small their tensor is.
const SINGLE: u64 = 4;

/// The arithmetic that a checkpoint is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numerics {
    /// Weldment's. If that is not equal, mergekit's in the recipe's `dtype`, or in that of the inputs if it has none.
    Auto(Option<Dtype>),
    /// Weldment's only.
    Weldment,
    /// mergekit's only.
    Mergekit(Profile),
}

/// The arithmetic that a tensor was compared with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fit {
    /// Weldment's, or none for a copy.
    Weldment,
    /// mergekit's.
    Mergekit(Profile, Evidence),
    /// This one, in which it is not known how the tensor is computed.
    Unknown(Profile),
}

impl Fit {
    /// The name in reports.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Fit::Weldment => "weldment",
            Fit::Mergekit(profile, _) | Fit::Unknown(profile) => profile.name(),
        }
    }

    /// The text that follows a difference in messages.
    pub(super) fn by(&self) -> String {
        match self {
            Fit::Weldment => String::new(),
            other => format!(", by {}", other.name()),
        }
    }

    /// Whether the comparison allows no conclusion.
    pub(super) fn tells_nothing(&self, difference: &Difference) -> bool {
        match self {
            Fit::Weldment => false,
            Fit::Mergekit(_, evidence) => evidence.bounds_only && difference.differing == 0,
            Fit::Unknown(_) => true,
        }
    }
}

/// Ranks a comparison: equal, within one ULP, or wrong.
fn rank(difference: &Difference) -> u8 {
    match difference {
        Difference { differing: 0, .. } => 0,
        Difference { steps: 0..=1, .. } => 1,
        _ => 2,
    }
}

/// Finds the arithmetic of each tensor. Where it is mergekit's, replaces the comparison with weldment's.
pub(super) fn fit(
    request: &Request<'_>,
    plan: &Plan,
    there: &[There<'_>],
    share: Option<&Share>,
    differences: &mut [(u64, Difference)],
    sample: Option<&run::Sample<'_>>,
    observer: &dyn Observer,
) -> Result<Vec<Fit>, RunError> {
    let mut fits = vec![Fit::Weldment; plan.tensors.len()];
    if request.numerics == Numerics::Weldment || plan.purpose.is_some() || !plan.results.is_empty()
    {
        return Ok(fits);
    }
    let alone = matches!(request.numerics, Numerics::Mergekit(_));
    let computed = |tensor: &PlannedTensor| matches!(tensor.operation, Operation::Compute { name, .. } if name == plan.method.name);
    let asked = |number: usize| share.is_none_or(|share| share.has(number));
    let tensors = plan.tensors.iter().zip(differences.iter()).enumerate();
    let made = tensors.filter(|(number, (tensor, _))| asked(*number) && computed(tensor));
    let equal = made.map(|(_, (_, (_, difference)))| difference.differing == 0);
    let (equal, others): (Vec<bool>, Vec<bool>) = equal.partition(|equal| *equal);
    // With masks of another seed, few tensors would be equal. Most are, so the seed is right and the others are wrong.
    if !alone && plan.random && equal.len() > others.len() {
        return Ok(fits);
    }
    let mut replays: Vec<(usize, Profile, Box<dyn Replay>)> = Vec::new();
    for (index, (tensor, there)) in plan.tensors.iter().zip(there).enumerate() {
        if !asked(index)
            || !computed(tensor)
            || there.bytes.is_none()
            || !alone && differences[index].1.differing == 0
        {
            continue;
        }
        let Some(profile) = profile(request.numerics, plan, tensor) else {
            continue;
        };
        match replay(profile, plan, tensor, there) {
            Some(replay) => replays.push((index, profile, replay)),
            None if alone => fits[index] = Fit::Unknown(profile),
            None => {}
        }
    }
    let others = replays.iter().filter_map(|(tensor, _, replay)| {
        let There { bytes, format, .. } = &there[*tensor];
        Some(run::Other {
            tensor: *tensor,
            program: replay.as_ref(),
            found: Stored {
                bytes: (*bytes)?,
                format: (*format)?,
            },
        })
    });
    let others: Vec<run::Other<'_>> = others.collect();
    let comparison = Comparison::new(there);
    run::replay_others(plan, &others, sample, &comparison, observer)?;
    let mut by_peer = comparison.finish();
    for (index, profile, replay) in &replays {
        let own = &mut differences[*index];
        let peer = &mut by_peer[*index];
        let evidence = replay.evidence();
        let few = peer.1.differing <= SINGLE.max((FEW * peer.0 as f64) as u64);
        let closer = match (rank(&own.1), rank(&peer.1)) {
            // If neither is close, weldment's is the better explanation, because it has no free choices; unless
            // mergekit's leaves only a few elements that differ.
            (2, 2) => few && peer.1.differing < own.1.differing,
            (2, 0) if evidence.bounds_only => true,
            (own, peer) if own != peer => peer < own,
            _ => peer.1.differing < own.1.differing,
        };
        if closer || alone {
            std::mem::swap(own, peer);
            fits[*index] = Fit::Mergekit(*profile, evidence);
        }
    }
    Ok(fits)
}

/// The dtype profile of mergekit in which a tensor was computed.
fn profile(numerics: Numerics, plan: &Plan, tensor: &PlannedTensor) -> Option<Profile> {
    let dtype = match numerics {
        Numerics::Weldment => return None,
        Numerics::Mergekit(profile) => return Some(profile),
        Numerics::Auto(dtype) => dtype,
    };
    let of_inputs = || {
        let sources = (0..tensor.sources.len()).map(|source| plan.source_values(tensor, source));
        let formats = sources.map(|values| values.map(|values| values.format()));
        formats.reduce(|a, b| Some(a?.promote(b?))).flatten()
    };
    Profile::computing_in(match dtype {
        Some(dtype) => FloatType::from_dtype(dtype)?,
        None => of_inputs()?,
    })
}

fn replay(
    profile: Profile,
    plan: &Plan,
    tensor: &PlannedTensor,
    there: &There<'_>,
) -> Option<Box<dyn Replay>> {
    let of = Tensor {
        name: &tensor.name,
        shape: &tensor.shape,
        seed: plan.seed,
        base: tensor.base,
        sources: tensor.sources.len(),
        linear: None,
        context: Context::default(),
    };
    mergekit::replay(
        profile,
        plan.method.name,
        &tensor.params,
        &of,
        there.format?,
    )
}

/// Reports how many tensors are exact in mergekit's arithmetic, and what that relies on.
pub(super) fn finding(outcomes: &Outcomes<'_>) -> Option<Finding> {
    let mut names = Vec::new();
    let (mut exact, mut tied, mut shifted) = (0, 0, 0f64);
    for judged in &outcomes.tensors {
        if let (Fit::Mergekit(profile, evidence), Outcome::Exact) = (&judged.fit, judged.outcome) {
            exact += 1;
            tied += evidence.tied;
            shifted = shifted.max(evidence.shifted);
            if !names.contains(&profile.name()) {
                names.push(profile.name());
            }
        }
    }
    if exact == 0 {
        return None;
    }
    let mut found = format!("{exact} tensors by {}", names.join(" and "));
    if tied > 0 {
        found += &format!(
            "; {tied} elements have a magnitude equal to their threshold, and either value was accepted as long as the \
             right number of them stays"
        );
    }
    if shifted > 0.0 {
        found += &format!(
            "; weights from norms and angles are up to {shifted:.1e} from the recomputed ones"
        );
    }
    Some(Finding::new(
        &checks::PEER,
        Place::default(),
        "weldment's arithmetic",
        found,
    ))
}

/// The number of tensors by arithmetic.
pub(super) fn summary(outcomes: &Outcomes<'_>) -> String {
    let profiles = Profile::ALL.iter().map(|profile| profile.name());
    let names = std::iter::once("weldment").chain(profiles);
    let mut parts = Vec::new();
    for name in names {
        for outcome in [Outcome::Exact, Outcome::WithinStep, Outcome::NotTold] {
            let judged = outcomes.tensors.iter();
            let fitting =
                judged.filter(|judged| judged.fit.name() == name && judged.outcome == outcome);
            match fitting.count() {
                0 => {}
                found => parts.push(format!("{name} ({found} {})", outcome.name())),
            }
        }
    }
    match parts.is_empty() {
        true => "none fits".to_owned(),
        false => parts.join(", "),
    }
}
