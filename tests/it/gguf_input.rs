//! GGUF files as models: what `weld export gguf` writes is read back as the same checkpoint, and hostile files are refused.

use std::collections::BTreeMap;
use std::fs;

use safetensors::Dtype;
use serde_json::{Value, json};
use weldment::architecture::llama_cpp::{DIALECTS, HeadSize};
use weldment::architecture::{Expected, Family, Layers, Presence, SharedWidth, Sparse};

use crate::fixtures::{Bench, Spec, floats, load, noise, read_json};
use crate::gguf::tokenizer;

/// What each family is tried with beside the fields that all have.
fn config(family: &Family, head_size: HeadSize) -> Value {
    let mut config = json!({
        "architectures": [family.class], "model_type": family.name(), "hidden_size": 32, "intermediate_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3, "max_position_embeddings": 64,
        "vocab_size": 6, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "eos_token_id": 4,
        "tie_word_embeddings": family.is_tied(), "sliding_window": 16,
    });
    if head_size != HeadSize::Never {
        config["head_dim"] = json!(16);
    }
    let mut set = |field: &str, value: Value| config[field] = value;
    if family.name() == "dots1" {
        set("num_key_value_heads", json!(4));
    }
    if family.name() == "phi3" {
        set("original_max_position_embeddings", json!(64));
    }
    if let Some(mixture) = family.mixture() {
        set(mixture.counts.experts[0], json!(4));
        set(mixture.counts.per_token, json!(2));
        if mixture.counts.width != "intermediate_size" {
            set(mixture.counts.width, json!(16));
        }
        match mixture.shared.as_ref().map(|shared| shared.width) {
            Some(SharedWidth::Neurons(field)) => set(field, json!(24)),
            Some(SharedWidth::Experts(field)) => set(field, json!(2)),
            _ => {}
        }
        match mixture.sparse {
            Sparse::FirstDense(_) => set("first_k_dense_replace", json!(1)),
            Sparse::StartAndEnd => set("moe_layer_start_index", json!(1)),
            _ => {}
        }
    }
    config
}

/// The tensors that a config promises, of values that BF16 holds and of which none is so small that one more than it loses
/// bits in F32, as Gemma's norms would.
fn specs(family: &'static Family, config: &Value, dtype: Dtype) -> Vec<Spec> {
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    for body in Expected::new(family, config, std::iter::empty::<&str>) {
        for rule in body
            .rules
            .iter()
            .filter(|rule| rule.presence != Presence::Optional)
        {
            let shape: Vec<usize> = rule.shape.iter().map(|size| size.size.unwrap()).collect();
            if !rule.name.contains('*') {
                shapes.push((rule.name.clone(), shape));
                continue;
            }
            for layer in 0..3 {
                let sparse = body.is_sparse(layer).unwrap_or(false);
                if matches!(
                    (rule.layers, sparse),
                    (Layers::Sparse, false) | (Layers::Dense, true)
                ) {
                    continue;
                }
                let name = rule.name.replacen('*', &layer.to_string(), 1);
                let experts = if name.contains('#') { 4 } else { 1 };
                for expert in 0..experts {
                    shapes.push((name.replace('#', &expert.to_string()), shape.clone()));
                }
            }
        }
    }
    if config["tie_word_embeddings"] == json!(false) {
        shapes.push(("lm_head.weight".into(), vec![6, 32]));
    }
    let specs = (1..).zip(shapes).map(|(seed, (name, shape))| {
        let values = noise(seed, shape.iter().product());
        let values = values.map(|value| if value.abs() < 1e-3 { 0.25 } else { value });
        let values = values.map(|value| half::bf16::from_f64(value).to_f64());
        floats(&name, dtype, &shape, values)
    });
    specs.collect()
}

/// The tensors of a folder or file by name: dtype, shape and bytes.
fn tensors(bench: &Bench, name: &str) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let loaded = load(&bench.path(name)).into_iter();
    loaded
        .map(|(name, tensor)| (name, (tensor.dtype, tensor.shape, tensor.bytes)))
        .collect()
}

