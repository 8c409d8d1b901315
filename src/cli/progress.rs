//! A bar on a terminal, a line at the start otherwise; and the flag by which the user stops a run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal};

use super::output::say;
use crate::engine::Observer;
use crate::plan::Plan;

/// Shows how far a run is.
pub(super) struct Progress {
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
}

impl Progress {
    pub(super) fn start(plan: &Plan, quiet: bool, stop: Arc<AtomicBool>) -> Self {
        let target = if quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(10)
        };
        let bar =
            ProgressBar::with_draw_target(Some(plan.bytes_read + plan.bytes_written()), target);
        if let Ok(style) = ProgressStyle::with_template(
            "{bar:30} {percent:>3}%  {decimal_bytes_per_sec}  {eta} left  {msg}",
        ) {
            bar.set_style(style);
        }
        bar.set_message(plan.method.name);
        if !quiet && !io::stderr().is_terminal() {
            say(&format!(
                "merging {} tensors of {} models by {}",
                plan.tensors.len(),
                plan.models.len(),
                plan.method.name
            ));
        }
        Self { bar, stop }
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Progress {
    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Relaxed)
    }
}
