//! The building blocks of a mixture's tensors: parts of matrices, and tensors that no model has.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::adjust::{Adjust, Segment};
use super::family::Dense;
use super::router::{self, Synthesized};
use architecture::{Matrix, is_derived_buffer, is_output_head, module_index};
use checkpoint::{Checkpoint, Dtype, TensorEntry};
use numeric::FloatType;
use plan::{
    MatrixPart, Models, Operation, PlannedTensor, Problems, SourceTensor, TensorUsage, View,
};
use recipe::Position;

/// The name of this operation in plans.
pub(super) const EXPERT: &str = "expert";
const ROUTER: &str = "router";
const ZEROS: &str = "zeros";
const CONSTANT: &str = "constant";

/// The models that pieces are cut from, and the dtypes that are written.
pub(super) struct Pieces<'a> {
    pub(super) models: &'a Models,
    /// The dtype that the recipe asks for.
    pub(super) dtype: Option<FloatType>,
    /// The dtype of experts and routers.
    pub(super) main: Dtype,
    /// The number of the source that will hold the tensors that no model has.
    pub(super) synthesized: usize,
}

/// The planned tensors, and those among them that no model has.
#[derive(Default)]
pub(super) struct Tensors {
    pub(super) planned: Vec<PlannedTensor>,
    pub(super) synthesized: Vec<(TensorEntry, Synthesized)>,
    /// Pairs of tensors that must be equal because only one of them is written: the model and the two tensors.
    pub(super) equal: Vec<(usize, usize, usize)>,
    pub(super) usages: Vec<Vec<TensorUsage>>,
    /// The routers' names, one per layer with experts.
    pub(super) routers: Vec<String>,
    /// Neurons of the shared expert.
    pub(super) shared_width: usize,
}

/// A matrix of an expert: its place in the source, and what is done to it.
pub(super) struct ExpertMatrix {
    pub(super) part: MatrixPart,
    /// Rows and columns.
    pub(super) shape: [usize; 2],
    /// Whether it is a whole tensor, unchanged.
    pub(super) whole: bool,
    pub(super) segment: Segment,
}

impl<'a> Pieces<'a> {
    /// Pieces in the dtype that the recipe asks for, or in that of the dense base's MLPs.
    pub(super) fn new(models: &'a Models, base: usize, dtype: Option<FloatType>) -> Self {
        let mut tensors = models.checkpoints[base].tensors().iter();
        let stored = tensors.find(|tensor| tensor.name.contains(".mlp."));
        let stored = stored.and_then(|tensor| FloatType::from_dtype(tensor.dtype));
        Self {
            models,
            dtype,
            main: dtype.or(stored).unwrap_or(FloatType::F32).dtype(),
            synthesized: models.checkpoints.len(),
        }
    }

    /// A tensor of the base with the same change to every value.
    pub(super) fn values(
        &self,
        source: SourceTensor,
        name: String,
        entry: &TensorEntry,
        segment: Segment,
        what: &'static str,
    ) -> PlannedTensor {
        let stored = FloatType::from_dtype(entry.dtype);
        let output = self.dtype.filter(|_| stored.is_some()).or(stored);
        let bytes = self.models.checkpoints[source.model]
            .bytes(source.tensor)
            .is_some();
        let operation = if !segment.is_plain() {
            Operation::Compute {
                name: what,
                program: Box::new(Adjust([segment].into())),
            }
        } else if output == stored && bytes || stored.is_none() {
            Operation::Copy
        } else {
            Operation::convert()
        };
        let dtype = output.map_or(entry.dtype, FloatType::dtype);
        PlannedTensor::plain(name, dtype, entry.shape.clone(), vec![source], operation)
    }

