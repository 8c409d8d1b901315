//! The program of every method that adds task vectors to a base: mask, rescale, elect a sign, add.
//!
//! mergekit calls this generalised task arithmetic. For each fine-tune `i`, `d_i = x_i - base` is masked and
//! rescaled; `u_i = w_i * d_i`; where a sign is elected, only the `u_i` of that sign stay; their sum, divided
//! by the weights if normalised, times lambda, is added to the base, where enough task vectors agree with it
//! if that is asked for.
//!
//! Where the weights that are added make up one, the result is a mean of the models, and is held between the
//! least and the largest of them: so copies of a model give that model to the bit, however small an element
//! is beside the base's.

mod choice;
mod mask;
mod norms;
mod parameters;
mod ranks;
mod sum;

use self::choice::{Choice, Magnitudes, masks};
pub(super) use self::mask::{Choose, Mask, Masked};
use self::norms::{Norms, l1_factor};
pub(super) use self::parameters::{
    DENSITY, INT8_MASK, LAMBDA, UNUSED_DENSITY, UNUSED_RESCALE, WEIGHT, normalize, rescale,
};
pub(super) use self::sum::{AddUp, Agreement, MaskedTerm, Sum};
use super::band::Band;
use super::order::{self, Order};
use super::{Action, Method, MethodInfo, Tensor, TensorParams};
use engine::{AnyProgram, Cost, Measured, Pass, Program};
use errors::Refusal;
use numeric::Real;

/// Elements handled at a time, so that the partial results stay in the first cache.
pub(super) const STRIP: usize = 512;

/// What a method makes of task vectors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scheme {
    pub(super) sparsifier: Sparsifier,
    pub(super) consensus: Consensus,
    /// Whether elements are merged only where enough task vectors agree with the sum: parameters `k` and,
    /// for each model, `lambda`.
    pub(super) agreement: bool,
}

/// A method that is such a scheme, and nothing more.
pub(super) struct TaskVectorMethod {
    pub(super) info: &'static MethodInfo,
    pub(super) scheme: Scheme,
}

impl Method for TaskVectorMethod {
    fn info(&self) -> &'static MethodInfo {
        self.info
    }

    fn action(&self, params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, Refusal> {
        action(self.scheme, params, tensor)
    }
}

/// Which elements of a task vector are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sparsifier {
    /// All.
    None,
    /// The largest of the tensor.
    Magnitude,
    /// The largest of the tensor but for the very largest.
    Outliers,
    /// Each by chance.
    Random,
    /// Each by a chance that rises with its rank in its row.
    ByRank,
}

/// Which of the weighted task vectors are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consensus {
    /// All.
    None,
    /// Those that have the sign of their sum.
    WeightedSign,
    /// Those that have the sign of the sum of task vectors before they are weighted.
    Sign,
}

