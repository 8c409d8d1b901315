//! Fetches models: of weight files the headers, and the rest while a merge runs, or all at once.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt, TryStreamExt, stream};
use rustix::fs::statvfs;

use super::address::Address;
use super::client::{Client, Settings, Store};
use super::error::StoreError;
use super::list::{Entry, MAX_OBJECTS, list};
use super::read::Object;
use checkpoint::{
    MAX_HEADER_BYTES, Origin, RemoteFile, RemoteFiles, ScratchFile, ScratchFolder, ScratchUse,
    StoreFolder, StoredModel, StoredObject, Stores, Transfer, is_path_within, is_safetensors,
    is_weights, wanted,
};
use errors::Refusal;

/// The length of the number that a safetensors file begins with: that of its header.
const LENGTH_BYTES: u64 = 8;

/// How much of a weight file is asked for first: most headers are shorter.
const FIRST: u64 = 128 << 10;

/// How many small files are fetched at a time.
const AT_A_TIME: usize = 8;

/// The longest file beside weights that a web server may send.
const MAX_BESIDE_BYTES: u64 = 512 << 20;

/// What a folder on a web server may have beside its weights, as nothing lists it.
const BESIDE: [&str; 15] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "preprocessor_config.json",
    "adapter_config.json",
    "weldment.lock.json",
    "README.md",
];

/// The index of shards, and the files that hold all weights, in the order in which they are looked for.
const INDEX: &str = "model.safetensors.index.json";
const WHOLE: [&str; 2] = ["model.safetensors", "adapter_model.safetensors"];

/// What is done with the weight files of models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Their headers are read, and no more.
    Headers,
    /// They are fetched when the model is opened, and stay until it is closed.
    Whole,
    /// They are fetched while they are used, and dropped.
    InTurn,
}

/// Fetches models into folders that go with them.
pub struct Models {
    /// What the environment says. It is asked when the first model is.
    settings: Box<dyn Fn() -> Settings + Send + Sync>,
    /// What becomes of weight files.
    used: Use,
    /// Where the folders are made.
    cache: PathBuf,
    /// Whether the network is not to be used.
    offline: bool,
    observer: Arc<dyn Transfer>,
    state: Mutex<State>,
}

/// What there is already.
#[derive(Default)]
struct State {
    client: Option<Client>,
    /// What was fetched, by address.
    fetched: BTreeMap<String, StoreFolder>,
}

impl fmt::Debug for Models {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Models").finish_non_exhaustive()
    }
}

impl Models {
    /// Those that are fetched into `cache`.
    pub fn new(
        settings: impl Fn() -> Settings + Send + Sync + 'static,
        used: Use,
        cache: PathBuf,
        offline: bool,
        observer: Arc<dyn Transfer>,
    ) -> Models {
        Models {
            settings: Box::new(settings),
            used,
            cache,
            offline,
            observer,
            state: Mutex::default(),
        }
    }

