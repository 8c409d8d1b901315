//! `weld check`: a good checkpoint passes, and each planted defect is found by its own name.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::fixtures::{Bench, Spec, floats, llama_config, noise, read_json};

/// A whole Llama of four layers: hidden 8, vocabulary 16.
fn whole() -> Vec<Spec> {
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![16, 8])];
    for layer in 0..4 {
        for (suffix, shape) in [
            ("input_layernorm", vec![8]),
            ("mlp.down_proj", vec![8, 12]),
            ("mlp.gate_proj", vec![12, 8]),
            ("mlp.up_proj", vec![12, 8]),
            ("post_attention_layernorm", vec![8]),
            ("self_attn.k_proj", vec![8, 8]),
            ("self_attn.o_proj", vec![8, 8]),
            ("self_attn.q_proj", vec![8, 8]),
            ("self_attn.v_proj", vec![8, 8]),
        ] {
            shapes.push((format!("model.layers.{layer}.{suffix}.weight"), shape));
        }
    }
    shapes.push(("model.norm.weight".into(), vec![8]));
    shapes.push(("lm_head.weight".into(), vec![16, 8]));
    (0..)
        .zip(shapes)
        .map(|(seed, (name, shape))| {
            let count = shape.iter().product();
            floats(&name, Dtype::F32, &shape, noise(seed, count))
        })
        .collect()
}

const FIRST: &str = "m/model-00001-of-00002.safetensors";
const SECOND: &str = "m/model-00002-of-00002.safetensors";
const INDEX: &str = "m/model.safetensors.index.json";
const CONFIG: &str = "m/config.json";

/// A good checkpoint of two shards, with a tokenizer.
fn good() -> Bench {
    let bench = Bench::new();
    bench.sharded("m", &llama_config(4), &whole());
    let vocab: serde_json::Map<String, Value> =
        (0..16).map(|id| (format!("t{id}"), json!(id))).collect();
    let tokenizer =
        json!({"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": []});
    bench.file("m/tokenizer.json", tokenizer.to_string());
    bench.file(
        "m/tokenizer_config.json",
        json!({"eos_token": "t2", "chat_template": "{{ messages }}"}).to_string(),
    );
    bench.file(
        "m/generation_config.json",
        json!({"eos_token_id": 2}).to_string(),
    );
    bench
}

fn check(bench: &Bench) -> (Option<i32>, Vec<(String, String)>) {
    let outcome = bench.weld(&["check", "m", "--format", "json"]);
    let report: Value = serde_json::from_str(&outcome.stdout).expect(&outcome.stderr);
    let findings = report["findings"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let ids = findings.map(|finding| (text(&finding["check"]), text(&finding["severity"])));
    (outcome.code, ids.collect())
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = read_json(path);
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Writes the header of a file anew around the same data.
fn edit_header(path: &Path, edit: impl FnOnce(&str) -> String) {
    let bytes = fs::read(path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = edit(std::str::from_utf8(&bytes[8..8 + len]).unwrap());
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(&bytes[8 + len..]);
    fs::write(path, out).unwrap();
}

/// Writes all tensors to one file.
fn one_file(bench: &Bench, config: &Value, specs: &[Spec]) {
    fs::remove_dir_all(bench.path("m")).unwrap();
    bench.model("m", config, specs);
}

type Plant = fn(&Bench);

fn config(bench: &Bench, field: &str, value: Value) {
    edit_json(&bench.path(CONFIG), |config| config[field] = value);
}

fn offsets(bench: &Bench, edit: fn(&mut [Value; 2])) {
    edit_header(&bench.path(FIRST), |header| {
        let mut header: Value = serde_json::from_str(header).unwrap();
        let entries = header.as_object_mut().unwrap();
        let (_, last) = entries
            .iter_mut()
            .filter(|(name, _)| *name != "__metadata__")
            .max_by_key(|(_, entry)| entry["data_offsets"][0].as_u64())
            .unwrap();
        let mut both = [0, 1].map(|at| last["data_offsets"][at].clone());
        edit(&mut both);
        last["data_offsets"] = json!(both);
        header.to_string()
    });
}

fn add(value: &mut Value, more: i64) {
    *value = json!(value.as_i64().unwrap() + more);
}

fn without(specs: Vec<Spec>, part: &str) -> Vec<Spec> {
    specs
        .into_iter()
        .filter(|spec| !spec.name.contains(part))
        .collect()
}

fn cut(path: &Path, by: usize) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() - by]).unwrap();
}

