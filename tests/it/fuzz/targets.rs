//! One function a target: small good files, a change, and what must hold after it.

use std::collections::BTreeMap;
use std::fs;
use std::sync::OnceLock;

use p256::SecretKey;
use p256::pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use weldment::audit::Verdict;
use weldment::audit::policy::Policy;
use weldment::audit::provenance::{PrivateKey, PublicKey, Signature, ToSign};

use super::mutate;
use super::random::Random;
use super::weld::{Silent, checked, judged, merge, passes, verified};
use crate::check::{tokenizer, whole};
use crate::fixtures::{Bench, floats, llama_config, noise, recipes as shipped};
use crate::gguf_input;

type Outcome = Result<(), String>;

/// A way to change a file.
type Mutator = fn(&mut Random, &[u8]) -> Vec<u8>;

const LINEAR: &str = "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 0.25}}\n\
                      - {model: b, parameters: {weight: 0.75}}\n";

/// Two good models, `a` and `b`, with tokenizers.
fn two_models() -> Bench {
    let bench = Bench::new();
    for (seed, name) in [(1, "a"), (2, "b")] {
        bench.model(name, &llama_config(4), &whole(seed));
        tokenizer(&bench, name);
    }
    bench
}

/// Changes a file of one model, or alike of both: then they still fit each other.
fn change(bench: &Bench, random: &mut Random, name: &str, how: Mutator) {
    let models: &[&str] = random.pick(&[&["a"][..], &["b"], &["a", "b"], &["a", "b"]]);
    let seed = random.below(usize::MAX) as u64;
    for model in models {
        let path = bench.path(model).join(name);
        let changed = how(&mut Random::new(seed), &fs::read(&path).expect("a file"));
        fs::write(path, changed).expect("a file");
    }
}

/// A model that was changed is checked without a panic.
fn check_inputs(bench: &Bench) {
    for model in ["a", "b"] {
        checked(bench, model);
    }
}

pub(super) fn headers(random: &mut Random) -> Outcome {
    let bench = two_models();
    change(&bench, random, "model.safetensors", mutate::header);
    check_inputs(&bench);
    judged(&bench, LINEAR)
}

pub(super) fn indexes(random: &mut Random) -> Outcome {
    let bench = Bench::new();
    for (seed, name) in [(1, "a"), (2, "b")] {
        bench.sharded(name, &llama_config(4), &whole(seed));
    }
    let name = "model.safetensors.index.json";
    change(&bench, random, name, mutate::json_file);
    check_inputs(&bench);
    judged(&bench, LINEAR)
}

/// What stands in recipes.
const RECIPE_WORDS: &[&str] = &[
    "linear",
    "slerp",
    "ties",
    "dare_ties",
    "della",
    "passthrough",
    "model_stock",
    "karcher",
    "family/base",
    "family/add",
    "family/nothing",
    "weight",
    "density",
    "t",
    "lambda",
    "normalize",
    "0",
    "1",
    "-1",
    "0.5",
    "1e400",
    ".nan",
    ".inf",
    "true",
    "null",
    "~",
    "[0, 1]",
    "[]",
    "{}",
    "{filter: mlp, value: 1}",
    "&x",
    "*x",
    "<<: *x",
    "!!str",
    "---",
    "|",
    ">",
    "\"",
    "'",
    "{{",
    "bfloat16",
    "float8_e4m3fn",
    "union",
    "base",
    "layer_range: [0, 4]",
    "only",
    "except",
    "drop",
    "copy",
    "\u{1b}[2J",
    "\u{0}",
    "18446744073709551616",
];

pub(super) fn recipes(random: &mut Random) -> Outcome {
    let bench = Bench::new();
    let names = ["base", "sort", "reverse", "add", "cipher"];
    for (seed, name) in (1..).zip(names) {
        let name = format!("family/{name}");
        bench.model(&name, &llama_config(4), &whole(seed));
        tokenizer(&bench, &name);
    }
    let recipes = shipped();
    let recipe = fs::read_to_string(&recipes[random.below(recipes.len())]).expect("a recipe");
    judged(&bench, &mutate::text(random, &recipe, RECIPE_WORDS))
}

