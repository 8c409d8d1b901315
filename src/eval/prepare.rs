//! Items as tokens: what is run, and what of it is judged.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::error::EvalError;
use crate::score::Listener;
use crate::split::{Digest, Split};
use crate::surroundings::Surroundings;
use crate::task::{Content, Input, Item, Kind, Task, Tasks};
use chat::ChatTemplate;
use errors::Refusal;
use forward::{Continued, ForwardError, Tokenizer};

/// Bytes of text that are cut at once: longer ones are looked at piece by piece, and may be stopped.
const SHORT: usize = 1 << 16;
/// How often it is asked whether to stop while a long text is cut.
const PATIENCE: Duration = Duration::from_millis(50);

/// Which items are scored, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The part of each task that is scored.
    pub split: Split,
    /// The seed of the split, and of which items a limit leaves.
    pub seed: u64,
    /// The most items of each task; those of a smaller limit are among those of a larger one.
    pub limit: Option<usize>,
    /// Whether the model writes its answers, token by token, at most so many tokens; otherwise each is judged in one pass.
    pub generate: Option<usize>,
    /// Worker threads; 0 means one per processor. Scores do not depend on it.
    pub threads: usize,
    /// Whether each prompt is what a user says in a chat, which the model's own template writes.
    pub chat_template: bool,
    /// The most bytes that the states of a batch take. A batch of another size may change the last bits of a
    /// log-likelihood.
    pub memory: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            split: Split::All,
            seed: 0,
            limit: None,
            generate: None,
            chat_template: false,
            threads: 0,
            memory: 256 << 20,
        }
    }
}

/// Tasks as tokens of one vocabulary, for any model that shares it.
pub struct Prepared {
    pub(crate) options: Options,
    /// Reads what a model writes.
    pub(crate) tokenizer: Option<Arc<Tokenizer>>,
    /// Those of all tasks, each once, however often it stands in the files.
    pub(crate) items: Vec<PreparedItem>,
    pub(crate) tasks: Vec<PreparedTask>,
}

pub(crate) struct PreparedTask {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) file: PathBuf,
    /// The line of each item, and its place among the prepared ones.
    pub(crate) items: Vec<(usize, usize)>,
}

pub(crate) struct PreparedItem {
    pub(crate) digest: Digest,
    /// How many tokens of its text stand for something that the vocabulary has no token for.
    pub(crate) unknown: usize,
    /// What the model is run on; several for a long text.
    pub(crate) runs: Vec<Continued>,
    pub(crate) judged: Judged,
}

/// What of a run is judged.
pub(crate) enum Judged {
    /// The last token of each continuation stands for any of the ends.
    Answer {
        /// The tokens that may follow an answer.
        ends: Vec<u32>,
        /// Those of them that are the model's own.
        own_ends: Vec<u32>,
        /// Texts that end an answer.
        stop: Vec<String>,
        /// The right answers, as they are written in the file.
        answers: Vec<Input>,
    },
    Choices {
        right: usize,
        /// The length of each choice, in characters, or tokens where choices are tokens.
        lengths: Vec<usize>,
    },
    Text {
        /// Bytes of the text; none if it is given as tokens.
        bytes: Option<usize>,
    },
}

