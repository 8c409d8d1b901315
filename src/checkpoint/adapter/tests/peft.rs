//! What PEFT writes beside factors of modules: experts, rows for tokens, embeddings with new tokens, pickles.

use super::*;

/// A tensor of a test: its name, shape and values.
type Tensor = (String, Vec<usize>, Vec<f32>);

/// Small whole numbers by name: sums of their products are exact.
fn tensor(name: &str, shape: &[usize]) -> Tensor {
    let mut state = name.bytes().fold(7u32, |state, byte| {
        state.wrapping_mul(31).wrapping_add(u32::from(byte))
    });
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as f32 % 7.0 - 3.0
    };
    let values = (0..shape.iter().product()).map(|_| next()).collect();
    (name.to_owned(), shape.to_vec(), values)
}

fn bytes(tensors: &[Tensor]) -> Vec<u8> {
    let tensors: Vec<(&str, &[usize], &[f32])> = tensors
        .iter()
        .map(|(name, shape, values)| (name.as_str(), shape.as_slice(), values.as_slice()))
        .collect();
    file(&tensors)
}

/// A model, its config, and an adapter.
fn bench(model: &[Tensor], config: &Value, adapter: &[Tensor], options: &Value) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| write(&folder.path().join(name), bytes);
    put("model/model.safetensors", &bytes(model));
    put("model/config.json", config.to_string().as_bytes());
    put("adapter/adapter_model.safetensors", &bytes(adapter));
    put(
        "adapter/adapter_config.json",
        options.to_string().as_bytes(),
    );
    folder
}

const EXPERTS: usize = 3;
const HIDDEN: usize = 4;
const WIDTH: usize = 5;
const RANK: usize = 2;

