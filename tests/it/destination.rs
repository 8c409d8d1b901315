//! Where a checkpoint goes: every step that puts files in place fails once, or is the last before the process dies, and
//! the place is as it was. By count: a door to the disk lets so many steps pass.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::io::Errno;
use safetensors::Dtype;
use weldment::audit::provenance::{PrivateKey, ToSign};
use weldment::checkpoint::{Locator, MAX_SIDECAR_BYTES};
use weldment::engine::{Budget, Observer, Settings};
use weldment::errors::in_one_line;
use weldment::moe;
use weldment::plan::{self, Options, Plan};
use weldment::recipe::{self, AnyRecipe};
use weldment::run::destination::{Destination, Disk, Folder, Memory, Step, Watch, write_whole};
use weldment::run::{self, LOCK_FILE, RunError, RunOptions, Summary};

use crate::fixtures::{Bench, files, load};
use crate::sources::Silent;
use crate::{quantised_comfy, quantised_experts, quantised_outputs};

const LINEAR: &str =
    "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n";

/// Bytes of a shard: two for a merge of [`bench`].
const SHARD: u64 = 2000;

/// More than any job has steps.
const MANY: usize = 2000;

/// Lets steps pass, or makes them fail, and knows them all.
pub(crate) struct Door {
    seen: Mutex<Vec<(Step, PathBuf)>>,
    rule: Rule,
}

/// For the number of a step, the step and its path: the error that it gets.
type Rule = Box<dyn Fn(usize, Step, &Path) -> Option<Errno> + Send + Sync>;

impl Door {
    pub(crate) fn new(
        rule: impl Fn(usize, Step, &Path) -> Option<Errno> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            seen: Mutex::default(),
            rule: Box::new(rule),
        })
    }

    pub(crate) fn seen(&self) -> Vec<(Step, PathBuf)> {
        self.seen.lock().unwrap().clone()
    }
}

impl Watch for Door {
    fn before(&self, step: Step, path: &Path) -> io::Result<()> {
        let mut seen = self.seen.lock().unwrap();
        let number = seen.len();
        seen.push((step, path.to_owned()));
        drop(seen);
        match (self.rule)(number, step, path) {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }
}

/// Does something at the n-th time that it is asked or told, and may stop the work.
struct At<F> {
    calls: AtomicUsize,
    asked: F,
}

impl<F: Fn(usize) -> bool + Sync> Observer for At<F> {
    fn advance(&self, _: u64) {}

    fn cancelled(&self) -> bool {
        (self.asked)(self.calls.fetch_add(1, SeqCst))
    }
}

fn at<F: Fn(usize) -> bool + Sync>(asked: F) -> At<F> {
    At {
        calls: AtomicUsize::new(0),
        asked,
    }
}

/// Two models with files beside the weights, one of them in a folder.
pub(crate) fn bench() -> Bench {
    let bench = Bench::on_disk();
    bench.llama("a", 1, Dtype::F32);
    bench.llama("b", 2, Dtype::F32);
    bench.file("a/LICENSE", vec![b'x'; 300_000]);
    bench.file("a/1_Pooling/config.json", "{}");
    bench.recipe(LINEAR);
    bench
}

pub(crate) fn planned(bench: &Bench, shard_size: u64) -> Plan {
    let path = bench.path("recipe.yml");
    let locator = Locator {
        working_dir: bench.path(""),
        ..Locator::default()
    };
    let settings = Settings {
        threads: 2,
        memory: Budget::Limit(256 << 20),
        allow_non_finite: false,
        saturate: false,
    };
    let options = Options {
        settings,
        seed: 0,
        shard_size,
        tokenizer_from: None,
    };
    let name = path.display().to_string();
    match recipe::read_any(&path).unwrap() {
        AnyRecipe::Merge(recipe) => plan::plan(&recipe, &name, &locator, &options),
        AnyRecipe::Moe(recipe) => moe::plan(&recipe, &name, &locator, &options.into()),
        AnyRecipe::Edit(_) => panic!("no edit is planned here"),
    }
    .unwrap()
}

/// A test beside this one that starts a process holds the lock of a run that has ended until that process is its own
/// program: such a run is tried again.
fn run_to(plan: &Plan, destination: &dyn Destination) -> Result<Summary, RunError> {
    for _ in 0..1000 {
        let options = RunOptions {
            look: Some(&|_| Ok(())),
            ..RunOptions::default()
        };
        match run::run(plan, destination, options, &at(|_| false)) {
            Err(RunError::OutputLocked { .. }) => std::thread::sleep(Duration::from_millis(10)),
            done => return done,
        }
    }
    panic!("the lock is held for ten seconds");
}

/// What is at a place: files with their folders, by name.
pub(crate) fn tree(path: &Path) -> Option<Vec<(String, Vec<u8>)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(path).ok()? {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        match path.is_dir() {
            true => {
                let inside = tree(&path).unwrap().into_iter();
                all.extend(inside.map(|(file, bytes)| (format!("{name}/{file}"), bytes)));
            }
            false => all.push((name, fs::read(&path).unwrap())),
        }
    }
    all.sort();
    Some(all)
}

