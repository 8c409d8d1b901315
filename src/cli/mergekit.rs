//! The options of `mergekit-yaml`, `mergekit-multi` and `mergekit-moe`, which people bring with them: hidden from help.
//! Those that mean something here do it, those that change nothing are accepted, and the others say what to use instead.

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};

use super::arguments::{seed, shard_size, threads};

/// What becomes of an option.
enum Meaning {
    /// It changes nothing here, and why.
    Nothing(&'static str),
    /// weld does not do what it asks for; what to do instead.
    Refused(&'static str),
}

use Meaning::{Nothing, Refused};

/// An option without a counterpart in weld.
struct Foreign {
    name: &'static str,
    short: Option<char>,
    takes_value: bool,
    meaning: Meaning,
}

const fn flag(name: &'static str, meaning: Meaning) -> Foreign {
    Foreign {
        name,
        short: None,
        takes_value: false,
        meaning,
    }
}

const fn setting(name: &'static str, meaning: Meaning) -> Foreign {
    Foreign {
        takes_value: true,
        ..flag(name, meaning)
    }
}

const fn with_short(short: char, option: Foreign) -> Foreign {
    Foreign {
        short: Some(short),
        ..option
    }
}

const ON_CPU: Meaning = Nothing("weld computes on the CPU");
const ALWAYS: Meaning = Nothing("weld always does so");
const DEFAULT: Meaning = Nothing("this is the default");
const MEMORY: Meaning = Nothing(
    "--memory limits weld's own memory, which is 256MiB unless a method holds whole matrices",
);
const LAYERS: Meaning = Nothing("a layer can be used any number of times");
const PICKLES: Meaning = Nothing("pickles are read in place, and their code is never run");
const WRITES: Meaning = Nothing("weld always writes while it computes");
const ADAPTERS: Meaning = Nothing("adapters are applied in float64 while the model is read");
const HIDDEN_STATES: Meaning = Nothing("hidden states are computed from the weights as they are");
const DOCUMENTS: Meaning = Nothing("intermediate results are not written as checkpoints");

static FOREIGN: &[Foreign] = &[
    flag(
        "allow-crimes",
        Nothing("weld matches tensors by name and shape, not by architecture"),
    ),
    flag("no-allow-crimes", DEFAULT),
    flag(
        "trust-remote-code",
        Nothing("weld never runs a model's code"),
    ),
    flag("no-trust-remote-code", DEFAULT),
    flag("cuda", ON_CPU),
    flag("no-cuda", ON_CPU),
    setting("device", ON_CPU),
    flag("read-to-gpu", ON_CPU),
    flag("no-read-to-gpu", ON_CPU),
    flag("multi-gpu", ON_CPU),
    flag("no-multi-gpu", ON_CPU),
    flag("gpu-rich", ON_CPU),
    flag("low-cpu-memory", MEMORY),
    flag("no-low-cpu-memory", MEMORY),
    flag("clone-tensors", LAYERS),
    flag("no-clone-tensors", LAYERS),
    flag("lazy-unpickle", PICKLES),
    flag("no-lazy-unpickle", PICKLES),
    flag("async-write", WRITES),
    flag("no-async-write", WRITES),
    setting("write-threads", WRITES),
    setting("lora-merge-cache", ADAPTERS),
    setting("lora-merge-dtype", ADAPTERS),
    flag("copy-tokenizer", ALWAYS),
    flag(
        "no-copy-tokenizer",
        Refused("weld always copies the tokenizer; delete its files from OUT afterwards"),
    ),
    flag("write-model-card", ALWAYS),
    flag(
        "no-write-model-card",
        Refused("weld always writes README.md; delete it from OUT afterwards"),
    ),
    flag("safe-serialization", ALWAYS),
    flag(
        "no-safe-serialization",
        Refused("weld writes only safetensors; leave the option out"),
    ),
    with_short(
        'v',
        flag(
            "verbose",
            Nothing("`weld plan --all` shows what happens to every tensor"),
        ),
    ),
    flag("no-quiet", DEFAULT),
    setting(
        "transformers-cache",
        Refused("set the environment variable HF_HUB_CACHE to this folder"),
    ),
    with_short('I', setting("intermediate-dir", DOCUMENTS)),
    flag("lazy", DOCUMENTS),
    flag("no-lazy", DOCUMENTS),
    setting(
        "out-path",
        Refused("name the folder after the recipe, as in `weld merge recipe.yml OUT`"),
    ),
    flag("load-in-4bit", HIDDEN_STATES),
    flag("load-in-8bit", HIDDEN_STATES),
    flag(
        "i-understand-this-is-not-useful-without-training",
        Nothing("weld says in notes what a mixture lacks"),
    ),
    flag(
        "unsafe-truncate-embeddings",
        Refused("weld does not cut embeddings; a `tokenizer:` key in the recipe aligns them"),
    ),
];

/// The options of mergekit that were given.
#[derive(Debug, Default)]
pub(super) struct Mergekit {
    /// A line for each.
    pub(super) notes: Vec<String>,
    /// `--out-shard-size`.
    pub(super) shard_size: Option<u64>,
    /// `--random-seed`.
    pub(super) seed: Option<u64>,
    /// `--num-threads`.
    pub(super) threads: Option<u16>,
}

impl Args for Mergekit {
    fn augment_args(command: Command) -> Command {
        let options = FOREIGN.iter().map(Foreign::argument);
        command
            .args(options)
            .arg(
                Arg::new("out-shard-size")
                    .long("out-shard-size")
                    .value_parser(shard_size)
                    .conflicts_with("shard_size")
                    .hide(true),
            )
            .arg(
                Arg::new("random-seed")
                    .long("random-seed")
                    .value_parser(seed)
                    .allow_negative_numbers(true)
                    .conflicts_with("seed")
                    .hide(true),
            )
            .arg(
                Arg::new("num-threads")
                    .long("num-threads")
                    .short('j')
                    .value_parser(threads)
                    .allow_negative_numbers(true)
                    .conflicts_with("threads")
                    .hide(true),
            )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Mergekit {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut mergekit = Self::default();
        mergekit.update_from_arg_matches(matches)?;
        Ok(mergekit)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        let mut refused = Vec::new();
        for option in FOREIGN
            .iter()
            .filter(|option| is_given(matches, option.name))
        {
            let name = option.name;
            match option.meaning {
                Nothing(why) => {
                    let note = format!("--{name} is mergekit's and changes nothing: {why}");
                    self.notes.push(note);
                }
                Refused(instead) => refused.push(format!("--{name} is mergekit's: {instead}")),
            }
        }
        if !refused.is_empty() {
            let message = format!("{}\n", refused.join("\nerror: "));
            return Err(Error::raw(ErrorKind::UnknownArgument, message));
        }
        self.shard_size = self.same(matches, "out-shard-size", "--shard-size");
        self.seed = self.same(matches, "random-seed", "--seed");
        self.threads = self.same(matches, "num-threads", "--threads");
        Ok(())
    }
}

impl Mergekit {
    /// The value of an option that has another name here.
    fn same<T: Copy + Send + Sync + 'static>(
        &mut self,
        matches: &ArgMatches,
        name: &str,
        here: &str,
    ) -> Option<T> {
        let value = matches.get_one(name).copied();
        if value.is_some() {
            let note = format!("--{name} is mergekit's name for {here}");
            self.notes.push(note);
        }
        value
    }
}

fn is_given(matches: &ArgMatches, name: &str) -> bool {
    matches.value_source(name) == Some(ValueSource::CommandLine)
}

impl Foreign {
    fn argument(&self) -> Arg {
        let action = match self.takes_value {
            true => ArgAction::Append,
            // Any number of times, as in `-vv`.
            false => ArgAction::Count,
        };
        let arg = Arg::new(self.name).long(self.name).action(action);
        match self.short {
            Some(short) => arg.short(short).hide(true),
            None => arg.hide(true),
        }
    }
}
