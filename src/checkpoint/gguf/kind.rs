//! The types of tensors in a GGUF file, by their numbers.

use numeric::BlockFormat;
use safetensors::Dtype;

/// How the values of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Kind {
    /// As they are.
    Plain(Dtype),
    /// In blocks of codes that share scales.
    Blocks(BlockFormat),
}

/// Every type that is read, by its number in a file.
const READ: [(u32, Kind); 19] = [
    (0, Kind::Plain(Dtype::F32)),
    (1, Kind::Plain(Dtype::F16)),
    (2, Kind::Blocks(BlockFormat::Q4_0)),
    (3, Kind::Blocks(BlockFormat::Q4_1)),
    (6, Kind::Blocks(BlockFormat::Q5_0)),
    (7, Kind::Blocks(BlockFormat::Q5_1)),
    (8, Kind::Blocks(BlockFormat::Q8_0)),
    (10, Kind::Blocks(BlockFormat::Q2_K)),
    (11, Kind::Blocks(BlockFormat::Q3_K)),
    (12, Kind::Blocks(BlockFormat::Q4_K)),
    (13, Kind::Blocks(BlockFormat::Q5_K)),
    (14, Kind::Blocks(BlockFormat::Q6_K)),
    (24, Kind::Plain(Dtype::I8)),
    (25, Kind::Plain(Dtype::I16)),
    (26, Kind::Plain(Dtype::I32)),
    (27, Kind::Plain(Dtype::I64)),
    (28, Kind::Plain(Dtype::F64)),
    (30, Kind::Plain(Dtype::BF16)),
    (39, Kind::Blocks(BlockFormat::MXFP4)),
];

/// Types that are known and not read, by number and name.
const REFUSED: [(u32, &str); 16] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (40, "NVFP4"),
    (4, "Q4_2"),
    (5, "Q4_3"),
];

impl Kind {
    /// The type of a number.
    ///
    /// # Errors
    /// It is not read; its name, or its number.
    pub(super) fn numbered(number: u32) -> Result<Kind, String> {
        if let Some((_, kind)) = READ.iter().find(|(known, _)| *known == number) {
            return Ok(*kind);
        }
        let name = REFUSED.iter().find(|(known, _)| *known == number);
        Err(name.map_or_else(|| format!("{number}"), |(_, name)| (*name).to_owned()))
    }

    /// Values and bytes of a block; a block of one where they are stored as they are.
    fn block(self) -> (u64, u64) {
        match self {
            Kind::Plain(dtype) => (1, (dtype.bitsize() / 8) as u64),
            Kind::Blocks(format) => (format.values() as u64, format.bytes() as u64),
        }
    }

    /// Values of a block.
    pub(super) fn block_values(self) -> u64 {
        self.block().0
    }

    /// The bytes of so many values; `None` if they are no whole blocks, or too many.
    pub(super) fn bytes_of(self, values: u64) -> Option<u64> {
        let (block, bytes) = self.block();
        values
            .is_multiple_of(block)
            .then(|| (values / block).checked_mul(bytes))?
    }

    /// Its name.
    pub(super) fn name(self) -> String {
        match self {
            Kind::Plain(dtype) => format!("{dtype:?}"),
            Kind::Blocks(format) => format!("{format:?}"),
        }
    }
}