impl Prepared {
    /// Chooses the items, and cuts them into tokens.
    ///
    /// # Errors
    /// The split leaves no item of a task; text has to be cut and there is no tokenizer; an item is longer than the model
    /// takes; an answer has no end; prompts are to be written by a chat template, and there is none or it refuses one; the
    /// listener asks to stop.
    pub fn new(
        surroundings: &Surroundings,
        tasks: &Tasks,
        options: &Options,
        listener: &dyn Listener,
    ) -> Result<Prepared, EvalError> {
        let mut items = Vec::new();
        let mut places: HashMap<Digest, usize> = HashMap::new();
        let chat = match options.chat_template {
            true => Some(surroundings.chat_template()?),
            false => None,
        };
        let tasks = tasks.tasks.iter().map(|task| {
            let mut cut = Cut {
                surroundings,
                task,
                chat: chat.as_ref(),
                generate: options.generate,
                stops: BTreeMap::new(),
                listener,
            };
            let placed = chosen(task, options)?.into_iter().map(|item| {
                if let Some(&place) = places.get(&item.digest) {
                    return Ok((item.line, place));
                }
                if listener.is_stopped() {
                    return Err(EvalError::Stopped);
                }
                items.push(cut.item(item)?);
                places.insert(item.digest, items.len() - 1);
                Ok((item.line, items.len() - 1))
            });
            Ok(PreparedTask {
                name: task.name.clone(),
                kind: task.kind,
                file: task.file.clone(),
                items: placed.collect::<Result<_, EvalError>>()?,
            })
        });
        let tasks = tasks.collect::<Result<_, EvalError>>()?;
        Ok(Prepared {
            options: options.clone(),
            tokenizer: surroundings.tokenizer().ok().cloned(),
            items,
            tasks,
        })
    }

    /// The tokens that a model reads when these items are scored, with the right answer of each; a text that is longer
    /// than the model takes gives several.
    pub fn sequences(&self) -> Vec<Vec<u32>> {
        let places = self.tasks.iter().flat_map(|task| &task.items);
        let items = places.map(|&(_, place)| &self.items[place]);
        let sequence = |run: &Continued, right: usize| {
            let continuation = &run.continuations[right];
            // What follows the last token is not asked, so it is not read.
            let read = &continuation[..continuation.len() - 1];
            [&run.prompt, read].concat()
        };
        items
            .flat_map(|item| {
                let right = match &item.judged {
                    Judged::Choices { right, .. } => *right,
                    Judged::Answer { .. } | Judged::Text { .. } => 0,
                };
                item.runs.iter().map(move |run| sequence(run, right))
            })
            .collect()
    }

    /// How many different items are run.
    pub fn distinct(&self) -> usize {
        self.items.len()
    }

    /// How many items are scored.
    pub fn items(&self) -> usize {
        self.tasks.iter().map(|task| task.items.len()).sum()
    }
}

/// The items of a split, in the order of the file.
fn chosen<'t>(task: &'t Task, options: &Options) -> Result<Vec<&'t Item>, EvalError> {
    let Options {
        split, seed, limit, ..
    } = *options;
    let items = task.items.iter();
    let mut items: Vec<&Item> = items.filter(|item| split.has(item.shown, seed)).collect();
    if let Some(limit) = limit.filter(|limit| *limit < items.len()) {
        items.sort_by_cached_key(|item| (item.shown.drawn(seed, "limit"), item.line));
        items.truncate(limit);
        items.sort_by_key(|item| item.line);
    }
    if items.is_empty() {
        let why = format!(
            "task `{}`: none of its {} items is of the split `{}`",
            task.name,
            task.items.len(),
            split.name()
        );
        let why = Refusal::new(why).with_hint("score all items, or give the task more");
        return Err(why.into());
    }
    Ok(items)
}

/// Cuts the items of a task.
struct Cut<'c> {
    surroundings: &'c Surroundings,
    task: &'c Task,
    chat: Option<&'c ChatTemplate>,
    generate: Option<usize>,
    /// The tokens that begin with a stop text: finding them takes a look at the whole vocabulary.
    stops: BTreeMap<&'c str, Vec<u32>>,
    listener: &'c dyn Listener,
}

