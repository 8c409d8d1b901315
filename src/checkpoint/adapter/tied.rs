//! Output heads that are their embedding's copy, once an adapter changes one of the two.
//!
//! In training PEFT adds each update to its own module only. So a head that is adapted is no copy any more: it
//! becomes a tensor of its own, and the config says so. An adapted embedding changes both, as in PEFT's merge.

use std::path::Path;

use super::error::AdapterError;
use super::targets::Wanted;
use crate::checkpoint::names::{is_input_embedding, is_output_head};
use crate::checkpoint::reader::{Checkpoint, TensorEntry};

/// The embedding that a head is tied to.
pub(super) struct Embedding(usize);

impl Embedding {
    /// The model's only embedding of the head's shape.
    pub(super) fn find(
        path: &Path,
        head: &Wanted<'_>,
        model: &Checkpoint,
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
            (None, _) => Err(refused("the model has no embedding of its shape")),
            (Some(_), Some(_)) => Err(refused("the model has several embeddings of its shape")),
        }
    }

    /// Gives the model a head that starts as this embedding's copy.
    pub(super) fn untie(self, head: &str, model: &mut Checkpoint) -> usize {
        let entry = TensorEntry {
            name: head.into(),
            ..model.tensors[self.0].clone()
        };
        // A head that the file has is not read: transformers replaces it with the embedding too.
        let index = match model.by_name.get(head) {
            Some(&index) => {
                model.tensors[index] = entry;
                index
            }
            None => {
                model.tensors.push(entry);
                model.tensors.len() - 1
            }
        };
        model.by_name.insert(head.into(), index);
        if let Some(config) = &mut model.config {
            config.untie();
        }
        index
    }
}

/// Says that a head was untied.
pub(super) fn untied(path: &Path) -> String {
    format!(
        "{} adapts the output head, which the model ties to its embedding: they are untied (`tie_word_embeddings: \
         false`), and both are stored",
        path.display()
    )
}

/// Says that an embedding is adapted whose copy is the head.
pub(super) fn both_change(path: &Path, model: &Checkpoint) -> Option<String> {
    let config = model.config.as_ref()?;
    let headless = !(model.tensors.iter())
        .any(|tensor| is_output_head(&tensor.name) && tensor.name.ends_with(".weight"));
    let generates = (config.architectures().iter())
        .any(|name| name.ends_with("ForCausalLM") || name.ends_with("LMHeadModel"));
    let tied = config
        .tie_word_embeddings()
        .unwrap_or(headless && generates);
    tied.then(|| {
        format!(
            "{} adapts the embedding, which is the output head too: both change, as in PEFT's merge, though in \
             training only the embedding did",
            path.display()
        )
    })
}
