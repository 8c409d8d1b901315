//! Statistics from data: opens their files, sees that they are of the models that the recipe says, and finds those of a
//! tensor.

use std::sync::Arc;

use super::models::Models;
use super::planned::SourceTensor;
use super::problems::{Problems, count, some_of};
use super::results::Results;
use checkpoint::{
    Checkpoint, CheckpointError, ModelRef, Resolver, Statistics, StatisticsInfo, TensorEntry,
};
use errors::Refusal;
use methods::{Linear, MethodInfo, Need, Statistic, TensorStatistics};
use numeric::{Fill, FloatType, NoMemory};
use recipe::Recipe;

/// The kind of a file's tensors by what a method calls it.
fn kind(kind: Statistic) -> checkpoint::Statistic {
    match kind {
        Statistic::Gram => checkpoint::Statistic::Gram,
        Statistic::Magnitude => checkpoint::Statistic::Magnitude,
        Statistic::Fisher => checkpoint::Statistic::Fisher,
    }
}

/// How a file of statistics of a model is made.
fn how(needed: Statistic, model: &ModelRef, file: &ModelRef) -> String {
    let kind = match needed {
        Statistic::Fisher => {
            return "make it with the script in docs/statistics.md".to_owned();
        }
        needed => kind(needed).name(),
    };
    format!("make it with: weld stats {model} --data TEXTS.jsonl --keep {kind} --out {file}")
}

/// Opens files of statistics: one that is missing is called what it is.
struct OfStatistics<'r> {
    resolver: &'r dyn Resolver,
    how: String,
}

impl Resolver for OfStatistics<'_> {
    fn resolve(&self, file: &ModelRef) -> Result<Arc<Checkpoint>, CheckpointError> {
        let found = self.resolver.resolve(file);
        found.map_err(|error| error.of_statistics(&self.how))
    }
}

/// Opens the files of statistics that a recipe names, after the models that are merged; whether all could be.
pub(super) fn open(
    recipe: &Recipe,
    models: &mut Models,
    resolver: &dyn Resolver,
    problems: &mut Problems,
) -> bool {
    let mut complete = true;
    let Some(Need { kind: needed, .. }) = recipe.method.statistics else {
        return complete;
    };
    for (model, file) in recipe.statistics() {
        let at = Some(file.at);
        let resolver = OfStatistics {
            resolver,
            how: how(needed, &model.value, &file.value),
        };
        if !models.add(&file.value, at, &resolver, &Results::new(), problems) {
            complete = false;
            continue;
        }
        let Some(index) = models.index(&file.value) else {
            complete = false;
            continue;
        };
        if models.statistics.contains_key(&index) {
            continue;
        }
        match Statistics::new(Arc::clone(&models.checkpoints[index])) {
            Ok(statistics) => {
                models.statistics.insert(index, Arc::new(statistics));
            }
            Err(refusal) => {
                problems.add_error(at, &refusal);
                complete = false;
            }
        }
    }
    complete
}

/// Sees that every file has what the method needs, and is of the model beside which it stands.
pub(super) fn check(
    recipe: &Recipe,
    models: &Models,
    notes: &mut Vec<String>,
    problems: &mut Problems,
) {
    let Some(Need { kind: needed, .. }) = recipe.method.statistics else {
        return;
    };
    check_together(recipe, models, problems);
    for (model, file) in recipe.statistics() {
        let found = models.index(&file.value);
        let statistics = found.and_then(|index| models.statistics.get(&index));
        let (Some(statistics), Some(model)) = (statistics, models.index(&model.value)) else {
            continue;
        };
        let prefix = format!("{}/", kind(needed).name());
        let mut tensors = statistics.file().tensors().iter();
        if !tensors.any(|tensor| tensor.name.starts_with(&prefix)) {
            let message = format!(
                "`{}` holds no statistics of the kind `{prefix}`",
                file.value
            );
            let hint = match needed {
                Statistic::Fisher => "docs/statistics.md has a script that makes them".to_owned(),
                _ => format!("make the file again with `--keep {}`", kind(needed).name()),
            };
            problems.add(Some(file.at), message, Some(hint));
            continue;
        }
        let label = models.label(model);
        if models.results.contains_key(&model) {
            let message = format!(
                "`{label}` is the result of another document, of which there can be no statistics yet"
            );
            let hint = "merge that document first, and make the statistics of what is written";
            problems.add(Some(file.at), message, Some(hint.to_owned()));
            continue;
        }
        let said = &statistics.info().fingerprint;
        let own = said
            .as_ref()
            .and_then(|_| models.checkpoints[model].fingerprint());
        match (said, own) {
            (Some(said), Some(own)) if *said == own => {}
            (Some(_), Some(_)) => {
                let of = statistics.info().model.as_deref().unwrap_or("another model");
                let message = format!("`{}` has statistics of `{of}`, not of `{label}`", file.value);
                let hint = "name the file that was made of this model, or make it again: its weights may have changed";
                problems.add(Some(file.at), message, Some(hint.to_owned()));
            }
            _ => notes.push(format!(
                "that `{}` has statistics of `{label}` could not be checked: the file does not say which model it is of, or \
                 the model's values are not here",
                file.value
            )),
        }
    }
}

