//! A checkpoint planned as a file, and its bytes in order.

use std::io::{self, Write};

use super::container::{ALIGNMENT, Metadata, TensorInfo, Value, header};
use super::encoding::Encoding;
use super::parameters::{parameters, refusal};
use super::served::notes;
use super::tensors::{Collector, Output};
use super::vocabulary::{pretokenizers, vocabulary};
use architecture::llama_cpp::{DIALECTS, Dialect};
use architecture::{Decoder, Family, Fields};
use checkpoint::{Checkpoint, settings};
use errors::Refusal;
use numeric::NonFinite;
use serde_json::Value as Json;

/// Elements that are read and encoded at a time: a multiple of a block of Q8_0.
const PIECE: usize = 1 << 18;

/// The version of the block formats, which llama.cpp wants to know.
const QUANTIZATION_VERSION: u32 = 2;

/// Fields that decide what is computed: one at the top of a config must not contradict the part for text.
const SAID_ONCE: [&str; 15] = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "sliding_window",
    "layer_types",
    "hidden_activation",
];

/// What a file is to be.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// The type of matrices; norms, biases and routers are always F32.
    pub encoding: Encoding,
    /// How text is cut before byte pairs are merged, as llama.cpp names it; none: found out.
    pub pretokenizer: Option<&'a str>,
}

/// A checkpoint as a file: everything is known but the values.
#[derive(Debug)]
pub struct Export<'c> {
    checkpoint: &'c Checkpoint,
    header: Vec<u8>,
    outputs: Vec<Output>,
    bytes: u64,
    notes: Vec<String>,
}

/// Why a file was not written to its end.
#[derive(Debug)]
pub enum Unfinished {
    /// It was stopped.
    Stopped,
    /// The bytes could not be written.
    Write(io::Error),
    /// The values cannot be read, or not be written in this type.
    Values(Refusal),
}

impl<'c> Export<'c> {
    /// Plans the file of a checkpoint.
    ///
    /// # Errors
    /// A family, tokenizer, tensor or field that cannot be written as llama.cpp reads it.
    pub fn plan(checkpoint: &'c Checkpoint, options: Options<'_>) -> Result<Self, Refusal> {
        check_pretokenizer(options.pretokenizer)?;
        let config = checkpoint
            .config()
            .ok_or("there is no config.json beside the weights")?;
        let known = family(config.model_type())?;
        let (dialect, family, decoder) = known;
        let mut metadata = Metadata::default();
        metadata.set("general.architecture", Value::Text(dialect.name.into()));
        metadata.set("general.type", Value::Text("model".into()));
        sampling(checkpoint, &mut metadata)?;
        if let Some(name) = title(checkpoint) {
            metadata.set("general.name", Value::Text(name));
        }
        // In its place before the parameters; what it is follows from the tensors.
        metadata.set("general.size_label", Value::Text(String::new()));
        let settings = of_decoder(config.value(), family)?;
        let sizes = parameters(
            &settings,
            dialect,
            decoder,
            options.encoding,
            &mut metadata,
            dialect.further_layers && has_further_layers(checkpoint),
        )?;
        let tied = settings["tie_word_embeddings"].as_bool();
        let tied = tied.unwrap_or(family.is_tied());
        let mut collector = Collector::new(checkpoint, known, &sizes, options.encoding, tied);
        let shapes = sizes.shapes();
        for (name, factors) in sizes.rope_factors {
            collector.given(name, factors);
        }
        let (outputs, left_out) = collector.collect()?;
        check_embedding(&outputs, sizes.embedding)?;
        check_shapes(&outputs, &shapes)?;
        metadata.set("general.size_label", Value::Text(size_label(&outputs)));
        metadata.set(
            "general.quantization_version",
            Value::U32(QUANTIZATION_VERSION),
        );
        let tokenizer = vocabulary(
            checkpoint,
            dialect,
            sizes.embedding[0],
            options.pretokenizer,
            &mut metadata,
        )?;
        let mut export = Self::laid_out(checkpoint, outputs, &metadata)?;
        if left_out > 0 {
            export.notes.push(format!(
                "the file has the language model alone: {left_out} tensors of other parts are left out"
            ));
        }
        export.notes.extend(tokenizer);
        export
            .notes
            .extend(notes(checkpoint, config.value(), (dialect, family)));
        Ok(export)
    }

