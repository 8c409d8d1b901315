//! Sets values of a recipe before it is read: `parameters.density=0.3`.
//!
//! A recipe with other values is a text again, which the lock keeps. The change is made in place, so that comments and
//! lines stay, and the new text is read to see that it says just what was asked for. Where it does not (the value is
//! shared by an alias, say), the documents are written anew.

mod path;
mod write;

use std::fmt;

use super::problem::{Problem, ProblemKind, RecipeError, listed, quoted};
use super::yaml::{self, Entry, Node, Value};
use path::{KeyPath, Step, outside_brackets};

/// A value for a place in a recipe.
#[derive(Debug, Clone)]
pub struct Assignment {
    path: KeyPath,
    value: Node,
}

impl fmt::Display for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.path, write::flow(&self.value.value))
    }
}

impl Assignment {
    /// Parses `KEY=VALUE`: `models[0].parameters.weight=0.3`. The value is YAML.
    ///
    /// # Errors
    /// There is no `=`, the key is no path, or the value is not YAML.
    pub fn parse(text: &str) -> Result<Assignment, String> {
        match outside_brackets(text, '=') {
            Some(equals) => {
                let (key, value) = text.split_at(equals);
                Assignment::new(key, value.strip_prefix('=').unwrap_or(value))
            }
            None => Err("expected KEY=VALUE, as in parameters.density=0.3".into()),
        }
    }

    /// The value, in YAML, for the place of this path.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn new(path: &str, value: &str) -> Result<Assignment, String> {
        let path = KeyPath::parse(path.trim())?;
        let mut read = yaml::read(value).map_err(|problem| problem.message)?;
        let value = match read.len() {
            0 => null(),
            1 => read.remove(0),
            found => return Err(format!("expected one YAML value, found {found}")),
        };
        Ok(Assignment { path, value })
    }

    /// The same, set by a file: messages name no flag.
    #[must_use]
    pub fn of_file(mut self) -> Assignment {
        self.path.flag = "";
        self
    }

    /// Whether one of two sets what the other sets a part of.
    pub fn overlaps(&self, other: &Assignment) -> bool {
        self.path.overlaps(&other.path)
    }

    /// The place that it sets, as the user wrote it.
    pub fn path(&self) -> impl fmt::Display + '_ {
        &self.path
    }
}

fn null() -> Node {
    let nowhere = super::problem::Position {
        line: 1,
        column: 1,
        start: 0,
        end: 0,
    };
    Node {
        value: Value::Null,
        at: nowhere,
        end: 0,
    }
}

/// The text of a recipe with other values; the later of two for the same place counts. Errors call the recipe `name`.
///
/// # Errors
/// The text is not YAML, or has no such place: a list is shorter, or what a key is asked of is no mapping.
pub fn assign(name: &str, text: &str, assignments: &[Assignment]) -> Result<String, RecipeError> {
    let mut text = text.strip_prefix('\u{feff}').unwrap_or(text).to_owned();
    for assignment in assignments {
        text = set(&text, assignment)
            .map_err(|problem| RecipeError::new(name, text.as_str(), vec![problem]))?;
    }
    Ok(text)
}

/// A step to one value.
#[derive(Debug, Clone)]
enum Exact {
    Key(String),
    Item(usize),
}

fn set(text: &str, assignment: &Assignment) -> Result<String, Problem> {
    let Assignment { path, value } = assignment;
    let mut documents = yaml::read(text)?;
    let Some(document) = document(&documents, path)? else {
        // An empty recipe, which its reader refuses.
        return Ok(text.to_owned());
    };
    let mut places = Vec::new();
    let mut search = Search {
        path,
        places: &mut places,
    };
    search.walk(&documents[document], &path.steps, &mut Vec::new())?;
    let mut text = text.to_owned();
    for place in places {
        let candidates = edits(&text, &documents[document], &place, value);
        put(&mut documents[document], &place, value);
        let says = |text: &String| {
            yaml::read(text).is_ok_and(|read| {
                read.len() == documents.len()
                    && read
                        .iter()
                        .zip(&documents)
                        .all(|(a, b)| same(&a.value, &b.value))
            })
        };
        text = match candidates.into_iter().find(says) {
            Some(edited) => edited,
            None => write::documents(&documents),
        };
        // The positions of what follows have changed.
        documents = yaml::read(&text)?;
    }
    Ok(text)
}

