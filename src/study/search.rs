//! The search itself: trial by trial, until the budget is used up; then the references, and the test of the chosen ones.

use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value as Json};

use super::bench::{Bench, Means};
use super::error::StudyError;
use super::external::External;
use super::file::{MAX_TRIALS, Search, Study};
use super::folder::{Claim, Folder, Locked, Record, Settings, TaskSettings};
use super::inputs::{Input, MadeWith, key};
use super::space::{Domain, Parameter, SEED};
use super::strategy::{Proposal, Seen, Strategy};
use super::trial::{Reference, Status, TaskResult, Tested, Trial, results, score};
use super::values::json;
use checkpoint::Checkpoint;
use errors::Refusal;
use eval::{Split, Tasks};
use plan::Plan;
use recipe::{Assignment, Position, Problem, ProblemKind, RecipeError};
use run::Merged;

/// How often it is looked whether another process has ended its trial.
const PATIENCE: Duration = Duration::from_millis(50);
/// Trials that are scored on all items before any is given up.
const BEFORE_HALVING: usize = 4;
/// A search is given up where so many trials failed and none was scored: something is wrong with all of them.
const BEFORE_GIVING_UP: usize = 3;

/// Hears what happens in a study, and may stop it.
pub trait Listener: Sync {
    /// Something happened.
    fn hear(&self, event: &Event<'_>);

    /// Whether to stop; asked often.
    fn is_stopped(&self) -> bool;
}

/// What happens in a study.
#[derive(Debug)]
pub enum Event<'e> {
    /// A search begins, or goes on.
    Search {
        /// Its name.
        name: &'e str,
        /// Trials that were recorded before.
        done: usize,
        /// All trials; none if only time bounds them.
        all: Option<usize>,
    },
    /// A trial was recorded.
    Trial {
        /// The trial.
        trial: &'e Trial,
        /// The best complete one of its search so far.
        best: Option<&'e Trial>,
        /// Trials of its search that are recorded.
        done: usize,
        /// All trials of its search; none if only time bounds them.
        all: Option<usize>,
    },
    /// A model that merges are compared with was scored.
    Reference(&'e Reference),
    /// A chosen trial was scored on the test split.
    Tested(&'e Tested),
    /// Something that the user should know.
    Note(String),
}

/// A search with all that its trials have in common.
struct Prepared<'s> {
    search: &'s Search,
    file: PathBuf,
    /// The recipe as it stands in its file.
    in_file: String,
    /// The recipe with the values that are the same in all trials.
    text: String,
}

/// Goes on with a study in a folder until it is done, beside other processes that may work on it too.
///
/// # Errors
/// The study, a recipe or a model is wrong, the folder holds another study, the system refuses, or it was stopped. What
/// was recorded stays, and the study goes on from there when it is run again.
pub fn run(
    study: &Study,
    folder: &Path,
    means: Means,
    listener: &dyn Listener,
) -> Result<Record, StudyError> {
    let files: Vec<PathBuf> = study.tasks.iter().map(|file| study.located(file)).collect();
    let external = study.command.as_ref().map(|command| {
        let folder = study.located(Path::new("."));
        External::new(command, folder, means.commands.as_ref())
    });
    let external = external.transpose()?;
    let tasks = match external {
        Some(_) => Tasks { tasks: Vec::new() },
        None => Tasks::read(&files)?,
    };
    let mut bench = Bench::new(means, &tasks, study, listener);
    let mut searches = Vec::new();
    let mut plans = Vec::new();
    let mut models: Vec<Input> = Vec::new();
    for search in &study.searches {
        let file = study.located(&search.recipe);
        let in_file = recipe::read_regular_text(&file)?;
        let text = recipe::assign(&file.display().to_string(), &in_file, &search.set)
            .map_err(|error| of_study(study, search.at, "`set`", &error))?;
        let prepared = Prepared {
            search,
            file,
            in_file,
            text,
        };
        // What is wrong with the recipe, its models or the space shows before anything is computed.
        prepared.check_space(study)?;
        let middle = vec![0.5; search.space.dimensions().len()];
        let (text, _, seed) = prepared.recipe(study, &middle)?;
        let name = prepared.file.display().to_string();
        for warning in recipe::parse_with_registry(&name, &text)?.warnings {
            listener.hear(&Event::Note(format!("{name}: {}", warning.message)));
        }
        let plan = bench.plan(&prepared.file, &text, seed)?;
        for input in bench.inputs(&plan)? {
            if !models.contains(&input) {
                models.push(input);
            }
        }
        searches.push(prepared);
        plans.push(plan);
    }
    let texts: Vec<(String, String)> = searches
        .iter()
        .map(|search| (search.in_file.clone(), search.text.clone()))
        .collect();
    let tasks_of = TaskSettings::of(&tasks, study.split_seed);
    let settings = Settings::new(study, &texts, tasks_of, models);
    let folder = Folder::open_for(folder, &settings)?;
    let mut record = folder.record()?;
    let notes = folder
        .settings()
        .tasks
        .iter()
        .filter_map(TaskSettings::note);
    for note in notes.chain(folder.settings().made_with.note(&MadeWith::now())) {
        listener.hear(&Event::Note(note));
    }
    let mut work = Work {
        study,
        bench,
        external: external.as_ref(),
        slot: 0,
        folder: &folder,
        listener,
    };
    for prepared in &searches {
        work.search(prepared, &mut record)?;
    }
    check_scored(&folder, &record)?;
    work.references(&plans, &mut record)?;
    for prepared in &searches {
        work.test(prepared, &mut record)?;
    }
    Ok(record)
}

/// A recipe's error as one of the study's file, which sets what the recipe cannot take.
fn of_study(
    study: &Study,
    at: impl Into<Option<Position>>,
    what: &str,
    error: &RecipeError,
) -> StudyError {
    let Some(first) = error.problems.first() else {
        return error.clone().into();
    };
    let message = match first.message.starts_with('`') && first.message.contains("`: ") {
        true => first.message.clone(),
        false => format!("{what}: {}", first.message),
    };
    let problem = Problem::new(first.kind, at, message);
    let problem = match &first.hint {
        Some(hint) => problem.with_hint(hint),
        None => problem,
    };
    study.error(problem).into()
}

impl Prepared<'_> {
    /// The recipe at a point, the values that stand for it, and the seed of its random masks.
    fn recipe(
        &self,
        study: &Study,
        point: &[f64],
    ) -> Result<(String, Map<String, Json>, u64), StudyError> {
        let mut text = self.text.clone();
        let mut seed = self.search.seed;
        let mut values = Map::new();
        let name = self.file.display().to_string();
        for (parameter, share) in self.search.space.shares() {
            for (path, value) in parameter.values_at(&point[share]) {
                let read = recipe::read_yaml(&value).unwrap_or_default();
                let read = read.first().map_or(Json::Null, |node| json(&node.value));
                values.insert(path.clone(), read.clone());
                if path == SEED {
                    seed = read.as_u64().unwrap_or(seed);
                    continue;
                }
                let assignment = Assignment::new(&path, &value).map_err(|why| {
                    let message = format!("cannot set `{path}` to `{value}`: {why}");
                    study.error(Problem::new(ProblemKind::Invalid, parameter.at, message))
                })?;
                text = recipe::assign(&name, &text, &[assignment.of_file()])
                    .map_err(|error| of_study(study, parameter.at, &path, &error))?;
            }
        }
        Ok((text, values, seed))
    }

