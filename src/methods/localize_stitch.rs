//! `localize_stitch`: of each fine-tune, the largest changes of the whole model; where several meet, their mean.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::{
    Action, Arity, BaseRule, Method, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue,
    Tensor, TensorParams,
};
use engine::{AnyProgram, Apply, Block, Cost, Measure, Measured, Pass, Program, Survey};
use errors::Refusal;
use numeric::{HIGH_BINS, LOW_BINS, NoMemory, Rank, Real, high_bin, low_bin, rank_from_top};

/// Localize-and-Stitch without data.
pub(super) struct LocalizeStitch;

static INFO: MethodInfo = MethodInfo {
    name: "localize_stitch",
    summary: "the base plus, of each fine-tune, the largest changes of the whole model",
    formula: "d_i = x_i - base; t_i the k-th largest |d_i| over all tensors, k = floor(sparsity * elements); m_i = |d_i| \
              >= t_i; out = base + sum(w_i * m_i * d_i) / sum(m_i)",
    when: "fine-tunes with a skill of their own each, whose changes are few or lie apart",
    departs: "Elements whose change is as large as the threshold are kept, where the authors' code drops them; what is \
              unchanged never counts. Changes are compared after they are rounded to float32. At least one element of \
              each model is kept.",
    source: "He et al., Localize-and-Stitch, arXiv:2408.13656, in the variant without data",
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: &[
        ParamInfo {
            name: "weight",
            kind: ParamKind::Number,
            scope: ParamScope::EachButBase,
            default: Some(ParamValue::Number(1.0)),
            required: false,
            doc: "Multiplies what is kept of the model's changes. A model whose weight is 0 takes no part.",
        },
        ParamInfo {
            name: "sparsity",
            kind: ParamKind::Range { min: 0.0, max: 1.0 },
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Number(0.1)),
            required: false,
            doc: "The share of all elements of a model that is kept. It is one number for the whole model.",
        },
    ],
    random: false,
    statistics: None,
};

impl Method for LocalizeStitch {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn action(&self, params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, Refusal> {
        let base = tensor.base.ok_or("the method needs a base model")?;
        let shared = tensor.context.shared;
        let shared = shared.ok_or("the method needs the whole model, not one tensor of it")?;
        let sparsity = params.number("sparsity");
        let thresholds = shared
            .thresholds
            .get_or_init(|| Arc::new(Thresholds::new(sparsity)));
        if thresholds.sparsity != sparsity {
            let message = format!(
                "`sparsity` is a share of the whole model, and has two values: {} and {sparsity}",
                thresholds.sparsity
            );
            return Err(Refusal::new(message).with_hint(
                "give it once for the recipe, without a gradient or a filter; `weight` may differ from tensor to tensor",
            ));
        }
        let weight = |source| params.source_number(source, "weight");
        let others = (0..tensor.sources).filter(|&source| source != base && weight(source) != 0.0);
        let task = |source| Task {
            source,
            weight: weight(source),
            slot: thresholds.slot(tensor.context.models.get(source).copied().unwrap_or(source)),
        };
        let tasks: Vec<Task> = others.map(task).collect();
        Ok(match tasks.is_empty() {
            true => Action::Copy(base),
            false => Action::Compute(Box::new(Stitch {
                base,
                tasks,
                thresholds: Arc::clone(thresholds),
            })),
        })
    }
}

/// What the tensors of one merge share, for methods that look at whole models. Each plan has its own.
#[derive(Debug, Default)]
pub struct Shared {
    thresholds: OnceLock<Arc<Thresholds>>,
}

/// The threshold of each model's changes.
#[derive(Debug)]
struct Thresholds {
    sparsity: f64,
    /// The models, in the order in which tensors name them.
    models: Mutex<Vec<usize>>,
    /// For each model, the bin of the first histogram in which the threshold lies.
    bins: OnceLock<Vec<Rank>>,
    /// For each model, the least magnitude key that is kept.
    keys: OnceLock<Vec<u32>>,
}

impl Thresholds {
    fn new(sparsity: f64) -> Self {
        Self {
            sparsity,
            models: Mutex::default(),
            bins: OnceLock::new(),
            keys: OnceLock::new(),
        }
    }

    /// The place of a model among the thresholds.
    fn slot(&self, model: usize) -> usize {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let found = models.iter().position(|known| *known == model);
        found.unwrap_or_else(|| {
            models.push(model);
            models.len() - 1
        })
    }

    fn slots(&self) -> usize {
        let models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        models.len()
    }
}

impl Survey for Thresholds {
    fn counts(&self) -> Option<usize> {
        match (self.bins.get(), self.keys.get()) {
            (_, Some(_)) => None,
            (Some(bins), None) => Some(bins.len() * LOW_BINS),
            (None, None) => Some(self.slots() * HIGH_BINS),
        }
    }