/// What an expert's matrix and its update are, before any layout: `W + 2 B A`.
struct Part {
    shape: [usize; 2],
    base: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Part {
    fn new(expert: usize, name: &str) -> Part {
        let shape = match name {
            "down" => [HIDDEN, WIDTH],
            _ => [WIDTH, HIDDEN],
        };
        let made = |what: &str, shape: &[usize]| tensor(&format!("{what}{expert}{name}"), shape).2;
        // Gate and up share the factor `A` where they are fused.
        let a = match name {
            "up" => tensor(&format!("a{expert}gate"), &[RANK, shape[1]]).2,
            _ => made("a", &[RANK, shape[1]]),
        };
        Part {
            base: made("w", &shape),
            b: made("b", &[shape[0], RANK]),
            shape,
            a,
        }
    }

    fn adapted(&self) -> Vec<f64> {
        let [rows, columns] = self.shape;
        let at = |place: usize| {
            let (row, column) = (place / columns, place % columns);
            let product = |rank: usize| self.b[row * RANK + rank] * self.a[rank * columns + column];
            f64::from(self.base[place] + 2.0 * (0..RANK).map(product).sum::<f32>())
        };
        (0..rows * columns).map(at).collect()
    }
}

fn parts(name: &str) -> Vec<Part> {
    (0..EXPERTS).map(|expert| Part::new(expert, name)).collect()
}

/// Gate above up.
fn gate_up() -> Vec<Part> {
    let above = |(gate, up): (Part, Part)| Part {
        shape: [2 * WIDTH, HIDDEN],
        base: [gate.base, up.base].concat(),
        b: [gate.b, up.b].concat(),
        a: gate.a,
    };
    parts("gate")
        .into_iter()
        .zip(parts("up"))
        .map(above)
        .collect()
}

/// The model with each expert by itself, under the names of a family.
fn each(prefix: &str, names: [&str; 3]) -> Vec<Tensor> {
    let mut all = vec![tensor("model.layers.0.self_attn.q_proj.weight", &[4, 4])];
    for (name, ending) in ["gate", "up", "down"].iter().zip(names) {
        for (expert, part) in parts(name).into_iter().enumerate() {
            let name = format!("model.layers.0.{prefix}{expert}.{ending}.weight");
            all.push((name, part.shape.to_vec(), part.base));
        }
    }
    all
}

/// The model with fused experts.
fn fused() -> Vec<Tensor> {
    let stack = |name: &str, parts: Vec<Part>| {
        let shape = [&[EXPERTS], &parts[0].shape[..]].concat();
        let values = parts.iter().flat_map(|part| part.base.clone()).collect();
        (format!("model.layers.0.mlp.experts.{name}"), shape, values)
    };
    vec![
        tensor("model.layers.0.self_attn.q_proj.weight", &[4, 4]),
        stack("gate_up_proj", gate_up()),
        stack("down_proj", parts("down")),
    ]
}

/// The adapter of each expert by itself.
fn adapter_of_each(prefix: &str, names: [&str; 3]) -> Vec<Tensor> {
    let mut all = Vec::new();
    for (name, ending) in ["gate", "up", "down"].iter().zip(names) {
        for (expert, part) in parts(name).into_iter().enumerate() {
            let key = format!("base_model.model.model.layers.0.{prefix}{expert}.{ending}");
            let [out, inputs] = part.shape;
            all.push((format!("{key}.lora_A.weight"), vec![RANK, inputs], part.a));
            all.push((format!("{key}.lora_B.weight"), vec![out, RANK], part.b));
        }
    }
    all
}

/// The adapter of the fused parameters: `A` by experts, `B` by ranks. Before 0.19 PEFT took rows for inputs.
fn adapter_of_fused(old: bool) -> Vec<Tensor> {
    let mut all = Vec::new();
    for (key, parts) in [
        ("experts.base_layer", gate_up()),
        ("experts", parts("down")),
    ] {
        let [out, inputs] = parts[0].shape;
        let (mut a, mut b) = (Vec::new(), Vec::new());
        let (of_a, of_b) = if old { (out, inputs) } else { (inputs, out) };
        for part in &parts {
            for rank in 0..RANK {
                let column = |row: usize| part.b[row * RANK + rank];
                match old {
                    true => a.extend((0..out).map(column)),
                    false => a.extend(&part.a[rank * inputs..(rank + 1) * inputs]),
                }
            }
        }
        for place in 0..of_b {
            for rank in 0..RANK {
                b.extend(parts.iter().map(|part| match old {
                    true => part.a[rank * inputs + place],
                    false => part.b[place * RANK + rank],
                }));
            }
        }
        let key = format!("base_model.model.model.layers.0.mlp.{key}");
        all.push((
            format!("{key}.lora_A.weight"),
            vec![EXPERTS * RANK, of_a],
            a,
        ));
        all.push((
            format!("{key}.lora_B.weight"),
            vec![of_b, EXPERTS * RANK],
            b,
        ));
    }
    all
}

fn options(version: &str) -> Value {
    json!({
        "peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "peft_version": version,
        "target_parameters": ["mlp.experts.down_proj", "gate_up_proj"],
    })
}

const HUB: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];
const MIXTRAL: [&str; 3] = ["w1", "w3", "w2"];