impl<'c> Cut<'c> {
    fn item(&mut self, item: &'c Item) -> Result<PreparedItem, EvalError> {
        let (runs, judged) = match &item.content {
            Content::Answer {
                prompt,
                answers,
                stop,
            } => {
                let ends = self.ends(item, stop)?;
                let prompt = self.written(item, prompt)?;
                let mut run = self.continued(item, &prompt, answers)?;
                for answer in &mut run.continuations {
                    // Of a `stop` that no token begins with there is none; then the model writes, and this is not judged.
                    answer.push(ends.first().copied().unwrap_or_default());
                }
                let judged = Judged::Answer {
                    ends,
                    own_ends: self.surroundings.ends.clone(),
                    stop: stop.clone(),
                    answers: answers.clone(),
                };
                (vec![run], judged)
            }
            Content::Choices {
                prompt,
                choices,
                right,
            } => {
                let lengths = choices.iter().map(Input::length).collect();
                // As in lm-eval, spaces at the end of a prompt belong to the choices.
                let (prompt, choices) = moved_spaces(&self.written(item, prompt)?, choices);
                let run = self.continued(item, &prompt, &choices)?;
                let judged = Judged::Choices {
                    right: *right,
                    lengths,
                };
                (vec![run], judged)
            }
            Content::Text(text) => self.text(item, text)?,
        };
        self.check_lengths(item, &runs)?;
        Ok(PreparedItem {
            digest: item.digest,
            unknown: self.unknown(&item.content, &runs),
            runs,
            judged,
        })
    }

    fn wrong(&self, item: &Item, why: Refusal) -> EvalError {
        EvalError::Line {
            path: self.task.file.clone(),
            line: item.line,
            why,
        }
    }

    /// Counts the tokens that stand for something unknown, where the item is text.
    fn unknown(&self, content: &Content, runs: &[Continued]) -> usize {
        let (prompt, others) = match content {
            Content::Answer {
                prompt, answers, ..
            } => (prompt, answers.as_slice()),
            Content::Choices {
                prompt, choices, ..
            } => (prompt, choices.as_slice()),
            Content::Text(text) => (text, std::slice::from_ref(text)),
        };
        let tokenizer = self.surroundings.tokenizer().ok();
        let Some(unknown) = tokenizer.and_then(|tokenizer| tokenizer.unknown()) else {
            return 0;
        };
        let count = |tokens: &[u32]| tokens.iter().filter(|&&token| token == unknown).count();
        let is_text = |input: &Input| matches!(input, Input::Text(_));
        let mut found = 0;
        for (at, run) in runs.iter().enumerate() {
            // The pieces of a text repeat what stands before them.
            if at == 0 && is_text(prompt) {
                found += count(&run.prompt);
            }
            for (continuation, input) in run.continuations.iter().zip(others) {
                if is_text(input) {
                    found += count(continuation);
                }
            }
        }
        found
    }

    fn check_lengths(&self, item: &Item, runs: &[Continued]) -> Result<(), EvalError> {
        let Some(longest) = self.surroundings.longest else {
            return Ok(());
        };
        let lengths = runs.iter().flat_map(|run| {
            let each = run.continuations.iter();
            // What follows the last token is not asked.
            each.map(|continuation| run.prompt.len() + continuation.len() - 1)
        });
        let found = lengths.max().unwrap_or(0);
        if found <= longest {
            return Ok(());
        }
        Err(self.wrong(
            item,
            Refusal::new(format!(
                "the item has {found} tokens, expected at most {longest} (max_position_embeddings)"
            ))
            .with_hint("shorten it"),
        ))
    }

    /// A prompt as the model is shown it: in the words of its chat template, if that is asked for. Tokens stay as they are.
    fn written(&self, item: &Item, prompt: &Input) -> Result<Input, EvalError> {
        let (Some(chat), Input::Text(text)) = (self.chat, prompt) else {
            return Ok(prompt.clone());
        };
        let written = chat.prompt(text);
        written.map(Input::Text).map_err(|why| {
            let why = format!("the model's chat template does not write this prompt: {why}");
            self.wrong(
                item,
                Refusal::new(why).with_hint("score without a chat template"),
            )
        })
    }

