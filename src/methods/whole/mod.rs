//! The program of all methods that merge whole matrices: read task vectors, merge them, add the result to the base.
//!
//! Such a method merges the weights of linear layers, matrix by matrix; of a stack of experts, that of each expert.
//! All other tensors take the mean of the task vectors, or what `others` says.

mod cart;
mod core;
mod iso_c;
mod iso_cts;
mod others;
mod regmean;
mod resmerge;
mod star;
mod subspace_boosting;
mod svc;
mod tasks;
mod tsvm;
mod wudi;

pub(super) use self::cart::CART;
use self::core::Core;
pub(super) use self::iso_c::ISO_C;
pub(super) use self::iso_cts::ISO_CTS;
pub(super) use self::regmean::Regmean;
pub(super) use self::resmerge::RESMERGE;
pub(super) use self::star::STAR;
pub(super) use self::subspace_boosting::SUBSPACE_BOOSTING;
pub(super) use self::svc::Svc;
use self::tasks::{Task, Tasks};
pub(super) use self::tsvm::TSVM;
pub(super) use self::wudi::{ACTMAT, SWUDI_A, WUDI};
use super::{
    Action, Linear, Method, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue, Tensor,
    TensorParams,
};
use std::sync::Arc;

use engine::{
    AnyProgram, Apply, Block, Cost, EngineError, Matrices, Measured, Pass, Program, Whole,
};
use errors::Refusal;
use matrix::{Matrix, MatrixError};
use numeric::{NoMemory, Real};
use rayon::prelude::*;

/// How much of a task vector goes into the merge.
const WEIGHT: ParamInfo = ParamInfo {
    name: "weight",
    kind: ParamKind::Number,
    scope: ParamScope::EachButBase,
    default: Some(ParamValue::Number(1.0)),
    required: false,
    doc: "Multiplies the model's task vector. A model whose weight is 0 takes no part.",
};

const LAMBDA: ParamInfo = ParamInfo {
    name: "lambda",
    kind: ParamKind::Number,
    scope: ParamScope::Tensor,
    default: Some(ParamValue::Number(1.0)),
    required: false,
    doc: "Multiplies what is added to the base.",
};

/// A method on whole matrices.
pub(super) struct WholeMethod {
    info: &'static MethodInfo,
    /// How it merges matrices.
    merger: fn(&TensorParams) -> Result<Arc<dyn Merger>, Refusal>,
    /// Whether one task vector comes out as it is, times lambda, so that nothing need be computed.
    keeps_one: bool,
}

/// How the task vectors of a matrix become one update.
trait Merger: Send + Sync {
    /// The update, before it is multiplied with [`factor`](Self::factor). The task vectors are of the shape that [`turn`](Self::turn) gives them.
    fn merge(&self, tasks: &Tasks<'_>) -> Result<Matrix<f32>, Failure>;

    /// Bytes that [`merge`](Self::merge) holds at the most, with its result.
    fn bytes(&self, size: Size) -> u64;

    /// What the update, and the mean of all other tensors, is multiplied with.
    fn factor(&self, lambda: f64) -> f64 {
        lambda
    }

    /// How matrices are handed over.
    fn turn(&self) -> Turn {
        Turn::Tall
    }

    /// Whether the update of matrices between some directions is what it makes of them there: whether it looks at
    /// singular vectors and values alone, and not at where rows and columns lie. [`Tasks::shape`] stays that of the
    /// whole matrices.
    fn works_on_directions(&self) -> bool {
        false
    }

    /// The least of its two sizes that a matrix must have to be merged so; smaller ones are merged as all others.
    fn least(&self, _tasks: usize) -> usize {
        1
    }
}

/// How a matrix is handed to a [`Merger`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// With at least as many rows as columns: for methods that do the same to a matrix turned round.
    Tall,
    /// With a row for each output.
    OutIn,
}

/// What a merger has to do with, to state its memory.
#[derive(Debug, Clone, Copy)]
struct Size {
    rows: u64,
    columns: u64,
    tasks: u64,
}

impl Size {
    /// Bytes of one f32 matrix.
    fn matrix(self) -> u64 {
        self.rows.saturating_mul(self.columns).saturating_mul(4)
    }

    /// Bytes of an f32 matrix as wide and as high as the smaller side.
    fn square(self) -> u64 {
        self.least().saturating_mul(self.least()).saturating_mul(4)
    }

    fn least(self) -> u64 {
        self.rows.min(self.columns)
    }

    /// Bytes while the singular vectors of a matrix are found, without the matrix and the result.
    fn decomposition(self) -> u64 {
        // A wide matrix is turned round first.
        let turned = if self.rows < self.columns {
            self.matrix()
        } else {
            0
        };
        self.squares(self.least()).saturating_add(turned)
    }

    /// Bytes while a square of this side is summed up and its eigenvectors are found.
    fn squares(self, side: u64) -> u64 {
        let panel = 512u64.saturating_mul(side).saturating_mul(8);
        matrix::eigen_bytes(side as usize).saturating_add(panel)
    }
}

/// Why a matrix has no merge.
#[derive(Debug)]
enum Failure {
    Engine(EngineError),
    Matrix(MatrixError),
    /// In words of the method.
    Refused(Refusal),
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Failure::Engine(error)
    }
}

impl From<MatrixError> for Failure {
    fn from(error: MatrixError) -> Self {
        Failure::Matrix(error)
    }
}

impl From<NoMemory> for Failure {
    fn from(error: NoMemory) -> Self {
        Failure::Matrix(error.into())
    }
}

