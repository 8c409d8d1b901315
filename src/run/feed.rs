//! The order in which weight files that lie elsewhere are fetched, used and dropped.
//!
//! A run computes tensors in an order that is known before it begins, so it is known too which files each tensor needs,
//! and when a file is needed for the last time. Consecutive tensors that need the same files are one step. Files are
//! fetched in that order, by threads of their own, as far ahead as there is room. Where there is too little room for a
//! file to stay until it is needed again, the one whose next use is furthest away is dropped, and fetched again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use bytesize::ByteSize;

use super::error::RunError;
use super::share::Share;
use super::ties;
use checkpoint::RemoteFile;
use engine::Observer;
use errors::Refusal;
use plan::{MergeResult, Plan, PlannedTensor};

/// How many files are fetched at a time.
const AT_A_TIME: usize = 4;

/// How often those who wait look whether the user wants to stop.
const LOOK: Duration = Duration::from_millis(200);

/// What a run fetches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetches {
    /// How many files.
    pub files: usize,
    /// Their bytes, each counted once.
    pub bytes: u64,
    /// The bytes that come: more, if there is too little room for a file to stay until it is needed again.
    pub fetched: u64,
    /// The files that come more than once.
    pub again: Vec<String>,
    /// The most bytes that are needed at once.
    pub needed: u64,
}

/// What a plan fetches if files may take so much room at once; none if all it reads is here.
///
/// # Errors
/// The room is too little for some tensor.
pub fn fetches(plan: &Plan, limit: Option<u64>) -> Result<Option<Fetches>, RunError> {
    Ok(Feed::new(plan, &Share::whole(plan), limit)?.map(|feed| feed.fetches()))
}

/// Some tensors that are computed together, and the files that they need.
#[derive(Debug, Default, PartialEq, Eq)]
struct Step {
    /// The items of the run, counted over all its parts.
    items: Range<usize>,
    /// Whether it is the last of its part of the run.
    ends_part: bool,
    /// What is dropped before its files have room.
    make_room: Vec<usize>,
    /// What is fetched for it.
    fetch: Vec<usize>,
    /// What nothing needs after it.
    done_with: Vec<usize>,
}

/// The files that a run fetches, and when.
pub(super) struct Feed {
    files: Vec<Arc<dyn RemoteFile>>,
    steps: Vec<Step>,
    limit: u64,
    needed: u64,
    now: Mutex<Now>,
    changed: Condvar,
}

/// How far it has come.
#[derive(Default)]
struct Now {
    /// The step that is run next.
    step: usize,
    /// The next fetch, as a step and a place in its list.
    next: (usize, usize),
    /// How many files of each step have come.
    came: BTreeMap<usize, usize>,
    /// The files that take room.
    held: BTreeSet<usize>,
    failed: Option<Refusal>,
    stopped: bool,
}

/// The files that a plan needs, and which of them each item of each part of the run does.
#[derive(Default)]
struct Needs {
    files: Vec<Arc<dyn RemoteFile>>,
    /// For each part of the run, for each item, its files in ascending order, and its tensor: none of a look at the
    /// whole model.
    parts: Vec<Vec<(Option<String>, BTreeSet<usize>)>>,
}

impl Needs {
    fn number(&mut self, file: Arc<dyn RemoteFile>) -> usize {
        let known = self
            .files
            .iter()
            .position(|known| Arc::ptr_eq(known, &file));
        known.unwrap_or_else(|| {
            self.files.push(file);
            self.files.len() - 1
        })
    }

    /// A part of the run that compares tied tensors.
    fn add_ties(&mut self, plan: &Plan) {
        let items = ties::pairs(plan)
            .into_iter()
            .map(|(model, left_out, kept)| {
                let places = [left_out, kept].map(|tensor| model.remote(tensor));
                let files = places
                    .into_iter()
                    .flatten()
                    .map(|place| self.number(place.file));
                (
                    Some(model.tensors()[left_out].name.clone()),
                    files.collect(),
                )
            });
        let items = items.collect();
        self.parts.push(items);
    }

    /// A part of the run that looks at all tensors before it computes the first, if there is such a part: it needs all
    /// files at once.
    fn add_survey(&mut self, plan: &Plan) {
        if plan.is_surveyed() {
            let places = plan.tensors.iter().flat_map(|tensor| plan.remote(tensor));
            let files = places.map(|place| self.number(place.file)).collect();
            self.parts.push(vec![(None, files)]);
        }
    }

