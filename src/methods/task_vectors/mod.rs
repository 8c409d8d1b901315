//! The program of all methods that add task vectors to a base: mask, rescale, elect a sign, add.
//!
//! mergekit calls this generalised task arithmetic. For each fine-tune `i`, `d_i = x_i - base` is masked and
//! rescaled, and `u_i = w_i * d_i`. If a sign is elected, only the `u_i` with that sign are used. Their sum,
//! divided by the weights if normalised, is multiplied by lambda and added to the base; with `agreement`, only
//! where enough task vectors agree with it.
//!
//! Where the weights of the added terms add up to one, the result is a mean of the models and is clamped to the
//! least and the largest of them. So copies of a model merge to that model, to the bit, however small an element is
//! compared with the base's.

mod choice;
mod mask;
mod norms;
mod parameters;
mod ranks;
mod scheme;
mod sum;

use self::choice::{Choice, Magnitudes, Term, masks};
pub(super) use self::mask::{Choose, Mask, Masked};
use self::norms::{TaskVectorNorms, l1_factor};
pub(super) use self::parameters::{
    DENSITY, INT8_MASK, LAMBDA, UNUSED_DENSITY, UNUSED_RESCALE, WEIGHT, normalize, rescale,
};
pub(super) use self::scheme::{Consensus, STRIP, Sparsifier};
pub(super) use self::sum::{AddUp, Agreement, MaskedTerm, Sum};
use super::interval::KeyInterval;
use super::order::{self, Order};
use super::{Action, Method, MethodInfo, Tensor, TensorParams};
use engine::{AnyProgram, Cost, Measured, Pass, Program};
use errors::Refusal;
use numeric::Real;

/// What distinguishes the task vector methods.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scheme {
    pub(super) sparsifier: Sparsifier,
    pub(super) consensus: Consensus,
    /// Whether the sum is used only where enough task vectors agree with it: parameters `k` and, for each model,
    /// `lambda`.
    pub(super) agreement: bool,
}

/// A method that is fully described by a scheme.
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

/// How one tensor is computed under a scheme.
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
            weight: params.source_number(source, "weight"),
            choice: Choice::new(scheme.sparsifier, params, tensor, source, slot)?,
        });
    }
    let lambda = match scheme.agreement {
        // Each task vector has its own.
        true => 1.0,
        false => params.number("lambda"),
    };
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
    /// Elements per row if a mask needs whole rows, otherwise zero.
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
            // The keys. If there are rows: for each term its bounds and its ranks or flags, and the buffers to rank
            // one row.
            scratch: 4 + if by_rank > 0 { 8 * by_rank + 16 } else { 0 },
            carried: (norms * remembered) as u64 * (self.elements / 8 + 8 * self.blocks as u64),
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
                    return Pass::Measure(Box::new(TaskVectorNorms {
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
            common: None::<(KeyInterval, Magnitudes)>,
        }))
    }
}
