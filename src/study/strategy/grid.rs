//! Every combination of values once.

use super::Proposal;
use crate::space::{Dimension, middle};

/// The combination of that number. Dimensions without a finite number of values stay in their middle.
pub(super) fn propose(dimensions: &[Dimension], number: usize) -> Proposal {
    let mut rest = number;
    let mut point = vec![0.5; dimensions.len()];
    for (place, dimension) in point.iter_mut().zip(dimensions).rev() {
        if let Some(count) = dimension.count().filter(|&count| count > 0) {
            *place = middle(rest % count, count);
            rest /= count;
        }
    }
    match rest {
        0 => Proposal::Point(point),
        _ => Proposal::End,
    }
}
