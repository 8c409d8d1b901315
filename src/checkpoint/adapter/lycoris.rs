//! LoHa and LoKr: updates that are products of two matrices, each stored whole or in factors.
//!
//! The names of their parts are those of LyCORIS, and PEFT has the same.

use std::collections::BTreeMap;

use super::config::PairKind;
use super::cuts::{Cut, Lies, Region, region};
use super::error::{AdapterError, OTHER_CONFIG};
use super::weights::{AdapterWeights, bad_key, half, twice};
use numeric::{Factor, FloatType, Order, PairedMatrix, Pairing};

/// What the names of the parts end in.
const PARTS: [&str; 13] = [
    "hada_t1",
    "hada_t2",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "lokr_t2",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
];

const COPY: &str = "copy or download the adapter again";

/// The tensors of a module by what they are: one of [`PARTS`].
pub(super) type PairParts = BTreeMap<&'static str, usize>;

/// The part of that name.
pub(super) fn part(word: &str) -> Option<&'static str> {
    PARTS.into_iter().find(|part| *part == word)
}

/// The tensors of one of the two matrices.
#[derive(Debug, Clone, Copy)]
enum PairTensors {
    Whole(usize),
    /// `[rows, rank]` and `[rank, inputs]`.
    Factors {
        a: usize,
        b: usize,
    },
    /// `[rank, rank, kernel]`, `[rank, rows]` and `[rank, inputs]`.
    Tucker {
        core: usize,
        a: usize,
        b: usize,
    },
}

/// The shape of one of the two matrices.
#[derive(Debug, Clone)]
struct PairShape {
    rows: usize,
    /// The inputs of a row, and the kernel of each.
    inputs: Vec<usize>,
    /// Of its factors.
    rank: Option<usize>,
}

/// The product of two matrices.
#[derive(Debug, Clone)]
pub(super) struct PairPiece {
    pub(super) kind: PairKind,
    first: PairTensors,
    second: PairTensors,
    /// The shape of the second.
    of_second: (usize, usize),
    /// The shape of the product: rows, and the inputs of each.
    rows: usize,
    inputs: Vec<usize>,
    /// The rank of the factors, if any are stored as such.
    pub(super) rank: Option<usize>,
    pub(super) scale: f64,
    cut: Cut,
}

impl PairPiece {
    /// Reads the parts of a module and checks that their shapes agree.
    pub(super) fn read(weights: &AdapterWeights, parts: &PairParts) -> Result<Self, AdapterError> {
        for tensor in parts.values() {
            weights.check_float(*tensor)?;
        }
        let begins = |prefix| parts.iter().find(move |(part, _)| part.starts_with(prefix));
        let (kind, [first, second]) = match (begins("hada_"), begins("lokr_")) {
            (Some((_, one)), Some((_, other))) => return Err(twice(weights, *one, *other)),
            (Some(_), None) => (PairKind::LoHa, hadamard(weights, parts)?),
            (None, _) => (PairKind::LoKr, kronecker(weights, parts)?),
        };
        let (one, other) = (first.shape(weights)?, second.shape(weights)?);
        let rank = other.rank.or(one.rank);
        if let (Some(expected), Some(found)) = (other.rank, one.rank)
            && expected != found
        {
            let expected = format!(
                "[..., {expected}], the rank of `{}`",
                weights.key(second.key())
            );
            return Err(weights.shape_error(first.key(), expected, COPY));
        }
        let width = |shape: &PairShape| elements(&shape.inputs);
        let (rows, inputs) = match kind {
            PairKind::LoHa if one.rows != other.rows || width(&one) != width(&other) => {
                let expected = format!(
                    "a matrix of the size of that of `{}`",
                    weights.key(first.key())
                );
                return Err(weights.shape_error(second.key(), expected, COPY));
            }
            PairKind::LoHa => (Some(one.rows), Some(one.inputs)),
            PairKind::LoKr => {
                let mut inputs = other.inputs.clone();
                let [of_first] = one.inputs.as_slice() else {
                    let expected = "a matrix: rows and columns".into();
                    return Err(weights.shape_error(first.key(), expected, COPY));
                };
                let across = inputs[0].checked_mul(*of_first);
                inputs[0] = across.unwrap_or_default();
                (one.rows.checked_mul(other.rows), across.and(Some(inputs)))
            }
        };
        let sizes = rows.zip(inputs).filter(|(rows, inputs)| {
            let width = elements(inputs);
            width.and_then(|width| width.checked_mul(*rows)).is_some()
        });
        let (Some((rows, inputs)), Some(width)) = (sizes, elements(&other.inputs)) else {
            let expected = "a product that can be held".into();
            return Err(weights.shape_error(second.key(), expected, COPY));
        };
        Ok(PairPiece {
            kind,
            first,
            second,
            of_second: (other.rows, width),
            rows,
            inputs,
            rank,
            scale: 1.0,
            cut: Cut::WHOLE,
        })
    }