/// What runs have left beside the output.
fn left_over(bench: &Bench) -> Vec<String> {
    let names = fs::read_dir(bench.path("")).unwrap();
    let mut names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.retain(|name| name.contains("weld-"));
    names
}

/// A plan, and what is at OUT before and after it is run.
struct Job {
    bench: Bench,
    plan: Plan,
    /// Whether there is an old folder to be replaced.
    old: bool,
    /// What the system says where two folders cannot change places.
    no_exchange: bool,
    whole: Option<Vec<(String, Vec<u8>)>>,
}

impl Job {
    fn new(bench: Bench, old: bool, no_exchange: bool) -> Self {
        Self::of(planned(&bench, SHARD), bench, old, no_exchange)
    }

    fn of(plan: Plan, bench: Bench, old: bool, no_exchange: bool) -> Self {
        let mut job = Self {
            bench,
            plan,
            old,
            no_exchange,
            whole: None,
        };
        job.run(Disk::default()).unwrap();
        job.whole = tree(&job.out());
        assert!(job.plan.shards.len() > 1);
        job
    }

    fn out(&self) -> PathBuf {
        self.bench.path("out")
    }

    fn before(&self) -> Option<Vec<(String, Vec<u8>)>> {
        self.old.then(|| vec![("old".to_owned(), b"old".to_vec())])
    }

    /// Puts the place back as it was.
    fn reset(&self) {
        let _ = fs::remove_dir_all(self.out());
        if self.old {
            self.bench.file("out/old", "old");
        }
    }

    fn run(&self, disk: Disk) -> Result<Summary, RunError> {
        run_to(&self.plan, &Folder::on(disk, &self.out(), self.old))
    }

    fn run_through(&self, door: &Arc<Door>) -> Result<Summary, RunError> {
        self.run(Disk::watched(Arc::clone(door) as Arc<dyn Watch>))
    }

    /// A door where these steps, by their number, fail.
    fn door(&self, fails: impl Fn(usize) -> bool + Send + Sync + 'static) -> Arc<Door> {
        let no_exchange = self.no_exchange;
        Door::new(move |number, step, _| match step {
            _ if fails(number) => Some(Errno::IO),
            Step::Exchange if no_exchange => Some(Errno::INVAL),
            _ => None,
        })
    }

    /// That the next run succeeds, whatever was left, and cleans it away.
    #[track_caller]
    fn next_works(&self, after: &str) {
        let next = self.run(Disk::default());
        assert!(next.is_ok(), "after {after}: {}", next.unwrap_err());
        assert!(tree(&self.out()) == self.whole, "after {after}");
        assert_eq!(left_over(&self.bench), [""; 0], "after {after}");
    }

