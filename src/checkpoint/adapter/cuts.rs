//! Which part of a tensor an update is for, and which part of the factors it is made of.
//!
//! Most updates are whole factors for a whole matrix. Experts and projections lie by themselves in one model, and fused
//! in another; an adapter may have been trained on either.

use std::ops::Range;

use numeric::{FactorStrides, Order};

/// How a matrix of the model is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lies {
    /// `[out, in]`, as linear maps are; with more dimensions, a convolution.
    OutIn,
    /// `[in, out]`, as GPT-2's Conv1D and embeddings are.
    InOut,
}

/// Some rows of a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rows {
    /// All of them.
    All,
    /// One of several equal parts.
    Part {
        /// Which.
        index: usize,
        /// How many there are.
        of: usize,
    },
    /// Some of so many.
    Range {
        /// Which.
        range: Range<usize>,
        /// How many rows there must be.
        of: usize,
    },
}

impl Rows {
    /// These rows of a matrix that has so many.
    fn of(&self, count: usize) -> Option<Range<usize>> {
        match self {
            Rows::All => Some(0..count),
            Rows::Part { index, of } => {
                let each = count.checked_div(*of)?;
                (each * of == count && index < of).then(|| index * each..(index + 1) * each)
            }
            Rows::Range { range, of } => {
                let is_within = range.start <= range.end && range.end <= count;
                (count == *of && is_within).then(|| range.clone())
            }
        }
    }
}

/// The part of the factors, and the part of the tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cut {
    /// Of factors for several experts: which expert's, and how many there are.
    pub(super) expert: Option<(usize, usize)>,
    /// Which rows of the product, as it is stored.
    pub(super) rows: Rows,
    /// Of a tensor that holds several experts: which expert.
    pub(super) into_expert: Option<usize>,
    /// Which rows of the matrix.
    pub(super) into_rows: Rows,
}

impl Cut {
    /// All of the factors for all of the tensor.
    pub(super) const WHOLE: Cut = Cut {
        expert: None,
        rows: Rows::All,
        into_expert: None,
        into_rows: Rows::All,
    };

    /// How many experts the factors are for.
    pub(super) fn experts(&self) -> usize {
        self.expert.map_or(1, |(_, experts)| experts)
    }
}

/// Where an update goes, and what it is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placement {
    /// The first element that it changes.
    pub(super) first: u64,
    /// How many rows.
    pub(super) rows: usize,
    /// The length of a row.
    pub(super) columns: usize,
    /// How the numbers of `A` lie.
    pub(super) a: Order,
    /// How the numbers of `B` lie.
    pub(super) b: Order,
}

/// Where an update goes in a tensor, and which of its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Region {
    /// The first element that it changes.
    pub(super) first: u64,
    /// How many rows.
    pub(super) rows: usize,
    /// The length of a row.
    pub(super) columns: usize,
    /// The first of the update's rows that is used.
    pub(super) from: usize,
}

/// Where an update from these inputs to so many outputs goes in a tensor of this shape; `None` if it does not fit.
pub(super) fn region(
    shape: &[usize],
    out: usize,
    inputs: &[usize],
    cut: &Cut,
    lies: Lies,
) -> Option<Region> {
    let width = product(inputs)?;
    let (height, across) = match lies {
        Lies::OutIn => (out, width),
        Lies::InOut => (width, out),
    };
    let (before, total, columns) = match (cut.into_expert, shape) {
        (Some(expert), &[experts, rows, columns]) => {
            let same = cut.expert.is_none_or(|(_, of)| of == experts);
            if !same || expert >= experts || inputs.len() != 1 {
                return None;
            }
            (expert * rows * columns, rows, columns)
        }
        (None, [total, kernel @ ..]) if !kernel.is_empty() => {
            let fits = match lies {
                Lies::OutIn => without_ones(kernel) == without_ones(inputs),
                Lies::InOut => kernel.len() == 1 && inputs.len() == 1,
            };
            if !fits {
                return None;
            }
            (0, *total, product(kernel)?)
        }
        _ => return None,
    };
    let (from, into) = (cut.rows.of(height)?, cut.into_rows.of(total)?);
    if from.len() != into.len() || columns != across {
        return None;
    }
    Some(Region {
        first: (before + into.start * columns) as u64,
        rows: into.len(),
        columns,
        from: from.start,
    })
}

/// Where the product of `B`, `[out, rank]`, and `A`, `[rank, in]`, goes in a tensor of this shape; `None` if it does not
/// fit.
///
/// A convolution's `A` has the shape of its kernel, and `B` one of ones. For several experts `A` is `[experts * rank,
/// in]`, and `B` `[out, rank * experts]` with the experts last, as PEFT stores them.
pub(super) fn placement(
    shape: &[usize],
    a: &[usize],
    b: &[usize],
    cut: &Cut,
    lies: Lies,
) -> Option<Placement> {
    let (&out, inputs) = (b.first()?, a.get(1..)?);
    let at = region(shape, out, inputs, cut, lies)?;
    let (mut a, mut b) = orders(a, b, product(inputs)?, cut)?;
    if at.from > 0 {
        match lies {
            Lies::OutIn => b.first += at.from * b.place,
            Lies::InOut => a.first += at.from * a.place,
        }
    }
    let is_whole = cut.expert.is_none() && at.from == 0;
    let order = |strides, plain| match is_whole && cut.rows == Rows::All {
        true => plain,
        false => Order::Strided(strides),
    };
    Some(Placement {
        first: at.first,
        rows: at.rows,
        columns: at.columns,
        a: order(a, Order::ByRank),
        b: order(b, Order::ByPlace),
    })
}

