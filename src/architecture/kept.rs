//! Tensors that a model needs in the dtype they are stored in.

use serde_json::Value;

use super::config::TEXT_PARTS;

/// Parameters that models keep in float32, whatever the dtype of the others: biases by which experts are chosen, decay
/// rates and steps of state-space models, and what attention adds to its sums.
const KEPT: [&str; 9] = [
    "e_score_correction_bias",
    "expert_bias",
    "A_log",
    "D",
    "dt_bias",
    "sinks",
    "time_decay",
    "time_first",
    "time_faaaa",
];

/// Families whose class keeps the rows of routers in float32.
const ROUTERS: [&str; 12] = [
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "deepseek_v4",
    "dots1",
    "ernie4_5_moe",
    "exaone_moe",
    "glm4_moe",
    "glm4_moe_lite",
    "glm4v_moe",
    "kimi_linear",
    "nemotron_h",
];

/// Whether a tensor of a model with this config keeps the dtype that it is stored in when the others are narrowed.
pub fn keeps_dtype(config: Option<&Value>, name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    if KEPT.contains(&last) {
        return true;
    }
    let router = name.ends_with(".gate.weight") || name.ends_with(".router.weight");
    router && types(config).any(|kind| ROUTERS.contains(&kind))
}

/// The types of a whole model and of its language model.
fn types(config: Option<&Value>) -> impl Iterator<Item = &str> {
    let parts = TEXT_PARTS.iter().filter_map(move |part| config?.get(part));
    config
        .into_iter()
        .chain(parts)
        .filter_map(|part| part.get("model_type")?.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_sensitive_keeps_its_dtype() {
        let glm = json!({"model_type": "glm4_moe"});
        let mixtral = json!({"model_type": "mixtral"});
        for (config, name, kept) in [
            (
                &glm,
                "model.layers.3.mlp.gate.e_score_correction_bias",
                true,
            ),
            (&mixtral, "backbone.layers.0.mixer.A_log", true),
            (&mixtral, "backbone.layers.0.mixer.D", true),
            (&glm, "model.layers.3.mlp.gate.weight", true),
            (&mixtral, "model.layers.3.mlp.gate.weight", false),
            (&glm, "model.layers.3.mlp.experts.0.gate_proj.weight", false),
            (&mixtral, "model.layers.3.mlp.D.weight", false),
        ] {
            assert_eq!(keeps_dtype(Some(config), name), kept, "{name}");
        }
        assert!(!keeps_dtype(None, "mlp.gate.weight"));
        let nested = json!({"model_type": "x", "text_config": {"model_type": "deepseek_v3"}});
        assert!(keeps_dtype(Some(&nested), "layers.0.mlp.gate.weight"));
    }
}
