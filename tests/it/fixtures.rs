//! Small checkpoints, and `weld` run on them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use assert_cmd::Command;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;
use weldment::numeric::FloatType;

/// A folder for one test, with models and recipes in it.
pub(crate) struct Bench {
    dir: TempDir,
}

/// What a run of `weld` gave.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A tensor to be written: name, dtype, shape, values.
#[derive(Clone)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// The exit code of a recipe that is refused with this message: 2 if a model is not there, otherwise 1.
pub(crate) fn refusal_code(message: &str) -> i32 {
    match message.contains("not found; looked in") {
        true => 2,
        false => 1,
    }
}

/// A tensor of float values.
pub(crate) fn floats(
    name: &str,
    dtype: Dtype,
    shape: &[usize],
    values: impl IntoIterator<Item = f64>,
) -> Spec {
    let format = FloatType::from_dtype(dtype).expect("a float dtype");
    let mut values: Vec<f64> = values.into_iter().collect();
    assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}");
    let mut bytes = vec![0; values.len() * format.size()];
    format.encode(&mut values, false, &mut bytes);
    Spec {
        name: name.into(),
        dtype,
        shape: shape.into(),
        bytes,
    }
}

/// A tensor of integers.
pub(crate) fn integers(name: &str, values: &[i64]) -> Spec {
    let bytes = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    Spec {
        name: name.into(),
        dtype: Dtype::I64,
        shape: vec![values.len()],
        bytes,
    }
}

/// A tensor of truth values.
pub(crate) fn bools(name: &str, values: &[bool]) -> Spec {
    Spec {
        name: name.into(),
        dtype: Dtype::BOOL,
        shape: vec![values.len()],
        bytes: values.iter().map(|&value| value.into()).collect(),
    }
}

/// A large tensor of BF16, made quickly: random signs and mantissas, a few exponents.
pub(crate) fn quick_bf16(name: &str, seed: u64, shape: &[usize]) -> Spec {
    let elements: usize = shape.iter().product();
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = vec![0; elements * 2];
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Magnitudes from 2^-7 to 2^-4.
        let four = (state & 0x80ff_80ff_80ff_80ff) | 0x3c00_3c00_3c00_3c00;
        chunk.copy_from_slice(&four.to_le_bytes()[..chunk.len()]);
    }
    Spec {
        name: name.into(),
        dtype: Dtype::BF16,
        shape: shape.into(),
        bytes,
    }
}

/// Numbers about as large as weights are, the same for the same seed.
pub(crate) fn noise(seed: u64, count: usize) -> impl Iterator<Item = f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
    (0..count).map(move |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as f64 / 2f64.powi(31) - 0.5) * 0.1
    })
}

/// The tensors of a tiny Llama: `layers` layers, hidden 8, vocabulary 16.
pub(crate) fn llama(seed: u64, layers: usize, dtype: Dtype) -> Vec<Spec> {
    let mut shapes: Vec<(String, Vec<usize>)> =
        vec![("model.embed_tokens.weight".into(), vec![16, 8])];
    for layer in 0..layers {
        for (suffix, shape) in [
            ("input_layernorm.weight", vec![8]),
            ("mlp.down_proj.weight", vec![8, 12]),
            ("mlp.up_proj.weight", vec![12, 8]),
            ("self_attn.q_proj.weight", vec![8, 8]),
        ] {
            shapes.push((format!("model.layers.{layer}.{suffix}"), shape));
        }
    }
    shapes.push(("model.norm.weight".into(), vec![8]));
    shapes.push(("lm_head.weight".into(), vec![16, 8]));
    shapes
        .into_iter()
        .enumerate()
        .map(|(index, (name, shape))| {
            let count = shape.iter().product();
            floats(
                &name,
                dtype,
                &shape,
                noise(seed * 1000 + index as u64, count),
            )
        })
        .collect()
}

/// The config of [`llama`].
pub(crate) fn llama_config(layers: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_attention_heads": 1,
        "num_hidden_layers": layers,
        "vocab_size": 16,
        "tie_word_embeddings": false,
        "torch_dtype": "float32"
    })
}

impl Bench {
    /// A folder in memory where the system has room there, so that few tests wait for the disk; else on the disk.
    pub(crate) fn new() -> Self {
        const MEMORY: &str = "/dev/shm";
        const ENOUGH: u64 = 4 << 30;
        let free =
            rustix::fs::statvfs(MEMORY).map_or(0, |system| system.f_bavail * system.f_frsize);
        let dir = match free >= ENOUGH {
            true => TempDir::new_in(MEMORY),
            false => TempDir::new(),
        };
        Self {
            dir: dir.expect("a temporary folder"),
        }
    }