#[test]
fn experts_are_adapted_in_either_layout_by_adapters_of_either() {
    let wanted: Vec<(&str, Vec<Part>)> = ["gate", "up", "down"]
        .map(|name| (name, parts(name)))
        .into();
    let qwen = json!({"model_type": "qwen3_moe"});
    let mixtral = json!({"model_type": "mixtral"});
    let plain = json!({"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK});
    let (of_mixtral, of_qwen) = ("block_sparse_moe.experts.", "mlp.experts.");
    let of_each = [
        (&qwen, of_qwen, HUB),
        (&json!({}), of_qwen, HUB),
        (&mixtral, of_mixtral, MIXTRAL),
    ];
    let adapters = |prefix, names| {
        [
            (adapter_of_each(prefix, names), plain.clone()),
            (adapter_of_fused(false), options("0.21.2")),
            (adapter_of_fused(true), options("0.18.0")),
        ]
    };
    for (config, prefix, names) in of_each {
        for (adapter, options) in adapters(prefix, names) {
            let folder = bench(&each(prefix, names), config, &adapter, &options);
            let model = open(folder.path()).unwrap();
            for ((_, parts), ending) in wanted.iter().zip(names) {
                for (expert, part) in parts.iter().enumerate() {
                    let name = format!("model.layers.0.{prefix}{expert}.{ending}.weight");
                    assert_eq!(
                        values(&model, &name),
                        part.adapted(),
                        "{config} {options} {name}"
                    );
                }
            }
            let folder = bench(&fused(), config, &adapter, &options);
            let model = open(folder.path()).unwrap();
            for (name, parts) in [("gate_up_proj", gate_up()), ("down_proj", parts("down"))] {
                let name = format!("model.layers.0.mlp.experts.{name}");
                let wanted: Vec<f64> = parts.iter().flat_map(Part::adapted).collect();
                assert_eq!(values(&model, &name), wanted, "{config} {options} {name}");
            }
            assert_eq!(model.only_adapter().unwrap().changed().len(), 2);
        }
    }
}

#[test]
fn factors_that_do_not_fit_the_experts_are_refused() {
    let config = json!({"model_type": "qwen3_moe"});
    let message = |model: &[Tensor], adapter: &[Tensor], options: &Value| {
        open(bench(model, &config, adapter, options).path()).unwrap_err()
    };
    let adapter = adapter_of_fused(false);
    let fewer: Vec<Tensor> = each("mlp.experts.", HUB)
        .into_iter()
        .filter(|(name, ..)| !name.contains("experts.2."))
        .collect();
    let wrong_rank = with(options("0.21.2"), json!({"r": 3}));
    let other = with(
        options("0.21.2"),
        json!({"target_parameters": ["experts.other"]}),
    );
    for message in [
        message(&fewer, &adapter, &options("0.21.2")),
        message(&fused(), &adapter, &wrong_rank),
    ] {
        assert!(message.contains("that fit one of"), "{message}");
        assert!(message.contains("mlp.experts."), "{message}");
    }
    let none = message(&fused(), &adapter, &other);
    assert!(
        none.contains("the model has none that `target_parameters` names"),
        "{none}"
    );
    // The third expert of a model that has two.
    let two = fused();
    let two: Vec<Tensor> = two
        .into_iter()
        .map(|(name, mut shape, values)| match shape.len() {
            3 => {
                shape[0] = 2;
                let count = shape.iter().product();
                (name, shape, values[..count].to_vec())
            }
            _ => (name, shape, values),
        })
        .collect();
    let plain = json!({"peft_type": "LORA", "r": RANK, "lora_alpha": 2});
    let message = message(&two, &adapter_of_each("mlp.experts.", HUB), &plain);
    assert!(
        message.contains("that fits `model.layers.0.mlp.experts."),
        "{message}"
    );
}

const EMBED: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

fn language_model(tied: bool) -> (Vec<Tensor>, Value) {
    let mut model = vec![
        tensor(EMBED, &[4, 2]),
        tensor("model.layers.0.q.weight", &[2, 2]),
    ];
    if !tied {
        model.push(tensor(HEAD, &[4, 2]));
    }
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 4,
        "tie_word_embeddings": tied,
    });
    (model, config)
}

fn key(name: &str, shape: &[usize]) -> Tensor {
    tensor(&format!("base_model.model.{name}"), shape)
}

fn as_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

