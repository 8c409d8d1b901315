//! The parameters of a model as keys of llama.cpp, from config.json and what its class takes for fields left out.

use super::container::{Metadata, Value};
use super::encoding::Encoding;
use super::{mixture, rope};
use architecture::llama_cpp::{Copied, Dialect, HeadSize, MULTIPLIERS, SIZES};
use architecture::{Decoder, FieldError, Fields, announced_mtp_layers};
use errors::Refusal;
use serde_json::Value as Json;

/// The most features of a head that are believed; real heads have up to 512.
const MAX_HEAD: usize = 1 << 16;

/// The most layers that are believed; real models have up to 130.
const MAX_LAYERS: usize = 1 << 14;

/// What of the parameters decides tensors.
#[derive(Debug)]
pub(super) struct Sizes {
    /// Layers of the decoder, and all with those that predict further tokens.
    pub layers: [usize; 2],
    /// Heads of queries, and of keys and values.
    pub heads: [usize; 2],
    /// Features of a head.
    pub head: usize,
    /// Neurons of a layer's MLP without experts.
    pub width: usize,
    /// Rows of the embedding, and its columns.
    pub embedding: [usize; 2],
    /// Divisors of rotary frequencies: tensors that no checkpoint has.
    pub rope_factors: Vec<(&'static str, Vec<f32>)>,
}

impl Sizes {
    /// Matrices of a layer whose shapes follow from the config: their names in the file, the fields, and the shapes.
    pub(super) fn shapes(&self) -> [(&'static str, &'static str, [usize; 2]); 6] {
        let [queries, keys] = self.heads.map(|heads| heads.saturating_mul(self.head));
        let hidden = self.embedding[1];
        let both = "num_attention_heads, num_key_value_heads and head_dim";
        let fused = queries.saturating_add(keys.saturating_mul(2));
        [
            (
                "attn_q.weight",
                "num_attention_heads and head_dim",
                [queries, hidden],
            ),
            (
                "attn_k.weight",
                "num_key_value_heads and head_dim",
                [keys, hidden],
            ),
            (
                "attn_v.weight",
                "num_key_value_heads and head_dim",
                [keys, hidden],
            ),
            ("attn_qkv.weight", both, [fused, hidden]),
            (
                "attn_output.weight",
                "num_attention_heads and head_dim",
                [hidden, queries],
            ),
            ("ffn_down.weight", "intermediate_size", [hidden, self.width]),
        ]
    }
}

/// Sets the parameters of a model. `further_layers`: it has layers that predict further tokens.
pub(super) fn parameters(
    config: &Json,
    dialect: &'static Dialect,
    decoder: &Decoder,
    encoding: Encoding,
    out: &mut Metadata,
    further_layers: bool,
) -> Result<Sizes, Refusal> {
    let fields = Fields::new(config).map_err(refusal)?;
    let mut writer = Writer {
        fields,
        dialect,
        absent: decoder.absent_sizes,
        out,
    };
    let layers = writer.required("num_hidden_layers")?;
    if layers > MAX_LAYERS {
        let expected = format!("at most {MAX_LAYERS} layers");
        return Err(refusal(fields.wrong("num_hidden_layers", expected)));
    }
    let announced = announced_mtp_layers(config).map_or(0, |(_, count)| count);
    let further = if further_layers { announced } else { 0 };
    if dialect.further_layers {
        writer.size("nextn_predict_layers", further)?;
    }
    let all_layers = layers.checked_add(further).ok_or("too many layers")?;
    writer.size("block_count", all_layers)?;
    if let Some(field) = dialect.no_biases
        && fields.flag(field, false).map_err(refusal)?
    {
        let expected = "false, as llama.cpp has no biases for this family";
        return Err(refusal(fields.wrong(field, expected)));
    }
    let mut sizes = [0; SIZES.len()];
    for (size, (field, name)) in sizes.iter_mut().zip(SIZES) {
        *size = writer.copy(field, name)?;
    }
    let [_, hidden, width, queries] = sizes;
    let keys = fields.size("num_key_value_heads").map_err(refusal)?;
    let keys = keys.or(decoder.kv_heads).unwrap_or(queries);
    if keys != queries && !dialect.grouped_heads {
        let expected =
            format!("{queries}, as llama.cpp has as many heads of keys as of queries here");
        return Err(refusal(fields.wrong("num_key_value_heads", expected)));
    }
    writer.size("attention.head_count_kv", keys)?;
    let epsilon = fields.positive("rms_norm_eps").map_err(refusal)?;
    writer.number(
        "attention.layer_norm_rms_epsilon",
        epsilon.unwrap_or(decoder.norm_eps),
    );
    mixture::experts(&mut writer, decoder, layers)?;
    let head = writer.head(decoder, hidden, queries)?;
    writer
        .out
        .set("general.file_type", Value::U32(encoding.file_type()));
    let vocabulary = writer.required("vocab_size")?;
    if dialect.vocab_size {
        writer.size("vocab_size", vocabulary)?;
    }
    if decoder.multipliers {
        writer.multipliers()?;
    }
    for copied in dialect.copied {
        writer.copied(copied)?;
    }
    writer.windows(decoder, layers)?;
    let rope_factors = rope::positions(&mut writer, decoder, head)?;
    Ok(Sizes {
        layers: [layers, all_layers],
        heads: [queries, keys],
        head,
        width,
        embedding: [vocabulary, hidden],
        rope_factors,
    })
}

pub(super) fn refusal(error: FieldError) -> Refusal {
    Refusal::new(format!("config.json: {error}")).with_hint(error.hint)
}

/// Sets keys from fields.
pub(super) struct Writer<'a> {
    pub fields: Fields<'a>,
    pub dialect: &'static Dialect,
    /// Sizes that the class takes for fields that are absent.
    absent: &'static [(&'static str, usize)],
    out: &'a mut Metadata,
}

