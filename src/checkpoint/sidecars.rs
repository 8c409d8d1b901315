//! The files beside the weights that belong to a checkpoint: tokenizer, templates, processors, licences.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::bounded::read_bounded;
use super::composition::{components, is_module_dir, named_modules};
use super::config::ModelConfig;
use super::error::CheckpointError;
use super::folder::file_names;
use super::format::FileFormat;
use super::home::file_in;
use super::json::{is_lfs_pointer, parse_json};
use super::left_out::{self, LeftOut, file_by_content, file_by_name, is_weights};
use super::limits::{
    MAX_CARRIED_ENTRIES, MAX_FOLDER_DEPTH, MAX_SIDECAR_BYTES, MAX_TOKENIZER_BYTES,
};
use super::weight_names::{is_model, is_of_training};

/// A file that is copied to a checkpoint made from this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sidecar {
    /// Its path within the folder: plain names joined by `/`.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What it is for.
    pub kind: SidecarKind,
}

impl Sidecar {
    /// Whether it is only a Git LFS pointer.
    pub fn is_lfs_pointer(&self) -> bool {
        let mut head = Vec::new();
        let read = File::open(&self.path).and_then(|file| file.take(64).read_to_end(&mut head));
        read.is_ok() && is_lfs_pointer(&head)
    }

    /// Whether it holds weights of a module or a head besides the model.
    pub fn is_weights(&self) -> bool {
        is_weights(&self.name)
    }
}

/// What a sidecar file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SidecarKind {
    /// Vocabulary, merges, special tokens.
    Tokenizer,
    /// How a conversation is written as tokens.
    ChatTemplate,
    /// Defaults of generation.
    Generation,
    /// How images, sound and video become input.
    Processor,
    /// Python that the config's `auto_map` points to.
    Code,
    /// Licences and notices.
    Licence,
    /// The modules of a sentence-transformers model, and heads beside the weights.
    Module,
    /// Any other file.
    Other,
}

/// The folder where transformers keeps templates other than the default one.
const TEMPLATES_DIR: &str = "additional_chat_templates";

/// Sidecars by their full name.
const NAMES: [(&str, SidecarKind); 41] = [
    ("bpe.codes", SidecarKind::Tokenizer),
    ("byte_maps.json", SidecarKind::Tokenizer),
    ("dict.txt", SidecarKind::Tokenizer),
    ("emoji.json", SidecarKind::Tokenizer),
    ("encoder.json", SidecarKind::Tokenizer),
    ("entity_vocab.json", SidecarKind::Tokenizer),
    ("monolingual_vocab.txt", SidecarKind::Tokenizer),
    ("prophetnet.tokenizer", SidecarKind::Tokenizer),
    ("target_vocab.json", SidecarKind::Tokenizer),
    ("vocab-src.json", SidecarKind::Tokenizer),
    ("vocab-tgt.json", SidecarKind::Tokenizer),
    ("vocab.bpe", SidecarKind::Tokenizer),
    // Heads that embedding and reward models keep beside their weights.
    ("colbert_linear.pt", SidecarKind::Module),
    ("sparse_linear.pt", SidecarKind::Module),
    ("value_head.safetensors", SidecarKind::Module),
    ("added_tokens.json", SidecarKind::Tokenizer),
    ("merges.txt", SidecarKind::Tokenizer),
    ("normalizer.json", SidecarKind::Tokenizer),
    ("special_tokens_map.json", SidecarKind::Tokenizer),
    ("tekken.json", SidecarKind::Tokenizer),
    ("tokenizer.json", SidecarKind::Tokenizer),
    ("tokenizer_config.json", SidecarKind::Tokenizer),
    ("vocab.json", SidecarKind::Tokenizer),
    ("vocab.txt", SidecarKind::Tokenizer),
    ("word_pronunciation.json", SidecarKind::Tokenizer),
    ("word_shape.json", SidecarKind::Tokenizer),
    ("chat_template.jinja", SidecarKind::ChatTemplate),
    ("chat_template.json", SidecarKind::ChatTemplate),
    ("generation_config.json", SidecarKind::Generation),
    ("audio_processor_config.json", SidecarKind::Processor),
    ("feature_extractor.json", SidecarKind::Processor),
    ("feature_extractor_config.json", SidecarKind::Processor),
    ("image_processor.json", SidecarKind::Processor),
    ("image_processor_config.json", SidecarKind::Processor),
    ("preprocessor_config.json", SidecarKind::Processor),
    ("processor_config.json", SidecarKind::Processor),
    ("video_preprocessor_config.json", SidecarKind::Processor),
    ("video_processor_config.json", SidecarKind::Processor),
    ("config_sentence_transformers.json", SidecarKind::Module),
    ("modules.json", SidecarKind::Module),
    ("sentence_bert_config.json", SidecarKind::Module),
];

