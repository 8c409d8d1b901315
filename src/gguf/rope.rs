//! Rotary positions as llama.cpp reads them: base, scaling, and divisors of frequencies.

use super::container::Value;
use super::parameters::{Writer, refusal};
use architecture::llama_cpp::{Llama3, Rope, YARN, llama3_divisors};
use architecture::{Decoder, FieldError, Fields, ONE_SPELLING, RopeFields};
use errors::Refusal;
use serde_json::{Map, Value as Json};

/// What llama.cpp takes for the base where no key says it.
const USUAL_BASE: f64 = 10_000.0;

/// The base of layers with a window, where the config has bases for each kind and none for these.
const WINDOW_BASE: f64 = 10_000.0;

/// The field that says how long texts were before a scaling.
const ORIGINAL: &str = "original_max_position_embeddings";

/// How far HunYuan's larger base reaches, whatever its config says.
const ALPHA_CONTEXT: usize = 256 * 1024;

/// Tensors of divisors.
type Factors = Vec<(&'static str, Vec<f32>)>;

/// Sets what is said of positions, for heads of so many features.
pub(super) fn positions(
    writer: &mut Writer<'_>,
    decoder: &Decoder,
    head: usize,
) -> Result<Factors, Refusal> {
    let dialect = writer.dialect;
    let whole = whole_texts(writer.fields, dialect.rope == Rope::PerKind);
    let rope = RopeFields::read(Fields::of_part(&whole)).map_err(refusal)?;
    let number = |name: &str| rope.number(name).map_err(refusal);
    let theta = number("rope_theta")?.unwrap_or(decoder.theta);
    if theta <= 1.0 {
        return Err(refusal(
            writer.fields.wrong("rope_theta", "a number above one"),
        ));
    }
    let part = number("partial_rotary_factor")?.or(decoder.partial_rotary);
    let part = part.unwrap_or(1.0).clamp(0.0, 1.0);
    let rotated = (head as f64 * part) as usize;
    if dialect.rotated_size {
        writer.size("rope.dimension_count", rotated)?;
    }
    let scaling = rope.scaling().map(Json::Object);
    let scaling = scaling.as_ref().map(Fields::of_part);
    match dialect.rope {
        Rope::IfUnusual if theta == USUAL_BASE => {}
        _ => writer.number("rope.freq_base", theta),
    }
    if dialect.rope == Rope::PerKind {
        let window = window_base(writer.fields).map_err(refusal)?;
        writer.number("rope.freq_base_swa", window);
    }
    let original = number(ORIGINAL)?;
    if dialect.rope == Rope::Long {
        return long_factors(writer, scaling, original, rotated);
    }
    let Some(scaling) = scaling else {
        return Ok(Vec::new());
    };
    match (scaling.text("rope_type").map_err(refusal)?, dialect.rope) {
        (Some("linear"), _) => linear(writer, &scaling)?,
        (Some("yarn"), _) => yarn(writer, &scaling, length(&scaling, original)?)?,
        (Some("llama3"), Rope::WithLlama3) => {
            let original = length(&scaling, original)?;
            let factors = llama3_factors(&scaling, theta, original, rotated)?;
            return Ok(vec![("rope_freqs.weight", factors)]);
        }
        (Some("llama3"), _) => {
            return Err(Refusal::new(format!(
                "config.json: llama.cpp does not apply rope_type `llama3` to {}",
                dialect.family
            )));
        }
        (Some("dynamic"), Rope::WithAlpha) if scaling.get("alpha").is_some() => {
            let alpha = required(&scaling, "alpha")?;
            let exponent = head as f64 / (head as f64 - 2.0);
            let base = (theta * libm::pow(alpha, exponent)) as f32;
            if !base.is_finite() {
                let expected = "a number that leaves the base of rotary positions finite";
                return Err(refusal(scaling.wrong("alpha", expected)));
            }
            writer.number("rope.freq_base", f64::from(base));
            writer.set("rope.scaling.type", Value::Text("none".into()));
            writer.number("rope.scaling.factor", 1.0);
            writer.size("rope.scaling.original_context_length", ALPHA_CONTEXT)?;
            writer.size("context_length", ALPHA_CONTEXT)?;
        }
        _ => {
            return Err(refusal(scaling.wrong_with(
                "rope_type",
                "`default`, `linear`, `yarn` or `llama3`",
                "llama.cpp's own converter may know this kind",
            )));
        }
    }
    Ok(Vec::new())
}

/// The config as it speaks of layers that attend to all tokens.
fn whole_texts(fields: Fields<'_>, per_kind: bool) -> Json {
    let mut config: Map<String, Json> = fields
        .entries()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let whole = config
        .get("rope_parameters")
        .and_then(|rope| rope.get("full_attention"));
    if let Some(whole) = whole.filter(|_| per_kind).cloned() {
        config.insert("rope_parameters".into(), whole);
    }
    Json::Object(config)
}

/// The base of layers with a window.
fn window_base(fields: Fields<'_>) -> Result<f64, FieldError> {
    const AT_TOP: &str = "rope_local_base_freq";
    let kinds = fields.object("rope_parameters", "rope_parameters.")?;
    let window = match kinds {
        Some(kinds) => kinds.object("sliding_attention", "rope_parameters.sliding_attention.")?,
        None => None,
    };
    let at_top = fields.positive(AT_TOP)?;
    let Some(window) = window else {
        return Ok(at_top.unwrap_or(WINDOW_BASE));
    };
    if window
        .text("rope_type")?
        .is_some_and(|kind| kind != "default")
    {
        let expected = "`default`, as llama.cpp scales layers without a window only";
        return Err(window.wrong("rope_type", expected));
    }
    match (window.positive("rope_theta")?, at_top) {
        (Some(base), Some(other)) if base != other => {
            let expected = "the same as `rope_theta` of `sliding_attention`";
            Err(fields.wrong_with(AT_TOP, expected, ONE_SPELLING))
        }
        (base, at_top) => Ok(base.or(at_top).unwrap_or(WINDOW_BASE)),
    }
}

/// How long texts were before a scaling, which must be said.
fn length(scaling: &Fields<'_>, said: Option<f64>) -> Result<usize, Refusal> {
    let whole = said.filter(|length| *length >= 1.0 && length.fract() == 0.0);
    whole
        .map(|length| length as usize)
        .ok_or_else(|| refusal(scaling.wrong(ORIGINAL, "a whole number")))
}

fn required(scaling: &Fields<'_>, name: &str) -> Result<f64, Refusal> {
    let missing = || refusal(scaling.wrong(name, "a positive number"));
    scaling.positive(name).map_err(refusal)?.ok_or_else(missing)
}

fn linear(writer: &mut Writer<'_>, scaling: &Fields<'_>) -> Result<(), Refusal> {
    let factor = required(scaling, "factor")?;
    writer.set("rope.scaling.type", Value::Text("linear".into()));
    writer.number("rope.scaling.factor", factor);
    Ok(())
}

fn yarn(writer: &mut Writer<'_>, scaling: &Fields<'_>, original: usize) -> Result<(), Refusal> {
    for field in ["mscale", "mscale_all_dim"] {
        if scaling.get(field).is_some() {
            let expected = "none, as llama.cpp does not read it for this family";
            return Err(refusal(scaling.wrong(field, expected)));
        }
    }
    if !scaling.flag("truncate", true).map_err(refusal)? {
        let expected = "true, as llama.cpp rounds the bounds of the blend";
        return Err(refusal(scaling.wrong("truncate", expected)));
    }
    let factor = required(scaling, "factor")?;
    writer.set("rope.scaling.type", Value::Text("yarn".into()));
    writer.number("rope.scaling.factor", factor);
    writer.size("rope.scaling.original_context_length", original)?;
    for (field, name) in YARN {
        if let Some(value) = scaling.positive(field).map_err(refusal)? {
            writer.number(&format!("rope.scaling.{name}"), value);
        }
    }
    Ok(())
}

/// Phi-3's divisors for short and long texts, and what attention is scaled by.
fn long_factors(
    writer: &mut Writer<'_>,
    scaling: Option<Fields<'_>>,
    original: Option<f64>,
    rotated: usize,
) -> Result<Factors, Refusal> {
    let original = match original {
        Some(_) => length(&scaling.unwrap_or(writer.fields), original)?,
        None => writer.required(ORIGINAL)?,
    };
    writer.size("rope.scaling.original_context_length", original)?;
    let Some(scaling) = scaling else {
        return Ok(Vec::new());
    };
    let kind = scaling.text("rope_type").map_err(refusal)?;
    if !matches!(kind, Some("longrope" | "su" | "yarn")) {
        let expected = "`default` or `longrope`";
        return Err(refusal(scaling.wrong("rope_type", expected)));
    }
    let divisors = |name: &str| -> Result<Vec<f32>, Refusal> {
        let wrong = || refusal(scaling.wrong(name, format!("{} numbers", rotated / 2)));
        let numbers = scaling.numbers(name).map_err(refusal)?;
        let numbers = numbers.filter(|numbers| numbers.len() == rotated / 2);
        let numbers = numbers.ok_or_else(wrong)?;
        Ok(numbers.into_iter().map(|number| number as f32).collect())
    };
    let (long, short) = (divisors("long_factor")?, divisors("short_factor")?);
    let longest = writer.required("max_position_embeddings")?;
    let scale = longest as f64 / original as f64;
    let attention = match scale > 1.0 && original > 1 {
        true => (1.0 + libm::log(scale) / libm::log(original as f64)).sqrt(),
        false => 1.0,
    };
    let written = scaling.positive("attention_factor").map_err(refusal)?;
    writer.number("rope.scaling.attn_factor", written.unwrap_or(attention));
    Ok(vec![
        ("rope_factors_long.weight", long),
        ("rope_factors_short.weight", short),
    ])
}

/// The divisors of a scaling by `llama3`.
fn llama3_factors(
    scaling: &Fields<'_>,
    theta: f64,
    original: usize,
    head: usize,
) -> Result<Vec<f32>, Refusal> {
    let number = |name: &str| required(scaling, name);
    let (factor, low, high) = (
        number("factor")?,
        number("low_freq_factor")?,
        number("high_freq_factor")?,
    );
    if low >= high {
        let larger = "a number larger than low_freq_factor";
        return Err(refusal(scaling.wrong("high_freq_factor", larger)));
    }
    let scaling_of = Llama3 {
        factor,
        low,
        high,
        original,
    };
    let factors = llama3_divisors(&scaling_of, theta, head);
    match factors.iter().all(|factor| factor.is_finite()) {
        true => Ok(factors),
        false => Err(refusal(
            scaling.wrong("factor", "a number that leaves all divisors finite"),
        )),
    }
}
