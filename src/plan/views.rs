//! What is read in place of a source: rows by token, or parts of matrices put together.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::{Plan, PlannedTensor, SourceTensor};
use checkpoint::Checkpoint;
use numeric::{Elements, FloatType, Gather, HConcat, Joined, Picks, RowMap, Submatrix};

/// What is read in place of a source.
#[derive(Debug, Clone)]
pub enum View {
    /// Rows of several tensors, when tokens are aligned.
    StackedRows(StackedRows),
    /// Parts of matrices, one below the other.
    Parts(Vec<MatrixPart>),
    /// Parts of matrices with the same number of rows, side by side.
    HConcat(Vec<MatrixPart>),
    /// One of the stored tensors that the source's values are made of, by its number: codes or scales, which are copied.
    Stored(usize),
}

/// Rows of several tensors in place of one source.
#[derive(Debug, Clone)]
pub struct StackedRows {
    /// The tensors that the map refers to; the first is the source itself.
    pub parts: Vec<SourceTensor>,
    /// Where each row comes from.
    pub map: Arc<RowMap>,
    /// Elements per row.
    pub width: usize,
}

/// Some rows and columns of a matrix.
#[derive(Debug, Clone)]
pub struct MatrixPart {
    /// The matrix.
    pub source: SourceTensor,
    /// Which rows.
    pub rows: Cut,
    /// Which columns.
    pub columns: Cut,
    /// What each column is multiplied by.
    pub ratio: Option<ColumnRatio>,
    /// The factor of all its elements.
    pub scale: f64,
}

/// Which rows or columns of a matrix: known, or decided when the plan is run.
#[derive(Debug, Clone)]
pub enum Cut {
    /// These.
    Known(Picks),
    /// Some of those that are decided at the start of the run, before any of them is read.
    Late {
        /// All of them.
        picks: LatePicks,
        /// Which of them.
        range: Range<usize>,
        /// The offset that is added to their numbers.
        first: usize,
        /// How many rows or columns the matrix has.
        of: usize,
    },
}

/// Row numbers that depend on the weights.
#[derive(Debug, Clone, Default)]
pub struct LatePicks(Arc<OnceLock<Vec<u32>>>);

impl LatePicks {
    /// Sets the numbers; a second call has no effect.
    pub fn decide(&self, picks: Vec<u32>) {
        let _ = self.0.set(picks);
    }
}

impl From<Range<usize>> for Cut {
    fn from(range: Range<usize>) -> Self {
        Cut::Known(Picks::Range(range))
    }
}

impl Cut {
    fn len(&self) -> usize {
        match self {
            Cut::Known(picks) => picks.len(),
            Cut::Late { range, .. } => range.len(),
        }
    }

    /// The rows or columns; `None` if they are not decided yet.
    fn picks(&self) -> Option<Picks> {
        match self {
            Cut::Known(picks) => Some(picks.clone()),
            Cut::Late {
                picks,
                range,
                first,
                of,
            } => {
                let picks = picks.0.get()?.get(range.clone())?.iter();
                Some(Picks::List {
                    picks: picks.map(|pick| *first as u32 + pick).collect(),
                    of: *of,
                })
            }
        }
    }
}

/// Two vectors with one element per column of a matrix: a column is multiplied by the element of the first and divided
/// by that of the second.
#[derive(Debug, Clone, Copy)]
pub struct ColumnRatio {
    /// The vector to multiply by.
    pub over: SourceTensor,
    /// The vector to divide by.
    pub under: SourceTensor,
    /// Added to the elements of both.
    pub offset: f64,
}

impl View {
    /// The tensors that it reads in place of the source.
    pub fn inputs(&self) -> Vec<&SourceTensor> {
        match self {
            View::Stored(_) => Vec::new(),
            View::StackedRows(rows) => rows.parts.iter().collect(),
            View::Parts(parts) | View::HConcat(parts) => {
                let ratios = parts.iter().filter_map(|part| part.ratio.as_ref());
                let vectors = ratios.flat_map(|ratio| [&ratio.over, &ratio.under]);
                parts
                    .iter()
                    .map(|part| &part.source)
                    .chain(vectors)
                    .collect()
            }
        }
    }