pub(super) fn configs(random: &mut Random) -> Outcome {
    let bench = two_models();
    let name = random.pick(&["config.json", "config.json", "generation_config.json"]);
    change(&bench, random, name, mutate::json_file);
    check_inputs(&bench);
    let slices = "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 3]}]\n\
                  - sources: [{model: b, layer_range: [1, 4]}]\n";
    judged(&bench, random.pick(&[LINEAR, slices]))
}

pub(super) fn tokenizers(random: &mut Random) -> Outcome {
    let bench = two_models();
    let name = random.pick(&["tokenizer.json", "tokenizer.json", "tokenizer_config.json"]);
    change(&bench, random, name, mutate::json_file);
    check_inputs(&bench);
    let source = random.pick(&[
        "",
        "tokenizer_source: union\n",
        "tokenizer: {source: union, pad_to_multiple_of: 8}\n",
    ]);
    judged(&bench, &format!("{LINEAR}{source}"))
}

pub(super) fn pickles(random: &mut Random) -> Outcome {
    let bench = Bench::new();
    let name = random.pick(&[
        "zip.pt",
        "v3.pt",
        "protocol4.pt",
        "legacy.bin",
        "legacy4.bin",
        "nested.pt",
        "trainer.ckpt",
    ]);
    let made = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peer/pickled/");
    let file = fs::read(format!("{made}{name}")).expect("a pickle");
    bench.file(name, mutate::pickle(random, &file));
    checked(&bench, name);
    // What is read of a pickle can be merged; whether it is a whole model is not asked.
    let recipe = format!("merge_method: passthrough\nmodels: [{{model: {name}}}]\n");
    match merge(&bench, &recipe) {
        Ok(()) => passes("verify", verified(&bench, "out")),
        Err(_) if bench.path("out").exists() => Err("refused, and left out".to_owned()),
        Err(_) => Ok(()),
    }
}

pub(super) fn gguf_files(random: &mut Random) -> Outcome {
    static SOUND: OnceLock<Vec<u8>> = OnceLock::new();
    let mut file = SOUND.get_or_init(gguf_input::file_of_llama).clone();
    // The header is a small part of the file, and what is in it decides everything.
    let names = b"blk.";
    let is_name = |at: &usize| file[*at..].starts_with(names);
    let end = (0..file.len()).rev().find(is_name).expect("a tensor");
    let rest = file.split_off(end + 64);
    mutate::bytes(random, &mut file);
    file.extend(rest);
    let bench = Bench::new();
    bench.file("m.gguf", file);
    checked(&bench, "m.gguf");
    match merge(
        &bench,
        "merge_method: passthrough\nmodels: [{model: m.gguf}]\n",
    ) {
        Ok(()) => passes("verify", verified(&bench, "out")),
        Err(_) if bench.path("out").exists() => Err("refused, and left out".to_owned()),
        Err(_) => Ok(()),
    }
}

/// Expects that something did not pass.
fn does_not_pass(what: &str, verdict: Option<(Verdict, Vec<String>)>) -> Outcome {
    match verdict {
        Some((Verdict::Passed, _)) => Err(format!("{what} passes")),
        _ => Ok(()),
    }
}

pub(super) fn adapters(random: &mut Random) -> Outcome {
    let bench = two_models();
    let module = "base_model.model.model.layers.1.mlp.up_proj";
    let factors = [("lora_A", [3, 8]), ("lora_B", [12, 3])].map(|(part, shape)| {
        let name = format!("{module}.{part}.weight");
        floats(&name, Dtype::F32, &shape, noise(9, shape[0] * shape[1]))
    });
    bench.tensors("lora/adapter_model.safetensors", &factors);
    let config = json!({
        "peft_type": "LORA", "r": 3, "lora_alpha": 6, "base_model_name_or_path": "org/a", "use_dora": false,
        "target_modules": ["up_proj"], "lora_dropout": 0.05, "task_type": "CAUSAL_LM", "rank_pattern": {},
        "alpha_pattern": {}, "use_rslora": false, "fan_in_fan_out": false, "bias": "none", "modules_to_save": null,
    });
    bench.file("lora/adapter_config.json", config.to_string());
    let (name, how): (&str, Mutator) = match random.one_in(2) {
        true => ("adapter_config.json", mutate::json_file),
        false => ("adapter_model.safetensors", mutate::header),
    };
    let path = bench.path("lora").join(name);
    fs::write(&path, how(random, &fs::read(&path).expect("a file"))).expect("a file");
    checked(&bench, "lora");
    judged(
        &bench,
        "merge_method: passthrough\nmodels: [{model: a+lora}]\n",
    )
}