/// Every defect, and the id by which it must be found.
const DEFECTS: &[(&str, Plant)] = &[
    ("container.truncated", |b| cut(&b.path(SECOND), 10)),
    ("container.trailing-bytes", |b| {
        let mut bytes = fs::read(b.path(SECOND)).unwrap();
        bytes.extend([0; 8]);
        fs::write(b.path(SECOND), bytes).unwrap();
    }),
    ("container.overlap", |b| {
        offsets(b, |both| both.iter_mut().for_each(|end| add(end, -4)))
    }),
    ("container.hole", |b| {
        offsets(b, |both| both.iter_mut().for_each(|end| add(end, 4)))
    }),
    ("container.size-mismatch", |b| {
        offsets(b, |both| add(&mut both[1], -4))
    }),
    ("container.header", |b| {
        edit_header(&b.path(FIRST), |header| header.replacen('{', "[", 1))
    }),
    ("container.name", |b| {
        edit_header(&b.path(FIRST), |header| {
            header.replacen("model.layers.0.input", "\\u0007", 1)
        });
    }),
    ("container.duplicate-key", |b| {
        edit_header(&b.path(FIRST), |header| {
            header.replacen("layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj", 1)
        });
    }),
    ("container.pickle", |b| {
        one_file(b, &llama_config(4), &whole());
        fs::rename(b.path("m/model.safetensors"), b.path("m/pytorch_model.bin")).unwrap();
    }),
    ("container.not-a-file", |b| {
        fs::remove_file(b.path(SECOND)).unwrap();
        fs::create_dir(b.path(SECOND)).unwrap();
    }),
    ("container.no-tensors", |b| {
        one_file(b, &llama_config(4), &[])
    }),
    ("container.too-large", |b| {
        fs::File::create(b.path(INDEX))
            .unwrap()
            .set_len((256 << 20) + 1)
            .unwrap();
    }),
    ("container.incomplete-set", |b| {
        fs::remove_file(b.path(INDEX)).unwrap();
        fs::remove_file(b.path(SECOND)).unwrap();
    }),
    ("container.ambiguous", |b| {
        fs::remove_file(b.path(INDEX)).unwrap();
        fs::rename(b.path(SECOND), b.path("m/other.safetensors")).unwrap();
    }),
    ("index.malformed", |b| {
        fs::write(b.path(INDEX), "{").unwrap()
    }),
    ("index.missing-shard", |b| {
        fs::remove_file(b.path(SECOND)).unwrap()
    }),
    ("index.file-name", |b| {
        edit_json(&b.path(INDEX), |index| {
            index["weight_map"]["lm_head.weight"] = json!("../lm_head.safetensors");
        });
    }),
    ("index.not-in-shard", |b| {
        edit_json(&b.path(INDEX), |index| {
            index["weight_map"]["lm_head.weight"] = json!("model-00001-of-00002.safetensors");
        });
    }),
    ("index.unindexed-tensor", |b| {
        edit_json(&b.path(INDEX), |index| {
            index["weight_map"]
                .as_object_mut()
                .unwrap()
                .remove("lm_head.weight");
        });
    }),
    ("index.duplicate-tensor", |b| {
        b.tensors(SECOND, &whole());
    }),
    ("index.total-size", |b| {
        edit_json(&b.path(INDEX), |index| {
            index["metadata"]["total_size"] = json!(7)
        });
    }),
    ("index.orphan-file", |b| {
        b.tensors("m/model-00003-of-00003.safetensors", &whole());
    }),
    ("index.stale-single-file", |b| {
        b.tensors("m/model.safetensors", &whole());
    }),
    ("config.malformed", |b| {
        fs::write(b.path(CONFIG), "{").unwrap()
    }),
    ("config.missing", |b| {
        fs::remove_file(b.path(CONFIG)).unwrap()
    }),
    ("config.dtype", |b| {
        config(b, "torch_dtype", json!("float16"))
    }),
    ("config.quantization-left", |b| {
        config(b, "quantization_config", json!({"quant_method": "gptq"}));
    }),
    ("config.quantised", |b| {
        let mut specs = whole();
        let name = "model.layers.0.mlp.up_proj.qweight";
        specs.push(floats(name, Dtype::F32, &[2], [0.0, 1.0]));
        one_file(b, &llama_config(4), &specs);
    }),
    ("structure.missing-tensor", |b| {
        one_file(
            b,
            &llama_config(4),
            &without(whole(), "layers.1.mlp.up_proj"),
        );
    }),
    ("structure.shape", |b| {
        config(b, "intermediate_size", json!(13))
    }),
    ("structure.unexpected-tensor", |b| {
        let mut specs = whole();
        specs.push(floats(
            "model.layers.0.extra.weight",
            Dtype::F32,
            &[2],
            [0.0, 1.0],
        ));
        one_file(b, &llama_config(4), &specs);
    }),
    ("structure.uneven-layers", |b| {
        let mut config = llama_config(4);
        config["model_type"] = json!("unheard_of");
        one_file(b, &config, &without(whole(), "layers.1.mlp.up_proj"));
    }),
    ("structure.layer-count", |b| {
        config(b, "num_hidden_layers", json!(5))
    }),
    ("structure.expert-count", |b| {
        let mut config = llama_config(4);
        config["model_type"] = json!("mixtral");
        config["num_local_experts"] = json!(2);
        let mut specs = without(whole(), "mlp");
        for layer in 0..4 {
            let moe = format!("model.layers.{layer}.block_sparse_moe");
            let mut put = |name: &str, shape: [usize; 2]| {
                let values = noise(layer, shape.iter().product());
                specs.push(floats(
                    &format!("{moe}.{name}.weight"),
                    Dtype::F32,
                    &shape,
                    values,
                ));
            };
            put("gate", [2, 8]);
            put("experts.0.w1", [12, 8]);
            put("experts.0.w2", [8, 12]);
            put("experts.0.w3", [12, 8]);
        }
        one_file(b, &config, &specs);
    }),
    ("structure.vocab-size", |b| {
        config(b, "vocab_size", json!(17))
    }),
    ("structure.tied-head-differs", |b| {
        config(b, "tie_word_embeddings", json!(true))
    }),
    ("structure.missing-head", |b| {
        one_file(b, &llama_config(4), &without(whole(), "lm_head"))
    }),
    ("structure.mixed-dtypes", |b| {
        let mut specs = without(whole(), "layers.1.mlp.up_proj");
        let name = "model.layers.1.mlp.up_proj.weight";
        specs.push(floats(name, Dtype::BF16, &[12, 8], noise(1, 96)));
        one_file(b, &llama_config(4), &specs);
    }),
    ("tokenizer.malformed", |b| {
        fs::write(b.path("m/tokenizer.json"), "{").unwrap()
    }),
    ("tokenizer.chat-template", |b| {
        fs::write(b.path("m/chat_template.jinja"), "{% if %}").unwrap()
    }),
    ("tokenizer.id-without-row", |b| {
        edit_json(&b.path("m/tokenizer.json"), |file| {
            file["model"]["vocab"]["more"] = json!(16)
        });
    }),
    ("tokenizer.special-id", |b| {
        config(b, "bos_token_id", json!(16))
    }),
    ("tokenizer.ids-disagree", |b| {
        config(b, "eos_token_id", json!(3))
    }),
    ("safety.dangerous-pickle", |b| {
        b.file(
            "m/training_args.bin",
            b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.",
        );
    }),
    ("safety.pickle", |b| {
        b.file(
            "m/training_args.bin",
            b"\x80\x02ccollections\nOrderedDict\n)R.",
        );
    }),
    ("safety.unread-pickle", |b| {
        b.file(
            "m/sub/model.joblib",
            b"\x78\x9c\x4b\x04\x00\x00\x62\x00\x62",
        );
    }),
    ("safety.left-out", |b| {
        let deep = b.path("m").join("a/".repeat(9));
        fs::create_dir_all(deep).unwrap();
    }),
    ("safety.remote-code", |b| {
        config(b, "auto_map", json!({"AutoModel": "modeling_x.X"}))
    }),
    ("safety.link-outside", |b| {
        b.file("secret.json", "{}");
        std::os::unix::fs::symlink("../secret.json", b.path("m/special_tokens_map.json")).unwrap();
    }),
];