/// Vocabularies by the ending of their name: sentencepiece (`spiece.model`, `source.spm`) and tiktoken.
const TOKENIZER_ENDS: [&str; 3] = [".model", ".spm", ".tiktoken"];

/// Legal files by the start of their name, in capitals.
const LEGAL_STARTS: [&str; 4] = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"];

/// The bytes of a file beside the weights.
///
/// # Errors
/// It cannot be read, or is larger than any real one.
pub fn read_sidecar(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    read_bounded(path, MAX_SIDECAR_BYTES, "file, in bytes")
}

/// What lies beside the weights of a folder.
struct Beside {
    /// What is carried, in name order: its name, its kind, and its path or why it cannot be read.
    files: Vec<(String, SidecarKind, Result<PathBuf, CheckpointError>)>,
    left_out: Vec<LeftOut>,
}

/// The sidecars of a folder, in name order. Links are followed within the folder and to the blobs of the Hub's cache,
/// as its snapshots consist of them.
pub(super) fn find_sidecars(
    folder: &Path,
    config: Option<&ModelConfig>,
) -> Result<Vec<Sidecar>, CheckpointError> {
    let found = Beside::find(folder, config)?.files.into_iter();
    let found = found.filter_map(|(name, kind, path)| {
        let path = path.ok()?;
        Some(Sidecar { name, path, kind })
    });
    Ok(found.collect())
}

/// What a loader would look for and cannot be read as a file of the folder, in name order.
pub(super) fn unreadable(
    folder: &Path,
    config: Option<&ModelConfig>,
) -> Result<Vec<(SidecarKind, CheckpointError)>, CheckpointError> {
    let found = Beside::find(folder, config)?.files.into_iter();
    Ok(found
        .filter_map(|(_, kind, path)| Some((kind, path.err()?)))
        .collect())
}

/// What lies beside the weights and is not carried, in name order: without the weights themselves, hidden files, and
/// what an output has of its own.
pub(super) fn left_out(
    folder: &Path,
    config: Option<&ModelConfig>,
) -> Result<Vec<LeftOut>, CheckpointError> {
    Ok(Beside::find(folder, config)?.left_out)
}

impl Beside {
    fn find(folder: &Path, config: Option<&ModelConfig>) -> Result<Beside, CheckpointError> {
        let names = file_names(folder)?;
        let has_code = config.is_some_and(|config| config.get("auto_map").is_some())
            || names.iter().any(|name| names_code(folder, name));
        let parts = Inside::list(folder);
        let mut beside = Beside {
            files: Vec::new(),
            left_out: Vec::new(),
        };
        let mut entries = 0;
        // The folders still to list: the start of their files' paths, the names in them, their depth.
        let mut waiting = vec![(String::new(), names, 0)];
        while let Some((before, names, depth)) = waiting.pop() {
            entries += names.len();
            let is_module = parts
                .modules
                .iter()
                .any(|module| before == format!("{module}/"));
            for name in names {
                let path = format!("{before}{name}");
                let known = match before.as_str() {
                    _ if is_module => Some(SidecarKind::Module),
                    "" => kind_of(&name, has_code),
                    _ if name.starts_with('.') => None,
                    before if before == format!("{TEMPLATES_DIR}/") && name.ends_with(".jinja") => {
                        Some(SidecarKind::ChatTemplate)
                    }
                    _ => (has_code && name.ends_with(".py")).then_some(SidecarKind::Code),
                };
                let is_dir = folder.join(&path).is_dir();
                match known {
                    // A folder that is called LICENSES or x.model is something else.
                    Some(kind) if !is_dir || is_module || is_known(&name) => {
                        beside.add(folder, path, kind)
                    }
                    _ if name.starts_with('.') || (before.is_empty() && is_of_output(&name)) => {}
                    _ if !is_dir => beside.add_other(folder, path),
                    _ => match enter(folder, &path, depth, entries, &parts) {
                        Ok(inside) => waiting.push((path + "/", inside, depth + 1)),
                        Err(why) => beside.leave(path + "/", why),
                    },
                }
            }
        }
        beside.files.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        beside.left_out.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(beside)
    }

