//! Rotary positions: the two spellings in configs, the frequencies, and the rotation.
//!
//! Sources: transformers' `modeling_rope_utils.py` for the kinds; Su et al., "RoFormer", 2021, for the rotation.

use std::f64::consts::TAU;

use super::error::ForwardError;
use super::states::{Batch, States};
use architecture::{Decoder, FieldError, Fields, ONE_SPELLING, RopeFields};

/// The known fields of `rope_scaling` and `rope_parameters`.
const KNOWN: [&str; 17] = [
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "short_factor",
    "long_factor",
    "low_freq_factor",
    "high_freq_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "finetuned",
];

const ORIGINAL: &str = "original_max_position_embeddings";

/// What a config says of positions.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RopeSettings {
    theta: f64,
    /// The share of a head that is rotated.
    partial: f64,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Default,
    Linear {
        factor: f64,
    },
    /// The default kind up to this many positions.
    Dynamic {
        limit: usize,
    },
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
    Yarn {
        factor: f64,
        attention: f64,
        fast: f64,
        slow: f64,
        original: f64,
        truncate: bool,
    },
    Longrope {
        short: Vec<f64>,
        long: Vec<f64>,
        attention: f64,
        original: usize,
    },
}

impl RopeSettings {
    /// Reads both spellings; they must agree where both are there.
    pub(super) fn read(config: &Fields, decoder: &Decoder) -> Result<Self, FieldError> {
        let fields = RopeFields::read(*config)?;
        let theta = fields.number("rope_theta")?.unwrap_or(decoder.theta);
        let partial = fields.number("partial_rotary_factor")?;
        let mut kind = None;
        for spelling in fields.spellings() {
            kind = Some(Kind::read(config, &spelling, decoder.longrope)?);
        }
        if theta <= 1.0 {
            return Err(config.wrong("rope_theta", "a number above one"));
        }
        let partial = match (partial, decoder.partial_rotary) {
            (None, None) => 1.0,
            (None, Some(partial)) => partial,
            (Some(partial), Some(_)) if partial > 0.0 && partial <= 1.0 => partial,
            (Some(1.0), None) => 1.0,
            (Some(_), by_family) => {
                let expected = match by_family {
                    None => "1, as this family rotates whole heads",
                    Some(_) => "a number above zero, at most one",
                };
                return Err(config.wrong("partial_rotary_factor", expected));
            }
        };
        Ok(RopeSettings {
            theta,
            partial,
            kind: kind.unwrap_or(Kind::Default),
        })
    }
}

impl Kind {
    fn read(config: &Fields, fields: &Fields, has_longrope: bool) -> Result<Self, FieldError> {
        for (name, value) in fields.entries() {
            if !KNOWN.contains(&name.as_str()) && !value.is_null() {
                let known = format!("one of {}", KNOWN.join(", "));
                return Err(fields.wrong(name, known));
            }
        }
        let (field, named) = match fields.text("rope_type")? {
            Some(named) => ("rope_type", named),
            None => ("type", fields.text("type")?.unwrap_or("default")),
        };
        let factor = || match fields.positive("factor")? {
            Some(factor) => Ok(factor),
            None => Err(fields.wrong("factor", "a number")),
        };
        match named {
            "default" => Ok(Kind::Default),
            "su" | "yarn" | "longrope" if has_longrope => Kind::longrope(config, fields),
            "linear" => Ok(Kind::Linear { factor: factor()? }),
            "dynamic" => Ok(Kind::Dynamic {
                limit: config.required("max_position_embeddings")?,
            }),
            "llama3" => {
                let part = |name| match fields.positive(name)? {
                    Some(number) => Ok(number),
                    None => Err(fields.wrong(name, "a number")),
                };
                let (low, high) = (part("low_freq_factor")?, part("high_freq_factor")?);
                if low >= high {
                    return Err(fields.wrong("low_freq_factor", "less than high_freq_factor"));
                }
                Ok(Kind::Llama3 {
                    factor: factor()?,
                    low,
                    high,
                    original: original(config, fields)? as f64,
                })
            }
            "yarn" => Kind::yarn(config, fields),
            _ => {
                let kinds = "default, linear, dynamic, llama3 or yarn (longrope: phi3)";
                Err(fields.wrong(field, kinds))
            }
        }
    }