#[test]
fn a_good_checkpoint_passes_without_a_finding() {
    assert_eq!(check(&good()), (Some(0), Vec::new()));
}

#[test]
fn every_planted_defect_is_found() {
    let mut wrong = Vec::new();
    for (id, plant) in DEFECTS {
        let bench = good();
        plant(&bench);
        let (code, findings) = check(&bench);
        let found = findings.iter().any(|(found, _)| found == id);
        let fails = findings.iter().any(|(_, severity)| severity == "error");
        if !found || (code == Some(1)) != fails {
            wrong.push(format!("{id}: {code:?} {findings:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_check_has_a_planted_defect() {
    let planted: BTreeSet<&str> = DEFECTS.iter().map(|(id, _)| *id).collect();
    let groups = [
        "container",
        "index",
        "config",
        "structure",
        "tokenizer",
        "safety",
    ];
    for check in weldment::audit::all_checks().filter(|check| groups.contains(&check.group())) {
        assert!(planted.contains(check.id), "nothing plants {}", check.id);
    }
}

#[test]
fn every_broken_file_is_named_and_the_rest_is_looked_at() {
    let bench = good();
    cut(&bench.path(FIRST), 10);
    config(&bench, "vocab_size", json!(17));
    fs::write(bench.path("m/tokenizer.json"), "{").unwrap();
    let (code, findings) = check(&bench);
    assert_eq!(code, Some(1));
    for id in [
        "container.truncated",
        "structure.vocab-size",
        "tokenizer.malformed",
    ] {
        assert!(
            findings.iter().any(|(found, _)| found == id),
            "{id}: {findings:?}"
        );
    }
    // What the broken file may hold is not called missing.
    assert!(
        !findings
            .iter()
            .any(|(id, _)| id == "structure.missing-tensor"),
        "{findings:?}"
    );
}

#[test]
fn what_is_not_there_is_no_verdict() {
    let bench = Bench::new();
    assert_eq!(bench.weld(&["check", "nothing"]).code, Some(2));
    fs::create_dir(bench.path("empty")).unwrap();
    assert_eq!(bench.weld(&["check", "empty"]).code, Some(2));
}

#[test]
fn links_of_the_hubs_cache_are_no_finding() {
    let bench = Bench::new();
    let commit = "0123456789012345678901234567890123456789";
    let two_layers = without(without(whole(), "layers.2"), "layers.3");
    bench.hub_model("org/m", "main", commit, &two_layers);
    let outcome = bench.weld(&["check", "org/m", "--format", "json"]);
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let of_safety = |finding: &Value| finding["check"].as_str().unwrap().starts_with("safety.");
    assert!(!findings.iter().any(of_safety), "{findings:?}");
    assert_eq!(outcome.code, Some(0), "{findings:?}");
}

#[test]
fn pickles_in_subfolders_are_looked_at() {
    let bench = good();
    bench.file(
        "m/checkpoint-5/rng_state.pth",
        b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93)R.",
    );
    bench.file("m/openvino/openvino_model.bin", [0xee; 64]);
    bench.file("m/openvino/openvino_model.xml", "<net/>");
    std::os::unix::fs::symlink("checkpoint-5", bench.path("m/last")).unwrap();
    let outcome = bench.weld(&["check", "m", "--format", "json"]);
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let told: Vec<[&Value; 4]> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| ["check", "severity", "file", "found"].map(|key| &finding[key]))
        .collect();
    let expected = json!([
        [
            "safety.dangerous-pickle",
            "error",
            "checkpoint-5/rng_state.pth",
            "torch.os.system"
        ],
        [
            "safety.unread-pickle",
            "note",
            "openvino/openvino_model.bin",
            "it is no pickle, 0xee is no opcode, at byte 0"
        ],
    ]);
    assert_eq!(json!(told), expected);
}

#[test]
fn the_page_of_checks_is_up_to_date() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/checks.md");
    let written = fs::read_to_string(page).unwrap();
    assert!(
        written == weldment::audit::checks_as_markdown(),
        "write it with `weld check --list > docs/checks.md`"
    );
}

/// Any byte of any file may be another: there is a report or a message, and never a panic.
#[test]
fn damaged_files_never_end_in_a_panic() {
    let bench = good();
    bench.file(
        "m/pytorch_model.bin",
        b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.",
    );
    let names = [
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "pytorch_model.bin",
    ];
    let mut state = 1u64;
    let mut draw = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for round in 0..210 {
        let path = bench.path("m").join(names[round % names.len()]);
        let sound = fs::read(&path).unwrap();
        let mut bytes = sound.clone();
        match draw(4) {
            0 => bytes.truncate(draw(sound.len())),
            1 => bytes.extend_from_within(..draw(sound.len())),
            _ => {
                // Mostly in the beginning, where headers are.
                for _ in 0..=draw(4) {
                    let at = draw(sound.len().min(600));
                    bytes[at] = [0, b'9', b'"', b'-', b'[', 0xff, b'}', draw(256) as u8][draw(8)];
                }
            }
        }
        fs::write(&path, &bytes).unwrap();
        let outcome = bench.weld(&["check", "m", "--format", "json", "-q"]);
        let told = format!("{} {:?}: {}", path.display(), outcome.code, outcome.stderr);
        assert!(matches!(outcome.code, Some(0..=3)), "{told}");
        assert!(!outcome.stderr.contains("panicked"), "{told}");
        fs::write(&path, &sound).unwrap();
    }
}

/// Biases may be left out in all layers, not in one, and not where the config promises them.
#[test]
fn a_bias_that_only_some_layers_have_is_missing_elsewhere() {
    let biases = |layers: std::ops::Range<usize>| {
        let name = |layer| format!("model.layers.{layer}.mlp.down_proj.bias");
        let mut specs = whole();
        let hidden = specs.iter().find(|spec| spec.name == "model.norm.weight");
        let hidden = hidden.unwrap().shape[0];
        let values = |layer: usize| crate::fixtures::noise(layer as u64, hidden);
        specs
            .extend(layers.map(|layer| floats(&name(layer), Dtype::F32, &[hidden], values(layer))));
        specs
    };
    let missing = |bench: &Bench| {
        let (_, findings) = check(bench);
        let missing = findings
            .iter()
            .filter(|(id, _)| id == "structure.missing-tensor");
        missing.count()
    };
    let bench = good();
    one_file(&bench, &llama_config(4), &biases(0..4));
    assert_eq!(missing(&bench), 0);
    one_file(&bench, &llama_config(4), &biases(0..3));
    assert_eq!(missing(&bench), 1);
    let mut promised = llama_config(4);
    promised["attention_bias"] = json!(true);
    one_file(&bench, &promised, &whole());
    assert!(missing(&bench) > 0, "four biases of each layer");
    promised["model_type"] = json!("mistral");
    one_file(&bench, &promised, &whole());
    assert_eq!(missing(&bench), 0, "a Mistral has no such field");
}
