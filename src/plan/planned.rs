//! A tensor of the output in the plan: its sources and its operation. Knows no recipe.

use super::views::View;
use checkpoint::Dtype;
use engine::{AnyProgram, Cost};
use methods::{self, TensorParams};
use numeric::{Encoding, RoundingKey};

/// One tensor of the output.
pub struct PlannedTensor {
    /// Its name.
    pub name: String,
    /// Its dtype.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Where it comes from, in the method's order.
    pub sources: Vec<SourceTensor>,
    /// Which of the sources is the base.
    pub base: Option<usize>,
    /// For each source, what is read in its place; empty if every source is read unchanged.
    pub views: Vec<Option<View>>,
    /// What is done.
    pub operation: Operation,
    /// The effective parameter values; empty if nothing is computed.
    pub params: TensorParams,
    /// The draws by which computed values are rounded; `None` to round to the nearest.
    pub rounding: Option<RoundingKey>,
    /// How computed values become codes; their scales are the next tensor of the plan.
    pub encoding: Option<Encoding>,
}

/// A tensor of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceTensor {
    /// The model, as an index into [`Plan::models`](super::Plan::models).
    pub model: usize,
    /// The tensor, as an index into the model's tensors.
    pub tensor: usize,
}

/// What is done with the sources of a tensor.
pub enum Operation {
    /// The first source's bytes; all others must be equal to them.
    Copy,
    /// A computation.
    Compute {
        /// Its name where plans are shown: a method, `convert`, or a step of an assembly.
        name: &'static str,
        /// What is computed.
        program: Box<dyn AnyProgram>,
    },
    /// The scales of the tensor before it, which are written with its codes.
    Scales,
    /// These bytes, which no model has: they say how other tensors are stored.
    Constant(Vec<u8>),
}

impl Operation {
    /// Converts the first source to the output's dtype.
    pub fn convert() -> Self {
        Operation::Compute {
            name: "convert",
            program: methods::convert(),
        }
    }
}

impl PlannedTensor {
    /// A tensor computed from unchanged sources, without a base or parameters.
    pub fn plain(
        name: String,
        dtype: Dtype,
        shape: Vec<usize>,
        sources: Vec<SourceTensor>,
        operation: Operation,
    ) -> Self {
        PlannedTensor {
            name,
            dtype,
            shape,
            sources,
            base: None,
            views: Vec::new(),
            operation,
            params: TensorParams::default(),
            rounding: None,
            encoding: None,
        }
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&dim| dim as u64).product()
    }

    /// Number of values that are computed: codes may hold two of them in an element.
    pub fn values(&self) -> u64 {
        match &self.encoding {
            None => self.elements(),
            Some(encoding) => encoding.values(),
        }
    }

    /// Number of bytes of its values.
    pub fn bytes(&self) -> u64 {
        self.elements() * self.dtype.bitsize() as u64 / 8
    }

    /// What its operation costs the engine.
    pub fn cost(&self) -> Cost {
        let Operation::Compute { program, .. } = &self.operation else {
            return Cost::default();
        };
        let cost = program.cost();
        match &self.encoding {
            None => cost,
            Some(encoding) => Cost {
                // One scale for all is found in a pass of its own.
                measures: cost.measures + usize::from(encoding.whole),
                band: encoding.longest(),
                more_outputs: cost.more_outputs + 1,
                ..cost
            },
        }
    }
}
