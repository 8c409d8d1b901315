//! Values stored as codes of a few bits with a scale for each group, computed as they are read: quantised weights.
//!
//! This file knows how codes can be packed and what makes a value of one. Which tensors of which format these are is
//! known where models are opened.

use super::elements::{Elements, Fill};
use super::format::FloatType;
use super::memory::NoMemory;
use super::real::Real;

/// Bits of the words that some formats pack their codes in.
const WORD_BITS: u64 = 32;

/// For each place in a word of eight codes, the output whose code AWQ puts there.
const AWQ_ORDER: [u64; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// How the codes of a matrix lie in bytes. `bits` is that of a code, a row is one of the matrix of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Row after row, each of `pitch` bits; the first code has the lowest bits of its byte.
    Rows {
        /// Bits from one row to the next.
        pitch: u64,
    },
    /// All codes one after the other; of two in a byte, the first has the high bits.
    HighFirst,
    /// Column after column, each of `pitch` bits; the first code has the lowest bits of its byte.
    Columns {
        /// Bits from one column to the next.
        pitch: u64,
    },
    /// Words of 32 bits hold consecutive codes of a row, the first in the lowest bits. The words of all rows for the same
    /// columns lie one after the other: GPTQ.
    Words,
    /// Words of 32 bits hold the codes of eight consecutive rows in the order of AWQ; the words of a column lie one after
    /// the other.
    Awq,
}

/// The codes of matrices of one shape, one matrix after the other.
#[derive(Debug, Clone, Copy)]
pub struct Codes<'a> {
    bytes: &'a [u8],
    bits: u32,
    packing: Packing,
    rows: u64,
    columns: u64,
}

impl<'a> Codes<'a> {
    /// The codes of `matrices` matrices of `rows` and `columns`, each of 1, 2, 4 or 8 bits. `None` if `bytes` are too few
    /// for them, or codes would not lie within a byte.
    pub fn new(
        bytes: &'a [u8],
        bits: u32,
        packing: Packing,
        [matrices, rows, columns]: [usize; 3],
    ) -> Option<Codes<'a>> {
        let (matrices, rows, columns) = (matrices as u64, rows as u64, columns as u64);
        let codes = Codes {
            bytes,
            bits,
            packing,
            rows,
            columns,
        };
        let within_bytes = match packing {
            Packing::Rows { pitch } | Packing::Columns { pitch } => {
                matches!(bits, 1 | 2 | 4 | 8) && pitch % u64::from(bits) == 0
            }
            Packing::Words => matches!(bits, 1 | 2 | 4 | 8),
            Packing::HighFirst | Packing::Awq => bits == 4,
        };
        if !within_bytes {
            return None;
        }
        let needed = codes.bits_of_one()?.checked_mul(matrices)?.div_ceil(8);
        (needed <= bytes.len() as u64).then_some(codes)
    }

    /// The bits that a matrix takes; `None` if they cannot be counted.
    fn bits_of_one(&self) -> Option<u64> {
        let (bits, rows, columns) = (u64::from(self.bits), self.rows, self.columns);
        match self.packing {
            Packing::Rows { pitch } => {
                let enough = pitch >= columns.checked_mul(bits)?;
                pitch.checked_mul(rows).filter(|_| enough)
            }
            Packing::Columns { pitch } => {
                let enough = pitch >= rows.checked_mul(bits)?;
                pitch.checked_mul(columns).filter(|_| enough)
            }
            Packing::HighFirst => rows.checked_mul(columns)?.checked_mul(bits),
            Packing::Words => {
                let words = columns.checked_mul(bits)?.div_ceil(WORD_BITS);
                words.checked_mul(rows)?.checked_mul(WORD_BITS)
            }
            Packing::Awq => {
                let words = rows.div_ceil(WORD_BITS / bits);
                words.checked_mul(columns)?.checked_mul(WORD_BITS)
            }
        }
    }

    /// The code of an element. It must be one of the matrices.
    #[inline(always)]
    fn at(&self, matrix: u64, row: u64, column: u64) -> u32 {
        let bits = u64::from(self.bits);
        let within = match self.packing {
            Packing::Rows { pitch } => row * pitch + column * bits,
            Packing::HighFirst => ((row * self.columns + column) * bits) ^ 4,
            Packing::Columns { pitch } => column * pitch + row * bits,
            Packing::Words => {
                let bit = column * bits;
                (bit / WORD_BITS * self.rows + row) * WORD_BITS + bit % WORD_BITS
            }
            Packing::Awq => {
                let word = column * self.rows.div_ceil(8) + row / 8;
                let place = AWQ_ORDER.iter().position(|&of| of == row % 8);
                word * WORD_BITS + place.unwrap_or_default() as u64 * 4
            }
        };
        let start = match self.packing {
            _ if matrix == 0 => 0,
            Packing::Rows { pitch } => matrix * self.rows * pitch,
            Packing::Columns { pitch } => matrix * self.columns * pitch,
            _ => matrix * self.bits_of_one().unwrap_or_default(),
        };
        let bit = start + within;
        let byte = self.bytes[(bit / 8) as usize];
        u32::from(byte) >> (bit % 8) & ((1 << self.bits) - 1)
    }
}