/// A merge of `a` and `b` as `out`.
fn merged() -> Bench {
    let bench = two_models();
    merge(&bench, LINEAR).expect("a good merge");
    bench
}

/// A safetensors file with one bit of one of its tensors changed.
fn flipped(random: &mut Random, mut file: Vec<u8>) -> Vec<u8> {
    let length = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    let header: BTreeMap<String, Value> =
        serde_json::from_slice(&file[8..8 + length]).expect("a header");
    let ends = header
        .values()
        .filter_map(|entry| entry["data_offsets"][1].as_u64());
    let data = ends.max().expect("tensors") as usize;
    let at = file.len() - data + random.below(data);
    file[at] ^= 1 << random.below(8);
    file
}

/// A changed lock never makes changed weights pass, and is read without a panic.
pub(super) fn locks(random: &mut Random) -> Outcome {
    let bench = merged();
    let path = bench.path("out/weldment.lock.json");
    let lock = fs::read(&path).expect("a lock");
    fs::write(&path, mutate::json_file(random, &lock)).expect("a lock");
    verified(&bench, "out");
    checked(&bench, "out");
    let path = bench.path("out/model.safetensors");
    let weights = fs::read(&path).expect("weights");
    fs::write(path, flipped(random, weights)).expect("weights");
    does_not_pass("verify of changed weights", verified(&bench, "out"))
}

/// Whether two files hold the same JSON or the same tensors, however they are written.
fn same_meaning(file: &[u8], changed: &[u8]) -> bool {
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
    let tensors = |bytes: &[u8]| {
        let parsed = SafeTensors::deserialize(bytes).ok()?.tensors();
        let parts = parsed.iter().map(|(name, view)| {
            let shape = view.shape().to_vec();
            (name.clone(), (view.dtype(), shape, view.data().to_vec()))
        });
        Some(parts.collect::<BTreeMap<_, _>>())
    };
    match (json(file), tensors(file)) {
        (Some(json_before), _) => json(changed) == Some(json_before),
        (None, before) => tensors(changed) == before,
    }
}

/// A file of an output that is changed so that it means something else does not verify.
pub(super) fn outputs(random: &mut Random) -> Outcome {
    let bench = merged();
    passes("verify", verified(&bench, "out"))?;
    let name = random.pick(&[
        "model.safetensors",
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ]);
    let path = bench.path("out").join(name);
    let file = fs::read(&path).expect("a file");
    let changed = match name {
        "model.safetensors" if random.one_in(2) => flipped(random, file.clone()),
        "model.safetensors" => mutate::header(random, &file),
        _ => mutate::json_file(random, &file),
    };
    if same_meaning(&file, &changed) {
        return Ok(());
    }
    fs::write(path, changed).expect("a file");
    does_not_pass(
        &format!("verify of a changed {name}"),
        verified(&bench, "out"),
    )
}

