//! What has changed since the trials of a study were scored, for its report.

use super::bench::{Means, Models};
use super::error::StudyError;
use super::folder::{Folder, SearchSettings, Settings};
use super::inputs::{MadeWith, changed, changed_beside_models};
use super::search::Listener;
use super::space::SEED;
use recipe::Assignment;

/// Notes for the readers of a report. Tensors are read only where their files were written to since, so that a report
/// of large models is made at once.
pub(crate) fn changes(folder: &Folder, means: Means, listener: &dyn Listener) -> Vec<String> {
    let settings = folder.settings();
    let mut changes = changed_beside_models(settings);
    let mut notes = Vec::new();
    let models = Models::new(means, settings.chat_template);
    for search in &settings.searches {
        match of_models(settings, search, &models, listener) {
            Ok(found) => changes.extend(found),
            Err(error) => notes.push(format!(
                "whether the models of `{}` have changed since was not checked: {error}",
                search.name
            )),
        }
    }
    changes.dedup();
    if !changes.is_empty() {
        let changes = errors::some_of(&changes, 10);
        notes.insert(
            0,
            format!("the scores are no longer those of what is here. Changed since: {changes}"),
        );
    }
    notes.extend(settings.made_with.note(&MadeWith::now()));
    notes
}

/// The changed parts of a search's models.
fn of_models(
    settings: &Settings,
    search: &SearchSettings,
    models: &Models,
    listener: &dyn Listener,
) -> Result<Vec<String>, StudyError> {
    let middle = vec![0.5; search.space.dimensions().len()];
    let values = search.space.values(&middle).into_iter();
    let values = values.filter(|(path, _)| path != SEED);
    let assignments = values.filter_map(|(path, value)| Assignment::new(&path, &value).ok());
    let assignments: Vec<Assignment> = assignments.collect();
    let name = search.file.display().to_string();
    let text = recipe::assign(&name, &search.recipe, &assignments)?;
    let plan = models.plan(&search.file, &text, search.seed)?;
    let inputs = models.inputs(&plan, &settings.models, listener)?;
    Ok(changed(&settings.models, &inputs))
}