    /// The parameter without which a recipe that is refused would be taken, or which alone makes it one that is refused.
    fn culprit(&self, point: &[f64]) -> Option<&Parameter> {
        let name = self.file.display().to_string();
        let is_taken = |with: &dyn Fn(usize) -> bool| {
            let shares = self.search.space.shares().enumerate();
            let chosen = shares.filter(|(at, _)| with(*at));
            let values = chosen.flat_map(|(_, (one, share))| one.values_at(&point[share]));
            let values = values.filter(|(path, _)| path != SEED);
            let assignments =
                values.filter_map(|(path, value)| Assignment::new(&path, &value).ok());
            let assignments: Vec<Assignment> = assignments.collect();
            recipe::assign(&name, &self.text, &assignments)
                .and_then(|text| recipe::parse_with_registry(&name, &text))
                .is_ok()
        };
        let is_sound = is_taken(&|_| false);
        let parameters = self.search.space.parameters.iter().enumerate();
        let mut parameters = parameters.filter(|&(own, _)| {
            is_taken(&|at| at != own) || is_sound && !is_taken(&|at| at == own)
        });
        parameters.next().map(|(_, parameter)| parameter)
    }

    /// Checks that the recipe takes the middle of the space and the ends of each range.
    ///
    /// # Errors
    /// The place of the space that the recipe does not take.
    fn check_space(&self, study: &Study) -> Result<(), StudyError> {
        let space = &self.search.space;
        let middle = vec![0.5; space.count()];
        let name = self.file.display().to_string();
        let read = |point: &[f64]| -> Result<Result<(), RecipeError>, StudyError> {
            let (text, ..) = self.recipe(study, point)?;
            Ok(recipe::parse_with_registry(&name, &text).map(drop))
        };
        if let Err(error) = read(&middle)? {
            return Err(match self.culprit(&middle) {
                Some(parameter) => {
                    let what = format!("`{}`", parameter.name);
                    of_study(study, parameter.at, &what, &error)
                }
                None => error.into(),
            });
        }
        for (parameter, share) in space.shares() {
            let (low, high) = match parameter.domain {
                Domain::Uniform { low, high } | Domain::Log { low, high } => (low, high),
                _ => continue,
            };
            for (end, value) in [(0.0, low), (1.0, high)] {
                let mut point = middle.clone();
                point[share.clone()].fill(end);
                if let Err(error) = read(&point)? {
                    let what = format!("`{}` at {value}", parameter.name);
                    return Err(of_study(study, parameter.at, &what, &error));
                }
            }
        }
        Ok(())
    }
}