/// The number that a code stands for.
#[derive(Debug, Clone, Copy)]
pub enum Meaning<'a> {
    /// A whole number in two's complement.
    Signed,
    /// The code itself plus a number.
    Plus(i32),
    /// An entry of a table with one for each code.
    Table(&'a [f32]),
}

impl Meaning<'_> {
    #[inline(always)]
    fn of<R: Real>(self, code: u32, bits: u32) -> R {
        match self {
            Meaning::Signed => {
                let unused = 32 - bits;
                R::from_f32(((code << unused) as i32 >> unused) as f32)
            }
            Meaning::Plus(more) => R::from_f32((code as i32 + more) as f32),
            Meaning::Table(table) => R::from_f32(table[code as usize]),
        }
    }
}

/// Which scale an element has: `matrix * matrix_step + row / height * row_step + column / width * column_step`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Rows that share a scale; at least one.
    pub height: u64,
    /// Columns that share a scale; at least one.
    pub width: u64,
    /// Scales from one group of rows to the next.
    pub row_step: u64,
    /// Scales from one group of columns to the next.
    pub column_step: u64,
    /// Scales from one matrix to the next.
    pub matrix_step: u64,
}

/// The number that stands for zero in each group.
pub struct Zeros<'a> {
    /// The codes: a matrix of groups of columns and groups of rows.
    pub codes: Codes<'a>,
    /// What they stand for.
    pub meaning: Meaning<'a>,
    /// Whether a row of `codes` is a group of columns; otherwise it is a group of rows.
    pub by_group: bool,
}

/// Matrices of codes: a value is the number that its code stands for, less the zero of its group, times its scale.
pub struct Coded<'a> {
    /// The codes.
    pub codes: Codes<'a>,
    /// What they stand for.
    pub meaning: Meaning<'a>,
    /// The scales.
    pub scales: Box<dyn Elements + 'a>,
    /// Which scale an element has.
    pub grid: Grid,
    /// Where zero is not zero.
    pub zeros: Option<Zeros<'a>>,
    /// The group of each column, where groups are not runs of columns: I32, little-endian, each checked by whoever
    /// opened them.
    pub groups: Option<&'a [u8]>,
    /// The format that the values are to be written in; decides the precision.
    pub format: FloatType,
}

impl Coded<'_> {
    /// The group of a column.
    #[inline(always)]
    fn group(&self, column: u64) -> u64 {
        match self.groups {
            None => column / self.grid.width,
            Some(groups) => {
                let at = column as usize * 4;
                let group = groups[at..at + 4].try_into().map(u32::from_le_bytes);
                u64::from(group.unwrap_or_default())
            }
        }
    }
}

