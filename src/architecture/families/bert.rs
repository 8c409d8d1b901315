//! BERT.

use crate::family::{Body, Family};

pub(super) static FAMILY: Family = Family::listed(
    &["bert"],
    "BertForMaskedLM",
    &[Body {
        prefixes: &["bert.", ""],
        layers: "encoder.layer.",
        tensors: &[TENSORS],
        ..Body::LISTED
    }],
);

pub(super) const TENSORS: &str = "embeddings.word_embeddings.weight V H\nembeddings.position_embeddings.weight P H\n\
    embeddings.token_type_embeddings.weight _ H\nembeddings.LayerNorm.weight H\n\
    embeddings.LayerNorm.bias H\nencoder.layer.*.attention.self.query.weight H H\n\
    encoder.layer.*.attention.self.query.bias H\nencoder.layer.*.attention.self.key.weight H H\n\
    encoder.layer.*.attention.self.key.bias H\nencoder.layer.*.attention.self.value.weight H H\n\
    encoder.layer.*.attention.self.value.bias H\nencoder.layer.*.attention.output.dense.weight H H\n\
    encoder.layer.*.attention.output.dense.bias H\nencoder.layer.*.attention.output.LayerNorm.weight H\n\
    encoder.layer.*.attention.output.LayerNorm.bias H\nencoder.layer.*.intermediate.dense.weight I H\n\
    encoder.layer.*.intermediate.dense.bias I\nencoder.layer.*.output.dense.weight H I\n\
    encoder.layer.*.output.dense.bias H\nencoder.layer.*.output.LayerNorm.weight H\n\
    encoder.layer.*.output.LayerNorm.bias H\n?pooler.dense.weight H H\n?pooler.dense.bias H";