    /// A prompt and what follows it, cut together, so that the cut at their border is that of the whole text.
    fn continued(
        &self,
        item: &Item,
        prompt: &Input,
        continuations: &[Input],
    ) -> Result<Continued, EvalError> {
        let before = match prompt {
            Input::Tokens(tokens) => tokens.clone(),
            Input::Text(text) => {
                self.check_length(item, text)?;
                self.with_beginning(text)?
            }
        };
        if before.is_empty() {
            return Err(self.wrong(
                item,
                Refusal::new("the prompt has no tokens").with_hint("give it a text"),
            ));
        }
        let each = continuations.iter().map(|continuation| {
            let tokens = match (prompt, continuation) {
                (_, Input::Tokens(tokens)) => tokens.clone(),
                (Input::Tokens(_), Input::Text(text)) => {
                    self.check_length(item, text)?;
                    self.encode(text)?
                }
                (Input::Text(prompt), Input::Text(text)) => {
                    self.check_length(item, text)?;
                    let mut whole = self.with_beginning(&format!("{prompt}{text}"))?;
                    whole.split_off(before.len().min(whole.len()))
                }
            };
            match tokens.is_empty() {
                true => Err(self.wrong(
                    item,
                    Refusal::new("what follows the prompt has no tokens of its own").with_hint(
                        "the tokenizer joins it with the prompt: end the prompt elsewhere",
                    ),
                )),
                false => Ok(tokens),
            }
        });
        Ok(Continued {
            continuations: each.collect::<Result<_, EvalError>>()?,
            prompt: before,
        })
    }

    fn text(&self, item: &Item, text: &Input) -> Result<(Vec<Continued>, Judged), EvalError> {
        let (tokens, bytes) = match text {
            Input::Tokens(tokens) => (tokens.clone(), None),
            Input::Text(text) => {
                let Some(beginning) = self.surroundings.beginning else {
                    return Err(self.wrong(
                        item,
                        Refusal::new("the model has no token that begins a text")
                            .with_hint("set bos_token or eos_token in tokenizer_config.json"),
                    ));
                };
                let mut tokens = vec![beginning];
                tokens.extend(self.encode(text)?);
                (tokens, Some(text.len()))
            }
        };
        if tokens.len() < 2 {
            let why = Refusal::new("the text has fewer than two tokens");
            return Err(self.wrong(item, why.with_hint("the first is not scored: give more")));
        }
        // As in lm-eval, a text that is too long is cut into pieces, each after as many of the tokens before as fit.
        let longest = self.surroundings.longest.unwrap_or(tokens.len()).max(1);
        let firsts = (1..tokens.len()).step_by(longest);
        let runs = firsts.map(|first| {
            let end = tokens.len().min(first + longest);
            Continued {
                prompt: tokens[(end - 1).saturating_sub(longest)..first].to_vec(),
                continuations: vec![tokens[first..end].to_vec()],
            }
        });
        Ok((runs.collect(), Judged::Text { bytes }))
    }

    /// The tokens that may end an answer.
    fn ends(&mut self, item: &Item, stop: &'c [String]) -> Result<Vec<u32>, EvalError> {
        let mut ends = self.surroundings.ends.clone();
        for stop in stop {
            if !self.stops.contains_key(stop.as_str()) {
                let tokenizer = self.surroundings.tokenizer()?;
                let begin = tokenizer.tokens_that_begin_with(stop);
                let begin = begin.map_err(|error| self.surroundings.failed(error))?;
                self.stops.insert(stop, begin);
            }
            let begin = &self.stops[stop.as_str()];
            if begin.is_empty() && self.generate.is_none() {
                let why = format!("no token of the model begins with the `stop` {stop:?}");
                let hint = "give the text that follows an answer, such as a line's end; or let the model write, with \
                            --generate";
                return Err(self.wrong(item, Refusal::new(why).with_hint(hint)));
            }
            ends.extend(begin);
        }
        match ends.is_empty() && stop.is_empty() {
            false => Ok(ends),
            true => Err(self.wrong(
                item,
                Refusal::new("no file of the model says which token ends an answer").with_hint(
                    "give the item a `stop`, or set eos_token_id in generation_config.json",
                ),
            )),
        }
    }

