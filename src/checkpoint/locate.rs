//! Finds a model on disk from its reference: local paths first, then the Hub cache, then what the caller gives to fetch
//! models with.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::CheckpointError;
use super::format::FileFormat;
use super::hub::{self, HubSnapshot};
use super::model_ref::ModelRef;
use super::nearby::{path_like, repository_like};
use super::remote::RemoteFiles;
use super::stores::{StoredModel, Stores, is_store_address, without_secrets};
use errors::{Hint, Refusal};

/// Fetches models from the Hub.
pub trait Fetch: fmt::Debug + Send + Sync {
    /// Fetches what is missing of a repository, `org/name`, at a revision: a branch, a tag or a commit. `cached` is the
    /// snapshot that the cache has of it.
    ///
    /// # Errors
    /// There is no such repository or revision, it cannot be reached, or what came is not what the Hub lists.
    fn fetch(
        &self,
        repo: &str,
        revision: &str,
        cached: Option<HubFolder>,
    ) -> Result<HubFolder, FetchError>;
}

/// Why a repository was not fetched.
#[derive(Debug)]
pub struct FetchError {
    /// What is wrong, and what to do.
    pub refusal: Refusal,
    /// Whether another name may be meant: there is no such repository, or nobody can be asked.
    pub may_be_misspelt: bool,
}

/// The folder of a repository of the Hub at a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubFolder {
    /// The folder.
    pub path: PathBuf,
    /// The commit.
    pub commit: String,
    /// The weight files of which only the headers are there.
    pub remote: RemoteFiles,
}

/// Where models are looked for. The command line fills it in, as the library reads no environment variables.
#[derive(Debug, Clone, Default)]
pub struct Locator {
    /// Relative paths are looked up here first.
    pub working_dir: PathBuf,
    /// Then here: the folder of the recipe.
    pub recipe_dir: Option<PathBuf>,
    /// The Hub cache (`HF_HUB_CACHE`, or `hub` under `HF_HOME`).
    pub hub_cache: Option<PathBuf>,
    /// Models that have moved: the reference in the recipe, without adapter, and the actual path.
    pub elsewhere: Vec<(String, PathBuf)>,
    /// The commits of models on the Hub that must not be other ones: the reference in the recipe, and the commit.
    pub pinned: Vec<(String, String)>,
    /// What fetches models that are not here.
    pub fetch: Option<Arc<dyn Fetch>>,
    /// What fetches models from object stores.
    pub stores: Option<Arc<dyn Stores>>,
}

/// Where a model is.
#[derive(Debug, Clone, PartialEq)]
pub struct Location {
    /// A folder, or a single file of weights.
    pub path: PathBuf,
    /// The entry of the file, or of the folder's pickles, that holds the tensors: its keys, joined by dots.
    pub entry: Option<String>,
    /// The snapshot, if the model was found in the Hub cache, or fetched.
    pub hub: Option<HubSnapshot>,
    /// What lies in the object store, if the model came from one.
    pub store: Option<StoredModel>,
    /// The weight files of which only the headers are there: what is not fetched reads as zeros.
    pub remote: RemoteFiles,
    /// The adapters that are applied to it, one after the other.
    pub adapters: Vec<AdapterLocation>,
}

/// Where an adapter is, and how much of it is applied.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterLocation {
    /// Its folder, or its file.
    pub location: Location,
    /// What its update is multiplied with.
    pub weight: f64,
}

impl Location {
    /// A local folder or file.
    pub fn local(path: impl Into<PathBuf>) -> Location {
        Location {
            path: path.into(),
            entry: None,
            hub: None,
            store: None,
            remote: RemoteFiles::default(),
            adapters: Vec::new(),
        }
    }

    /// The folders and files that make up the model.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.parts().map(|part| part.path.as_path())
    }

    /// The model and its adapters, each by itself.
    pub fn parts(&self) -> impl Iterator<Item = &Location> {
        let adapters = self.adapters.iter().map(|adapter| &adapter.location);
        std::iter::once(self).chain(adapters)
    }

    /// The model without its adapters.
    #[must_use]
    pub fn without_adapters(&self) -> Location {
        Location {
            adapters: Vec::new(),
            ..self.clone()
        }
    }
}

