//! Which elements of a task vector are to be kept, and the masks that result once magnitudes are measured.

use super::super::interval::RankRange;
use super::super::order::{Counts, Keys, Order};
use super::super::{Tensor, TensorParams};
use super::mask::{Mask, difference_keys};
use super::ranks::Chances;
use super::scheme::Sparsifier;
use engine::{Block, Measured};
use errors::Refusal;
use numeric::{MaskKey, NoMemory, Real, keep_threshold};

/// One fine-tune.
#[derive(Debug, Clone)]
pub(super) struct Term {
    pub(super) source: usize,
    pub(super) weight: f64,
    pub(super) choice: Choice,
}

/// Which elements of a task vector are to be kept.
#[derive(Debug, Clone, Copy)]
pub(super) enum Choice {
    All,
    Nothing,
    /// The `count` largest, after skipping the `skip` largest.
    Ranked {
        skip: u64,
        count: u64,
    },
    Random {
        key: MaskKey,
        density: f64,
    },
    /// Each with a probability that rises with its rank in its row.
    ByRank {
        key: MaskKey,
        chances: Chances,
        row: usize,
    },
}

impl Choice {
    /// The choice for the task vector of `source`, which is the `slot`-th.
    pub(super) fn new(
        sparsifier: Sparsifier,
        params: &TensorParams,
        tensor: &Tensor<'_>,
        source: usize,
        slot: usize,
    ) -> Result<Self, Refusal> {
        let number = |name| params.source_number(source, name);
        let density = number("density");
        if density >= 1.0 || sparsifier == Sparsifier::None {
            return Ok(Self::All);
        }
        if density <= 0.0 {
            return Ok(Self::Nothing);
        }
        let key = MaskKey::new(tensor.seed, tensor.name, slot);
        let elements = tensor.elements();
        let share = |part: f64| (part * elements as f64) as u64;
        Ok(match sparsifier {
            Sparsifier::None => Self::All,
            Sparsifier::Magnitude => Self::Ranked {
                skip: 0,
                count: share(density).max(1),
            },
            Sparsifier::Outliers => {
                let count = share(density);
                let smallest = elements
                    .saturating_sub(count)
                    .saturating_sub(share(number("gamma")));
                match count {
                    0 => Self::Nothing,
                    count => Self::Ranked {
                        skip: elements.saturating_sub(count).saturating_sub(smallest),
                        count,
                    },
                }
            }
            Sparsifier::Random => Self::Random { key, density },
            Sparsifier::ByRank => Self::ByRank {
                key,
                chances: Chances::new(density, number("epsilon"))?,
                row: ranked_row(tensor)?,
            },
        })
    }

    /// The factor that preserves the expectation of a mask with one probability for all elements.
    pub(super) fn expectation(self) -> f64 {
        match self {
            Self::Random { density, .. } => 1.0 / density,
            _ => 1.0,
        }
    }

    /// How many ranks have to be found.
    pub(super) fn ranks(self) -> usize {
        match self {
            Self::Ranked { skip, .. } => RankRange::ranks(skip),
            _ => 0,
        }
    }

    /// Whether its mask may be [remembered](Mask::is_remembered).
    pub(super) fn is_remembered(self) -> bool {
        matches!(self, Self::Random { .. } | Self::ByRank { .. })
    }

    /// Elements per row if the mask needs whole rows, otherwise zero.
    pub(super) fn row(self) -> usize {
        match self {
            Self::ByRank { row, .. } => row,
            _ => 0,
        }
    }

    /// The mask if it needs no measure, otherwise a placeholder.
    fn mask(self, by_chance: bool) -> Mask {
        match self {
            Self::All | Self::Ranked { .. } => Mask::All,
            Self::Nothing => Mask::Nothing,
            Self::Random { key, density } => Mask::Random {
                key,
                bound: keep_threshold(density),
            },
            Self::ByRank { key, chances, row } => match by_chance {
                true => Mask::ByRankScaled { key, chances, row },
                false => Mask::ByRank {
                    key,
                    bounds: chances.bounds(row),
                },
            },
        }
    }
}

/// The length of a row of the tensor.
fn ranked_row(tensor: &Tensor<'_>) -> Result<usize, Refusal> {
    let row = tensor.row();
    if u32::try_from(row).is_err() {
        return Err(Refusal::new(format!(
            "rows of {row} elements cannot be ranked; at most {} can",
            u32::MAX
        ))
        .with_hint("set `density: 1` for such tensors"));
    }
    Ok(row)
}

/// The magnitudes of task vectors; each source is a stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Magnitudes {
    pub(super) base: usize,
}

impl<R: Real> Keys<R> for Magnitudes {
    fn fill(&self, block: &Block<'_, R>, stream: usize, keys: &mut [u32]) -> Result<(), NoMemory> {
        difference_keys(block.sources[stream], block.sources[self.base], keys);
        Ok(())
    }
}

/// The masks of the terms, or the measure that is needed next.
///
/// `by_chance`: whether each element is divided by its own probability, for masks that have one for each element.
pub(super) fn masks<'m>(
    terms: &[Term],
    order: &Order<Magnitudes>,
    by_chance: bool,
    measured: &mut impl Iterator<Item = &'m Measured>,
) -> Result<Vec<Mask>, Counts<Magnitudes>> {
    let mut masks: Vec<Mask> = terms
        .iter()
        .map(|term| term.choice.mask(by_chance))
        .collect();
    let (mut places, mut wanted) = (Vec::new(), Vec::new());
    for (place, term) in terms.iter().enumerate() {
        if let Choice::Ranked { skip, count } = term.choice {
            places.push(place);
            wanted.push(RankRange {
                stream: term.source,
                skip,
                count,
            });
        }
    }
    for (place, interval) in places.into_iter().zip(order.intervals(measured, &wanted)?) {
        masks[place] = Mask::Magnitudes(interval);
    }
    Ok(masks)
}
