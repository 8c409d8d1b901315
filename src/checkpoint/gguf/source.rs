//! The tensors of a model in GGUF, over those of its files as they are stored.

use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;

use super::super::behind::Reclaim;
use super::super::remote::RemotePlace;
use super::super::shard::Shard;
use super::super::source::{EncodedTensor, StoredPart, TensorEntry, TensorSource};
use super::kind::Kind;
use super::tensors::{From, Named};
use numeric::{
    Blocks, Elements, Fill, FloatType, Joined, NoMemory, Picks, Real, Shifted, Submatrix,
};

/// The most elements of a tensor that is looked at to find out whether a narrower dtype holds it: norms, biases and
/// routers, which writers widen.
const MOST_LOOKED_AT: u64 = 1 << 22;

/// Elements that are looked at at a time.
const PIECE: usize = 1 << 14;

/// A tensor of a file as it is stored.
#[derive(Debug, Clone)]
pub(super) struct StoredTensor {
    pub(super) kind: Kind,
    pub(super) shape: Vec<usize>,
}

/// The tensors of a model.
#[derive(Debug)]
pub(super) struct GgufValues {
    base: Arc<dyn TensorSource>,
    stored: Vec<StoredTensor>,
    entries: Vec<TensorEntry>,
    from: Vec<Named>,
    /// How a tensor is stored, in words, where it is in blocks.
    schemes: Vec<Option<String>>,
}

/// Values that are to be written in a format.
struct Typed<'a> {
    values: Box<dyn Elements + 'a>,
    format: FloatType,
}

impl<R: Real> Fill<R> for Typed<'_> {
    fn fill(&self, first: u64, out: &mut [R]) -> Result<usize, NoMemory> {
        R::fill(self.values.as_ref(), first, out)
    }
}

impl Elements for Typed<'_> {
    fn format(&self) -> FloatType {
        self.format
    }
}

impl GgufValues {
    /// The tensors of a model over those of its files. What is in blocks has the dtype `narrow`; so have F32 tensors
    /// whose values it holds exactly, as writers widen them.
    pub(super) fn new(
        base: Arc<dyn TensorSource>,
        stored: Vec<StoredTensor>,
        from: Vec<Named>,
        narrow: Dtype,
    ) -> GgufValues {
        let mut values = GgufValues {
            base,
            stored,
            entries: Vec::with_capacity(from.len()),
            from,
            schemes: Vec::new(),
        };
        for index in 0..values.from.len() {
            let kind = values.kind(index);
            let (dtype, scheme) = match kind {
                Kind::Blocks(format) => (narrow, Some(format!("{format:?} of GGUF"))),
                Kind::Plain(Dtype::F32) if values.fits(index, narrow) => (narrow, None),
                Kind::Plain(dtype) => (dtype, None),
            };
            let named = &values.from[index];
            let count: u64 = named.shape.iter().map(|&size| size as u64).product();
            let entry = TensorEntry {
                name: named.name.clone(),
                dtype,
                stored: match kind {
                    Kind::Plain(dtype) => dtype,
                    Kind::Blocks(_) => Dtype::U8,
                },
                shape: named.shape.clone(),
                len: count * (dtype.bitsize() / 8) as u64,
            };
            values.entries.push(entry);
            values.schemes.push(scheme);
        }
        values
    }

    /// The tensors of the file that one is read from.
    fn tensors(&self, index: usize) -> Vec<usize> {
        match &self.from[index].from {
            From::Whole(tensor) | From::Rows { tensor, .. } => vec![*tensor],
            From::Runs(runs) => {
                let mut tensors: Vec<usize> = runs.iter().map(|(tensor, _)| *tensor).collect();
                tensors.sort_unstable();
                tensors.dedup();
                tensors
            }
        }
    }

    /// How it is stored: of several tensors, that in blocks, or the widest.
    fn kind(&self, index: usize) -> Kind {
        let kinds = self
            .tensors(index)
            .into_iter()
            .map(|tensor| self.stored[tensor].kind);
        let widest = kinds.reduce(|one, other| match (one, other) {
            (Kind::Blocks(_), _) => one,
            (_, Kind::Blocks(_)) => other,
            (Kind::Plain(a), Kind::Plain(b)) if a != b => Kind::Plain(Dtype::F32),
            (one, _) => one,
        });
        widest.unwrap_or(Kind::Plain(Dtype::F32))
    }