/// What the search does next.
enum Next {
    /// This trial, at this point.
    Try(usize, Vec<f64>, Claim),
    /// Nothing until another process has ended its trial.
    Wait,
    /// All trials are recorded.
    Done,
}

struct Work<'a> {
    study: &'a Study,
    bench: Bench<'a>,
    /// The command that scores, if one does, and the slot that is worked in.
    external: Option<&'a External>,
    slot: usize,
    folder: &'a Folder,
    listener: &'a dyn Listener,
}

impl Work<'_> {
    /// All trials of a search.
    fn search(&mut self, prepared: &Prepared<'_>, record: &mut Record) -> Result<(), StudyError> {
        let name = prepared.search.name.as_str();
        let all = self.trials(prepared);
        self.listener.hear(&Event::Search {
            name,
            done: record.of_search(name).count(),
            all: bound(all),
        });
        match self.external.map_or(1, |external| external.slots) {
            1 => self.trials_of(prepared, all, record)?,
            slots => self.in_slots(slots, prepared, all, record)?,
        }
        if let Some(failed @ 1..) = failures(record, name) {
            let note = format!("`{name}` is given up: {failed} trials failed, and none was scored");
            self.listener.hear(&Event::Note(note));
        }
        Ok(())
    }

    /// Works on a search in several slots at once, as several processes would.
    fn in_slots(
        &mut self,
        slots: usize,
        prepared: &Prepared<'_>,
        all: usize,
        record: &mut Record,
    ) -> Result<(), StudyError> {
        let shared = Shared {
            listener: self.listener,
            has_failed: AtomicBool::new(false),
        };
        let ended = thread::scope(|scope| {
            let (shared, known) = (&shared, &*record);
            let workers: Vec<_> = (0..slots)
                .map(|slot| {
                    let mut work = self.in_slot(slot, shared);
                    let mut record = known.clone();
                    let work = move || {
                        let done = work.trials_of(prepared, all, &mut record);
                        shared.has_failed.fetch_or(done.is_err(), Relaxed);
                        done
                    };
                    let name = format!("weld-slot-{slot}");
                    thread::Builder::new().name(name).spawn_scoped(scope, work)
                })
                .collect();
            let ended = workers.into_iter().map(|worker| match worker {
                Ok(worker) => worker.join().unwrap_or_else(|panic| resume_unwind(panic)),
                Err(error) => {
                    Err(Refusal::new(format!("a slot cannot be started: {error}")).into())
                }
            });
            ended.collect::<Vec<Result<(), StudyError>>>()
        });
        self.folder.lock()?.update(record)?;
        // A slot that fails stops the others.
        let mut failed: Vec<StudyError> = ended.into_iter().filter_map(Result::err).collect();
        failed.sort_by_key(StudyError::is_stopped);
        failed.into_iter().next().map_or(Ok(()), Err)
    }

    /// The same work in another slot.
    fn in_slot<'b>(&'b self, slot: usize, listener: &'b dyn Listener) -> Work<'b> {
        Work {
            study: self.study,
            bench: self.bench.beside(listener),
            external: self.external,
            slot,
            folder: self.folder,
            listener,
        }
    }

    /// Makes trials of a search until all are recorded.
    fn trials_of(
        &mut self,
        prepared: &Prepared<'_>,
        all: usize,
        record: &mut Record,
    ) -> Result<(), StudyError> {
        let name = prepared.search.name.as_str();
        let failed_before = failures(record, name).unwrap_or(0);
        loop {
            if self.listener.is_stopped() {
                return Err(StudyError::Stopped);
            }
            if failures(record, name).is_some_and(|all| all >= failed_before + BEFORE_GIVING_UP) {
                return Ok(());
            }
            let next = self.next(prepared, all, record)?;
            let (number, point, claim) = match next {
                Next::Try(number, point, claim) => (number, point, claim),
                Next::Wait => {
                    thread::sleep(PATIENCE);
                    continue;
                }
                Next::Done => return Ok(()),
            };
            let trial = self.trial(prepared, number, point, record)?;
            let locked = self.folder.lock()?;
            locked.update(record)?;
            if record.trial(name, number).is_none() {
                locked.add_trial(record, &trial)?;
            }
            drop((locked, claim));
            self.listener.hear(&Event::Trial {
                trial: &trial,
                best: record.best(name, 1).first().copied(),
                done: record.of_search(name).count(),
                all: bound(all),
            });
        }
    }

    /// The number of trials of a search.
    fn trials(&self, prepared: &Prepared<'_>) -> usize {
        let mut counts = prepared
            .search
            .space
            .dimensions()
            .into_iter()
            .map(|one| one.count());
        let combinations = counts.try_fold(1_usize, |product, count| {
            Some(product.saturating_mul(count?))
        });
        match (self.study.strategy, combinations) {
            (Strategy::Grid, Some(combinations)) => self.study.trials.min(combinations),
            // There is only one merge where nothing is searched.
            _ if prepared.search.space.parameters.is_empty() => 1,
            _ => self.study.trials,
        }
    }

    /// Claims the next trial.
    fn next(
        &self,
        prepared: &Prepared<'_>,
        all: usize,
        record: &mut Record,
    ) -> Result<Next, StudyError> {
        let name = prepared.search.name.as_str();
        let locked = self.folder.lock()?;
        locked.update(record)?;
        let used: f64 = record.of_search(name).map(|trial| trial.seconds).sum();
        if self
            .study
            .time
            .is_some_and(|time| used >= time.as_secs_f64())
        {
            return Ok(Next::Done);
        }
        let mut missing = false;
        for number in (0..all).filter(|&number| record.trial(name, number).is_none()) {
            missing = true;
            let Some(claim) = locked.claim(&format!("{name}-{number}"))? else {
                continue;
            };
            let seen = seen(record.of_search(name));
            let dimensions = prepared.search.space.dimensions();
            match self
                .study
                .strategy
                .propose(&dimensions, self.study.seed, number, &seen)
            {
                Proposal::Point(point) => return Ok(Next::Try(number, point, claim)),
                Proposal::Wait => return Ok(Next::Wait),
                Proposal::End => return Ok(Next::Done),
            }
        }
        Ok(if missing { Next::Wait } else { Next::Done })
    }

    /// Merges and scores a trial.
    fn trial(
        &mut self,
        prepared: &Prepared<'_>,
        number: usize,
        point: Vec<f64>,
        record: &Record,
    ) -> Result<Trial, StudyError> {
        let started = Instant::now();
        let name = prepared.search.name.as_str();
        let (text, values, seed) = prepared.recipe(self.study, &point)?;
        let mut trial = Trial {
            search: name.to_owned(),
            number,
            status: Status::Complete,
            score: None,
            standard_error: None,
            values,
            point,
            rungs: Vec::new(),
            tasks: Vec::new(),
            key: String::new(),
            same_as: None,
            error: None,
            seconds: 0.0,
        };
        let made = self
            .bench
            .plan(&prepared.file, &text, seed)
            .and_then(|plan| {
                let inputs = self.bench.inputs(&plan)?;
                trial.key = key(self.folder.settings(), &plan, &inputs)?;
                match record.of_key(&trial.key) {
                    Some(earlier) => {
                        copy(earlier, &mut trial);
                        Ok(())
                    }
                    None => self.score(&plan, &mut trial, record),
                }
            });
        trial.seconds = (started.elapsed().as_secs_f64() * 1e4).round() / 1e4;
        match made {
            Ok(()) => Ok(trial),
            Err(error) if error.is_of_trial() => {
                trial.status = Status::Failed;
                trial.error = Some(error.to_string());
                (trial.score, trial.standard_error) = (None, None);
                trial.tasks.clear();
                trial.rungs.clear();
                Ok(trial)
            }
            Err(error) => Err(error),
        }
    }

    /// Merges a plan, and scores it as far as it is worth it.
    fn score(&mut self, plan: &Plan, trial: &mut Trial, record: &Record) -> Result<(), StudyError> {
        if let Some(external) = self.external {
            let split = external.validation();
            let tasks = external.score_merge(plan, split, self.slot, self.listener)?;
            self.set(trial, tasks);
            return Ok(());
        }
        let merged = self
            .bench
            .merge(plan, &format!("{} {}", trial.search, trial.number))?;
        if let Some(halving) = self.study.halving {
            let mut items = halving.items;
            while self.bench.is_limit(&merged, items)? {
                let scores = self.bench.score(&merged, Split::Validation, Some(items))?;
                self.set(trial, results(self.study.objective, &scores)?);
                trial.rungs.extend(trial.score);
                if !goes_on(trial, record, halving.factor) {
                    trial.status = Status::Stopped;
                    return Ok(());
                }
                items = items.saturating_mul(halving.factor);
            }
        }
        let scores = self.bench.score(&merged, Split::Validation, None)?;
        self.set(trial, results(self.study.objective, &scores)?);
        Ok(())
    }

    fn set(&self, trial: &mut Trial, tasks: Vec<TaskResult>) {
        let all = score(&tasks);
        (trial.score, trial.standard_error) = (Some(all.value), all.error);
        trial.tasks = tasks;
    }

    /// Scores the models that merges are compared with, on both splits: nothing is chosen by it.
    fn references(&mut self, plans: &[Plan], record: &mut Record) -> Result<(), StudyError> {
        let mut labels: Vec<(String, usize)> = Vec::new();
        for (at, plan) in plans.iter().enumerate() {
            // A file without a config is no model: statistics of one, say.
            let is_model = |model: &Checkpoint| !model.is_single_file() || model.config().is_some();
            let stored = plan.models.iter().filter(|model| model.is_stored());
            for model in stored.filter(|model| is_model(model)) {
                if !labels.iter().any(|(label, _)| label == model.label()) {
                    labels.push((model.label().to_owned(), at));
                }
            }
        }
        for (at, (label, plan)) in labels.into_iter().enumerate() {
            let Some(model) = plans.get(plan).and_then(|plan| Bench::model(plan, &label)) else {
                continue;
            };
            let is_known = |record: &Record| record.reference(&label).is_some();
            let claim_name = format!("reference {at}");
            let Some(claim) = self.claim_when(record, &claim_name, is_known)? else {
                continue;
            };
            let (validation, test) = match self.score_stored(&model) {
                Ok(scored) => scored,
                Err(error) if error.is_stopped() => return Err(error),
                Err(error) => {
                    let note = format!("`{label}` could not be scored for comparison: {error}");
                    self.listener.hear(&Event::Note(note));
                    continue;
                }
            };
            let reference = Reference {
                model: label,
                validation,
                test,
            };
            let locked = self.folder.lock()?;
            locked.update(record)?;
            locked.add_reference(record, &reference)?;
            drop((locked, claim));
            self.listener.hear(&Event::Reference(&reference));
        }
        Ok(())
    }

    /// Scores a model as it is stored, on the validation and the test items.
    fn score_stored(
        &self,
        model: &Checkpoint,
    ) -> Result<(Vec<TaskResult>, Vec<TaskResult>), StudyError> {
        if let Some(external) = self.external {
            let score = |split| external.score_stored(model, split, self.listener);
            let validation = score(external.validation())?;
            let test = match external.has_test() {
                true => score(Split::Test)?,
                false => Vec::new(),
            };
            return Ok((validation, test));
        }
        let score = |split| {
            let scores = self.bench.score_stored(model, split)?;
            results(self.study.objective, &scores)
        };
        Ok((score(Split::Validation)?, score(Split::Test)?))
    }

    /// Claims a piece of work; none if it is done, by whomever.
    fn claim_when(
        &self,
        record: &mut Record,
        name: &str,
        is_done: impl Fn(&Record) -> bool,
    ) -> Result<Option<Claim>, StudyError> {
        loop {
            if self.listener.is_stopped() {
                return Err(StudyError::Stopped);
            }
            let locked: Locked<'_> = self.folder.lock()?;
            locked.update(record)?;
            if is_done(record) {
                return Ok(None);
            }
            if let Some(claim) = locked.claim(name)? {
                return Ok(Some(claim));
            }
            drop(locked);
            thread::sleep(PATIENCE);
        }
    }

    /// Scores the best trials of a search on the test split, each once.
    fn test(&mut self, prepared: &Prepared<'_>, record: &mut Record) -> Result<(), StudyError> {
        if self.external.is_some_and(|external| !external.has_test()) {
            return Ok(());
        }
        let name = prepared.search.name.as_str();
        let chosen: Vec<Trial> = record
            .best(name, self.study.finalists)
            .into_iter()
            .cloned()
            .collect();
        for trial in chosen {
            let is_tested = |record: &Record| record.tested.iter().any(|one| one.key == trial.key);
            let Some(claim) = self.claim_when(record, &format!("test {}", trial.key), is_tested)?
            else {
                continue;
            };
            let (text, _, seed) = prepared.recipe(self.study, &trial.point)?;
            let plan = self.bench.plan(&prepared.file, &text, seed)?;
            let tasks = match self.external {
                Some(external) => {
                    external.score_merge(&plan, Split::Test, self.slot, self.listener)?
                }
                None => {
                    let label = format!("{name} {}", trial.number);
                    let merged: Merged = self.bench.merge(&plan, &label)?;
                    let scores = self.bench.score(&merged, Split::Test, None)?;
                    results(self.study.objective, &scores)?
                }
            };
            let all = score(&tasks);
            let tested = Tested {
                search: name.to_owned(),
                number: trial.number,
                key: trial.key.clone(),
                score: all.value,
                standard_error: all.error,
                tasks,
            };
            let locked = self.folder.lock()?;
            locked.update(record)?;
            locked.add_tested(record, &tested)?;
            drop((locked, claim));
            self.listener.hear(&Event::Tested(&tested));
        }
        Ok(())
    }
}

