//! Output heads that are copies of their embedding, when an adapter changes one of the two.
//!
//! During training PEFT adds each update to its own module only. So if either of the two is adapted, the head is no
//! longer a copy: it becomes a tensor of its own, and the config says so. PEFT's own merge changes both.

use std::path::Path;

use super::error::AdapterError;
use super::subject::Subject;
use super::targets::ChangedTensor;
use architecture::{is_input_embedding, is_output_head};

/// The index of the embedding that a head is tied to.
pub(super) struct Embedding(pub(super) usize);

impl Embedding {
    /// The model's only embedding of the head's shape.
    pub(super) fn find(
        path: &Path,
        head: &ChangedTensor<'_>,
        model: &Subject,
    ) -> Result<Embedding, AdapterError> {
        let refused = |why| AdapterError::Tied {
            path: path.into(),
            key: head.key.into(),
            why,
        };
        let config = model.config.as_ref();
        if config.is_some_and(|config| config.get_bool("is_encoder_decoder") == Some(true)) {
            return Err(refused(
                "an encoder-decoder computes otherwise with a tied head",
            ));
        }
        let mut fitting = (model.tensors.iter().enumerate())
            .filter(|(_, tensor)| is_input_embedding(&tensor.name) && (head.fits)(&tensor.shape));
        match (fitting.next(), fitting.next()) {
            (Some((embedding, _)), None) => Ok(Embedding(embedding)),
            (None, _) => Err(refused(
                "the model has no embedding of its shape, were tokens added?",
            )),
            (Some(_), Some(_)) => Err(refused("the model has several embeddings of its shape")),
        }
    }

    /// Adds a head to the model that starts as a copy of this embedding.
    pub(super) fn untie(self, head: &str, model: &mut Subject) -> usize {
        // A head stored in the file is ignored: transformers replaces it with the embedding too.
        let index = model.copy(self.0, head);
        if let Some(config) = &mut model.config {
            config.untie();
        }
        index
    }
}

/// What happens to a tied head if only its embedding is adapted.
pub(super) enum Copied {
    /// There is no head.
    No,
    /// It becomes a tensor of its own with this name.
    Head(String),
    /// It changes with the embedding, because its name is unknown.
    Unnamed,
}

impl Embedding {
    /// What happens to the copy of this embedding.
    pub(super) fn copied(&self, model: &Subject) -> Copied {
        let Some(config) = model.config.as_ref() else {
            return Copied::No;
        };
        let headless = !(model.tensors.iter())
            .any(|tensor| is_output_head(&tensor.name) && tensor.name.ends_with(".weight"));
        let generates = (config.architectures().iter())
            .any(|name| name.ends_with("ForCausalLM") || name.ends_with("LMHeadModel"));
        let tied = config.tie_word_embeddings();
        if !tied.unwrap_or(headless && generates) {
            return Copied::No;
        }
        let decoder = config.get_bool("is_encoder_decoder") != Some(true);
        let usual = (USUAL_EMBEDDINGS.iter()).any(|end| model.tensors[self.0].name.ends_with(end));
        match generates && decoder && usual {
            true => Copied::Head(USUAL_HEAD.into()),
            false => Copied::Unnamed,
        }
    }
}

/// The name that transformers gives the head of every decoder with one of the usual names for its embedding.
const USUAL_HEAD: &str = "lm_head.weight";
const USUAL_EMBEDDINGS: [&str; 2] = [".embed_tokens.weight", "wte.weight"];

/// The note that a head was untied.
pub(super) fn untied(path: &Path) -> String {
    format!(
        "{} adapts the output head or the embedding, which the model ties: they are untied (`tie_word_embeddings: \
         false`) and both stored, as each was trained by itself",
        path.display()
    )
}

/// The note that an adapted embedding and its copy both change.
pub(super) fn both_change(path: &Path) -> String {
    format!(
        "{} adapts the embedding, which is the output head too: both change, as in PEFT's merge, though in \
         training only the embedding did",
        path.display()
    )
}