    fn laid_out(
        checkpoint: &'c Checkpoint,
        outputs: Vec<Output>,
        metadata: &Metadata,
    ) -> Result<Self, Refusal> {
        let too_long = || Refusal::new("the file would be longer than 2^64 bytes");
        let mut infos = Vec::with_capacity(outputs.len());
        let mut data = 0u64;
        for output in &outputs {
            let len = output
                .encoding
                .bytes(output.elements())
                .ok_or_else(too_long)?;
            let end = data
                .checked_add(len)
                .and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
            data = end.ok_or_else(too_long)?;
            infos.push(TensorInfo {
                name: &output.name,
                shape: &output.shape,
                kind: output.encoding.kind(),
                len,
            });
        }
        let header = header(metadata, &infos)?;
        let bytes = data.checked_add(header.len() as u64).ok_or_else(too_long)?;
        Ok(Export {
            checkpoint,
            header,
            outputs,
            bytes,
            notes: Vec::new(),
        })
    }

    /// What the file does not have, or llama.cpp does otherwise, for people to read.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The length of the file in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The number of its tensors.
    pub fn tensors(&self) -> usize {
        self.outputs.len()
    }

    /// Writes the file; after each piece `goes_on` hears how many bytes it was and says whether more is wanted.
    ///
    /// # Errors
    /// A value is NaN, infinite or too large for the type, the bytes cannot be written, or it was stopped.
    pub fn write(
        &self,
        out: &mut dyn Write,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), Unfinished> {
        out.write_all(&self.header).map_err(Unfinished::Write)?;
        let mut values = vec![0f32; PIECE];
        let mut bytes = Vec::new();
        for output in &self.outputs {
            let (mut first, total) = (0, output.elements());
            let mut written = 0;
            while first < total {
                let count = usize::try_from(total - first).map_or(PIECE, |left| left.min(PIECE));
                let values = &mut values[..count];
                bytes.clear();
                self.piece(output, first, values, &mut bytes)
                    .map_err(Unfinished::Values)?;
                out.write_all(&bytes).map_err(Unfinished::Write)?;
                first += count as u64;
                written += bytes.len() as u64;
                if !goes_on(bytes.len() as u64) {
                    return Err(Unfinished::Stopped);
                }
            }
            let padding = written.next_multiple_of(ALIGNMENT) - written;
            out.write_all(&[0; ALIGNMENT as usize][..padding as usize])
                .map_err(Unfinished::Write)?;
        }
        let unchanged = self.checkpoint.check_unchanged();
        unchanged.map_err(|error| Unfinished::Values(Refusal::from(&error)))
    }

    fn piece(
        &self,
        output: &Output,
        first: u64,
        values: &mut [f32],
        bytes: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        output.read(self.checkpoint, first, values)?;
        if NonFinite::count(values).any() {
            return Err(
                Refusal::new(format!("{}: a value is NaN or infinite", output.name))
                    .with_hint("`weld check` says in which tensors there are such values"),
            );
        }
        if output.encoding.encode(values, bytes) > 0 {
            let message = format!("{}: a value is too large for the type", output.name);
            return Err(Refusal::new(message).with_hint("take --type bf16 or f32"));
        }
        Ok(())
    }
}

/// Refuses what can be refused before there is a checkpoint: a `model_type` that is not exported, the name of a
/// pre-tokenizer that llama.cpp does not have.
///
/// # Errors
/// It is so.
pub fn check(model_type: Option<&str>, pretokenizer: Option<&str>) -> Result<(), Refusal> {
    check_pretokenizer(pretokenizer)?;
    family(model_type).map(|_| ())
}

