//! The source of the values that codes and scales make.

use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;

use super::super::behind::Reclaim;
use super::super::remote::RemotePlace;
use super::super::shard::Shard;
use super::super::source::{EncodedTensor, StoredPart, TensorEntry, TensorSource};
use numeric::{
    Coded, Codes, Constant, E2M1, Elements, FloatType, Grid, Meaning, Packing, Powers, Quotient,
    Scaled, Shifted, Zeros,
};

/// A tensor of values, and the stored tensors that it is made of, each by its number.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) entry: TensorEntry,
    pub(super) storage: Storage,
    /// Tensors that only say how others are stored.
    pub(super) beside: Vec<usize>,
    /// How it is stored, in words; empty if as it is.
    pub(super) scheme: String,
}

/// How the values of a tensor are stored.
#[derive(Debug)]
pub(super) enum Storage {
    /// As they are.
    Plain(usize),
    /// 8-bit floats, each times the scale of its block.
    Scaled {
        values: usize,
        scales: Scales,
        /// The shape of the matrices.
        rows: usize,
        columns: usize,
        block: [usize; 2],
    },
    /// Codes with a scale for each group.
    Coded(Box<CodedTensor>),
}

/// Codes with a scale for each group; see [`Coded`].
#[derive(Debug)]
pub(super) struct CodedTensor {
    pub(super) codes: StoredCodes,
    pub(super) scales: Scales,
    pub(super) grid: Grid,
    /// The zeros of groups, and whether a row of their codes is a group of columns.
    pub(super) zeros: Option<(StoredCodes, bool)>,
    pub(super) groups: Option<usize>,
}

/// The codes that a tensor holds.
#[derive(Debug)]
pub(super) struct StoredCodes {
    pub(super) tensor: usize,
    pub(super) bits: u32,
    pub(super) packing: Packing,
    /// Matrices, rows, columns.
    pub(super) shape: [usize; 3],
    pub(super) meaning: Stands,
}

/// The number that a code stands for.
#[derive(Debug)]
pub(super) enum Stands {
    Signed,
    Plus(i32),
    E2m1,
    Table(Vec<f32>),
}

/// Where scales come from.
#[derive(Debug)]
pub(super) enum Scales {
    /// Floats.
    Floats(usize),
    /// Exponents of two.
    Powers(usize),
    /// Floats, divided by a number.
    Divided(usize, f64),
    /// Floats, divided by the one number that a second tensor holds.
    Quotient(usize, usize),
    /// Codes with scales of their own, and a number added to all.
    Nested(Box<CodedTensor>, f32),
}

impl StoredCodes {
    /// Whether the tensor's bytes hold so many codes, as far as that is known without them.
    pub(super) fn fits(&self, bytes: &[u8]) -> bool {
        Codes::new(bytes, self.bits, self.packing, self.shape).is_some()
    }

    fn codes<'a>(&self, base: &'a dyn TensorSource) -> Option<Codes<'a>> {
        Codes::new(
            base.bytes(self.tensor)?,
            self.bits,
            self.packing,
            self.shape,
        )
    }

    fn meaning(&self) -> Meaning<'_> {
        match &self.meaning {
            Stands::Signed => Meaning::Signed,
            Stands::Plus(more) => Meaning::Plus(*more),
            Stands::E2m1 => Meaning::Table(&E2M1),
            Stands::Table(table) => Meaning::Table(table),
        }
    }
}

impl Scales {
    fn elements<'a>(&'a self, base: &'a dyn TensorSource) -> Option<Box<dyn Elements + 'a>> {
        Some(match self {
            Scales::Floats(at) => base.elements(*at)?,
            Scales::Powers(at) => Box::new(Powers(base.bytes(*at)?)),
            Scales::Divided(of, by) => Box::new(Quotient {
                of: base.elements(*of)?,
                by: Box::new(Constant(*by)),
            }),
            Scales::Quotient(of, by) => Box::new(Quotient {
                of: base.elements(*of)?,
                by: base.elements(*by)?,
            }),
            Scales::Nested(coded, by) => Box::new(Shifted {
                values: Box::new(coded.elements(base, FloatType::F32)?),
                by: *by,
            }),
        })
    }