#[test]
fn embeddings_with_new_tokens_come_from_the_adapter_with_its_tokenizer() {
    let (model, config) = language_model(false);
    let mut embed = key("model.embed_tokens.modules_to_save.weight", &[6, 2]);
    let head = key("lm_head.weight", &[6, 2]);
    let twin = (
        "base_model.model.model.embed_tokens.weight".into(),
        embed.1.clone(),
        embed.2.clone(),
    );
    let original = key("model.embed_tokens.original_module.weight", &[4, 2]);
    let adapter = [embed.clone(), twin, original, head.clone()];
    let folder = bench(&model, &config, &adapter, &lora());
    let put = |name: &str, text: &str| write(&folder.path().join(name), text.as_bytes());
    put("model/tokenizer.json", "{}");
    put("model/generation_config.json", "{}");
    put("adapter/tokenizer.json", "{ }");
    put("adapter/README.md", "not of the model");
    let adapted = open(folder.path()).unwrap();
    for (name, tensor) in [(EMBED, &embed), (HEAD, &head)] {
        assert_eq!(values(&adapted, name), as_f64(&tensor.2));
        let entry = &adapted.tensors()[adapted.find(name).unwrap()];
        assert_eq!((entry.shape.as_slice(), entry.len), (&[6, 2][..], 48));
    }
    assert_eq!(adapted.config().unwrap().vocab_size(), Some(6));
    let files: Vec<_> = (adapted.sidecars().unwrap().into_iter())
        .map(|file| {
            (
                file.name,
                file.path.parent().unwrap().file_name().unwrap().to_owned(),
            )
        })
        .collect();
    assert_eq!(
        files,
        [
            ("generation_config.json".into(), "model".into()),
            ("tokenizer.json".into(), "adapter".into())
        ]
    );
    assert!(
        adapted
            .notes()
            .join("\n")
            .contains("6 rows, where the model has 4")
    );

    // The twins must be equal.
    embed.2[3] += 1.0;
    let adapter = [embed, adapter[1].clone(), head];
    let message = open(bench(&model, &config, &adapter, &lora()).path()).unwrap_err();
    assert!(message.contains("are both that part"), "{message}");
    // What a saved module replaces means nothing without it.
    let adapter = [key("model.embed_tokens.original_module.weight", &[4, 2])];
    let message = open(bench(&model, &config, &adapter, &lora()).path()).unwrap_err();
    assert!(
        message.contains("the one that replaces it is not there"),
        "{message}"
    );
}

#[test]
fn a_tied_model_with_new_tokens_stays_tied_where_the_adapter_has_one_embedding() {
    let (model, config) = language_model(true);
    let embed = key("model.embed_tokens.weight", &[6, 2]);
    let copy = (
        "base_model.model.lm_head.weight".into(),
        embed.1.clone(),
        embed.2.clone(),
    );
    for adapter in [vec![embed.clone()], vec![embed.clone(), copy]] {
        let adapted = open(bench(&model, &config, &adapter, &lora()).path()).unwrap();
        assert_eq!(values(&adapted, EMBED), as_f64(&embed.2));
        assert_eq!(adapted.find(HEAD), None);
        let config = adapted.config().unwrap();
        assert_eq!(
            (config.vocab_size(), config.tie_word_embeddings()),
            (Some(6), Some(true))
        );
    }
    // A head of its own.
    let head = key("lm_head.weight", &[6, 2]);
    let adapted =
        open(bench(&model, &config, &[embed.clone(), head.clone()], &lora()).path()).unwrap();
    assert_eq!(values(&adapted, HEAD), as_f64(&head.2));
    assert_eq!(adapted.config().unwrap().tie_word_embeddings(), Some(false));
    // Factors alone have no rows of new tokens for the head.
    let factors = [
        embed,
        key("lm_head.lora_A.weight", &[2, 2]),
        key("lm_head.lora_B.weight", &[6, 2]),
    ];
    let message = open(bench(&model, &config, &factors, &lora()).path()).unwrap_err();
    assert!(
        message.contains("rows of the new tokens for `lm_head.weight`"),
        "{message}"
    );
}