impl<R: Real> Fill<R> for Coded<'_> {
    fn fill(&self, first: u64, out: &mut [R]) -> Result<usize, NoMemory> {
        let Codes {
            rows,
            columns,
            bits,
            ..
        } = self.codes;
        let (mut line, mut column) = (first / columns.max(1), first % columns.max(1));
        let mut rest = &mut *out;
        while !rest.is_empty() {
            let (matrix, row) = (line / rows, line % rows);
            let run = rest.len().min((columns - column) as usize);
            let (mut run, after) = rest.split_at_mut(run);
            while !run.is_empty() {
                let group = self.group(column);
                let length = match self.groups {
                    None => run
                        .len()
                        .min(((group + 1) * self.grid.width - column) as usize),
                    Some(_) => 1,
                };
                let (here, next) = run.split_at_mut(length);
                let grid = &self.grid;
                let place = matrix * grid.matrix_step
                    + row / grid.height * grid.row_step
                    + group * grid.column_step;
                let mut scale = [R::ZERO];
                R::fill(self.scales.as_ref(), place, &mut scale)?;
                let zero = self.zeros.as_ref().map_or(R::ZERO, |zeros| {
                    let rows = row / grid.height;
                    let code = match zeros.by_group {
                        true => zeros.codes.at(matrix, group, rows),
                        false => zeros.codes.at(matrix, rows, group),
                    };
                    zeros.meaning.of(code, zeros.codes.bits)
                });
                for (value, column) in here.iter_mut().zip(column..) {
                    let code = self.codes.at(matrix, row, column);
                    *value = (self.meaning.of::<R>(code, bits) - zero) * scale[0];
                }
                column += length as u64;
                run = next;
            }
            (rest, line, column) = (after, line + 1, 0);
        }
        Ok((out.len() * bits as usize).div_ceil(8))
    }
}

impl Elements for Coded<'_> {
    fn format(&self) -> FloatType {
        self.format
    }
}

/// Powers of two, a byte each: the exponent plus 127; 255 is NaN. The scales of OCP's microscaling formats (E8M0).
#[derive(Debug, Clone, Copy)]
pub struct Powers<'a>(pub &'a [u8]);

impl<R: Real> Fill<R> for Powers<'_> {
    fn fill(&self, first: u64, out: &mut [R]) -> Result<usize, NoMemory> {
        let bytes = &self.0[first as usize..first as usize + out.len()];
        for (value, &exponent) in out.iter_mut().zip(bytes) {
            *value = R::from_f32(match exponent {
                0 => f32::from_bits(1 << 22),
                255 => f32::NAN,
                exponent => f32::from_bits(u32::from(exponent) << 23),
            });
        }
        Ok(out.len())
    }
}

impl Elements for Powers<'_> {
    fn format(&self) -> FloatType {
        FloatType::Bf16
    }
}

/// Numbers divided by another, which all share.
pub struct Quotient<'a> {
    /// What is divided.
    pub of: Box<dyn Elements + 'a>,
    /// One number.
    pub by: Box<dyn Elements + 'a>,
}

impl<R: Real> Fill<R> for Quotient<'_> {
    fn fill(&self, first: u64, out: &mut [R]) -> Result<usize, NoMemory> {
        let mut by = [R::ONE];
        R::fill(self.by.as_ref(), 0, &mut by)?;
        let read = R::fill(self.of.as_ref(), first, out)?;
        out.iter_mut().for_each(|value| *value = *value / by[0]);
        Ok(read)
    }
}

impl Elements for Quotient<'_> {
    fn format(&self) -> FloatType {
        FloatType::F32
    }
}

/// Values plus a number, which all share.
pub struct Shifted<'a> {
    /// The values.
    pub values: Box<dyn Elements + 'a>,
    /// The number.
    pub by: f32,
}

impl<R: Real> Fill<R> for Shifted<'_> {
    fn fill(&self, first: u64, out: &mut [R]) -> Result<usize, NoMemory> {
        let read = R::fill(self.values.as_ref(), first, out)?;
        let by = R::from_f32(self.by);
        out.iter_mut().for_each(|value| *value += by);
        Ok(read)
    }
}