/// A changed bundle never vouches for changed files, and is read without a panic.
pub(super) fn bundles(random: &mut Random) -> Outcome {
    let bench = Bench::new();
    bench.model(
        "m",
        &llama_config(4),
        &[floats("w", Dtype::F32, &[4], noise(1, 4))],
    );
    let secret = SecretKey::from_slice(&[7; 32]).expect("a key");
    let private = secret.to_pkcs8_pem(LineEnding::LF).expect("PEM");
    let public = secret
        .public_key()
        .to_public_key_pem(LineEnding::LF)
        .expect("PEM");
    let key = PrivateKey::read(&private).expect("a key");
    let place = bench.path("m.sig");
    let listed = ToSign::list(&bench.path("m"), &place, Vec::new()).expect("files");
    let signed = listed.sign(&key, 1, &Silent).expect("a signature");
    let bundle = match random.one_in(2) {
        true => mutate::json_file(random, signed.bundle.as_bytes()),
        false => {
            let mut bytes = signed.bundle.into_bytes();
            mutate::bytes(random, &mut bytes);
            bytes
        }
    };
    fs::write(&place, bundle).expect("a signature");
    let key = PublicKey::read(&public).expect("a key");
    let holds = || {
        let opened = Signature::open(&bench.path("m"), &place, &key, &[]).ok()?;
        Some(opened.check(1, &Silent).expect("no failure").holds())
    };
    holds();
    fs::write(bench.path("m/config.json"), "{}").expect("a config");
    match holds() {
        Some(true) => Err("the signature of other files holds".to_owned()),
        _ => Ok(()),
    }
}

const POLICY: &str = r#"fail_on = "warning"
[severity]
"verify.numerics" = "note"
"verify.unaccounted-tensor" = "warning"
[verify]
allow = "exact"
require_lock = true
[diff]
max_relative_l2 = 0.1
min_cosine = 0.99
[[diff.roles]]
match = "*norm.weight"
max_relative_l2 = 0.01
max_steps = 1
[provenance]
require_signature = "release.pub.pem"
require_attestation = "ci.pub.pem"
allow_inputs = ["Qwen/*", "our-org/*", "models/*"]
"#;

/// A policy is read, or its error has a line and a message.
pub(super) fn policies(random: &mut Random) -> Outcome {
    let words = [
        "error",
        "warning",
        "note",
        "off",
        "true",
        "-1",
        "1e400",
        "nan",
        "inf",
        "\"\"\"",
        "[[",
        "]]",
        "=",
        "'",
        "{}",
        "1979-05-27",
        "0x7fffffffffffffff",
        "99999999999999999999",
        "\"verify.numerics\"",
        "\"*\"",
        "\"[\"",
        "\u{0}",
    ];
    let text = mutate::text(random, POLICY, &words);
    match Policy::parse(&text) {
        Err(error) if error.message.is_empty() || text.lines().count() + 1 < error.line => {
            Err(format!(
                "line {} of {}: {:?}",
                error.line,
                text.lines().count(),
                error.message
            ))
        }
        _ => Ok(()),
    }
}

const TEMPLATE: &str = "{% for message in messages %}{% if message['role'] == 'user' %}\n\
                        {{ bos_token + '[INST] ' + message['content'] | trim }}{% elif not loop.last %}\n\
                        {% set x = namespace(a=1) %}{{ message.content[0:3] ~ (1 + 2 * 3) }}{% endif %}\n\
                        {% endfor %}{% if add_generation_prompt %}{{ raise_exception('x') }}{% endif %}\n";

/// Templates of models and of recipes: long chains and deep nests too.
pub(super) fn templates(random: &mut Random) -> Outcome {
    let words = [
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "{% if x %}",
        "{% endif %}",
        "{% macro m(a) %}",
        "{% raw %}",
        "(",
        ")",
        "[",
        "]",
        "|",
        "~",
        "not",
        "is",
        "in",
        "-",
        "+ 1",
        "**",
        "\"",
        "'",
        ".a",
        "{% for a in b recursive %}",
    ];
    let mut text = mutate::text(random, TEMPLATE, &words);
    if random.one_in(3) {
        let many = 1 << random.below(16);
        let piece = random.pick(&words).repeat(many);
        text = format!("{text}{{{{ 1{piece} }}}}");
    }
    let bench = two_models();
    if random.one_in(2) {
        fs::write(bench.path("a/chat_template.jinja"), text).expect("a template");
        check_inputs(&bench);
        return judged(&bench, LINEAR);
    }
    judged(&bench, &format!("{LINEAR}chat_template: {}\n", json!(text)))
}