    fn tensors(&self) -> Vec<usize> {
        match self {
            Scales::Floats(at) | Scales::Powers(at) | Scales::Divided(at, _) => vec![*at],
            Scales::Quotient(of, by) => vec![*of, *by],
            Scales::Nested(coded, _) => coded.tensors(),
        }
    }
}

impl CodedTensor {
    fn elements<'a>(&'a self, base: &'a dyn TensorSource, format: FloatType) -> Option<Coded<'a>> {
        let zeros = match &self.zeros {
            None => None,
            Some((codes, by_group)) => Some(Zeros {
                codes: codes.codes(base)?,
                meaning: codes.meaning(),
                by_group: *by_group,
            }),
        };
        let groups = match self.groups {
            None => None,
            Some(groups) => Some(base.bytes(groups)?),
        };
        Some(Coded {
            codes: self.codes.codes(base)?,
            meaning: self.codes.meaning(),
            scales: self.scales.elements(base)?,
            grid: self.grid,
            zeros,
            groups,
            format,
        })
    }

    fn tensors(&self) -> Vec<usize> {
        let zeros = self.zeros.iter().map(|(codes, _)| codes.tensor);
        let own = [self.codes.tensor].into_iter().chain(zeros);
        own.chain(self.groups)
            .chain(self.scales.tensors())
            .collect()
    }
}

impl Storage {
    /// The tensors that the values are made of, that of the values or codes first.
    pub(super) fn tensors(&self) -> Vec<usize> {
        match self {
            Storage::Plain(at) => vec![*at],
            Storage::Scaled { values, scales, .. } => {
                let mut tensors = vec![*values];
                tensors.extend(scales.tensors());
                tensors
            }
            Storage::Coded(coded) => coded.tensors(),
        }
    }

    fn first(&self) -> usize {
        match self {
            Storage::Plain(at) | Storage::Scaled { values: at, .. } => *at,
            Storage::Coded(coded) => coded.codes.tensor,
        }
    }
}

/// The tensors of a quantised checkpoint, as the values that its codes and scales make.
#[derive(Debug)]
pub(super) struct Dequantised {
    base: Arc<dyn TensorSource>,
    entries: Vec<TensorEntry>,
    stored: Vec<HowStored>,
    left_out: usize,
}

/// How a tensor is stored; see [`Decoded`].
#[derive(Debug)]
struct HowStored {
    storage: Storage,
    beside: Vec<usize>,
    scheme: String,
}

impl Dequantised {
    /// The values of `base` that its tensors make, but for `left_out` of them.
    pub(super) fn new(
        base: Arc<dyn TensorSource>,
        decoded: Vec<Decoded>,
        left_out: usize,
    ) -> Dequantised {
        let tensors = decoded.into_iter().map(|one| {
            let stored = HowStored {
                storage: one.storage,
                beside: one.beside,
                scheme: one.scheme,
            };
            (one.entry, stored)
        });
        let (entries, stored) = tensors.unzip();
        Dequantised {
            base,
            entries,
            stored,
            left_out,
        }
    }

    fn storage(&self, index: usize) -> &Storage {
        &self.stored[index].storage
    }

    /// Whether these are FP8 with scales in floats.
    fn is_fp8(&self, storage: &Storage) -> bool {
        match storage {
            Storage::Scaled {
                values,
                scales: Scales::Floats(_),
                ..
            } => self.base.entries()[*values].dtype == Dtype::F8_E4M3,
            _ => false,
        }
    }

