//! Runs surveys: counts over all tensors of a model, before programs compute the first.

use super::EngineError;
use super::Observer;
use super::budget::{MEASURED_BLOCKS, Settings};
use super::job::{Job, Work};
use super::lane::{Lane, Scratch, views};
use super::program::{Block, Pass, Program};
use super::scan::{in_order, pieces, pool};
use numeric::{Elements, Real, resize};

/// Runs the surveys of some jobs' programs, one after the other, unless they are over. Returns the bytes that it read.
///
/// Until a survey is over, the first pass of its programs is the one that counts. What is counted are integers, so the
/// result is the same at any number of threads.
///
/// # Errors
/// The observer stopped it, there is no memory, or the threads could not be started.
pub fn survey(
    jobs: &[Job<'_>],
    settings: &Settings,
    observer: &dyn Observer,
) -> Result<u64, EngineError> {
    let pool = pool(settings.threads)?;
    let mut read = 0;
    loop {
        let mut surveys = jobs.iter().filter_map(|job| job.work.survey());
        let next = surveys.find_map(|survey| Some((survey, survey.counts()?)));
        let Some((survey, length)) = next else {
            return Ok(read);
        };
        let blocks = |job: &Job<'_>| match job.work.survey() {
            Some(other) if std::ptr::addr_eq(other, survey) => job.work.blocks() as u64,
            _ => 0,
        };
        let pieces = pieces(jobs.iter().map(blocks), MEASURED_BLOCKS as u64);
        let begin = |_| Worker::default();
        let step = |worker: &mut Worker, number: usize| {
            if observer.cancelled() {
                return Err(EngineError::Cancelled);
            }
            resize(&mut worker.counts, length, 0)?;
            let piece = &pieces[number];
            let work = &jobs[piece.of].work;
            for index in piece.range.clone() {
                let bytes = worker.count(work, index as usize)?;
                observer.advance(bytes as u64);
                worker.read += bytes as u64;
            }
            Ok(())
        };
        let workers = in_order(&pool, pieces.len(), begin, step)?;
        let mut counts = Vec::new();
        resize(&mut counts, length, 0)?;
        for worker in workers {
            let pairs = counts.iter_mut().zip(&worker.counts);
            pairs.for_each(|(total, count)| *total += count);
            read += worker.read;
        }
        survey.decide(&counts);
    }
}

/// What a thread has counted, and its buffers.
#[derive(Default)]
struct Worker {
    scratch: Scratch,
    counts: Vec<u64>,
    read: u64,
}

impl Worker {
    /// Counts in a block; returns the bytes read.
    fn count(&mut self, work: &Work<'_>, index: usize) -> Result<usize, EngineError> {
        let Work::Compute {
            sources, program, ..
        } = work
        else {
            return Ok(0);
        };
        let (first, length) = work.block(index);
        let place = (index, first, length);
        match work.wants_f64() {
            true => count(
                &mut self.scratch.double,
                sources,
                *program,
                place,
                &mut self.counts,
            ),
            false => count(
                &mut self.scratch.single,
                sources,
                *program,
                place,
                &mut self.counts,
            ),
        }
    }
}

fn count<R: Real, P: Program<R> + ?Sized>(
    lane: &mut Lane<R>,
    sources: &[Box<dyn Elements + '_>],
    program: &P,
    (index, first, length): (usize, u64, usize),
    counts: &mut [u64],
) -> Result<usize, EngineError> {
    let Pass::Measure(measure) = program.next(&[]) else {
        return Ok(0);
    };
    let read = lane.fill(sources, first, length)?;
    let block = Block {
        index,
        first,
        sources: &views(&lane.sources, sources.len()),
        next: &[],
        carried: None,
    };
    measure.block(block, &mut [], counts)?;
    Ok(read)
}
