//! Reads files of tasks, strictly: what is not understood is refused with its line.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::error::EvalError;
use crate::split::Digest;
use crate::task::{Content, Input, Item, Task, Tasks};
use checkpoint::{FileState, nearest, read_bounded};
use errors::{Refusal, printable, some_of};

/// The largest file of a task.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// The most items of a task.
const MAX_ITEMS: usize = 10_000_000;
/// The most choices or answers of an item.
const MAX_CHOICES: usize = 1000;
/// The most stop texts of an item.
const MAX_STOPS: usize = 16;

/// The names that an item may have.
const NAMES: [&str; 7] = ["prompt", "answer", "choices", "text", "stop", "id", "meta"];

impl Tasks {
    /// Reads tasks from files of JSON lines, one task each.
    ///
    /// `id` and `meta` of an item may hold anything; any other name that is not understood is refused. Empty lines are
    /// skipped.
    ///
    /// # Errors
    /// There are no files, one is given twice, by whatever names, or cannot be read, or a line is no item or of another kind
    /// than the first.
    pub fn read<P: AsRef<Path>>(files: &[P]) -> Result<Tasks, EvalError> {
        if files.is_empty() {
            let why = Refusal::new("no file of tasks was given");
            return Err(why.with_hint("name one at least").into());
        }
        let mut tasks = Vec::new();
        let mut names = BTreeSet::new();
        let mut states: Vec<(FileState, String)> = Vec::new();
        for file in files {
            let mut task = read(file.as_ref())?;
            let path = printable(&task.file.display().to_string()).into_owned();
            if let Ok(state) = FileState::at(&task.file) {
                let known = states
                    .iter()
                    .find(|(known, _)| known.is_of_same_file(&state));
                if let Some((_, known)) = known {
                    let why = match *known == path {
                        true => format!("{path} was given twice"),
                        false => format!("{known} and {path} are the same file"),
                    };
                    return Err(Refusal::new(why).with_hint("name it once").into());
                }
                states.push((state, path.clone()));
            }
            if !names.insert(task.name.clone()) {
                task.name = path;
            }
            tasks.push(task);
        }
        Ok(Tasks { tasks })
    }
}

fn read(file: &Path) -> Result<Task, EvalError> {
    let bytes = read_bounded(file, MAX_FILE_BYTES, "file of tasks, in bytes")?;
    let stem = file.file_stem().unwrap_or(file.as_os_str());
    let name = printable(&stem.to_string_lossy()).into_owned();
    task(name, file.into(), &bytes)
}

/// The task that a file's bytes hold.
pub(crate) fn task(name: String, file: PathBuf, bytes: &[u8]) -> Result<Task, EvalError> {
    let mut items: Vec<Item> = Vec::new();
    // Editors of Windows write a mark at the beginning.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    for (at, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let wrong = |why: Refusal| EvalError::Line {
            path: file.clone(),
            line: at + 1,
            why,
        };
        let content = content(line).map_err(wrong)?;
        if let Some(first) = items.first()
            && first.content.kind() != content.kind()
        {
            let (expected, found) = (first.content.kind(), content.kind());
            return Err(wrong(
                Refusal::new(format!(
                    "expected an item of the kind `{}`, as line {} is, found one of the kind `{}`",
                    expected.name(),
                    first.line,
                    found.name()
                ))
                .with_hint("put items of another kind into a file of their own"),
            ));
        }
        if items.len() == MAX_ITEMS {
            return Err(wrong(
                Refusal::new(format!("expected at most {MAX_ITEMS} items"))
                    .with_hint("cut the file in two"),
            ));
        }
        items.push(Item {
            line: at + 1,
            digest: Digest::of_item(&content),
            shown: Digest::of_shown(&content),
            content,
        });
    }
    match items.first() {
        Some(first) => Ok(Task {
            name,
            kind: first.content.kind(),
            file,
            items,
        }),
        None => Err(
            Refusal::new(format!("{}: there are no items", file.display()))
                .with_hint(
                    "write one JSON object a line: {\"prompt\": \"2+2=\", \"answer\": \"4\"}",
                )
                .into(),
        ),
    }
}

