//! Values written as codes with scales: 8-bit floats with a scale for each block of a matrix, the inverse of [`Scaled`],
//! or [MXFP4](super::microscaling).
//!
//! A block's scale is its largest magnitude divided by the largest value of the format, rounded to an `f32`; a value is
//! divided by its scale and rounded once. So `code * scale` is within half an ULP of the code, times the scale.

use std::ops::Range;

use safetensors::Dtype;

use super::coded::{Coded, Codes, Grid, Meaning, Packing, Powers};
use super::elements::{Elements, Stored};
use super::format::{FloatType, Narrowed};
use super::microscaling::{self, E2M1, GROUP};
use super::real::Real;
use super::rounding::RoundingKey;
use super::scaled::Scaled;
use super::vector::vectorised;

/// Values that are divided and rounded at a time.
const STRIP: usize = 1024;

/// What values become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeFormat {
    /// 8-bit floats (E4M3), a byte each in the order of the values, with a scale for each block or one for all.
    Fp8,
    /// 4-bit floats (E2M1), column after column, with a power of two for each 32 rows of one: as gpt-oss has them.
    Mxfp4,
}

/// How the matrices of a tensor are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoding {
    /// Rows of a matrix; at least one.
    pub rows: usize,
    /// Elements per row; at least one.
    pub columns: usize,
    /// How many matrices.
    pub matrices: usize,
    /// What values become.
    pub format: CodeFormat,
    /// Rows and columns of a block, at least one each; blocks at the edges may be smaller.
    pub block: [usize; 2],
    /// Whether all blocks share one scale. They are written band by band nevertheless.
    pub whole: bool,
    /// Whether scales are powers of two, rounded up.
    pub powers: bool,
    /// The format of scales of 8-bit floats: F32 or BF16.
    pub scales: FloatType,
}

/// How values are rounded to codes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Coding {
    /// The draws by which they are rounded up or down; without them, they are rounded to the nearest.
    pub rounding: Option<RoundingKey>,
    /// Whether values out of range become the largest code.
    pub saturate: bool,
    /// The largest magnitude of the tensor, if all blocks share one scale.
    pub largest: f64,
}

impl Encoding {
    /// The format of codes of 8 bits.
    pub const CODES: FloatType = FloatType::F8E4m3;

    /// Matrices as MXFP4; rows are a multiple of 32.
    pub fn mxfp4(matrices: usize, rows: usize, columns: usize) -> Self {
        Self {
            rows,
            columns,
            matrices,
            format: CodeFormat::Mxfp4,
            block: [GROUP, 1],
            whole: false,
            powers: true,
            scales: FloatType::F32,
        }
    }

    /// The dtype of codes.
    pub fn code_dtype(&self) -> Dtype {
        match self.format {
            CodeFormat::Fp8 => Self::CODES.dtype(),
            CodeFormat::Mxfp4 => Dtype::U8,
        }
    }

    /// The dtype of scales.
    pub fn scale_dtype(&self) -> Dtype {
        match self.format {
            CodeFormat::Fp8 => self.scales.dtype(),
            CodeFormat::Mxfp4 => Dtype::U8,
        }
    }

    /// Number of values.
    pub fn values(&self) -> u64 {
        self.matrices as u64 * self.rows as u64 * self.columns as u64
    }

    /// The bytes of the codes of so many values: of some bands.
    pub fn code_bytes(&self, values: u64) -> u64 {
        match self.format {
            CodeFormat::Fp8 => values,
            CodeFormat::Mxfp4 => values / 2,
        }
    }

    /// How many bands there are: rows of one matrix whose blocks lie side by side, or a matrix where columns lie one after
    /// the other.
    pub fn bands(&self) -> usize {
        self.matrices.saturating_mul(self.bands_of_one())
    }

    fn bands_of_one(&self) -> usize {
        self.rows.div_ceil(self.rows_of_band())
    }

    fn rows_of_band(&self) -> usize {
        match self.format {
            CodeFormat::Fp8 => self.block[0],
            CodeFormat::Mxfp4 => self.rows,
        }
    }

