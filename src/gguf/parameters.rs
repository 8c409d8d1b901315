//! The parameters of a model as keys of llama.cpp, from config.json and what its class takes for fields left out.

use super::container::{Metadata, Value};
use super::encoding::Encoding;
use super::families::{Dialect, HeadSize};
use architecture::{Decoder, FieldError, Fields, RopeFields};
use errors::Refusal;
use serde_json::{Map, Value as Json};

/// The most features of a head that are believed; real heads have up to 512.
const MAX_HEAD: usize = 1 << 16;

/// What of the parameters decides tensors.
#[derive(Debug)]
pub(super) struct Sizes {
    /// Layers.
    pub layers: usize,
    /// Heads of queries, and of keys and values.
    pub heads: [usize; 2],
    /// Rows of the embedding, and its columns.
    pub embedding: [usize; 2],
    /// Llama 3's divisors of rotary frequencies.
    pub rope_factors: Option<Vec<f32>>,
}

/// Sets the parameters of a model.
pub(super) fn parameters(
    config: &Json,
    dialect: &Dialect,
    decoder: &Decoder,
    encoding: Encoding,
    out: &mut Metadata,
) -> Result<Sizes, Refusal> {
    let fields = Fields::new(config).map_err(refusal)?;
    let mut writer = Writer {
        fields,
        arch: dialect.name,
        out,
    };
    let layers = writer.copy("num_hidden_layers", "block_count")?;
    writer.copy("max_position_embeddings", "context_length")?;
    let hidden = writer.copy("hidden_size", "embedding_length")?;
    writer.copy("intermediate_size", "feed_forward_length")?;
    let queries = writer.copy("num_attention_heads", "attention.head_count")?;
    let keys = fields.size("num_key_value_heads").map_err(refusal)?;
    let keys = keys.or(decoder.kv_heads).unwrap_or(queries);
    writer.size("attention.head_count_kv", keys)?;

    let rope = RopeFields::of(fields).map_err(refusal)?;
    let scaling = rope.scaling();
    let theta = rope
        .number("rope_theta")
        .map_err(refusal)?
        .unwrap_or(decoder.theta);
    let rope_factors_wanted = writer.rope_scaling(scaling.as_ref())?;
    writer.number("rope.freq_base", theta);
    let epsilon = fields.positive("rms_norm_eps").map_err(refusal)?;
    writer.number(
        "attention.layer_norm_rms_epsilon",
        epsilon.unwrap_or(decoder.norm_eps),
    );
    writer.experts(decoder)?;

    let written = match dialect.head_size {
        HeadSize::Never => None,
        HeadSize::Always | HeadSize::IfWritten => fields.size("head_dim").map_err(refusal)?,
    };
    let head = written.unwrap_or(match decoder.head_dim {
        architecture::HeadDim::Of(size) => size,
        _ => hidden / queries,
    });
    if head > MAX_HEAD {
        let expected = format!("at most {MAX_HEAD} features a head");
        return Err(refusal(fields.wrong("head_dim", expected)));
    }
    if dialect.head_size == HeadSize::Always || written.is_some() {
        writer.size("attention.key_length", head)?;
        writer.size("attention.value_length", head)?;
    }
    writer
        .out
        .set("general.file_type", Value::U32(encoding.file_type()));
    writer.expert_widths()?;
    let vocabulary = fields.required("vocab_size").map_err(refusal)?;
    if dialect.like_llama {
        writer.size("vocab_size", vocabulary)?;
        writer.size("rope.dimension_count", head)?;
    }
    if decoder.multipliers {
        writer.multipliers()?;
    }
    let rope_factors = match (rope_factors_wanted, &scaling) {
        (true, Some(_)) if dialect.name != "llama" => {
            return Err(Refusal::new(format!(
                "config.json: llama.cpp does not apply rope_type `llama3` to {}",
                dialect.family
            )));
        }
        (true, Some(scaling)) => Some(llama3_factors(
            &Fields::of_part(&Json::Object(scaling.clone())),
            theta,
            head,
        )?),
        _ => None,
    };
    Ok(Sizes {
        layers,
        heads: [queries, keys],
        embedding: [vocabulary, hidden],
        rope_factors,
    })
}

fn refusal(error: FieldError) -> Refusal {
    Refusal::new(format!("config.json: {error}")).with_hint(error.hint)
}

struct Writer<'a> {
    fields: Fields<'a>,
    arch: &'static str,
    out: &'a mut Metadata,
}

