//! The study's file: typed strictly, with line and column in every error.

mod command;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::command::Command;
use super::space::{Domain, Parameter, SEED, Space};
use super::strategy::Strategy;
use super::trial::Objective;
use errors::printable;
use recipe::{
    Assignment, Entry, Node, Position, Problem, ProblemKind, RecipeError, Value, nearest,
};

/// The most trials of a search.
pub(crate) const MAX_TRIALS: usize = 1_000_000;
/// The longest name of a search.
const MAX_NAME_BYTES: usize = 100;
/// The most coordinates of a search's points.
pub(crate) const MAX_DIMENSIONS: usize = 512;

/// A study: searches whose trials are scored alike.
#[derive(Debug, Clone)]
pub struct Study {
    /// The searches; each has a name of its own.
    pub searches: Vec<Search>,
    /// The files of tasks; relative ones begin in the study's folder.
    pub tasks: Vec<PathBuf>,
    /// What scores trials in place of tasks.
    pub command: Option<Command>,
    /// How points are proposed.
    pub strategy: Strategy,
    /// What of the scores is searched for.
    pub objective: Objective,
    /// Whether prompts are shown as the model's chat template writes them.
    pub chat_template: bool,
    /// The most trials of each search.
    pub trials: usize,
    /// The most time that the trials of each search take together.
    pub time: Option<Duration>,
    /// The seed of the strategy.
    pub seed: u64,
    /// The seed of the split into validation and test.
    pub split_seed: u64,
    /// How trials are stopped early.
    pub halving: Option<Halving>,
    /// How many of the best trials of each search are scored on the test split.
    pub finalists: usize,
    /// The file, as the user gave it.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// A recipe, and what of it is searched.
#[derive(Debug, Clone)]
pub struct Search {
    /// Its name.
    pub name: String,
    /// The recipe's file; a relative one begins in the study's folder.
    pub recipe: PathBuf,
    /// Values that are the same in all trials.
    pub set: Vec<Assignment>,
    /// What is searched.
    pub space: Space,
    /// The seed of random masks, where it is not searched.
    pub seed: u64,
    /// Its position.
    pub at: Position,
}

/// Trials are scored on some items of each task first. Only the better ones go on to a multiple of these, and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Halving {
    /// Items of each task at first.
    pub items: usize,
    /// By how much the items grow each time; one in so many trials goes on.
    pub factor: usize,
}

impl Study {
    /// A path of the study's file, from the working folder.
    pub fn located(&self, path: &Path) -> PathBuf {
        let folder = Path::new(&self.path).parent();
        folder.map_or_else(|| path.to_owned(), |folder| folder.join(path))
    }

    /// The error of problems that are found later.
    pub(crate) fn error(&self, problem: Problem) -> RecipeError {
        RecipeError::new(self.path.as_str(), self.text.as_str(), vec![problem])
    }
}

/// Reads a study's file.
///
/// # Errors
/// The file cannot be read, or as [`parse`].
pub fn read(path: &Path) -> Result<Study, RecipeError> {
    let text = recipe::read_regular_text(path).map_err(|mut error| {
        for problem in &mut error.problems {
            problem.message = problem.message.replace("recipe", "study");
            problem.hint = problem
                .hint
                .take()
                .map(|hint| hint.replace("recipe", "study"));
        }
        error
    })?;
    parse(&path.display().to_string(), &text)
}

/// Reads a study from its text; messages call it `name`.
///
/// # Errors
/// All that is wrong with it: what is no YAML, unknown keys, values of the wrong kind, paths that are none.
pub fn parse(name: &str, text: &str) -> Result<Study, RecipeError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let failed = |problems| RecipeError::new(name, text, problems);
    let documents = recipe::read_yaml(text).map_err(|problem| failed(vec![problem]))?;
    let [root] = &documents[..] else {
        let message = format!("expected a study, found {} YAML documents", documents.len());
        let problem = Problem::new(ProblemKind::Invalid, None, message);
        return Err(failed(vec![problem.with_hint("docs/study.md shows one")]));
    };
    let mut reader = Reader::default();
    match reader.study(root) {
        Some(study) if reader.problems.is_empty() => Ok(Study {
            path: name.into(),
            text: text.into(),
            ..study
        }),
        _ => Err(failed(reader.problems)),
    }
}