    /// The same with another scale.
    pub(super) fn with_scale(self, scale: f64) -> Self {
        Self { scale, ..self }
    }

    /// The same for a part of a tensor.
    pub(super) fn with_cut(self, cut: Cut) -> Self {
        Self { cut, ..self }
    }

    /// One of its tensors, to name it by.
    pub(super) fn key(&self) -> usize {
        self.second.key()
    }

    /// The shape of the product, for messages.
    pub(super) fn shape(&self) -> Vec<usize> {
        [&[self.rows], self.inputs.as_slice()].concat()
    }

    /// Checks the rank of its factors against that of the config.
    pub(super) fn check_rank(
        &self,
        weights: &AdapterWeights,
        module: &str,
        rank: usize,
    ) -> Result<(), AdapterError> {
        match self.rank {
            Some(found) if found != rank => {
                let factors = match self.second {
                    PairTensors::Whole(_) => self.first,
                    _ => self.second,
                };
                let expected = format!("rank {rank}, as adapter_config.json gives `{module}`");
                Err(weights.shape_error(factors.key(), expected, OTHER_CONFIG))
            }
            _ => Ok(()),
        }
    }

    /// Where it goes in a tensor of that shape, if it fits. Kernels may be stored flat.
    pub(super) fn fits(&self, shape: &[usize]) -> Option<Region> {
        let kernel = match self.cut.into_expert {
            Some(_) => shape.get(2..),
            None => shape.get(1..),
        };
        let inputs = match (self.inputs.as_slice(), kernel) {
            (&[width], Some(kernel)) if elements(kernel) == Some(width) => kernel,
            (inputs, _) => inputs,
        };
        region(shape, self.rows, inputs, &self.cut, Lies::OutIn)
    }

    /// How the two are multiplied.
    pub(super) fn pairing(&self) -> Pairing {
        let (rows, columns) = self.of_second;
        match self.kind {
            PairKind::LoHa => Pairing::Hadamard,
            PairKind::LoKr => Pairing::Kronecker { rows, columns },
        }
    }

    /// The two matrices.
    pub(super) fn matrices<'a>(
        &self,
        weights: &'a AdapterWeights,
        otherwise: FloatType,
    ) -> [PairedMatrix<'a>; 2] {
        [self.first, self.second].map(|tensors| tensors.matrix(weights, otherwise))
    }
}

impl PairTensors {
    /// One of its tensors, to name it by.
    fn key(self) -> usize {
        match self {
            PairTensors::Whole(tensor) => tensor,
            PairTensors::Factors { a, .. } | PairTensors::Tucker { a, .. } => a,
        }
    }

    fn shape(self, weights: &AdapterWeights) -> Result<PairShape, AdapterError> {
        let wrong = |tensor, expected: String| Err(weights.shape_error(tensor, expected, COPY));
        let shape = match self {
            PairTensors::Whole(tensor) => match weights.shape(tensor) {
                [rows, inputs @ ..] if !inputs.is_empty() => PairShape {
                    rows: *rows,
                    inputs: inputs.to_vec(),
                    rank: None,
                },
                _ => return wrong(tensor, "rows and columns".into()),
            },
            PairTensors::Factors { a, b } => match (weights.shape(a), weights.shape(b)) {
                (&[rows, rank], [other, inputs @ ..]) if rank == *other && !inputs.is_empty() => {
                    PairShape {
                        rows,
                        inputs: inputs.to_vec(),
                        rank: Some(rank),
                    }
                }
                (_, of_b) => {
                    let expected = format!(
                        "[..., rank], where `{}` is {of_b:?}, [rank, ...]",
                        weights.key(b)
                    );
                    return wrong(a, expected);
                }
            },
            PairTensors::Tucker { core, a, b } => {
                let shapes = (weights.shape(core), weights.shape(a), weights.shape(b));
                match shapes {
                    ([one, other, kernel @ ..], &[of_a, rows], &[of_b, inputs])
                        if [*one, *other, of_a, of_b].iter().all(|rank| rank == one) =>
                    {
                        PairShape {
                            rows,
                            inputs: [&[inputs], kernel].concat(),
                            rank: Some(*one),
                        }
                    }
                    (_, of_a, of_b) => {
                        let expected = format!(
                            "[rank, rank, kernel], where the factors beside it are {of_a:?} and {of_b:?}, [rank, ...]"
                        );
                        return wrong(core, expected);
                    }
                }
            }
        };
        let sizes = [
            shape.rows,
            elements(&shape.inputs).unwrap_or(0),
            shape.rank.unwrap_or(1),
        ];
        match sizes.contains(&0) {
            true => wrong(self.key(), "at least one row, column and rank".into()),
            false => Ok(shape),
        }
    }

