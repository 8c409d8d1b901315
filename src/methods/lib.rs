//! Merge methods, one file each, and the registry that the recipe reader, the docs and the tests iterate over.
//!
//! A method knows its parameters, how many models it takes, and how to turn one tensor's parameter values into an
//! [`Action`]. It knows no file, no layer, no thread. A new method is one file here and one line in the registry
//! that [`all`] returns.
//!
//! Methods on whole matrices share the program in `whole`; each says only how task vectors become one update.
//! Three programs serve most others: `weighted_sum` (one linear combination), `gram` (measure inner products,
//! solve for the weights, then combine) and `task_vectors` (differences from a base: mask, elect a sign, add).

mod aim;
mod arcee_fusion;
mod breadcrumbs;
mod consensus;
mod dare;
mod della;
mod fisher;
mod geometric_median;
mod gram;
mod interval;
mod karcher;
mod linear;
mod lines;
mod localize_stitch;
mod magmax;
mod model_stock;
mod multislerp;
mod nearswap;
mod nuslerp;
mod order;
mod params;
mod passthrough;
mod ram;
mod sce;
mod slerp;
mod statistics;
mod task_arithmetic;
mod task_vectors;
#[cfg(test)]
mod tests;
mod ties;
mod usual;
mod weighted_sum;
mod whole;

pub use localize_stitch::Shared;
pub use params::{
    Arity, BaseRule, MethodInfo, Need, NeedOf, ParamInfo, ParamKind, ParamScope, ParamValue,
    Statistic, TensorParams,
};
pub use statistics::TensorStatistics;

pub use usual::{Usual, usual};

use std::sync::Arc;

use engine::AnyProgram;
use errors::Refusal;

/// A merge method: its description, and what it does with one tensor.
pub trait Method: Send + Sync {
    /// Its description for the recipe reader, the help and the reference.
    fn info(&self) -> &'static MethodInfo;

    /// Decides how one tensor is computed.
    ///
    /// # Errors
    /// If parameter values are valid each by itself but not together; the message is meant for the user.
    fn action(&self, params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, Refusal>;
}

/// What a method may know of the tensor it merges.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// Its name, used only to key its random masks.
    pub name: &'a str,
    /// Its shape; empty for a scalar.
    pub shape: &'a [usize],
    /// The seed of the run.
    pub seed: u64,
    /// The index of the base among the sources, if there is one.
    pub base: Option<usize>,
    /// The number of sources, including the base.
    pub sources: usize,
    /// How its matrices lie, if it is the weight of a linear layer, or of one for each expert.
    pub linear: Option<Linear>,
    /// Where it stands in the merge.
    pub context: Context<'a>,
}

/// Where a tensor stands in the merge, for methods that look beyond one tensor.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context<'a> {
    /// Its depth: 0 in the first layer of its stack or slice, 1 in the last; 0 outside the layers.
    pub depth: f64,
    /// For each source, the number of its model in the plan.
    pub models: &'a [usize],
    /// What all tensors of the merge share; `None` if there are no others.
    pub shared: Option<&'a Shared>,
    /// For each source, the statistics of its model for this tensor, of the kind that the method needs, where there are
    /// some; empty if there are none.
    pub statistics: &'a [Option<Arc<dyn TensorStatistics>>],
}

/// The weights of linear layers in one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// How many matrices: one, or one for each expert.
    pub count: usize,
    /// Rows of each, as it is stored.
    pub rows: usize,
    /// Columns of each, as it is stored.
    pub columns: usize,
    /// Whether a row belongs to an input of the layer, as in GPT-2's Conv1D, and not to an output.
    pub in_out: bool,
}

impl Linear {
    /// The matrices of a tensor of two dimensions, or of three of which the first counts them; `None` for others.
    pub fn new(shape: &[usize], in_out: bool) -> Option<Self> {
        let (count, rows, columns) = match *shape {
            [rows, columns] => (1, rows, columns),
            [count, rows, columns] => (count, rows, columns),
            _ => return None,
        };
        Some(Self {
            count,
            rows,
            columns,
            in_out,
        })
    }
}