    /// Fails every step once; gives the steps that failed.
    fn fail_each_step(&self) -> Vec<Step> {
        let mut failed = Vec::new();
        for number in 0..MANY {
            self.reset();
            let door = self.door(move |seen| seen == number);
            let done = self.run_through(&door);
            let Some((step, path)) = door.seen().get(number).cloned() else {
                done.unwrap();
                assert!(tree(&self.out()) == self.whole);
                return failed;
            };
            let what = format!("step {number}, {step} {}", path.display());
            failed.push(step);
            match done {
                Ok(summary) => {
                    // It was in place already; only the old one could not be removed.
                    assert_eq!(step, Step::Remove, "{what} did not fail the run");
                    assert!(tree(&self.out()) == self.whole, "{what}");
                    let said = summary.notes.concat();
                    assert!(said.contains(&*path.to_string_lossy()), "{what}: {said}");
                }
                Err(error) => {
                    let said = error.to_string();
                    assert!(said.contains(&step.to_string()), "{what}: {said}");
                    assert!(said.contains(&*path.to_string_lossy()), "{what}: {said}");
                    assert!(tree(&self.out()) == self.before(), "{what}: {said}");
                    assert_eq!(left_over(&self.bench), [""; 0], "{what}");
                }
            }
            self.next_works(&what);
        }
        panic!("there is no end to the steps");
    }

    /// Lets the process die before every step once: no later one is done, nothing is cleaned up.
    fn die_before_each_step(&self) {
        let (mut none, mut new) = (0, 0);
        for number in 0..MANY {
            self.reset();
            let door = self.door(move |seen| seen >= number);
            let done = self.run_through(&door);
            let found = tree(&self.out());
            let Some((step, path)) = door.seen().get(number).cloned() else {
                assert!(done.is_ok() && found == self.whole);
                assert!(none > 20, "it died only {none} times before it was done");
                // After the last step of a new folder's way, the sync of the one that it is in, there is none.
                assert!(new > 0, "it never died when it was done");
                return;
            };
            let what = format!("death before step {number}, {step} {}", path.display());
            let aside = self.bench.path(".out.weld-replaced");
            if self.no_exchange && found.is_none() {
                assert!(tree(&aside) == self.before(), "{what}");
                // A run that may not replace it puts it back first.
                let error = run_to(&self.plan, &Folder::new(&self.out(), false)).unwrap_err();
                assert!(matches!(error, RunError::OutputExists { .. }), "{error}");
                assert!(tree(&self.out()) == self.before(), "{what}");
            } else if found == self.whole {
                new += 1;
            } else {
                assert!(found == self.before(), "{what}");
                none += 1;
            }
            if found == self.whole && !self.old {
                // Nobody asked for it to be replaced.
                self.reset();
            }
            self.next_works(&what);
        }
        panic!("there is no end to the steps");
    }
}

#[test]
fn every_step_of_a_merge_fails_once() {
    let failed = Job::new(bench(), false, false).fail_each_step();
    for step in [
        Step::CreateFolder,
        Step::Lock,
        Step::Look,
        Step::Create,
        Step::Allocate,
        Step::Write,
        Step::Sync,
        Step::Read,
        Step::Rename,
    ] {
        assert!(failed.contains(&step), "{step} never failed");
    }
}

#[test]
fn every_step_of_a_replacement_fails_once() {
    let failed = Job::new(bench(), true, false).fail_each_step();
    for step in [Step::SetMode, Step::Exchange, Step::Remove] {
        assert!(failed.contains(&step), "{step} never failed");
    }
}

#[test]
fn every_step_of_a_replacement_fails_once_where_folders_cannot_change_places() {
    let failed = Job::new(bench(), true, true).fail_each_step();
    let renames = failed.iter().filter(|step| **step == Step::Rename);
    // The one that tries it out, and both of the replacement.
    assert_eq!(renames.count(), 3);
}

#[test]
fn a_merge_that_dies_before_any_step_leaves_nothing_or_all() {
    Job::new(bench(), false, false).die_before_each_step();
}

#[test]
fn a_replacement_that_dies_before_any_step_leaves_the_old_or_the_new() {
    Job::new(bench(), true, false).die_before_each_step();
    Job::new(bench(), true, true).die_before_each_step();
}

#[test]
fn every_step_of_an_assembly_fails_once() {
    let bench = Bench::on_disk();
    bench.dense("dense", "llama", 1, serde_json::json!({}));
    bench.recipe(
        "base_model: dense\narchitecture: mixtral\ngate_mode: random\nexperts: [{source_model: dense}, \
         {source_model: dense}]\n",
    );
    let plan = planned(&bench, 20_000);
    let failed = Job::of(plan, bench, false, false).fail_each_step();
    assert!(failed.len() > 20);
}