    /// Adds a file that a loader may look for.
    fn add(&mut self, folder: &Path, name: String, kind: SidecarKind) {
        if let Some(path) = file_in(folder, &name).transpose() {
            self.files.push((name, kind, path));
        }
    }

    /// Adds a file that nothing here knows, unless a rule leaves it out.
    fn add_other(&mut self, folder: &Path, name: String) {
        let last = name.rsplit('/').next().unwrap_or_default();
        // What the opening of the weights found has notes of its own.
        let is_found = !name.contains('/') && is_weights(last) && !is_of_training(last);
        let by_name = file_by_name(last);
        match (by_name, file_in(folder, &name)) {
            _ if is_found => {}
            (Some(why), _) => self.leave(name, why),
            (None, Ok(Some(path))) => match file_by_content(&path) {
                Some(why) => self.leave(name, why),
                None => self.files.push((name, SidecarKind::Other, Ok(path))),
            },
            (None, Ok(None)) => {}
            (None, Err(_)) => self.leave(
                name,
                "links out of the folder or to nothing, pipes and devices",
            ),
        }
    }

    fn leave(&mut self, name: String, why: &'static str) {
        self.left_out.push(LeftOut { name, why });
    }
}

/// The names in a subfolder, or why it is left out.
fn enter(
    folder: &Path,
    path: &str,
    depth: usize,
    entries: usize,
    parts: &Inside,
) -> Result<BTreeSet<String>, &'static str> {
    let inside = file_names(&folder.join(path)).map_err(|_| "folders that cannot be listed")?;
    if parts.holds(path) {
        return Ok(inside);
    }
    let is_link = fs::symlink_metadata(folder.join(path)).is_ok_and(|found| found.is_symlink());
    if is_link {
        return Err("links to folders");
    }
    if depth == MAX_FOLDER_DEPTH || entries + inside.len() > MAX_CARRIED_ENTRIES {
        return Err("folders with too many files, or too deep");
    }
    let name = path.rsplit('/').next().unwrap_or(path);
    left_out::folder(name, &inside).map_or(Ok(inside), Err)
}

/// Whether the output has a file of that name that is made for it, or that goes with its weights.
fn is_of_output(name: &str) -> bool {
    let made = ["config.json", "README.md", "weldment.lock.json"];
    let indexes = [FileFormat::Safetensors, FileFormat::Pickle].map(FileFormat::index_end);
    made.contains(&name) || indexes.iter().any(|end| name.ends_with(end))
}

/// Whether a sidecar is known by its full name.
fn is_known(name: &str) -> bool {
    NAMES.iter().any(|(known, _)| *known == name)
}

/// Whether a file of that name is carried to an output, whatever it holds.
pub(super) fn is_carried(name: &str) -> bool {
    kind_of(name, false).is_some_and(|kind| kind != SidecarKind::Licence)
}

