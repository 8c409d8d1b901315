//! The table as a whole: every entry is complete, and what others look up in it is there.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;

#[test]
fn every_type_is_of_one_family() {
    let mut seen = BTreeSet::new();
    for family in Family::all() {
        assert!(!family.class.is_empty() && !family.bodies.is_empty());
        for kind in family.types {
            assert!(seen.insert(kind), "{kind} stands twice");
            assert_eq!(Family::named(kind).unwrap().name(), family.name());
        }
        let decodes = family.bodies.iter().any(|body| body.is_decoder);
        assert_eq!(decodes, family.decoder.is_some(), "{}", family.name());
    }
    assert!(Family::named("unheard_of").is_none());
}

/// A mixture that can be written is one that `check` knows: its tensors follow from the same entry.
#[test]
fn every_target_has_a_table_and_dense_families_that_it_holds() {
    let targets: Vec<&Family> = Family::all()
        .filter(|family| family.written().is_some())
        .collect();
    assert_eq!(targets.len(), 10);
    for family in targets {
        let (target, mixture) = (family.written().unwrap(), family.mixture().unwrap());
        let fixed: Value = serde_json::from_str(target.fixed).unwrap();
        assert!(fixed.is_object(), "{}", family.name());
        assert!(!target.holds.is_empty(), "{}", family.name());
        for held in target.holds {
            let held = Family::named(held).unwrap();
            assert!(
                held.decoder.is_some() && held.mixture().is_none(),
                "{}",
                held.name()
            );
            assert!(held.gives_experts());
        }
        for names in [mixture.names(false), mixture.names(true)] {
            assert!(is_router(&format!("model.layers.0.{}", names.router)));
        }
        let config = json!({"num_hidden_layers": 2});
        let [body] = &Expected::new(family, &config, || [].into_iter())[..] else {
            panic!("{} has one body", family.name());
        };
        let of = |role: Role| body.rules.iter().filter(|rule| rule.role == role).count();
        assert_eq!(of(Role::Router), 1, "{}", family.name());
        assert!(of(Role::Expert) >= 2, "{}", family.name());
        assert_eq!(body.is_sparse(1), Some(true), "{}", family.name());
    }
}

/// A letter that nobody knows would be any size.
#[test]
fn every_size_of_every_line_is_known() {
    let config = json!({
        "num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "vocab_size": 5,
        "num_layers": 2, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_heads": 2, "relative_attention_num_buckets": 3,
        "max_position_embeddings": 9, "head_dim": 4, "q_lora_rank": 3, "kv_lora_rank": 3, "qk_rope_head_dim": 2,
        "qk_nope_head_dim": 2, "v_head_dim": 2, "moe_intermediate_size": 6, "num_experts": 4, "num_local_experts": 4,
        "n_routed_experts": 4, "moe_num_experts": 4, "n_shared_experts": 1, "moe_num_shared_experts": 1,
        "shared_expert_intermediate_size": 7, "shared_intermediate_size": 7,
        "text_config": {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "vocab_size": 5},
        "vision_config": {"hidden_size": 8, "intermediate_size": 12},
    });
    // Of what a config says nothing: types of tokens, patches.
    let open = [
        "token_type_embeddings",
        "patch_embedding",
        "position_embedding.weight",
    ];
    for family in Family::all() {
        for body in Expected::new(family, &config, || [].into_iter()) {
            assert!(!body.rules.is_empty(), "{}", family.name());
            for rule in &body.rules {
                let known = rule.shape.iter().all(|size| size.size.is_some());
                let open = open.iter().any(|part| rule.name.contains(part));
                assert!(
                    known || open,
                    "{}: {} {:?}",
                    family.name(),
                    rule.name,
                    rule.shape
                );
                assert!(!rule.shape.is_empty(), "{}: {}", family.name(), rule.name);
                let odd = rule.name.contains([' ', '?', '!', '^', '=']);
                assert!(!odd, "{}: {}", family.name(), rule.name);
            }
        }
    }
}

fn sparse(model_type: &str, config: Value) -> Vec<usize> {
    let family = Family::named(model_type).unwrap();
    let bodies = Expected::new(family, &config, || [].into_iter());
    (0..8)
        .filter(|layer| bodies[0].is_sparse(*layer) == Some(true))
        .collect()
}