/// Sees that files that were made together are all here, in their order, and no others.
fn check_together(recipe: &Recipe, models: &Models, problems: &mut Problems) {
    let found = recipe.statistics().filter_map(|(_, file)| {
        let index = models.index(&file.value)?;
        Some((file, models.statistics.get(&index)?.info()))
    });
    let found: Vec<_> = found.collect();
    let expected = StatisticsInfo::together(found.iter().map(|(_, info)| *info));
    if found.iter().all(|(_, info)| info.together.is_none()) {
        return;
    }
    let Some((file, info)) = found.iter().find(|(_, info)| info.together != expected) else {
        return;
    };
    let name = &file.value;
    let message = match info.together {
        None => format!("`{name}` was not made together with the other files of this recipe"),
        Some(_) => format!(
            "`{name}` was made together with other files than those of this recipe, or in another order"
        ),
    };
    let hint = format!(
        "make all of them again: weld stats {} --force --data ...",
        recipe.path
    );
    problems.add(Some(file.at), message, Some(hint));
}

/// The name that a tensor has in its own file, if the recipe renames tensors.
pub(super) fn own_name(models: &Models, source: SourceTensor) -> Option<&str> {
    let names = models.own_names.get(&source.model)?;
    names.get(source.tensor).map(String::as_str)
}

/// The statistics for one tensor of a model; `None` if the file has none.
pub(super) fn of_tensor(
    statistics: &Arc<Statistics>,
    needed: Statistic,
    name: &str,
    entry: &TensorEntry,
    linear: Option<Linear>,
) -> Result<Option<Arc<dyn TensorStatistics>>, Refusal> {
    let (matrices, shape) = match (needed, linear) {
        (Statistic::Fisher, _) => (1, entry.shape.clone()),
        (_, None) => return Ok(None),
        (Statistic::Gram, Some(linear)) => (linear.count, vec![linear.inputs(); 2]),
        (Statistic::Magnitude, Some(linear)) => (linear.count, vec![linear.inputs()]),
    };
    let find = |matrix| statistics.find(kind(needed), name, matrix);
    let found: Vec<Option<usize>> = (0..matrices).map(find).collect();
    let file = statistics.file().label();
    let indices: Vec<usize> = match found.iter().flatten().count() {
        0 => return Ok(None),
        _ if found.iter().all(Option::is_some) => found.into_iter().flatten().collect(),
        some => {
            let message = format!(
                "`{file}` has statistics for {some} of the {matrices} matrices of `{name}`"
            );
            return Err(Refusal::new(message).with_hint("make the file again"));
        }
    };
    for &index in &indices {
        let found = statistics.entry(index);
        let is_float = FloatType::from_dtype(found.dtype).is_some();
        if found.shape != shape || !is_float {
            let message = format!(
                "`{}` of `{file}`: expected floating-point numbers of shape {shape:?}, found {:?} of shape {:?}",
                found.name, found.dtype, found.shape
            );
            let hint = "the statistics are of a model of other sizes, or of another layout: make the file again";
            return Err(Refusal::new(message).with_hint(hint));
        }
    }
    Ok(Some(Arc::new(OfTensor {
        statistics: Arc::clone(statistics),
        tokens: (0..matrices)
            .map(|matrix| statistics.tokens(name, matrix))
            .collect(),
        indices,
    })))
}

/// The statistics for one tensor.
#[derive(Debug)]
struct OfTensor {
    statistics: Arc<Statistics>,
    /// For each matrix, its tensor in the file.
    indices: Vec<usize>,
    /// For each matrix, how many tokens entered it.
    tokens: Vec<Option<u64>>,
}

impl TensorStatistics for OfTensor {
    fn read(&self, matrix: usize, first: u64, out: &mut [f64]) -> Result<(), NoMemory> {
        let elements = self.statistics.elements(self.indices[matrix]);
        // That they are numbers was seen when the statistics were found.
        match elements {
            Some(elements) => Fill::<f64>::fill(elements.as_ref(), first, out).map(drop),
            None => {
                out.fill(f64::NAN);
                Ok(())
            }
        }
    }

    fn tokens(&self, matrix: usize) -> Option<u64> {
        self.tokens[matrix]
    }
}

/// Tensors for which statistics are missing.
#[derive(Debug, Default)]
pub(super) struct Missing {
    /// In all files.
    pub(super) none: Vec<String>,
    /// In some files.
    pub(super) some: Vec<String>,
}

impl Missing {
    /// Notes or refuses them.
    pub(super) fn report(
        self,
        method: &MethodInfo,
        notes: &mut Vec<String>,
        problems: &mut Problems,
    ) {
        if !self.some.is_empty() {
            let message = format!(
                "some files of statistics lack {} that others have: {}",
                count(self.some.len(), "tensor"),
                some_of(&self.some)
            );
            let hint =
                "make all of them by the same command, or leave the tensors out with `except`";
            problems.add(None, message, Some(hint.to_owned()));
        }
        if !self.none.is_empty() {
            notes.push(format!(
                "there are no statistics for {}, which are merged as `{}` says of such: {}",
                count(self.none.len(), "tensor"),
                method.name,
                some_of(&self.none)
            ));
        }
    }
}