/// How many trials of a search failed; none if any was scored.
fn failures(record: &Record, search: &str) -> Option<usize> {
    let trials = record.of_search(search);
    let all_failed = trials.clone().all(|trial| trial.status == Status::Failed);
    all_failed.then(|| trials.count())
}

/// Checks that not every trial of a study failed.
fn check_scored(folder: &Folder, record: &Record) -> Result<(), StudyError> {
    let is_failed = |trial: &Trial| trial.status == Status::Failed;
    let Some(last) = record.trials.last() else {
        return Ok(());
    };
    if !record.trials.iter().all(is_failed) {
        return Ok(());
    }
    let Trial { search, number, .. } = last;
    let why = last.error.as_deref().unwrap_or_default();
    let why = format!(
        "all {} trials failed; the last, trial {number} of `{search}`: {why}",
        record.trials.len()
    );
    let trials = folder.path().join("trials.jsonl");
    let hint = format!(
        "mend it, remove {}, and run the same command again",
        trials.display()
    );
    Err(Refusal::new(why).with_hint(hint).into())
}

/// How many trials there are, if anything but time bounds them.
fn bound(all: usize) -> Option<usize> {
    Some(all).filter(|&all| all < MAX_TRIALS)
}

/// What slots share: when one fails, the others stop.
struct Shared<'a> {
    listener: &'a dyn Listener,
    has_failed: AtomicBool,
}