    /// The most bytes that one pass over it reads in place of a source.
    pub(super) fn bytes_read(&self, source: SourceTensor, models: &[Arc<Checkpoint>]) -> u64 {
        let format = |part: &SourceTensor| {
            FloatType::from_dtype(models[part.model].tensors()[part.tensor].dtype)
                .map_or(0, FloatType::size)
        };
        match self {
            View::Stored(part) => {
                let stored = models[source.model].encoded(source.tensor);
                let bytes = stored.and_then(|stored| stored.parts.get(*part)?.bytes);
                bytes.map_or(0, |bytes| bytes.len() as u64)
            }
            View::StackedRows(rows) => {
                let widest = rows.parts.iter().map(format).max().unwrap_or(0);
                rows.map.reads() * (rows.width * widest) as u64
            }
            View::Parts(parts) | View::HConcat(parts) => parts
                .iter()
                .map(|part| part.elements_read() * format(&part.source) as u64)
                .sum(),
        }
    }
}

impl MatrixPart {
    /// Elements that are read: the whole row if single columns are picked from it.
    fn elements_read(&self) -> u64 {
        let columns = match &self.columns {
            Cut::Known(Picks::Range(range)) => range.len(),
            Cut::Known(Picks::List { of, .. }) | Cut::Late { of, .. } => *of,
        };
        (self.rows.len() * columns) as u64
    }
}

impl PlannedTensor {
    /// The tensors that are read for it: its sources, and those read in place of them.
    pub fn inputs(&self) -> impl Iterator<Item = &SourceTensor> {
        let views = self.views.iter().flatten();
        self.sources.iter().chain(views.flat_map(View::inputs))
    }
}

impl Plan {
    /// The values of a source: its tensor, or what is read in its place; `None` for integers and bools.
    pub fn source_values(
        &self,
        tensor: &PlannedTensor,
        source: usize,
    ) -> Option<Box<dyn Elements + '_>> {
        let stored = tensor.sources.get(source)?;
        match tensor.views.get(source) {
            None | Some(None) => self.elements(stored),
            // Codes are copied, and no method computes with them.
            Some(Some(View::Stored(_))) => None,
            Some(Some(View::StackedRows(rows))) => {
                let parts = rows.parts.iter().map(|part| self.elements(part));
                let parts = parts.collect::<Option<Vec<_>>>()?;
                Some(Box::new(Gather::new(
                    parts,
                    Arc::clone(&rows.map),
                    rows.width,
                )))
            }
            Some(Some(View::Parts(parts))) => {
                let parts = parts.iter().map(|part| self.part(part));
                Some(Box::new(Joined::new(parts.collect::<Option<Vec<_>>>()?)))
            }
            Some(Some(View::HConcat(parts))) => {
                let parts = parts.iter().map(|part| self.part(part));
                Some(Box::new(HConcat::new(parts.collect::<Option<Vec<_>>>()?)))
            }
        }
    }

    /// The bytes of a source that is copied: its tensor, or what is read in its place.
    pub fn copied(&self, tensor: &PlannedTensor, source: usize) -> Option<&[u8]> {
        let of = tensor.sources.get(source)?;
        match tensor.views.get(source) {
            None | Some(None) => self.bytes(of),
            Some(Some(View::Stored(part))) => {
                let stored = self.models.get(of.model)?.encoded(of.tensor)?;
                stored.parts.get(*part)?.bytes
            }
            Some(Some(_)) => None,
        }
    }

    fn part(&self, part: &MatrixPart) -> Option<Submatrix<'_>> {
        let SourceTensor { model, tensor } = part.source;
        let entry = self.models.get(model)?.tensors().get(tensor)?;
        let width = entry.shape.last().copied().unwrap_or(1);
        let mut factors = match &part.ratio {
            None => None,
            Some(ratio) => {
                let (over, under) = (self.vector(&ratio.over)?, self.vector(&ratio.under)?);
                let pairs = over.iter().zip(&under);
                let factor =
                    |(over, under): (&f64, &f64)| (over + ratio.offset) / (under + ratio.offset);
                Some(pairs.map(factor).collect())
            }
        };
        if part.scale != 1.0 {
            let factors: &mut Vec<f64> = factors.get_or_insert_with(|| vec![1.0; width]);
            factors.iter_mut().for_each(|factor| *factor *= part.scale);
        }
        Some(Submatrix {
            matrix: self.elements(&part.source)?,
            width,
            rows: part.rows.picks()?,
            columns: part.columns.picks()?,
            factors,
        })
    }

    /// All values of a tensor that is a vector.
    fn vector(&self, source: &SourceTensor) -> Option<Vec<f64>> {
        let entry = self
            .models
            .get(source.model)?
            .tensors()
            .get(source.tensor)?;
        let mut values = vec![0.0; usize::try_from(entry.elements()).ok()?];
        let elements = self.elements(source)?;
        numeric::Fill::<f64>::fill(elements.as_ref(), 0, &mut values).ok()?;
        Some(values)
    }
}
