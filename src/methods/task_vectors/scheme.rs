//! What the task vector methods choose from. Knows no pass and no mask.

/// Elements processed at a time, so that partial results stay in the first-level cache.
pub(in super::super) const STRIP: usize = 512;

/// Which elements of a task vector are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Sparsifier {
    /// All.
    None,
    /// The largest of the tensor.
    Magnitude,
    /// The largest of the tensor, except for the very largest.
    Outliers,
    /// Each with the same probability.
    Random,
    /// Each with a probability that rises with its rank in its row.
    ByRank,
}

/// Which of the weighted task vectors are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Consensus {
    /// All.
    None,
    /// Those with the sign of their sum.
    WeightedSign,
    /// Those with the sign of the sum of the unweighted task vectors.
    Sign,
}
