//! `weld export`: a checkpoint in another format.

use std::io::Read;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::{Args, Subcommand, ValueEnum};

use super::arguments::place;
use super::caller::Caller;
use super::network::{Needs, Network};
use super::output::Failure;
use super::signals::Work;
use super::single_file::FileKind;
use super::stores::is_in_store;
use checkpoint::{Checkpoint, Location, ModelRef};
use errors::{Hint, Refusal, printable};
use gguf::{Encoding, Export, Options};
use plan::Plan;
use run::destination::Disk;
use run::{ExportError, write_gguf};

/// Write a checkpoint in another format
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    format: Format,
}

#[derive(Subcommand)]
enum Format {
    Gguf(GgufArguments),
}

/// Write a GGUF file, as llama.cpp reads it
///
/// The file has the names, values and metadata that llama.cpp's own converter writes. It appears when it is complete,
/// or not at all. One piece of a tensor is held at a time. docs/export.md lists the families.
#[derive(Args)]
struct GgufArguments {
    /// The model: a folder, or an id on the Hub; `+ADAPTER` adds a LoRA adapter
    #[arg(value_parser = ModelRef::parse)]
    model: ModelRef,

    /// The file to write
    #[arg(value_parser = place())]
    out: PathBuf,

    #[command(flatten)]
    file: FileArguments,

    #[command(flatten)]
    network: Network,

    /// Replace OUT if it is an earlier export
    #[arg(long)]
    force: bool,

    /// Print only errors
    #[arg(long, short)]
    quiet: bool,
}

/// What a GGUF file is to be.
#[derive(Args)]
struct FileArguments {
    /// The type of matrices; norms, biases and routers are always F32
    #[arg(long = "type", value_enum, default_value_t = Type::Bf16)]
    encoding: Type,

    /// How the tokenizer cuts text before it merges byte pairs, as llama.cpp names it (`llama-bpe`, `qwen2`, ...);
    /// without this it is recognised, where llama.cpp's converter would recognise it
    #[arg(long, value_name = "NAME")]
    pre_tokenizer: Option<String>,
}

/// A GGUF file beside a checkpoint that is written.
#[derive(Args)]
pub(super) struct BesideArguments {
    /// Write a GGUF file too, as `weld export gguf OUT FILE` does
    #[arg(long, value_name = "FILE")]
    pub(super) gguf: Option<PathBuf>,

    /// The type of matrices in the GGUF file
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = Type::Bf16, requires = "gguf")]
    gguf_type: Type,

    /// How the tokenizer cuts text, for the GGUF file; see `weld export gguf --help`
    #[arg(long, value_name = "NAME", requires = "gguf")]
    pre_tokenizer: Option<String>,
}

/// The types that matrices may have.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Type {
    /// IEEE 754 single precision
    F32,
    /// IEEE 754 half precision
    F16,
    /// The top half of an F32
    Bf16,
    /// 8 bits and a scale for 32 values
    #[value(name = "q8_0")]
    Q8_0,
}

impl From<Type> for Encoding {
    fn from(encoding: Type) -> Self {
        match encoding {
            Type::F32 => Self::F32,
            Type::F16 => Self::F16,
            Type::Bf16 => Self::Bf16,
            Type::Q8_0 => Self::Q8_0,
        }
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.format {
        Format::Gguf(arguments) => to_gguf(arguments),
    }
}

fn to_gguf(arguments: &GgufArguments) -> Result<(), Failure> {
    let caller = Caller::terminal(Work::Writes, arguments.quiet)?;
    let locator = arguments.network.locator(None, Needs::Weights, &caller)?;
    let location = locator.locate(&arguments.model)?;
    let checkpoint = Checkpoint::open(&arguments.model.to_string(), &location)?;
    let options = Options {
        encoding: arguments.file.encoding.into(),
        pretokenizer: arguments.file.pre_tokenizer.as_deref(),
    };
    let (out, force) = (&arguments.out, arguments.force);
    let file = File {
        out,
        caller: &caller,
    };
    let in_model = |refusal: Refusal| refusal.within(&arguments.model);
    file.write(&checkpoint, options, in_model, || {
        GGUF.check_free(out, force, &checkpoint)
    })?;
    let (place, folder) = (absolute(out)?, absolute(&location.path)?);
    if let Ok(inside) = place.strip_prefix(&folder) {
        let note = format!(
            "note: {} is no file of the merge, if the model is one: `weld verify` refuses a file there that loaders may \
             take for the weights, unless `--ignore {}` names it",
            printable(&out.display().to_string()),
            printable(&inside.display().to_string())
        );
        caller.say(&note);
    }
    Ok(())
}

impl BesideArguments {
    /// Finds out before the work what can be known of the file: that its place is free, and that the family is exported.
    pub(super) fn check(&self, folder: &Path, force: bool, plan: &Plan) -> Result<(), Failure> {
        let Some(out) = &self.gguf else {
            return Ok(());
        };
        if is_in_store(folder) {
            let message = format!(
                "--gguf is made of a folder, and {} is in a store",
                folder.display()
            );
            let hint = "leave it out; `weld export gguf` makes the file of the checkpoint there";
            return Err(Failure::input(Refusal::new(message).with_hint(hint)));
        }
        // The lock does not list it, so that `weld verify` would not pass the folder.
        if absolute(out)?.starts_with(absolute(folder)?) {
            let message = format!("{} is within {}", out.display(), folder.display());
            return Err(Failure::input(
                Refusal::new(message).with_hint("name a file beside the folder with --gguf"),
            ));
        }
        for model in plan.stored_models() {
            GGUF.check_free(out, force, model)?;
        }
        let config = plan.config.as_ref();
        let model_type = config.and_then(|config| config["model_type"].as_str());
        gguf::check(model_type, self.pre_tokenizer.as_deref()).map_err(Failure::input)
    }