const STUDY: &[&str] = &[
    "searches",
    "recipe",
    "set",
    "space",
    "tasks",
    "strategy",
    "score",
    "chat_template",
    "trials",
    "time",
    "seed",
    "split_seed",
    "halving",
    "finalists",
    "command",
    "metrics",
    "time_limit",
    "retries",
    "slots",
    "gpus",
    "scratch",
];
const SEARCH: &[&str] = &["name", "recipe", "set", "space"];
const HALVING: &[&str] = &["items", "factor"];
const PARAMETER: &[&str] = &[
    "grid", "choice", "uniform", "log", "simplex", "total", "layers",
];

/// Reads nodes, and keeps what is wrong with them.
#[derive(Default)]
struct Reader {
    problems: Vec<Problem>,
}

/// The value of a key.
fn node_of<'e>(entries: &'e [Entry], key: &str) -> Option<&'e Node> {
    let entry = entries.iter().find(|entry| entry.key == key)?;
    Some(&entry.node)
}

impl Reader {
    fn study(&mut self, root: &Node) -> Option<Study> {
        let entries = self.entries(root, "a study", STUDY)?;
        let get = |key: &str| node_of(entries, key);
        let searches = match get("searches") {
            Some(node) => {
                let also = ["recipe", "set", "space"]
                    .into_iter()
                    .find(|key| get(key).is_some());
                if let Some(also) = also {
                    self.refuse(
                        node,
                        &format!("`searches` and `{also}` exclude each other"),
                        "move it into the searches",
                    );
                }
                self.list(node, "searches")
                    .iter()
                    .filter_map(|item| self.search(item))
                    .collect()
            }
            None => self
                .one_search(entries, root)
                .into_iter()
                .collect::<Vec<Search>>(),
        };
        let mut names = HashSet::new();
        for search in &searches {
            if !names.insert(&search.name) {
                let message = format!("two searches have the name `{}`", search.name);
                let problem = Problem::new(ProblemKind::Invalid, search.at, message);
                self.problems.push(problem.with_hint("give each a `name:`"));
            }
        }
        let strategy = match get("strategy") {
            Some(node) => self.word(
                node,
                "strategy",
                &Strategy::ALL.map(|one| (one.name(), one)),
            ),
            None => None,
        };
        let strategy = strategy.unwrap_or(Strategy::Tpe);
        let objective = match get("score") {
            Some(node) => self.word(node, "score", &Objective::ALL.map(|one| (one.name(), one))),
            None => None,
        };
        let command = self.command(entries);
        let objective = match command {
            Some(_) => Objective::Metric,
            None => objective.unwrap_or(Objective::Accuracy),
        };
        let tasks = match get("tasks") {
            Some(node) => self
                .list(node, "tasks")
                .iter()
                .filter_map(|item| self.text(item, "a file of tasks").map(PathBuf::from))
                .collect(),
            None if get("command").is_some() => Vec::new(),
            None => {
                self.missing(
                    root,
                    "tasks",
                    "`tasks: [FILE.jsonl]` says what merges are scored on",
                );
                Vec::new()
            }
        };
        let combinations = searches
            .iter()
            .map(|search| combinations(&search.space))
            .max()
            .flatten();
        let trials = match (get("trials"), strategy) {
            (Some(node), _) => self
                .whole(node, "trials", 1, MAX_TRIALS as u64)
                .unwrap_or(1) as usize,
            (None, Strategy::Grid) => combinations.unwrap_or(MAX_TRIALS).min(MAX_TRIALS),
            (None, _) if get("time").is_some() => MAX_TRIALS,
            (None, _) => {
                self.missing(
                    root,
                    "trials",
                    "`trials: 100` says how many there are of each search, `time: 10min` how long each goes on",
                );
                0
            }
        };
        for search in &searches {
            self.fits(search, strategy);
        }
        Some(Study {
            searches,
            tasks,
            command,
            strategy,
            objective,
            chat_template: get("chat_template")
                .and_then(|node| self.truth(node, "chat_template"))
                .unwrap_or(false),
            trials,
            time: get("time").and_then(|node| self.time(node)),
            seed: get("seed")
                .and_then(|node| self.whole(node, "seed", 0, i64::MAX as u64))
                .unwrap_or(0),
            split_seed: get("split_seed")
                .and_then(|node| self.whole(node, "split_seed", 0, i64::MAX as u64))
                .unwrap_or(0),
            halving: get("halving").and_then(|node| self.halving(node)),
            finalists: get("finalists")
                .and_then(|node| self.whole(node, "finalists", 0, 1000))
                .unwrap_or(1) as usize,
            path: String::new(),
            text: String::new(),
        })
    }

