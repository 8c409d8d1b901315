//! The sizes of a config, by the letters that the lines of a family's table use.

use serde_json::Value;

use super::config::{field, in_all_layers};
use super::decoder::{Decoder, HeadDim};
use super::mixture::SharedWidth;

/// Where the sizes of a body are.
pub(super) struct Sizes<'c> {
    /// Its own part of the config, or all of it.
    pub(super) part: &'c Value,
    pub(super) whole: &'c Value,
    pub(super) decoder: Option<&'static Decoder>,
}

impl Sizes<'_> {
    /// The first of these fields that is a size.
    pub(super) fn any(&self, keys: &[&str]) -> Option<usize> {
        let size =
            |key: &&str| usize::try_from(in_all_layers(field(self.part, key)?).as_u64()?).ok();
        keys.iter().find_map(size)
    }

    /// Experts of a layer.
    pub(super) fn experts(&self) -> Option<usize> {
        let fields = ["num_local_experts", "num_experts", "n_routed_experts"];
        let mixture = self.decoder.and_then(|decoder| decoder.mixture.as_ref());
        let own = mixture.map_or(&[][..], |mixture| mixture.counts.experts);
        self.any(own).or_else(|| self.any(&fields))
    }

    /// A size by its letter; none for `_`, and for what the config does not say.
    pub(super) fn of(&self, letter: &str) -> Option<usize> {
        let any = |keys: &[&str]| self.any(keys);
        let of = |letter: &str| self.of(letter);
        match letter {
            "1" => Some(1),
            "V" => any(&["vocab_size"]),
            "H" => any(&["hidden_size", "n_embd", "dim", "d_model"]),
            "HHH" => of("H")?.checked_mul(3),
            "I" => any(&["intermediate_size", "n_inner", "hidden_dim", "d_ff"]),
            "II" => of("I")?.checked_mul(2),
            // Four times the hidden size where the config does not say.
            "F" => of("I").or_else(|| of("H")?.checked_mul(4)),
            "P" => any(&["max_position_embeddings", "n_positions"]),
            "B" => any(&["relative_attention_num_buckets"]),
            // Heads, what they share, and what they have together.
            "N" => any(&["num_attention_heads", "num_heads"]),
            "D" => self.head_dim(),
            "Q" => of("N")?.checked_mul(of("D")?),
            "K" => self.key_heads()?.checked_mul(of("D")?),
            "QKK" => of("Q")?.checked_add(of("K")?.checked_mul(2)?),
            // Experts, their width, and that of the shared one.
            "E" => self.experts(),
            "M" => self.expert_width(),
            "MM" => of("M")?.checked_mul(2),
            "S" => self.shared_width(),
            "SS" => of("S")?.checked_mul(2),
            // Latent attention: queries, and keys with values, through a matrix of low rank each.
            "QL" => any(&["q_lora_rank"]),
            "KL" => any(&["kv_lora_rank"]),
            "KA" => of("KL")?.checked_add(any(&["qk_rope_head_dim"])?),
            "QH" => self.of_heads(&["qk_nope_head_dim", "qk_rope_head_dim"]),
            "KB" => self.of_heads(&["qk_nope_head_dim", "v_head_dim"]),
            "VO" => self.of_heads(&["v_head_dim"]),
            // The hidden size of the tower that looks at images.
            "VH" => {
                let vision = self.whole.get("vision_config")?;
                usize::try_from(vision.get("hidden_size")?.as_u64()?).ok()
            }
            _ => None,
        }
    }

    fn head_dim(&self) -> Option<usize> {
        let share = || self.of("H")?.checked_div(self.of("N")?);
        let said = || self.any(&["head_dim", "d_kv"]);
        match self.decoder.map(|decoder| decoder.head_dim) {
            None => said(),
            Some(HeadDim::Share | HeadDim::AlwaysShare) => said().or_else(share),
            Some(HeadDim::Of(size)) => said().or(Some(size)),
        }
    }

    fn key_heads(&self) -> Option<usize> {
        const FIELD: &str = "num_key_value_heads";
        let by_class = self.decoder.and_then(|decoder| decoder.kv_heads);
        let written = self.part.get(FIELD).is_some();
        self.any(&[FIELD])
            .or(by_class.filter(|_| !written))
            .or_else(|| self.of("N"))
    }

    fn expert_width(&self) -> Option<usize> {
        let mixture = self.decoder?.mixture.as_ref()?;
        self.any(&[mixture.counts.width])
    }

    fn shared_width(&self) -> Option<usize> {
        let mixture = self.decoder?.mixture.as_ref()?;
        match mixture.shared.as_ref()?.width {
            SharedWidth::Neurons(field) => self.any(&[field]),
            SharedWidth::Experts(field) => self.expert_width()?.checked_mul(self.any(&[field])?),
            SharedWidth::Fixed => self.expert_width(),
        }
    }

    /// A sum of fields, for all heads.
    fn of_heads(&self, summands: &[&str]) -> Option<usize> {
        let mut sum = 0usize;
        for field in summands {
            sum = sum.checked_add(self.any(&[field])?)?;
        }
        self.of("N")?.checked_mul(sum)
    }
}
