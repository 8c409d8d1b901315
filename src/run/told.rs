//! Tensors that say how others are stored: they are written before anything is computed, so that the output can be looked
//! at.

use super::destination::Staged;
use super::error::RunError;
use super::output::WrittenWeights;
use super::share::Share;
use super::work::Work;
use engine::{EngineError, Observer};
use numeric::FloatType;
use plan::{Operation, Plan, PlannedTensor, View};

/// The largest such tensor, in bytes: codes are no floats either, and mostly larger.
const MOST: u64 = 64 << 10;

/// Writes them; they are written once more in their turn. Where files are fetched, only what no model has: `is_here`.
///
/// # Errors
/// As of [`run`](super::run).
pub(super) fn write(
    plan: &Plan,
    share: &Share,
    staged: &mut dyn Staged,
    is_here: bool,
    observer: &dyn Observer,
) -> Result<(), RunError> {
    let tensors = plan.tensors.iter().zip(0..);
    let told: Vec<usize> = tensors
        .filter(|(tensor, _)| tells(tensor, is_here))
        .map(|(_, at)| at)
        .collect();
    if told.is_empty() {
        return Ok(());
    }
    let weights = WrittenWeights::new(plan, share, staged);
    let jobs = Work::default().outputs(plan, told, None)?;
    let settings = &plan.settings;
    let done = engine::execute(&jobs, settings, &plan.limits, &weights, &Early(observer));
    drop(weights);
    if let Err(EngineError::Write { .. }) = done {
        // The engine knows no files.
        staged.finish()?;
    }
    done?;
    Ok(())
}

fn tells(tensor: &PlannedTensor, is_here: bool) -> bool {
    let is_copied = matches!(tensor.views.as_slice(), [Some(View::Stored(_))]);
    match tensor.operation {
        Operation::Constant(_) => true,
        Operation::Copy if is_copied && is_here => {
            FloatType::from_dtype(tensor.dtype).is_none() && tensor.bytes() <= MOST
        }
        _ => false,
    }
}

/// Counts no progress: all is written once more.
struct Early<'a>(&'a dyn Observer);

impl Observer for Early<'_> {
    fn advance(&self, _: u64) {}

    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}