impl Locator {
    /// Finds a model: an existing local path, taken literally whatever characters it has, or a cached snapshot.
    ///
    /// # Errors
    /// Nothing of this name is there, what stands for it elsewhere cannot be opened, or its revision is none. The error
    /// says where it looked, and of which part: the model, or the adapter after a `+`.
    pub fn locate(&self, model: &ModelRef) -> Result<Location, CheckpointError> {
        let mut looked_in = Vec::new();
        let moved = |(text, _): &&(String, PathBuf)| text == model.text();
        if let Some((_, path)) = self.elsewhere.iter().find(moved) {
            let path = self.working_dir.join(path);
            // A name that is there as it is written has no entry.
            let literal = |entry: &String| path.to_string_lossy().ends_with(&format!("#{entry}"));
            return match fs::metadata(&path) {
                Ok(_) => Ok(Location {
                    entry: model.entry.clone().filter(|entry| !literal(entry)),
                    ..Location::local(path)
                }),
                Err(source) => Err(CheckpointError::io("open", &path, source)),
            };
        }
        if let Some(path) = self.find_local(model.text(), &mut looked_in) {
            return Ok(Location::local(path));
        }
        if let Some(base) = model.base() {
            return self.with_adapters(model, &base);
        }
        if let Some((whole, entry)) = model.whole_and_entry() {
            let location = self.locate(&whole)?;
            let entry = Some(entry);
            return Ok(Location { entry, ..location });
        }
        if is_store_address(model.text()) {
            return self.in_store(model);
        }
        let revision = model.revision.as_deref().unwrap_or(hub::DEFAULT_REVISION);
        if !hub::is_revision(revision) {
            return Err(CheckpointError::BadRevision {
                model: model.to_string(),
                revision: revision.into(),
            });
        }
        if self.can_be_on_hub(&model.path)
            && let Some(location) = self.on_hub(model, revision, &mut looked_in)?
        {
            return Ok(location);
        }
        Err(CheckpointError::NotFound {
            model: model.to_string(),
            looked_in,
            hint: self.hint(model),
            near: self.near(&model.path),
            download: download(model),
        })
    }

    /// Fetches a model from an object store.
    fn in_store(&self, model: &ModelRef) -> Result<Location, CheckpointError> {
        let found = match &self.stores {
            Some(stores) => stores.fetch(model.text()),
            None => Err(Refusal::new("this weld is built without object stores")
                .with_hint("build it with `--features store`, or copy the model to a folder")),
        };
        let found = found.map_err(|source| CheckpointError::NotFetched {
            model: without_secrets(model.text()),
            source,
        })?;
        Ok(Location {
            store: Some(found.model),
            remote: found.remote,
            ..Location::local(found.path)
        })
    }

    /// Whether a name can be that of a repository: what ends as a file of weights does is not asked for.
    fn can_be_on_hub(&self, path: &str) -> bool {
        let is_file = FileFormat::named(path).is_some();
        hub::is_repo_id(path) && !(is_file && self.fetch.is_some())
    }

    /// Finds a repository of the Hub in the cache, and fetches what is missing of it.
    fn on_hub(
        &self,
        model: &ModelRef,
        revision: &str,
        looked_in: &mut Vec<String>,
    ) -> Result<Option<Location>, CheckpointError> {
        let repo = &model.path;
        let mut find = |revision: &str| {
            let found = hub::find(self.hub_cache.as_ref()?, repo, revision);
            let (path, commit) = found.map_err(|place| looked_in.push(place)).ok()?;
            Some(HubFolder {
                path,
                commit,
                remote: RemoteFiles::default(),
            })
        };
        if model.revision.is_some() && self.find_local(repo, &mut Vec::new()).is_some() {
            return Ok(None);
        }
        let pin = self.pinned.iter().find(|(text, _)| text == model.text());
        let wanted = pin.map_or(revision, |(_, commit)| commit);
        let found = match (find(wanted), &self.fetch) {
            (cached, Some(fetch)) => {
                let fetched = fetch.fetch(repo, wanted, cached);
                Some(fetched.map_err(|error| self.not_fetched(model, error))?)
            }
            // Another commit than the one that is meant is better than nothing: whoever pins it compares it.
            (None, None) if pin.is_some() => find(revision),
            (cached, None) => cached,
        };
        Ok(found.map(|found| Location {
            remote: found.remote,
            hub: Some(HubSnapshot {
                repo: repo.clone(),
                revision: revision.into(),
                commit: found.commit,
            }),
            ..Location::local(found.path)
        }))
    }