impl Elements for Shifted<'_> {
    fn format(&self) -> FloatType {
        FloatType::F32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Stored;

    /// Sets the bits of a code in words of 32 bits, the first at bit 0 of word 0.
    fn put(words: &mut [u32], bit: usize, code: u32) {
        words[bit / 32] |= code << (bit % 32);
    }

    fn bytes_of(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Packs the code of each element as the format's writer does, code by code.
    fn packed(
        packing: Packing,
        bits: usize,
        [rows, columns]: [usize; 2],
        code: impl Fn(usize, usize) -> u32,
    ) -> Vec<u8> {
        let each = |put_one: &mut dyn FnMut(usize, usize, u32)| {
            for row in 0..rows {
                for column in 0..columns {
                    put_one(row, column, code(row, column));
                }
            }
        };
        match packing {
            Packing::Rows { pitch } | Packing::Columns { pitch } => {
                let lines = if matches!(packing, Packing::Rows { .. }) {
                    rows
                } else {
                    columns
                };
                let mut words = vec![0; (lines * pitch as usize).div_ceil(32)];
                each(&mut |row, column, code| {
                    let (line, place) = match packing {
                        Packing::Rows { .. } => (row, column),
                        _ => (column, row),
                    };
                    put(&mut words, line * pitch as usize + place * bits, code);
                });
                bytes_of(&words)
            }
            Packing::HighFirst => {
                let mut bytes = vec![0; (rows * columns).div_ceil(2)];
                each(&mut |row, column, code| {
                    let at = row * columns + column;
                    bytes[at / 2] |= (code as u8) << if at % 2 == 0 { 4 } else { 0 };
                });
                bytes
            }
            Packing::Words => {
                let per_word = 32 / bits;
                let mut words = vec![0; columns.div_ceil(per_word) * rows];
                each(&mut |row, column, code| {
                    words[column / per_word * rows + row] |= code << (column % per_word * bits);
                });
                bytes_of(&words)
            }
            Packing::Awq => {
                let across = rows.div_ceil(8);
                let mut words = vec![0u32; across * columns];
                for column in 0..columns {
                    for word in 0..across {
                        for (place, of) in [0, 2, 4, 6, 1, 3, 5, 7].into_iter().enumerate() {
                            let row = word * 8 + of;
                            if row < rows {
                                words[column * across + word] |= code(row, column) << (4 * place);
                            }
                        }
                    }
                }
                bytes_of(&words)
            }
        }
    }

    proptest! {
        /// Any part of any matrix, in every packing, is that of each element by itself.
        #[test]
        fn any_range_is_that_of_each_element_by_itself(
            kind in 0usize..5,
            bits_power in 0u32..4,
            rows in 1usize..20,
            columns in 1usize..40,
            height in 1u64..5,
            width in 1u64..17,
            with_zeros: bool,
            cut in any::<(f64, f64)>().prop_map(|(a, b)| (a.abs().fract(), b.abs().fract())),
        ) {
            let packing = [
                Packing::Rows { pitch: (columns as u64 * 8).div_ceil(32) * 32 },
                Packing::HighFirst,
                Packing::Columns { pitch: rows as u64 * 8 },
                Packing::Words,
                Packing::Awq,
            ][kind];
            let bits = match packing {
                Packing::HighFirst | Packing::Awq => 4,
                _ => 1 << bits_power,
            };
            let mask = (1u32 << bits) - 1;
            let code = |row: usize, column: usize| (row * 37 + column * 11 + row * column) as u32 & mask;
            let bytes = packed(packing, bits as usize, [rows, columns], code);
            let codes = Codes::new(&bytes, bits, packing, [1, rows, columns]).unwrap();
            let (down, across) = ((rows as u64).div_ceil(height), (columns as u64).div_ceil(width));
            let scales: Vec<f32> = (0..down * across).map(|at| 0.37 + at as f32 * 1.3).collect();
            let scale_bytes: Vec<u8> = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
            let zero = |row: usize, group: usize| (row + 3 * group) as u8 & 15;
            let zero_bytes: Vec<u8> = (0..rows * across as usize)
                .map(|at| zero(at / across as usize, at % across as usize))
                .collect();
            let zeros = with_zeros.then(|| Zeros {
                codes: Codes::new(
                    &zero_bytes, 8, Packing::Rows { pitch: across * 8 }, [1, rows, across as usize],
                ).unwrap(),
                meaning: Meaning::Plus(1),
                by_group: false,
            });
            let coded = Coded {
                codes,
                meaning: Meaning::Plus(-3),
                scales: Box::new(Stored { bytes: &scale_bytes, format: FloatType::F32 }),
                grid: Grid { height, width, row_step: across, column_step: 1, matrix_step: 0 },
                zeros,
                groups: None,
                format: FloatType::Bf16,
            };
            let count = rows * columns;
            let first = (cut.0 * count as f64) as usize;
            let length = (cut.1 * (count - first) as f64) as usize;
            let (mut double, mut single) = (vec![f64::NAN; length], vec![f32::NAN; length]);
            Fill::<f64>::fill(&coded, first as u64, &mut double).unwrap();
            Fill::<f32>::fill(&coded, first as u64, &mut single).unwrap();
            for (at, (double, single)) in (first..).zip(double.iter().zip(&single)) {
                let (row, column) = (at / columns, at % columns);
                let group = column / width as usize;
                let scale = scales[row / height as usize * across as usize + group];
                let less = if with_zeros { f64::from(zero(row / height as usize, group)) + 1.0 } else { 0.0 };
                let number = f64::from(code(row, column)) - 3.0 - less;
                prop_assert_eq!(*double, number * f64::from(scale));
                prop_assert_eq!(*single, number as f32 * scale);
            }
        }

        /// Too few bytes are refused, whatever the packing and however large the matrices are said to be.
        #[test]
        fn bytes_that_are_too_few_are_refused(
            kind in 0usize..5,
            bits in 0u32..9,
            shape in any::<[usize; 3]>(),
            pitch: u64,
        ) {
            let packing = [
                Packing::Rows { pitch },
                Packing::HighFirst,
                Packing::Columns { pitch },
                Packing::Words,
                Packing::Awq,
            ][kind];
            if let Some(codes) = Codes::new(&[0; 64], bits, packing, shape) {
                let [matrices, rows, columns] = shape;
                if matrices.min(rows).min(columns) > 0 {
                    codes.at(matrices as u64 - 1, rows as u64 - 1, columns as u64 - 1);
                }
            }
        }
    }

    #[test]
    fn codes_mean_what_the_formats_say() {
        let of = |meaning: Meaning<'_>, code| -> f64 { meaning.of(code, 4) };
        assert_eq!(of(Meaning::Signed, 7), 7.0);
        assert_eq!(of(Meaning::Signed, 8), -8.0);
        assert_eq!(of(Meaning::Signed, 15), -1.0);
        assert_eq!(of(Meaning::Plus(-8), 15), 7.0);
        assert_eq!(of(Meaning::Table(&[0.0, 0.5]), 1), 0.5);
        let mut powers = [0f64; 4];
        Fill::fill(&Powers(&[127, 0, 254, 255]), 0, &mut powers).unwrap();
        assert_eq!(powers[..3], [1.0, 2f64.powi(-127), 2f64.powi(127)]);
        assert!(powers[3].is_nan());
    }

    #[test]
    fn groups_may_be_named_by_column() {
        let groups: Vec<u8> = [1u32, 0, 1]
            .iter()
            .flat_map(|group| group.to_le_bytes())
            .collect();
        let scales: Vec<u8> = [2f32, 10.0]
            .iter()
            .flat_map(|scale| scale.to_le_bytes())
            .collect();
        let coded = Coded {
            codes: Codes::new(&[1, 2, 3], 8, Packing::Rows { pitch: 24 }, [1, 1, 3]).unwrap(),
            meaning: Meaning::Plus(0),
            scales: Box::new(Stored {
                bytes: &scales,
                format: FloatType::F32,
            }),
            grid: Grid {
                height: 1,
                width: 1,
                row_step: 2,
                column_step: 1,
                matrix_step: 0,
            },
            zeros: None,
            groups: Some(&groups),
            format: FloatType::F16,
        };
        let mut out = [0f32; 3];
        coded.fill(0, &mut out).unwrap();
        assert_eq!(out, [10.0, 4.0, 30.0]);
    }
}
