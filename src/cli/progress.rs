//! A bar on a terminal, otherwise a line at the start; or what a program hears.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering::Relaxed};

use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal};

use terminal_size::{Width, terminal_size_of};

use super::caller::Caller;
use super::output::say;
use checkpoint::Checkpoint;
use engine::Observer;
use plan::Plan;
use run::Share;

/// Shows the progress of a run.
pub(super) struct Progress {
    caller: Caller,
    bar: ProgressBar,
    /// The line that is printed when the work begins, if no bar shows it.
    line: String,
    announced: AtomicBool,
    /// The width of the terminal that the bar was made for.
    width: AtomicU16,
    /// Whether it counts things, not bytes.
    counts: bool,
}

impl Progress {
    pub(super) fn start(plan: &Plan, caller: &Caller) -> Self {
        let line = line(plan, plan.tensors.len());
        let bytes = plan.bytes_read + plan.scratch_bytes() + plan.bytes_written();
        Self::over(bytes, plan.method.name, line, caller)
    }

    /// For a part of a plan.
    pub(super) fn start_part(plan: &Plan, share: &Share, caller: &Caller) -> Self {
        let line = line(plan, share.tensors.len());
        let bytes = share.read + plan.scratch_bytes() + share.written;
        Self::over(bytes, plan.method.name, line, caller)
    }

    /// For a checkpoint that is verified, with a plan if there is one.
    pub(super) fn verifying(model: &Checkpoint, plan: Option<&Plan>, caller: &Caller) -> Self {
        let bytes = bytes_of(model) + plan.map_or(0, |plan| plan.bytes_read + plan.scratch_bytes());
        let line = format!("verifying {} tensors", model.tensors().len());
        Self::over(bytes, "verifying", line, caller)
    }

    /// For checkpoints that are read once.
    pub(super) fn reading(models: &[&Checkpoint], what: &'static str, caller: &Caller) -> Self {
        let bytes = models.iter().map(|model| bytes_of(model)).sum();
        let tensors: usize = models.iter().map(|model| model.tensors().len()).sum();
        let line = format!("{what} {tensors} tensors");
        Self::over(bytes, what, line, caller)
    }

    /// For files that are hashed whole.
    pub(super) fn hashing(bytes: u64, what: &'static str, caller: &Caller) -> Self {
        let line = format!("{what}: {} to read", ByteSize(bytes).display().si());
        Self::over(bytes, what, line, caller)
    }

    /// For files that come from the Hub, or go there.
    #[cfg(feature = "hub")]
    pub(super) fn transfer(what: &str, bytes: u64, caller: &Caller) -> Self {
        let line = format!("{what}: {}", ByteSize(bytes).display().si());
        Self::over(bytes, what, line, caller)
    }

    /// For things that are done one by one.
    pub(super) fn counting(things: usize, message: &str, line: String, caller: &Caller) -> Self {
        let mut progress = Self::over(things as u64, message, line, caller);
        progress.counts = true;
        progress.width.store(0, Relaxed);
        progress.fit();
        progress
    }

    fn over(bytes: u64, message: &str, line: String, caller: &Caller) -> Self {
        let shown = match caller {
            Caller::Terminal { quiet, .. } => !quiet,
            Caller::Program(listener) => {
                listener.begin(message, bytes);
                false
            }
        };
        let target = match shown {
            true => ProgressDrawTarget::stderr_with_hz(10),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(bytes), target);
        bar.set_message(message.to_owned());
        let announced = !shown || io::stderr().is_terminal();
        let progress = Self {
            caller: caller.clone(),
            bar,
            line,
            announced: AtomicBool::new(announced),
            width: AtomicU16::new(0),
            counts: false,
        };
        progress.fit();
        progress
    }

    /// Makes the bar fit the terminal, which may have become narrower or wider.
    fn fit(&self) {
        let width = terminal_size_of(io::stderr()).map_or(80, |(Width(width), _)| width);
        if self.width.swap(width, Relaxed) != width
            && let Ok(style) = ProgressStyle::with_template(template(width, self.counts))
        {
            self.bar.set_style(style);
        }
    }

    /// Removes the bar.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// What the bar shows, on one line of the terminal.
fn template(width: u16, counts: bool) -> &'static str {
    match width {
        ..50 => "{wide_bar} {percent:>3}%",
        50..110 if counts => "{wide_bar} {percent:>3}%  {pos} done  {eta} left",
        _ if counts => "{bar:30} {percent:>3}%  {pos} of {len}  {eta} left  {msg}",
        50..110 => "{wide_bar} {percent:>3}%  {decimal_bytes_per_sec}  {eta} left",
        _ => {
            "{bar:30} {percent:>3}%  {decimal_bytes} of {decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left  {msg}"
        }
    }
}

fn bytes_of(model: &Checkpoint) -> u64 {
    model.tensors().iter().map(|tensor| tensor.len).sum()
}

impl Observer for Progress {
    fn advance(&self, bytes: u64) {
        // Only now is it certain that the destination is free.
        if !self.announced.swap(true, Relaxed) {
            say(&self.line);
        }
        match &self.caller {
            Caller::Terminal { .. } => {
                self.fit();
                self.bar.inc(bytes);
            }
            Caller::Program(listener) => listener.advance(bytes),
        }
    }

    fn cancelled(&self) -> bool {
        self.caller.stopped()
    }
}

/// What is said when a plan, or a part of it, begins to run.
fn line(plan: &Plan, tensors: usize) -> String {
    format!(
        "{} {tensors} tensors of {} models by {}",
        match plan.command() {
            "moe" => "assembling",
            _ => "merging",
        },
        plan.stored_models().len(),
        plan.method.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bar is as wide as what is left: what stands beside it must fit, and leave it some room.
    #[test]
    fn the_line_fits_the_narrowest_terminal_of_its_template() {
        let longest = [
            ("{percent:>3}", "100"),
            ("{decimal_bytes_per_sec}", "999.99 MB/s"),
            ("{decimal_bytes}", "999.99 GB"),
            ("{decimal_total_bytes}", "999.99 GB"),
            ("{eta}", "59m"),
            ("{msg}", "checking the attestation"),
            ("{bar:30}", &"#".repeat(30)),
            ("{wide_bar}", ""),
            ("{pos}", "10000000"),
            ("{len}", "10000000"),
        ];
        for (narrowest, room) in [
            (30, 20),
            (40, 20),
            (45, 20),
            (50, 20),
            (60, 20),
            (80, 20),
            (110, 0),
        ] {
            for counts in [false, true] {
                let template = template(narrowest, counts).to_owned();
                let line = longest
                    .iter()
                    .fold(template, |line, (key, text)| line.replace(key, text));
                let length = line.chars().count() + room;
                assert!(length <= usize::from(narrowest), "{narrowest}: {line}");
            }
        }
    }
}