    fn one_search(&mut self, entries: &[Entry], root: &Node) -> Option<Search> {
        let get = |key: &str| node_of(entries, key);
        self.search_of(get("recipe"), get("set"), get("space"), None, root)
    }

    fn search(&mut self, node: &Node) -> Option<Search> {
        let entries = self.entries(node, "a search", SEARCH)?;
        let get = |key: &str| node_of(entries, key);
        let name = get("name").map(|name| Some((self.text(name, "a name")?, name.at)));
        self.search_of(
            get("recipe"),
            get("set"),
            get("space"),
            name.flatten(),
            node,
        )
    }

    fn search_of(
        &mut self,
        recipe: Option<&Node>,
        set: Option<&Node>,
        space: Option<&Node>,
        name: Option<(String, Position)>,
        node: &Node,
    ) -> Option<Search> {
        let Some(recipe) = recipe else {
            self.missing(
                node,
                "recipe",
                "`recipe: FILE` names the recipe whose values are searched",
            );
            return None;
        };
        let name_at = name.as_ref().map_or(recipe.at, |(_, at)| *at);
        let recipe = PathBuf::from(self.text(recipe, "the file of a recipe")?);
        let stem = recipe
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned());
        let name = name.map(|(name, _)| name).or(stem).unwrap_or_default();
        // Files of the study's folder have its name.
        let is_plain = !name.contains('/') && !name.starts_with('.') && printable(&name) == name;
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !is_plain {
            let shown: String = name.chars().take(60).collect();
            self.refuse_at(
                name_at,
                &format!("`{shown}` cannot name a search"),
                "letters, digits, `-` and `_` can, up to 100",
            );
            return None;
        }
        let (set, seed) = set.map(|set| self.set(set)).unwrap_or_default();
        let space_at = space.map_or(node.at, |space| space.at);
        let space = Space {
            parameters: space.map(|space| self.space(space)).unwrap_or_default(),
        };
        if space.count() > MAX_DIMENSIONS {
            let message = format!("a search has at most {MAX_DIMENSIONS} values");
            self.refuse_at(space_at, &message, "search fewer at a time");
            return None;
        }
        self.check_overlaps(&space, &set, seed.is_some());
        Some(Search {
            name,
            recipe,
            set,
            space,
            seed: seed.unwrap_or(0),
            at: node.at,
        })
    }

    /// Refuses values of which one is a part of another, or is set beside the search.
    fn check_overlaps(&mut self, space: &Space, set: &[Assignment], has_seed: bool) {
        let mut known: Vec<(&str, Assignment)> = Vec::new();
        for parameter in &space.parameters {
            for path in &parameter.paths {
                // What is no path was refused before.
                let Ok(assignment) = Assignment::new(path, "0") else {
                    continue;
                };
                let mut others = known.iter();
                let at = parameter.at;
                if let Some((other, _)) = others.find(|(_, other)| other.overlaps(&assignment)) {
                    let message = match *other == path.as_str() {
                        true => format!("`{path}` is searched twice"),
                        false => format!("`{path}` and `{other}` set the same value of the recipe"),
                    };
                    self.refuse_at(at, &message, "keep one of the two");
                }
                let mut set = set.iter();
                if let Some(set) = set.find(|set| set.overlaps(&assignment)) {
                    let message = format!("`{path}` is searched, and `set` has `{}`", set.path());
                    self.refuse_at(at, &message, "keep one of the two");
                }
                if has_seed && path == SEED {
                    let message = format!("`{SEED}` is searched, and `set` has it too");
                    self.refuse_at(at, &message, "keep one of the two");
                }
                known.push((path, assignment));
            }
        }
    }

    /// The values of all trials, and the seed of their random masks if there is one.
    fn set(&mut self, node: &Node) -> (Vec<Assignment>, Option<u64>) {
        let (mut set, mut seed) = (Vec::new(), None);
        for entry in self.mapping(node, "`set`").unwrap_or_default() {
            if entry.key == SEED {
                seed = self.whole(&entry.node, SEED, 0, i64::MAX as u64);
                continue;
            }
            match Assignment::new(&entry.key, &entry.node.value.in_one_line()) {
                Ok(assignment) => set.push(assignment.of_file()),
                Err(why) => {
                    self.problems
                        .push(Problem::new(ProblemKind::Invalid, entry.key_at, why))
                }
            }
        }
        (set, seed)
    }

    fn space(&mut self, node: &Node) -> Vec<Parameter> {
        let entries = self.mapping(node, "`space`").unwrap_or_default();
        entries
            .iter()
            .filter_map(|entry| self.parameter(entry))
            .collect()
    }

    fn parameter(&mut self, entry: &Entry) -> Option<Parameter> {
        let entries = self.entries(&entry.node, "a searched value", PARAMETER)?;
        let get = |key: &str| node_of(entries, key);
        let kinds = ["grid", "choice", "uniform", "log", "simplex"];
        let given: Vec<&str> = kinds
            .into_iter()
            .filter(|kind| get(kind).is_some())
            .collect();
        let [kind] = given[..] else {
            let message = format!(
                "expected one of `grid`, `choice`, `uniform`, `log` and `simplex` for `{}`, found {}",
                entry.key,
                given.len()
            );
            self.refuse(
                &entry.node,
                &message,
                "as in `parameters.density: {uniform: [0.1, 0.9]}`",
            );
            return None;
        };
        let node = get(kind)?;
        let mut paths = vec![entry.key.clone()];
        let domain = match kind {
            "grid" | "choice" => {
                let values: Vec<Value> = self
                    .list(node, kind)
                    .iter()
                    .map(|item| item.value.clone())
                    .collect();
                for (at, value) in values.iter().enumerate() {
                    if let Some(same) = values[..at].iter().find(|one| is_same(one, value)) {
                        let (value, same) = (value.in_one_line(), same.in_one_line());
                        let message = match value == same {
                            true => format!("{value} stands twice"),
                            false => format!("{value} and {same} are the same value"),
                        };
                        self.refuse(node, &message, "keep one of the two");
                    }
                    if matches!(value, Value::Float(value) if !value.is_finite()) {
                        let message = format!("expected a number, found {}", value.in_one_line());
                        self.refuse(node, &message, "remove it");
                    }
                }
                match kind {
                    "grid" => Domain::Grid(values),
                    _ => Domain::Choice(values),
                }
            }
            "uniform" => {
                let (low, high) = self.range(node, f64::NEG_INFINITY)?;
                Domain::Uniform { low, high }
            }
            "log" => {
                let (low, high) = self.range(node, f64::MIN_POSITIVE)?;
                Domain::Log { low, high }
            }
            _ => {
                paths = self
                    .list(node, kind)
                    .iter()
                    .filter_map(|item| self.text(item, "a path into the recipe"))
                    .collect();
                if paths.len() < 2 {
                    self.refuse(
                        node,
                        "expected two paths at least on a simplex",
                        "each is a path to a weight",
                    );
                    return None;
                }
                let total = get("total").map_or(Some(1.0), |node| self.total(node))?;
                Domain::Simplex { total }
            }
        };
        if let (Some(total), false) = (get("total"), kind == "simplex") {
            self.refuse(total, "`total` is of a simplex", "remove it");
        }
        let is_seed = |value: &Value| matches!(value, Value::Int(0..));
        let are_seeds = match &domain {
            Domain::Grid(values) | Domain::Choice(values) => values.iter().all(is_seed),
            _ => false,
        };
        if paths.iter().any(|path| path == SEED) && (!are_seeds || get("layers").is_some()) {
            let message = format!("expected a `grid` or `choice` of whole numbers for `{SEED}`");
            self.refuse(&entry.node, &message, "as in `{choice: [0, 1, 2]}`");
            return None;
        }
        for path in &paths {
            if let Err(why) = Assignment::new(path, "0") {
                let message = format!("`{path}` is no path into a recipe: {why}");
                self.problems
                    .push(Problem::new(ProblemKind::Invalid, entry.key_at, message));
            }
        }
        Some(Parameter {
            name: entry.key.clone(),
            paths,
            domain,
            layers: get("layers")
                .and_then(|node| self.whole(node, "layers", 2, 256))
                .map(|layers| layers as usize),
            at: Some(entry.key_at),
        })
    }

    /// Checks that a strategy can search a space.
    fn fits(&mut self, search: &Search, strategy: Strategy) {
        let wrong = |parameter: &&Parameter| match strategy {
            Strategy::Grid => !matches!(parameter.domain, Domain::Grid(_) | Domain::Choice(_)),
            Strategy::CmaEs => matches!(parameter.domain, Domain::Grid(_) | Domain::Choice(_)),
            Strategy::Random | Strategy::Tpe => false,
        };
        let Some(parameter) = search.space.parameters.iter().find(wrong) else {
            return;
        };
        let (has, takes) = match strategy {
            Strategy::Grid => ("any number", "`grid` and `choice`"),
            _ => ("a list of values", "`uniform`, `log` and `simplex`"),
        };
        let message = format!(
            "`strategy: {}` takes {takes}, and `{}` is {has}",
            strategy.name(),
            parameter.name
        );
        self.refuse_at(
            parameter.at,
            &message,
            "`tpe` and `random` take all of them",
        );
    }

    fn total(&mut self, node: &Node) -> Option<f64> {
        let total = self.number(node, "total")?;
        if total <= 0.0 {
            let message = format!("expected a sum of more than 0 as total, found {total}");
            self.refuse(
                node,
                &message,
                "weights on a simplex are shares of their sum",
            );
            return None;
        }
        Some(total)
    }

    fn halving(&mut self, node: &Node) -> Option<Halving> {
        let entries = self.entries(node, "`halving`", HALVING)?;
        let get = |key: &str| node_of(entries, key);
        let Some(items) = get("items") else {
            self.missing(
                node,
                "items",
                "`items: 50` says on how many items of each task all trials are scored",
            );
            return None;
        };
        Some(Halving {
            items: self.whole(items, "items", 1, u32::MAX.into())? as usize,
            factor: get("factor").map_or(Some(2), |node| self.whole(node, "factor", 2, 16))?
                as usize,
        })
    }

    fn time(&mut self, node: &Node) -> Option<Duration> {
        let seconds = match &node.value {
            Value::Int(seconds) => Some(*seconds as f64),
            Value::Float(seconds) => Some(*seconds),
            Value::Text(text) => seconds_of(text),
            _ => None,
        };
        let duration = seconds.and_then(of_seconds);
        if duration.is_none() {
            self.refuse(
                node,
                &format!("expected a time, found {}", node.value.found()),
                "as in 90s, 10min or 2h",
            );
        }
        duration
    }

    fn range(&mut self, node: &Node, least: f64) -> Option<(f64, f64)> {
        let items = self.list(node, "a range");
        let [low, high] = items else {
            self.refuse(
                node,
                "expected the least and the largest value",
                "as in `[0.1, 0.9]`",
            );
            return None;
        };
        let (low, high) = (
            self.number(low, "the least value")?,
            self.number(high, "the largest value")?,
        );
        let (message, hint) = match () {
            () if low < least => (
                "expected values of more than 0".to_owned(),
                "as in `[0.1, 0.9]`",
            ),
            () if low > high => (
                format!("the least value, {low}, is more than the largest, {high}"),
                "as in `[0.1, 0.9]`",
            ),
            () if low == high => (
                format!(
                    "the least value and the largest are both {low}: there is nothing to search"
                ),
                "write it into `set`",
            ),
            () if !(high - low).is_finite() => (
                "the range is wider than numbers go".to_owned(),
                "search orders of magnitude: `{log: [1e-3, 1e3]}`",
            ),
            () => return Some((low, high)),
        };
        self.refuse(node, &message, hint);
        None
    }

    fn number(&mut self, node: &Node, what: &str) -> Option<f64> {
        let number = match &node.value {
            Value::Int(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            // YAML 1.1 reads `1e-3` as text.
            Value::Text(text) => text.parse().ok(),
            _ => None,
        };
        let number = number.filter(|number: &f64| number.is_finite());
        if number.is_none() {
            self.refuse(
                node,
                &format!("expected a number as {what}, found {}", node.value.found()),
                "as in `0.3`",
            );
        }
        number
    }

    fn whole(&mut self, node: &Node, what: &str, least: u64, most: u64) -> Option<u64> {
        let number = match &node.value {
            Value::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        };
        let number = number.filter(|number| (least..=most).contains(number));
        if number.is_none() {
            let message = format!(
                "expected a whole number from {least} to {most} as `{what}`, found {}",
                node.value.found()
            );
            self.problems
                .push(Problem::new(ProblemKind::Invalid, node.at, message));
        }
        number
    }

    fn truth(&mut self, node: &Node, what: &str) -> Option<bool> {
        if let Value::Bool(truth) = node.value {
            return Some(truth);
        }
        let message = format!(
            "expected true or false as `{what}`, found {}",
            node.value.found()
        );
        self.problems
            .push(Problem::new(ProblemKind::Invalid, node.at, message));
        None
    }

    fn word<T: Copy>(&mut self, node: &Node, what: &str, words: &[(&str, T)]) -> Option<T> {
        let found = match &node.value {
            Value::Text(text) => words.iter().find(|(word, _)| word == text),
            _ => None,
        };
        if found.is_none() {
            let all: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            let message = format!(
                "expected one of {} as `{what}`, found {}",
                all.join(", "),
                node.value.found()
            );
            self.problems
                .push(Problem::new(ProblemKind::Unknown, node.at, message));
        }
        found.map(|(_, value)| *value)
    }

    fn text(&mut self, node: &Node, what: &str) -> Option<String> {
        match &node.value {
            Value::Text(text) if !text.is_empty() => Some(text.clone()),
            other => {
                let message = format!("expected {what}, found {}", other.found());
                self.problems
                    .push(Problem::new(ProblemKind::Invalid, node.at, message));
                None
            }
        }
    }

    fn list<'n>(&mut self, node: &'n Node, what: &str) -> &'n [Node] {
        match &node.value {
            Value::List(items) if !items.is_empty() => items,
            other => {
                let found = match other {
                    Value::List(_) => "an empty one".to_owned(),
                    other => other.found(),
                };
                self.refuse(
                    node,
                    &format!("expected a list as {what}, found {found}"),
                    "as in `[a, b]`",
                );
                &[]
            }
        }
    }

    fn mapping<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n [Entry]> {
        match &node.value {
            Value::Map(entries) => Some(entries),
            Value::Null => Some(&[]),
            other => {
                let message = format!("expected a mapping as {what}, found {}", other.found());
                self.refuse(node, &message, "write `key: value`, one to a line");
                None
            }
        }
    }

    /// The entries of a mapping with these keys.
    fn entries<'n>(&mut self, node: &'n Node, what: &str, keys: &[&str]) -> Option<&'n [Entry]> {
        let entries = self.mapping(node, what)?;
        for entry in entries
            .iter()
            .filter(|entry| !keys.contains(&entry.key.as_str()))
        {
            let message = format!("unknown key `{}` in {what}", entry.key);
            let hint = match nearest(&entry.key, keys.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the keys are {}", keys.join(", ")),
            };
            let problem = Problem::new(ProblemKind::Unknown, entry.key_at, message);
            self.problems.push(problem.with_hint(hint));
        }
        Some(entries)
    }

    fn missing(&mut self, node: &Node, key: &str, hint: &str) {
        let problem = Problem::new(ProblemKind::Missing, node.at, format!("missing `{key}`"));
        self.problems.push(problem.with_hint(hint));
    }

    fn refuse(&mut self, node: &Node, message: &str, hint: &str) {
        self.refuse_at(node.at, message, hint);
    }

    fn refuse_at(&mut self, at: impl Into<Option<Position>>, message: &str, hint: &str) {
        let problem = Problem::new(ProblemKind::Invalid, at, message);
        self.problems.push(problem.with_hint(hint));
    }
}

