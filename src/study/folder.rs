//! A study's folder: what was tried, what is being tried, and by whom.
//!
//! - `study.json`: what all trials have in common. A folder holds one study.
//! - `trials.jsonl`, `references.jsonl`, `test.jsonl`: records.
//! - `lock`: held while any of these is read or written.
//! - `claims/`: a file for each trial that is being made, locked by the process that makes it. A killed process holds none.
//!
//! None of them may be a link, a pipe or a device, and no record is believed that contradicts itself or the study.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::checks;
use super::command::Command;
use super::error::StudyError;
use super::file::{MAX_DIMENSIONS, Search, Study};
use super::inputs::{Input, MadeWith, changed, digest, digest_of};
use super::journal::{End, Journal, sync_folder};
use super::space::{Domain, Space};
use super::strategy::Strategy;
use super::trial::{Objective, Reference, Tested, Trial};
use checkpoint::{CheckpointError, open_no_link};
use errors::{About, Refusal};
use eval::{Split, Tasks};

/// The version of the folder's format.
const FORMAT: &str = "weldment-study/2";
/// The largest `study.json` that is read.
const MAX_SETTINGS_BYTES: u64 = 64 << 20;
/// How long the lock is waited for: it is held while a line is read or written.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);
/// How often the lock is tried.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// What all trials of a folder have in common.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The version of this format.
    pub format: String,
    /// The strategy.
    pub strategy: Strategy,
    /// What is searched for.
    pub score: Objective,
    /// Whether prompts are shown as the model's chat template writes them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chat_template: bool,
    /// The seed of the strategy.
    pub seed: u64,
    /// The seed of the split.
    pub split_seed: u64,
    /// Items of each task at first, and by how much they grow, if trials are stopped early.
    pub halving: Option<(usize, usize)>,
    /// How many of the best trials of each search are scored on the test split.
    pub finalists: usize,
    /// The searches, in order.
    pub searches: Vec<SearchSettings>,
    /// The tasks.
    pub tasks: Vec<TaskSettings>,
    /// The digest of the command that scores trials, with the places of its metrics, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// The models that recipes name, part by part.
    pub models: Vec<Input>,
    /// What computed.
    pub made_with: MadeWith,
}

/// What all trials of a search have in common.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchSettings {
    /// Its name.
    pub name: String,
    /// The recipe with the values that are the same in all trials.
    pub recipe: String,
    /// What is searched.
    pub space: Space,
    /// The seed of random masks, where it is not searched.
    pub seed: u64,
    /// The recipe's file; relative paths of models begin in its folder.
    pub file: PathBuf,
    /// The digest of that file.
    pub digest: String,
}

/// A task, as all trials of a folder are scored on it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSettings {
    /// Its name.
    pub name: String,
    /// The digest of its items.
    pub digest: String,
    /// How many items there are to choose by.
    pub validation: usize,
    /// How many items there are to judge the chosen ones by.
    pub test: usize,
    /// How many items repeat another. Each counts, so errors are too small.
    pub repeated: usize,
    /// The file.
    pub file: PathBuf,
}

impl TaskSettings {
    /// Of all tasks.
    pub(crate) fn of(tasks: &Tasks, seed: u64) -> Vec<TaskSettings> {
        let of = |task: &eval::Task| {
            let count = |split: Split| {
                let items = task.items.iter();
                items.filter(|item| split.has(item.shown, seed)).count()
            };
            TaskSettings {
                name: task.name.clone(),
                digest: digest_of(task),
                validation: count(Split::Validation),
                test: count(Split::Test),
                repeated: task.repeated().len(),
                file: absolute(&task.file),
            }
        };
        tasks.tasks.iter().map(of).collect()
    }