    /// Blocks of a band.
    pub fn across(&self) -> usize {
        self.columns.div_ceil(self.block[1])
    }

    /// The most elements of a band.
    pub fn longest(&self) -> usize {
        let rows = self.rows_of_band().min(self.rows);
        rows.saturating_mul(self.columns)
    }

    /// The elements of some bands: those of the tensor from the first one's first to the last one's last.
    pub fn elements(&self, bands: Range<usize>) -> Range<u64> {
        let start = |band: usize| {
            let (matrix, within) = (band / self.bands_of_one(), band % self.bands_of_one());
            let row = matrix as u64 * self.rows as u64 + (within * self.rows_of_band()) as u64;
            row * self.columns as u64
        };
        start(bands.start)..start(bands.end)
    }

    /// The shape of the codes of a tensor of this shape, whose last two dimensions are those of a matrix.
    pub fn code_shape(&self, shape: &[usize]) -> Vec<usize> {
        let mut codes = shape.to_vec();
        if let (CodeFormat::Mxfp4, [.., rows, columns]) = (self.format, codes.as_mut_slice()) {
            (*rows, *columns) = (*columns, *rows / GROUP);
            codes.push(GROUP / 2);
        }
        codes
    }

    /// The shape of the scales of a tensor of this shape, whose last two dimensions are those of a matrix.
    pub fn scale_shape(&self, shape: &[usize]) -> Vec<usize> {
        let mut scales = shape.to_vec();
        match scales.as_mut_slice() {
            _ if self.whole => return vec![1],
            [.., rows, columns] => {
                (*rows, *columns) = match self.format {
                    CodeFormat::Fp8 => (self.bands_of_one(), self.across()),
                    CodeFormat::Mxfp4 => (self.columns, self.rows / GROUP),
                }
            }
            _ => {}
        }
        scales
    }

    /// Bytes of the scales of a band.
    pub fn scale_bytes(&self) -> usize {
        match self.format {
            CodeFormat::Fp8 => self.across() * self.scales.size(),
            CodeFormat::Mxfp4 => self.rows / GROUP * self.columns,
        }
    }

    /// The share of a part's values that become zero beyond which a far larger value is the cause. Of normally distributed
    /// weights it is 0.001 % in FP8, and some 7 % in MXFP4.
    pub fn flushed_above(&self) -> f64 {
        match self.format {
            CodeFormat::Fp8 => 0.02,
            CodeFormat::Mxfp4 => 0.25,
        }
    }

    /// Writes the values of a band as [codes](Self::code_bytes), and as [scales](Self::scale_bytes). `first` is the place
    /// of the first value in the tensor.
    ///
    /// Values that are not finite have no part in a scale. NaN becomes NaN, in MXFP4 with all that share its scale.
    /// Infinity becomes NaN unless `saturate` is set; in MXFP4 it is counted as too large, and is the largest code.
    pub fn encode<R: Real>(
        &self,
        values: &[R],
        first: u64,
        coding: Coding,
        codes: &mut [u8],
        scales: &mut [u8],
    ) -> Narrowed {
        if self.format == CodeFormat::Mxfp4 {
            return microscaling::encode(values, self.columns, first, coding, codes, scales);
        }
        let (width, format) = (self.block[1], Self::CODES);
        let mut of_blocks = vec![R::from_f64(coding.largest); self.across()];
        if !self.whole {
            of_blocks.fill(R::ZERO);
            for row in values.chunks(self.columns) {
                largest(row, width, &mut of_blocks);
            }
        }
        for scale in &mut of_blocks {
            *scale = R::from_f32(self.scale(scale.to_f64()));
        }
        self.scales.encode(&mut of_blocks, false, scales);
        self.scales.decode(scales, &mut of_blocks);
        let mut narrowed = Narrowed::default();
        let mut strip = [R::ZERO; STRIP];
        let rows = values.chunks(self.columns);
        let rows = rows.zip(codes.chunks_mut(self.columns));
        let mut place = first;
        for (row, codes) in rows {
            let mut column = 0;
            for (values, codes) in row.chunks(STRIP).zip(codes.chunks_mut(STRIP)) {
                let strip = &mut strip[..values.len()];
                divide(values, column, width, &of_blocks, strip);
                if let Some(rounding) = coding.rounding {
                    rounding.round(format, place, strip);
                }
                let found = format.encode(strip, coding.saturate, codes);
                narrowed.overflowed += found.overflowed;
                narrowed.non_finite += found.non_finite;
                column += values.len();
                place += values.len() as u64;
            }
        }
        narrowed
    }