/// Codes, their scales, what says how they are stored, and bytes that are kept: each lies in a weight file of its own run of
/// writes.
#[test]
fn every_step_of_a_merge_with_quantised_weights_fails_once() {
    let whole = || quantised_outputs::bench(quantised_outputs::WHOLE);
    let mixed = "merge_method: linear\nmodels:\n\
        - {model: a8, parameters: {weight: [{filter: experts, value: 1}, {value: 0.5}]}}\n\
        - {model: b8, parameters: {weight: [{filter: experts, value: 0}, {value: 0.5}]}}\n";
    for (bench, recipe, key, shard) in [
        (whole(), quantised_outputs::LINEAR, "fp8_block", 150_000),
        (whole(), mixed, "keep", 150_000),
        (
            quantised_comfy::bench(""),
            quantised_comfy::LINEAR,
            "comfy_fp8",
            6_000,
        ),
        (
            quantised_experts::bench(),
            quantised_outputs::LINEAR,
            "mxfp4",
            20_000,
        ),
    ] {
        bench.recipe(&quantised_outputs::with(
            recipe,
            &format!("quantization: {key}"),
        ));
        let job = Job::of(planned(&bench, shard), bench, false, false);
        let failed = job.fail_each_step();
        let writes = failed.iter().filter(|step| **step == Step::Write).count();
        assert!(writes > job.plan.tensors.len(), "{key}: {writes}");
    }
}

#[test]
fn everything_is_on_the_disk_before_it_can_be_seen() {
    for (old, no_exchange) in [(false, false), (true, false), (true, true)] {
        let job = Job::new(bench(), old, no_exchange);
        job.reset();
        let door = job.door(|_| false);
        job.run_through(&door).unwrap();
        let steps = door.seen();
        let staging = fs::canonicalize(job.bench.path("")).unwrap();
        let staging = staging.join(".out.weld-staging");
        let mut unsynced = BTreeSet::new();
        let mut shown = None;
        for (number, (step, path)) in steps.iter().enumerate() {
            match step {
                Step::Create | Step::CreateFolder | Step::Allocate | Step::Write => {
                    unsynced.insert(path.clone());
                    unsynced.insert(path.parent().unwrap().to_owned());
                }
                Step::Sync => {
                    unsynced.remove(path);
                }
                Step::Remove => unsynced.retain(|file| !file.starts_with(path)),
                Step::Exchange => shown = Some(number),
                Step::Rename if *path == staging => shown = Some(number),
                _ => {}
            }
            if shown == Some(number) {
                unsynced.retain(|file| file.starts_with(&staging));
                assert!(unsynced.is_empty(), "{unsynced:?} are not synced");
            }
        }
        let after = &steps[shown.unwrap() + 1];
        assert_eq!(*after, (Step::Sync, staging.parent().unwrap().to_owned()));
        assert!(steps.contains(&(Step::Sync, staging.join("1_Pooling"))));
    }
}

#[test]
fn a_run_that_is_stopped_at_any_moment_leaves_nothing() {
    let job = Job::new(bench(), true, false);
    let licence = job.bench.staging().join("LICENSE");
    let in_copy = AtomicUsize::new(0);
    for number in 0..MANY {
        job.reset();
        let observer = at(|asked| {
            if asked == number && licence.exists() {
                in_copy.fetch_add(1, SeqCst);
            }
            asked >= number
        });
        let folder = Folder::new(&job.out(), true);
        let Err(error) = run::run(&job.plan, &folder, RunOptions::default(), &observer) else {
            // Three chunks, the end of the file, and what comes after it.
            assert!(in_copy.into_inner() >= 4);
            return;
        };
        assert!(matches!(error, RunError::Cancelled), "{error}");
        assert!(tree(&job.out()) == job.before());
        assert_eq!(left_over(&job.bench), [""; 0]);
    }
    panic!("there is no end to it");
}