    /// The stored tensor, if its values are stored as they are.
    fn plain(&self, index: usize) -> Option<usize> {
        match *self.storage(index) {
            Storage::Plain(at) => Some(at),
            _ => None,
        }
    }

    fn format(&self, index: usize) -> FloatType {
        FloatType::from_dtype(self.entries[index].dtype).unwrap_or(FloatType::Bf16)
    }
}

impl TensorSource for Dequantised {
    fn base(&self) -> Option<&dyn TensorSource> {
        Some(self.base.as_ref())
    }

    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        let base = self.base.as_ref();
        Some(match self.storage(index) {
            Storage::Plain(at) => base.elements(*at)?,
            Storage::Scaled {
                values,
                scales,
                rows,
                columns,
                block,
            } => Box::new(Scaled {
                values: base.elements(*values)?,
                scales: scales.elements(base)?,
                rows: *rows,
                columns: *columns,
                block: *block,
                format: self.format(index),
            }),
            Storage::Coded(coded) => Box::new(coded.elements(base, self.format(index))?),
        })
    }

    fn bytes(&self, index: usize) -> Option<&[u8]> {
        self.base.bytes(self.plain(index)?)
    }

    fn stored(&self, index: usize) -> Option<&[u8]> {
        self.base.stored(self.plain(index)?)
    }

    fn encoded(&self, index: usize) -> Option<EncodedTensor<'_>> {
        if self.plain(index).is_some() {
            return None;
        }
        let HowStored {
            storage,
            beside,
            scheme,
        } = &self.stored[index];
        let mut tensors = storage.tensors();
        tensors.extend(beside);
        tensors.sort_unstable();
        tensors.dedup();
        let part = |at: usize| {
            let entry = &self.base.entries()[at];
            StoredPart {
                name: &entry.name,
                dtype: entry.dtype,
                shape: &entry.shape,
                bytes: self.base.bytes(at),
            }
        };
        Some(EncodedTensor {
            name: &self.entries[index].name,
            scheme,
            is_fp8: self.is_fp8(storage),
            is_mxfp4: is_mxfp4(storage),
            parts: tensors.into_iter().map(part).collect(),
        })
    }

    fn as_stored(&self) -> Option<Arc<dyn TensorSource>> {
        Some(Arc::clone(&self.base))
    }

    fn left_out(&self) -> usize {
        self.left_out
    }

    fn bytes_read(&self, index: usize) -> u64 {
        let tensors = self.storage(index).tensors().into_iter();
        tensors.map(|tensor| self.base.bytes_read(tensor)).sum()
    }

    fn place(&self, index: usize) -> Option<(&Shard, u64)> {
        self.base.place(self.storage(index).first())
    }

    fn remote(&self, index: usize) -> Vec<RemotePlace> {
        let tensors = self.storage(index).tensors().into_iter();
        tensors
            .flat_map(|tensor| self.base.remote(tensor))
            .collect()
    }

    /// Of values with scales, `bytes` is a range of the 8-bit floats; codes stay where they are.
    fn release(&self, index: usize, bytes: Range<u64>, reclaim: Reclaim) {
        match self.storage(index) {
            Storage::Plain(at) | Storage::Scaled { values: at, .. } => {
                self.base.release(*at, bytes, reclaim);
            }
            Storage::Coded(_) => {}
        }
    }
}

/// Whether it is MXFP4 by columns.
fn is_mxfp4(storage: &Storage) -> bool {
    let Storage::Coded(coded) = storage else {
        return false;
    };
    let CodedTensor {
        codes,
        scales,
        grid,
        ..
    } = coded.as_ref();
    let by_columns = matches!(codes.packing, Packing::Columns { .. });
    let are_powers = matches!(scales, Scales::Powers(_)) && (grid.height, grid.width) == (32, 1);
    by_columns && are_powers && matches!(codes.meaning, Stands::E2m1)
}

/// The dtypes of 8-bit floats.
pub(super) fn is_float8(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2)
}