    /// Refuses a file beside what is no model.
    pub(super) fn refuse(&self, output: &str) -> Result<(), Failure> {
        match self.gguf {
            None => Ok(()),
            Some(_) => Err(Failure::input(
                Refusal::new(format!(
                    "--gguf is for merges into a model, and the output of this recipe is {output}"
                ))
                .with_hint(
                    "leave it out; `weld export BASE+OUT` writes the model with the adapter",
                ),
            )),
        }
    }

    /// Finds out before the work whether the file of a checkpoint can be written whose values are not there yet.
    pub(super) fn look(&self, folder: &Path) -> Result<(), Refusal> {
        let Some(out) = &self.gguf else {
            return Ok(());
        };
        let label = out.display().to_string();
        let within = |refusal: Refusal| refusal.within(&label);
        let checkpoint = Checkpoint::open(&label, &Location::local(folder))
            .map_err(|error| Refusal::from(&error))?;
        planned(&checkpoint, self.options())
            .map(drop)
            .map_err(within)
    }

    fn options(&self) -> Options<'_> {
        Options {
            encoding: self.gguf_type.into(),
            pretokenizer: self.pre_tokenizer.as_deref(),
        }
    }

    /// Writes the file of a checkpoint that is complete.
    pub(super) fn write(&self, folder: &Path, caller: &Caller) -> Result<(), Failure> {
        let Some(out) = &self.gguf else {
            return Ok(());
        };
        let shown = folder.display().to_string();
        let checkpoint = Checkpoint::open(&shown, &Location::local(folder))?;
        let context = |refusal: Refusal| {
            let refusal = refusal.within(format!("{shown} is complete, but not {}", out.display()));
            let hint = refusal
                .hint()
                .map_or(String::new(), |hint| format!("{hint}; "));
            let again = format!("{hint}`weld export gguf` makes the file of {shown}");
            refusal.with_hint(again)
        };
        File { out, caller }.write(&checkpoint, self.options(), context, || Ok(()))
    }
}

/// A GGUF file that is written, and for whom.
struct File<'a> {
    out: &'a Path,
    caller: &'a Caller,
}

impl File<'_> {
    /// Plans the file, looks at its place, and writes it. `context` adds to a refusal what it is about.
    fn write(
        &self,
        checkpoint: &Checkpoint,
        options: Options<'_>,
        context: impl Fn(Refusal) -> Refusal,
        place: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let refused = |refusal| Failure::input(context(refusal));
        let export = planned(checkpoint, options).map_err(refused)?;
        place()?;
        let mut goes_on = |_| !self.caller.stopped();
        let written = write_gguf(&export, &Disk::default(), self.out, &mut goes_on);
        written.map_err(|why| match why {
            ExportError::Stopped => {
                Failure::Stopped(format!("stopped; {} was not written", self.out.display()))
            }
            ExportError::Disk(error) => Failure::tool(context(error.to_string().into())),
            ExportError::Values(refusal) => refused(refusal),
        })?;
        for note in export.notes() {
            self.caller.say(&format!("note: {}", printable(note)));
        }
        let out = self.out.display().to_string();
        let size = ByteSize(export.bytes()).display().si();
        let tensors = export.tensors();
        let written = format!("{}: {tensors} tensors, {size}", printable(&out));
        self.caller.say(&written);
        Ok(())
    }
}

/// The file of a checkpoint. What lies apart from the weights of the folder has no place in it.
fn planned<'c>(checkpoint: &'c Checkpoint, options: Options<'_>) -> Result<Export<'c>, Refusal> {
    let alone = checkpoint.alone().ok_or_else(|| {
        Refusal::new("this is a pipeline, and a GGUF file holds one model")
            .with_hint("name the folder of one of its components")
    })?;
    Export::plan(alone, options)
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    let whole = std::path::absolute(path);
    whole.map_err(|error| Failure::tool(format!("{}: {error}", path.display())))
}

/// A GGUF file.
const GGUF: FileKind = FileKind {
    name: "GGUF file",
    example: "model.gguf",
    may_be_lost: is_gguf_or_empty,
};

/// Whether a file has nothing to lose but an earlier export.
fn is_gguf_or_empty(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(4).read_to_end(&mut start));
    read.is_ok() && (start.is_empty() || start == b"GGUF")
}