impl Failure {
    fn told(self, sources: &dyn Matrices) -> EngineError {
        match self {
            Failure::Engine(error) => error,
            Failure::Refused(refusal) => sources.refusal(refusal),
            Failure::Matrix(MatrixError::Memory(error)) => error.into(),
            Failure::Matrix(error) => sources.refusal(
                Refusal::new(format!(
                    "a matrix that is made of its task vectors has no singular values: {error}"
                ))
                .with_hint("`except` leaves the tensor out of the merge"),
            ),
        }
    }
}

impl Method for WholeMethod {
    fn info(&self) -> &'static MethodInfo {
        self.info
    }

    fn action(&self, params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, Refusal> {
        let base = tensor.base.ok_or("the method needs a base model")?;
        let weight = |source| params.source_number(source, "weight");
        let tasks: Vec<Task> = (0..tensor.sources)
            .filter(|&source| source != base && weight(source) != 0.0)
            .map(|source| Task {
                source,
                weight: weight(source),
            })
            .collect();
        let merger = (self.merger)(params)?;
        let lambda = merger.factor(params.number("lambda"));
        let alone = tasks.len() == 1 && self.keeps_one;
        let linear = tensor.linear.filter(|linear| {
            let least = linear.rows.min(linear.columns);
            !tasks.is_empty() && !alone && least >= merger.least(tasks.len())
        });
        match linear {
            Some(linear) => Ok(Action::Compute(Box::new(WholeProgram(Arc::new(Update {
                base,
                tasks,
                lambda,
                linear,
                merger,
            }))))),
            None => others::action(params, tensor, &tasks, lambda, alone),
        }
    }
}

/// The program: merge the matrices, then add the update to the base.
struct WholeProgram(Arc<Update>);

impl AnyProgram for WholeProgram {
    fn cost(&self) -> Cost {
        let linear = self.0.linear;
        let (rows, columns) = self.0.shape();
        let size = Size {
            rows: rows as u64,
            columns: columns as u64,
            tasks: self.0.tasks.len() as u64,
        };
        let result = size.matrix().saturating_mul(linear.count as u64);
        Cost {
            measures: 1,
            matrix: result
                .saturating_add(self.0.merger.bytes(size))
                .saturating_add(tasks::reading(linear)),
            ..Cost::default()
        }
    }
}

impl<R: Real> Program<R> for WholeProgram {
    fn next(&self, measured: &[Measured]) -> Pass<R> {
        match measured {
            [] => Pass::Whole(self.0.linear.columns, Box::new(Merge(Arc::clone(&self.0)))),
            [update, ..] => Pass::Apply(Box::new(Added {
                base: self.0.base,
                update: Arc::clone(&update.matrix),
            })),
        }
    }
}

/// What the base is changed by.
struct Update {
    base: usize,
    tasks: Vec<Task>,
    lambda: f64,
    linear: Linear,
    merger: Arc<dyn Merger>,
}

impl Update {
    /// Whether matrices are handed over with rows and columns exchanged.
    fn is_turned(&self) -> bool {
        match self.merger.turn() {
            Turn::Tall => self.linear.rows < self.linear.columns,
            Turn::OutIn => self.linear.in_out,
        }
    }

    /// The shape in which matrices are handed over.
    fn shape(&self) -> (usize, usize) {
        let Linear { rows, columns, .. } = self.linear;
        match self.is_turned() {
            true => (columns, rows),
            false => (rows, columns),
        }
    }
}

impl Update {
    /// What the task vectors of a matrix become.
    fn merged(&self, tasks: &mut Tasks<'_>) -> Result<Matrix<f32>, Failure> {
        if self.merger.works_on_directions() && self.linear.count == 1 {
            tasks.core = Core::new(tasks)?;
        }
        let merged = self.merger.merge(tasks)?;
        match &tasks.core {
            Some(core) => Ok(core.expanded(&merged)?),
            None => Ok(merged),
        }
    }
}

/// The pass that merges the matrices.
struct Merge(Arc<Update>);

impl Whole for Merge {
    fn compute(&self, sources: &dyn Matrices, result: &mut [f32]) -> Result<(), EngineError> {
        let update = self.0.as_ref();
        let Linear { rows, columns, .. } = update.linear;
        for (number, out) in result.chunks_mut(rows * columns).enumerate() {
            sources.check_running()?;
            let mut tasks = Tasks {
                core: None,
                sources,
                base: update.base,
                tasks: &update.tasks,
                first_row: number * rows,
                shape: (rows, columns),
                is_turned: update.is_turned(),
            };
            let merged = update.merged(&mut tasks);
            let merged = merged.map_err(|failure| failure.told(sources))?;
            let lambda = update.lambda as f32;
            let rows = out.par_chunks_mut(columns).enumerate();
            rows.for_each(|(row, out)| {
                let values = merged.values();
                match tasks.is_turned {
                    true => {
                        let column = values[row..].iter().step_by(merged.columns());
                        let pairs = out.iter_mut().zip(column);
                        pairs.for_each(|(out, value)| *out = lambda * value);
                    }
                    false => {
                        let pairs = out.iter_mut().zip(&values[row * columns..]);
                        pairs.for_each(|(out, value)| *out = lambda * value);
                    }
                }
            });
        }
        Ok(())
    }
}

/// Adds the update to the base.
struct Added {
    base: usize,
    update: Arc<Vec<f32>>,
}

impl<R: Real> Apply<R> for Added {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        let base = block.sources[self.base];
        let update = &self.update[block.first as usize..];
        for ((out, base), update) in out.iter_mut().zip(base).zip(update) {
            // Zero added to minus zero would be plus zero.
            *out = match *update == 0.0 {
                true => *base,
                false => *base + R::from_f32(*update),
            };
        }
        Ok(())
    }
}