    /// Source: Peng et al., "YaRN", 2023; `mscale` as in DeepSeek.
    fn yarn(config: &Fields, fields: &Fields) -> Result<Self, FieldError> {
        let original = original(config, fields)? as f64;
        let factor = match fields.positive("factor")? {
            Some(factor) => factor,
            None => config.required("max_position_embeddings")? as f64 / original,
        };
        let stretched = |scale: f64| match factor <= 1.0 {
            true => 1.0,
            false => 0.1 * scale * factor.ln() + 1.0,
        };
        let attention = match fields.positive("attention_factor")? {
            Some(attention) => attention,
            None => match (
                fields.positive("mscale")?,
                fields.positive("mscale_all_dim")?,
            ) {
                (Some(mscale), Some(all)) => stretched(mscale) / stretched(all),
                _ => stretched(1.0),
            },
        };
        Ok(Kind::Yarn {
            factor,
            attention,
            fast: fields.positive("beta_fast")?.unwrap_or(32.0),
            slow: fields.positive("beta_slow")?.unwrap_or(1.0),
            original,
            truncate: fields.flag("truncate", true)?,
        })
    }

    /// Source: Ding et al., "LongRoPE", 2024, as used in Phi-3.
    fn longrope(config: &Fields, fields: &Fields) -> Result<Self, FieldError> {
        if fields.get("factor").is_some() {
            return Err(fields.wrong("factor", "none: it follows from max_position_embeddings"));
        }
        let factors = |name: &str| -> Result<Vec<f64>, FieldError> {
            let numbers = fields.numbers(name)?.unwrap_or_default();
            let above_zero = numbers.iter().all(|number| *number as f32 > 0.0);
            let numbers = Some(numbers).filter(|numbers| above_zero && !numbers.is_empty());
            numbers.ok_or_else(|| fields.wrong(name, "a list of numbers above zero"))
        };
        // The field next to the factors is ignored: the class has a default for the one at the top.
        let original = config.size(ORIGINAL)?.unwrap_or(4096);
        if fields
            .size(ORIGINAL)?
            .is_some_and(|inner| inner != original)
        {
            return Err(fields.wrong_with(ORIGINAL, original.to_string(), ONE_SPELLING));
        }
        let stretch = config.required("max_position_embeddings")? as f64 / original as f64;
        let attention = match fields.positive("attention_factor")? {
            Some(attention) => attention,
            None if stretch <= 1.0 => 1.0,
            None => (1.0 + stretch.ln() / (original as f64).ln()).sqrt(),
        };
        Ok(Kind::Longrope {
            short: factors("short_factor")?,
            long: factors("long_factor")?,
            attention,
            original,
        })
    }
}

/// The context length before it was extended.
fn original(config: &Fields, fields: &Fields) -> Result<usize, FieldError> {
    match (fields.size(ORIGINAL)?, config.size(ORIGINAL)?) {
        (Some(inner), Some(outer)) if inner != outer => {
            Err(fields.wrong_with(ORIGINAL, "the same wherever it is said", ONE_SPELLING))
        }
        (Some(original), _) | (None, Some(original)) => Ok(original),
        (None, None) => config.required("max_position_embeddings"),
    }
}

/// The frequencies of a model's positions.
#[derive(Debug)]
pub(super) struct Rope {
    /// In radians per position, one per pair of features; in f32, because models were trained with that precision.
    frequencies: Vec<f32>,
    /// The frequencies for prompts longer than this many tokens.
    long: Option<(usize, Vec<f32>)>,
    /// The longest prompt.
    limit: Option<usize>,
    /// The factor of sines and cosines.
    scale: f64,
}