    fn get(&self, address: &str) -> Result<StoreFolder, StoreError> {
        let address = Address::parse(address)?;
        if self.offline {
            return Err(StoreError::Offline);
        }
        // Held while it is fetched: nothing is fetched twice.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(folder) = state.fetched.get(address.text()) {
            return Ok(folder.clone());
        }
        let client = match state.client.take() {
            Some(client) => client,
            None => Client::new((self.settings)())?,
        };
        let store = state.client.insert(client).open(&address)?;
        let folder = ScratchFolder::new(&self.cache)
            .map_err(|source| StoreError::io("make a folder in", &self.cache, source))?;
        let stopped = || self.observer.stopped();
        let made = store.wait(&stopped, self.fetch_model(&store, Arc::new(folder)))?;
        state
            .fetched
            .insert(address.text().to_owned(), made.clone());
        Ok(made)
    }

    /// Fetches a model, or its headers, into a folder.
    async fn fetch_model(
        &self,
        store: &Store,
        scratch: Arc<ScratchFolder>,
    ) -> Result<StoreFolder, StoreError> {
        let address = &store.address;
        // `name` has no slash; a bucket by itself has no name of a file.
        let is_file = is_weights(address.name()) && is_path_within(address.name());
        let root = scratch.path().join("model");
        let entries = match (is_file, address.is_web()) {
            (true, _) => vec![Entry::of_address(store).await?],
            (false, true) => on_web(store).await?,
            (false, false) => listed(store).await?,
        };
        let entries: Vec<&Entry> = match is_file {
            true => entries.iter().collect(),
            false => wanted(&entries),
        };
        if let Some(bad) = entries.iter().find(|entry| !is_path_within(&entry.name)) {
            return Err(StoreError::BadName {
                address: address.text().to_owned(),
                name: bad.name.clone(),
            });
        }
        let comes_later = |entry: &&&Entry| {
            self.used != Use::Whole
                && is_weights(&entry.name)
                && (self.used == Use::Headers || is_safetensors(&entry.name))
        };
        let later: Vec<&Entry> = entries.iter().filter(comes_later).copied().collect();
        let now: Vec<&Entry> = (entries.iter().filter(|entry| !comes_later(entry)))
            .copied()
            .collect();
        if let Some(pickle) = later.iter().find(|entry| !is_safetensors(&entry.name)) {
            return Err(StoreError::PickledHeaders {
                what: store.name_of(&pickle.name),
            });
        }
        self.check_room(address, now.iter().map(|entry| entry.size))?;
        let mut objects = BTreeMap::new();
        let bytes = now
            .iter()
            .map(|entry| entry.size)
            .fold(0, u64::saturating_add);
        self.observer.begin(address.text(), bytes);
        let done = self
            .fetch_now(store, &now, &root, is_file, &mut objects)
            .await;
        self.observer.finish();
        done?;
        let mut remote: Vec<(PathBuf, Arc<dyn RemoteFile>)> = Vec::new();
        for entry in later {
            let (object, header) = header(store, entry, is_file).await?;
            let path = root.join(&entry.name);
            objects.insert(entry.name.clone(), stored(&object));
            let used = match self.used {
                Use::InTurn => ScratchUse::Fetched(Arc::clone(&scratch)),
                Use::Headers | Use::Whole => ScratchUse::HeaderOnly,
            };
            let origin = Box::new(Remote {
                object,
                observer: Arc::clone(&self.observer),
            });
            let file = ScratchFile::new(path.clone(), &header, origin, used);
            let file = file.map_err(|source| StoreError::io("write", &path, source))?;
            remote.push((path, Arc::new(file)));
        }
        Ok(StoreFolder {
            path: match is_file {
                true => root.join(address.name()),
                false => root,
            },
            remote: remote.into_iter().collect::<RemoteFiles>(),
            model: StoredModel {
                address: address.text().to_owned(),
                objects,
                folder: scratch,
            },
        })
    }

    /// Fetches files whole.
    async fn fetch_now(
        &self,
        store: &Store,
        entries: &[&Entry],
        root: &Path,
        is_file: bool,
        objects: &mut BTreeMap<String, StoredObject>,
    ) -> Result<(), StoreError> {
        let fetch = |entry: &Entry| {
            let (entry, path) = (entry.clone(), root.join(&entry.name));
            async move {
                let name = if is_file { "" } else { &entry.name };
                let (object, _) = Object::open(store, name, entry.size, 0).await?;
                let make = || {
                    fs::create_dir_all(path.parent().unwrap_or(root))?;
                    let mut options = File::options();
                    let options = options.read(true).write(true).create_new(true);
                    let file = options.open(&path)?;
                    file.set_len(entry.size)?;
                    Ok(file)
                };
                let file = make().map_err(|source| StoreError::io("write", &path, source))?;
                let came = |bytes| self.observer.advance(bytes);
                object.fetch(&file, &path, &came).await?;
                Ok::<_, StoreError>((entry.name, stored(&object)))
            }
        };
        let all = stream::iter(entries.iter().map(|entry| fetch(entry)));
        let done: Vec<(String, StoredObject)> =
            all.buffer_unordered(AT_A_TIME).try_collect().await?;
        objects.extend(done);
        Ok(())
    }

    /// Checks that the disk has room for so many bytes, if the system can tell.
    fn check_room(
        &self,
        address: &Address,
        sizes: impl Iterator<Item = u64>,
    ) -> Result<(), StoreError> {
        let needed = sizes.fold(0, u64::saturating_add);
        let free = match statvfs(&self.cache) {
            Ok(disk) => disk.f_bavail.saturating_mul(disk.f_frsize),
            Err(_) => return Ok(()),
        };
        match needed > free {
            true => Err(StoreError::NoRoom {
                address: address.text().to_owned(),
                folder: self.cache.clone(),
                needed,
                free,
            }),
            false => Ok(()),
        }
    }
}

impl Stores for Models {
    fn fetch(&self, address: &str) -> Result<StoreFolder, Refusal> {
        self.get(address).map_err(|error| Refusal::from(&error))
    }
}

impl Entry {
    /// The single file that an address names.
    async fn of_address(store: &Store) -> Result<Entry, StoreError> {
        let address = &store.address;
        match size_of(store, &address.path.clone(), address.text()).await? {
            Some(size) => Ok(Entry {
                name: address.name().to_owned(),
                size,
            }),
            None => Err(StoreError::Nothing {
                address: address.text().to_owned(),
            }),
        }
    }
}

/// The length of an object; `None` if there is none.
async fn size_of(
    store: &Store,
    path: &object_store::path::Path,
    what: &str,
) -> Result<Option<u64>, StoreError> {
    use object_store::ObjectStoreExt;
    match store.objects.head(path).await {
        Ok(seen) => Ok(Some(seen.size)),
        Err(object_store::Error::NotFound { source, .. })
            if !source.to_string().contains("NoSuchBucket") =>
        {
            Ok(None)
        }
        Err(error) => Err(StoreError::of(error, &format!("`{what}`"))),
    }
}

