//! T5 and mT5: an encoder and a decoder.

use crate::family::{Body, Family, Head};

pub(super) static FAMILY: Family = Family {
    head: Head::tied(&["lm_head.weight"]),
    ..Family::listed(
        &["t5", "mt5"],
        "T5ForConditionalGeneration",
        &[
            Body {
                prefixes: &["transformer.", ""],
                layers: "encoder.block.",
                tensors: &[ENCODER],
                ..Body::LISTED
            },
            Body {
                prefixes: &["transformer.", ""],
                layers: "decoder.block.",
                counts: &["num_decoder_layers", "num_layers"],
                only_writes: true,
                tensors: &[DECODER],
                ..Body::LISTED
            },
        ],
    )
};

const ENCODER: &str = "shared.weight V H\n?encoder.embed_tokens.weight V H\n?decoder.embed_tokens.weight V H\n\
    encoder.final_layer_norm.weight H\n\
    encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight B N\n\
    encoder.block.*.layer.0.SelfAttention.q.weight Q H\nencoder.block.*.layer.0.SelfAttention.k.weight Q H\n\
    encoder.block.*.layer.0.SelfAttention.v.weight Q H\nencoder.block.*.layer.0.SelfAttention.o.weight H Q\n\
    encoder.block.*.layer.0.layer_norm.weight H\nencoder.block.*.layer.1.DenseReluDense.wi.weight I H if feed_forward_proj!gated\n\
    encoder.block.*.layer.1.DenseReluDense.wi_0.weight I H if feed_forward_proj^gated\n\
    encoder.block.*.layer.1.DenseReluDense.wi_1.weight I H if feed_forward_proj^gated\n\
    encoder.block.*.layer.1.DenseReluDense.wo.weight H I\nencoder.block.*.layer.1.layer_norm.weight H";

const DECODER: &str = "decoder.final_layer_norm.weight H\n\
    decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight B N\n\
    ?decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight B N\n\
    decoder.block.*.layer.0.SelfAttention.q.weight Q H\ndecoder.block.*.layer.0.SelfAttention.k.weight Q H\n\
    decoder.block.*.layer.0.SelfAttention.v.weight Q H\ndecoder.block.*.layer.0.SelfAttention.o.weight H Q\n\
    decoder.block.*.layer.0.layer_norm.weight H\n\
    decoder.block.*.layer.1.EncDecAttention.q.weight Q H\ndecoder.block.*.layer.1.EncDecAttention.k.weight Q H\n\
    decoder.block.*.layer.1.EncDecAttention.v.weight Q H\ndecoder.block.*.layer.1.EncDecAttention.o.weight H Q\n\
    decoder.block.*.layer.1.layer_norm.weight H\ndecoder.block.*.layer.2.DenseReluDense.wi.weight I H if feed_forward_proj!gated\n\
    decoder.block.*.layer.2.DenseReluDense.wi_0.weight I H if feed_forward_proj^gated\n\
    decoder.block.*.layer.2.DenseReluDense.wi_1.weight I H if feed_forward_proj^gated\n\
    decoder.block.*.layer.2.DenseReluDense.wo.weight H I\ndecoder.block.*.layer.2.layer_norm.weight H";