    /// The largest finite magnitude of some values.
    pub fn largest_of<R: Real>(values: &[R]) -> f64 {
        let mut most = [R::ZERO];
        largest(values, values.len().max(1), &mut most);
        most[0].to_f64()
    }

    /// The values that the codes and scales of a band stand for; `rows` are how many the band has.
    ///
    /// `None` if the codes are too few.
    pub fn decoded<'a>(
        &self,
        rows: usize,
        codes: &'a [u8],
        scales: &'a [u8],
    ) -> Option<Box<dyn Elements + 'a>> {
        if self.format == CodeFormat::Mxfp4 {
            let pitch = rows as u64 * 4;
            let groups = (rows / GROUP) as u64;
            let shape = [1, rows, self.columns];
            return Some(Box::new(Coded {
                codes: Codes::new(codes, 4, Packing::Columns { pitch }, shape)?,
                meaning: Meaning::Table(&E2M1),
                scales: Box::new(Powers(scales)),
                grid: Grid {
                    height: GROUP as u64,
                    width: 1,
                    row_step: 1,
                    column_step: groups,
                    matrix_step: self.columns as u64 * groups,
                },
                zeros: None,
                groups: None,
                format: FloatType::F32,
            }));
        }
        let stored = |bytes, format| Box::new(Stored { bytes, format });
        Some(Box::new(Scaled {
            values: stored(codes, Self::CODES),
            scales: stored(scales, self.scales),
            rows,
            columns: self.columns,
            block: self.block,
            format: Self::CODES,
        }))
    }

    /// The scale of a block by its largest finite magnitude: never zero, subnormal or infinite.
    fn scale(&self, largest: f64) -> f32 {
        if largest == 0.0 {
            return 1.0;
        }
        let scale = (largest / Self::CODES.largest()) as f32;
        let scale = scale.clamp(f32::MIN_POSITIVE, self.scales.largest() as f32);
        match self.powers {
            false => scale,
            // The next power of two, unless it is one.
            true => f32::from_bits((scale.to_bits() + 0x7f_ffff).min(0x7f00_0000) & 0x7f80_0000),
        }
    }
}

/// How far what is written is from what was computed: sums over a sample of elements.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct EncodingError {
    /// Of the squares of the differences.
    pub differences: f64,
    /// Of the squares of the computed values.
    pub values: f64,
    /// How many parts of the values were looked at.
    pub parts: f64,
    /// How many of these have many values that became zero: a far larger one shares their scale.
    pub flushed: f64,
}

impl EncodingError {
    /// Of some values: as they were computed, and as they were written. If more than the share `flushed_above` of them
    /// became zero, that is told.
    pub fn measure<R: Real>(meant: &[R], written: &[R], flushed_above: f64) -> Self {
        let mut sum = Self::default();
        let (mut nonzero, mut zero) = (0.0, 0.0);
        for (meant, written) in meant.iter().zip(written) {
            let (meant, written) = (meant.to_f64(), written.to_f64());
            let apart = written - meant;
            if apart.is_finite() {
                sum.differences += apart * apart;
                sum.values += meant * meant;
                nonzero += f64::from(meant != 0.0);
                zero += f64::from(meant != 0.0 && written == 0.0);
            }
        }
        sum.parts = 1.0;
        sum.flushed = f64::from(zero > flushed_above * nonzero);
        sum
    }

