//! `models: {glob: ..., last: ..., schedule: ...}`: the checkpoints of a run, and their weights.

use super::found::FoundModels;
use super::keys::Place;
use super::nearest::suggestion;
use super::problem::{Located, Position, Problem, ProblemKind, quoted};
use super::schema::Source;
use super::setting::{Choice, Curve, Parameters, Setting};
use super::walk::Walk;
use super::yaml::{self, Value};
use checkpoint::{ModelRef, paths_matching};
use errors::Refusal;
use methods::ParamValue;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;

/// The most models that a pattern may find: those of the longest recipe would not fit into one.
const MAX_FOUND: usize = 1000;

/// The weight that `schedule: ema` leaves to all checkpoints before the last, if the recipe does not say.
const EMA_DECAY: f64 = 0.8;

const CHECKPOINTS: Place = Place {
    name: "`models` with a `glob`",
    keys: &["glob", "last", "schedule", "decay"],
};

/// How much each checkpoint of a run counts.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Schedule {
    /// All the same.
    Mean,
    /// As if the learning rate had fallen to nothing over these checkpoints, like one minus the square root of time.
    Sqrt,
    /// A mean that moves along the run: each checkpoint replaces a part of it.
    Ema,
}

const SCHEDULES: [(&str, Schedule); 4] = [
    ("mean", Schedule::Mean),
    // A learning rate that falls linearly gives each step to as many of the checkpoints as their mean does.
    ("linear", Schedule::Mean),
    ("sqrt", Schedule::Sqrt),
    ("ema", Schedule::Ema),
];

impl Schedule {
    /// The weights of `count` checkpoints, the oldest first; their sum is 1.
    fn weights(self, count: usize, decay: f64) -> Vec<f64> {
        let share = |index: usize| index as f64 / count as f64;
        let weight = |index: usize| match self {
            Schedule::Mean => share(1),
            Schedule::Sqrt => share(index + 1).sqrt() - share(index).sqrt(),
            Schedule::Ema => {
                let later = (count - 1 - index) as f64;
                let joined = if index == 0 { 1.0 } else { 1.0 - decay };
                joined * decay.powf(later)
            }
        };
        (0..count).map(weight).collect()
    }
}

/// The keys of the mapping, as read.
#[derive(Default)]
struct Keys {
    glob: Option<Located<String>>,
    last: Option<Located<usize>>,
    schedule: Option<Located<Schedule>>,
    decay: Option<Located<f64>>,
}