impl Listener for Shared<'_> {
    fn hear(&self, event: &Event<'_>) {
        self.listener.hear(event);
    }

    fn is_stopped(&self) -> bool {
        self.has_failed.load(Relaxed) || self.listener.is_stopped()
    }
}

/// What a strategy sees of trials. Those that were given up were scored on fewer items, so their scores cannot be compared
/// with those of others: they come after all that went further, and among themselves in the order of their scores.
fn seen<'r>(trials: impl Iterator<Item = &'r Trial> + Clone) -> Vec<Seen> {
    let scores = trials.clone().filter_map(|trial| trial.score);
    let (low, high) = scores.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), score| {
        (low.min(score), high.max(score))
    });
    let step = (high - low).max(0.0) + 1.0;
    let most = trials
        .clone()
        .map(|trial| trial.rungs.len())
        .max()
        .unwrap_or(0);
    let score = |trial: &Trial| match (trial.status, trial.score) {
        (Status::Complete, Some(score)) => score,
        (Status::Stopped, Some(score)) => {
            let missing = 1 + most.saturating_sub(trial.rungs.len());
            score - step * missing as f64
        }
        _ => f64::NEG_INFINITY,
    };
    trials
        .map(|trial| Seen {
            number: trial.number,
            point: trial.point.clone(),
            score: score(trial),
        })
        .collect()
}