#[test]
fn an_input_that_changes_at_any_moment_is_an_error() {
    let bench = bench();
    let weights = bench.path("b/model.safetensors");
    let mut moments = 0;
    for number in 0..MANY {
        // Opened anew: it knows when the file was last written to.
        let plan = planned(&bench, SHARD);
        let touched = AtomicUsize::new(0);
        let observer = at(|asked| {
            if asked == number {
                let file = fs::File::options().write(true).open(&weights).unwrap();
                let later = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
                // Only the time of modification tells.
                file.set_modified(later + std::time::Duration::from_secs(number as u64))
                    .unwrap();
                touched.store(
                    1 + usize::from(bench.staging().join(LOCK_FILE).exists()),
                    SeqCst,
                );
            }
            false
        });
        let folder = Folder::new(&bench.path("out"), false);
        let done = run::run(&plan, &folder, RunOptions::default(), &observer);
        match touched.into_inner() {
            1 => {
                let error = done.unwrap_err();
                assert!(matches!(error, RunError::InputChanged { .. }), "{error}");
                let said = in_one_line(&error);
                for part in ["model `b`: ", "changed while it was read", "; hint: "] {
                    assert_eq!(said.matches(part).count(), 1, "{said}");
                }
                assert!(!bench.path("out").exists());
                assert_eq!(left_over(&bench), [""; 0]);
                moments += 1;
            }
            // After the weights were read for the last time, and looked at.
            _ => {
                done.unwrap();
                assert!(moments > 3, "{moments}");
                return;
            }
        }
    }
    panic!("there is no end to it");
}

#[test]
fn an_input_that_changes_and_gets_its_old_time_back_is_an_error() {
    let bench = bench();
    for name in ["a", "b"] {
        let path = bench.path(name).join("model.safetensors");
        let plan = planned(&bench, SHARD);
        let observer = at(|asked| {
            if asked == 1 {
                let time = fs::metadata(&path).unwrap().modified().unwrap();
                let mut bytes = fs::read(&path).unwrap();
                let file = fs::File::options().write(true).open(&path).unwrap();
                // The lowest bits of a weight.
                *bytes.last_mut().unwrap() ^= 1;
                std::io::Write::write_all(&mut &file, &bytes).unwrap();
                file.set_modified(time).unwrap();
                assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), time);
            }
            false
        });
        let folder = Folder::new(&bench.path("out"), false);
        let error = run::run(&plan, &folder, RunOptions::default(), &observer).unwrap_err();
        assert!(matches!(error, RunError::InputChanged { .. }), "{error}");
        assert!(!bench.path("out").exists());
    }
}

#[test]
fn a_file_beside_the_weights_that_is_gone_is_an_error_and_names_it() {
    let bench = bench();
    for name in ["LICENSE", "1_Pooling/config.json"] {
        let file = bench.path("a").join(name);
        let bytes = fs::read(&file).unwrap();
        let out = bench.path("out");
        let folder = Folder::new(&out, false);
        let plan = planned(&bench, SHARD);
        fs::remove_file(&file).unwrap();
        let error = run_to(&plan, &folder).unwrap_err();
        let said = error.to_string();
        assert!(said.contains(&format!("cannot {} ", Step::Look)), "{said}");
        assert!(said.contains(name), "{said}");
        assert!(!out.exists());
        assert_eq!(left_over(&bench), [""; 0]);
        // Once it was copied, it is no longer needed.
        fs::write(&file, &bytes).unwrap();
        let observer = at(|_| {
            if bench.staging().join("LICENSE").exists() {
                let _ = fs::remove_file(&file);
            }
            false
        });
        let plan = planned(&bench, SHARD);
        run::run(&plan, &folder, RunOptions::default(), &observer).unwrap();
        assert!(!file.exists());
        assert_eq!(fs::read(out.join(name)).unwrap(), bytes);
        fs::remove_dir_all(&out).unwrap();
        fs::write(&file, &bytes).unwrap();
    }
}

#[test]
fn a_file_beside_the_weights_that_no_model_has_is_refused_before_the_work() {
    let bench = bench();
    let file = fs::File::create(bench.path("a/LICENSE")).unwrap();
    file.set_len(MAX_SIDECAR_BYTES + 1).unwrap();
    let door = Door::new(|_, _, _| None);
    let disk = Disk::watched(Arc::clone(&door) as Arc<dyn Watch>);
    let folder = Folder::on(disk, &bench.path("out"), false);
    let error = run_to(&planned(&bench, SHARD), &folder)
        .unwrap_err()
        .to_string();
    assert!(error.contains("a/LICENSE: expected at most"), "{error}");
    assert_eq!(door.seen(), []);
}