impl Walk<'_> {
    /// Whether the models of that position were found by a pattern.
    pub(super) fn is_found(&self, at: Position) -> bool {
        let mut found = self.found_models.iter();
        found.any(|found| found.span.start == at.start)
    }

    /// The models that `models: {glob: ...}` stands for; `None` if it is no such mapping.
    pub(super) fn checkpoints(&mut self, entry: &yaml::Entry) -> Option<Option<Vec<Source>>> {
        let Value::Map(entries) = &entry.node.value else {
            return None;
        };
        entries.iter().find(|entry| entry.key == "glob")?;
        let before = self.problems.len();
        let keys = self.checkpoint_keys(entries);
        let sources = (self.problems.len() == before).then(|| self.sources_found(entry, keys));
        let sources = sources.flatten();
        self.incomplete |= sources.is_none();
        Some(sources)
    }

    fn checkpoint_keys(&mut self, entries: &[yaml::Entry]) -> Keys {
        let mut keys = Keys::default();
        for entry in entries {
            let at = entry.node.at;
            match entry.key.as_str() {
                "last" | "schedule" | "decay" if entry.node.is_null() => {}
                "glob" => keys.glob = self.text(entry).map(|value| Located { value, at }),
                "last" => keys.last = self.whole(entry, 1).map(|value| Located { value, at }),
                "schedule" => keys.schedule = self.schedule(entry),
                "decay" => {
                    let decay = self.number(entry, "from 0 to below 1", |decay| {
                        (0.0..1.0).contains(&decay)
                    });
                    keys.decay = decay.map(|value| Located { value, at });
                }
                _ => self.other_key(&CHECKPOINTS, entry),
            }
        }
        let is_ema = matches!(&keys.schedule, Some(schedule) if schedule.value == Schedule::Ema);
        if let Some(decay) = keys.decay.as_ref().filter(|_| !is_ema) {
            let message = "`decay` has no effect without `schedule: ema`";
            let hint = "say `schedule: ema`, or remove it";
            self.refuse(ProblemKind::Invalid, decay.at, message, Some(hint));
        }
        keys
    }

    fn schedule(&mut self, entry: &yaml::Entry) -> Option<Located<Schedule>> {
        let text = self.text(entry)?;
        let at = entry.node.at;
        if let Some((_, value)) = SCHEDULES.iter().find(|(word, _)| *word == text) {
            return Some(Located { value: *value, at });
        }
        let words = SCHEDULES.map(|(word, _)| word);
        let hint = suggestion(&text, "the schedules are", &words);
        let message = format!("unknown schedule {}", quoted(&text));
        self.refuse(ProblemKind::Unknown, at, message, hint.as_deref());
        None
    }

    fn sources_found(&mut self, entry: &yaml::Entry, keys: Keys) -> Option<Vec<Source>> {
        let glob = keys.glob.as_ref()?;
        let mut found = match self.found(&glob.value) {
            Ok(found) => found,
            Err(refusal) => {
                let (message, hint) = refusal.into_parts();
                self.refuse(ProblemKind::Absent, glob.at, message, hint.as_deref());
                return None;
            }
        };
        self.take_once(&mut found, glob.at);
        if let Some(last) = &keys.last {
            if found.len() < last.value {
                let message = format!(
                    "{} fits {} models, fewer than the last {}: all are taken",
                    quoted(&glob.value),
                    found.len(),
                    last.value
                );
                self.warn(Problem::new(ProblemKind::Invalid, last.at, message));
            }
            found.drain(..found.len().saturating_sub(last.value));
        }
        if MAX_FOUND < found.len() {
            let message = format!(
                "expected at most {MAX_FOUND} models, and {} fits {}",
                quoted(&glob.value),
                found.len()
            );
            let hint = "take the last of them: `last: 10`";
            self.refuse(ProblemKind::Invalid, glob.at, message, Some(hint));
            return None;
        }
        let weights = match &keys.schedule {
            Some(schedule) => {
                let parameter = self.weight_parameter(schedule.at)?;
                let decay = keys.decay.map_or(EMA_DECAY, |decay| decay.value);
                let weights = schedule.value.weights(found.len(), decay);
                let weight = |weight| Some((parameter, weight));
                weights.into_iter().map(weight).collect()
            }
            None => vec![None; found.len()],
        };
        self.listed_as(entry, found.into_iter().zip(weights))
    }

    /// Leaves out links to models that are found by their own names, or by a link before.
    fn take_once(&mut self, found: &mut Vec<String>, at: Position) {
        let folders = self.folders();
        // Of a model with an adapter, the adapter was found.
        let path = |model: &str| {
            let path = model.rsplit('+').next().unwrap_or(model);
            let mut places = folders.iter().map(|folder| folder.join(path));
            places.find(|place| place.exists())
        };
        let place = |model: &str| path(model)?.canonicalize().ok();
        let is_link = |model: &str| path(model).is_some_and(|path| path.is_symlink());
        let (links, own): (Vec<String>, Vec<String>) =
            found.iter().cloned().partition(|model| is_link(model));
        let mut known: HashMap<PathBuf, String> = HashMap::new();
        let mut again = Vec::new();
        for model in own.into_iter().chain(links) {
            let Some(place) = place(&model) else { continue };
            match known.entry(place) {
                Entry::Occupied(first) => again.push((model, first.get().clone())),
                Entry::Vacant(free) => {
                    free.insert(model);
                }
            }
        }
        for (model, first) in again {
            found.retain(|one| *one != model);
            let (model, first) = (quoted(&model), quoted(&first));
            let message = format!("{model} is {first} by another name: it is taken once");
            self.warn(Problem::new(ProblemKind::Invalid, at, message));
        }
    }

    /// Where a pattern is looked for.
    fn folders(&self) -> Vec<PathBuf> {
        let folders = [Some(PathBuf::new()), self.recipe_dir.clone()];
        folders.into_iter().flatten().collect()
    }

    /// The models of a pattern, the oldest first. It may stand for the adapters of a run, after a base and a `+`.
    fn found(&self, pattern: &str) -> Result<Vec<String>, Refusal> {
        let folders = self.folders();
        let whole = paths_matching(pattern, &folders)?;
        if !whole.is_empty() {
            return Ok(whole);
        }
        if let Some((base, adapters)) = pattern.split_once('+') {
            let adapters = paths_matching(adapters, &folders)?;
            if !adapters.is_empty() {
                let model = |adapter| format!("{base}+{adapter}");
                return Ok(adapters.into_iter().map(model).collect());
            }
        }
        let message = format!(
            "models {} not found; looked in the working folder, then in the recipe's",
            quoted(pattern)
        );
        Err(Refusal::new(message)
            .with_hint("`*` stands for any characters but `/`: try it with `ls`"))
    }

    /// The parameter that a schedule sets.
    fn weight_parameter(&mut self, at: Position) -> Option<&'static str> {
        let method = self.method?;
        let weight = method.params.iter().find(|info| info.name == "weight");
        // Where a weight need not be given, it is no share of a sum.
        let Some(info) = weight.filter(|info| info.required) else {
            let message = format!("`{}` takes no weights of a schedule", method.name);
            let hint =
                "leave `schedule` out, or choose a method that needs a `weight`, such as `linear`";
            self.refuse(ProblemKind::Invalid, at, message, Some(hint));
            return None;
        };
        Some(info.name)
    }

    /// The models as the entries of a list, which takes the pattern's place in the recipe that is recorded.
    fn listed_as(
        &mut self,
        entry: &yaml::Entry,
        found: impl Iterator<Item = (String, Option<(&'static str, f64)>)>,
    ) -> Option<Vec<Source>> {
        let at = entry.node.at;
        let mut sources = Vec::new();
        let mut lines = Vec::new();
        for (path, weight) in found {
            let model = match ModelRef::parse(&path) {
                Ok(value) => Located { value, at },
                Err(why) => {
                    self.problem(ProblemKind::Invalid, at, why);
                    return None;
                }
            };
            let quoted = path.replace('\'', "''");
            let mut parameters = Parameters::default();
            lines.push(match weight {
                Some((name, weight)) => {
                    let curve = Curve::Constant(ParamValue::Number(weight));
                    let choices = vec![Choice {
                        filter: None,
                        curve,
                    }];
                    parameters.0.push((name, Setting { choices, at }));
                    format!("{{model: '{quoted}', parameters: {{{name}: {weight:?}}}}}")
                }
                None => format!("{{model: '{quoted}'}}"),
            });
            sources.push(Source {
                model,
                parameters,
                statistics: None,
            });
        }
        let indent = " ".repeat(entry.key_at.column + 1);
        let between = format!(",\n{indent}  ");
        let list = format!("[\n{indent}  {}\n{indent}]", lines.join(&between));
        let span = at.start..entry.node.end;
        self.found_models.push(FoundModels { span, list });
        Some(sources)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AnyRecipe, Recipe, parse_any};
    use super::*;
    use std::fs;

    #[test]
    fn weights_are_what_a_hand_works_out() {
        let check = |schedule: Schedule, decay: f64, expected: &[f64]| {
            let weights = schedule.weights(expected.len(), decay);
            assert!(
                (weights.iter().sum::<f64>() - 1.0).abs() < 1e-12,
                "{weights:?}"
            );
            for (weight, expected) in weights.iter().zip(expected) {
                assert!(
                    (weight - expected).abs() < 5e-4,
                    "{schedule:?}: {weights:?}"
                );
            }
        };
        check(Schedule::Mean, 0.0, &[0.25; 4]);
        check(Schedule::Sqrt, 0.0, &[0.447, 0.185, 0.142, 0.120, 0.106]);
        check(Schedule::Sqrt, 0.0, &[1.0]);
        // 0.8 (0.8 a + 0.2 b) + 0.2 c
        check(Schedule::Ema, 0.8, &[0.64, 0.16, 0.2]);
        check(Schedule::Ema, 0.0, &[0.0, 0.0, 1.0]);
        check(Schedule::Ema, 0.5, &[1.0]);
        // A learning rate of which the share `kept[i]` is left gives the steps before checkpoint i that share.
        let weights = Schedule::Sqrt.weights(7, 0.0);
        for step in 1..7 {
            let kept: f64 = weights[step..].iter().sum();
            assert!((kept - (1.0 - (step as f64 / 7.0).sqrt())).abs() < 1e-12);
        }
    }

    /// A recipe beside three checkpoints, and what it means.
    fn read(text: &str) -> Result<Recipe, String> {
        let root = tempfile::tempdir().unwrap();
        for name in [
            "checkpoint-900",
            "checkpoint-1000",
            "checkpoint-80",
            "it's, {one}",
        ] {
            fs::create_dir_all(root.path().join("run").join(name)).unwrap();
        }
        let name = root.path().join("recipe.yml");
        match parse_any(name.to_str().unwrap(), text) {
            Ok(AnyRecipe::Merge(recipe)) => Ok(*recipe),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.problems[0].message.clone()),
        }
    }

    fn mentioned(recipe: &Recipe) -> Vec<String> {
        recipe
            .mentions()
            .map(|model| model.value.to_string())
            .collect()
    }

    #[test]
    fn the_recorded_text_names_the_models() {
        let steps = ["run/checkpoint-900", "run/checkpoint-1000"];
        let glob = "glob: run/checkpoint-*, last: 2, schedule: ema";
        let block = glob.replace(", ", "\n  ");
        for text in [
            format!("models: {{{glob}}} # all\nmerge_method: linear\ndtype: float32\n"),
            format!("models:\n  {block}   # all\n\nmerge_method: linear\ndtype: float32"),
            format!("models:\n  {block}\nmerge_method: linear\ndtype: float32"),
            format!(
                "models: {{ {},\n # a }}\n }}\nmerge_method: linear\ndtype: float32",
                glob.replace(", ", ",\n  ")
            ),
            format!("{{models: {{{glob}}}, merge_method: linear, dtype: float32}}"),
            format!("x-run: &run\n  {block}\nmodels: *run\nmerge_method: linear\ndtype: float32\n"),
            format!(
                "x-run: &run {{{glob}}}\nmodels: {{<<: *run, decay: 0.8}}\nmerge_method: linear\ndtype: float32\n"
            ),
            format!(
                "merge_method: linear\ndtype: float32\nmodules:\n  decoder:\n    models:\n      {}",
                block.replace("  ", "      ")
            ),
        ] {
            let recipe = read(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert_eq!(mentioned(&recipe), steps, "{text}");
            assert_eq!(recipe.text.read, text);
            let resolved = &recipe.text.resolved;
            let again = read(resolved).unwrap();
            assert_eq!(mentioned(&again), steps, "{resolved}");
            assert_eq!(again.dtype, recipe.dtype, "{resolved}");
            assert_eq!(&again.text.resolved, resolved);
            for weight in ["weight: 0.8}", "weight: 0.19999999999999996}"] {
                assert!(resolved.contains(weight), "{resolved}");
            }
        }
    }

    #[test]
    fn documents_and_odd_names_are_recorded_too() {
        let text = "name: one\nmerge_method: karcher\nmodels: {glob: 'run/*[es0]*'}\n---\n\
                    merge_method: linear\nparameters: {weight: 1}\nmodels:\n- {model: one}\n- {model: 'run/x'}\n";
        let recipe = read(text).unwrap();
        let found = mentioned(&recipe.results[0]);
        assert_eq!(found.last().map(String::as_str), Some("run/it's, {one}"));
        assert_eq!(found.len(), 4);
        let again = read(&recipe.text.resolved).unwrap();
        assert_eq!(mentioned(&again.results[0]), found);
        let adapters = "merge_method: karcher\nmodels: {glob: base+run/checkpoint-*, last: 2}\n";
        let adapters = mentioned(&read(adapters).unwrap());
        assert_eq!(
            adapters,
            ["base+run/checkpoint-900", "base+run/checkpoint-1000"]
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (method, models, expected) in [
            (
                "linear",
                "{glob: run/step-*, schedule: mean}",
                "models `run/step-*` not found",
            ),
            (
                "linear",
                "{glob: 'run/*', schedule: men}",
                "unknown schedule `men`",
            ),
            ("linear", "{glob: 'run/*', last: 0}", "whole number from 1"),
            (
                "linear",
                "{glob: 'run/*', schedule: ema, decay: 1}",
                "from 0 to below 1",
            ),
            (
                "linear",
                "{glob: 'run/*', schedule: sqrt, decay: 0.5}",
                "no effect without",
            ),
            ("linear", "{glob: 'run/*', frist: 3}", "unknown key `frist`"),
            (
                "linear",
                "{glob: 'run/*'}",
                "missing required parameter `weight`",
            ),
            ("linear", "{model: run}", "expected a list for `models`"),
            ("linear", "{glob: 3}", "expected text for `glob`"),
            (
                "karcher",
                "{glob: 'run/*', schedule: mean}",
                "`karcher` takes no weights",
            ),
            (
                "tsvm",
                "{glob: 'run/*', schedule: mean}",
                "`tsvm` takes no weights",
            ),
            ("passthrough", "{glob: 'run/*'}", "takes 1 model, found 5"),
        ] {
            let error = read(&format!(
                "merge_method: {method}\nbase_model: b\nmodels: {models}\n"
            ));
            let error = error.unwrap_err();
            assert!(error.contains(expected), "{models}: {error}");
        }
    }
}
