//! The parameters of experts.

use super::container::Value;
use super::parameters::{Writer, refusal};
use architecture::{Decoder, Mixture, RoutingRule, Shared, SharedWidth, Sparse};
use errors::Refusal;

/// The number by which llama.cpp knows experts that are weighed each by itself.
const SIGMOID: u32 = 2;

/// Sets what llama.cpp reads of a decoder's experts.
pub(super) fn experts(
    writer: &mut Writer<'_>,
    decoder: &Decoder,
    layers: usize,
) -> Result<(), Refusal> {
    let Some(mixture) = &decoder.mixture else {
        return Ok(());
    };
    let counts = &mixture.counts;
    let fields = writer.fields;
    let experts = match fields.same_size(counts.experts).map_err(refusal)? {
        Some(experts) => experts,
        None => writer.required(counts.experts.first().copied().unwrap_or_default())?,
    };
    writer.size("expert_count", experts)?;
    let used = writer.required(counts.per_token)?;
    writer.size("expert_used_count", used)?;
    let width = writer.required(counts.width)?;
    if counts.width == "moe_intermediate_size" {
        writer.size("expert_feed_forward_length", width)?;
    }
    if let RoutingRule::Sigmoid(normed) = mixture.routing {
        writer.set("expert_gating_func", Value::U32(SIGMOID));
        let scale = fields.positive("routed_scaling_factor").map_err(refusal)?;
        writer.number("expert_weights_scale", scale.unwrap_or(1.0));
        let normed = fields.flag("norm_topk_prob", normed).map_err(refusal)?;
        writer.set("expert_weights_norm", Value::Bool(normed));
        for (field, name) in [
            ("n_group", "expert_group_count"),
            ("topk_group", "expert_group_used_count"),
        ] {
            let count = fields.size(field).map_err(refusal)?;
            writer.size(name, count.unwrap_or(1))?;
        }
    }
    sparse_layers(writer, mixture, layers)?;
    match &mixture.shared {
        Some(shared) => shared_experts(writer, shared, width),
        None => Ok(()),
    }
}

/// llama.cpp knows layers without experts only before the first that has some.
fn sparse_layers(writer: &mut Writer<'_>, mixture: &Mixture, layers: usize) -> Result<(), Refusal> {
    let sparse = mixture.sparse.layers(&writer.fields).map_err(refusal)?;
    let first = (0..layers).find(|&layer| sparse.has(layer));
    let first = first.unwrap_or(layers);
    let may_lead = match mixture.sparse {
        Sparse::All | Sparse::MlpOnlyLayers => first == 0,
        Sparse::FirstDense(_) | Sparse::StartAndEnd => true,
    };
    if let Some(dense) = (first..layers).find(|&layer| !sparse.has(layer)) {
        let message = format!(
            "config.json: layer {dense} has no experts and layer {first} has; llama.cpp knows none behind"
        );
        return Err(Refusal::new(message));
    }
    if !may_lead {
        let family = writer.dialect.family;
        return Err(Refusal::new(format!(
            "config.json: layer 0 has no experts; in llama.cpp all layers of a {family} have"
        )));
    }
    match mixture.sparse {
        Sparse::All | Sparse::MlpOnlyLayers => {}
        Sparse::FirstDense(_) => writer.size("leading_dense_block_count", first)?,
        Sparse::StartAndEnd => {
            writer.size("leading_dense_block_count", first)?;
            writer.size("interleave_moe_layer_step", 1)?;
        }
    }
    Ok(())
}

fn shared_experts(writer: &mut Writer<'_>, shared: &Shared, width: usize) -> Result<(), Refusal> {
    let fields = writer.fields;
    let field = match shared.width {
        SharedWidth::Neurons(field) | SharedWidth::Experts(field) => field,
        SharedWidth::Fixed => {
            writer.size("expert_feed_forward_length", width)?;
            writer.size("expert_shared_feed_forward_length", width)?;
            return writer.size("expert_shared_count", 1);
        }
    };
    let found = fields.size_or_zero(field).map_err(refusal)?;
    if found == Some(0) && writer.dialect.needs_shared {
        let expected = "a shared expert, without which llama.cpp does not load this family";
        return Err(refusal(fields.wrong(field, expected)));
    }
    match (shared.width, found) {
        (SharedWidth::Neurons(_), Some(neurons)) => {
            writer.size("expert_shared_feed_forward_length", neurons)?;
        }
        (SharedWidth::Experts(_), Some(count)) => {
            writer.size("expert_shared_count", count)?;
            if writer.dialect.shared_width && count > 0 {
                let neurons = count.checked_mul(width).ok_or("too many neurons")?;
                writer.size("expert_shared_feed_forward_length", neurons)?;
            }
        }
        _ => {}
    }
    Ok(())
}
