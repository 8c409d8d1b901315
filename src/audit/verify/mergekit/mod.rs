//! mergekit's arithmetic, operation by operation, so that a merge that it made can be recomputed to the byte.
//!
//! Nothing here merges, and the methods of the product know nothing of it. A [`Replay`] gets the checkpoint's own
//! values as one more source. mergekit makes some choices that nothing records: which of equal magnitudes are kept, the
//! last bits of a sum. Where one of the possible choices results in the checkpoint's value, the replay returns that
//! value, and counts how often it had to: see [`Evidence`].

mod chance;
mod rounding;
mod search;
mod sums;
mod tasks;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub use rounding::Profile;

use engine::AnyProgram;
use methods::{Tensor, TensorParams};
use numeric::{FloatType, Real};

/// How mergekit made one tensor: a program whose last source is the checkpoint's tensor.
pub(super) trait Replay: AnyProgram {
    /// What its result is based on besides recipe and inputs; known after it has run.
    fn evidence(&self) -> Evidence;
}

/// What a replay took from the checkpoint itself.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Evidence {
    /// Elements with more than one possible value, because their magnitude equals a threshold.
    pub(super) tied: u64,
    /// The largest distance of a weight, one for a whole tensor or row, from the recomputed one. Weights come from norms
    /// and angles, whose last digits depend on the order of a sum.
    pub(super) shifted: f64,
    /// Whether only bounds are known, because a random mask decides.
    pub(super) bounds_only: bool,
}

/// How mergekit makes a tensor; `None` if its arithmetic is not reproduced here.
///
/// `output` is the format of the checkpoint's tensor.
pub(super) fn replay(
    profile: Profile,
    method: &str,
    params: &TensorParams,
    tensor: &Tensor<'_>,
    output: FloatType,
) -> Option<Box<dyn Replay>> {
    let density = |source| params.source_number(source, "density");
    let others = (0..tensor.sources).filter(|&source| Some(source) != tensor.base);
    let whole = || others.clone().all(|source| density(source) >= 1.0);
    match method {
        "linear" => Some(Box::new(sums::Linear::new(profile, params, tensor))),
        "passthrough" => Some(Box::new(sums::Scaled::new(profile, params)?)),
        "task_arithmetic" => tasks::replay(profile, params, tensor, output, false),
        "ties" => tasks::trimmed(profile, params, tensor, output),
        // If everything is kept, nothing is drawn.
        "dare_linear" | "della_linear" if whole() => {
            tasks::replay(profile, params, tensor, output, false)
        }
        "dare_ties" | "della" if whole() => tasks::replay(profile, params, tensor, output, true),
        "dare_linear" | "dare_ties" | "della" | "della_linear" => {
            chance::replay(profile, params, tensor, output)
        }
        "slerp" | "nuslerp" | "model_stock" => {
            search::replay(profile, method, params, tensor, output)
        }
        _ => None,
    }
}

/// A value after it has been stored in a format and read back.
fn stored<R: Real>(output: FloatType, value: R) -> R {
    let mut bytes = [0; 8];
    let bytes = &mut bytes[..output.size()];
    output.encode(&mut [value], true, bytes);
    let mut back = [R::ZERO];
    output.decode(bytes, &mut back);
    back[0]
}

/// The largest number that any thread has seen.
#[derive(Debug, Default)]
struct Most(AtomicU64);

impl Most {
    fn see(&self, value: u64) {
        self.0.fetch_max(value, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
