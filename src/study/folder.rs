//! A study's folder: what was tried, what is being tried, and by whom.
//!
//! - `study.json`: what all trials have in common. A folder holds one study.
//! - `trials.jsonl`, `references.jsonl`, `test.jsonl`: records.
//! - `lock`: held while any of these is read or written.
//! - `claims/`: a file for each trial that is being made, locked by the process that makes it. A killed process holds none.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::StudyError;
use super::file::{Search, Study};
use super::journal::{Journal, sync_folder};
use super::strategy::Strategy;
use super::trial::{Objective, Reference, Tested, Trial};
use errors::{About, Refusal};

/// The version of the folder's format.
const FORMAT: &str = "weldment-study/1";

/// What all trials of a folder have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The version of this format.
    pub format: String,
    /// The strategy.
    pub strategy: Strategy,
    /// What is searched for.
    pub score: Objective,
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
    /// The names of the tasks and the digests of their items.
    pub tasks: Vec<(String, String)>,
    /// The models that recipes name, and the digests of their tensors.
    pub models: Vec<(String, String)>,
}

/// What all trials of a search have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchSettings {
    /// Its name.
    pub name: String,
    /// The recipe with the values that are the same in all trials.
    pub recipe: String,
    /// The space: the paths of each parameter, and its domain in words.
    pub space: Vec<(String, String)>,
    /// Where the recipe lies: relative paths of models begin there.
    pub folder: PathBuf,
}

impl Settings {
    /// The settings of a study; `recipes` are the texts of its searches' recipes.
    pub(crate) fn new(
        study: &Study,
        recipes: &[String],
        tasks: Vec<(String, String)>,
        models: Vec<(String, String)>,
    ) -> Settings {
        let folder = |search: &Search| {
            let recipe = study.located(&search.recipe);
            let recipe = std::path::absolute(&recipe).unwrap_or(recipe);
            recipe.parent().map(Path::to_owned).unwrap_or_default()
        };
        let search = |(search, recipe): (&Search, &String)| SearchSettings {
            folder: folder(search),
            name: search.name.clone(),
            recipe: recipe.clone(),
            space: search
                .space
                .parameters
                .iter()
                .map(|one| (one.paths.join(" "), one.in_words()))
                .collect(),
        };
        Settings {
            format: FORMAT.into(),
            strategy: study.strategy,
            score: study.objective,
            seed: study.seed,
            split_seed: study.split_seed,
            halving: study.halving.map(|halving| (halving.items, halving.factor)),
            finalists: study.finalists,
            searches: study.searches.iter().zip(recipes).map(search).collect(),
            tasks,
            models,
        }
    }

    /// The first setting in which another study differs; none if it may go on in the same folder.
    fn differs(&self, other: &Settings) -> Option<&'static str> {
        let same = [
            ("format", self.format == other.format),
            ("strategy", self.strategy == other.strategy),
            ("score", self.score == other.score),
            ("seed", self.seed == other.seed),
            ("split_seed", self.split_seed == other.split_seed),
            ("halving", self.halving == other.halving),
            (
                "searches, their recipes and spaces",
                same_searches(&self.searches, &other.searches),
            ),
            ("tasks", self.tasks == other.tasks),
            ("models", self.models == other.models),
        ];
        same.into_iter()
            .find(|(_, same)| !same)
            .map(|(what, _)| what)
    }
}