#[test]
fn memory_holds_the_files_that_a_folder_gets() {
    let job = Job::new(bench(), false, false);
    let memory = Memory::new("out");
    run_to(&job.plan, &memory).unwrap();
    let files: Vec<_> = memory.into_files().into_iter().collect();
    assert!(Some(files) == job.whole);
}

/// What is merged in memory to be read at once is what would be written.
#[test]
fn a_model_in_memory_is_the_one_that_is_written() {
    let job = Job::new(bench(), false, false);
    let scratch = job.bench.path("");
    let merged = run::in_memory(&job.plan, "merged", &scratch, &Silent).unwrap();
    let written = load(&job.out());
    assert_eq!(merged.model.tensors().len(), written.len());
    for (name, tensor) in &written {
        let index = merged.model.find(name).unwrap();
        let entry = &merged.model.tensors()[index];
        assert_eq!(
            (entry.dtype, &entry.shape),
            (tensor.dtype, &tensor.shape),
            "{name}"
        );
        assert_eq!(merged.model.bytes(index), Some(&tensor.bytes[..]), "{name}");
    }
    let whole = job.whole.unwrap();
    for (name, bytes) in &merged.files {
        assert!(
            whole
                .iter()
                .any(|(file, found)| file == name && found == bytes),
            "{name}"
        );
    }
    assert!(merged.files.contains_key("config.json"));
}