    /// A folder on the disk, for what writes past the page cache, syncs, or holds much.
    pub(crate) fn on_disk() -> Self {
        Self {
            dir: TempDir::new().expect("a temporary folder"),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes any file.
    pub(crate) fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("folder");
        fs::write(&path, bytes).expect("file");
        path
    }

    /// Writes one safetensors file.
    pub(crate) fn tensors(&self, name: &str, specs: &[Spec]) -> PathBuf {
        let views = specs.iter().map(|spec| {
            let view = TensorView::new(spec.dtype, spec.shape.clone(), &spec.bytes)
                .expect("a sound tensor");
            (spec.name.as_str(), view)
        });
        self.file(
            name,
            safetensors::serialize(views, None).expect("serialised"),
        )
    }

    /// Writes a model folder with one weight file.
    pub(crate) fn model(&self, name: &str, config: &Value, specs: &[Spec]) -> PathBuf {
        self.file(&format!("{name}/config.json"), config.to_string());
        self.tensors(&format!("{name}/model.safetensors"), specs);
        self.path(name)
    }

    /// A tiny Llama of two layers in a folder.
    pub(crate) fn llama(&self, name: &str, seed: u64, dtype: Dtype) -> PathBuf {
        self.model(name, &llama_config(2), &llama(seed, 2, dtype))
    }

    /// Writes statistics for the tensors of a model, made up, as `MODEL.stats`: Gram matrices and magnitudes for matrices,
    /// Fisher information for all.
    pub(crate) fn statistics(&self, model: &str, seed: u64) -> PathBuf {
        let mut specs = Vec::new();
        for (at, (name, tensor)) in (0..).zip(by_name(&self.path(model))) {
            let values = |more: u64, count: usize| noise(seed * 1000 + at * 10 + more, count);
            let mut add = |kind: &str, shape: &[usize], values: Vec<f64>| {
                specs.push(floats(&format!("{kind}/{name}"), Dtype::F32, shape, values));
            };
            let elements = tensor.shape.iter().product();
            add(
                "fisher",
                &tensor.shape,
                values(1, elements).map(|x| x * x).collect(),
            );
            if let [_, size] = tensor.shape[..] {
                let factors: Vec<f64> = values(2, 3 * size).collect();
                let element = |at: usize| -> f64 {
                    let (a, b) = (at / size, at % size);
                    let product = |row: &[f64]| row[a] * row[b];
                    factors.chunks(size).map(product).sum::<f64>() + f64::from(u8::from(a == b))
                };
                add(
                    "gram",
                    &[size, size],
                    (0..size * size).map(element).collect(),
                );
                add(
                    "magnitude",
                    &[size],
                    values(3, size).map(f64::abs).collect(),
                );
            }
        }
        self.tensors(&format!("{model}.stats"), &specs)
    }

    /// A bench in which the recipes that ship can be run: the family, and its statistics.
    pub(crate) fn of_shipped() -> Self {
        let bench = Self::new();
        let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
        for folder in ["family", "statistics"] {
            std::os::unix::fs::symlink(recipes.join(folder), bench.path(folder)).expect("link");
        }
        bench
    }

    /// Writes `recipe.yml`.
    pub(crate) fn recipe(&self, text: &str) -> PathBuf {
        self.file("recipe.yml", text)
    }

    /// Runs `weld` in the folder, in an environment without a Hub cache. Merges do not look at what they write: tiny
    /// models lack most tensors of their family.
    pub(crate) fn weld(&self, arguments: &[&str]) -> Outcome {
        let writes = matches!(arguments.first(), Some(&"merge" | &"moe"));
        let no_check: &[&str] = if writes { &["--no-check"] } else { &[] };
        self.checked(&[arguments, no_check].concat())
    }

    /// Runs `weld` and expects exit code 0.
    #[track_caller]
    pub(crate) fn passes(&self, arguments: &[&str]) {
        let outcome = self.weld(arguments);
        assert_eq!(
            outcome.code,
            Some(0),
            "{}{}",
            outcome.stdout,
            outcome.stderr
        );
    }

    /// Runs `weld` just with these arguments.
    pub(crate) fn checked(&self, arguments: &[&str]) -> Outcome {
        let output = self
            .command()
            .args(arguments)
            .output()
            .expect("weld starts");
        Outcome {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    /// `weld`, ready to be given arguments.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weld"));
        command
            .current_dir(self.dir.path())
            .env_remove("HF_HUB_CACHE")
            .env_remove("HUGGINGFACE_HUB_CACHE")
            .env("HF_HOME", self.path("no-hub"))
            .env("XDG_CACHE_HOME", self.path("no-cache"));
        command
    }

    /// The same as a process that can be stopped on its way; what it prints can be read at its end.
    pub(crate) fn process(&self, arguments: &[&str]) -> process::Command {
        let mut command = process::Command::new(env!("CARGO_BIN_EXE_weld"));
        command
            .current_dir(self.dir.path())
            .env_remove("HF_HUB_CACHE")
            .env_remove("HUGGINGFACE_HUB_CACHE")
            .env("HF_HOME", self.path("no-hub"))
            .env("XDG_CACHE_HOME", self.path("no-cache"))
            .args(arguments)
            .stdin(process::Stdio::null())
            .stdout(process::Stdio::piped())
            .stderr(process::Stdio::piped());
        command
    }

    /// A message with `BENCH` for the folder's path.
    pub(crate) fn clean(&self, message: &str) -> String {
        let path = self.dir.path();
        let real = fs::canonicalize(path).expect("the folder");
        message
            .replace(&*real.to_string_lossy(), "BENCH")
            .replace(&*path.to_string_lossy(), "BENCH")
    }

    /// Where a merge to `out` is staged.
    pub(crate) fn staging(&self) -> PathBuf {
        self.path(".out.weld-staging")
    }

    /// Puts a model in the Hub cache as huggingface_hub does: blobs, links to them by commit, the branch's commit.
    pub(crate) fn hub_model(&self, repo: &str, branch: &str, commit: &str, specs: &[Spec]) {
        let root = format!("no-hub/hub/models--{}", repo.replace('/', "--"));
        self.tensors(&format!("{root}/blobs/weights-{commit}"), specs);
        let config = llama_config(2).to_string();
        self.file(&format!("{root}/blobs/config-{commit}"), config);
        self.file(&format!("{root}/refs/{branch}"), commit);
        let snapshot = self.path(&format!("{root}/snapshots/{commit}"));
        fs::create_dir_all(&snapshot).expect("folder");
        for (blob, name) in [("weights", "model.safetensors"), ("config", "config.json")] {
            let target = format!("../../blobs/{blob}-{commit}");
            std::os::unix::fs::symlink(target, snapshot.join(name)).expect("link");
        }
    }

    /// Writes a model of two shards and their index.
    pub(crate) fn sharded(&self, name: &str, config: &Value, specs: &[Spec]) -> PathBuf {
        self.file(&format!("{name}/config.json"), config.to_string());
        let mut weight_map = serde_json::Map::new();
        let (first, second) = specs.split_at(specs.len() / 2);
        for (number, part) in [first, second].into_iter().enumerate() {
            let file = format!("model-0000{}-of-00002.safetensors", number + 1);
            self.tensors(&format!("{name}/{file}"), part);
            weight_map.extend(
                part.iter()
                    .map(|spec| (spec.name.clone(), json!(file.clone()))),
            );
        }
        let total: usize = specs.iter().map(|spec| spec.bytes.len()).sum();
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        self.file(
            &format!("{name}/model.safetensors.index.json"),
            index.to_string(),
        );
        self.path(name)
    }

    /// Merges `recipe.yml` to `out` with more arguments and expects success.
    pub(crate) fn merge(&self, recipe: &str, more: &[&str]) -> PathBuf {
        self.recipe(recipe);
        let mut arguments = vec!["merge", "recipe.yml", "out", "--force", "-q"];
        arguments.extend(more);
        let outcome = self.weld(&arguments);
        assert_eq!(outcome.code, Some(0), "{}\n{recipe}", outcome.stderr);
        self.path("out")
    }

    /// Expects that a merge of the recipe is refused and writes nothing; gives the message. The exit code is 1, or 2 if
    /// a model is not there.
    pub(crate) fn refused(&self, recipe: &str, more: &[&str]) -> String {
        self.recipe(recipe);
        let mut arguments = vec!["merge", "recipe.yml", "out", "-q"];
        arguments.extend(more);
        let outcome = self.weld(&arguments);
        let code = refusal_code(&outcome.stderr);
        assert_eq!(outcome.code, Some(code), "{}", outcome.stderr);
        assert!(!self.path("out").exists(), "a refused merge left an output");
        let left: Vec<_> = fs::read_dir(self.dir.path())
            .expect("folder")
            .map(|entry| {
                entry
                    .expect("entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .filter(|name| name.contains("weld-"))
            .collect();
        assert!(left.is_empty(), "a refused merge left {left:?}");
        outcome.stderr
    }
}

/// The tensors without one of them.
pub(crate) fn without(mut specs: Vec<Spec>, name: &str) -> Vec<Spec> {
    let before = specs.len();
    specs.retain(|spec| spec.name != name);
    assert!(specs.len() < before, "there is no {name}");
    specs
}

/// The tensors with another in the place of that of its name, or after all.
pub(crate) fn with(mut specs: Vec<Spec>, new: Spec) -> Vec<Spec> {
    match specs.iter().position(|spec| spec.name == new.name) {
        Some(place) => specs[place] = new,
        None => specs.push(new),
    }
    specs
}

/// A config with other or more fields.
pub(crate) fn config_with(layers: usize, more: Value) -> Value {
    let mut config = llama_config(layers);
    let fields = config.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    config
}

/// What a plan, as JSON, says of an output tensor.
#[track_caller]
pub(crate) fn of_plan<'p>(plan: &'p Value, tensor: &str) -> &'p Value {
    let mut tensors = plan["tensors"].as_array().expect("tensors").iter();
    let found = tensors.find(|found| found["name"] == tensor);
    found.unwrap_or_else(|| panic!("the plan has no {tensor}"))
}

/// Reads a JSON file.
pub(crate) fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("file")).expect("JSON")
}

impl Bench {
    /// Expects a refusal of the recipe with a Hub cache in the folder; gives the message.
    pub(crate) fn refused_with_cache(&self, recipe: &str, cache: &str) -> String {
        self.recipe(recipe);
        let output = self
            .command()
            .env("HF_HUB_CACHE", self.path(cache))
            .args(["plan", "recipe.yml"])
            .output()
            .expect("weld starts");
        let message = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(refusal_code(&message)));
        message
    }
}