/// Where the numbers of `A` and `B` lie for an expert.
fn orders(
    a: &[usize],
    b: &[usize],
    width: usize,
    cut: &Cut,
) -> Option<(FactorStrides, FactorStrides)> {
    let (expert, experts) = cut.expert.unwrap_or((0, 1));
    let (&ranks, &across) = (a.first()?, b.get(1)?);
    if expert >= experts || !ranks.is_multiple_of(experts) || ranks != across {
        return None;
    }
    let of_a = FactorStrides {
        first: expert * (ranks / experts) * width,
        place: 1,
        rank: width,
    };
    let of_b = FactorStrides {
        first: expert,
        place: ranks,
        rank: experts,
    };
    Some((of_a, of_b))
}

fn product(sizes: &[usize]) -> Option<usize> {
    sizes
        .iter()
        .try_fold(1usize, |all, &size| all.checked_mul(size))
}

/// A shape without the ones at its end: a linear map is a convolution with a kernel of one.
fn without_ones(shape: &[usize]) -> &[usize] {
    let ones = shape.iter().rev().take_while(|&&size| size == 1).count();
    &shape[..(shape.len() - ones).max(1).min(shape.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strided(first: usize, place: usize, rank: usize) -> Order {
        Order::Strided(FactorStrides { first, place, rank })
    }

    #[test]
    fn parts_of_experts_are_found_in_both_layouts() {
        // Three experts of rank 2, from 4 inputs to 6 outputs: gate and up.
        let (a, b) = (&[6, 4][..], &[6, 6][..]);
        let of_second = Cut {
            expert: Some((1, 3)),
            ..Cut::WHOLE
        };
        let fused = Cut {
            into_expert: Some(1),
            ..of_second.clone()
        };
        let at = placement(&[3, 6, 4], a, b, &fused, Lies::OutIn).unwrap();
        assert_eq!((at.first, at.rows, at.columns), (24, 6, 4));
        assert_eq!((at.a, at.b), (strided(8, 1, 4), strided(1, 6, 3)));
        let at = placement(&[3, 4, 6], a, b, &fused, Lies::InOut).unwrap();
        assert_eq!((at.first, at.rows, at.columns), (24, 4, 6));
        let up = Cut {
            rows: Rows::Part { index: 1, of: 2 },
            ..of_second
        };
        let at = placement(&[3, 4], a, b, &up, Lies::OutIn).unwrap();
        assert_eq!((at.first, at.rows, at.b), (0, 3, strided(19, 6, 3)));
        // An expert by itself, into the second half of a fused one.
        let into = Cut {
            into_expert: Some(2),
            into_rows: Rows::Part { index: 1, of: 2 },
            ..Cut::WHOLE
        };
        let at = placement(&[3, 6, 4], &[2, 4], &[3, 2], &into, Lies::OutIn).unwrap();
        assert_eq!((at.first, at.rows), (48 + 12, 3));
        assert_eq!((at.a, at.b), (Order::ByRank, Order::ByPlace));
    }

    #[test]
    fn what_does_not_fit_is_none() {
        let none = |shape: &[usize], a: &[usize], b: &[usize], cut: &Cut| {
            for lies in [Lies::OutIn, Lies::InOut] {
                assert!(placement(shape, a, b, cut, lies).is_none(), "{shape:?}");
            }
        };
        none(&[3], &[1, 3], &[3, 1], &Cut::WHOLE);
        none(&[], &[], &[], &Cut::WHOLE);
        none(&[3, 5], &[1, 4], &[3, 1], &Cut::WHOLE);
        none(
            &[3, usize::MAX, 2],
            &[1, usize::MAX, 2],
            &[3, 1],
            &Cut::WHOLE,
        );
        let expert = |expert, experts, of| Cut {
            expert: Some((expert, experts)),
            into_expert: Some(expert),
            into_rows: Rows::Part { index: 0, of },
            ..Cut::WHOLE
        };
        none(&[2, 3, 4], &[4, 4], &[3, 4], &expert(2, 2, 1));
        none(&[3, 3, 4], &[4, 4], &[3, 4], &expert(1, 2, 1));
        none(&[2, 3, 4], &[3, 4], &[3, 3], &expert(1, 2, 1));
        none(&[2, 3, 4], &[4, 4], &[3, 4], &expert(1, 2, 0));
        none(&[2, 3, 4], &[4, 4], &[3, 4], &expert(1, 2, 2));
    }
}
