//! Threads that take work in order: the loop under every pass of the engine; and [`scan`], the same loop for code
//! that reads data without computing tensors.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use rayon::ThreadPool;

use super::EngineError;

/// A range of elements or bytes of one of several items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The index of the item.
    pub of: usize,
    /// The range within it.
    pub range: std::ops::Range<u64>,
}

/// Cuts items of these lengths into pieces of at most `longest` each, in order.
pub fn pieces(lengths: impl IntoIterator<Item = u64>, longest: u64) -> Vec<Piece> {
    let longest = longest.max(1);
    let cut = |(of, length): (usize, u64)| {
        (0..length.div_ceil(longest)).map(move |number| {
            let start = number * longest;
            Piece {
                of,
                range: start..length.min(start + longest),
            }
        })
    };
    lengths.into_iter().enumerate().flat_map(cut).collect()
}

/// Calls `look` on every item; the threads take items in order. Returns the results in the order of the items.
///
/// Each thread has its own scratch, which `look` may use freely.
///
/// # Errors
/// The error of the first item in order that has one, whichever thread fails first; [`EngineError::Cancelled`] if
/// `cancelled`, called before every item, returns true; [`EngineError::Threads`] if the threads cannot be started.
pub fn scan<I: Sync, S: Default + Send, T: Send, E: From<EngineError> + Send>(
    items: &[I],
    threads: usize,
    cancelled: &(dyn Fn() -> bool + Sync),
    look: impl Fn(&mut S, &I) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let pool = pool(threads)?;
    let begin = |_| (S::default(), Vec::new());
    let step = |(scratch, seen): &mut (S, Vec<(usize, T)>), number: usize| {
        if cancelled() {
            return Err(E::from(EngineError::Cancelled));
        }
        seen.push((number, look(scratch, &items[number])?));
        Ok(())
    };
    let workers = in_order(&pool, items.len(), begin, step)?;
    let mut seen: Vec<(usize, T)> = workers.into_iter().flat_map(|(_, seen)| seen).collect();
    seen.sort_unstable_by_key(|(number, _)| *number);
    Ok(seen.into_iter().map(|(_, seen)| seen).collect())
}

/// A pool of this many worker threads.
///
/// # Errors
/// If the system cannot start them.
pub(super) fn pool(threads: usize) -> Result<ThreadPool, EngineError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("weld-{index}"))
        .build()
        .map_err(|source| EngineError::Threads { threads, source })
}

/// All threads of the pool take the numbers below `count`, one at a time, until none is left or a step fails.
/// `begin` makes each thread's state from the thread's index; the states are returned.
///
/// Numbers are taken in order, and a step that has begun is finished. So the error of the smallest failing number
/// is returned, however many threads there are.
pub(super) fn in_order<W: Send, E: Send>(
    pool: &ThreadPool,
    count: usize,
    begin: impl Fn(usize) -> W + Sync,
    step: impl Fn(&mut W, usize) -> Result<(), E> + Sync,
) -> Result<Vec<W>, E> {
    let taken = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let failure: Mutex<Option<(usize, E)>> = Mutex::new(None);
    let workers = pool.broadcast(|context| {
        let mut worker = begin(context.index());
        while !stop.load(Relaxed) {
            let number = taken.fetch_add(1, Relaxed);
            if number >= count {
                break;
            }
            if let Err(error) = step(&mut worker, number) {
                stop.store(true, Relaxed);
                // A poisoned lock means that a worker panicked; rayon passes that panic on.
                let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                if failure.as_ref().is_none_or(|(first, _)| number < *first) {
                    *failure = Some((number, error));
                }
            }
        }
        worker
    });
    let failure = failure.into_inner();
    match failure.unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(workers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use errors::Refusal;

    #[test]
    fn pieces_cover_each_thing_once() {
        let found = pieces([5, 0, 4], 2);
        let expected = [(0, 0..2), (0, 2..4), (0, 4..5), (2, 0..2), (2, 2..4)];
        let expected = expected.map(|(of, range)| Piece { of, range });
        assert_eq!(found, expected);
    }

    #[test]
    fn what_was_seen_comes_in_order_and_each_thread_has_its_scratch() {
        let items: Vec<u64> = (0..1000).collect();
        for threads in [1, 2, 5] {
            let look = |scratch: &mut Vec<u64>, item: &u64| {
                scratch.push(*item);
                // Numbers are taken in order, so a thread has only seen smaller ones.
                assert!(scratch.is_sorted());
                Ok::<_, EngineError>(item * 2)
            };
            let seen = scan(&items, threads, &|| false, look).unwrap();
            assert_eq!(seen, items.iter().map(|item| item * 2).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_first_failure_in_order_is_told() {
        let items: Vec<usize> = (0..64).collect();
        for _ in 0..50 {
            let look = |_: &mut (), item: &usize| match item {
                // The later item fails at once, the earlier one after it.
                20 => {
                    std::thread::sleep(std::time::Duration::from_micros(200));
                    Err(Refusal::from("the first"))
                }
                21 => Err(Refusal::from("the second")),
                _ => Ok(()),
            };
            let error = scan(&items, 4, &|| false, look).unwrap_err();
            assert_eq!(error.to_string(), "the first");
        }
    }

    #[test]
    fn a_stop_is_asked_for_before_every_item() {
        let seen = AtomicUsize::new(0);
        let look = |_: &mut (), _: &usize| {
            seen.fetch_add(1, Relaxed);
            Ok::<_, EngineError>(())
        };
        let stopped = || seen.load(Relaxed) == 3;
        let error = scan(&[0; 10], 1, &stopped, look).unwrap_err();
        assert!(matches!(error, EngineError::Cancelled));
        assert_eq!(seen.load(Relaxed), 3);
    }
}
