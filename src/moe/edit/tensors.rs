//! Decides the tensors of an edited mixture.

use std::collections::BTreeSet;

use super::super::adjust::Segment;
use super::super::mixture::Mixture;
use super::super::pieces::{Donor, ExpertMatrix, Pieces, Tensors, layer_of};
use super::super::router::{self, Synthesized};
use super::{Matrices, Row, Taken};
use architecture::Matrix;
use architecture::{Experts, Names};
use checkpoint::{Dtype, TensorEntry};
use numeric::{FloatType, NormalKey};
use plan::{Operation, PlannedTensor, Problems, SourceTensor};
use recipe::Position;

/// The name of the operation on the mixture's unchanged tensors in plans.
const KEPT: &str = "kept";

/// An edit of a mixture's tensors.
pub(super) struct Editing<'a> {
    pub(super) pieces: Pieces<'a>,
    pub(super) base: usize,
    pub(super) base_at: Option<Position>,
    pub(super) mixture: &'a Mixture,
    /// The names of routers and experts in the output.
    pub(super) names: Names,
    pub(super) taken: Vec<Taken<'a>>,
    pub(super) seed: u64,
}

impl Editing<'_> {
    pub(super) fn tensors(&self, problems: &mut Problems) -> Tensors {
        let mut out = Tensors::default();
        let model = &self.pieces.models.checkpoints[self.base];
        let mut done = BTreeSet::new();
        for (tensor, entry) in model.tensors().iter().enumerate() {
            let source = SourceTensor {
                model: self.base,
                tensor,
            };
            let layer = layer_of(&entry.name)
                .filter(|(layer, rest)| self.mixture.has(*layer) && self.is_of_experts(rest));
            match layer {
                Some((layer, _)) => {
                    if done.insert(layer) {
                        self.layer(layer, &mut out, problems);
                    }
                }
                None => out.planned.push(self.as_it_is(source, entry)),
            }
        }
        out.usages = self.pieces.usages(&out.planned, None);
        out
    }

    /// Whether a tensor belongs to one expert or has a row for each; `rest` is its name after the layer's prefix.
    fn is_of_experts(&self, rest: &str) -> bool {
        let names = self.mixture.names;
        let correction = self.mixture.target.mixture.correction.map(|bias| bias.name);
        rest == names.router
            || Some(rest) == correction
            || match names.experts {
                Experts::Each { prefix, .. } => rest.starts_with(prefix),
                Experts::Fused { input, output } => rest == *input || rest == *output,
            }
    }

    fn as_it_is(&self, source: SourceTensor, entry: &TensorEntry) -> PlannedTensor {
        let plain = Segment::plain(entry.elements());
        self.pieces
            .values(source, entry.name.clone(), entry, plain, KEPT)
    }

    /// The router and the experts of a layer.
    fn layer(&self, layer: usize, out: &mut Tensors, problems: &mut Problems) {
        let prefix = format!("model.layers.{layer}.");
        let place = out.routers.len();
        let router = format!("{prefix}{}", self.names.router);
        out.routers
            .push(format!("{prefix}{}", self.mixture.target.mixture.router));
        let row = |model: usize, mixture: &Mixture, expert: usize| {
            let name = format!("{prefix}{}", mixture.names.router);
            let tensor = self.pieces.models.checkpoints[model].find(&name)?;
            let source = SourceTensor { model, tensor };
            Some(
                self.pieces
                    .cut(source, expert..expert + 1, mixture.dense.hidden),
            )
        };
        let shape = vec![self.taken.len(), self.mixture.dense.hidden];
        let of_routers = (router, shape, self.mixture.dense.hidden);
        self.rows(of_routers, Synthesized::Rows(place), &row, out);
        if let Some(correction) = self.mixture.target.mixture.correction {
            let name = format!("{prefix}{}", correction.name);
            let bias = |model: usize, mixture: &Mixture, expert: usize| {
                let tensor = self.pieces.models.checkpoints[model].find(&name)?;
                let source = SourceTensor { model, tensor };
                let mut piece = self.pieces.cut(source, 0..1, 1);
                piece.part.columns = (expert..expert + 1).into();
                let elements = self.pieces.entry(source).elements();
                (elements == mixture.experts as u64).then_some(piece)
            };
            let shape = match correction.two_dimensions {
                true => vec![1, self.taken.len()],
                false => vec![self.taken.len()],
            };
            let of_corrections = (name.clone(), shape, 1);
            if bias(self.base, self.mixture, 0).is_some() {
                self.rows(of_corrections, Synthesized::Correction(place), &bias, out);
            } else {
                self.pieces.lacks(self.base, self.base_at, &name, problems);
            }
        }
        match self.names.experts {
            Experts::Each { .. } => {
                for (number, taken) in self.taken.iter().enumerate() {
                    for matrix in [Matrix::Gate, Matrix::Up, Matrix::Down] {
                        let name = format!("{prefix}{}", self.names.tensor(number, matrix));
                        let piece = self.piece(layer, number, taken, matrix, problems);
                        out.planned
                            .extend(piece.map(|piece| self.pieces.one(name, piece)));
                    }
                }
            }
            Experts::Fused { input, output } => {
                for (name, matrices) in [
                    (input, &[Matrix::Gate, Matrix::Up][..]),
                    (output, &[Matrix::Down][..]),
                ] {
                    self.fused(layer, format!("{prefix}{name}"), matrices, out, problems);
                }
            }
        }
    }

    /// A tensor with one row per expert, in the base's dtype unless the recipe asks for another.
    fn rows(
        &self,
        (name, shape, columns): (String, Vec<usize>, usize),
        made: Synthesized,
        row: &dyn Fn(usize, &Mixture, usize) -> Option<ExpertMatrix>,
        out: &mut Tensors,
    ) {
        let model = &self.pieces.models.checkpoints[self.base];
        let Some(own) = row(self.base, self.mixture, 0).map(|piece| piece.part.source.tensor)
        else {
            return;
        };
        let added = self.added();
        let synthesized = SourceTensor {
            model: self.pieces.synthesized,
            tensor: out.synthesized.len(),
        };
        if added > 0 {
            let entry = router::entry(name.clone(), vec![added, columns]);
            out.synthesized.push((entry, made));
        }
        let of = |taken: &Taken<'_>| match taken.row {
            Row::Of(model, mixture, expert) => row(model, mixture, expert),
            Row::Made(number) => Some(self.pieces.cut(synthesized, number..number + 1, columns)),
        };
        let Some(rows) = self
            .taken
            .iter()
            .map(of)
            .collect::<Option<Vec<ExpertMatrix>>>()
        else {
            return;
        };
        let stored = &model.tensors()[own];
        let exact =
            self.mixture.target.mixture.router_f32 || matches!(made, Synthesized::Correction(_));
        let float = FloatType::from_dtype(stored.dtype).map(FloatType::dtype);
        let dtype = match self.pieces.dtype.filter(|_| !exact) {
            Some(dtype) => dtype.dtype(),
            None => float.unwrap_or(Dtype::F32),
        };
        let planned = match self.unchanged() && dtype == stored.dtype {
            true => {
                let source = SourceTensor {
                    model: self.base,
                    tensor: own,
                };
                let operation = match model.bytes(own).is_some() {
                    true => Operation::Copy,
                    false => Operation::convert(),
                };
                PlannedTensor::plain(name, dtype, shape, vec![source], operation)
            }
            false => PlannedTensor {
                dtype,
                ..self.pieces.join(name, rows, shape)
            },
        };
        out.planned.push(planned);
    }

    /// Whether the output has exactly the base's experts, in their order.
    fn unchanged(&self) -> bool {
        let own = |(number, taken): (usize, &Taken<'_>)| matches!(taken.row, Row::Of(model, _, expert) if model == self.base && expert == number);
        self.taken.len() == self.mixture.experts && self.taken.iter().enumerate().all(own)
    }

    pub(super) fn added(&self) -> usize {
        let made = self
            .taken
            .iter()
            .filter(|taken| matches!(taken.row, Row::Made(_)));
        made.count()
    }

    /// A tensor that holds a matrix of every expert.
    fn fused(
        &self,
        layer: usize,
        name: String,
        matrices: &[Matrix],
        out: &mut Tensors,
        problems: &mut Problems,
    ) {
        let mut pieces = Vec::with_capacity(self.taken.len() * matrices.len());
        for (number, taken) in self.taken.iter().enumerate() {
            for matrix in matrices {
                pieces.extend(self.piece(layer, number, taken, *matrix, problems));
            }
        }
        let (hidden, width) = (self.mixture.dense.hidden, self.mixture.dense.width);
        let shape = match matrices {
            [Matrix::Down] => vec![self.taken.len(), hidden, width],
            _ => vec![self.taken.len(), 2 * width, hidden],
        };
        if pieces.len() == self.taken.len() * matrices.len() {
            out.planned.push(self.pieces.join(name, pieces, shape));
        }
    }

    /// A matrix of an expert, with the recipe's changes.
    fn piece(
        &self,
        layer: usize,
        number: usize,
        taken: &Taken<'_>,
        matrix: Matrix,
        problems: &mut Problems,
    ) -> Option<ExpertMatrix> {
        let at = Some(taken.at);
        let mut piece = match taken.matrices {
            Matrices::Mixture(model, mixture, expert) => {
                let dense = &mixture.dense;
                let donor = Donor { model, at, dense };
                mixture.expert(&self.pieces, &donor, layer, expert, matrix, problems)?
            }
            Matrices::Dense(model, dense) => {
                let donor = Donor { model, at, dense };
                self.pieces.piece(&donor, layer, matrix, problems)?
            }
        };
        let scales = (taken.member.noise_scale, taken.member.residual_scale);
        if let Some(deviation) = scales.0.filter(|deviation| *deviation > 0.0) {
            let name = format!("expert layer {layer} {}", matrix.name());
            piece.segment.noise = Some((NormalKey::new(self.seed, &name, number), deviation));
        }
        if matrix == Matrix::Down {
            piece.segment.scale = scales.1.unwrap_or(1.0);
        }
        Some(piece)
    }
}