/// Writes a model to `one/m` and its file to `in/m.gguf`, reads that into `two/m`; what differs between the two.
fn round_trip(
    family: &'static Family,
    config: &Value,
    dtype: Dtype,
    kind: &str,
) -> Result<(), String> {
    let bench = Bench::new();
    bench.model("one/m", config, &specs(family, config, dtype));
    tokenizer(&bench, "one/m");
    tokenizer(&bench, "in");
    let weld = |arguments: &[&str]| {
        let outcome = bench.weld(arguments);
        match outcome.code {
            Some(0) => Ok(outcome),
            code => Err(format!("{arguments:?}: {code:?} {}", outcome.stderr)),
        }
    };
    let export = |from: &str, to: &str| {
        let options = ["--pre-tokenizer", "llama-bpe", "--type", kind];
        weld(&[&["export", "gguf", from, to][..], &options].concat())
    };
    export("one/m", "in/m.gguf")?;
    bench.recipe("merge_method: passthrough\nmodels:\n- {model: in/m.gguf}\n");
    weld(&["merge", "recipe.yml", "two/m"])?;
    let (one, two) = (tensors(&bench, "one/m"), tensors(&bench, "two/m"));
    let names = |tensors: &BTreeMap<String, _>| tensors.keys().cloned().collect::<Vec<_>>();
    if names(&one) != names(&two) {
        return Err(format!("names: {:?} and {:?}", names(&one), names(&two)));
    }
    for (name, tensor) in &one {
        if *tensor != two[name] {
            let (dtype, shape, _) = &two[name];
            return Err(format!("{name} is not the same: {dtype:?} {shape:?}"));
        }
    }
    // The config says the same if the file that is made by it is the same.
    export("two/m", "again.gguf")?;
    let [(before, first), (after, second)] =
        ["in/m.gguf", "again.gguf"].map(|name| crate::gguf::read(&bench.path(name)));
    let keys = before.keys().chain(after.keys());
    let keys = keys.filter(|key| before.get(*key) != after.get(*key));
    let other: Vec<_> = keys
        .map(|key| (key, before.get(key), after.get(key)))
        .collect();
    match other.is_empty() && first == second {
        true => Ok(()),
        false => Err(format!(
            "another file, {other:?}, by {}",
            read_json(&bench.path("two/m/config.json"))
        )),
    }
}