/// The names and values of a JSON object, in order; a name may stand twice.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Listing;

        impl<'de> Visitor<'de> for Listing {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(Listing)
    }
}

fn content(line: &[u8]) -> Result<Content, Refusal> {
    let Entries(listed) = serde_json::from_slice(line).map_err(|error| {
        // The parser counts lines from this one on; only its column is of use.
        let what = match error.classify() {
            serde_json::error::Category::Data => {
                return Refusal::new("expected a JSON object, found another value")
                    .with_hint("write {\"prompt\": ..., \"answer\": ...}");
            }
            serde_json::error::Category::Eof => "it ends too early",
            _ => "it is malformed",
        };
        let column = error.column();
        Refusal::new(format!(
            "expected a JSON object, but {what} at column {column}"
        ))
        .with_hint("write one JSON object a line")
    })?;
    let mut entries = BTreeMap::new();
    for (name, value) in listed {
        if entries.contains_key(&name) {
            let why = format!("`{}` stands twice", printable(&shortened(&name)));
            return Err(Refusal::new(why).with_hint("keep one of the two"));
        }
        entries.insert(name, value);
    }
    for name in entries.keys() {
        if !NAMES.contains(&name.as_str()) {
            return Err(unknown(name));
        }
    }
    let mut take = |name: &str| entries.remove(name).filter(|value| !value.is_null());
    let (prompt, answer, choices) = (take("prompt"), take("answer"), take("choices"));
    let (text, stop) = (take("text"), take("stop"));
    match (prompt, answer, choices, text) {
        (Some(prompt), Some(answer), None, None) => {
            let (answers, stop) = (answers(answer)?, stops(stop)?);
            check_reachable(&answers, &stop)?;
            Ok(Content::Answer {
                prompt: input("prompt", prompt)?,
                answers,
                stop,
            })
        }
        (Some(prompt), Some(answer), Some(choices), None) if stop.is_none() => {
            of_choices(input("prompt", prompt)?, choices, &answer)
        }
        (None, None, None, Some(text)) if stop.is_none() => {
            let text = input("text", text)?;
            match text.is_empty() {
                true => Err(Refusal::new("`text` is empty").with_hint("remove the line")),
                false => Ok(Content::Text(text)),
            }
        }
        _ => Err(Refusal::new(
            "expected {\"prompt\", \"answer\"}, {\"prompt\", \"choices\", \"answer\"} or {\"text\"}",
        )
        .with_hint("give an item the names of one kind, and only an answer a `stop`")),
    }
}

fn unknown(name: &str) -> Refusal {
    let refusal = Refusal::new(format!(
        "`{}` is no name of an item",
        printable(&shortened(name))
    ));
    match nearest(name, NAMES) {
        Some(near) => refusal.with_hint(format!("write `{near}`, or put it into `meta`")),
        None => refusal.with_hint(format!(
            "an item may have {}; what is only for you goes into `meta`",
            some_of(NAMES, NAMES.len())
        )),
    }
}