fn check_pretokenizer(name: Option<&str>) -> Result<(), Refusal> {
    let known = pretokenizers();
    match name.filter(|name| !known.contains(name)) {
        None => Ok(()),
        Some(name) => Err(
            Refusal::new(format!("llama.cpp has no pre-tokenizer `{name}`"))
                .with_hint(format!("it has {}", known.join(", "))),
        ),
    }
}

/// What a `model_type` is in llama.cpp, and what it is whatever the format.
type Known = (&'static Dialect, &'static Family, &'static Decoder);

fn family(model_type: Option<&str>) -> Result<Known, Refusal> {
    let name = model_type.unwrap_or_default();
    let found = Family::named(name).and_then(|family| {
        let dialect = Dialect::of_family(family.name())?;
        Some((dialect, family, family.decoder.as_ref()?))
    });
    found.ok_or_else(|| {
        let families: Vec<&str> = DIALECTS.iter().map(|dialect| dialect.family).collect();
        Refusal::new(format!(
            "config.json: the model_type `{name}` is not exported to GGUF"
        ))
        .with_hint(format!(
            "llama.cpp's convert_hf_to_gguf.py may know it; exported are {}",
            families.join(", ")
        ))
    })
}

/// The config of the decoder: that of the model, with what its part for text says.
fn of_decoder(config: &Json, family: &Family) -> Result<Json, Refusal> {
    let body = family.bodies.iter().find(|body| body.is_decoder);
    let part = body.and_then(|body| config.get(body.part?)?.as_object());
    let mut joined = config.clone();
    let fields = Fields::of_part(config);
    for (name, value) in part.into_iter().flatten() {
        let at_top = fields.get(name).filter(|at_top| *at_top != value);
        if at_top.is_some() && !value.is_null() && SAID_ONCE.contains(&name.as_str()) {
            let expected = format!("{value}, as the part for text says");
            let hint = "readers of the two places would disagree; keep the field in one of them";
            return Err(refusal(fields.wrong_with(name, expected, hint)));
        }
        joined[name] = value.clone();
    }
    Ok(joined)
}

/// Whether there are layers that predict further tokens, numbered behind the decoder's.
fn has_further_layers(checkpoint: &Checkpoint) -> bool {
    let mut tensors = checkpoint.tensors().iter();
    tensors.any(|entry| entry.name.ends_with(".eh_proj.weight"))
}

/// What generation_config.json recommends.
fn sampling(checkpoint: &Checkpoint, out: &mut Metadata) -> Result<(), Refusal> {
    let found =
        settings(checkpoint, "generation_config.json").map_err(|error| Refusal::from(&error))?;
    let Some(found) = found else {
        return Ok(());
    };
    let found = Json::Object(found);
    let fields = Fields::of_part(&found);
    let whole = |name: &str| {
        found
            .get(name)?
            .as_i64()
            .and_then(|value| i32::try_from(value).ok())
    };
    if let Some(top_k) = whole("top_k") {
        out.set("general.sampling.top_k", Value::I32(top_k));
    }
    for (field, key) in [
        ("top_p", "top_p"),
        ("min_p", "min_p"),
        ("temperature", "temp"),
        ("repetition_penalty", "penalty_repeat"),
    ] {
        let number = fields.number(field).map_err(|error| {
            Refusal::new(format!("generation_config.json: {error}"))
                .with_hint("correct generation_config.json, or remove the field")
        })?;
        if let Some(value) = number {
            out.set(format!("general.sampling.{key}"), Value::F32(value as f32));
        }
    }
    Ok(())
}

/// The name of the model's folder as a title.
fn title(checkpoint: &Checkpoint) -> Option<String> {
    let path = &checkpoint.location().path;
    let path = path.canonicalize().unwrap_or_else(|_| path.clone());
    let name = path.file_name()?.to_str()?.replace('-', " ");
    let words = name.split_whitespace().map(|word| {
        let number = word.strip_prefix('v').unwrap_or(word);
        let is_number = number.starts_with(|first: char| first.is_ascii_digit());
        let lower = word.chars().all(|letter| !letter.is_uppercase());
        match lower && !is_number {
            true => capitalised(word),
            false => word.to_owned(),
        }
    });
    Some(words.collect::<Vec<_>>().join(" "))
}

/// With a capital after whatever is no letter.
fn capitalised(word: &str) -> String {
    let mut after_letter = false;
    let letters = word.chars().flat_map(|letter| {
        let raised = !after_letter && letter.is_alphabetic();
        after_letter = letter.is_alphabetic();
        match raised {
            true => letter.to_uppercase().collect::<Vec<_>>(),
            false => vec![letter],
        }
    });
    letters.collect()
}

/// How large the model is: its parameters, or experts times what one of them makes of it.
fn size_label(outputs: &[Output]) -> String {
    let (mut shared, mut one_expert, mut count) = (0, 0, 0);
    for output in outputs {
        match (output.name.contains("_exps."), output.shape.first()) {
            (true, Some(&experts)) if experts > 0 => {
                count = experts;
                one_expert += output.elements() / experts as u64;
            }
            _ => shared += output.elements(),
        }
    }
    let size = rounded(shared + one_expert);
    match count {
        0 => size,
        count => format!("{count}x{size}"),
    }
}

/// A count with two digits at least.
fn rounded(count: u64) -> String {
    let count = count as f64;
    let (scaled, unit) = match count {
        count if count > 1e12 => (count * 1e-12, "T"),
        count if count > 1e9 => (count * 1e-9, "B"),
        count if count > 1e6 => (count * 1e-6, "M"),
        count => (count * 1e-3, "K"),
    };
    let whole = scaled.round_ties_even();
    let digits = if whole == 0.0 {
        0
    } else {
        format!("{whole}").len()
    };
    format!("{scaled:.*}{unit}", 2usize.saturating_sub(digits))
}

/// The embedding has a row for each token, which bounds what the vocabulary may be.
fn check_embedding(outputs: &[Output], expected: [usize; 2]) -> Result<(), Refusal> {
    let mut outputs = outputs.iter();
    match outputs.find(|output| output.name == "token_embd.weight") {
        Some(embedding) if embedding.shape == expected => Ok(()),
        Some(embedding) => Err(Refusal::new(format!(
            "config.json: vocab_size and hidden_size are {expected:?}, and the embedding is {:?}",
            embedding.shape
        ))
        .with_hint("correct config.json; `weld check` compares it with every tensor")),
        None => Err("the checkpoint has no input embedding, embed_tokens.weight".into()),
    }
}

/// The layers' matrices have the sizes that the file says, by which llama.cpp reads them.
fn check_shapes(outputs: &[Output], shapes: &[(&str, &str, [usize; 2])]) -> Result<(), Refusal> {
    for output in outputs {
        let in_layer = output.name.strip_prefix("blk.");
        let Some((_, name)) = in_layer.and_then(|rest| rest.split_once('.')) else {
            continue;
        };
        let shape = shapes.iter().find(|(matrix, ..)| *matrix == name);
        if let Some((_, fields, expected)) = shape
            && output.shape != *expected
        {
            return Err(Refusal::new(format!(
                "config.json: by {fields}, {} is {expected:?}, and it is {:?}",
                output.name, output.shape
            ))
            .with_hint("correct config.json; `weld check` compares it with every tensor"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_labelled_as_llama_cpp_does() {
        for (count, label) in [
            (7_241_732_096, "7.2B"),
            (494_032_768, "494M"),
            (1_235_814_400, "1.2B"),
            (70_553_706_496, "71B"),
            (9_600, "10K"),
            (9_400, "9.4K"),
            (120, "0.12K"),
        ] {
            assert_eq!(rounded(count), label);
        }
    }

    #[test]
    fn names_become_titles() {
        assert_eq!(capitalised("tiny_llama"), "Tiny_Llama");
        assert_eq!(capitalised("it's"), "It'S");
    }
}