#[test]
fn every_family_is_read_back_bit_for_bit() {
    let mut failures = Vec::new();
    // The second Gemma 3 is the first one's language model, which is all that a file has.
    for dialect in DIALECTS
        .iter()
        .filter(|dialect| !["gemma3", "mistral"].contains(&dialect.family))
    {
        let family = Family::named(dialect.family).unwrap();
        let config = config(family, dialect.head_size);
        for (dtype, kind) in [(Dtype::BF16, "bf16"), (Dtype::F32, "f32")] {
            if let Err(why) = round_trip(family, &config, dtype, kind) {
                failures.push(format!("{} in {kind}: {why}", family.name()));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Puts other bytes in the place of some that are there once at least.
fn patched(file: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut file = file.to_vec();
    let mut at = 0;
    let mut found = 0;
    while at + from.len() <= file.len() {
        if file[at..].starts_with(from) {
            file[at..at + to.len()].copy_from_slice(to);
            found += 1;
        }
        at += 1;
    }
    assert!(found > 0, "{}", String::from_utf8_lossy(from));
    file
}

fn llama_config(more: Value) -> Value {
    let mut config = config(Family::named("llama").unwrap(), HeadSize::Always);
    for (field, value) in more.as_object().unwrap() {
        config[field] = value.clone();
    }
    config
}

/// A Llama's file as `in/m.gguf`, without anything beside it.
fn llama_file(bench: &Bench, config: &Value, kind: &str) {
    let family = Family::named("llama").unwrap();
    bench.model("m", config, &specs(family, config, Dtype::BF16));
    tokenizer(bench, "m");
    fs::create_dir_all(bench.path("in")).unwrap();
    let options = ["--pre-tokenizer", "llama-bpe", "--type", kind];
    bench.passes(&[&["export", "gguf", "m", "in/m.gguf"][..], &options].concat());
}

/// A sound file of a Llama.
pub(crate) fn file_of_llama() -> Vec<u8> {
    let bench = Bench::new();
    llama_file(&bench, &llama_config(json!({})), "q8_0");
    fs::read(bench.path("in/m.gguf")).unwrap()
}

/// The message of a merge that is refused.
fn refused(bench: &Bench, recipe: &str) -> String {
    _ = fs::remove_dir_all(bench.path("out"));
    bench.refused(recipe, &[])
}

const ONE: &str = "merge_method: passthrough\nmodels:\n- {model: in/m.gguf}\n";

#[test]
fn fields_that_change_what_is_computed_come_back() {
    let mut failures = Vec::new();
    let linear = json!({"rope_type": "linear", "factor": 4.0});
    let yarn = json!({
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 16.0,
    });
    let llama3 = json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let long = json!({
        "type": "longrope", "long_factor": [1.5, 2.5, 3.5, 4.5], "short_factor": [1.0, 1.25, 1.5, 1.75],
    });
    let listed = json!(["full_attention", "sliding_attention", "sliding_attention"]);
    for (family, more) in [
        ("llama", json!({"attention_bias": true, "mlp_bias": false})),
        (
            "llama",
            json!({"rope_scaling": linear, "tie_word_embeddings": true}),
        ),
        ("llama", json!({"rope_scaling": llama3})),
        ("llama", json!({"rope_scaling": yarn})),
        (
            "qwen3",
            json!({"rope_scaling": yarn, "attention_bias": false}),
        ),
        (
            "granite",
            json!({"attention_multiplier": 0.125, "embedding_multiplier": 12.0, "logits_scaling": 6.5}),
        ),
        (
            "gemma2",
            json!({"layer_types": listed, "final_logit_softcapping": 20.0, "query_pre_attn_scalar": 16}),
        ),
        (
            "gemma3_text",
            json!({"layer_types": listed, "rope_local_base_freq": 20000.0, "rope_scaling": linear}),
        ),
        (
            "phi3",
            json!({"rope_scaling": long, "original_max_position_embeddings": 32}),
        ),
        ("olmo2", json!({"tie_word_embeddings": true})),
        (
            "glm4_moe",
            json!({"use_qk_norm": true, "attention_bias": true, "partial_rotary_factor": 0.5}),
        ),
        ("ernie4_5_moe", json!({"moe_num_shared_experts": 0})),
    ] {
        let dialect = DIALECTS
            .iter()
            .find(|dialect| dialect.family == family)
            .unwrap();
        let family = Family::named(family).unwrap();
        let mut config = config(family, dialect.head_size);
        for (field, value) in more.as_object().unwrap() {
            config[field] = value.clone();
        }
        if let Err(why) = round_trip(family, &config, Dtype::BF16, "bf16") {
            failures.push(format!("{} with {more}: {why}", family.name()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_config_says_what_the_metadata_does() {
    let bench = Bench::new();
    llama_file(&bench, &llama_config(json!({})), "q8_0");
    let outcome = bench.weld(&["plan", "recipe.yml"]);
    assert_ne!(outcome.code, Some(0));
    bench.merge(ONE, &[]);
    let made = read_json(&bench.path("out/config.json"));
    for (field, value) in [
        ("architectures", json!(["LlamaForCausalLM"])),
        ("model_type", json!("llama")),
        ("hidden_size", json!(32)),
        ("head_dim", json!(16)),
        ("num_hidden_layers", json!(3)),
        ("num_key_value_heads", json!(2)),
        ("rms_norm_eps", json!(1e-5)),
        ("rope_theta", json!(500_000.0)),
        ("vocab_size", json!(6)),
        ("tie_word_embeddings", json!(false)),
        ("eos_token_id", json!(4)),
        ("hidden_act", json!("silu")),
    ] {
        assert_eq!(made[field], value, "{field}: {made}");
    }
    // Nothing is beside the file, so nothing is beside the output; the plan says so.
    assert!(!bench.path("out/tokenizer.json").exists());
    let outcome = bench.weld(&["plan", "recipe.yml"]);
    let said = outcome.stdout + &outcome.stderr;
    for part in [
        "made from the metadata",
        "no tokenizer lies beside it",
        "23 in Q8_0",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    tokenizer(&bench, "in");
    bench.merge(ONE, &[]);
    assert!(bench.path("out/tokenizer.json").exists());
}

#[test]
fn the_vocabulary_of_the_file_is_compared_with_others() {
    let bench = Bench::new();
    llama_file(&bench, &llama_config(json!({})), "bf16");
    let both = "merge_method: linear\nmodels:\n- {model: m, parameters: {weight: 0.5}}\n\
                - {model: in/m.gguf, parameters: {weight: 0.5}}\n";
    bench.merge(both, &[]);
    let own = fs::read_to_string(bench.path("m/tokenizer.json")).unwrap();
    let mut other: Value = serde_json::from_str(&own).unwrap();
    other["model"]["vocab"] = json!({"b": 0, "a": 1, "ba": 2});
    other["model"]["merges"] = json!(["b a"]);
    let other = other.to_string();
    bench.file("m/tokenizer.json", &other);
    let said = refused(&bench, both);
    assert!(
        said.contains("vocabularies of `m` and `in/m.gguf` differ"),
        "{said}"
    );
    bench.file("in/tokenizer.json", &other);
    let said = refused(&bench, ONE);
    assert!(
        said.contains("the tokenizer beside it is of another model"),
        "{said}"
    );
    bench.file("in/tokenizer.json", &own);
    bench.merge(ONE, &[]);
    assert!(bench.path("out/tokenizer.json").exists());
}

#[test]
fn blocks_of_eight_bits_merge_with_a_checkpoint() {
    let bench = Bench::new();
    llama_file(&bench, &llama_config(json!({})), "q8_0");
    bench.merge(&format!("{ONE}dtype: float32\n"), &[]);
    let plain = tensors(&bench, "out");
    let original = tensors(&bench, "m");
    let recipe = "merge_method: linear\nmodels:\n- {model: m, parameters: {weight: 0.5}}\n\
                  - {model: in/m.gguf, parameters: {weight: 0.5}}\ndtype: float32\n";
    bench.merge(recipe, &[]);
    assert!(bench.path("out/tokenizer.json").exists());
    let merged = tensors(&bench, "out");
    let f32s = |bytes: &[u8]| -> Vec<f32> {
        bytes
            .chunks_exact(4)
            .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
            .collect()
    };
    assert_eq!(merged.len(), original.len());
    for (name, (_, _, bytes)) in &merged {
        let (read, held) = (f32s(&plain[name].2), &original[name].2);
        for ((merged, read), held) in f32s(bytes).iter().zip(&read).zip(held.chunks_exact(2)) {
            let held = half::bf16::from_le_bytes(held.try_into().unwrap()).to_f32();
            assert_eq!(*merged, 0.5 * held + 0.5 * read, "{name}");
            // A 127th of the largest value, which is below one, is the step.
            assert!((held - read).abs() <= 0.005, "{name}: {held} {read}");
        }
    }
}

#[test]
fn a_config_beside_the_file_comes_first_and_must_be_of_the_same_model() {
    let bench = Bench::new();
    let own = llama_config(json!({"rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }}));
    llama_file(&bench, &own, "bf16");
    let said = refused(&bench, ONE);
    assert!(
        said.contains("rope_freqs.weight") && said.contains("config.json beside"),
        "{said}"
    );
    bench.file("in/config.json", own.to_string());
    bench.merge(ONE, &[]);
    let made = read_json(&bench.path("out/config.json"));
    assert_eq!(made["rope_scaling"]["original_max_position_embeddings"], 64);
    for (more, part) in [
        (json!({"model_type": "qwen2"}), "of architecture `llama`"),
        (
            json!({"num_hidden_layers": 2}),
            "counts 2 layers, the file 3",
        ),
        (json!({"hidden_size": 64}), "expected shape"),
        (json!({"num_key_value_heads": 4}), "expected shape"),
        (
            json!({"attention_bias": true}),
            "`blk.0.attn_q.bias` is missing",
        ),
        (
            json!({"tie_word_embeddings": true}),
            "tensor `output.weight` is none",
        ),
    ] {
        bench.file("in/config.json", llama_config(more).to_string());
        let said = refused(&bench, ONE);
        assert!(
            said.contains(part) && said.contains("hint"),
            "{part}: {said}"
        );
    }
}

#[test]
fn what_is_no_model_that_is_read_is_refused_by_name() {
    let bench = Bench::new();
    llama_file(&bench, &llama_config(json!({})), "bf16");
    let sound = fs::read(bench.path("in/m.gguf")).unwrap();
    let cases: [(Vec<u8>, &str); 7] = [
        (
            patched(&sound, b"llama", b"mamba"),
            "the architecture `mamba` is not read",
        ),
        (
            patched(&sound, b"blk.1.attn_q.weight", b"blk.1.attn_x.weight"),
            "`blk.1.attn_q.weight` is missing",
        ),
        (
            patched(&sound, b"\0output.weight", b"\0xutput.weight"),
            "tensor `xutput.weight` is none",
        ),
        (
            patched(&sound, b"token_embd.weight", b"token_emb_.weight"),
            "no matrix `token_embd.weight`",
        ),
        (
            patched(&sound, b"llama.block_count", b"llama.block_coun_"),
            "`llama.block_count`: expected a size",
        ),
        (
            patched(&sound, b"general.architecture", b"general.architectur_"),
            "no text `general.architecture`",
        ),
        (sound[..sound.len() - 64].to_vec(), "it is truncated"),
    ];
    for (file, part) in cases {
        bench.file("in/m.gguf", file);
        let said = refused(&bench, ONE);
        assert!(
            said.contains(part) && said.contains("in/m.gguf") && said.contains("hint"),
            "{part}: {said}"
        );
    }
    bench.file("in/m.gguf", &sound);
    fs::copy(bench.path("in/m.gguf"), bench.path("in/m.safetensors")).unwrap();
    let said = refused(&bench, &ONE.replace("m.gguf", "m.safetensors"));
    assert!(said.contains("name it `*.gguf`"), "{said}");
    let said = refused(&bench, &ONE.replace("in/m.gguf", "'in/m.gguf#x'"));
    assert!(said.contains("entries"), "{said}");
}

/// Norms that are so small that one more than them is not exact in F32 come back within half a step of one.
#[test]
fn gemmas_smallest_norms_come_back_within_a_bound() {
    let bench = Bench::new();
    let family = Family::named("gemma").unwrap();
    let config = config(family, HeadSize::Always);
    let mut specs = specs(family, &config, Dtype::BF16);
    let small = (0..32).map(|at| 1.5f64 * 2f64.powi(-at) * if at % 2 == 0 { 1.0 } else { -1.0 });
    let small: Vec<f64> = small.collect();
    specs = crate::fixtures::with(
        specs,
        floats("model.norm.weight", Dtype::BF16, &[32], small.clone()),
    );
    bench.model("m", &config, &specs);
    tokenizer(&bench, "m");
    fs::create_dir_all(bench.path("in")).unwrap();
    bench.passes(&[
        "export",
        "gguf",
        "m",
        "in/m.gguf",
        "--pre-tokenizer",
        "llama-bpe",
        "--type",
        "bf16",
    ]);
    bench.merge(&format!("{ONE}dtype: float32\n"), &[]);
    let (_, _, bytes) = &tensors(&bench, "out")["model.norm.weight"];
    for (held, read) in small.iter().zip(bytes.chunks_exact(4)) {
        let read = f64::from(f32::from_le_bytes(read.try_into().unwrap()));
        match held.abs() >= 2f64.powi(-16) {
            true => assert_eq!(read, *held),
            false => assert!((read - held).abs() <= 2f64.powi(-24), "{held} {read}"),
        }
    }
}

/// The same file cut in three, as llama.cpp's `gguf-split` does it, by any of its names and by its folder.
#[test]
fn a_split_model_is_read_by_any_of_its_files() {
    let bench = Bench::new();
    llama_file(&bench, &llama_config(json!({})), "f32");
    bench.merge(ONE, &[]);
    let whole = tensors(&bench, "out");
    let parts = split(&fs::read(bench.path("in/m.gguf")).unwrap(), 3);
    let name = |number: usize| format!("set/x-{number:05}-of-00003.gguf");
    for (number, part) in (1..).zip(&parts) {
        bench.file(&name(number), part);
    }
    for model in [name(1), name(2), "set".to_owned()] {
        bench.merge(&ONE.replace("in/m.gguf", &model), &[]);
        assert!(tensors(&bench, "out") == whole, "{model}");
    }
    fs::rename(bench.path(&name(2)), bench.path("other.gguf")).unwrap();
    let said = refused(&bench, &ONE.replace("in/m.gguf", &name(1)));
    assert!(said.contains("x-00002-of-00003.gguf is missing"), "{said}");
    bench.file(&name(2), &parts[2]);
    let said = refused(&bench, &ONE.replace("in/m.gguf", &name(1)));
    assert!(said.contains("is in both"), "{said}");
    bench.file(&name(3), &parts[1]);
    let said = refused(&bench, &ONE.replace("in/m.gguf", &name(1)));
    assert!(said.contains("says that it is file 3 of 3"), "{said}");
}

/// Cuts a file of F32 into several of about as many tensors, each with the metadata of its place.
fn split(file: &[u8], count: usize) -> Vec<Vec<u8>> {
    let (metadata, tensors) = crate::gguf::parts_of(file);
    let each = tensors.len().div_ceil(count);
    let file = |(number, tensors): (usize, &[crate::gguf::Part])| {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((tensors.len() as u64).to_le_bytes());
        // All keys lie in the first file; each has the two of the set.
        let own = if number == 0 { metadata.1 } else { 0 };
        out.extend((own + 2).to_le_bytes());
        if number == 0 {
            out.extend(&metadata.0);
        }
        for (key, value) in [("split.no", number), ("split.count", count)] {
            out.extend((key.len() as u64).to_le_bytes());
            out.extend(key.as_bytes());
            out.extend(2u32.to_le_bytes());
            out.extend((value as u16).to_le_bytes());
        }
        let mut at = 0u64;
        for (entry, bytes) in tensors {
            out.extend(entry);
            out.extend(at.to_le_bytes());
            at = (at + bytes.len() as u64).next_multiple_of(32);
        }
        for (_, bytes) in tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(bytes);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out
    };
    tensors.chunks(each).enumerate().map(file).collect()
}
