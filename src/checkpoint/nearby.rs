//! "did you mean": the folder, file or cached repository most similar to a name that is not there.

use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::weight_names::{ADAPTERS, is_index, is_model};

/// Longer names get no suggestion: computing the distance costs the product of the lengths.
const MAX_NAME_BYTES: usize = 64;

/// The most entries of a folder that are compared.
const MAX_ENTRIES: usize = 10_000;

/// The most similar of the known names, if at most a third of the letters differ.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if MAX_NAME_BYTES < name.len() {
        return None;
    }
    let name = name.to_lowercase();
    known
        .into_iter()
        .map(|candidate| {
            let distance = strsim::damerau_levenshtein(&name, &candidate.to_lowercase());
            (distance, candidate)
        })
        .filter(|(distance, candidate)| *distance <= name.len().max(candidate.len()).max(3) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// A path below one of the folders that is like `text` and leads to a model, as a user would write it.
pub(super) fn path_like(text: &str, folders: &[PathBuf]) -> Option<String> {
    let similar = |folder: &PathBuf| similar(Path::new(text), folder, &holds_model);
    let found = folders.iter().find_map(similar);
    let found = found.or_else(|| folders.iter().find_map(|folder| end_of(text, folder)))?;
    found.to_str().map(str::to_owned)
}

/// A file that is like `path`, from the working folder on, and whose name has one of these endings.
pub fn file_like(path: &Path, ends: &[&str]) -> Option<PathBuf> {
    let fits = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str());
        path.is_file() && name.is_some_and(|name| ends.iter().any(|end| name.ends_with(end)))
    };
    similar(path, Path::new(""), &fits)
}

/// The path with each part that is not there replaced by the most similar one that is, if it leads to what is wanted.
fn similar(text: &Path, folder: &Path, wanted: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
    let mut parts = text.components().peekable();
    let mut path = PathBuf::new();
    while let Some(part) = parts.next() {
        let is_last = parts.peek().is_none();
        let Component::Normal(name) = part else {
            path.push(part);
            continue;
        };
        let place = folder.join(&path);
        let fits = |path: &Path| match is_last {
            true => wanted(path),
            false => path.is_dir(),
        };
        if !fits(&place.join(name)) {
            let names: Vec<String> = names(&place)
                .filter(|name| fits(&place.join(name)))
                .collect();
            path.push(nearest(name.to_str()?, names.iter().map(String::as_str))?);
        } else {
            path.push(name);
        }
    }
    (path != text && wanted(&folder.join(&path))).then_some(path)
}

/// The end of the path, if that is there: `models/a` where the working folder is `models`.
fn end_of(text: &str, folder: &Path) -> Option<PathBuf> {
    let mut parts = Path::new(text).components();
    parts.next()?;
    while parts.clone().next().is_some() {
        let rest = parts.as_path();
        if holds_model(&folder.join(rest)) {
            return Some(rest.to_owned());
        }
        parts.next();
    }
    None
}

/// The repository of a Hub cache whose id is most like `id`: a name that is misspelt, or that another owner has.
pub(super) fn repository_like(id: &str, cache: &Path) -> Option<String> {
    let ids = names(cache).filter_map(|name| {
        let id = name.strip_prefix("models--")?.replace("--", "/");
        cache.join(&name).join("snapshots").is_dir().then_some(id)
    });
    let mut ids: Vec<String> = ids.collect();
    ids.sort();
    let name = |id: &str| id.rsplit('/').next().unwrap_or(id).to_lowercase();
    let of_another = || ids.iter().find(|other| name(other) == name(id));
    let near = nearest(id, ids.iter().map(String::as_str));
    near.or_else(|| of_another().map(String::as_str))
        .filter(|near| *near != id)
        .map(str::to_owned)
}

/// The names of a folder's entries that are text; of the working folder, if the path is empty.
fn names(folder: &Path) -> impl Iterator<Item = String> {
    let folder = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.take(MAX_ENTRIES).map(|entry| entry.file_name());
    names.map(OsString::into_string).filter_map(Result::ok)
}