    /// What a reader of scores should know of the task.
    pub(crate) fn note(&self) -> Option<String> {
        (self.repeated > 0).then(|| {
            let TaskSettings { name, repeated, .. } = self;
            format!(
                "items of the task `{name}` repeat others ({repeated}): each counts, so intervals are too narrow"
            )
        })
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

impl Settings {
    /// The settings of a study; `recipes` are the texts of its searches' recipes, as they stand in their files and with the
    /// values that are the same in all trials.
    pub(crate) fn new(
        study: &Study,
        recipes: &[(String, String)],
        tasks: Vec<TaskSettings>,
        models: Vec<Input>,
    ) -> Settings {
        let search = |(search, (in_file, recipe)): (&Search, &(String, String))| SearchSettings {
            name: search.name.clone(),
            recipe: recipe.clone(),
            space: search.space.clone(),
            seed: search.seed,
            file: absolute(&study.located(&search.recipe)),
            digest: digest(in_file),
        };
        Settings {
            format: FORMAT.into(),
            strategy: study.strategy,
            score: study.objective,
            chat_template: study.chat_template,
            seed: study.seed,
            split_seed: study.split_seed,
            halving: study.halving.map(|halving| (halving.items, halving.factor)),
            finalists: study.finalists,
            searches: study.searches.iter().zip(recipes).map(search).collect(),
            tasks,
            models,
            command: study.command.as_ref().map(Command::digest),
            made_with: MadeWith::now(),
        }
    }

    /// What of the study's file is another in a study that is to go on in the same folder.
    fn differs(&self, other: &Settings) -> Option<&'static str> {
        let same = [
            ("`strategy`", self.strategy == other.strategy),
            ("`score`", self.score == other.score),
            ("`chat_template`", self.chat_template == other.chat_template),
            ("`seed`", self.seed == other.seed),
            ("`split_seed`", self.split_seed == other.split_seed),
            ("`halving`", self.halving == other.halving),
            ("`command` or `metrics`", self.command == other.command),
            (
                "searches, their recipes and spaces",
                same_searches(&self.searches, &other.searches),
            ),
        ];
        same.into_iter()
            .find(|(_, same)| !same)
            .map(|(what, _)| what)
    }

    /// What the scores depend on, and is another now.
    fn changes(&self, now: &Settings) -> Vec<String> {
        let mut changes = self.made_with.changes(&now.made_with);
        let same =
            |(a, b): (&TaskSettings, &TaskSettings)| (&a.name, &a.digest) == (&b.name, &b.digest);
        let zipped = self.tasks.iter().zip(&now.tasks);
        match self.tasks.len() == now.tasks.len() {
            true => {
                let other = zipped.filter(|both| !same(*both));
                changes.extend(other.map(|(task, _)| format!("the task `{}`", task.name)));
            }
            false => changes.push("the number of tasks".to_owned()),
        }
        changes.extend(changed(&self.models, &now.models));
        changes
    }

    /// Checks sizes, as the file may be anybody's.
    fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("its format is {:?}", self.format));
        }
        for search in &self.searches {
            let values = |domain: &Domain| match domain {
                Domain::Grid(values) | Domain::Choice(values) => !values.is_empty(),
                _ => true,
            };
            let space = &search.space;
            let fits = space.count() <= MAX_DIMENSIONS
                && space.parameters.iter().all(|one| values(&one.domain));
            if !fits {
                return Err(format!("the space of `{}` is none", search.name));
            }
        }
        Ok(())
    }
}

/// Whether searches are the same, wherever their recipes lie.
fn same_searches(a: &[SearchSettings], b: &[SearchSettings]) -> bool {
    let same = |(a, b): (&SearchSettings, &SearchSettings)| {
        (&a.name, &a.recipe, a.seed) == (&b.name, &b.recipe, b.seed)
            && a.space.in_words() == b.space.in_words()
    };
    a.len() == b.len() && a.iter().zip(b).all(same)
}

/// What a folder holds.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// The trials, in the order in which they ended.
    pub trials: Vec<Trial>,
    /// The models that they are compared with.
    pub references: Vec<Reference>,
    /// The looks at the test split.
    pub tested: Vec<Tested>,
    ends: [End; 3],
    /// The trials by search and number, and by key those that were scored.
    by_number: HashMap<(String, usize), usize>,
    by_key: HashMap<String, usize>,
}

impl Record {
    /// A trial of a search.
    pub fn trial(&self, search: &str, number: usize) -> Option<&Trial> {
        self.trials
            .get(*self.by_number.get(&(search.to_owned(), number))?)
    }

    /// The trials of a search, in the order in which they ended.
    pub fn of_search<'r>(&'r self, search: &'r str) -> impl Iterator<Item = &'r Trial> + Clone {
        self.trials
            .iter()
            .filter(move |trial| trial.search == search)
    }