/// Gives a trial what an earlier one with the same key scored.
fn copy(earlier: &Trial, trial: &mut Trial) {
    let first = (earlier.search.clone(), earlier.number);
    trial.same_as = Some(earlier.same_as.clone().unwrap_or(first));
    trial.status = earlier.status;
    trial.score = earlier.score;
    trial.standard_error = earlier.standard_error;
    trial.rungs = earlier.rungs.clone();
    trial.tasks = earlier.tasks.clone();
    trial.error = earlier.error.clone();
}

/// Whether a trial is among the best of those that were scored on the same items before it: one in `factor` goes on.
fn goes_on(trial: &Trial, record: &Record, factor: usize) -> bool {
    let Some(at) = trial.rungs.len().checked_sub(1) else {
        return true;
    };
    let before = record
        .of_search(&trial.search)
        .filter(|other| other.number < trial.number);
    let scores: Vec<f64> = before
        .filter_map(|other| other.rungs.get(at).copied())
        .collect();
    let better = scores
        .iter()
        .filter(|&&score| score > trial.rungs[at])
        .count();
    scores.len() < BEFORE_HALVING || better < (scores.len() + 1).div_ceil(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(number: usize, status: Status, score: f64, rungs: &[f64]) -> Trial {
        Trial {
            search: "s".into(),
            number,
            status,
            score: Some(score).filter(|_| status != Status::Failed),
            standard_error: None,
            values: Map::new(),
            point: Vec::new(),
            rungs: rungs.to_vec(),
            tasks: Vec::new(),
            key: String::new(),
            same_as: None,
            error: None,
            seconds: 0.0,
        }
    }

    /// A trial that had luck with the first few items comes after those that were scored on all.
    #[test]
    fn trials_that_were_given_up_come_after_those_that_went_further() {
        let trials = [
            trial(0, Status::Stopped, 0.9, &[0.9]),
            trial(1, Status::Complete, 0.5, &[0.9, 0.6]),
            trial(2, Status::Failed, 0.0, &[]),
            trial(3, Status::Stopped, 0.8, &[1.0, 0.8]),
            trial(4, Status::Complete, 0.7, &[0.7, 0.7]),
            trial(5, Status::Stopped, 0.4, &[0.4]),
        ];
        let mut seen = seen(trials.iter());
        seen.sort_by(|a, b| b.score.total_cmp(&a.score));
        let order: Vec<usize> = seen.iter().map(|one| one.number).collect();
        assert_eq!(order, [4, 1, 3, 0, 5, 2]);
        assert_eq!(seen[0].score, 0.7);
    }
}