/// The files of a model, as the store lists them.
async fn listed(store: &Store) -> Result<Vec<Entry>, StoreError> {
    let address = store.address.text();
    let entries = list(store).await?;
    if entries.is_empty() {
        return Err(StoreError::Nothing {
            address: address.to_owned(),
        });
    }
    match entries.iter().any(|entry| is_weights(&entry.name)) {
        true => Ok(entries),
        // Something may need no more than a config or a tokenizer.
        false if entries.iter().any(|entry| entry.name.ends_with(".json")) => Ok(entries),
        false => Err(StoreError::NoWeights {
            address: address.to_owned(),
        }),
    }
}

/// The files of a folder on a web server, which lists nothing: the shards that the index names, or the file with all
/// weights, and what usually lies beside them.
async fn on_web(store: &Store) -> Result<Vec<Entry>, StoreError> {
    let find = |name: String| async move {
        let size = size_of(store, &store.address.below(&name), &name).await?;
        Ok::<_, StoreError>(size.map(|size| Entry { name, size }))
    };
    let names = BESIDE.iter().chain([&INDEX]).chain(&WHOLE);
    let found = stream::iter(names.map(|name| find((*name).to_owned()))).buffered(AT_A_TIME);
    let found: Vec<Option<Entry>> = found.try_collect().await?;
    let mut entries: Vec<Entry> = found.into_iter().flatten().collect();
    let large = |entry: &&Entry| !is_weights(&entry.name) && entry.size > MAX_BESIDE_BYTES;
    if let Some(large) = entries.iter().find(large) {
        return Err(StoreError::Wrong {
            what: store.name_of(&large.name),
            problem: format!("it has {} bytes, which no such file has", large.size),
        });
    }
    if let Some(index) = entries.iter().find(|entry| entry.name == INDEX) {
        let (_, text) = Object::open(store, INDEX, index.size, index.size).await?;
        let shards = shards_of(&text).ok_or_else(|| StoreError::Wrong {
            what: store.name_of(INDEX),
            problem: "it names no weight files as an index does".to_owned(),
        })?;
        for name in &shards {
            if !is_path_within(name) {
                return Err(StoreError::BadName {
                    address: store.address.text().to_owned(),
                    name: name.clone(),
                });
            }
        }
        let shards = shards
            .into_iter()
            .filter(|name| !WHOLE.contains(&name.as_str()));
        let found = stream::iter(shards.map(find)).buffered(AT_A_TIME);
        let found: Vec<Option<Entry>> = found.try_collect().await?;
        entries.extend(found.into_iter().flatten());
    }
    match entries.iter().any(|entry| is_weights(&entry.name)) {
        true => Ok(entries),
        false if entries.is_empty() => Err(StoreError::Nothing {
            address: store.address.text().to_owned(),
        }),
        false => Err(StoreError::NoWeights {
            address: store.address.text().to_owned(),
        }),
    }
}

/// The weight files that an index names, each once.
fn shards_of(index: &[u8]) -> Option<Vec<String>> {
    let index: serde_json::Value = serde_json::from_slice(index).ok()?;
    let names = index.get("weight_map")?.as_object()?.values();
    let mut names: Vec<String> = names
        .map(|name| name.as_str().map(str::to_owned))
        .collect::<Option<_>>()?;
    names.sort_unstable();
    names.dedup();
    (!names.is_empty() && names.len() <= MAX_OBJECTS).then_some(names)
}

/// The header of a weight file, with its length before it.
async fn header(
    store: &Store,
    entry: &Entry,
    is_file: bool,
) -> Result<(Object, Vec<u8>), StoreError> {
    let name = if is_file { "" } else { entry.name.as_str() };
    let (object, mut header) = Object::open(store, name, entry.size, FIRST).await?;
    let stated = header
        .first_chunk()
        .map_or(0, |length| u64::from_le_bytes(*length));
    let end = stated.saturating_add(LENGTH_BYTES);
    if entry.size < LENGTH_BYTES || stated > MAX_HEADER_BYTES || end > entry.size {
        return Err(StoreError::Header {
            what: object.what.clone(),
            found: stated,
            size: entry.size,
        });
    }
    let had = header.len() as u64;
    if had < end {
        header.extend(object.bytes(had..end).await?);
    }
    header.truncate(end as usize);
    Ok((object, header))
}

fn stored(object: &Object) -> StoredObject {
    StoredObject {
        bytes: object.seen.size,
        etag: object.seen.e_tag.clone(),
        version: object.seen.version.clone(),
    }
}

/// A weight file in a store.
struct Remote {
    object: Object,
    observer: Arc<dyn Transfer>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Remote").field(&self.object.what).finish()
    }
}

impl Origin for Remote {
    fn name(&self) -> String {
        self.object.what.clone()
    }

    fn size(&self) -> u64 {
        self.object.seen.size
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>, Refusal> {
        let stopped = || self.observer.stopped();
        let read = self.object.store.wait(&stopped, self.object.bytes(range));
        read.map_err(|error| Refusal::from(&error))
    }

    fn fetch(
        &self,
        file: &File,
        path: &Path,
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), Refusal> {
        let stopped = || stopped() || self.observer.stopped();
        let done = self
            .object
            .store
            .wait(&stopped, self.object.fetch(file, path, &|_| {}));
        done.map_err(|error| Refusal::from(&error))
    }
}