    /// The best complete trials of a search, best first, each merge once.
    pub fn best<'r>(&'r self, search: &'r str, count: usize) -> Vec<&'r Trial> {
        let mut complete: Vec<&Trial> = self
            .of_search(search)
            .filter(|trial| trial.is_complete())
            .collect();
        let score = |trial: &Trial| trial.score.unwrap_or(f64::NEG_INFINITY);
        complete.sort_by(|a, b| score(b).total_cmp(&score(a)).then(a.number.cmp(&b.number)));
        let mut keys = HashSet::new();
        complete.retain(|trial| keys.insert(&trial.key));
        complete.truncate(count);
        complete
    }

    /// The first trial with a key.
    pub(crate) fn of_key(&self, key: &str) -> Option<&Trial> {
        self.trials.get(*self.by_key.get(key)?)
    }

    /// The model that trials are compared with.
    pub(crate) fn reference(&self, model: &str) -> Option<&Reference> {
        self.references.iter().find(|one| one.model == model)
    }

    fn push(&mut self, trial: Trial) {
        let at = self.trials.len();
        self.by_number
            .entry((trial.search.clone(), trial.number))
            .or_insert(at);
        self.by_key.entry(trial.key.clone()).or_insert(at);
        self.trials.push(trial);
    }
}

/// A study's folder.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    settings: Settings,
}

/// The lock of a folder, until it is dropped.
pub(crate) struct Locked<'f> {
    folder: &'f Folder,
    _lock: Option<File>,
}

/// A trial that this process makes, until it is dropped.
pub(crate) struct Claim {
    path: PathBuf,
    _lock: File,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // If it stays, it is an empty file that nobody has locked.
        let _ = fs::remove_file(&self.path);
    }
}

impl Folder {
    /// The folder of a study, which is created if it is not there.
    ///
    /// # Errors
    /// It holds another study or something else, what its scores depend on has changed, or it cannot be written.
    pub(crate) fn open_for(path: &Path, settings: &Settings) -> Result<Folder, StudyError> {
        let mut folder = Folder {
            path: path.to_owned(),
            settings: settings.clone(),
        };
        let file = folder.file("study.json");
        if !file.exists() && is_in_use(path) {
            let why = format!(
                "{}: the folder is not empty, and holds no study",
                path.display()
            );
            return Err(folder.refused(why, "name a folder that does not exist yet"));
        }
        let claims = folder.file("claims");
        if claims.is_symlink() {
            let why = format!("{}: expected a folder, found a link", claims.display());
            return Err(folder.refused(why, "remove the link"));
        }
        fs::create_dir_all(&claims).map_err(StudyError::file("create", &claims))?;
        let lock = folder.lock()?;
        if !file.exists() {
            folder.write_settings(settings)?;
            drop(lock);
            return Ok(folder);
        }
        drop(lock);
        let found = read_settings(&file)?;
        if let Some(what) = found.differs(settings) {
            let why = format!(
                "{}: the folder holds another study: {what} differ",
                path.display()
            );
            let hint = "give a changed study a folder of its own; only `trials`, `time`, `finalists`, and how a command is run may change";
            return Err(folder.refused(why, hint));
        }
        let changes = found.changes(settings);
        folder.settings = found;
        folder.refuse_changes(&changes)?;
        Ok(folder)
    }

    /// The folder of a study that was begun.
    ///
    /// # Errors
    /// It holds none.
    pub fn open(path: &Path) -> Result<Folder, StudyError> {
        let file = path.join("study.json");
        if !file.exists() {
            let why = format!("{}: there is no study in this folder", path.display());
            let why = Refusal::new(why)
                .with_hint("begin one with: weld study STUDY.yml DIR")
                .about(About::file(path));
            return Err(StudyError::Absent(why));
        }
        Ok(Folder {
            path: path.to_owned(),
            settings: read_settings(&file)?,
        })
    }

    fn refused(&self, why: String, hint: &str) -> StudyError {
        Refusal::new(why)
            .with_hint(hint)
            .about(About::file(&self.path))
            .into()
    }