#[test]
fn rows_for_tokens_replace_those_of_the_embedding() {
    let rows = |module: &str, count| {
        key(
            &format!("{module}.token_adapter.trainable_tokens_delta"),
            &[count, 2],
        )
    };
    let indices = |value: Value| with(lora(), json!({"trainable_token_indices": value}));
    let (model, config) = language_model(false);
    let new = rows("model.embed_tokens", 2);
    let folder = bench(
        &model,
        &config,
        std::slice::from_ref(&new),
        &indices(json!([2, 0])),
    );
    let adapted = open(folder.path()).unwrap();
    let (old, new) = (&model[0].2, &new.2);
    let wanted = [
        new[2], new[3], old[2], old[3], new[0], new[1], old[6], old[7],
    ];
    assert_eq!(values(&adapted, EMBED), as_f64(&wanted));
    assert_eq!(values(&adapted, HEAD), as_f64(&model[2].2));

    // Tied, and with new tokens.
    let (model, config) = language_model(true);
    let new = rows("model.embed_tokens", 3);
    let folder = bench(
        &model,
        &config,
        std::slice::from_ref(&new),
        &indices(json!({"embed_tokens": [5, 1, 4]})),
    );
    let adapted = open(folder.path()).unwrap();
    let (old, new) = (&model[0].2, &new.2);
    let wanted = [&old[..2], &new[2..4], &old[4..], &new[4..], &new[..2]].concat();
    assert_eq!(values(&adapted, EMBED), as_f64(&wanted));
    let config_of = adapted.config().unwrap();
    assert_eq!(
        (config_of.vocab_size(), config_of.tie_word_embeddings()),
        (Some(6), Some(true))
    );

    // A gap, other numbers of rows, and a head that would lack them.
    let gap = rows("model.embed_tokens", 1);
    let message = |adapter: &Tensor, value: Value, tied| {
        let (model, config) = language_model(tied);
        let adapter = std::slice::from_ref(adapter);
        open(bench(&model, &config, adapter, &indices(value)).path()).unwrap_err()
    };
    assert!(message(&gap, json!([5]), true).contains("rows for tokens below 4"));
    assert!(message(&gap, json!([1, 2]), true).contains("[2, 2], a row for each token"));
    assert!(message(&gap, json!([4]), false).contains("for `lm_head.weight` too"));
}

#[test]
fn a_pickled_adapter_is_read_in_place() {
    let model = [tensor(HEAD, &[3, 2])];
    let folder = bench(&model, &json!({}), &[], &lora());
    std::fs::remove_file(folder.path().join("adapter/adapter_model.safetensors")).unwrap();
    let head = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let pickle = crate::pickle::tests::saved("base_model.model.lm_head.weight", [3, 2], &head);
    write(&folder.path().join("adapter/adapter_model.bin"), &pickle);
    let adapted = open(folder.path()).unwrap();
    assert_eq!(values(&adapted, HEAD), as_f64(&head));
}

#[test]
fn adapters_add_up_by_their_weights_and_what_sets_values_does_not() {
    let up = "up.weight";
    let model = [tensor(up, &[6, 4]), tensor("up.bias", &[6])];
    let factors = [
        key("up.lora_A.weight", &[2, 4]),
        key("up.lora_B.weight", &[6, 2]),
    ];
    let folder = bench(&model, &json!({}), &factors, &lora());
    let other = |more: Value, extra: Option<Tensor>| {
        let tensors: Vec<Tensor> = factors.iter().cloned().chain(extra).collect();
        let put = |name: &str, bytes: &[u8]| write(&folder.path().join("other").join(name), bytes);
        put("adapter_model.safetensors", &bytes(&tensors));
        put(
            "adapter_config.json",
            with(lora(), more).to_string().as_bytes(),
        );
    };
    other(json!({}), None);
    let of = |name: &str| open_as(folder.path(), name);
    let base = values(&of("model").unwrap(), up);
    let whole = values(&of("model+adapter").unwrap(), up);
    let both = of("model+adapter@0.5+other@-2").unwrap();
    let wanted = base
        .iter()
        .zip(&whole)
        .map(|(base, whole)| base - 1.5 * (whole - base));
    assert_eq!(values(&both, up), wanted.collect::<Vec<f64>>());
    assert_ne!(base, whole);
    assert_eq!(
        (both.adapters().len(), both.only_adapter().is_none()),
        (2, true)
    );
    assert_eq!(values(&of("model+adapter@0").unwrap(), up), base);

    let refused = |name: &str, part: &str| {
        let message = of(name).unwrap_err();
        assert!(message.contains(part), "expected {part:?} in: {message}");
    };
    other(
        json!({"use_dora": true}),
        Some(key("up.lora_magnitude_vector", &[6])),
    );
    refused("model+other@0.5", "sets values and adds none");
    refused("model+adapter+other", "sets values that another adapter");
    refused(
        "model+other+adapter",
        "to which another adapter gives new lengths",
    );
    other(json!({}), Some(key("up.bias", &[6])));
    assert!(of("model+other").is_ok() && of("model+adapter+other").is_ok());
    refused("model+other@2", "up.bias` sets values and adds none");
    refused(
        "model+other+other",
        "up.bias` sets values that another adapter",
    );
}