    fn decide(&self, counts: &[u64]) {
        let nothing = Rank {
            bin: 0,
            wanted: 0,
            held: 0,
        };
        match self.bins.get() {
            None => {
                let rank = |counts: &[u64]| {
                    let all: u64 = counts.iter().sum();
                    let kept = ((self.sparsity * all as f64) as u64).clamp(1, all.max(1));
                    rank_from_top(counts, kept).unwrap_or(nothing)
                };
                let _ = self
                    .bins
                    .set(counts.chunks_exact(HIGH_BINS).map(rank).collect());
            }
            Some(bins) => {
                let key = |(high, counts): (&Rank, &[u64])| {
                    let low = rank_from_top(counts, high.wanted).unwrap_or(nothing);
                    (high.bin * LOW_BINS + low.bin) as u32
                };
                let pairs = bins.iter().zip(counts.chunks_exact(LOW_BINS));
                let _ = self.keys.set(pairs.map(key).collect());
            }
        }
    }
}

/// A model that takes part.
#[derive(Debug, Clone, Copy)]
struct Task {
    source: usize,
    weight: f64,
    /// Its place among the thresholds.
    slot: usize,
}

struct Stitch {
    base: usize,
    tasks: Vec<Task>,
    thresholds: Arc<Thresholds>,
}

impl AnyProgram for Stitch {
    fn cost(&self) -> Cost {
        Cost {
            // The two histograms.
            measures: 2,
            counts: self.thresholds.slots() * HIGH_BINS,
            ..Cost::default()
        }
    }

    fn survey(&self) -> Option<&dyn Survey> {
        Some(self.thresholds.as_ref())
    }
}

impl<R: Real> Program<R> for Stitch {
    fn next(&self, measured: &[Measured]) -> Pass<R> {
        let Self {
            base,
            ref tasks,
            ref thresholds,
        } = *self;
        match (thresholds.keys.get(), measured) {
            (Some(keys), _) => Pass::Apply(Box::new(Stitched {
                base,
                tasks: tasks
                    .iter()
                    .map(|task| (task.source, R::from_f64(task.weight), keys[task.slot]))
                    .collect(),
            })),
            (None, []) => Pass::Measure(Box::new(Counting {
                base,
                tasks: tasks.clone(),
                counts: self.thresholds.counts().unwrap_or(0),
                bins: thresholds.bins.get().cloned(),
            })),
            (None, _) => Pass::Refuse("the whole model was not looked at first".into()),
        }
    }
}

/// Counts the magnitudes of changes.
struct Counting {
    base: usize,
    tasks: Vec<Task>,
    counts: usize,
    /// The bins of the first histogram that the second looks into.
    bins: Option<Vec<Rank>>,
}

impl<R: Real> Measure<R> for Counting {
    fn sums(&self) -> usize {
        0
    }

    fn counts(&self) -> usize {
        self.counts
    }

    fn block(
        &self,
        block: Block<'_, R>,
        _sums: &mut [f64],
        counts: &mut [u64],
    ) -> Result<(), NoMemory> {
        let base = block.sources[self.base];
        for task in &self.tasks {
            let changes = block.sources[task.source].iter().zip(base);
            let keys = changes.map(|(model, base)| (*model - *base).magnitude_key());
            match &self.bins {
                None => {
                    let counts = &mut counts[task.slot * HIGH_BINS..][..HIGH_BINS];
                    keys.for_each(|key| counts[high_bin(key)] += 1);
                }
                Some(bins) => {
                    let counts = &mut counts[task.slot * LOW_BINS..][..LOW_BINS];
                    let bin = bins[task.slot].bin;
                    keys.filter(|key| high_bin(*key) == bin)
                        .for_each(|key| counts[low_bin(key)] += 1);
                }
            }
        }
        Ok(())
    }
}

/// Adds what is kept to the base.
struct Stitched<R> {
    base: usize,
    /// Source, weight, and the least key that is kept.
    tasks: Vec<(usize, R, u32)>,
}

impl<R: Real> Apply<R> for Stitched<R> {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        let base = block.sources[self.base];
        for (at, (out, &base)) in out.iter_mut().zip(base).enumerate() {
            let (mut sum, mut count) = (R::ZERO, R::ZERO);
            // A mean of models lies between them, whatever the roundings.
            let (mut least, mut most, mut is_mean) = (R::INFINITY, R::ZERO - R::INFINITY, true);
            for &(source, weight, key) in &self.tasks {
                let model = block.sources[source][at];
                let change = model - base;
                if change.magnitude_key() < key || change == R::ZERO {
                    continue;
                }
                sum += weight * change;
                count += R::ONE;
                is_mean &= weight == R::ONE;
                least = if model < least { model } else { least };
                most = if model > most { model } else { most };
            }
            let value = match count == R::ZERO {
                true => base,
                false => base + sum / count,
            };
            *out = match is_mean && count != R::ZERO {
                // Copies to the bit: of zeros, with their sign.
                true if value < least || least == most => least,
                true if value > most => most,
                _ => value,
            };
        }
        Ok(())
    }
}