    /// The length of the difference divided by that of the values; zero if all values are.
    pub fn relative(&self) -> f64 {
        match self.values > 0.0 {
            true => (self.differences / self.values).sqrt(),
            false => 0.0,
        }
    }

    /// The share of the parts of which many values became zero.
    pub fn flushed_share(&self) -> f64 {
        self.flushed / self.parts.max(1.0)
    }
}

impl std::ops::AddAssign for EncodingError {
    fn add_assign(&mut self, other: Self) {
        self.differences += other.differences;
        self.values += other.values;
        self.parts += other.parts;
        self.flushed += other.flushed;
    }
}

vectorised! {
    /// Raises the largest finite magnitude of each block to that of a row's part of it.
    fn largest<R: Real>(row: &[R], width: usize, most: &mut [R]) {
        for (part, most) in row.chunks(width).zip(most) {
            let mut lanes = [R::ZERO; 16];
            let (whole, rest) = part.as_chunks::<16>();
            for values in whole {
                for (lane, value) in lanes.iter_mut().zip(values) {
                    let value = value.abs();
                    let value = if value < R::INFINITY { value } else { R::ZERO };
                    *lane = if value > *lane { value } else { *lane };
                }
            }
            for value in rest.iter().map(|value| value.abs()).filter(|value| *value < R::INFINITY) {
                lanes[0] = if value > lanes[0] { value } else { lanes[0] };
            }
            for lane in lanes {
                *most = if lane > *most { lane } else { *most };
            }
        }
    }
}