    /// A tensor that no model has.
    pub(super) fn invent(
        &self,
        name: String,
        shape: Vec<usize>,
        dtype: Dtype,
        what: Synthesized,
        out: &mut Tensors,
    ) {
        let source = SourceTensor {
            model: self.synthesized,
            tensor: out.synthesized.len(),
        };
        out.synthesized
            .push((router::entry(name.clone(), shape.clone()), what));
        let elements = shape.iter().map(|dim| *dim as u64).product();
        let operation = Operation::Compute {
            name: match what {
                Synthesized::Constant(0.0) => ZEROS,
                Synthesized::Constant(_) => CONSTANT,
                Synthesized::Rows(_) | Synthesized::SharedGate(_) | Synthesized::Correction(_) => {
                    ROUTER
                }
            },
            program: Box::new(Adjust([Segment::plain(elements)].into())),
        };
        let planned = PlannedTensor::plain(name, dtype, shape, vec![source], operation);
        out.planned.push(planned);
    }

    /// A matrix of a dense MLP.
    pub(super) fn piece(
        &self,
        donor: &Donor<'_>,
        layer: usize,
        matrix: Matrix,
        problems: &mut Problems,
    ) -> Option<ExpertMatrix> {
        let Dense {
            width,
            hidden,
            decoder,
            ..
        } = *donor.dense;
        let (name, stored, rows) = match matrix {
            Matrix::Down => (matrix.name(), [hidden, width], 0..hidden),
            Matrix::Gate | Matrix::Up => {
                let (name, rows, all) = decoder.input_matrix(matrix == Matrix::Up, width);
                (name, [all, hidden], rows)
            }
        };
        let name = format!("model.layers.{layer}.mlp.{name}");
        let source = self.find(donor, &name, &stored, problems)?;
        let whole = rows.len() == stored[0];
        Some(ExpertMatrix {
            whole,
            ..self.cut(source, rows, stored[1])
        })
    }

    /// Rows of a matrix, unchanged.
    pub(super) fn cut(
        &self,
        source: SourceTensor,
        rows: Range<usize>,
        columns: usize,
    ) -> ExpertMatrix {
        let shape = [rows.len(), columns];
        ExpertMatrix {
            part: MatrixPart {
                source,
                rows: rows.into(),
                columns: (0..columns).into(),
                ratio: None,
                scale: 1.0,
            },
            shape,
            whole: false,
            segment: Segment::plain((shape[0] * shape[1]) as u64),
        }
    }

    /// A tensor that consists of one piece: copied, converted or computed.
    pub(super) fn one(&self, name: String, piece: ExpertMatrix) -> PlannedTensor {
        let entry = self.entry(piece.part.source);
        let stored = FloatType::from_dtype(entry.dtype);
        let bytes =
            self.models.checkpoints[piece.part.source.model].bytes(piece.part.source.tensor);
        let same = stored.map(FloatType::dtype) == Some(self.main) && bytes.is_some();
        if !(piece.whole && piece.segment.is_plain()) {
            let shape = piece.shape.into();
            return self.join(name, vec![piece], shape);
        }
        let operation = match same {
            true => Operation::Copy,
            false => Operation::convert(),
        };
        let (shape, sources) = (piece.shape.into(), vec![piece.part.source]);
        PlannedTensor::plain(name, self.main, shape, sources, operation)
    }

    /// A tensor that consists of pieces, one after another; an empty `shape` stands for that of the first piece.
    pub(super) fn join(
        &self,
        name: String,
        pieces: Vec<ExpertMatrix>,
        shape: Vec<usize>,
    ) -> PlannedTensor {
        let shape = match shape.is_empty() {
            true => pieces
                .first()
                .map_or(Vec::new(), |piece| piece.shape.into()),
            false => shape,
        };
        let segments: Vec<Segment> = pieces.iter().map(|piece| piece.segment.clone()).collect();
        let parts: Vec<MatrixPart> = pieces.into_iter().map(|piece| piece.part).collect();
        let operation = Operation::Compute {
            name: EXPERT,
            program: Box::new(Adjust(segments.into())),
        };
        let sources = parts.first().map(|part| part.source).into_iter().collect();
        PlannedTensor {
            views: vec![Some(View::Parts(parts))],
            ..PlannedTensor::plain(name, self.main, shape, sources, operation)
        }
    }