    fn matrix(self, weights: &AdapterWeights, otherwise: FloatType) -> PairedMatrix<'_> {
        let stored = |tensor| weights.stored(tensor, otherwise);
        let factor = |tensor, order| Factor {
            values: stored(tensor),
            order,
        };
        let size = |tensor: usize, from: usize| {
            let shape = weights.shape(tensor).get(from..);
            shape.map_or(1, |shape| shape.iter().product())
        };
        let rank = |tensor: usize| weights.shape(tensor).first().copied().unwrap_or_default();
        match self {
            PairTensors::Whole(tensor) => PairedMatrix::Whole {
                values: stored(tensor),
                columns: size(tensor, 1),
            },
            PairTensors::Factors { a, b } => PairedMatrix::Product {
                left: factor(a, Order::ByPlace),
                right: factor(b, Order::ByRank),
                rank: rank(b),
            },
            PairTensors::Tucker { core, a, b } => PairedMatrix::Tucker {
                core: stored(core),
                left: factor(a, Order::ByRank),
                right: factor(b, Order::ByRank),
                rank: rank(core),
                kernel: size(core, 2),
            },
        }
    }
}

/// LoHa's matrices: both in factors, and both with a core or none.
fn hadamard(weights: &AdapterWeights, parts: &PairParts) -> Result<[PairTensors; 2], AdapterError> {
    let there = parts.values().next().copied().unwrap_or_default();
    let needed = |name| {
        parts
            .get(name)
            .copied()
            .ok_or_else(|| half(weights, there, name))
    };
    let (first, second) = (
        (needed("hada_w1_a")?, needed("hada_w1_b")?),
        (needed("hada_w2_a")?, needed("hada_w2_b")?),
    );
    let core = |name| parts.get(name).copied();
    match (core("hada_t1"), core("hada_t2")) {
        (None, None) => Ok([first, second].map(|(a, b)| PairTensors::Factors { a, b })),
        (Some(one), Some(other)) => {
            let tucker = |core, (a, b)| PairTensors::Tucker { core, a, b };
            Ok([tucker(one, first), tucker(other, second)])
        }
        (Some(one), None) => Err(half(weights, one, "hada_t2")),
        (None, Some(other)) => Err(half(weights, other, "hada_t1")),
    }
}

/// LoKr's matrices: each whole or in factors, the second also with a core.
fn kronecker(
    weights: &AdapterWeights,
    parts: &PairParts,
) -> Result<[PairTensors; 2], AdapterError> {
    let there = parts.values().next().copied().unwrap_or_default();
    let matrix = |[whole, a, b]: [&'static str; 3]| {
        let part = |name| parts.get(name).copied();
        match (part(whole), part(a), part(b)) {
            (Some(whole), None, None) => Ok(PairTensors::Whole(whole)),
            (None, Some(a), Some(b)) => Ok(PairTensors::Factors { a, b }),
            (Some(whole), Some(factor), _) | (Some(whole), None, Some(factor)) => {
                Err(twice(weights, whole, factor))
            }
            (None, Some(there), None) => Err(half(weights, there, b)),
            (None, None, Some(there)) => Err(half(weights, there, a)),
            (None, None, None) => Err(half(weights, there, whole)),
        }
    };
    let first = matrix(["lokr_w1", "lokr_w1_a", "lokr_w1_b"])?;
    let second = matrix(["lokr_w2", "lokr_w2_a", "lokr_w2_b"])?;
    if let PairTensors::Whole(whole) = second
        && weights.shape(whole).len() == 3
    {
        let why = "is a whole matrix of a convolution over one dimension, with which PEFT and LyCORIS make different \
                   updates";
        return Err(bad_key(weights, whole, why));
    }
    match (parts.get("lokr_t2"), second) {
        (None, second) => Ok([first, second]),
        (Some(&core), PairTensors::Factors { a, b }) => {
            Ok([first, PairTensors::Tucker { core, a, b }])
        }
        (Some(&core), _) => {
            let why = "is the core of factors, and the matrix is there whole";
            Err(bad_key(weights, core, why))
        }
    }
}

fn elements(sizes: &[usize]) -> Option<usize> {
    sizes
        .iter()
        .try_fold(1usize, |all, &size| all.checked_mul(size))
}