#[test]
fn what_was_written_is_looked_at_before_it_can_be_seen() {
    let job = Job::new(bench(), true, false);
    for name in [
        "config.json",
        "model-00001-of-00002.safetensors",
        "1_Pooling/config.json",
    ] {
        job.reset();
        // Somebody cuts it short after it was written.
        let door = Door::new(move |_, step, path| {
            if step == Step::Read && path.ends_with(name) {
                fs::File::options()
                    .write(true)
                    .open(path)
                    .unwrap()
                    .set_len(1)
                    .unwrap();
            }
            None
        });
        let error = job.run_through(&door).unwrap_err();
        assert!(matches!(error, RunError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
        assert!(tree(&job.out()) == job.before());
        assert_eq!(left_over(&job.bench), [""; 0]);
    }
}

#[test]
fn a_header_that_is_not_as_it_was_written_is_found() {
    let job = Job::new(bench(), false, false);
    job.reset();
    let door = Door::new(|_, step, path| {
        if step == Step::Read && path.ends_with("model-00002-of-00002.safetensors") {
            let file = fs::File::options().write(true).open(path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, b"?", 20).unwrap();
        }
        None
    });
    let error = job.run_through(&door).unwrap_err();
    assert!(matches!(error, RunError::Damaged { .. }), "{error}");
}

#[test]
fn what_cannot_be_replaced_is_found_before_the_work() {
    let job = Job::new(bench(), true, false);
    let refused = |error: Errno| {
        job.reset();
        let out = fs::canonicalize(job.out()).unwrap();
        let door =
            Door::new(move |_, step, path| (step == Step::Rename && path == out).then_some(error));
        let said = in_one_line(&job.run_through(&door).unwrap_err());
        let weights = |(step, _): &(Step, PathBuf)| *step == Step::Create;
        assert!(!door.seen().iter().any(weights), "{said}");
        assert!(tree(&job.out()) == job.before(), "{said}");
        assert_eq!(left_over(&job.bench), [""; 0]);
        said
    };
    let said = refused(Errno::BUSY);
    assert!(said.contains("out is a mount point"), "{said}");
    assert!(said.contains("out/merged"), "{said}");
    let said = refused(Errno::XDEV);
    assert!(said.contains("overlay file system"), "{said}");
    let said = refused(Errno::PERM);
    assert!(said.contains("cannot move"), "{said}");
    // An empty folder of an overlay's lower layer is replaced.
    job.reset();
    fs::remove_file(job.out().join("old")).unwrap();
    let first = AtomicUsize::new(0);
    let door = Door::new(move |_, step, _| {
        (step == Step::Rename && first.fetch_add(1, SeqCst) == 0).then_some(Errno::XDEV)
    });
    job.run_through(&door).unwrap();
    assert!(tree(&job.out()) == job.whole);
}

#[test]
fn what_came_to_the_place_meanwhile_is_not_replaced_unasked() {
    let job = Job::new(bench(), false, false);
    job.reset();
    let late = job.out().join("late");
    let door = Door::new(move |_, step, path| {
        if step == Step::Create && path.ends_with("README.md") {
            fs::create_dir(late.parent().unwrap()).unwrap();
            fs::write(&late, "late").unwrap();
        }
        None
    });
    let error = job.run_through(&door).unwrap_err();
    assert!(matches!(error, RunError::OutputExists { .. }), "{error}");
    assert_eq!(files(&job.out()), [("late".to_owned(), b"late".to_vec())]);
    assert_eq!(left_over(&job.bench), [""; 0]);
}

#[test]
fn parents_that_were_made_go_again_when_the_run_fails() {
    let job = Job::new(bench(), false, false);
    let deep = job.bench.path("new/deep/out");
    let door = Door::new(|_, step, path| {
        (step == Step::Sync && path.ends_with("README.md")).then_some(Errno::IO)
    });
    let disk = Disk::watched(door as Arc<dyn Watch>);
    run_to(&job.plan, &Folder::on(disk, &deep, false)).unwrap_err();
    assert!(!job.bench.path("new").exists());
    run_to(&job.plan, &Folder::new(&deep, false)).unwrap();
    assert!(deep.join("config.json").exists());
}

#[test]
fn what_lies_in_the_way_of_the_staging_folder_is_named_and_stays() {
    let job = Job::new(bench(), false, false);
    let staging = job.bench.staging();
    let elsewhere = job.bench.file("elsewhere/precious", "precious");
    let made: [(&str, &dyn Fn()); 4] = [
        ("a link to a folder", &|| {
            symlink(elsewhere.parent().unwrap(), &staging).unwrap()
        }),
        ("a link to nothing", &|| {
            symlink("nothing", &staging).unwrap()
        }),
        ("a pipe", &|| {
            let made = std::process::Command::new("mkfifo").arg(&staging).status();
            assert!(made.unwrap().success());
        }),
        ("a file", &|| fs::write(&staging, "file").unwrap()),
    ];
    for (what, make) in made {
        job.reset();
        make();
        let error = job.run(Disk::default()).unwrap_err();
        assert!(
            matches!(error, RunError::StagingTaken { .. }),
            "{what}: {error}"
        );
        let said = error.to_string();
        assert!(
            said.contains(".out.weld-staging is in the way"),
            "{what}: {said}"
        );
        assert!(!job.out().exists(), "{what}");
        assert!(fs::symlink_metadata(&staging).is_ok(), "{what}");
        fs::remove_file(&staging).unwrap();
    }
    assert_eq!(fs::read(elsewhere).unwrap(), b"precious");
}

#[test]
fn a_staging_folder_of_somebody_else_is_not_used() {
    let job = Job::new(bench(), false, false);
    job.reset();
    let staging = job.bench.staging();
    fs::create_dir(&staging).unwrap();
    if std::os::unix::fs::chown(&staging, Some(65_534), None).is_err() {
        // Only root can give a folder away.
        return;
    }
    let said = job.run(Disk::default()).unwrap_err().to_string();
    assert!(said.contains("found a folder of the user 65534"), "{said}");
    assert!(!job.out().exists());
}

#[test]
fn a_folder_that_is_replaced_gives_its_mode_to_the_new_one() {
    let job = Job::new(bench(), true, false);
    for mode in [0o2770, 0o700, 0o500, 0o755] {
        job.reset();
        let old = fs::Permissions::from_mode(mode);
        fs::set_permissions(job.out(), old).unwrap();
        let group = fs::metadata(job.out()).unwrap().gid();
        job.run(Disk::default()).unwrap();
        let new = fs::metadata(job.out()).unwrap();
        assert_eq!((new.mode() & 0o7777, new.gid()), (mode, group), "{mode:o}");
        fs::set_permissions(job.out(), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn a_new_folder_has_the_mode_and_the_group_that_mkdir_gives() {
    let bench = bench();
    for mode in [0o2770, 0o755, 0o700] {
        fs::set_permissions(bench.path("."), fs::Permissions::from_mode(mode)).unwrap();
        fs::create_dir(bench.path("made")).unwrap();
        let plan = planned(&bench, SHARD);
        let folder = Folder::new(&bench.path("out"), false);
        run::run(&plan, &folder, RunOptions::default(), &at(|_| false)).unwrap();
        let [made, out] = ["made", "out"].map(|name| fs::metadata(bench.path(name)).unwrap());
        assert_eq!(
            (out.mode(), out.gid()),
            (made.mode(), made.gid()),
            "{mode:o}"
        );
        fs::remove_dir(bench.path("made")).unwrap();
        fs::remove_dir_all(bench.path("out")).unwrap();
    }
}

#[test]
fn a_recipe_in_the_folder_that_it_replaces_is_not_lost() {
    let bench = bench();
    bench.file("out/recipe.yml", LINEAR);
    let outcome = bench.weld(&["merge", "out/recipe.yml", "out", "--force"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("recipe.yml"), "{}", outcome.stderr);
    assert_eq!(
        fs::read(bench.path("out/recipe.yml")).unwrap(),
        LINEAR.as_bytes()
    );
}

/// A key and a model with files to sign.
fn to_sign() -> (Bench, PrivateKey) {
    use p256::pkcs8::EncodePrivateKey;
    let bench = bench();
    let secret = p256::SecretKey::from_slice(&[7; 32]).unwrap();
    let pem = secret.to_pkcs8_pem(p256::pkcs8::LineEnding::LF).unwrap();
    (bench, PrivateKey::read(&pem).unwrap())
}

fn sign(bench: &Bench, key: &PrivateKey, disk: &Disk) -> Result<(), String> {
    let (model, place) = (bench.path("a"), bench.path("a/model.sig"));
    let listed = ToSign::list(&model, &place, Vec::new()).map_err(|error| error.to_string())?;
    let signed = listed.sign(key, 2, &at(|_| false));
    let bundle = signed.map_err(|error| error.to_string())?.bundle;
    write_whole(disk, &place, bundle.as_bytes()).map_err(|error| error.to_string())
}

#[test]
fn every_step_of_a_signature_fails_once() {
    let (bench, key) = to_sign();
    let place = bench.path("a/model.sig");
    let unsigned = tree(&bench.path("a"));
    sign(&bench, &key, &Disk::default()).unwrap();
    let signed = tree(&bench.path("a"));
    for old in [None, Some("old")] {
        let mut failed = Vec::new();
        loop {
            let _ = fs::remove_file(&place);
            if let Some(old) = old {
                fs::write(&place, old).unwrap();
            }
            let number = failed.len();
            let door = Door::new(move |seen, _, _| (seen == number).then_some(Errno::IO));
            let done = sign(
                &bench,
                &key,
                &Disk::watched(Arc::clone(&door) as Arc<dyn Watch>),
            );
            let Some((step, _)) = door.seen().get(number).cloned() else {
                done.unwrap();
                assert!(tree(&bench.path("a")) == signed);
                break;
            };
            let said = done.unwrap_err();
            assert!(said.contains(&step.to_string()), "{said}");
            assert!(said.contains("model.sig"), "{said}");
            assert_eq!(
                fs::read(&place).ok(),
                old.map(|old| old.as_bytes().to_vec())
            );
            let _ = fs::remove_file(&place);
            assert!(tree(&bench.path("a")) == unsigned, "{step} left something");
            failed.push(step);
        }
        assert_eq!(
            failed,
            [Step::Create, Step::Write, Step::Sync, Step::Rename]
        );
    }
}

#[test]
fn every_file_that_is_signed_is_gone_once() {
    let (bench, key) = to_sign();
    let files = tree(&bench.path("a")).unwrap();
    assert!(files.len() > 3);
    for (name, bytes) in files {
        let file = bench.path("a").join(&name);
        let listed =
            ToSign::list(&bench.path("a"), &bench.path("a/model.sig"), Vec::new()).unwrap();
        fs::remove_file(&file).unwrap();
        let said = listed
            .sign(&key, 2, &at(|_| false))
            .map(|_| ())
            .unwrap_err();
        assert!(said.to_string().contains(&name), "{said}");
        fs::write(&file, bytes).unwrap();
    }
    sign(&bench, &key, &Disk::default()).unwrap();
}