    /// A part of the run that computes tensors.
    fn add_tensors<'p>(&mut self, plan: &Plan, tensors: impl Iterator<Item = &'p PlannedTensor>) {
        let items = tensors.map(|tensor| {
            let places = plan.remote(tensor).into_iter();
            let files = places.map(|place| self.number(place.file)).collect();
            (Some(tensor.name.clone()), files)
        });
        let items = items.collect();
        self.parts.push(items);
    }
}

impl Feed {
    /// Plans what is fetched, if anything is: first for the results that are made once, then for the output.
    ///
    /// # Errors
    /// A tensor, or a look at the whole model, needs more room than `limit`.
    pub(super) fn new(
        plan: &Plan,
        share: &Share,
        limit: Option<u64>,
    ) -> Result<Option<Feed>, RunError> {
        if (plan.stored_models().iter()).all(|model| model.location().remote.is_empty()) {
            return Ok(None);
        }
        let mut needs = Needs::default();
        for result in plan
            .results_made_once()
            .into_iter()
            .filter(|result| !result.is_made())
        {
            let MergeResult { plan, .. } = result;
            needs.add_ties(plan);
            needs.add_survey(plan);
            needs.add_tensors(plan, plan.tensors.iter());
        }
        if share.is_first() {
            needs.add_ties(plan);
        }
        needs.add_survey(plan);
        let tensors = share.tensors.iter().map(|&tensor| &plan.tensors[tensor]);
        needs.add_tensors(plan, tensors);
        let limit = limit.unwrap_or(u64::MAX);
        let sizes: Vec<u64> = needs.files.iter().map(|file| file.size()).collect();
        let room_of = |files: &BTreeSet<usize>| files.iter().map(|&file| sizes[file]).sum::<u64>();
        let most = needs
            .parts
            .iter()
            .flatten()
            .max_by_key(|(_, files)| room_of(files));
        let needed = most.map_or(0, |(_, files)| room_of(files));
        if let Some((tensor, files)) = most.filter(|_| needed > limit) {
            let files = files.iter().map(|&file| needs.files[file].name());
            return Err(RunError::ScratchTooSmall {
                tensor: tensor.clone(),
                files: files.collect(),
                needed,
                limit,
            });
        }
        let parts: Vec<Vec<&BTreeSet<usize>>> = (needs.parts.iter())
            .map(|part| part.iter().map(|(_, files)| files).collect())
            .collect();
        let steps = steps(&parts, &sizes, limit);
        Ok(Some(Feed {
            files: needs.files,
            steps,
            limit,
            needed,
            now: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// What comes.
    fn fetches(&self) -> Fetches {
        let mut times = vec![0; self.files.len()];
        for &file in self.steps.iter().flat_map(|step| &step.fetch) {
            times[file] += 1;
        }
        let sum = |of: &dyn Fn(u64) -> u64| {
            let files = self.files.iter().zip(&times);
            files.map(|(file, &times)| file.size() * of(times)).sum()
        };
        let again = self
            .files
            .iter()
            .zip(&times)
            .filter(|(_, times)| **times > 1);
        Fetches {
            files: self.files.len(),
            bytes: sum(&|times| times.min(1)),
            fetched: sum(&|times| times),
            again: again.map(|(file, _)| file.name()).collect(),
            needed: self.needed,
        }
    }

    /// Runs `work`, while threads fetch what it needs next.
    ///
    /// # Errors
    /// As `work`; or the disk has too little room, or cannot be written.
    pub(super) fn run<T>(
        &self,
        observer: &dyn Observer,
        work: impl FnOnce() -> Result<T, RunError>,
    ) -> Result<T, RunError> {
        for file in &self.files {
            file.begin().map_err(RunError::NotFetched)?;
        }
        let wanted = self.limit.min(self.fetches().bytes);
        if let Some(free) = self.files.first().and_then(|file| file.room())
            && free < wanted
        {
            return Err(RunError::NoScratch { wanted, free });
        }
        thread::scope(|scope| {
            for _ in 0..AT_A_TIME.min(self.files.len()) {
                scope.spawn(|| self.fetch_all(observer));
            }
            let _over = Over(self);
            work()
        })
    }

    /// Calls `compute` with the items of the next part of the run, step by step, when their files are here. Parts come in
    /// the order in which they were planned.
    ///
    /// # Errors
    /// As `compute`; or a file cannot be fetched, or the observer stopped it.
    pub(super) fn part(
        &self,
        observer: &dyn Observer,
        mut compute: impl FnMut(Range<usize>) -> Result<(), RunError>,
    ) -> Result<(), RunError> {
        let mut first = None;
        loop {
            let step = self.now().step;
            let Some(step) = self.steps.get(step) else {
                return Ok(());
            };
            let first = *first.get_or_insert(step.items.start);
            self.begin(step, observer)?;
            compute(step.items.start - first..step.items.end - first)?;
            self.end(step)?;
            if step.ends_part {
                return Ok(());
            }
        }
    }

    /// Waits for the files of a step.
    fn begin(&self, step: &Step, observer: &dyn Observer) -> Result<(), RunError> {
        self.drop_files(&step.make_room)?;
        let mut now = self.now();
        loop {
            if observer.cancelled() {
                return Err(RunError::Cancelled);
            }
            if let Some(failed) = &now.failed {
                return Err(RunError::NotFetched(failed.clone()));
            }
            let came = now.came.get(&now.step).copied().unwrap_or(0);
            if came == step.fetch.len() {
                return Ok(());
            }
            let waited = self.changed.wait_timeout(now, LOOK);
            now = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn end(&self, step: &Step) -> Result<(), RunError> {
        self.drop_files(&step.done_with)?;
        self.now().step += 1;
        Ok(())
    }

    /// Drops files that nobody reads, and lets others have their room.
    fn drop_files(&self, files: &[usize]) -> Result<(), RunError> {
        for file in files {
            let dropped = self.files[*file].drop_content();
            dropped.map_err(RunError::NotFetched)?;
            self.now().held.remove(file);
        }
        self.changed.notify_all();
        Ok(())
    }

    /// Fetches what comes next, until nothing does.
    fn fetch_all(&self, observer: &dyn Observer) {
        while let Some((step, file)) = self.next() {
            let stopped = || observer.cancelled() || self.is_over();
            let came = self.files[file].fetch(&stopped);
            let mut now = self.now();
            match came {
                Ok(()) => *now.came.entry(step).or_insert(0) += 1,
                Err(error) => {
                    now.failed.get_or_insert(error);
                }
            }
            self.changed.notify_all();
        }
    }

    /// Takes the next file, and room for it. Waits until there is room, and the file is not there from an earlier use.
    fn next(&self) -> Option<(usize, usize)> {
        let mut now = self.now();
        loop {
            if now.stopped || now.failed.is_some() {
                return None;
            }
            let (step, place) = now.next;
            let Some(&file) = self.steps.get(step)?.fetch.get(place) else {
                now.next = (step + 1, 0);
                continue;
            };
            let held: u64 = now.held.iter().map(|&held| self.files[held].size()).sum();
            let has_room = held.saturating_add(self.files[file].size()) <= self.limit;
            if has_room && now.held.insert(file) {
                now.next = (step, place + 1);
                return Some((step, file));
            }
            now = self
                .changed
                .wait(now)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn is_over(&self) -> bool {
        let now = self.now();
        now.stopped || now.failed.is_some()
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the threads that fetch end, however the work ends.
struct Over<'f>(&'f Feed);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.now().stopped = true;
        self.0.changed.notify_all();
    }
}

/// Calls `compute` for so many items: all at once, or as their files come.
pub(super) fn in_steps(
    feed: Option<&Feed>,
    items: usize,
    observer: &dyn Observer,
    mut compute: impl FnMut(Range<usize>) -> Result<(), RunError>,
) -> Result<(), RunError> {
    match feed {
        Some(feed) => feed.part(observer, compute),
        None => compute(0..items),
    }
}

/// Cuts the parts of a run into steps, and says for each what is fetched and dropped, so that never more than `limit` is
/// held. Every item alone needs less.
fn steps(parts: &[Vec<&BTreeSet<usize>>], sizes: &[u64], limit: u64) -> Vec<Step> {
    let none = BTreeSet::new();
    let mut steps: Vec<(Step, &BTreeSet<usize>)> = Vec::new();
    let mut first = 0;
    for part in parts {
        let mut open = (Step::default(), &none);
        open.0.items = first..first;
        for files in part {
            let stays = files.is_empty() || *files == open.1;
            if !stays && !open.0.items.is_empty() && !open.1.is_empty() {
                let end = open.0.items.end;
                let next = Step {
                    items: end..end,
                    ..Step::default()
                };
                steps.push(std::mem::replace(&mut open, (next, files)));
            }
            if !stays {
                open.1 = files;
            }
            open.0.items.end += 1;
        }
        first = open.0.items.end;
        open.0.ends_part = true;
        steps.push(open);
    }
    let needs: Vec<&BTreeSet<usize>> = steps.iter().map(|(_, files)| *files).collect();
    let next_use = |file: usize, after: usize| {
        let later = needs.iter().skip(after + 1);
        later.clone().position(|files| files.contains(&file))
    };
    let room_of = |files: &BTreeSet<usize>| files.iter().map(|&file| sizes[file]).sum::<u64>();
    let mut held = BTreeSet::new();
    let mut done = Vec::new();
    for (at, (mut step, files)) in steps.into_iter().enumerate() {
        step.fetch = files.difference(&held).copied().collect();
        let wanted: u64 = step.fetch.iter().map(|&file| sizes[file]).sum();
        while room_of(&held).saturating_add(wanted) > limit {
            // All that is held will be used again, or it would have been dropped.
            let spare = held.difference(files).copied();
            let Some(last) = spare.max_by_key(|&file| next_use(file, at)) else {
                break;
            };
            held.remove(&last);
            step.make_room.push(last);
        }
        held.extend(&step.fetch);
        step.done_with = (held.iter().copied())
            .filter(|&file| next_use(file, at).is_none())
            .collect();
        held.retain(|file| !step.done_with.contains(file));
        done.push(step);
    }
    done
}

/// What is said of what comes.
impl std::fmt::Display for Fetches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let size = |bytes: u64| ByteSize(bytes).display().si();
        let files = match self.files {
            1 => "1 weight file".to_owned(),
            files => format!("{files} weight files"),
        };
        write!(
            f,
            "{files} of {} to fetch; at least {} at once",
            size(self.bytes),
            size(self.needed)
        )?;
        match self.again.as_slice() {
            [] => Ok(()),
            again => write!(
                f,
                "; with this limit {} are fetched, as these come more than once: {}",
                size(self.fetched),
                errors::some_of(again, 4)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

    use proptest::prelude::*;

    use super::*;

    /// What all files of a test share.
    #[derive(Debug, Default)]
    struct Disk {
        held: AtomicU64,
        most: AtomicU64,
        fetched: AtomicU64,
        fails: AtomicBool,
    }

    #[derive(Debug)]
    struct Fake {
        disk: Arc<Disk>,
        size: u64,
        here: AtomicBool,
    }

    impl RemoteFile for Fake {
        fn name(&self) -> String {
            "a file".into()
        }

        fn size(&self) -> u64 {
            self.size
        }

        fn is_header_only(&self) -> bool {
            false
        }

        fn peek(&self, _: &[Range<u64>]) -> Result<(), Refusal> {
            Ok(())
        }

        fn begin(&self) -> Result<(), Refusal> {
            Ok(())
        }

        fn fetch(&self, _: &(dyn Fn() -> bool + Sync)) -> Result<(), Refusal> {
            if self.disk.fails.load(SeqCst) {
                return Err("it does not come".into());
            }
            let held = self.disk.held.fetch_add(self.size, SeqCst) + self.size;
            self.disk.most.fetch_max(held, SeqCst);
            self.disk.fetched.fetch_add(1, SeqCst);
            thread::yield_now();
            assert!(!self.here.swap(true, SeqCst), "it is here already");
            Ok(())
        }

        fn drop_content(&self) -> Result<(), Refusal> {
            assert!(self.here.swap(false, SeqCst), "it is not here");
            self.disk.held.fetch_sub(self.size, SeqCst);
            Ok(())
        }

        fn room(&self) -> Option<u64> {
            None
        }
    }

    struct Free;

    impl Observer for Free {
        fn advance(&self, _: u64) {}

        fn cancelled(&self) -> bool {
            false
        }
    }

    type Parts = Vec<Vec<BTreeSet<usize>>>;

    fn feed(parts: &Parts, sizes: &[u64], limit: u64) -> (Feed, Vec<Arc<Fake>>, Arc<Disk>) {
        let disk = Arc::new(Disk::default());
        let fakes = sizes.iter().map(|&size| {
            Arc::new(Fake {
                disk: Arc::clone(&disk),
                size,
                here: AtomicBool::new(false),
            })
        });
        let fakes: Vec<Arc<Fake>> = fakes.collect();
        let borrowed: Vec<Vec<&BTreeSet<usize>>> =
            parts.iter().map(|part| part.iter().collect()).collect();
        let feed = Feed {
            files: fakes
                .iter()
                .map(|fake| Arc::clone(fake) as Arc<dyn RemoteFile>)
                .collect(),
            steps: steps(&borrowed, sizes, limit),
            limit,
            needed: 0,
            now: Mutex::default(),
            changed: Condvar::new(),
        };
        (feed, fakes, disk)
    }

    /// Runs all parts; every item finds its files, and each comes once. Returns how many fetches there were, and the most
    /// that was held.
    fn run(parts: &Parts, sizes: &[u64], limit: u64) -> (u64, u64) {
        let (feed, fakes, disk) = feed(parts, sizes, limit);
        let done = feed.run(&Free, || {
            for part in parts {
                let mut seen = 0;
                feed.part(&Free, |items| {
                    assert_eq!(items.start, seen);
                    seen = items.end;
                    for files in &part[items] {
                        assert!(files.iter().all(|&file| fakes[file].here.load(SeqCst)));
                    }
                    Ok(())
                })?;
                assert_eq!(seen, part.len());
            }
            Ok(())
        });
        done.unwrap();
        assert_eq!(disk.held.load(SeqCst), 0);
        (disk.fetched.load(SeqCst), disk.most.load(SeqCst))
    }

    fn part(items: &[&[usize]]) -> Vec<BTreeSet<usize>> {
        items
            .iter()
            .map(|files| files.iter().copied().collect())
            .collect()
    }

    #[test]
    fn each_file_comes_once_where_the_order_allows_it() {
        let parts = vec![part(&[&[], &[0], &[0], &[0, 1], &[1], &[], &[1, 2], &[2]])];
        assert_eq!(run(&parts, &[5, 5, 5], 10), (3, 10));
        assert!(run(&parts, &[5, 5, 5], 1000).1 <= 15);
        // The first file is needed at the end again: it stays if there is room, and is fetched again if not.
        let parts = vec![part(&[&[0]]), part(&[&[1], &[2], &[3], &[0]])];
        assert_eq!(run(&parts, &[5; 4], 10), (4, 10));
        assert_eq!(run(&parts, &[5; 4], 5), (5, 5));
        assert_eq!(run(&vec![Vec::new(), part(&[&[0]])], &[5], 5), (1, 5));
    }

    #[test]
    fn what_is_used_last_makes_room() {
        let parts = [part(&[&[0], &[1], &[2], &[1], &[0]])];
        let borrowed: Vec<Vec<&BTreeSet<usize>>> =
            parts.iter().map(|part| part.iter().collect()).collect();
        let fetched: Vec<Vec<usize>> = (steps(&borrowed, &[1; 3], 2).into_iter())
            .map(|step| step.fetch)
            .collect();
        assert_eq!(fetched, [vec![0], vec![1], vec![2], vec![], vec![0]]);
    }

    #[test]
    fn a_file_that_does_not_come_ends_the_run() {
        let parts = vec![part(&[&[0], &[1]])];
        let (feed, _, disk) = feed(&parts, &[5, 5], 5);
        disk.fails.store(true, SeqCst);
        let done = feed.run(&Free, || feed.part(&Free, |_| Ok(())));
        assert_eq!(done.unwrap_err().to_string(), "it does not come");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn any_order_is_served_within_the_limit(
            parts in prop::collection::vec(
                prop::collection::vec(prop::collection::btree_set(0usize..6, 0..4), 0..12),
                1..4,
            ),
            sizes in prop::collection::vec(1u64..20, 6),
            spare in 0u64..30,
        ) {
            let room = |files: &BTreeSet<usize>| files.iter().map(|&file| sizes[file]).sum::<u64>();
            let limit = parts.iter().flatten().map(room).max().unwrap_or(0) + spare;
            let (fetched, most) = run(&parts, &sizes, limit);
            let used: BTreeSet<usize> = parts.iter().flatten().flatten().copied().collect();
            prop_assert!(most <= limit && fetched >= used.len() as u64);
        }
    }
}