impl Writer<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    fn size(&mut self, name: &str, size: usize) -> Result<(), Refusal> {
        let value = u32::try_from(size).map_err(|_| format!("{name}: {size} does not fit"))?;
        self.out.set(self.key(name), Value::U32(value));
        Ok(())
    }

    fn number(&mut self, name: &str, number: f64) {
        self.out.set(self.key(name), Value::F32(number as f32));
    }

    /// Sets a key to a size that the config must have.
    fn copy(&mut self, field: &str, name: &str) -> Result<usize, Refusal> {
        let size = self.fields.required(field).map_err(refusal)?;
        self.size(name, size)?;
        Ok(size)
    }

    /// Sets a key to a size that the config may have.
    fn copy_if_there(&mut self, field: &str, name: &str) -> Result<(), Refusal> {
        match self.fields.size_or_zero(field).map_err(refusal)? {
            Some(size) => self.size(name, size),
            None => Ok(()),
        }
    }

    /// What changes rotary frequencies; whether a tensor must say it.
    fn rope_scaling(&mut self, scaling: Option<&Map<String, Json>>) -> Result<bool, Refusal> {
        let Some(scaling) = scaling else {
            return Ok(false);
        };
        let part = Json::Object(scaling.clone());
        let scaling = Fields::of_part(&part);
        let number = |name: &str| scaling.positive(name).map_err(refusal);
        let factor = || {
            let missing = || refusal(scaling.wrong("factor", "a number"));
            number("factor")?.ok_or_else(missing)
        };
        match scaling.text("rope_type").map_err(refusal)? {
            Some("linear") => {
                let factor = factor()?;
                self.out
                    .set(self.key("rope.scaling.type"), Value::Text("linear".into()));
                self.number("rope.scaling.factor", factor);
            }
            Some("yarn") => {
                let factor = factor()?;
                self.out
                    .set(self.key("rope.scaling.type"), Value::Text("yarn".into()));
                self.number("rope.scaling.factor", factor);
                let original = scaling.required("original_max_position_embeddings");
                self.size(
                    "rope.scaling.original_context_length",
                    original.map_err(refusal)?,
                )?;
                for (field, name) in [
                    ("extrapolation_factor", "yarn_ext_factor"),
                    ("attention_factor", "yarn_attn_factor"),
                    ("beta_fast", "yarn_beta_fast"),
                    ("beta_slow", "yarn_beta_slow"),
                ] {
                    if let Some(value) = number(field)? {
                        self.number(&format!("rope.scaling.{name}"), value);
                    }
                }
            }
            Some("llama3") => return Ok(true),
            _ => {
                let expected = "`default`, `linear`, `yarn` or `llama3`";
                return Err(refusal(scaling.wrong_with(
                    "rope_type",
                    expected,
                    "llama.cpp's own converter may know this kind",
                )));
            }
        }
        Ok(false)
    }

    fn experts(&mut self, decoder: &Decoder) -> Result<(), Refusal> {
        let Some(mixture) = &decoder.mixture else {
            return Ok(());
        };
        let counts = &mixture.counts;
        let field = counts
            .experts
            .iter()
            .find(|name| self.fields.get(name).is_some());
        let field = field
            .or(counts.experts.first())
            .copied()
            .unwrap_or_default();
        self.copy(field, "expert_count")?;
        self.copy(counts.per_token, "expert_used_count")?;
        Ok(())
    }

    fn expert_widths(&mut self) -> Result<(), Refusal> {
        if self.arch.ends_with("moe") {
            self.copy_if_there("moe_intermediate_size", "expert_feed_forward_length")?;
            let shared = "expert_shared_feed_forward_length";
            self.copy_if_there("shared_expert_intermediate_size", shared)?;
            self.copy_if_there("shared_intermediate_size", shared)?;
        }
        Ok(())
    }

    /// Granite's four multipliers; its class takes 1 for each that is not there.
    fn multipliers(&mut self) -> Result<(), Refusal> {
        for (field, name) in [
            ("attention_multiplier", "attention.scale"),
            ("embedding_multiplier", "embedding_scale"),
            ("residual_multiplier", "residual_scale"),
            ("logits_scaling", "logit_scale"),
        ] {
            let value = self.fields.positive(field).map_err(refusal)?;
            self.number(name, value.unwrap_or(1.0));
        }
        Ok(())
    }
}

/// What llama.cpp divides each rotary frequency by: 1 for short waves, the factor for long ones, between them a blend.
///
/// Source: `_compute_llama3_parameters` of transformers. It computes in f32 and multiplies with an inverse where a
/// number is divided by a tensor, so the same is done here.
fn llama3_factors(scaling: &Fields<'_>, theta: f64, head: usize) -> Result<Vec<f32>, Refusal> {
    let number = |name: &str| {
        let missing = || refusal(scaling.wrong(name, "a positive number"));
        scaling.positive(name).map_err(refusal)?.ok_or_else(missing)
    };
    let (factor, low, high) = (
        number("factor")?,
        number("low_freq_factor")?,
        number("high_freq_factor")?,
    );
    let context = number("original_max_position_embeddings")?;
    if low >= high {
        let larger = "a number larger than low_freq_factor";
        return Err(refusal(scaling.wrong("high_freq_factor", larger)));
    }
    let factors = (0..head / 2).map(|pair| {
        let exponent = (2 * pair) as f32 / head as f32;
        let frequency = 1.0 / libm::pow(theta, f64::from(exponent)) as f32;
        let wave = (1.0 / frequency) * std::f32::consts::TAU;
        if f64::from(wave) < context / high {
            1.0
        } else if f64::from(wave) > context / low {
            factor as f32
        } else {
            let turns = (1.0 / wave) * context as f32;
            let smooth = (turns - low as f32) / (high - low) as f32;
            1.0 / ((1.0 - smooth) / factor as f32 + smooth)
        }
    });
    Ok(factors.collect())
}
