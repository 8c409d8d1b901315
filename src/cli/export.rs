//! `weld export`: a checkpoint in another format.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytesize::ByteSize;
use clap::{Args, Subcommand, ValueEnum};

use super::environment;
use super::output::{Failure, say};
use super::signals;
use checkpoint::{Checkpoint, ModelRef};
use errors::{Refusal, printable};
use gguf::{Encoding, Export, Options, Unfinished};
use run::destination::{Disk, DiskError, write_with};

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
    /// The model: a folder, or a Hub id in the local cache; `+ADAPTER` adds a LoRA adapter
    #[arg(value_parser = ModelRef::parse)]
    model: ModelRef,

    /// The file to write
    out: PathBuf,

    /// The type of matrices; norms, biases and routers are always F32
    #[arg(long = "type", value_enum, default_value_t = Type::Bf16)]
    encoding: Type,

    /// How the tokenizer cuts text before it merges byte pairs, as llama.cpp names it (`llama-bpe`, `qwen2`, ...);
    /// without this it is recognised, where llama.cpp's converter would recognise it
    #[arg(long, value_name = "NAME")]
    pre_tokenizer: Option<String>,

    /// Replace OUT if it is there
    #[arg(long)]
    force: bool,

    /// Print only errors
    #[arg(long, short)]
    quiet: bool,
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
    let stop = signals::install(signals::Work::Writes)?;
    let locator = environment::locator(None)?;
    let location = locator.locate(&arguments.model)?;
    let checkpoint = Checkpoint::open(&arguments.model.to_string(), &location)?;
    let in_model = |refusal: Refusal| Failure::input(refusal.within(&arguments.model));
    let options = Options {
        encoding: arguments.encoding.into(),
        pretokenizer: arguments.pre_tokenizer.as_deref(),
    };
    // What lies apart from the weights of the folder has no place in such a file.
    let checkpoint = checkpoint.alone().ok_or_else(|| {
        let why = Refusal::new("this is a pipeline, and a GGUF file holds one model");
        in_model(why.with_hint("name the folder of one of its components"))
    })?;
    let export = Export::plan(checkpoint, options).map_err(in_model)?;
    check_free(&arguments.out, arguments.force, checkpoint)?;
    write(&export, &arguments.out, &stop).map_err(|why| match why {
        Unwritten::User => Failure::Stopped("stopped; nothing was written".into()),
        Unwritten::Disk(message) => Failure::tool(message),
        Unwritten::Values(refusal) => in_model(refusal),
    })?;
    if !arguments.quiet {
        let out = arguments.out.display().to_string();
        let size = ByteSize(export.bytes()).display().si();
        let tensors = export.tensors();
        say(&format!("{}: {tensors} tensors, {size}", printable(&out)));
    }
    Ok(())
}

/// Why no file was written.
enum Unwritten {
    User,
    Disk(String),
    Values(Refusal),
}

impl From<DiskError> for Unwritten {
    fn from(error: DiskError) -> Self {
        Self::Disk(error.to_string())
    }
}

fn write(export: &Export<'_>, out: &Path, stop: &Arc<AtomicBool>) -> Result<(), Unwritten> {
    write_with(&Disk::default(), out, |file| {
        let mut goes_on = |_| !stop.load(Ordering::Relaxed);
        let written = export.write(file, &mut goes_on);
        written.map_err(|cancelled| match cancelled {
            Unfinished::Stopped => Unwritten::User,
            Unfinished::Values(refusal) => Unwritten::Values(refusal),
            Unfinished::Write(error) => Unwritten::Disk(cannot_write(out, &error)),
        })
    })
}

fn cannot_write(out: &Path, error: &io::Error) -> String {
    format!("cannot write {}: {error}", out.display())
}

/// Refuses a path that holds something, or that the model is read from.
fn check_free(out: &Path, force: bool, checkpoint: &Checkpoint) -> Result<(), Failure> {
    let shown = out.display();
    if out.is_dir() {
        return Err(Failure::input(
            Refusal::new(format!("{shown} is a folder"))
                .with_hint("name a file, such as model.gguf in it"),
        ));
    }
    let place = out.canonicalize().ok();
    let is_read = checkpoint
        .shards()
        .iter()
        .any(|shard| shard.path.canonicalize().ok() == place);
    if place.is_some() && is_read {
        return Err(Failure::input(format!(
            "{shown} is a file of the model itself"
        )));
    }
    if out.is_file() && !force {
        return Err(Failure::input(
            Refusal::new(format!("{shown} is there already")).with_hint("--force replaces it"),
        ));
    }
    Ok(())
}