    /// The error of a model that was not fetched, with the name that may be meant.
    fn not_fetched(&self, model: &ModelRef, error: FetchError) -> CheckpointError {
        let FetchError {
            refusal,
            may_be_misspelt,
        } = error;
        let near = self.near(&model.path).filter(|_| may_be_misspelt);
        let source = match (near, refusal.hint().map(|hint| hint.into_owned())) {
            (Some(near), Some(hint)) => refusal.with_hint(format!("{near} If not: {hint}")),
            (Some(near), None) => refusal.with_hint(near),
            (None, _) => refusal,
        };
        CheckpointError::NotFetched {
            model: model.to_string(),
            source,
        }
    }

    /// Finds a model and its adapters, each in the way a model is found.
    fn with_adapters(
        &self,
        model: &ModelRef,
        base: &ModelRef,
    ) -> Result<Location, CheckpointError> {
        let mut location = self.locate(base)?;
        for adapter in &model.adapters {
            let found = self.locate(&adapter.reference());
            let found = found.map_err(|source| CheckpointError::AdapterNotFound {
                model: model.to_string(),
                source: Box::new(source),
            })?;
            location.adapters.push(AdapterLocation {
                location: found,
                weight: adapter.weight(),
            });
        }
        Ok(location)
    }

    fn find_local(&self, text: &str, looked_in: &mut Vec<String>) -> Option<PathBuf> {
        for path in self.local_places(text) {
            match fs::metadata(&path) {
                Ok(_) => return Some(path),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    looked_in.push(path.display().to_string());
                }
                Err(error) => looked_in.push(format!("{} ({error})", path.display())),
            }
        }
        None
    }

    /// Joining an absolute path to a folder returns the path itself, so it is tried only once.
    fn local_places(&self, text: &str) -> Vec<PathBuf> {
        let mut places = vec![self.working_dir.join(text)];
        if let Some(recipe_dir) = &self.recipe_dir {
            places.push(recipe_dir.join(text));
        }
        places.dedup();
        places
    }

    fn hint(&self, model: &ModelRef) -> String {
        let path = &model.path;
        if path.starts_with('~') {
            return "write the home folder out: `~` is a shell's".into();
        }
        if let Some(revision) = &model.revision
            && self.find_local(path, &mut Vec::new()).is_some()
        {
            return match revision.parse::<f64>() {
                // A weight of an adapter, but for how it is written.
                Ok(weight) if weight.is_finite() => {
                    format!("write the weight in plain digits: `{path}@{weight}`")
                }
                _ => format!("`{path}` is local and has no revisions, drop `@{revision}`"),
            };
        }
        let near = self.near(path);
        if Path::new(path).is_absolute() || !hub::is_repo_id(path) {
            return near.unwrap_or_else(|| {
                "check the path; a relative one is looked for from the working folder, \
                    then from the recipe's"
                    .into()
            });
        }
        let download = download(model).unwrap_or_default();
        let download =
            format!("`{download}`, which the weld of `pip install weldment` does itself");
        match near {
            Some(near) => format!("{near} If not: {download}"),
            None => format!("check the path, or {download}"),
        }
    }

    /// The model there is whose name is most like this one, as a question.
    fn near(&self, path: &str) -> Option<String> {
        let mut folders = vec![self.working_dir.clone()];
        folders.extend(self.recipe_dir.clone());
        if let Some(near) = path_like(path, &folders) {
            return Some(format!("did you mean `{near}`?"));
        }
        let cache = self.hub_cache.as_deref()?;
        let near = repository_like(path, cache).filter(|_| hub::is_repo_id(path))?;
        Some(format!(
            "did you mean `{near}`, which is in the Hub's cache?"
        ))
    }
}