#[test]
fn which_layers_have_experts_is_read_as_the_classes_read_it() {
    let none: [usize; 0] = [];
    assert_eq!(sparse("mixtral", json!({})), [0, 1, 2, 3, 4, 5, 6, 7]);
    let steps = json!({"decoder_sparse_step": 2, "mlp_only_layers": [3]});
    assert_eq!(sparse("qwen3_moe", steps), [1, 5, 7]);
    assert_eq!(sparse("qwen2_moe", json!({"num_experts": 0})), none);
    assert_eq!(
        sparse("qwen2_moe", json!({"mlp_only_layers": "all"})),
        none,
        "not understood"
    );
    assert_eq!(sparse("glm4_moe", json!({})), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(sparse("dots1", json!({})), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(sparse("deepseek_v3", json!({})), [3, 4, 5, 6, 7]);
    let every_other = json!({"first_k_dense_replace": 1, "moe_layer_freq": 2});
    assert_eq!(sparse("deepseek_v2", every_other), [2, 4, 6]);
    let run = json!({"moe_layer_start_index": 2, "moe_layer_end_index": 5});
    assert_eq!(sparse("ernie4_5_moe", run), [2, 3, 4, 5]);
    let to_the_end = json!({"moe_layer_end_index": -1, "moe_layer_interval": 2});
    assert_eq!(sparse("ernie4_5_moe", to_the_end), [1, 3, 5, 7]);
    assert_eq!(sparse("llama", json!({})), none);
}

#[test]
fn experts_are_looked_for_by_the_names_that_a_checkpoint_uses() {
    let rules = |names: &[&'static str]| -> Vec<String> {
        let family = Family::named("mixtral").unwrap();
        let config = json!({});
        let bodies = Expected::new(family, &config, || names.iter().copied());
        let rules = bodies[0]
            .rules
            .iter()
            .filter(|rule| rule.layers == Layers::Sparse);
        rules.map(|rule| rule.name.clone()).collect()
    };
    let each = rules(&["model.norm.weight"]);
    assert_eq!(each.len(), 4);
    assert_eq!(each[0], "model.layers.*.block_sparse_moe.gate.weight");
    assert_eq!(
        each[1],
        "model.layers.*.block_sparse_moe.experts.#.w1.weight"
    );
    for name in [
        "model.layers.1.mlp.experts.down_proj",
        "model.layers.0.mlp.gate.weight",
    ] {
        let held = rules(&[name]);
        assert_eq!(held.len(), 3, "{name}");
        assert_eq!(held[0], "model.layers.*.mlp.gate.weight");
        assert_eq!(held[1], "model.layers.*.mlp.experts.gate_up_proj");
    }
}

#[test]
fn conditions_of_lines_are_read() {
    let needed = |config: Value, end: &str| {
        let family = Family::named(config["model_type"].as_str().unwrap()).unwrap();
        let bodies = Expected::new(family, &config, || [].into_iter());
        let rule = bodies[0].rules.iter().find(|rule| rule.name.ends_with(end));
        rule.unwrap_or_else(|| panic!("no {end}")).presence
    };
    let t5 = |kind: &str| json!({"model_type": "t5", "feed_forward_proj": kind});
    assert_eq!(needed(t5("gated-gelu"), "wi_0.weight"), Presence::Promised);
    assert_eq!(needed(t5("gated-gelu"), "wi.weight"), Presence::Optional);
    assert_eq!(needed(t5("relu"), "wi.weight"), Presence::Promised);
    let latent = |rank: Value| json!({"model_type": "deepseek_v3", "q_lora_rank": rank});
    assert_eq!(
        needed(latent(json!(3)), "q_b_proj.weight"),
        Presence::Promised
    );
    assert_eq!(
        needed(latent(json!(3)), "q_proj.weight"),
        Presence::Optional
    );
    assert_eq!(
        needed(latent(Value::Null), "q_proj.weight"),
        Presence::Promised
    );
    let llama = |bias: bool| json!({"model_type": "llama", "attention_bias": bias});
    assert_eq!(needed(llama(true), "o_proj.bias"), Presence::Promised);
    assert_eq!(needed(llama(false), "o_proj.bias"), Presence::Optional);
    assert_eq!(
        needed(json!({"model_type": "qwen2"}), "q_proj.bias"),
        Presence::Always
    );
}
