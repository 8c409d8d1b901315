//! The ways in which runtimes read checkpoints otherwise.

use serde_json::Value;

use super::super::rope::older_spelling;
use super::meaning::{Meaning, Values};
use super::{Misreading, Outcome, Topic, shown};

/// A way in which a runtime reads a family otherwise than its class in transformers does.
#[derive(Debug, Clone, Copy)]
pub(super) enum Quirk {
    /// It computes this activation, whatever the config names.
    Activation(&'static str),
    /// It loads this activation only.
    OnlyActivation(&'static str),
    /// Of scaled rotary positions it computes these kinds only, and the others end so.
    Ropes(&'static [&'static str], Outcome),
    /// It reads the fields of transformers 4 only; the base where they do not say, if that is not the class's.
    OlderRope(Option<f64>),
    /// Of longrope it takes the factors by something else than the length of the text.
    LongFactors(&'static str),
    /// For layers of two kinds it takes these bases where the fields of transformers 4 do not say.
    RopeBases { full: f64, sliding: f64 },
    /// It looks back to the beginning in every layer.
    NoWindow,
    /// The same, where there is no `layer_types`.
    NoWindowUnlessListed,
    /// It takes every nth layer for one without a window; a field may say which n.
    Period(usize, Option<&'static str>),
    /// It has experts in every layer.
    NoDenseLayers,
    /// It has experts in every layer after the first that has some.
    NoDenseEnd,
    /// It makes a token's weights sum to one, or not, whatever the config says.
    SumsToOne(bool),
    /// It does not load a shared expert without width.
    NoZeroWidth,
    /// It takes the shared expert to be as wide as the dense MLP over the heads of keys.
    SharedWidthByHeads,
    /// It divides by what comes of the shared expert's gate.
    NoZeroGate,
    /// It leaves the bias out by which experts are chosen.
    NoCorrection,
    /// Heads are as wide as the hidden size over their number.
    NoHeadDim,
    /// Each head of queries has its own keys.
    NoGroupedHeads,
    /// Queries, keys and values have biases.
    WantsBiases,
    /// They have none, and neither has the output.
    NoBiases,
    /// The head is a tensor of its own.
    NoTiedHead,
    /// The head is the embedding; another one ends so.
    AlwaysTied(Outcome),
    /// The head is the embedding where the config does not say.
    TiedUnlessSaid,
    /// Experts are stored each by itself.
    NoHeldNames,
    /// It does not load without these fields.
    WantsFields(&'static str),
    /// It does not load unless these fields are lists with an entry for each layer.
    WantsLists(&'static [&'static str]),
    /// It takes the tokenizer of one maker only, which has so many tokens.
    Tokenizer(&'static str, usize),
}

const OTHER_RUNTIME: &str = "serve it with a runtime that reads it";

impl Quirk {
    /// What it makes of a checkpoint, if that is not what the checkpoint means.
    pub(super) fn misreading(self, meaning: &Meaning<'_>) -> Option<Misreading> {
        match self {
            Quirk::Activation(_) | Quirk::OnlyActivation(_) => self.activation(meaning),
            Quirk::Ropes(..)
            | Quirk::OlderRope(_)
            | Quirk::LongFactors(_)
            | Quirk::RopeBases { .. } => self.rope(meaning),
            Quirk::NoWindow | Quirk::NoWindowUnlessListed => self.window(meaning),
            Quirk::Period(..) | Quirk::NoDenseLayers | Quirk::NoDenseEnd => self.layers(meaning),
            Quirk::SumsToOne(_)
            | Quirk::NoZeroWidth
            | Quirk::SharedWidthByHeads
            | Quirk::NoZeroGate
            | Quirk::NoCorrection => self.experts(meaning),
            Quirk::NoHeadDim | Quirk::NoGroupedHeads | Quirk::WantsBiases | Quirk::NoBiases => {
                self.attention(meaning)
            }
            Quirk::NoTiedHead | Quirk::AlwaysTied(_) | Quirk::TiedUnlessSaid => self.head(meaning),
            Quirk::NoHeldNames => meaning.has_held_names().then(|| Misreading {
                topic: Topic::Tensors,
                field: None,
                means: "all experts of a layer in two tensors".into(),
                does: "reads experts each by itself only".into(),
                outcome: Outcome::Fails,
                remedy: "turn it into the Hub's layout: an edit by `weld moe` that keeps all experts",
            }),
            Quirk::WantsFields(_) | Quirk::WantsLists(_) => self.config(meaning),
            Quirk::Tokenizer(whose, tokens) => {
                let found = meaning.size("vocab_size").filter(|found| *found != tokens)?;
                Some(Misreading {
                    topic: Topic::Tokenizer,
                    field: Some("vocab_size"),
                    means: format!("a tokenizer of {found} tokens"),
                    does: format!("converts no other tokenizer of this family than {whose}"),
                    outcome: Outcome::Slight,
                    remedy: "convert it with a tool that writes the tokenizer as it is",
                })
            }
        }
    }

    fn activation(self, meaning: &Meaning<'_>) -> Option<Misreading> {
        let (computed, only) = match self {
            Quirk::Activation(computed) => (computed, false),
            Quirk::OnlyActivation(computed) => (computed, true),
            _ => return None,
        };
        let (field, named) = meaning.activation()?;
        let same = named == computed
            || [named, computed]
                .iter()
                .all(|name| matches!(*name, "silu" | "swish"));
        if same {
            return None;
        }
        let near = named.starts_with("gelu") && computed.starts_with("gelu");
        Some(Misreading {
            topic: Topic::Activation,
            field: Some(field),
            means: format!("`{}`", shown(named)),
            does: match only {
                true => format!("loads `{computed}` only"),
                false => format!("computes `{computed}`"),
            },
            outcome: match (only, near) {
                (true, _) => Outcome::Fails,
                (false, true) => Outcome::Slight,
                (false, false) => Outcome::Silent,
            },
            remedy: OTHER_RUNTIME,
        })
    }

    fn rope(self, meaning: &Meaning<'_>) -> Option<Misreading> {
        const NEW: &str = "rope_parameters";
        let told = |means: String, does: &str, outcome, remedy| Misreading {
            topic: Topic::Rope,
            field: Some(match meaning.fields.get(NEW) {
                Some(_) => NEW,
                None => "rope_scaling",
            }),
            means,
            does: does.into(),
            outcome,
            remedy,
        };
        match self {
            Quirk::Ropes(kinds, outcome) => {
                let kind = meaning
                    .rope()
                    .filter(|kind| !kinds.contains(&kind.as_str()))?;
                let does = match outcome {
                    Outcome::Fails => "does not load such scaling",
                    _ => "does not scale rotary positions so",
                };
                let means = format!("rotary positions of the kind `{}`", shown(&kind));
                // This kind begins to count where texts are longer than those of the training.
                let outcome = match (kind.as_str(), outcome) {
                    ("dynamic", Outcome::Silent) => Outcome::Slight,
                    _ => outcome,
                };
                Some(told(means, does, outcome, OTHER_RUNTIME))
            }
            Quirk::OlderRope(base) => {
                let base = base.unwrap_or(meaning.theta());
                let by_default = |field: &str, value: &Value| match field {
                    "rope_theta" => value.as_f64() == Some(base),
                    _ => value.is_null(),
                };
                let lacking = older_spelling(meaning.config);
                if lacking
                    .iter()
                    .all(|(field, value)| by_default(field, value))
                {
                    return None;
                }
                let fields: Vec<&str> = lacking.iter().map(|(field, _)| *field).collect();
                let means = format!("{} in `{NEW}`", listed(&fields)?);
                let does = "reads them at the top of the config only";
                let remedy = "write them there too, as `weld merge` does";
                Some(told(means, does, Outcome::Silent, remedy))
            }
            Quirk::LongFactors(does) => {
                let kind = meaning.rope()?;
                let means = "rotary factors by the length of the text".to_owned();
                matches!(kind.as_str(), "longrope" | "su")
                    .then(|| told(means, does, Outcome::Slight, OTHER_RUNTIME))
            }
            Quirk::RopeBases { full, sliding } => {
                let nested = meaning.fields.get(NEW)?;
                let base = |kind: &str| nested.get(kind)?.get("rope_theta")?.as_f64();
                let top = |field: &str| meaning.fields.number(field).ok().flatten();
                let differs = |kind: &str, field: &str, default: f64| {
                    base(kind).is_some_and(|base| base != top(field).unwrap_or(default))
                };
                let scaled = nested
                    .get("full_attention")
                    .and_then(|part| part.get("rope_type"));
                let scaled = scaled.is_some_and(|kind| kind.as_str() != Some("default"));
                let misread = differs("full_attention", "rope_theta", full)
                    || differs("sliding_attention", "rope_local_base_freq", sliding)
                    || scaled && meaning.fields.get("rope_scaling").is_none();
                misread.then(|| {
                    told(
                        format!("rotary positions for two kinds of layers in `{NEW}`"),
                        "reads `rope_theta`, `rope_local_base_freq` and `rope_scaling` at the top of the config only",
                        Outcome::Silent,
                        "write them there too",
                    )
                })
            }
            _ => None,
        }
    }

    fn window(self, meaning: &Meaning<'_>) -> Option<Misreading> {
        let window = meaning.window()?;
        if matches!(self, Quirk::NoWindowUnlessListed) && meaning.full_layers().is_some() {
            return None;
        }
        Some(Misreading {
            topic: Topic::Window,
            field: Some("sliding_window"),
            means: format!("attention to the last {window} tokens"),
            does: "attends to all tokens".into(),
            outcome: Outcome::Slight,
            remedy: "keep texts as short as the window, or serve it with a runtime that reads it",
        })
    }

    fn layers(self, meaning: &Meaning<'_>) -> Option<Misreading> {
        let told = |field, means: String, does: String, outcome| Misreading {
            topic: Topic::Layers,
            field,
            means,
            does,
            outcome,
            remedy: OTHER_RUNTIME,
        };
        match self {
            Quirk::Period(period, field) => {
                let period = field
                    .and_then(|field| meaning.size(field))
                    .unwrap_or(period)
                    .max(1);
                let full = meaning.unwindowed_layers()?;
                let is_full =
                    |(layer, full): (usize, &bool)| (layer + 1).is_multiple_of(period) == *full;
                let odd = full.iter().enumerate().position(|layer| !is_full(layer))?;
                let kind = if full[odd] { "no window" } else { "a window" };
                let does = format!(
                    "takes every {period}th layer for one without a window, and all others for ones with"
                );
                Some(told(
                    Some("layer_types"),
                    format!("layer {odd} with {kind}"),
                    does,
                    Outcome::Silent,
                ))
            }
            Quirk::NoDenseLayers => {
                let layer = meaning.dense_layer()?;
                let does = "wants experts in every layer".into();
                Some(told(
                    None,
                    format!("layer {layer} without experts"),
                    does,
                    Outcome::Fails,
                ))
            }
            Quirk::NoDenseEnd => {
                let does = "wants experts in every layer after the first that has some".into();
                let means = "layers without experts after layers with them".into();
                meaning
                    .ends_dense()?
                    .then(|| told(None, means, does, Outcome::Fails))
            }
            _ => None,
        }
    }

    fn experts(self, meaning: &Meaning<'_>) -> Option<Misreading> {
        let told = |field, means: String, does: &str, outcome, remedy| Misreading {
            topic: Topic::Experts,
            field,
            means,
            does: does.into(),
            outcome,
            remedy,
        };
        match self {
            Quirk::SumsToOne(always) => {
                let meant = meaning.sums_to_one().filter(|meant| *meant != always)?;
                let does = match always {
                    true => "makes the weights of a token's experts sum to one",
                    false => "does not make the weights of a token's experts sum to one",
                };
                let remedy = "of a mixture made here: choose another `architecture`";
                let means = format!("`norm_topk_prob: {meant}`");
                Some(told(
                    Some("norm_topk_prob"),
                    means,
                    does,
                    Outcome::Silent,
                    remedy,
                ))
            }
            Quirk::NoZeroWidth => {
                let (field, _) = meaning.shared_width().filter(|(_, width)| *width == 0)?;
                let remedy = "assemble it again: a shared expert of zeros stands there now";
                let does = "does not load a shared expert without width";
                Some(told(
                    Some(field),
                    "no shared expert".into(),
                    does,
                    Outcome::Fails,
                    remedy,
                ))
            }
            Quirk::SharedWidthByHeads => {
                let (field, width) = meaning.shared_width().filter(|(_, width)| *width > 0)?;
                let (inner, keys) = (
                    meaning.size("intermediate_size")?,
                    meaning.size("num_key_value_heads")?,
                );
                let taken = inner.checked_div(keys)?;
                let does = format!(
                    "takes its width to be `intermediate_size` over `num_key_value_heads`, {taken}"
                );
                let means = format!("a shared expert of {width} neurons");
                (taken != width)
                    .then(|| told(Some(field), means, &does, Outcome::Fails, OTHER_RUNTIME))
            }
            Quirk::NoZeroGate => {
                let gate = meaning.mixture()?.shared.as_ref()?.gate?;
                let values = meaning.values(gate)?;
                (values != Values::Numbers).then(|| {
                    let means = format!("`{gate}` of zeros");
                    let remedy = "write 1e-20 there: the result is the same";
                    told(
                        None,
                        means,
                        "divides by what comes of it, and gives NaN",
                        Outcome::Silent,
                        remedy,
                    )
                })
            }
            Quirk::NoCorrection => {
                let bias = meaning.mixture()?.correction?.name;
                let values = meaning.values(bias)?;
                (values != Values::Zeros).then(|| {
                    let means = "a bias by which experts are chosen".to_owned();
                    told(None, means, "leaves it out", Outcome::Silent, OTHER_RUNTIME)
                })
            }
            _ => None,
        }
    }

    fn attention(self, meaning: &Meaning<'_>) -> Option<Misreading> {
        let told = |field, means: String, does: &str| Misreading {
            topic: Topic::Attention,
            field,
            means,
            does: does.into(),
            outcome: Outcome::Fails,
            remedy: OTHER_RUNTIME,
        };
        let (qkv, output) = (
            meaning.has(".self_attn.q_proj.bias"),
            meaning.has(".self_attn.o_proj.bias"),
        );
        match self {
            Quirk::NoHeadDim => {
                let size = meaning.odd_head_dim()?;
                let does = "takes the hidden size over the number of heads";
                Some(told(Some("head_dim"), format!("heads of {size}"), does))
            }
            Quirk::NoGroupedHeads => {
                let (heads, keys) = meaning.grouped_heads()?;
                let means = format!("{heads} heads with {keys} of keys and values");
                Some(told(
                    Some("num_key_value_heads"),
                    means,
                    "wants as many of each",
                ))
            }
            Quirk::WantsBiases => {
                let has = meaning.has(".self_attn.q_proj.weight") && !qkv;
                has.then(|| {
                    told(
                        None,
                        "queries, keys and values without biases".into(),
                        "wants biases",
                    )
                })
            }
            Quirk::NoBiases => (qkv || output)
                .then(|| told(None, "biases in attention".into(), "has no place for them")),
            _ => None,
        }
    }

    fn head(self, meaning: &Meaning<'_>) -> Option<Misreading> {
        const FIELD: &str = "tie_word_embeddings";
        let told = |means: &str, does: &str, outcome, remedy| Misreading {
            topic: Topic::Head,
            field: Some(FIELD),
            means: means.into(),
            does: does.into(),
            outcome,
            remedy,
        };
        let tied = meaning.is_tied()?;
        let own = "a head of its own";
        match self {
            Quirk::NoTiedHead => tied.then(|| {
                let remedy = "save the model with a head of its own";
                told(
                    "the embedding as head",
                    "wants a head of its own",
                    Outcome::Fails,
                    remedy,
                )
            }),
            Quirk::AlwaysTied(outcome) => {
                (!tied).then(|| told(own, "takes the embedding as head", outcome, OTHER_RUNTIME))
            }
            Quirk::TiedUnlessSaid => {
                let unsaid = !tied && meaning.fields.get(FIELD).is_none();
                let does = "takes the embedding as head unless the config says otherwise";
                unsaid.then(|| {
                    told(
                        own,
                        does,
                        Outcome::Silent,
                        "write `\"tie_word_embeddings\": false`",
                    )
                })
            }
            _ => None,
        }
    }

    fn config(self, meaning: &Meaning<'_>) -> Option<Misreading> {
        let told = |fields: &[&'static str], means: &str| {
            Some(Misreading {
                topic: Topic::Config,
                field: fields.first().copied(),
                means: format!("{means} {}", listed(fields)?),
                does: "does not load without".into(),
                outcome: Outcome::Fails,
                remedy: "complete config.json",
            })
        };
        match self {
            Quirk::WantsFields(fields) => told(&meaning.lacking(fields), "no"),
            Quirk::WantsLists(fields) => {
                let others = fields
                    .iter()
                    .copied()
                    .filter(|field| !meaning.is_list(field));
                told(
                    &others.collect::<Vec<_>>(),
                    "no list, with an entry for each layer, of",
                )
            }
            _ => None,
        }
    }
}

/// Fields in words; none if there are none.
fn listed(fields: &[&str]) -> Option<String> {
    let (last, others) = fields.split_last()?;
    Some(match others {
        [] => format!("`{last}`"),
        _ => format!("`{}` and `{last}`", others.join("`, `")),
    })
}
