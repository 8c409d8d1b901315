//! A command, cut into words as a shell does, and what its words stand for.

use std::ffi::OsString;
use std::fmt;

use super::Run;
use errors::Refusal;

const MODEL: &str = "{model}";
const OUT: &str = "{out}";
const SPLIT: &str = "{split}";
/// The most bytes of a command.
const MAX_BYTES: usize = 64 << 10;

/// A command with places for the model (`{model}`), the output (`{out}`) and the part of the items (`{split}`).
#[derive(Clone, PartialEq, Eq)]
pub struct CommandLine {
    words: Vec<String>,
}

impl CommandLine {
    /// Cuts a command into words. Quotes and backslashes mean what they mean to a shell; nothing else does.
    ///
    /// # Errors
    /// A quote is not closed, there is no word, or none holds `{model}`.
    pub fn parse(text: &str) -> Result<CommandLine, Refusal> {
        if text.len() > MAX_BYTES {
            let why = format!(
                "the command has {} bytes, expected at most {MAX_BYTES}",
                text.len()
            );
            return Err(Refusal::new(why).with_hint("put it into a script"));
        }
        let Some(words) = shlex::split(text) else {
            let why = "the command ends within quotes or after a backslash";
            return Err(Refusal::new(why).with_hint("close the quote"));
        };
        let line = CommandLine { words };
        if line.program().is_empty() {
            return Err(Refusal::new("the command names no program").with_hint("begin with one"));
        }
        match line.names(MODEL) {
            true => Ok(line),
            false => Err(Refusal::new("the command does not hold `{model}`")
                .with_hint("write {model} where the model's folder belongs, and {out} for the file or folder of its JSON")),
        }
    }

    /// Its words.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// Its first word.
    pub fn program(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// Whether it is told where to write; else its JSON comes from standard output.
    pub fn names_out(&self) -> bool {
        self.names(OUT)
    }

    /// Whether it is told which part of the items to score; else there is but one.
    pub fn names_split(&self) -> bool {
        self.names(SPLIT)
    }

    fn names(&self, place: &str) -> bool {
        self.words.iter().skip(1).any(|word| word.contains(place))
    }

    /// The words for a run.
    pub(super) fn filled(&self, run: &Run<'_>) -> Vec<OsString> {
        let filled = |word: &String| {
            let mut filled = OsString::new();
            let mut rest = word.as_str();
            while let Some(at) = rest.find('{') {
                let (before, found) = rest.split_at(at);
                filled.push(before);
                let places = [
                    (MODEL, run.model.as_os_str()),
                    (OUT, run.out.as_os_str()),
                    (SPLIT, run.split.name().as_ref()),
                ];
                let place = places
                    .into_iter()
                    .find(|(place, _)| found.starts_with(place));
                let (read, value) =
                    place.map_or((1, "{".as_ref()), |(place, value)| (place.len(), value));
                filled.push(value);
                rest = &found[read..];
            }
            filled.push(rest);
            filled
        };
        let (program, arguments) = self.words.split_at(1.min(self.words.len()));
        program
            .iter()
            .map(OsString::from)
            .chain(arguments.iter().map(filled))
            .collect()
    }
}

/// As it would be typed.
impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.words.iter().map(String::as_str);
        match shlex::try_join(words) {
            Ok(line) => f.write_str(&line),
            Err(_) => f.write_str(&self.words.join(" ")),
        }
    }
}

/// The program alone: the others may be secret.
impl fmt::Debug for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CommandLine").field(&self.program()).finish()
    }
}