/// A time such as `90s`, `10min` or `2h`; none if it is no such time, or no time at all.
pub fn duration(text: &str) -> Option<Duration> {
    seconds_of(text).and_then(of_seconds)
}

fn seconds_of(text: &str) -> Option<f64> {
    let units = [("s", 1.0), ("min", 60.0), ("m", 60.0), ("h", 3600.0)];
    units.iter().find_map(|(unit, seconds)| {
        let number: f64 = text.strip_suffix(unit)?.trim().parse().ok()?;
        Some(number * seconds)
    })
}

fn of_seconds(seconds: f64) -> Option<Duration> {
    let seconds = Some(seconds).filter(|&seconds| seconds > 0.0)?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Whether two values are the same to a recipe, however they are written.
fn is_same(a: &Value, b: &Value) -> bool {
    let number = |value: &Value| match value {
        Value::Int(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        _ => None,
    };
    match (number(a), number(b)) {
        (Some(a), Some(b)) => a == b,
        _ => a.in_one_line() == b.in_one_line(),
    }
}

/// The number of combinations of a space, if it is finite.
fn combinations(space: &Space) -> Option<usize> {
    let mut counts = space
        .dimensions()
        .into_iter()
        .map(|dimension| dimension.count());
    counts.try_fold(1_usize, |product, count| {
        Some(product.saturating_mul(count?))
    })
}
