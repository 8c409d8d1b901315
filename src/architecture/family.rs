//! What an entry of the table holds.

use super::decoder::Decoder;
use super::families::FAMILIES;
use super::mixture::{Mixture, Written};

/// A family of models.
#[derive(Debug)]
pub struct Family {
    /// The `model_type`s of config.json; the first is the family's name.
    pub types: &'static [&'static str],
    /// The class of its language models.
    pub class: &'static str,
    /// The bodies of a model, one mostly.
    pub bodies: &'static [Body],
    /// Its output head.
    pub head: Option<Head>,
    /// How its decoder is built, where that is of the Llama kind.
    pub decoder: Option<Decoder>,
}

/// The output head of a family.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// What it may be called.
    pub names: &'static [&'static str],
    /// Whether it is the embedding where the config does not say.
    pub tied: bool,
}

/// A stack of layers and what stands around it.
#[derive(Debug)]
pub struct Body {
    /// What the names start with: the first of these that any tensor has. With the empty one the body may have been
    /// saved alone; without it the first one is missing.
    pub prefixes: &'static [&'static str],
    /// What stands before a layer's number, after the prefix; empty where there are no layers.
    pub layers: &'static str,
    /// Fields that say how many layers there are, the first that is there.
    pub counts: &'static [&'static str],
    /// The part of config.json that its sizes are in, where a model has several bodies.
    pub part: Option<&'static str>,
    /// Whether only a model that writes text has it, beside an encoder.
    pub only_writes: bool,
    /// Whether it is the family's decoder, whose tensors follow from `Family::decoder`.
    pub is_decoder: bool,
    /// Further tensors, in parts that families share: a line each, as `rules` reads them.
    pub tensors: &'static [&'static str],
}

impl Head {
    pub(super) const fn own(names: &'static [&'static str]) -> Option<Head> {
        Some(Head { names, tied: false })
    }

    pub(super) const fn tied(names: &'static [&'static str]) -> Option<Head> {
        Some(Head { names, tied: true })
    }
}

impl Body {
    /// The body of a decoder of the Llama kind.
    pub(super) const DECODER: Body = Body {
        prefixes: &["model.", ""],
        layers: "layers.",
        counts: &super::LAYER_COUNTS,
        part: None,
        only_writes: false,
        is_decoder: true,
        tensors: &[],
    };

    /// A body whose tensors are listed.
    pub(super) const LISTED: Body = Body {
        is_decoder: false,
        ..Body::DECODER
    };
}

impl Family {
    /// A family of the Llama kind, all of it told by its decoder.
    pub(super) const fn decoder(
        types: &'static [&'static str],
        class: &'static str,
        decoder: Decoder,
    ) -> Family {
        Family {
            types,
            class,
            bodies: &[Body::DECODER],
            head: Head::own(&["lm_head.weight"]),
            decoder: Some(decoder),
        }
    }

    /// A family whose tensors are listed.
    pub(super) const fn listed(
        types: &'static [&'static str],
        class: &'static str,
        bodies: &'static [Body],
    ) -> Family {
        Family {
            types,
            class,
            bodies,
            head: None,
            decoder: None,
        }
    }

    /// Every family.
    pub fn all() -> impl Iterator<Item = &'static Family> {
        FAMILIES.iter().copied()
    }

    /// The one of a `model_type`.
    pub fn named(model_type: &str) -> Option<&'static Family> {
        Family::all().find(|family| family.types.contains(&model_type))
    }

    /// Its name: the first of its types.
    pub fn name(&self) -> &'static str {
        self.types.first().copied().unwrap_or_default()
    }

    /// Whether its head is the embedding where the config does not say.
    pub fn is_tied(&self) -> bool {
        self.head.is_some_and(|head| head.tied)
    }

    /// Its experts.
    pub fn mixture(&self) -> Option<&Mixture> {
        self.decoder.as_ref()?.mixture.as_ref()
    }

    /// What `weld moe` needs to write it; none if it is no target.
    pub fn written(&self) -> Option<&Written> {
        self.mixture()?.written.as_ref()
    }

    /// Whether experts can be taken from its models: some target holds it.
    pub fn gives_experts(&self) -> bool {
        Family::all()
            .filter_map(Family::written)
            .any(|written| written.holds.contains(&self.name()))
    }
}