    /// The values of a tensor of the file.
    fn of_file(&self, tensor: usize) -> Option<Box<dyn Elements + '_>> {
        match self.stored[tensor].kind {
            Kind::Plain(_) => self.base.elements(tensor),
            Kind::Blocks(format) => {
                let blocks = Blocks::new(self.base.bytes(tensor)?, format)?;
                Some(Box::new(blocks))
            }
        }
    }

    fn values(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        let Named { from, offset, .. } = &self.from[index];
        let values: Box<dyn Elements + '_> = match from {
            From::Whole(tensor) => self.of_file(*tensor)?,
            From::Rows {
                tensor,
                columns,
                picks,
            } => Box::new(Joined::new(vec![Submatrix {
                matrix: self.of_file(*tensor)?,
                width: *columns,
                rows: Picks::List {
                    picks: Arc::clone(picks),
                    of: picks.len(),
                },
                columns: Picks::Range(0..*columns),
                factors: None,
            }])),
            From::Runs(runs) => {
                let run = |(tensor, range): &(usize, Range<u64>)| {
                    let width = self.stored[*tensor]
                        .shape
                        .last()
                        .copied()
                        .filter(|&width| width > 0)?;
                    let rows = range.start as usize / width..range.end as usize / width;
                    Some(Submatrix {
                        matrix: self.of_file(*tensor)?,
                        width,
                        rows: Picks::Range(rows),
                        columns: Picks::Range(0..width),
                        factors: None,
                    })
                };
                let runs: Option<Vec<Submatrix<'_>>> = runs.iter().map(run).collect();
                Box::new(Joined::new(runs?))
            }
        };
        Some(match *offset == 0.0 {
            true => values,
            false => Box::new(Shifted {
                values,
                by: -offset,
            }),
        })
    }

    /// Whether a dtype holds all values of a tensor exactly; only small ones are looked at.
    fn fits(&self, index: usize, dtype: Dtype) -> bool {
        let count: u64 = self.from[index]
            .shape
            .iter()
            .map(|&size| size as u64)
            .product();
        let Some(format) = FloatType::from_dtype(dtype).filter(|&format| format != FloatType::F32)
        else {
            return false;
        };
        let Some(values) = self.values(index).filter(|_| count <= MOST_LOOKED_AT) else {
            return false;
        };
        let mut first = 0;
        let (mut read, mut again) = (vec![0f32; PIECE], vec![0f32; PIECE]);
        let mut bytes = vec![0; PIECE * format.size()];
        while first < count {
            let len = (count - first).min(PIECE as u64) as usize;
            let (read, again) = (&mut read[..len], &mut again[..len]);
            if f32::fill(values.as_ref(), first, read).is_err() {
                return false;
            }
            let bytes = &mut bytes[..len * format.size()];
            format.encode(&mut read.to_vec(), false, bytes);
            format.decode(bytes, again);
            if read
                .iter()
                .zip(again)
                .any(|(one, other)| one.to_bits() != other.to_bits())
            {
                return false;
            }
            first += len as u64;
        }
        true
    }

    /// The tensor of the file, and its range of elements, if its bytes are the values.
    fn plain(&self, index: usize) -> Option<(usize, Range<u64>)> {
        let Named { from, offset, .. } = &self.from[index];
        let (tensor, range) = match from {
            From::Whole(tensor) => (*tensor, 0..self.entries[index].elements()),
            From::Runs(runs) if runs.len() == 1 => runs[0].clone(),
            _ => return None,
        };
        let as_stored = self.stored[tensor].kind == Kind::Plain(self.entries[index].dtype);
        (as_stored && *offset == 0.0).then_some((tensor, range))
    }

    /// The same as bytes.
    fn plain_bytes(&self, index: usize) -> Option<(usize, Range<u64>)> {
        let (tensor, range) = self.plain(index)?;
        let size = (self.entries[index].dtype.bitsize() / 8) as u64;
        Some((tensor, range.start * size..range.end * size))
    }
}

impl TensorSource for GgufValues {
    fn base(&self) -> Option<&dyn TensorSource> {
        Some(self.base.as_ref())
    }

    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        let format = FloatType::from_dtype(self.entries[index].dtype)?;
        if self.plain(index).is_some() && matches!(self.from[index].from, From::Whole(_)) {
            return self.base.elements(self.tensors(index)[0]);
        }
        let values = self.values(index)?;
        Some(Box::new(Typed { values, format }))
    }

    fn bytes(&self, index: usize) -> Option<&[u8]> {
        let (tensor, range) = self.plain_bytes(index)?;
        self.base
            .bytes(tensor)?
            .get(range.start as usize..range.end as usize)
    }

    fn encoded(&self, index: usize) -> Option<EncodedTensor<'_>> {
        let scheme = self.schemes[index].as_deref()?;
        let part = |tensor: usize| {
            let entry = &self.base.entries()[tensor];
            StoredPart {
                name: &entry.name,
                dtype: entry.dtype,
                shape: &entry.shape,
                bytes: self.base.bytes(tensor),
            }
        };
        Some(EncodedTensor {
            name: &self.entries[index].name,
            scheme,
            is_fp8: false,
            is_mxfp4: false,
            parts: self.tensors(index).into_iter().map(part).collect(),
        })
    }

    fn as_stored(&self) -> Option<Arc<dyn TensorSource>> {
        Some(Arc::clone(&self.base))
    }

    fn bytes_read(&self, index: usize) -> u64 {
        let parts = match &self.from[index].from {
            From::Runs(runs) => runs.clone(),
            _ => return self.base.bytes_read(self.tensors(index)[0]),
        };
        let read = parts.into_iter().map(|(tensor, range)| {
            let count: u64 = self.stored[tensor]
                .shape
                .iter()
                .map(|&size| size as u64)
                .product();
            let share = (range.end - range.start) as f64 / count.max(1) as f64;
            (self.base.bytes_read(tensor) as f64 * share) as u64
        });
        read.sum()
    }

    fn place(&self, index: usize) -> Option<(&Shard, u64)> {
        let (tensor, range) = match self.plain_bytes(index) {
            Some(plain) => plain,
            None => (*self.tensors(index).first()?, 0..0),
        };
        let (shard, offset) = self.base.place(tensor)?;
        Some((shard, offset + range.start))
    }

    fn remote(&self, index: usize) -> Vec<RemotePlace> {
        let tensors = self.tensors(index).into_iter();
        tensors
            .flat_map(|tensor| self.base.remote(tensor))
            .collect()
    }

    fn release(&self, index: usize, bytes: Range<u64>, reclaim: Reclaim) {
        if let Some((tensor, own)) = self.plain_bytes(index) {
            self.base.release(
                tensor,
                own.start + bytes.start..own.start + bytes.end,
                reclaim,
            );
        }
    }
}