/// What a file of that name is for, of those that are carried wherever they are.
pub(super) fn kind_of(name: &str, has_code: bool) -> Option<SidecarKind> {
    if let Some((_, kind)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(*kind);
    }
    if file_by_name(name).is_some() {
        return None;
    }
    let upper = name.to_ascii_uppercase();
    if LEGAL_STARTS.iter().any(|start| upper.starts_with(start)) {
        return Some(SidecarKind::Licence);
    }
    if TOKENIZER_ENDS.iter().any(|end| name.ends_with(end)) || name.starts_with("tokenizer.model") {
        return Some(SidecarKind::Tokenizer);
    }
    (has_code && name.ends_with(".py")).then_some(SidecarKind::Code)
}

/// Whether a config beside the weights, such as that of a tokenizer or a processor, points to Python files.
fn names_code(folder: &Path, name: &str) -> bool {
    let is_config = NAMES
        .iter()
        .any(|(known, _)| *known == name && name.ends_with("_config.json"));
    let read = || {
        let path = file_in(folder, name).ok().flatten()?;
        read_bounded(&path, MAX_TOKENIZER_BYTES, "settings, in bytes").ok()
    };
    let code =
        |bytes: Vec<u8>| parse_json(&bytes).is_ok_and(|config| config.get("auto_map").is_some());
    is_config && read().is_some_and(code)
}

/// The folders that are looked into whatever they hold: those of modules, and of a pipeline's components.
struct Inside {
    modules: Vec<String>,
    components: Vec<String>,
}

impl Inside {
    fn list(folder: &Path) -> Inside {
        let (mut modules, _) = named_modules(folder);
        // `0_Transformer` is the model itself.
        let names = file_names(folder).unwrap_or_default();
        modules.extend(names.iter().filter(|name| is_module_dir(name)).cloned());
        if names.iter().any(|name| is_model(name)) {
            modules.retain(|name| !name.ends_with("_Transformer"));
        }
        Inside {
            modules,
            components: components(folder).unwrap_or_default(),
        }
    }

    fn holds(&self, path: &str) -> bool {
        let mut folders = self.modules.iter().chain(&self.components);
        folders.any(|folder| folder == path)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::write;
    use super::*;

    fn names(files: &[&str], config: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            write(&folder.path().join(file), b"{}");
        }
        write(&folder.path().join("config.json"), config.as_bytes());
        let config = ModelConfig::read(folder.path()).unwrap();
        let sidecars = find_sidecars(folder.path(), config.as_ref()).unwrap();
        sidecars.into_iter().map(|sidecar| sidecar.name).collect()
    }

    #[test]
    fn what_belongs_to_the_checkpoint_is_carried_and_nothing_else() {
        let carried = [
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "LICENSE.md",
            "NOTICE",
            "additional_chat_templates/tool.jinja",
            "assets/voice.json",
            "bpe.codes",
            "chat_template.jinja",
            "colbert_linear.pt",
            "generation_config.json",
            "media_io.py",
            "modules.json",
            "preprocessor_config.json",
            "pronunciation.dict",
            "qwen.tiktoken",
            "sentencepiece.bpe.model",
            "tokenizer.json",
            "tokenizer.model.v3",
        ];
        let left = [
            "0_Transformer/pytorch_model.bin",
            "README.md",
            "model.safetensors",
            "model.safetensors.index.json",
            "training_args.bin",
            "optimizer.pt",
            "rng_state_0.pth",
            "trainer_state.json",
            ".gitattributes",
            "assets/.cache/x.json",
            "checkpoint-500/tokenizer.json",
            "finetuned/config.json",
            "finetuned/model.safetensors",
            "mergekit_config.yml",
            "model.gguf",
            "onnx/config.json",
            "tool.exe",
            "vocab.json.incomplete",
            "tokenizer_config.json/x",
            "LICENSE.bin",
            "original/tokenizer.model",
        ];
        let all = [carried.as_slice(), &left].concat();
        assert_eq!(names(&all, "{}"), carried);
        let code = names(
            &["modeling_x.py"],
            r#"{"auto_map": {"AutoModel": "modeling_x.X"}}"#,
        );
        assert_eq!(code, ["modeling_x.py"]);
    }