/// Whether a path is a file of weights, or a folder with a model or an adapter.
fn holds_model(path: &Path) -> bool {
    let told = |name: &str| {
        is_model(name)
            || is_index(name)
            || ADAPTERS.contains(&name)
            || name == "config.json"
            || name == "model_index.json"
    };
    match path.is_dir() {
        true => names(path).any(|name| told(&name)),
        false => {
            let name = path.file_name().and_then(|name| name.to_str());
            path.is_file() && name.is_some_and(is_model)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::write;
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let known = ["weight", "density", "normalize", "t"];
        let check = |name: &str, expected: Option<&str>| {
            assert_eq!(nearest(name, known), expected, "{name}");
        };
        check("wieght", Some("weight"));
        check("WEIGHTS", Some("weight"));
        check("normalise", Some("normalize"));
        check("denisty", Some("density"));
        check("gamma", None);
        check("", Some("t"));
        check(&"weight".repeat(100), None);
    }

    #[test]
    fn misspelt_paths_lead_to_models_and_to_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let (work, recipes) = (root.path().join("work"), root.path().join("recipes"));
        for file in [
            "work/models/llama-base/config.json",
            "work/models/notes/readme.txt",
            "work/models/m.safetensors",
            "work/lora/adapter_model.safetensors",
            "recipes/family/cipher/model.safetensors",
        ] {
            write(&root.path().join(file), b"x");
        }
        let folders = [work, recipes];
        let check = |text: &str, expected: Option<&str>| {
            let found = path_like(text, &folders);
            assert_eq!(found.as_deref(), expected, "{text}");
        };
        check("models/lama-base", Some("models/llama-base"));
        check("model/LLaMA-Base", Some("models/llama-base"));
        check("family/cihper", Some("family/cipher"));
        check("./famly/cipher", Some("./family/cipher"));
        check("models/m.safetensor", Some("models/m.safetensors"));
        check("loras", Some("lora"));
        // The working folder is already the one that the path begins with.
        check("work/models/llama-base", Some("models/llama-base"));
        check("models/note", None);
        check("models", None);
        check("gpt2", None);
        check("", None);
        check("../work/lora2", Some("../work/lora"));
        let absolute = folders[0].join("models/lama-base");
        let near = folders[0].join("models/llama-base");
        check(absolute.to_str().unwrap(), near.to_str());
    }

    #[test]
    fn misspelt_files_lead_to_files_of_their_kind() {
        let root = tempfile::tempdir().unwrap();
        for file in ["recipes/ties.yml", "recipes/tides.md", "recipes/dare.yaml"] {
            write(&root.path().join(file), b"x");
        }
        let check = |text: &str, expected: Option<&str>| {
            let found = file_like(&root.path().join(text), &[".yml", ".yaml"]);
            assert_eq!(found, expected.map(|near| root.path().join(near)), "{text}");
        };
        check("recipes/tiess.yml", Some("recipes/ties.yml"));
        check("recipies/ties.yaml", Some("recipes/ties.yml"));
        check("recipes/dare.yml", Some("recipes/dare.yaml"));
        check("recipes/slerp.yml", None);
        check("other/ties.yml", None);
    }

    #[test]
    fn cached_repositories_are_suggested_by_name_or_spelling() {
        let cache = tempfile::tempdir().unwrap();
        for repo in ["models--Qwen--Qwen3-0.6B", "models--gpt2"] {
            fs::create_dir_all(cache.path().join(repo).join("snapshots")).unwrap();
        }
        fs::create_dir_all(cache.path().join("models--gone--x")).unwrap();
        let check = |id: &str, expected: Option<&str>| {
            let found = repository_like(id, cache.path());
            assert_eq!(found.as_deref(), expected, "{id}");
        };
        check("Qwen/Qwen3-0.6b", Some("Qwen/Qwen3-0.6B"));
        check("qwen/Qwen-0.6B", Some("Qwen/Qwen3-0.6B"));
        check("unsloth/qwen3-0.6b", Some("Qwen/Qwen3-0.6B"));
        check("gpt3", Some("gpt2"));
        check("openai-community/gpt2", Some("gpt2"));
        check("gone/x", None);
        check("meta-llama/Llama-3.1-8B", None);
    }
}
