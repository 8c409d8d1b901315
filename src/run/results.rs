//! Makes each result that is made once: writes it to an unnamed file, which is then read through a map.
//!
//! The system keeps such a file in memory while there is room; it disappears together with the plan.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::destination::{DiskError, Step};
use super::error::RunError;
use super::feed::{Feed, in_steps};
use super::survey;
use super::ties;
use super::work::Work;
use checkpoint::map_parts;
use engine::{self, EngineError, Observer, Sink, Tile, Totals};
use plan::{MergeResult, Plan};

/// Makes the results that are made once, unless that has been done; returns what it read and wrote.
///
/// `file` creates a new unnamed file.
///
/// # Errors
/// Problems that only the weights show, and failures of the disk that holds the files.
pub(super) fn make(
    plan: &Plan,
    file: &dyn Fn() -> Result<File, RunError>,
    feed: Option<&Feed>,
    observer: &dyn Observer,
) -> Result<Totals, RunError> {
    let mut totals = Totals::default();
    let results = plan.results_made_once().into_iter();
    for result in results.filter(|result| !result.is_made()) {
        let of_result = make_one(result, file()?, feed, observer)?;
        totals.read += of_result.read;
        totals.saturated += of_result.saturated;
    }
    Ok(totals)
}

pub(super) fn make_one(
    result: &MergeResult,
    file: File,
    feed: Option<&Feed>,
    observer: &dyn Observer,
) -> Result<Totals, RunError> {
    let mut starts = vec![0; result.plan.tensors.len()];
    let mut parts = Vec::new();
    let mut end = 0;
    for (index, tensor) in result.computed() {
        starts[index] = end;
        parts.push(end..end + tensor.bytes());
        end += tensor.bytes();
    }
    let place = Path::new("a file for results");
    file.set_len(end)
        .map_err(DiskError::at(Step::Allocate, place))?;
    let sink = Scratch { file, starts };
    let plan = &result.plan;
    ties::check(plan, feed, observer)?;
    survey(plan, feed, observer)?;
    let (mut work, mut totals) = (Work::default(), Totals::default());
    in_steps(feed, plan.tensors.len(), observer, |items| {
        let jobs = work.of_result(result, items)?;
        let done = engine::execute(&jobs, &plan.settings, &plan.limits, &sink, observer);
        totals += done.map_err(|error| match error {
            EngineError::Write { source, .. } => DiskError::at(Step::Write, place)(source).into(),
            error => RunError::from(error),
        })?;
        Ok(())
    })?;
    let expected: u64 = parts.iter().map(|part| part.end - part.start).sum();
    if totals.written != expected {
        return Err(RunError::Incomplete {
            expected,
            found: totals.written,
        });
    }
    let parts = map_parts(&sink.file, parts);
    let kept = result.keep(parts.map_err(DiskError::at(Step::Read, place))?);
    kept.map_err(|error| RunError::NotPrepared(error.to_string().into()))?;
    Ok(totals)
}

/// The file, and where each tensor starts in it.
struct Scratch {
    file: File,
    starts: Vec<u64>,
}

impl Sink for Scratch {
    fn write(&self, output: usize, offset: u64, bytes: Tile) -> io::Result<()> {
        match self.starts.get(output) {
            Some(start) => self.file.write_all_at(&bytes, start + offset),
            None => Err(io::Error::other("no place is planned for these bytes")),
        }
    }
}