fn of_choices(prompt: Input, choices: Value, answer: &Value) -> Result<Content, Refusal> {
    let wrong = || {
        Refusal::new(format!(
            "`choices`: expected a list of 2 to {MAX_CHOICES} texts or lists of tokens"
        ))
        .with_hint("write \"choices\": [\"yes\", \"no\"]")
    };
    let Value::Array(list) = choices else {
        return Err(wrong());
    };
    if list.len() < 2 || list.len() > MAX_CHOICES {
        return Err(wrong());
    }
    let written = list.clone();
    let choices = list.into_iter().map(|choice| input("choices", choice));
    let choices = choices.collect::<Result<Vec<Input>, Refusal>>()?;
    if choices.iter().any(Input::is_empty) {
        return Err(Refusal::new("`choices`: one is empty").with_hint("remove it"));
    }
    let of_text = |answer: &Value| {
        let mut same = (0..written.len()).filter(|&at| &written[at] == answer);
        same.next().filter(|_| same.next().is_none())
    };
    let right = match answer {
        Value::Number(number) => number
            .as_u64()
            .and_then(|right| usize::try_from(right).ok())
            .filter(|&right| right < choices.len()),
        other => of_text(other),
    };
    match right {
        Some(right) => Ok(Content::Choices {
            prompt,
            choices,
            right,
        }),
        None => Err(Refusal::new(format!(
            "`answer`: expected the number of a choice, 0 to {}, or the text of one of them",
            choices.len() - 1
        ))
        .with_hint("numbers count from 0; of choices that are equal, give the number")),
    }
}

/// A text, tokens, or a list of texts of which each is right.
fn answers(answer: Value) -> Result<Vec<Input>, Refusal> {
    let answers = match answer {
        Value::Array(list) if list.first().is_some_and(|first| !first.is_number()) => {
            if list.len() > MAX_CHOICES {
                let why = format!("`answer`: expected at most {MAX_CHOICES} right ones");
                return Err(Refusal::new(why).with_hint("leave the rarest out"));
            }
            let each = list.into_iter().map(|answer| input("answer", answer));
            each.collect::<Result<Vec<Input>, Refusal>>()?
        }
        one => vec![input("answer", one)?],
    };
    match answers.iter().any(Input::is_empty) {
        true => Err(Refusal::new("`answer` is empty").with_hint("say what the model must write")),
        false => Ok(answers),
    }
}

fn stops(stop: Option<Value>) -> Result<Vec<String>, Refusal> {
    let list = match stop {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    let texts = list.into_iter().map(|stop| match stop {
        Value::String(text) if !text.is_empty() => Some(text),
        _ => None,
    });
    let texts: Option<Vec<String>> = texts.collect();
    let texts = texts.filter(|texts| !texts.is_empty() && texts.len() <= MAX_STOPS);
    texts.ok_or_else(|| {
        Refusal::new(format!(
            "`stop`: expected a text, or a list of 1 to {MAX_STOPS} texts"
        ))
        .with_hint("write \"stop\": \"\\n\"")
    })
}

/// Checks that no answer holds a text that ends it: it could never be written.
fn check_reachable(answers: &[Input], stops: &[String]) -> Result<(), Refusal> {
    for answer in answers {
        if let Input::Text(answer) = answer
            && let Some(stop) = stops.iter().find(|stop| answer.contains(stop.as_str()))
        {
            return Err(Refusal::new(format!(
                "the `answer` holds the `stop` {stop:?}, which ends an answer"
            ))
            .with_hint("take it out of the answer, or choose another `stop`"));
        }
    }
    Ok(())
}

/// A text, or tokens.
fn input(name: &str, value: Value) -> Result<Input, Refusal> {
    let wrong = || {
        Refusal::new(format!("`{name}`: expected a text, or a list of tokens"))
            .with_hint("tokens are whole numbers from 0 on: [1, 15, 7]")
    };
    match value {
        Value::Number(_) | Value::Bool(_) => {
            let why = format!("`{name}`: expected a text, or a list of tokens, found {value}");
            Err(Refusal::new(why).with_hint(format!("put it in quotes: \"{value}\"")))
        }
        Value::String(text) => Ok(Input::Text(text)),
        Value::Array(tokens) => {
            let tokens = tokens.iter().map(|token| {
                let token = token.as_u64().and_then(|token| u32::try_from(token).ok());
                token.ok_or_else(wrong)
            });
            Ok(Input::Tokens(
                tokens.collect::<Result<Vec<u32>, Refusal>>()?,
            ))
        }
        _ => Err(wrong()),
    }
}

impl Input {
    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Input::Text(text) => text.is_empty(),
            Input::Tokens(tokens) => tokens.is_empty(),
        }
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}