/// The command that fetches a model, if it can be a repository of the Hub.
fn download(model: &ModelRef) -> Option<String> {
    let path = hub::is_repo_id(&model.path).then_some(&model.path)?;
    Some(match &model.revision {
        Some(revision) => format!("hf download {path} --revision {revision}"),
        None => format!("hf download {path}"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{safetensors, write};
    use super::super::reader::Checkpoint;
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const OTHER: &str = "89abcdef0123456789abcdef0123456789abcdef";

    fn locator(root: &Path) -> Locator {
        Locator {
            working_dir: root.join("work"),
            recipe_dir: Some(root.join("recipes")),
            hub_cache: Some(root.join("hub")),
            ..Locator::default()
        }
    }

    fn locate(root: &Path, text: &str) -> Result<Location, CheckpointError> {
        locator(root).locate(&ModelRef::parse(text).unwrap())
    }

    #[test]
    fn local_paths_come_first_and_literally() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for dir in [
            "work/a",
            "work/a+b@c",
            "recipes/a",
            "recipes/r",
            "work/org/name",
        ] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        let cases = [
            ("a", "work/a"),
            ("a+b@c", "work/a+b@c"),
            ("r", "recipes/r"),
            ("../work/a", "work/../work/a"),
            ("org/name", "work/org/name"),
        ];
        for (text, expected) in cases {
            let location = locate(root, text).unwrap();
            assert_eq!(location, Location::local(root.join(expected)));
        }
        let absolute = root.join("work/a");
        let location = locate(root, absolute.to_str().unwrap()).unwrap();
        assert_eq!(location.path, absolute);
    }

    #[cfg(unix)]
    fn hub(root: &Path) -> PathBuf {
        let repo = root.join("hub/models--org--name");
        write(&repo.join("blobs/abc"), &safetensors(&[("w", "F32", &[2])]));
        for commit in [COMMIT, OTHER] {
            let snapshot = repo.join("snapshots").join(commit);
            fs::create_dir_all(&snapshot).unwrap();
            std::os::unix::fs::symlink("../../blobs/abc", snapshot.join("model.safetensors"))
                .unwrap();
        }
        write(&repo.join("refs/main"), COMMIT.as_bytes());
        write(&repo.join("refs/refs/pr/1"), OTHER.as_bytes());
        write(&repo.join("refs/broken"), b"../../../../etc");
        repo
    }

    #[test]
    #[cfg(unix)]
    fn the_hub_cache_is_read_as_huggingface_hub_writes_it() {
        let root = tempfile::tempdir().unwrap();
        let repo = hub(root.path());
        let cases = [
            ("org/name", "main", COMMIT),
            ("org/name@main", "main", COMMIT),
            ("org/name@refs/pr/1", "refs/pr/1", OTHER),
            (&format!("org/name@{OTHER}"), OTHER, OTHER),
        ];
        for (text, revision, commit) in cases {
            let location = locate(root.path(), text).unwrap();
            assert_eq!(location.path, repo.join("snapshots").join(commit));
            let snapshot = location.hub.clone().unwrap();
            assert_eq!(
                (
                    snapshot.repo.as_str(),
                    snapshot.revision.as_str(),
                    snapshot.commit.as_str()
                ),
                ("org/name", revision, commit)
            );
            let checkpoint = Checkpoint::open(text, &location).unwrap();
            assert_eq!(checkpoint.tensors().len(), 1);
        }
    }

    #[test]
    #[cfg(unix)]
    fn what_is_not_found_says_where_and_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        hub(root.path());
        fs::create_dir_all(root.path().join("work/there")).unwrap();
        let cases: [(&str, &[&str]); 9] = [
            (
                "org/none",
                &[
                    "work/org/none",
                    "recipes/org/none",
                    "models--org--none",
                    "hf download org/none",
                ],
            ),
            (
                "org/name@v2",
                &["refs/v2", "no such revision", COMMIT, "--revision v2"],
            ),
            ("org/name@broken", &["holds no commit hash"]),
            (
                "org/name@0000000000000000000000000000000000000000",
                &["no such snapshot"],
            ),
            ("org/name@../../x", &["is not a revision"]),
            ("org/name@/etc", &["is not a revision"]),
            ("a/b/c", &["work/a/b/c", "check the path"]),
            ("~/x", &["home folder"]),
            ("there@v1", &["is local and has no revisions"]),
        ];
        for (text, parts) in cases {
            let message = errors::in_one_line(&locate(root.path(), text).unwrap_err());
            for part in parts {
                assert!(message.contains(part), "{text}: {message}");
            }
        }
        let message = errors::in_one_line(&locate(root.path(), "org/name+org/lora").unwrap_err());
        for part in [
            "adapter of model `org/name+org/lora`",
            "`org/lora` not found",
            "hf download org/lora",
        ] {
            assert!(message.contains(part), "{message}");
        }
        let message = errors::in_one_line(&locate(root.path(), "org/none+there").unwrap_err());
        assert!(
            message.starts_with("model `org/none` not found"),
            "{message}"
        );
    }

    #[test]
    #[cfg(unix)]
    fn an_adapter_is_found_as_a_model_is() {
        let root = tempfile::tempdir().unwrap();
        let repo = hub(root.path());
        fs::create_dir_all(root.path().join("recipes/lora")).unwrap();
        let cases = [
            ("org/name+lora", COMMIT, root.path().join("recipes/lora")),
            (
                "org/name@refs/pr/1+org/name@main",
                OTHER,
                repo.join("snapshots").join(COMMIT),
            ),
        ];
        for (text, commit, adapter) in cases {
            let location = locate(root.path(), text).unwrap();
            assert_eq!(location.path, repo.join("snapshots").join(commit));
            assert_eq!(location.adapters[0].location.path, adapter);
            assert_eq!(location.paths().count(), 2);
        }
        // A folder with exactly that name is not a model with an adapter.
        fs::create_dir_all(root.path().join("work/a+b")).unwrap();
        assert_eq!(locate(root.path(), "a+b").unwrap().adapters, []);
    }

    #[test]
    fn an_entry_is_of_what_is_found_without_it() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for file in [
            "work/m.pt",
            "work/m#literal.pt",
            "moved/m.pt",
            "moved/m#literal.pt",
        ] {
            write(&root.join(file), b"x");
        }
        let found = |text: &str| {
            let location = locate(root, text).unwrap();
            (location.path, location.entry)
        };
        let entry = |entry: &str| Some(entry.to_owned());
        assert_eq!(
            found("m.pt#net.ema"),
            (root.join("work/m.pt"), entry("net.ema"))
        );
        assert_eq!(
            found("m#literal.pt"),
            (root.join("work/m#literal.pt"), None)
        );
        assert_eq!(
            found("m#literal.pt#net"),
            (root.join("work/m#literal.pt"), entry("net"))
        );
        // The same where the models have moved.
        let mut locator = locator(root);
        for name in ["m.pt#net.ema", "m#literal.pt"] {
            let file = name.replace("#net.ema", "");
            let moved = root.join("moved").join(file);
            locator.elsewhere.push((name.to_owned(), moved));
        }
        let moved = |text: &str| locator.locate(&ModelRef::parse(text).unwrap()).unwrap();
        assert_eq!(moved("m.pt#net.ema").path, root.join("moved/m.pt"));
        assert_eq!(moved("m.pt#net.ema").entry, entry("net.ema"));
        assert_eq!(moved("m#literal.pt").entry, None);
    }

    #[test]
    #[cfg(unix)]
    fn a_partial_download_is_an_error_that_names_the_shard() {
        let root = tempfile::tempdir().unwrap();
        let repo = hub(root.path());
        let snapshot = repo.join("snapshots").join(COMMIT);
        fs::remove_file(snapshot.join("model.safetensors")).unwrap();
        std::os::unix::fs::symlink("../../blobs/gone", snapshot.join("x.safetensors")).unwrap();
        let index = br#"{"weight_map": {"w": "x.safetensors"}}"#;
        write(&snapshot.join("model.safetensors.index.json"), index);
        let location = locate(root.path(), "org/name").unwrap();
        let message = errors::in_one_line(&Checkpoint::open("org/name", &location).unwrap_err());
        assert!(
            message.contains("shard x.safetensors is missing"),
            "{message}"
        );
        assert!(message.contains("hf download org/name"), "{message}");
    }
}