    /// Refuses to go on if anything has changed.
    ///
    /// # Errors
    /// There are changes.
    pub(crate) fn refuse_changes(&self, changes: &[String]) -> Result<(), StudyError> {
        if changes.is_empty() {
            return Ok(());
        }
        let why = format!(
            "{}: the scores of this study are no longer those of what is here. Changed since it was begun: {}",
            self.path.display(),
            errors::some_of(changes, 10)
        );
        let hint = "put back what was changed; or begin the study again in a new folder: weld study STUDY.yml DIR";
        Err(self.refused(why, hint))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// What all its trials have in common.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Writes the settings whole: beside their place, then renamed.
    fn write_settings(&self, settings: &Settings) -> Result<(), StudyError> {
        let (path, beside) = (self.file("study.json"), self.file("study.json.new"));
        let text = serde_json::to_string_pretty(settings).unwrap_or_default() + "\n";
        let failed = || StudyError::file("write", &path);
        // Another process may have left one, or anything else, when it was killed.
        let _ = fs::remove_file(&beside);
        let mut file = File::create_new(&beside).map_err(failed())?;
        file.write_all(text.as_bytes()).map_err(failed())?;
        file.sync_all().map_err(failed())?;
        fs::rename(&beside, &path).map_err(failed())?;
        sync_folder(&self.path)
    }

    /// What it holds now.
    ///
    /// # Errors
    /// A file cannot be read, or a line is no record.
    pub fn record(&self) -> Result<Record, StudyError> {
        let mut record = Record::default();
        let locked = match self.lock() {
            // A folder that may only be read has no writers that could be waited for.
            Err(StudyError::Checkpoint(error)) if is_read_only(&error) => Locked {
                folder: self,
                _lock: None,
            },
            locked => locked?,
        };
        locked.update(&mut record)?;
        Ok(record)
    }

    /// Waits for the lock.
    ///
    /// # Errors
    /// Another process has it for too long, or the system refuses.
    pub(crate) fn lock(&self) -> Result<Locked<'_>, StudyError> {
        let path = self.file("lock");
        let file = open_no_link(&path, OpenOptions::new().create(true).write(true))?;
        let began = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => {
                    return Ok(Locked {
                        folder: self,
                        _lock: Some(file),
                    });
                }
                Err(TryLockError::WouldBlock) if began.elapsed() < LOCK_PATIENCE => {
                    thread::sleep(LOCK_PAUSE);
                }
                Err(TryLockError::WouldBlock) => {
                    let why = format!(
                        "{}: another process has held this lock for {} seconds",
                        path.display(),
                        LOCK_PATIENCE.as_secs()
                    );
                    return Err(self.refused(why, "let the other process go on, or end it"));
                }
                Err(TryLockError::Error(error)) => {
                    return Err(StudyError::file("lock", &path)(error));
                }
            }
        }
    }
}

fn is_read_only(error: &CheckpointError) -> bool {
    let kinds = [ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem];
    matches!(error, CheckpointError::Io { source, .. } if kinds.contains(&source.kind()))
}

fn read_settings(path: &Path) -> Result<Settings, StudyError> {
    let file = open_no_link(path, OpenOptions::new().read(true))?;
    let mut bytes = Vec::new();
    file.take(MAX_SETTINGS_BYTES)
        .read_to_end(&mut bytes)
        .map_err(StudyError::file("read", path))?;
    let read = serde_json::from_slice::<Settings>(&bytes).map_err(|error| error.to_string());
    read.and_then(|settings| settings.check().map(|()| settings))
        .map_err(|why| {
            let why = format!("{}: this is no study of {FORMAT}: {why}", path.display());
            Refusal::new(why)
                .with_hint("begin the study again in another folder")
                .about(About::file(path))
                .into()
        })
}