impl Linear {
    /// The number of inputs of the layer.
    pub fn inputs(&self) -> usize {
        match self.in_out {
            true => self.rows,
            false => self.columns,
        }
    }
}

impl Tensor<'_> {
    /// The statistics of a source, if there are some.
    fn statistics(&self, source: usize) -> Option<&Arc<dyn TensorStatistics>> {
        self.context.statistics.get(source)?.as_ref()
    }

    /// The number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&dim| dim as u64).product()
    }

    /// The length of a row, which is the last dimension; one for a scalar.
    pub fn row(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

/// How one tensor is computed.
pub enum Action {
    /// Copy the bytes of this source; convert them if the output has another dtype.
    Copy(usize),
    /// Run a program.
    Compute(Box<dyn AnyProgram>),
}

/// Every merge method, in the order of the reference.
pub fn all() -> &'static [&'static dyn Method] {
    REGISTRY
}

static REGISTRY: &[&dyn Method] = &[
    &linear::Linear,
    &slerp::Slerp,
    &nuslerp::Nuslerp,
    &multislerp::Multislerp,
    &karcher::Karcher,
    &task_arithmetic::TASK_ARITHMETIC,
    &ties::TIES,
    &dare::DARE_LINEAR,
    &dare::DARE_TIES,
    &della::DELLA,
    &della::DELLA_LINEAR,
    &breadcrumbs::BREADCRUMBS,
    &breadcrumbs::BREADCRUMBS_TIES,
    &consensus::CONSENSUS_TA,
    &consensus::CONSENSUS_TIES,
    &sce::Sce,
    &arcee_fusion::ArceeFusion,
    &model_stock::ModelStock,
    &nearswap::Nearswap,
    &ram::Ram,
    &ram::RamPlus,
    &whole::TSVM,
    &whole::ISO_C,
    &whole::ISO_CTS,
    &whole::CART,
    &whole::STAR,
    &whole::SUBSPACE_BOOSTING,
    &whole::WUDI,
    &whole::SWUDI_A,
    &whole::ACTMAT,
    &whole::RESMERGE,
    &whole::Svc,
    &whole::Regmean,
    &fisher::Fisher,
    &lines::Lines,
    &aim::Aim,
    &magmax::Magmax,
    &localize_stitch::LocalizeStitch,
    &geometric_median::GeometricMedian,
    &passthrough::Passthrough,
];

/// The program that changes only a tensor's dtype.
pub fn convert() -> Box<dyn AnyProgram> {
    Box::new(weighted_sum::WeightedSum {
        weights: vec![1.0],
        normalize: false,
        fused: false,
    })
}

/// The method with this name.
pub fn find(name: &str) -> Option<&'static dyn Method> {
    all()
        .iter()
        .copied()
        .find(|method| method.info().name == name)
}

#[cfg(test)]
mod registry_tests {
    use super::*;

    /// Whether the value is of this kind and within its bounds.
    fn is_of(kind: ParamKind, value: ParamValue) -> bool {
        match (kind, value) {
            (ParamKind::Number, ParamValue::Number(number)) => number.is_finite(),
            (ParamKind::Range { min, max }, ParamValue::Number(number)) => {
                (min..=max).contains(&number)
            }
            (ParamKind::Bool, ParamValue::Bool(_)) => true,
            (ParamKind::Word { words, .. }, ParamValue::Word(word)) => words.contains(&word),
            _ => false,
        }
    }

    #[test]
    fn the_registry_is_sound() {
        let mut names: Vec<_> = all().iter().map(|method| method.info().name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().len(), "two methods share a name");
        for method in all() {
            let info = method.info();
            assert!(std::ptr::addr_eq(
                find(info.name).expect("registered").info(),
                info
            ));
            for text in [info.summary, info.formula, info.when, info.source] {
                assert!(!text.is_empty(), "{}", info.name);
            }
            for param in info.params {
                assert!(!param.doc.is_empty(), "{}.{}", info.name, param.name);
                assert!(
                    !(param.required && param.default.is_some()),
                    "{}.{}",
                    info.name,
                    param.name
                );
                if let Some(default) = param.default {
                    assert!(is_of(param.kind, default), "{}.{}", info.name, param.name);
                }
            }
        }
    }
}