vectorised! {
    /// Divides part of a row, which begins at `column`, by the scales of the row's blocks.
    fn divide<R: Real>(values: &[R], column: usize, width: usize, scales: &[R], out: &mut [R]) {
        let (mut values, mut out) = (values, out);
        let mut left = width - column % width;
        for scale in &scales[column / width..] {
            let here = left.min(values.len());
            let (now, later) = values.split_at(here);
            let (to, rest) = out.split_at_mut(here);
            for (to, value) in to.iter_mut().zip(now) {
                *to = *value / *scale;
            }
            (values, out, left) = (later, rest, width);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoding(rows: usize, columns: usize, block: [usize; 2], powers: bool) -> Encoding {
        Encoding {
            rows,
            columns,
            matrices: 1,
            format: CodeFormat::Fp8,
            block,
            whole: false,
            powers,
            scales: FloatType::F32,
        }
    }

    /// Encodes a matrix, band by band: codes, scales, and what was not written as a number.
    fn written<R: Real>(
        encoding: Encoding,
        values: &[R],
        saturate: bool,
    ) -> (Vec<u8>, Vec<f32>, Narrowed) {
        let mut codes = vec![0; values.len()];
        let mut scales = vec![0; 4 * encoding.bands() * encoding.across()];
        let mut narrowed = Narrowed::default();
        for (band, scales) in scales.chunks_mut(4 * encoding.across()).enumerate() {
            let place = encoding.elements(band..band + 1);
            let places = place.start as usize..place.end.min(values.len() as u64) as usize;
            let coding = Coding {
                saturate,
                ..Coding::default()
            };
            let found = encoding.encode(
                &values[places.clone()],
                place.start,
                coding,
                &mut codes[places],
                scales,
            );
            narrowed.overflowed += found.overflowed;
            narrowed.non_finite += found.non_finite;
        }
        let floats = scales.as_chunks::<4>().0.iter();
        (
            codes,
            floats.map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            narrowed,
        )
    }

    /// The slow twin: of all codes, that whose value is nearest to a quotient; of two, the even one.
    fn nearest(quotient: f64) -> u8 {
        let mut best = (f64::INFINITY, 0u8);
        for code in 0..0x7f {
            let mut value = [0f64];
            FloatType::F8E4m3.decode(&[code], &mut value);
            let apart = (quotient.abs() - value[0]).abs();
            if apart < best.0 || apart == best.0 && code % 2 == 0 {
                best = (apart, code);
            }
        }
        best.1 | u8::from(quotient.is_sign_negative()) << 7
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Scales and codes are those of each block by itself, computed one element at a time.
        #[test]
        fn each_block_is_written_as_its_twin_is(
            rows in 1usize..7, columns in 1usize..50, height in 1usize..4, width in 1usize..20,
            exponent in -60i32..60, powers: bool,
            mantissas in prop::collection::vec(-1f32..1.0, 300),
        ) {
            let encoding = encoding(rows, columns, [height, width], powers);
            let values: Vec<f32> = (0..rows * columns)
                .map(|at| mantissas[at] * 2f32.powi(exponent + (at % 7) as i32))
                .collect();
            let wide: Vec<f64> = values.iter().map(|value| f64::from(*value)).collect();
            let (codes, scales, narrowed) = written(encoding, &values, false);
            prop_assert_eq!(narrowed, Narrowed::default());
            let double = written(encoding, &wide, false);
            prop_assert_eq!(&double.1, &scales);
            for (at, value) in values.iter().enumerate() {
                let (row, column) = (at / columns, at % columns);
                let place = row / height * columns.div_ceil(width) + column / width;
                let of_block = values.iter().enumerate().filter(|(other, _)| {
                    other / columns / height == row / height && other % columns / width == column / width
                });
                let largest = of_block.fold(0f32, |most, (_, value)| most.max(value.abs()));
                let scale = if largest == 0.0 { 1.0 } else { (f64::from(largest) / 448.0) as f32 };
                let scale = if powers { 2f32.powi(f64::from(scale).log2().ceil() as i32) } else { scale };
                prop_assert_eq!(scales[place], scale);
                prop_assert_eq!(codes[at], nearest(f64::from(value / scale)), "{} / {}", value, scale);
                prop_assert_eq!(double.0[at], nearest(f64::from(*value) / f64::from(scale)));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// One scale for all is that of a single block as large as the matrix, row by row.
        #[test]
        fn one_scale_for_all_is_that_of_the_largest(
            rows in 1usize..7, columns in 1usize..50, exponent in -60i32..60,
            mantissas in prop::collection::vec(-1f32..1.0, 300),
        ) {
            let values: Vec<f32> = mantissas[..rows * columns]
                .iter()
                .map(|value| value * 2f32.powi(exponent))
                .collect();
            let whole = Encoding { whole: true, ..encoding(rows, columns, [1, columns], false) };
            let coding = Coding { largest: Encoding::largest_of(&values), ..Coding::default() };
            let largest = values.iter().fold(0f64, |most, value| most.max(f64::from(value.abs())));
            let expected = if largest == 0.0 { 1.0 } else { (largest / 448.0) as f32 };
            let (mut codes, mut scale) = (vec![0; columns], [0; 4]);
            for (row, values) in values.chunks(columns).enumerate() {
                let found = whole.encode(values, (row * columns) as u64, coding, &mut codes, &mut scale);
                prop_assert_eq!(found, Narrowed::default());
                prop_assert_eq!(f32::from_le_bytes(scale), expected);
                let twin = values.iter().map(|value| nearest(f64::from(value / expected)));
                prop_assert_eq!(&codes, &twin.collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_block_by_hand() {
        // Two blocks of 2 x 2: the scale of the first is 2, of the second 1 as all is zero.
        let values = [896.0f32, 2.0, 0.0, 0.0, -3.0, 0.004, 0.0, -0.0];
        let (codes, scales, _) = written(encoding(2, 4, [2, 2], false), &values, false);
        assert_eq!(scales, [2.0, 1.0]);
        // 448, 1, then -1.5 and 0.002, which is one smallest subnormal of 2^-9.
        assert_eq!(codes, [0x7e, 0x38, 0, 0, 0xbc, 0x01, 0, 0x80]);
        // What is decoded again is written again in the same way.
        let encoding = encoding(2, 4, [2, 2], false);
        let bytes: Vec<u8> = scales
            .iter()
            .flat_map(|scale| scale.to_le_bytes())
            .collect();
        let mut back = [0f32; 8];
        let decoded = encoding.decoded(2, &codes, &bytes).unwrap();
        Real::fill(decoded.as_ref(), 0, &mut back).unwrap();
        drop(decoded);
        assert_eq!(back, [896.0, 2.0, 0.0, 0.0, -3.0, 2f32.powi(-8), 0.0, -0.0]);
        assert_eq!(
            written(encoding, &back, false),
            (codes, scales, Narrowed::default())
        );
    }

    #[test]
    fn values_that_are_not_finite_leave_the_scale_to_the_others() {
        let encoding = encoding(1, 4, [1, 4], false);
        let values = [f32::NAN, f32::INFINITY, 448.0, f32::NEG_INFINITY];
        let (codes, scales, narrowed) = written(encoding, &values, false);
        assert_eq!(
            (scales.as_slice(), &codes[..3]),
            ([1.0f32].as_slice(), [0x7f, 0x7f, 0x7e].as_slice())
        );
        assert_eq!(
            (narrowed.non_finite.nan, narrowed.non_finite.infinite),
            (1, 2)
        );
        let (codes, ..) = written(encoding, &values, true);
        assert_eq!(codes, [0x7f, 0x7e, 0x7e, 0xfe]);
    }

    #[test]
    fn the_smallest_and_largest_blocks_have_scales_that_are_numbers() {
        let of = |largest: f64, powers| encoding(1, 1, [1, 1], powers).scale(largest);
        for powers in [false, true] {
            for largest in [
                5e-324,
                1e-300,
                f64::from(f32::from_bits(1)),
                1e-38,
                f64::MAX,
            ] {
                let scale = of(largest, powers);
                assert!(scale.is_normal() && scale > 0.0, "{largest:e}: {scale:e}");
            }
            assert_eq!(of(448.0, powers), 1.0);
            assert_eq!(of(0.0, powers), 1.0);
        }
        assert_eq!(of(449.0, true), 2.0);
        // A block that no scale reaches overflows, which is counted.
        let (_, _, narrowed) = written(encoding(1, 1, [1, 1], false), &[f64::MAX], false);
        assert_eq!(narrowed.overflowed, 1);
    }

    #[test]
    fn one_scale_may_be_that_of_all_and_scales_may_be_bfloat16() {
        let whole = Encoding {
            whole: true,
            scales: FloatType::Bf16,
            ..encoding(2, 2, [1, 2], false)
        };
        let coding = Coding {
            largest: 1000.0,
            ..Coding::default()
        };
        let (mut codes, mut scale) = ([0; 2], [0; 2]);
        let narrowed = whole.encode(&[1000f32, -2.25], 0, coding, &mut codes, &mut scale);
        // 1000 / 448 is 2.232, in bfloat16 2.234375, by which 1000 is 447.55 and -2.25 is -1.007.
        assert_eq!(
            (scale, codes, narrowed),
            ([0x0f, 0x40], [0x7e, 0xb8], Narrowed::default())
        );
        assert_eq!(whole.scale_shape(&[2, 2]), [1]);
        assert_eq!(
            Encoding::largest_of(&[1f32, -3.0, f32::NAN, f32::NEG_INFINITY]),
            3.0
        );
        let none: [f64; 0] = [];
        assert_eq!(Encoding::largest_of(&none), 0.0);
    }

    #[test]
    fn bands_end_with_their_matrix() {
        let encoding = Encoding {
            matrices: 2,
            ..encoding(5, 3, [2, 2], false)
        };
        let places: Vec<_> = (0..encoding.bands())
            .map(|band| encoding.elements(band..band + 1))
            .collect();
        assert_eq!(places, [0..6, 6..12, 12..15, 15..21, 21..27, 27..30]);
        assert_eq!(encoding.scale_shape(&[2, 5, 3]), [2, 3, 2]);
        assert_eq!(encoding.longest(), 6);
    }
}