impl Locked<'_> {
    fn trials(&self) -> Journal<Trial> {
        Journal::new(self.folder.file("trials.jsonl"))
    }

    fn references(&self) -> Journal<Reference> {
        Journal::new(self.folder.file("references.jsonl"))
    }

    fn tested(&self) -> Journal<Tested> {
        Journal::new(self.folder.file("test.jsonl"))
    }

    /// Adds what was recorded since a record was read.
    ///
    /// # Errors
    /// A file cannot be read, a line is no record, or contradicts itself, the study or an earlier line.
    pub(crate) fn update(&self, record: &mut Record) -> Result<(), StudyError> {
        let settings = &self.folder.settings;
        let mut ends = record.ends;
        self.trials().read(&mut ends[0], |trial| {
            checks::trial(settings, record, &trial)?;
            record.push(trial);
            Ok(())
        })?;
        self.references().read(&mut ends[1], |one| {
            checks::reference(settings, record, &one)?;
            record.references.push(one);
            Ok(())
        })?;
        self.tested().read(&mut ends[2], |one| {
            checks::tested(settings, record, &one)?;
            record.tested.push(one);
            Ok(())
        })?;
        record.ends = ends;
        Ok(())
    }

    /// Adds a trial to an updated record, and to the folder. That it is read again makes it the same in this process
    /// and in one that goes on later.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn add_trial(&self, record: &mut Record, trial: &Trial) -> Result<(), StudyError> {
        let trial = self.trials().append(trial, &mut record.ends[0])?;
        record.push(trial);
        Ok(())
    }

    /// The same for a model that trials are compared with.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn add_reference(
        &self,
        record: &mut Record,
        one: &Reference,
    ) -> Result<(), StudyError> {
        let one = self.references().append(one, &mut record.ends[1])?;
        record.references.push(one);
        Ok(())
    }

    /// The same for a look at the test split.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn add_tested(&self, record: &mut Record, one: &Tested) -> Result<(), StudyError> {
        let one = self.tested().append(one, &mut record.ends[2])?;
        record.tested.push(one);
        Ok(())
    }

    /// Claims a piece of work by its name; none if another process is at it.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn claim(&self, name: &str) -> Result<Option<Claim>, StudyError> {
        let path = self.folder.file("claims").join(name);
        let failed = || StudyError::file("lock", &path);
        let file = open_no_link(&path, OpenOptions::new().create(true).write(true))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Claim { path, _lock: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed()(error)),
        }
    }
}

/// Whether a folder holds anything.
fn is_in_use(path: &Path) -> bool {
    match fs::read_dir(path) {
        Ok(mut entries) => entries.any(|entry| entry.is_ok_and(|entry| !is_ours(&entry.path()))),
        Err(_) => path.exists(),
    }
}

/// Whether a process may have left this when it was killed before it wrote `study.json`.
fn is_ours(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    matches!(name, Some("claims" | "lock" | "study.json.new"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STUDY: &str =
        "recipe: r.yml\ntasks: [t.jsonl]\ntrials: 4\nspace: {a: {uniform: [0, 1]}}\n";

    fn settings(study: &str) -> Settings {
        let study = crate::parse("study.yml", study).unwrap();
        Settings::new(
            &study,
            &[("a: 1\n".to_owned(), "a: 1\n".to_owned())],
            vec![TaskSettings {
                name: "t".into(),
                digest: "d".into(),
                validation: 1,
                test: 1,
                repeated: 0,
                file: "t.jsonl".into(),
            }],
            Vec::new(),
        )
    }

    #[test]
    fn a_folder_holds_one_study() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("study");
        Folder::open_for(&path, &settings(STUDY)).unwrap();
        Folder::open_for(&path, &settings(&STUDY.replace("trials: 4", "trials: 9"))).unwrap();
        let refused = |study: &str| {
            Folder::open_for(&path, &settings(study))
                .unwrap_err()
                .to_string()
        };
        assert!(
            refused(&format!("{STUDY}seed: 1\n")).ends_with("holds another study: `seed` differ")
        );
        assert!(refused(&STUDY.replace("[0, 1]", "[0, 2]")).contains("spaces differ"));
        let other = dir.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("thesis.tex"), "").unwrap();
        let error = Folder::open_for(&other, &settings(STUDY))
            .unwrap_err()
            .to_string();
        assert!(error.contains("not empty"), "{error}");
        assert!(Folder::open(&other).is_err());
    }

    #[test]
    fn a_claim_is_one_processes() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open_for(&dir.path().join("study"), &settings(STUDY)).unwrap();
        let locked = folder.lock().unwrap();
        let claim = locked.claim("r-0").unwrap();
        assert!(claim.is_some());
        assert!(locked.claim("r-0").unwrap().is_none());
        assert!(locked.claim("r-1").unwrap().is_some());
        drop(claim);
        // What a killed process leaves is a file without a lock.
        fs::write(dir.path().join("study/claims/r-2"), "").unwrap();
        assert!(locked.claim("r-0").unwrap().is_some());
        assert!(locked.claim("r-2").unwrap().is_some());
    }
}