/// What becomes of one tensor under such a scheme.
fn action(scheme: Scheme, params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, Refusal> {
    let base = tensor.base.ok_or("the method needs a base model")?;
    let others: Vec<usize> = (0..tensor.sources)
        .filter(|&source| source != base)
        .collect();
    if others.is_empty() {
        return Ok(Action::Copy(base));
    }
    let mut terms = Vec::new();
    for (slot, &source) in others.iter().enumerate() {
        terms.push(Term {
            source,
            weight: params.source_number(source, "weight").unwrap_or(0.0),
            choice: Choice::new(scheme.sparsifier, params, tensor, source, slot)?,
        });
    }
    let lambda = params.number("lambda").unwrap_or(1.0);
    let normalize = params.flag("normalize");
    let total: f64 = terms.iter().map(|term| term.weight).sum();
    let size: f64 = terms.iter().map(|term| term.weight.abs()).sum();
    if normalize && scheme.consensus == Consensus::None && total.abs() <= 1e-9 * size {
        return Err(
            Refusal::new("the weights sum to zero, and `normalize` divides by their sum")
                .with_hint("choose weights with another sum, or set `normalize: false`"),
        );
    }
    let rescale = match params.word("rescale") {
        "l1" => Rescale::L1,
        "expectation" => Rescale::Expectation,
        _ => Rescale::Off,
    };
    let agreement = match scheme.agreement {
        true => Some(Agreement::new(params, &others)?),
        false => None,
    };
    let row = terms.iter().map(|term| term.choice.row()).max();
    let mut program = TaskVectors {
        base,
        terms,
        rescale,
        sum: Sum {
            consensus: scheme.consensus,
            lambda,
            normalize,
            total,
        },
        agreement,
        row: row.unwrap_or(0),
        elements: tensor.elements(),
        blocks: 0,
    };
    let block = program.cost().block_len() as u64;
    program.blocks = program.elements.div_ceil(block) as usize;
    Ok(Action::Compute(Box::new(program)))
}

/// One fine-tune.
#[derive(Debug, Clone)]
struct Term {
    source: usize,
    weight: f64,
    choice: Choice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rescale {
    Off,
    L1,
    Expectation,
}

/// The program: find the thresholds, measure the norms, apply.
struct TaskVectors {
    base: usize,
    terms: Vec<Term>,
    rescale: Rescale,
    sum: Sum,
    agreement: Option<Agreement>,
    /// Elements of a row, where a mask needs whole rows; else zero.
    row: usize,
    elements: u64,
    blocks: usize,
}

impl TaskVectors {
    fn order(&self) -> Order<Magnitudes> {
        Order {
            keys: Magnitudes { base: self.base },
            elements: self.elements,
            blocks: self.blocks,
        }
    }
}

impl AnyProgram for TaskVectors {
    fn cost(&self) -> Cost {
        let ranks = self.terms.iter().map(|term| term.choice.ranks()).sum();
        let by_rank = self
            .terms
            .iter()
            .filter(|term| term.choice.row() > 0)
            .count();
        let norms = usize::from(self.rescale == Rescale::L1);
        let remembered = self
            .terms
            .iter()
            .filter(|term| term.choice.is_remembered())
            .count();
        Cost {
            measures: if ranks > 0 { order::PASSES } else { 0 } + norms,
            counts: self.order().counts(ranks),
            sums: norms * 2 * self.terms.len(),
            row: self.row,
            // Keys; where there are rows, the bounds of each term and its ranks or what it keeps, and for one row
            // what ranking it takes.
            scratch: 4 + if by_rank > 0 { 8 * by_rank + 16 } else { 0 },
            memo: (norms * remembered) as u64 * (self.elements / 8 + 8 * self.blocks as u64),
            ..Cost::default()
        }
    }
}

impl<R: Real> Program<R> for TaskVectors {
    fn next(&self, measured: &[Measured]) -> Pass<R> {
        let mut measured = measured.iter();
        let by_chance = self.rescale == Rescale::Expectation;
        let masks = match masks(&self.terms, &self.order(), by_chance, &mut measured) {
            Ok(masks) => masks,
            Err(measure) => return measure.pass(),
        };
        let masked: Vec<MaskedTerm<R>> = self
            .terms
            .iter()
            .zip(masks)
            .map(|(term, mask)| MaskedTerm {
                source: term.source,
                weight: R::from_f64(term.weight),
                scaled: R::from_f64(term.weight),
                mask,
            })
            .collect();
        let factors: Vec<f64> = match self.rescale {
            Rescale::Off => vec![1.0; masked.len()],
            Rescale::Expectation => self
                .terms
                .iter()
                .map(|term| term.choice.expectation())
                .collect(),
            Rescale::L1 => {
                let Some(norms) = measured.next() else {
                    return Pass::Measure(Box::new(Norms {
                        base: self.base,
                        terms: masked,
                    }));
                };
                norms
                    .sums
                    .chunks_exact(2)
                    .map(|pair| l1_factor(pair[0], pair[1]))
                    .collect()
            }
        };
        let terms = masked
            .into_iter()
            .zip(&self.terms)
            .zip(factors)
            .map(|((masked, term), factor)| MaskedTerm {
                scaled: R::from_f64(term.weight * factor),
                ..masked
            })
            .collect();
        Pass::Apply(Box::new(AddUp {
            base: self.base,
            terms,
            sum: self.sum,
            agreement: self.agreement.clone(),
            common: None::<(Band, Magnitudes)>,
        }))
    }
}