    /// Checks a long text by its beginning, so that one that is far too long is not cut whole.
    ///
    /// How many bytes a token stands for has no bound: a tokenizer may drop spaces, or take a run of unknown characters for
    /// one. So beginnings are cut, each twice as long as the one before. Where a beginning is cut is a token that the whole
    /// may not have; twice the length that the model takes leaves room for far more of them.
    fn check_length(&self, item: &Item, text: &str) -> Result<(), EvalError> {
        let Some(longest) = self.surroundings.longest else {
            return Ok(());
        };
        let mut length = SHORT;
        while length < text.len() {
            let beginning = &text[..text.floor_char_boundary(length)];
            if self.encode(beginning)?.len() > longest.saturating_mul(2) {
                let why = format!(
                    "the item has more than {} tokens, expected at most {longest} (max_position_embeddings)",
                    longest.saturating_mul(2)
                );
                return Err(self.wrong(item, Refusal::new(why).with_hint("shorten it")));
            }
            length = length.saturating_mul(2);
        }
        Ok(())
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, EvalError> {
        let tokenizer = self.surroundings.tokenizer()?;
        let encoded = match text.len() <= SHORT {
            true => tokenizer.encode(text, false),
            false => self.encoded_aside(tokenizer, text)?,
        };
        encoded.map_err(|error| self.surroundings.failed(error))
    }

    /// Cuts a long text on a thread of its own, which cannot be asked to stop: if this is, nobody waits for it.
    fn encoded_aside(
        &self,
        tokenizer: &Arc<Tokenizer>,
        text: &str,
    ) -> Result<Result<Vec<u32>, ForwardError>, EvalError> {
        let (send, receive) = channel();
        let (tokenizer, text) = (Arc::clone(tokenizer), text.to_owned());
        thread::spawn(move || {
            // Whoever has stopped does not listen.
            let _ = send.send(tokenizer.encode(&text, false));
        });
        loop {
            match receive.recv_timeout(PATIENCE) {
                Ok(encoded) => return Ok(encoded),
                Err(RecvTimeoutError::Timeout) if self.listener.is_stopped() => {
                    return Err(EvalError::Stopped);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let why = Refusal::new("a text was not cut into tokens: its thread has ended");
                    return Err(why.with_hint("run it again").into());
                }
            }
        }
    }

    /// The tokens of a text after those that the tokenizer puts before it. A chat template writes these itself.
    fn with_beginning(&self, text: &str) -> Result<Vec<u32>, EvalError> {
        let mut tokens = match self.chat {
            Some(_) => Vec::new(),
            None => self.surroundings.before.clone(),
        };
        tokens.extend(self.encode(text)?);
        Ok(tokens)
    }
}

impl Input {
    /// Its length in characters, or in tokens.
    fn length(&self) -> usize {
        match self {
            Input::Text(text) => text.chars().count(),
            Input::Tokens(tokens) => tokens.len(),
        }
    }
}

/// Moves the white space at the end of a prompt to the beginning of each text that follows it.
fn moved_spaces(prompt: &Input, continuations: &[Input]) -> (Input, Vec<Input>) {
    let Input::Text(text) = prompt else {
        return (prompt.clone(), continuations.to_vec());
    };
    let (kept, moved) = text.split_at(text.trim_end().len());
    let each = continuations.iter().map(|continuation| match continuation {
        Input::Text(text) => Input::Text(format!("{moved}{text}")),
        Input::Tokens(tokens) => Input::Tokens(tokens.clone()),
    });
    (Input::Text(kept.to_owned()), each.collect())
}