/// The number of the document that a path begins in; none if there is no document.
fn document(documents: &[Node], path: &KeyPath) -> Result<Option<usize>, Problem> {
    let name = |document: &Node| match entry(document, "name").map(|entry| &entry.node.value) {
        Some(Value::Text(name)) => Some(name.clone()),
        _ => None,
    };
    let names: Vec<Option<String>> = documents.iter().map(name).collect();
    let known = || listed(names.iter().flatten().map(String::as_str));
    if let Some(wanted) = &path.document {
        let found = names.iter().position(|name| name.as_ref() == Some(wanted));
        return found.map(Some).ok_or_else(|| {
            let message = format!(
                "{}: no document has the name {}",
                path.given(),
                quoted(wanted)
            );
            let problem = Problem::new(ProblemKind::Unknown, None, message);
            match names.iter().flatten().next() {
                Some(_) => problem.with_hint(format!("the names are {}", known())),
                None => problem.with_hint("no document of this recipe has a `name:`"),
            }
        });
    }
    if documents.len() < 2 {
        return Ok(documents.len().checked_sub(1));
    }
    let nameless: Vec<usize> = (0..names.len())
        .filter(|&index| names[index].is_none())
        .collect();
    match nameless[..] {
        [only] => Ok(Some(only)),
        _ => {
            let message = format!(
                "{}: the recipe has {} documents",
                path.given(),
                documents.len()
            );
            let problem = Problem::new(ProblemKind::Missing, None, message);
            let hint = format!(
                "begin with the name of one, as in `NAME:{path}`; the names are {}",
                known()
            );
            Err(problem.with_hint(hint))
        }
    }
}

fn entry<'n>(node: &'n Node, key: &str) -> Option<&'n Entry> {
    match &node.value {
        Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
        _ => None,
    }
}

/// Looks for the places that a path means.
struct Search<'a> {
    path: &'a KeyPath,
    places: &'a mut Vec<Vec<Exact>>,
}