/// Whether searches are the same, wherever their recipes lie.
fn same_searches(a: &[SearchSettings], b: &[SearchSettings]) -> bool {
    let same = |(a, b): (&SearchSettings, &SearchSettings)| {
        (&a.name, &a.recipe, &a.space) == (&b.name, &b.recipe, &b.space)
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
    ends: [u64; 3],
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
}

/// The lock of a folder, until it is dropped.
pub(crate) struct Locked<'f> {
    folder: &'f Folder,
    _lock: File,
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
    /// It holds another study or something else, or cannot be written.
    pub(crate) fn open_for(path: &Path, settings: &Settings) -> Result<Folder, StudyError> {
        let folder = Folder {
            path: path.to_owned(),
        };
        let file = folder.file("study.json");
        if !file.exists() && is_in_use(path) {
            let why = format!(
                "{}: the folder is not empty, and holds no study",
                path.display()
            );
            let hint = "name a folder that does not exist yet";
            return Err(Refusal::new(why)
                .with_hint(hint)
                .about(About::file(path))
                .into());
        }
        let claims = folder.file("claims");
        fs::create_dir_all(&claims).map_err(StudyError::file("create", &claims))?;
        let _lock = folder.lock()?;
        if !file.exists() {
            folder.write_settings(settings)?;
            return Ok(folder);
        }
        let found = folder.settings()?;
        match found.differs(settings) {
            None => Ok(folder),
            Some(what) => {
                let why = format!(
                    "{}: the folder holds another study: {what} differ",
                    path.display()
                );
                let hint = "give a changed study a folder of its own; only `trials`, `time` and `finalists` may change";
                Err(Refusal::new(why)
                    .with_hint(hint)
                    .about(About::file(path))
                    .into())
            }
        }
    }

    /// The folder of a study that was begun.
    ///
    /// # Errors
    /// It holds none.
    pub fn open(path: &Path) -> Result<Folder, StudyError> {
        let folder = Folder {
            path: path.to_owned(),
        };
        match folder.file("study.json").is_file() {
            true => Ok(folder),
            false => {
                let why = format!("{}: there is no study in this folder", path.display());
                let hint = "begin one with: weld study STUDY.yml DIR";
                Err(Refusal::new(why)
                    .with_hint(hint)
                    .about(About::file(path))
                    .into())
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// What all its trials have in common.
    ///
    /// # Errors
    /// It cannot be read, or is no study of this version.
    pub fn settings(&self) -> Result<Settings, StudyError> {
        let path = self.file("study.json");
        let bytes = fs::read(&path).map_err(StudyError::file("read", &path))?;
        serde_json::from_slice(&bytes).map_err(|error| {
            let why = format!("{}: this is no study of {FORMAT}: {error}", path.display());
            Refusal::new(why)
                .with_hint("begin the study again in another folder")
                .about(About::file(&path))
                .into()
        })
    }

    /// Writes the settings whole: beside their place, then renamed.
    fn write_settings(&self, settings: &Settings) -> Result<(), StudyError> {
        let (path, beside) = (self.file("study.json"), self.file("study.json.new"));
        let text = serde_json::to_string_pretty(settings).unwrap_or_default() + "\n";
        let failed = || StudyError::file("write", &path);
        fs::write(&beside, text).map_err(failed())?;
        File::open(&beside)
            .and_then(|file| file.sync_all())
            .map_err(failed())?;
        fs::rename(&beside, &path).map_err(failed())?;
        sync_folder(&self.path)
    }

    /// What it holds now.
    ///
    /// # Errors
    /// A file cannot be read, or a line is no record.
    pub fn record(&self) -> Result<Record, StudyError> {
        let mut record = Record::default();
        self.lock()?.update(&mut record)?;
        Ok(record)
    }

    /// Waits for the lock.
    pub(crate) fn lock(&self) -> Result<Locked<'_>, StudyError> {
        let path = self.file("lock");
        let failed = || StudyError::file("lock", &path);
        let options = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let file = options.map_err(failed())?;
        file.lock().map_err(failed())?;
        Ok(Locked {
            folder: self,
            _lock: file,
        })
    }
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
    /// A file cannot be read, or a line is no record.
    pub(crate) fn update(&self, record: &mut Record) -> Result<(), StudyError> {
        let (trials, end) = self.trials().read(record.ends[0])?;
        trials.into_iter().for_each(|trial| record.push(trial));
        record.ends[0] = end;
        let (references, end) = self.references().read(record.ends[1])?;
        record.references.extend(references);
        record.ends[1] = end;
        let (tested, end) = self.tested().read(record.ends[2])?;
        record.tested.extend(tested);
        record.ends[2] = end;
        Ok(())
    }

    /// Adds a trial to an updated record, and to the folder. That it is read again makes it the same in this process
    /// and in one that goes on later.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn add_trial(&self, record: &mut Record, trial: &Trial) -> Result<(), StudyError> {
        let (trial, end) = self.trials().append(trial, record.ends[0])?;
        record.push(trial);
        record.ends[0] = end;
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
        let (one, end) = self.references().append(one, record.ends[1])?;
        record.references.push(one);
        record.ends[1] = end;
        Ok(())
    }

    /// The same for a look at the test split.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn add_tested(&self, record: &mut Record, one: &Tested) -> Result<(), StudyError> {
        let (one, end) = self.tested().append(one, record.ends[2])?;
        record.tested.push(one);
        record.ends[2] = end;
        Ok(())
    }

    /// Claims a piece of work by its name; none if another process is at it.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn claim(&self, name: &str) -> Result<Option<Claim>, StudyError> {
        let path = self.folder.file("claims").join(name);
        let failed = || StudyError::file("lock", &path);
        let options = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let file = options.map_err(failed())?;
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
            &["a: 1\n".to_owned()],
            vec![("t".into(), "d".into())],
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
            refused(&format!("{STUDY}seed: 1\n")).ends_with("holds another study: seed differ")
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
