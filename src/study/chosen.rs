//! The trial that a study chose, as a recipe to merge by.

use std::path::{Path, PathBuf};

use super::bench::Stops;
use super::error::StudyError;
use super::folder::{Folder, Record, Settings};
use super::inputs::{Inputs, MadeWith, changed, changed_beside_models, key};
use super::report::Report;
use super::search::Listener;
use super::space::SEED;
use super::trial::{TaskResult, Trial};
use super::values::yaml;
use errors::{About, Refusal};
use plan::Plan;
use recipe::Assignment;

/// The recipe of a trial, and how it was found.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// What messages call the recipe.
    pub name: String,
    /// The recipe, with the values of the trial.
    pub text: String,
    /// Where relative paths of its models begin.
    pub folder: PathBuf,
    /// The seed of its random masks.
    pub seed: u64,
    /// How it was found: sentences for the model card.
    pub found: String,
    /// The key of the trial: the digest of all that its scores depend on.
    key: String,
}

impl Chosen {
    /// The complete trial that scores best on the validation items: of all searches, or of one; or the trial of a number.
    ///
    /// # Errors
    /// There is no such search or trial, or the folder cannot be read.
    pub fn new(
        folder: &Folder,
        search: Option<&str>,
        number: Option<usize>,
    ) -> Result<Chosen, StudyError> {
        let (settings, record) = (folder.settings(), folder.record()?);
        let refused = |why: String, hint: String| {
            let why = format!("{}: {why}", folder.path().display());
            StudyError::from(
                Refusal::new(why)
                    .with_hint(hint)
                    .about(About::file(folder.path())),
            )
        };
        let names: Vec<&str> = settings
            .searches
            .iter()
            .map(|one| one.name.as_str())
            .collect();
        if let Some(search) = search.filter(|search| !names.contains(search)) {
            return Err(refused(
                format!("there is no search `{search}`"),
                format!("the searches are {}", names.join(", ")),
            ));
        }
        let candidates = names
            .iter()
            .filter(|name| search.is_none_or(|search| search == **name));
        let score = |trial: &&Trial| trial.score.unwrap_or(f64::NEG_INFINITY);
        let mut trials: Vec<&Trial> = candidates
            .filter_map(|&name| match number {
                Some(number) => record
                    .trial(name, number)
                    .filter(|trial| trial.is_complete()),
                None => record.best(name, 1).first().copied(),
            })
            .collect();
        // Of equal ones the first search's.
        trials.sort_by(|a, b| score(b).total_cmp(&score(a)));
        let Some(trial) = trials.first() else {
            let hint = "`weld study report` lists the trials; go on with: weld study STUDY.yml DIR";
            return Err(refused("no such trial is complete".into(), hint.into()));
        };
        Self::of(folder, &record, trial)
    }

    fn of(folder: &Folder, record: &Record, trial: &Trial) -> Result<Chosen, StudyError> {
        let settings = folder.settings();
        let name = format!("trial {} of {}", trial.number, trial.search);
        let Some(search) = settings
            .searches
            .iter()
            .find(|one| one.name == trial.search)
        else {
            return Err(Refusal::new(format!(
                "{}: there is no search `{}`",
                folder.path().display(),
                trial.search
            ))
            .into());
        };
        let assignment = |(path, value): (&String, &serde_json::Value)| {
            Assignment::new(path, &yaml(value))
                .map_err(|why| StudyError::from(Refusal::new(format!("{name}: {path}: {why}"))))
        };
        let seed = trial.values.get(SEED).and_then(serde_json::Value::as_u64);
        let assignments: Vec<Assignment> = trial
            .values
            .iter()
            .filter(|(path, _)| *path != SEED)
            .map(assignment)
            .collect::<Result<_, _>>()?;
        Ok(Chosen {
            text: recipe::assign(&name, &search.recipe, &assignments)?,
            folder: search.file.parent().map(Path::to_owned).unwrap_or_default(),
            seed: seed.unwrap_or(search.seed),
            found: found(settings, record, trial),
            key: trial.key.clone(),
            name,
        })
    }

    /// Checks that a plan of the recipe gives the merge that was scored: reads all that its scores depend on. Gives a note
    /// where another machine may have scored it.
    ///
    /// # Errors
    /// What has changed since the trial was scored; a file cannot be read, or the listener asked to stop.
    pub fn check(
        &self,
        folder: &Folder,
        plan: &Plan,
        threads: usize,
        listener: &dyn Listener,
    ) -> Result<Option<String>, StudyError> {
        let settings = folder.settings();
        let inputs =
            Inputs::new(settings.chat_template).of(plan, &[], threads, &Stops(listener))?;
        let mut changes = changed_beside_models(settings);
        changes.extend(changed(&settings.models, &inputs));
        if changes.is_empty() && key(settings, plan, &inputs)? != self.key {
            let what =
                "the models that the recipe of this trial names, or study.json or trials.jsonl";
            changes.push(what.to_owned());
        }
        folder.refuse_changes(&changes)?;
        Ok(settings.made_with.note(&MadeWith::now()))
    }
}

/// How a trial was found, in sentences.
fn found(settings: &Settings, record: &Record, trial: &Trial) -> String {
    let report = Report::of(settings, record);
    let trials = record.of_search(&trial.search).count();
    let on = |tasks: &[TaskResult], split: &str| {
        let items: usize = tasks.iter().map(|task| task.items).sum();
        match items {
            0 => format!("what a command measures ({split})"),
            items => format!("{items} {split} items"),
        }
    };
    let score =
        |value: f64, error: Option<f64>| report.shown_with(super::Estimate { value, error }.into());
    let mut text = format!(
        "`weld study` found these values: trial {} of {trials} by `{}` with the seed {}. On {}, by which \
         it was chosen, it scores {}.",
        trial.number,
        settings.strategy.name(),
        settings.seed,
        on(&trial.tasks, "validation"),
        score(trial.score.unwrap_or(f64::NAN), trial.standard_error),
    );
    if let Some(tested) = record.tested.iter().find(|one| one.key == trial.key) {
        text.push_str(&format!(
            " On {} it scores {}.",
            on(&tested.tasks, "test"),
            score(tested.score, tested.standard_error)
        ));
    }
    let tasks: Vec<String> = trial
        .tasks
        .iter()
        .map(|task| format!("`{}`", task.task.replace('`', "'")))
        .collect();
    text.push_str(&format!(
        " Scores are {}; the tasks are {}.",
        report.unit(),
        tasks.join(", ")
    ));
    text
}