impl Search<'_> {
    fn walk(
        &mut self,
        node: &Node,
        steps: &[Step],
        reached: &mut Vec<Exact>,
    ) -> Result<(), Problem> {
        let Some((step, rest)) = steps.split_first() else {
            self.places.push(reached.clone());
            return Ok(());
        };
        match (step, &node.value) {
            (Step::Key(key), Value::Map(_) | Value::Null) => {
                reached.push(Exact::Key(key.clone()));
                match entry(node, key) {
                    Some(entry) => self.walk(&entry.node, rest, reached)?,
                    None => self.new_keys(node, rest, reached)?,
                }
                reached.pop();
            }
            (Step::Item(index), Value::List(items)) => {
                let item = items
                    .get(*index)
                    .ok_or_else(|| self.beyond(node, *index, items.len(), reached))?;
                reached.push(Exact::Item(*index));
                self.walk(item, rest, reached)?;
                reached.pop();
            }
            (Step::All, Value::List(items)) => {
                for (index, item) in items.iter().enumerate() {
                    reached.push(Exact::Item(index));
                    self.walk(item, rest, reached)?;
                    reached.pop();
                }
            }
            (Step::Key(_), Value::List(items)) => {
                let found = format!("is a list of {}", items.len());
                let hint = format!(
                    "say which entry: `{0}[0]`, or `{0}[*]` for all",
                    shown(reached)
                );
                return Err(self.problem(node, reached, &found, &hint));
            }
            (Step::Key(_), _) => {
                let found = format!("is {}, not a mapping", node.value.found());
                return Err(self.problem(
                    node,
                    reached,
                    &found,
                    "end the path there to replace it",
                ));
            }
            (Step::Item(_) | Step::All, Value::Map(entries)) => {
                let keys = listed(entries.iter().map(|entry| entry.key.as_str()));
                return Err(self.problem(
                    node,
                    reached,
                    "is a mapping, not a list",
                    &format!("its keys are {keys}"),
                ));
            }
            (Step::Item(_) | Step::All, _) => {
                let found = format!("is {}, not a list", node.value.found());
                return Err(self.problem(
                    node,
                    reached,
                    &found,
                    "end the path there to replace it",
                ));
            }
        }
        Ok(())
    }

    /// Keys that are not there yet are added; entries of lists are not.
    fn new_keys(&mut self, node: &Node, rest: &[Step], reached: &[Exact]) -> Result<(), Problem> {
        let mut place = reached.to_vec();
        for step in rest {
            let Step::Key(key) = step else {
                let hint = match &node.value {
                    Value::Map(entries) => {
                        format!(
                            "there is {}",
                            listed(entries.iter().map(|entry| entry.key.as_str()))
                        )
                    }
                    _ => "there is nothing".into(),
                };
                return Err(self.problem(
                    node,
                    &place,
                    "does not exist, so it has no entries",
                    &hint,
                ));
            };
            place.push(Exact::Key(key.clone()));
        }
        self.places.push(place);
        Ok(())
    }

    fn beyond(&self, node: &Node, index: usize, count: usize, reached: &[Exact]) -> Problem {
        let found = match count {
            0 => "is empty".to_owned(),
            1 => format!("has one entry, [0], and no [{index}]"),
            _ => format!(
                "has {count} entries, [0] to [{}], and no [{index}]",
                count - 1
            ),
        };
        self.problem(
            node,
            reached,
            &found,
            "entries are numbered from 0; a new one is written in the recipe",
        )
    }

    fn problem(&self, node: &Node, reached: &[Exact], found: &str, hint: &str) -> Problem {
        let what = match reached.is_empty() {
            true => "the recipe".to_owned(),
            false => quoted(&shown(reached)),
        };
        let message = format!("{}: {what} {found}", self.path.given());
        Problem::new(ProblemKind::Invalid, node.at, message).with_hint(hint)
    }
}

