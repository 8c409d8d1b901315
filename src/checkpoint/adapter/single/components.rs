//! The parts of an image model that a file of factors is for.

/// A part of an image model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Component {
    /// What takes away noise: a UNet or a transformer.
    Denoiser,
    /// A text encoder, counted from one.
    Text(u8),
}

use Component::{Denoiser, Text};

/// What kohya's scripts and LyCORIS put before a flattened name.
const FLATTENED: [(&str, Component); 6] = [
    ("lora_unet_", Denoiser),
    ("lycoris_", Denoiser),
    ("lora_te_", Text(1)),
    ("lora_te1_", Text(1)),
    ("lora_te2_", Text(2)),
    ("lora_te3_", Text(3)),
];

/// What diffusers and others put before a name with dots.
const DOTTED: [(&str, Component); 6] = [
    ("unet", Denoiser),
    ("transformer", Denoiser),
    ("diffusion_model", Denoiser),
    ("text_encoder", Text(1)),
    ("text_encoder_2", Text(2)),
    ("text_encoder_3", Text(3)),
];

/// Where a part's tensors lie in a single file, by what their names begin with.
const ROOTS: [(&str, Component); 9] = [
    ("model.diffusion_model.", Denoiser),
    ("cond_stage_model.transformer.", Text(1)),
    ("cond_stage_model.model.", Text(1)),
    ("conditioner.embedders.0.transformer.", Text(1)),
    ("conditioner.embedders.0.model.", Text(1)),
    ("conditioner.embedders.1.model.", Text(2)),
    ("text_encoders.clip_l.transformer.", Text(1)),
    ("text_encoders.clip_g.transformer.", Text(2)),
    ("text_encoders.t5xxl.transformer.", Text(3)),
];

/// The part of a pipeline in a folder of this name, or of this name in a file's header.
pub(super) fn named(name: &str) -> Option<Component> {
    let dotted = DOTTED.iter().find(|(known, _)| *known == name);
    dotted.map(|(_, component)| *component)
}

/// The part that a module's name begins with, and the rest of it.
pub(super) fn split(name: &str) -> (Option<Component>, &str) {
    let flattened = FLATTENED
        .iter()
        .find_map(|(prefix, component)| Some((Some(*component), name.strip_prefix(prefix)?)));
    let dotted = || {
        let (part, rest) = name.split_once('.')?;
        Some((Some(named(part)?), rest))
    };
    flattened.or_else(dotted).unwrap_or((None, name))
}

/// The parts of a model in the folder `part` of a pipeline, or in a file or folder of its own, and what the names of
/// their tensors begin with.
pub(super) fn roots<'n>(
    part: &str,
    names: impl Iterator<Item = &'n str> + Clone,
) -> Vec<(&'static str, Component)> {
    if !part.is_empty() {
        let component = named(part.trim_end_matches('/'));
        return component
            .map(|component| ("", component))
            .into_iter()
            .collect();
    }
    let has = |root: &str| names.clone().any(|name| name.starts_with(root));
    let roots: Vec<_> = ROOTS.into_iter().filter(|(root, _)| has(root)).collect();
    match roots.is_empty() {
        true if has("text_model.") => vec![("", Text(1))],
        true => vec![("", Denoiser)],
        false => roots,
    }
}
