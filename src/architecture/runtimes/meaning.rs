//! What a checkpoint means, as its class in transformers reads the config.

use serde_json::Value;

use super::super::config::in_all_layers;
use super::super::decoder::{Decoder, WindowRule};
use super::super::family::Family;
use super::super::fields::Fields;
use super::super::mixture::{Mixture, RoutingRule, SharedWidth};
use super::super::rope::RopeFields;
use super::Served;

/// A config of one family, and the tensors beside it.
pub(super) struct Meaning<'a> {
    pub(super) config: &'a Value,
    pub(super) fields: Fields<'a>,
    family: Option<&'static Family>,
    served: &'a Served<'a>,
}

impl<'a> Meaning<'a> {
    pub(super) fn new(config: &'a Value, family: &str, served: &'a Served<'a>) -> Self {
        Meaning {
            config,
            fields: Fields::of_part(config),
            family: Family::named(family),
            served,
        }
    }

    fn decoder(&self) -> Option<&'static Decoder> {
        self.family?.decoder.as_ref()
    }

    pub(super) fn mixture(&self) -> Option<&'static Mixture> {
        self.decoder()?.mixture.as_ref()
    }

    /// A size; none if it is absent or malformed, which others report.
    pub(super) fn size(&self, field: &str) -> Option<usize> {
        self.fields.size_or_zero(field).ok().flatten()
    }

    pub(super) fn text(&self, field: &str) -> Option<&'a str> {
        self.fields.get(field)?.as_str()
    }

    fn flag(&self, field: &str, default: bool) -> bool {
        self.fields.flag(field, default).unwrap_or(default)
    }

    /// The field that names the activation, and what it names.
    pub(super) fn activation(&self) -> Option<(&'static str, &'a str)> {
        let decoder = self.decoder()?;
        let fields = decoder.activation_fields.iter();
        let written = fields
            .copied()
            .find_map(|field| Some((field, self.text(field)?)));
        let (field, named) = written.unwrap_or(("hidden_act", decoder.activation));
        Some(match decoder.gelu_is_tanh && named == "gelu" {
            true => (field, "gelu_pytorch_tanh"),
            false => (field, named),
        })
    }

    /// The base of rotary frequencies where the config does not say.
    pub(super) fn theta(&self) -> f64 {
        self.decoder().map_or(10_000.0, |decoder| decoder.theta)
    }

    /// The kind of rotary positions, if they are scaled.
    pub(super) fn rope(&self) -> Option<String> {
        let scaling = RopeFields::read(self.fields).ok()?.scaling()?;
        Some(scaling.get("rope_type")?.as_str()?.to_owned())
    }

    /// The window, if some layer has one that is shorter than the texts that the config allows.
    pub(super) fn window(&self) -> Option<usize> {
        const FIELD: &str = "sliding_window";
        let rule = self.decoder()?.window;
        let default = match rule {
            WindowRule::All(default) if !self.fields.is_written(FIELD) => default,
            _ => None,
        };
        let window = self.size(FIELD).or(default)?;
        let kinds = self.fields.list("layer_types").ok().flatten();
        let slides = |kind: &Value| kind.as_str() == Some("sliding_attention");
        let in_use = match (rule, kinds) {
            (WindowRule::None, None) => false,
            (WindowRule::Switched | WindowRule::Listed { switched: true, .. }, _)
                if !self.flag("use_sliding_window", false) =>
            {
                false
            }
            (_, Some(kinds)) => kinds.iter().any(slides),
            (WindowRule::Listed { from, .. }, None) => {
                let first = self.size("max_window_layers").or(from).unwrap_or(0);
                self.size("num_hidden_layers")? > first
            }
            (WindowRule::All(_) | WindowRule::Switched, None) => true,
        };
        let longest = self.size("max_position_embeddings");
        (in_use && longest.is_none_or(|longest| window < longest)).then_some(window)
    }

    /// The layers of `layer_types` that look back as far as they can; none if it is not there.
    pub(super) fn full_layers(&self) -> Option<Vec<bool>> {
        let kinds = self.fields.list("layer_types").ok()??;
        Some(
            kinds
                .iter()
                .map(|kind| kind.as_str() == Some("full_attention"))
                .collect(),
        )
    }

    /// The layers that look back as far as they can, by `layer_types` or by a period; none if neither is there.
    pub(super) fn unwindowed_layers(&self) -> Option<Vec<bool>> {
        self.full_layers().or_else(|| {
            let period = self.size(self.decoder()?.window_period?)?;
            let layers = 1..=self.layers()?;
            (period > 0).then(|| layers.map(|layer| layer.is_multiple_of(period)).collect())
        })
    }

    /// Whether heads are as wide as the hidden size over their number; if not, how wide they are.
    pub(super) fn odd_head_dim(&self) -> Option<usize> {
        let (hidden, heads) = (self.size("hidden_size")?, self.size("num_attention_heads")?);
        let head_dim = self.size("head_dim").filter(|size| *size > 0)?;
        (head_dim.checked_mul(heads) != Some(hidden)).then_some(head_dim)
    }

    /// Heads of queries, and of keys and values, where these are fewer.
    pub(super) fn grouped_heads(&self) -> Option<(usize, usize)> {
        let heads = self.size("num_attention_heads")?;
        let by_class = self.decoder().and_then(|decoder| decoder.kv_heads);
        let by_class = by_class.filter(|_| !self.fields.is_written("num_key_value_heads"));
        let keys = self.size("num_key_value_heads").or(by_class)?;
        (keys < heads).then_some((heads, keys))
    }

    /// Whether the head is the embedding.
    pub(super) fn is_tied(&self) -> Option<bool> {
        let tied = self
            .fields
            .flag("tie_word_embeddings", self.family?.is_tied());
        tied.ok()
    }

    /// Whether a token's weights are made to sum to one, where the config says so and it matters; and experts a token.
    pub(super) fn sums_to_one(&self) -> Option<bool> {
        let mixture = self.mixture()?;
        let RoutingRule::SoftmaxNorm(default) = mixture.routing else {
            return None;
        };
        let all = mixture
            .counts
            .experts
            .iter()
            .find_map(|field| self.size(field));
        // All experts together sum to one anyway.
        (all != self.size(mixture.counts.per_token)).then_some(self.flag("norm_topk_prob", default))
    }

    /// The field that gives the shared expert's width, and that width in neurons.
    pub(super) fn shared_width(&self) -> Option<(&'static str, usize)> {
        let mixture = self.mixture()?;
        match mixture.shared.as_ref()?.width {
            SharedWidth::Neurons(field) => Some((field, self.size(field)?)),
            SharedWidth::Experts(field) => {
                let expert = self.size(mixture.counts.width)?;
                Some((field, self.size(field)?.checked_mul(expert)?))
            }
            SharedWidth::Fixed => None,
        }
    }

    /// How many layers there are; no more are believed than there are tensors.
    fn layers(&self) -> Option<usize> {
        let layers = self.size("num_hidden_layers")?;
        Some(layers.min(self.served.names.len()))
    }

    /// A layer that has no experts, where the family has them.
    pub(super) fn dense_layer(&self) -> Option<usize> {
        let sparse = self.mixture()?.sparse.layers(&self.fields).ok()?;
        let layers = self.layers()?;
        (0..layers).find(|layer| !sparse.has(*layer))
    }

    /// Whether the last layers have no experts, or only one in several has.
    pub(super) fn ends_dense(&self) -> Option<bool> {
        let sparse = self.mixture()?.sparse.layers(&self.fields).ok()?;
        let layers = self.layers()?;
        let first = (0..layers).find(|layer| sparse.has(*layer))?;
        Some(!(first..layers).all(|layer| sparse.has(layer)))
    }

    /// Whether the experts have the names that transformers 5 holds in memory.
    pub(super) fn has_held_names(&self) -> bool {
        let Some(mixture) = self.mixture() else {
            return false;
        };
        let (hub, held) = (mixture.names(false), mixture.names(true));
        let input = held.tensor(0, super::super::mixture::Matrix::Up);
        !std::ptr::eq(hub.experts, held.experts) && self.has(&format!(".{input}"))
    }

    /// Whether a tensor's name ends so.
    pub(super) fn has(&self, end: &str) -> bool {
        self.served.names.iter().any(|name| name.ends_with(end))
    }

    /// Whether tensors whose names end so are there, and hold zeros only, or something else; none if nobody looked.
    pub(super) fn values(&self, end: &str) -> Option<Values> {
        let is_zero = self.served.is_zero?;
        let names = self.served.names.iter().enumerate();
        let mut found = names
            .filter(|(_, name)| name.ends_with(end))
            .map(|(at, _)| is_zero(at));
        let first = found.next()?;
        Some(match (first, found.all(|zero| zero == first)) {
            (true, true) => Values::Zeros,
            (false, true) => Values::Numbers,
            _ => Values::Both,
        })
    }

    /// The fields that neither the config nor the part of its language model has, of these.
    pub(super) fn lacking(&self, fields: &'static str) -> Vec<&'static str> {
        let lacks = |field: &&str| {
            [self.served.config, self.config]
                .iter()
                .all(|config| config.get(field).is_none())
        };
        fields.split(' ').filter(lacks).collect()
    }

    /// Whether a field is a list with the same entry for each layer.
    pub(super) fn is_list(&self, field: &str) -> bool {
        let value = self.fields.get(field);
        value.is_some_and(|value| value.is_array() && !in_all_layers(value).is_array())
    }
}

/// What tensors hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Values {
    /// Zeros alone.
    Zeros,
    /// None of them is zeros alone.
    Numbers,
    /// Some are zeros alone.
    Both,
}