/// A place as a path.
fn shown(place: &[Exact]) -> String {
    let mut text = String::new();
    for step in place {
        match step {
            Exact::Key(key) if text.is_empty() => text.push_str(key),
            Exact::Key(key) => {
                text.push('.');
                text.push_str(key);
            }
            Exact::Item(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

/// Sets a value in the tree.
fn put(node: &mut Node, place: &[Exact], value: &Node) {
    let Some((step, rest)) = place.split_first() else {
        node.value = value.value.clone();
        return;
    };
    match (step, &mut node.value) {
        (Exact::Item(index), Value::List(items)) => {
            if let Some(item) = items.get_mut(*index) {
                put(item, rest, value);
            }
        }
        (Exact::Key(key), Value::Map(entries)) => {
            let at = entries.iter().position(|entry| entry.key == *key);
            let at = at.unwrap_or_else(|| {
                entries.push(Entry {
                    key: key.clone(),
                    key_at: node.at,
                    node: null(),
                });
                entries.len() - 1
            });
            put(&mut entries[at].node, rest, value);
        }
        (Exact::Key(_), other) => {
            *other = Value::Map(Vec::new());
            put(node, place, value);
        }
        (Exact::Item(_), _) => {}
    }
}

/// The texts in which the value may be set, the best first. Whether they say what they should is looked at afterwards.
fn edits(text: &str, root: &Node, place: &[Exact], value: &Node) -> Vec<String> {
    let mut node = root;
    let mut key_at = None;
    let mut rest = place;
    while let Some((step, after)) = rest.split_first() {
        let below = match (step, &node.value) {
            (Exact::Item(index), Value::List(items)) => {
                key_at = None;
                items.get(*index)
            }
            (Exact::Key(key), _) => entry(node, key).map(|entry| {
                key_at = Some(entry.key_at);
                &entry.node
            }),
            _ => None,
        };
        let Some(below) = below else { break };
        (node, rest) = (below, after);
    }
    let mut value = write::flow(&value.value);
    for step in rest.iter().skip(1).rev() {
        if let Exact::Key(key) = step {
            value = format!("{{{}: {value}}}", write::text(key));
        }
    }
    let new = match rest.first() {
        Some(Exact::Key(key)) => format!("{}: {value}", write::text(key)),
        _ => return replaced(text, node, key_at.map(|at| (at.start, at.end)), &value),
    };
    match &node.value {
        Value::Map(entries) if !entries.is_empty() => {
            match text
                .get(node.at.start..)
                .is_some_and(|rest| rest.starts_with('{'))
            {
                true => vec![spliced(
                    text,
                    node.at.start + 1,
                    node.at.start + 1,
                    &format!("{new}, "),
                )],
                false => added(text, entries, &new),
            }
        }
        _ => replaced(
            text,
            node,
            key_at.map(|at| (at.start, at.end)),
            &format!("{{{new}}}"),
        ),
    }
}

/// The text with another value in a node's place. An absent one, which has its key's place, comes after the colon.
fn replaced(text: &str, node: &Node, key: Option<(usize, usize)>, value: &str) -> Vec<String> {
    let place = (node.at.start, node.at.end);
    if node.is_null() && key == Some(place) {
        let colon = text.get(place.1..).and_then(|rest| rest.find(':'));
        let after = colon.map(|colon| place.1 + colon + 1);
        return after
            .map(|after| spliced(text, after, after, &format!(" {value}")))
            .into_iter()
            .collect();
    }
    vec![spliced(text, place.0, place.1, value)]
}

/// The texts with a further line in a mapping of one key a line: after its last, or before its first.
fn added(text: &str, entries: &[Entry], new: &str) -> Vec<String> {
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
        return Vec::new();
    };
    let indent = " ".repeat(first.key_at.column - 1);
    let end = last_end(&last.node);
    let line_end = text
        .get(end..)
        .and_then(|rest| rest.find('\n'))
        .map_or(text.len(), |len| end + len);
    vec![
        spliced(text, line_end, line_end, &format!("\n{indent}{new}")),
        spliced(
            text,
            first.key_at.start,
            first.key_at.start,
            &format!("{new}\n{indent}"),
        ),
    ]
}

/// Where the last scalar of a value ends.
fn last_end(node: &Node) -> usize {
    let last = match &node.value {
        Value::List(items) => items.last(),
        Value::Map(entries) => entries.last().map(|entry| &entry.node),
        _ => None,
    };
    last.map_or(node.at.end, last_end)
}

fn spliced(text: &str, start: usize, end: usize, new: &str) -> String {
    let before = text.get(..start).unwrap_or_default();
    let after = text.get(end..).unwrap_or_default();
    format!("{before}{new}{after}")
}

/// Whether two values are the same; the order of keys does not matter.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Int(a), Value::Int(b)) => a == b,
        (Value::Float(a), Value::Float(b)) => {
            a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
        }
        (Value::Text(a), Value::Text(b)) => a == b,
        (Value::List(a), Value::List(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(&a.value, &b.value))
        }
        (Value::Map(a), Value::Map(b)) => {
            let value = |key: &str| b.iter().find(|entry| entry.key == key);
            a.len() == b.len()
                && a.iter().all(|entry| {
                    value(&entry.key)
                        .is_some_and(|found| same(&entry.node.value, &found.node.value))
                })
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