impl Rope {
    /// The frequencies for heads with that many features; the number has been confirmed by a tensor.
    pub(super) fn new(
        config: &Fields,
        settings: &RopeSettings,
        head_dim: usize,
    ) -> Result<Rope, FieldError> {
        let rotated = (head_dim as f64 * settings.partial) as usize;
        if rotated == 0 || !rotated.is_multiple_of(2) {
            let expected = format!("an even number of rotated features of {head_dim}");
            return Err(config.wrong("head_dim", expected));
        }
        let powers = (0..rotated / 2).map(|pair| 2.0 * pair as f64 / rotated as f64);
        let plain: Vec<f64> = powers.map(|power| settings.theta.powf(-power)).collect();
        let stretched = |by: &dyn Fn(usize, f64) -> f64| -> Vec<f32> {
            let each = plain.iter().enumerate();
            each.map(|(pair, &frequency)| by(pair, frequency) as f32)
                .collect()
        };
        let divided = |name: &str, by: &[f64]| match by.len() == plain.len() {
            true => Ok(stretched(&|pair, frequency| frequency / by[pair])),
            false => Err(config.wrong(
                "rope_scaling",
                format!("{} numbers in {name}, not {}", plain.len(), by.len()),
            )),
        };
        let mut rope = Rope {
            frequencies: Vec::new(),
            long: None,
            limit: None,
            scale: 1.0,
        };
        rope.frequencies = match &settings.kind {
            Kind::Default => stretched(&|_, frequency| frequency),
            Kind::Linear { factor } => stretched(&|_, frequency| frequency / factor),
            Kind::Dynamic { limit } => {
                rope.limit = Some(*limit);
                stretched(&|_, frequency| frequency)
            }
            Kind::Llama3 {
                factor,
                low,
                high,
                original,
            } => stretched(&|_, frequency| {
                // How many turns a pair makes in the original context.
                let turns = original * frequency / TAU;
                let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                frequency * ((1.0 - smooth) / factor + smooth)
            }),
            Kind::Yarn {
                factor,
                attention,
                fast,
                slow,
                original,
                truncate,
            } => {
                rope.scale = *attention;
                let pair_of = |turns: f64| {
                    let of = (original / (turns * TAU)).ln() / settings.theta.ln();
                    rotated as f64 * of / 2.0
                };
                let (mut first, mut last) = (pair_of(*fast), pair_of(*slow));
                if *truncate {
                    (first, last) = (first.floor(), last.ceil());
                }
                let (first, mut last) = (first.max(0.0), last.min(rotated as f64 - 1.0));
                if first == last {
                    last += 0.001;
                }
                stretched(&|pair, frequency| {
                    let ramp = (pair as f64 - first) / (last - first);
                    let ramp = ramp.clamp(0.0, 1.0);
                    frequency * (ramp / factor + 1.0 - ramp)
                })
            }
            Kind::Longrope {
                short,
                long,
                attention,
                original,
            } => {
                rope.scale = *attention;
                rope.long = Some((*original, divided("long_factor", long)?));
                divided("short_factor", short)?
            }
        };
        Ok(rope)
    }

    /// Whether the first tokens of a sequence are turned alike whether or not others follow, up to that length.
    pub(super) fn may_share(&self, first: usize, length: usize) -> bool {
        let long = self.long.as_ref();
        long.is_none_or(|(original, _)| (first > *original) == (length > *original))
    }

    /// The cosines and sines of all tokens: pairs x tokens.
    pub(super) fn table(&self, batch: &Batch) -> Result<Table, ForwardError> {
        let pairs = self.frequencies.len();
        let mut cos = States::zeros(pairs, batch.tokens.len())?;
        let mut sin = States::zeros(pairs, batch.tokens.len())?;
        for (prompt, sequence) in batch.sequences.iter().enumerate() {
            let length = sequence.length();
            if let Some(limit) = self.limit.filter(|limit| length > *limit) {
                return Err(ForwardError::TooLong {
                    prompt,
                    limit,
                    found: length,
                    why: "dynamic rope and max_position_embeddings",
                });
            }
            let long = self.long.as_ref();
            let frequencies = match long.filter(|(original, _)| length > *original) {
                Some((_, long)) => long,
                None => &self.frequencies,
            };
            for (pair, frequency) in frequencies.iter().enumerate() {
                let row = pair * cos.tokens;
                let positions = sequence.position()..;
                for (position, token) in positions.zip(sequence.tokens.clone()) {
                    // The product is in f32, as in training.
                    let (s, c) = f64::from(position as f32 * frequency).sin_cos();
                    cos.values[row + token] = (c * self.scale) as f32;
                    sin.values[row + token] = (s * self.scale) as f32;
                }
            }
        }
        Ok(Table { cos, sin })
    }
}

/// Cosines and sines: pairs x tokens.
pub(super) struct Table {
    cos: States,
    sin: States,
}

impl Table {
    /// Rotates the first features of each head, `head_dim` rows of `values` each: pair `i` is rows `i` and
    /// `i + pairs`.
    pub(super) fn rotate(&self, values: &mut [f32], head_dim: usize) {
        let half = self.cos.values.len();
        for head in values.chunks_exact_mut(head_dim * self.cos.tokens) {
            let (first, rest) = head.split_at_mut(half);
            let angles = self.cos.values.iter().zip(&self.sin.values);
            for ((a, b), (cos, sin)) in first.iter_mut().zip(rest).zip(angles) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}
