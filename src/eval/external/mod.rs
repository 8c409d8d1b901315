//! Models scored by a program that is not weld: a command is run on the model's folder, and writes JSON in which the metrics
//! are.

mod line;
mod metrics;
mod output;
mod process;

#[cfg(test)]
mod tests;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub use line::CommandLine;
pub use metrics::{Measured, MetricPlace};

use crate::error::EvalError;
use crate::split::Split;
use checkpoint::Checkpoint;
use errors::Refusal;
use process::{End, Ended};

/// The variable by which CUDA is told which GPUs there are.
const GPUS: &str = "CUDA_VISIBLE_DEVICES";
/// The most bytes of JSON that are read.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// A command that scores models, and where its metrics are.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluator {
    /// The command.
    pub line: CommandLine,
    /// The metrics by their places in its JSON; none: the JSON is lm-eval's.
    pub metrics: Vec<MetricPlace>,
    /// The most time that it takes.
    pub time_limit: Option<Duration>,
    /// How often it is run again if it fails.
    pub retries: u32,
    /// The folder in which it is run.
    pub folder: PathBuf,
    /// Texts that are not repeated where its output is, such as passwords in the environment.
    pub secrets: Vec<String>,
}

/// What a run of the command is given.
#[derive(Debug, Clone, Copy)]
pub struct Run<'r> {
    /// The model's folder.
    pub model: &'r Path,
    /// A place for its output, at which nothing is yet.
    pub out: &'r Path,
    /// The part of the items that it is to score.
    pub split: Split,
    /// The GPUs that it may use, as CUDA counts them; none: all that weld may.
    pub gpus: Option<&'r str>,
}

impl Evaluator {
    /// Runs the command on a model, again if it fails and that is allowed.
    ///
    /// # Errors
    /// It cannot be run, fails, takes too long, or gives no number for a metric; or `is_stopped`: then it was ended.
    pub fn measure(
        &self,
        run: &Run<'_>,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Vec<Measured>, EvalError> {
        let mut left = self.retries;
        loop {
            let measured = self.measure_once(run, is_stopped);
            let removed = remove(run.out);
            match measured {
                Err(EvalError::Command { .. }) if left > 0 && !is_stopped() => left -= 1,
                Err(error) => return Err(error),
                Ok(measured) => {
                    removed.map_err(|error| {
                        self.failed(format!("{}: {error}", run.out.display()), "")
                    })?;
                    return Ok(measured);
                }
            }
        }
    }

    fn measure_once(
        &self,
        run: &Run<'_>,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Vec<Measured>, EvalError> {
        let words = self.line.filled(run);
        let Some((program, arguments)) = words.split_first() else {
            return Err(self.failed("there is no program in it", "name one"));
        };
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.folder);
        if let Some(gpus) = run.gpus {
            command.env(GPUS, gpus);
        }
        let ended = process::run(command, self.time_limit, MAX_JSON_BYTES, is_stopped);
        let ended = ended.map_err(|error| {
            let why = format!("cannot run `{}`: {error}", program.display());
            let hint = "it is run as it stands, without a shell: name a program that is installed, or its path";
            self.failed(why, hint)
        })?;
        self.check(&ended)?;
        let json = self.json(run, &ended)?;
        let json = output::parsed(&json).map_err(|why| self.gave_nothing(&why, &ended))?;
        let measured = match self.metrics.is_empty() {
            true => metrics::of_lm_eval(&json),
            false => self.metrics.iter().map(|one| one.read(&json)).collect(),
        };
        measured.map_err(|why| self.gave_nothing(&why, &ended))
    }

    /// Checks that the command ended well.
    fn check(&self, ended: &Ended) -> Result<(), EvalError> {
        let why = match ended.end {
            End::Exited(status) if status.success() => return Ok(()),
            End::Exited(status) => format!("it ended with {status}"),
            End::OutOfTime => {
                let limit = self.time_limit.unwrap_or_default().as_secs_f64();
                format!("it was not done after {limit} s, which is its time limit")
            }
            End::Stopped => return Err(EvalError::Stopped),
        };
        let why = format!("{why}{}", self.said(ended));
        Err(self.failed(why, "run it by hand on a model to see what is wrong"))
    }

    /// The JSON that the command wrote: at the place that it was given, or else to standard output.
    fn json(&self, run: &Run<'_>, ended: &Ended) -> Result<Vec<u8>, EvalError> {
        if !self.line.names_out() {
            return match ended.is_too_long {
                true => Err(self.gave_nothing(&too_long(), ended)),
                false => Ok(ended.stdout.clone()),
            };
        }
        let file = output::file(run.out).map_err(|why| self.gave_nothing(&why, ended))?;
        let mut bytes = Vec::new();
        let read = fs::File::open(&file)
            .and_then(|file| file.take(MAX_JSON_BYTES + 1).read_to_end(&mut bytes));
        match read {
            Err(error) => Err(self.gave_nothing(&format!("{}: {error}", file.display()), ended)),
            Ok(read) if read as u64 > MAX_JSON_BYTES => Err(self.gave_nothing(&too_long(), ended)),
            Ok(_) => Ok(bytes),
        }
    }

    fn gave_nothing(&self, why: &str, ended: &Ended) -> EvalError {
        let why = format!("{why}{}", self.said(ended));
        self.failed(why, "`metrics` gives the place of each number in its JSON")
    }

    /// The end of what the command printed, where there is something.
    fn said(&self, ended: &Ended) -> String {
        let said = ended.said(&self.secrets);
        match said.is_empty() {
            true => String::new(),
            false => format!("; the end of its output: {said}"),
        }
    }

    fn failed(&self, why: impl Into<String>, hint: &str) -> EvalError {
        EvalError::Command {
            program: self.line.program().to_owned(),
            why: Refusal::new(why).with_hint(hint),
        }
    }
}

fn too_long() -> String {
    format!("its JSON is too long: expected at most {MAX_JSON_BYTES} bytes")
}

/// Removes a file or a folder, if there is one.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// The digest of a command and the places of its metrics. Neither stands in it in plain words.
pub fn digest_of_command(line: &CommandLine, metrics: &[MetricPlace]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in [format!("{:?}", line.words()), format!("{metrics:?}")] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_string()
}

/// The folder of a model that lies there as other programs read it: no single file, no adapter over it.
pub fn plain_folder(model: &Checkpoint) -> Option<PathBuf> {
    let location = model.location();
    let is_plain =
        location.path.is_dir() && location.entry.is_none() && location.adapters.is_empty();
    is_plain.then(|| std::path::absolute(&location.path).ok())?
}