    pub(super) fn entry(&self, source: SourceTensor) -> &'a TensorEntry {
        &self.models.checkpoints[source.model].tensors()[source.tensor]
    }

    /// Finds a donor's tensor of this name, of this shape and of floats; adds a problem otherwise.
    pub(super) fn find(
        &self,
        donor: &Donor<'_>,
        name: &str,
        shape: &[usize],
        problems: &mut Problems,
    ) -> Option<SourceTensor> {
        let model = &self.models.checkpoints[donor.model];
        let Some(tensor) = model.find(name) else {
            self.lacks(donor.model, donor.at, name, problems);
            return None;
        };
        let entry = &model.tensors()[tensor];
        if entry.shape != shape {
            self.has_shape(donor.model, donor.at, entry, shape, problems);
            return None;
        }
        if FloatType::from_dtype(entry.dtype).is_none() {
            let message = format!(
                "`{name}` of `{}` holds {:?}, expected floats",
                model.label(),
                entry.dtype
            );
            problems.add(donor.at, message, None);
            return None;
        }
        Some(SourceTensor {
            model: donor.model,
            tensor,
        })
    }

    pub(super) fn lacks(
        &self,
        model: usize,
        at: Option<Position>,
        name: &str,
        problems: &mut Problems,
    ) {
        let label = self.models.label(model);
        let message = format!("`{label}` has no `{name}`");
        let hint = "the checkpoint is incomplete, or its config is of another model: look at it with `weld check`";
        problems.add(at, message, Some(hint.to_owned()));
    }

    pub(super) fn has_shape(
        &self,
        model: usize,
        at: Option<Position>,
        entry: &TensorEntry,
        expected: &[usize],
        problems: &mut Problems,
    ) {
        let message = format!(
            "`{}` of `{}` has shape {:?}, expected {expected:?} by its config",
            entry.name,
            self.models.label(model),
            entry.shape
        );
        problems.add(at, message, None);
    }

    /// What happens to each tensor of each model.
    ///
    /// In the model `tied`, the output head is a copy of the embedding.
    pub(super) fn usages(
        &self,
        planned: &[PlannedTensor],
        tied: Option<usize>,
    ) -> Vec<Vec<TensorUsage>> {
        let mut used: HashMap<SourceTensor, usize> = HashMap::new();
        for tensor in planned {
            // The first part of a view is also listed as a source.
            let mut inputs: Vec<&SourceTensor> = tensor.inputs().collect();
            inputs.sort_unstable();
            inputs.dedup();
            for input in inputs {
                *used.entry(*input).or_default() += 1;
            }
        }
        let usage = |model: usize, tensor: usize, name: &str| match used
            .get(&SourceTensor { model, tensor })
        {
            Some(count) => TensorUsage::Used(*count),
            None if is_derived_buffer(name) => TensorUsage::DerivedBuffer,
            None if Some(model) == tied && is_output_head(name) => TensorUsage::TiedCopy,
            None => TensorUsage::NotTaken,
        };
        let of_model = |(model, checkpoint): (usize, &Arc<Checkpoint>)| {
            let tensors = checkpoint.tensors().iter().enumerate();
            tensors
                .map(|(tensor, entry)| usage(model, tensor, &entry.name))
                .collect()
        };
        self.models
            .checkpoints
            .iter()
            .enumerate()
            .map(of_model)
            .collect()
    }
}

/// A model that matrices are taken from, and where the recipe names it.
pub(super) struct Donor<'a> {
    pub(super) model: usize,
    pub(super) at: Option<Position>,
    pub(super) dense: &'a Dense,
}

/// The layer's number in a tensor's name, and the part of the name that follows it.
pub(super) fn layer_of(name: &str) -> Option<(usize, &str)> {
    let (number, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    Some((module_index(number)?, rest))
}