impl Writer<'_> {
    /// Sets a key of the architecture.
    pub(super) fn set(&mut self, name: &str, value: Value) {
        self.out.set(format!("{}.{name}", self.dialect.name), value);
    }

    pub(super) fn size(&mut self, name: &str, size: usize) -> Result<(), Refusal> {
        let value = u32::try_from(size).map_err(|_| format!("{name}: {size} does not fit"))?;
        self.set(name, Value::U32(value));
        Ok(())
    }

    pub(super) fn number(&mut self, name: &str, number: f64) {
        self.set(name, Value::F32(number as f32));
    }

    /// A size that the config must have, or the class knows.
    pub(super) fn required(&self, field: &str) -> Result<usize, Refusal> {
        let absent = self.absent.iter().find(|(name, _)| *name == field);
        match (self.fields.get(field), absent) {
            (None, Some((_, size))) => Ok(*size),
            _ => self.fields.required(field).map_err(refusal),
        }
    }

    /// Sets a key to a size that the config must have.
    pub(super) fn copy(&mut self, field: &str, name: &str) -> Result<usize, Refusal> {
        let size = self.required(field)?;
        self.size(name, size)?;
        Ok(size)
    }

    /// The features of a head, written where the converter does.
    fn head(&mut self, decoder: &Decoder, hidden: usize, queries: usize) -> Result<usize, Refusal> {
        let size = self.dialect.head_size;
        let written = match size {
            HeadSize::Never => None,
            HeadSize::Always | HeadSize::IfWritten => {
                self.fields.size("head_dim").map_err(refusal)?
            }
        };
        let head = written.unwrap_or(match decoder.head_dim {
            architecture::HeadDim::Of(size) => size,
            _ => hidden / queries,
        });
        if head > MAX_HEAD {
            let expected = format!("at most {MAX_HEAD} features a head");
            return Err(refusal(self.fields.wrong("head_dim", expected)));
        }
        if size == HeadSize::Always || written.is_some() {
            self.size("attention.key_length", head)?;
            self.size("attention.value_length", head)?;
        }
        Ok(head)
    }

    /// Granite's four multipliers; its class takes 1 for each that is not there.
    fn multipliers(&mut self) -> Result<(), Refusal> {
        for (field, name) in MULTIPLIERS {
            let value = self.fields.positive(field).map_err(refusal)?;
            self.number(name, value.unwrap_or(1.0));
        }
        Ok(())
    }

    fn copied(&mut self, copied: &Copied) -> Result<(), Refusal> {
        let field = copied.field;
        let fields = self.fields;
        let found = match copied.is_number {
            true => fields.positive(field).map_err(refusal)?,
            false => {
                let size = fields.size_or_zero(field).map_err(refusal)?;
                size.map(|size| size as f64)
            }
        };
        // Without its key llama.cpp takes a value of its own, so there is no way to say that there is none.
        if fields.is_written(field) && found.is_none() && copied.absent.is_some_and(|x| x > 0.0) {
            let expected = "a number, as llama.cpp cannot go without it";
            return Err(refusal(fields.wrong(field, expected)));
        }
        let Some(value) = found.or(copied.absent) else {
            return Ok(());
        };
        match copied.is_number {
            true => self.number(copied.key, value),
            false => self.size(copied.key, value as usize)?,
        }
        Ok(())
    }

    /// Which layers look through a window, where that is not what llama.cpp expects. Its converter never says it.
    fn windows(&mut self, decoder: &Decoder, layers: usize) -> Result<(), Refusal> {
        let Some(period) = self.dialect.window_period else {
            return Ok(());
        };
        let kind = |kind: &Json| match kind.as_str() {
            Some("sliding_attention") => Some(true),
            Some("full_attention") => Some(false),
            _ => None,
        };
        let own_period = match decoder.window_period {
            Some(field) => self.fields.size(field).map_err(refusal)?,
            None => None,
        };
        let windows = match (
            self.fields.list("layer_types").map_err(refusal)?,
            own_period,
        ) {
            (Some(kinds), _) => kinds.iter().map(kind).collect(),
            (None, Some(period)) => Some(
                (1..=layers)
                    .map(|layer| !layer.is_multiple_of(period))
                    .collect(),
            ),
            (None, None) => return Ok(()),
        };
        let Some(windows) = windows.filter(|windows: &Vec<bool>| windows.len() == layers) else {
            let expected = format!("{layers} of `sliding_attention` and `full_attention`");
            return Err(refusal(self.fields.wrong("layer_types", expected)));
        };
        let expected = (1..=layers).map(|layer| !layer.is_multiple_of(period));
        if !windows.iter().copied().eq(expected) {
            self.set("attention.sliding_window_pattern", Value::Bools(windows));
        }
        Ok(())
    }
}