    #[test]
    fn code_that_a_tokenizers_config_names_is_carried_with_its_packages() {
        let folder = tempfile::tempdir().unwrap();
        let map = br#"{"auto_map": {"AutoTokenizer": ["tokenization_x.T", null]}}"#;
        write(&folder.path().join("tokenizer_config.json"), map);
        for file in [
            "tokenization_x.py",
            "parts/bpe.py",
            "parts/notes.txt",
            ".git/hook.py",
        ] {
            write(&folder.path().join(file), b"pass");
        }
        let sidecars = find_sidecars(folder.path(), None).unwrap();
        let names: Vec<&str> = sidecars.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "parts/bpe.py",
                "parts/notes.txt",
                "tokenization_x.py",
                "tokenizer_config.json"
            ]
        );
    }

    #[test]
    #[cfg(unix)]
    fn links_are_followed_within_the_folder_and_what_is_not_read_is_said() {
        let around = tempfile::tempdir().unwrap();
        let folder = around.path().join("model");
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, folder.join(name)).unwrap();
        };
        write(&around.path().join("secret"), b"x");
        write(&folder.join("blobs/1"), b"x");
        write(&folder.join("LICENSES/MIT"), b"x");
        link("blobs/1", "tokenizer.json");
        link("blobs/gone", "vocab.json");
        link("blobs", "merges.txt");
        link("/dev/null", "vocab.txt");
        link("../secret", "LICENSE");
        let sidecars = find_sidecars(&folder, None).unwrap();
        let kinds: Vec<(&str, SidecarKind)> = sidecars
            .iter()
            .map(|file| (file.name.as_str(), file.kind))
            .collect();
        let expected = [
            ("LICENSES/MIT", SidecarKind::Other),
            ("blobs/1", SidecarKind::Other),
            ("tokenizer.json", SidecarKind::Tokenizer),
        ];
        assert_eq!(kinds, expected);
        let problems = unreadable(&folder, None).unwrap();
        let messages: Vec<String> = problems
            .iter()
            .map(|(_, error)| error.to_string())
            .collect();
        let expected = [
            ("LICENSE", "a link out of the model's folder"),
            ("merges.txt", "a folder"),
            ("vocab.json", "a link to nothing"),
            ("vocab.txt", "a link out of the model's folder"),
        ];
        assert_eq!(messages.len(), expected.len(), "{messages:?}");
        for (message, (name, what)) in messages.iter().zip(expected) {
            assert!(
                message.contains(name) && message.contains(what),
                "{message}"
            );
        }
    }

    /// A snapshot's files are links to blobs beside the snapshots, at any depth; blobs that are a link are not trusted.
    #[test]
    #[cfg(unix)]
    fn blobs_of_the_hubs_cache_belong_to_its_snapshots() {
        let cache = tempfile::tempdir().unwrap();
        let repo = cache.path().join("models--org--name");
        let snapshot = repo.join("snapshots/0123");
        let link = |target: &str, at: &Path| {
            std::fs::create_dir_all(at.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(target, at).unwrap();
        };
        write(&repo.join("blobs/1"), b"{}");
        link("../../blobs/1", &snapshot.join("tokenizer.json"));
        link("../../blobs/gone", &snapshot.join("vocab.json"));
        link(
            "../../../blobs/1",
            &snapshot.join("text_encoder/vocab.json"),
        );
        assert_eq!(find_sidecars(&snapshot, None).unwrap().len(), 2);
        assert_eq!(
            find_sidecars(&snapshot.join("text_encoder"), None)
                .unwrap()
                .len(),
            1
        );
        let problems = unreadable(&snapshot, None).unwrap();
        let message = errors::in_one_line(&problems[0].1);
        assert!(
            message.contains("hf download org/name --revision 0123"),
            "{message}"
        );
        std::fs::rename(repo.join("blobs"), cache.path().join("elsewhere")).unwrap();
        link("../elsewhere", &repo.join("blobs"));
        assert_eq!(find_sidecars(&snapshot, None).unwrap(), []);
    }
}