/// LoHa and LoKr: `W + scale (first * second)`, with the scale by the config.
#[test]
fn loha_and_lokr_of_peft() {
    let q = "model.layers.0.q.weight";
    let model = [tensor(q, &[4, 4])];
    let part = |part: &str, shape: &[usize]| {
        tensor(&format!("base_model.model.model.layers.0.q.{part}"), shape)
    };
    let value = |tensor: &Tensor, at: usize| f64::from(tensor.2[at]);
    let loha = [
        part("hada_w1_a", &[4, 1]),
        part("hada_w1_b", &[1, 4]),
        part("hada_w2_a", &[4, 1]),
        part("hada_w2_b", &[1, 4]),
    ];
    let options = |kind: &str, r: usize| json!({"peft_type": kind, "r": r, "alpha": 3});
    let adapted = |adapter: &[Tensor], options: &Value| {
        let folder = bench(&model, &json!({"model_type": "llama"}), adapter, options);
        open(folder.path())
    };
    let expected: Vec<f64> = (0..16)
        .map(|at| {
            let (row, column) = (at / 4, at % 4);
            let of = |a: &Tensor, b: &Tensor| value(a, row) * value(b, column);
            value(&model[0], at) + 3.0 * of(&loha[0], &loha[1]) * of(&loha[2], &loha[3])
        })
        .collect();
    let of_loha = adapted(&loha, &options("LOHA", 1)).unwrap();
    assert_eq!(values(&of_loha, q), expected);
    let lokr = [part("lokr_w1", &[2, 2]), part("lokr_w2", &[2, 2])];
    let expected: Vec<f64> = (0..16)
        .map(|at| {
            let (row, column) = (at / 4, at % 4);
            let first = value(&lokr[0], row / 2 * 2 + column / 2);
            value(&model[0], at) + 1.5 * first * value(&lokr[1], row % 2 * 2 + column % 2)
        })
        .collect();
    let of_lokr = adapted(&lokr, &options("LOKR", 2)).unwrap();
    assert_eq!(values(&of_lokr, q), expected);
    let lora = [
        part("lora_A.weight", &[1, 4]),
        part("lora_B.weight", &[4, 1]),
    ];
    let gpt2 = [tensor("transformer.h.0.attn.c_proj.weight", &[4, 4])];
    let of_gpt2 = lokr.each_ref().map(|part| {
        let name = part
            .0
            .replace("model.layers.0.q", "transformer.h.0.attn.c_proj");
        (name, part.1.clone(), part.2.clone())
    });
    let folder = bench(
        &gpt2,
        &json!({"model_type": "gpt2"}),
        &of_gpt2,
        &options("LOKR", 2),
    );
    let deep = [part("lokr_w1", &[2, 2]), part("lokr_w2", &[2, 2, 1])];
    for (found, part) in [
        (
            adapted(&deep, &options("LOKR", 2)),
            "PEFT and LyCORIS make different updates",
        ),
        (
            adapted(&loha, &options("LOHA", 2)),
            "rank 2, as adapter_config.json gives",
        ),
        (
            adapted(&loha, &options("LOKR", 1)),
            "of a kind of adapter other than",
        ),
        (
            adapted(&lokr, &lora_options()),
            "of a kind of adapter other than",
        ),
        (adapted(&lora, &options("LOHA", 1)), "is of LoRA"),
        (
            adapted(&loha[..3], &options("LOHA", 1)),
            "without its hada_w2_b",
        ),
        (open(folder.path()), "is stored [in, out]"),
    ] {
        let message = found.unwrap_err();
        assert!(message.contains(part), "expected {part:?} in: {message}");
    }
}

fn lora_options() -> Value {
    json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1})
}