/// One tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Loaded {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Loaded {
    /// Its float values.
    pub(crate) fn values(&self) -> Vec<f64> {
        let format = FloatType::from_dtype(self.dtype).expect("a float dtype");
        let mut values = vec![0.0; self.bytes.len() / format.size()];
        format.decode(&self.bytes, &mut values);
        values
    }
}

/// All tensors of a file or of a folder's safetensors files, in file order.
pub(crate) fn load(path: &Path) -> Vec<(String, Loaded)> {
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        files = fs::read_dir(path)
            .expect("folder")
            .map(|entry| entry.expect("entry").path())
            .collect();
        files.retain(|file| {
            file.extension()
                .is_some_and(|extension| extension == "safetensors")
        });
        files.sort();
    }
    let mut tensors = Vec::new();
    for file in files {
        let bytes = fs::read(&file).expect("weights");
        let parsed = SafeTensors::deserialize(&bytes).expect("a sound file");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a sound header");
        for name in header.offset_keys() {
            let view = parsed.tensor(&name).expect("listed");
            let loaded = Loaded {
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                bytes: view.data().to_vec(),
            };
            tensors.push((name, loaded));
        }
    }
    tensors
}

/// All tensors of a checkpoint by name.
pub(crate) fn by_name(path: &Path) -> BTreeMap<String, Loaded> {
    load(path).into_iter().collect()
}

/// Every file of a folder with its bytes, by name.
pub(crate) fn files(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(path)
        .expect("folder")
        .map(|entry| entry.expect("entry").path())
        .map(|path| {
            (
                path.file_name()
                    .expect("a name")
                    .to_string_lossy()
                    .into_owned(),
                fs::read(&path).expect("file"),
            )
        })
        .collect();
    files.sort();
    files
}

/// The recipes of merges that ship, by name.
pub(crate) fn recipes() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let mut recipes: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yml"))
        .filter(|path| {
            fs::read_to_string(path)
                .unwrap()
                .contains("\nmerge_method:")
        })
        .collect();
    recipes.sort();
    recipes
}

/// Writes the tensors of the output anew.
pub(crate) fn rewrite(bench: &Bench, change: impl Fn(&mut Spec)) {
    let mut specs: Vec<Spec> = load(&bench.path("out"))
        .into_iter()
        .map(|(name, loaded)| Spec {
            name,
            dtype: loaded.dtype,
            shape: loaded.shape,
            bytes: loaded.bytes,
        })
        .collect();
    specs.iter_mut().for_each(change);
    bench.tensors("out/model.safetensors", &specs);
}
