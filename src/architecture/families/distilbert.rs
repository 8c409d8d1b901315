//! DistilBERT.

use crate::family::{Body, Family};

pub(super) static FAMILY: Family = Family::listed(
    &["distilbert"],
    "DistilBertForMaskedLM",
    &[Body {
        prefixes: &["distilbert.", ""],
        layers: "transformer.layer.",
        tensors: &[TENSORS],
        ..Body::LISTED
    }],
);

const TENSORS: &str = "embeddings.word_embeddings.weight V H\nembeddings.position_embeddings.weight P H\n\
                 embeddings.LayerNorm.weight H\nembeddings.LayerNorm.bias H\n\
                 transformer.layer.*.attention.q_lin.weight H H\ntransformer.layer.*.attention.q_lin.bias H\n\
                 transformer.layer.*.attention.k_lin.weight H H\ntransformer.layer.*.attention.k_lin.bias H\n\
                 transformer.layer.*.attention.v_lin.weight H H\ntransformer.layer.*.attention.v_lin.bias H\n\
                 transformer.layer.*.attention.out_lin.weight H H\ntransformer.layer.*.attention.out_lin.bias H\n\
                 transformer.layer.*.sa_layer_norm.weight H\ntransformer.layer.*.sa_layer_norm.bias H\n\
                 transformer.layer.*.ffn.lin1.weight I H\ntransformer.layer.*.ffn.lin1.bias I\n\
                 transformer.layer.*.ffn.lin2.weight H I\ntransformer.layer.*.ffn.lin2.bias H\n\
                 transformer.layer.*.output_layer_norm.weight H\ntransformer.layer.*.output_layer_norm.bias H";
