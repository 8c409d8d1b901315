//! An object store as the place of a checkpoint.
//!
//! Weight files go there in pieces while they are computed, and nobody sees them: a store shows an upload when it is
//! completed. All other files wait on the local disk. At the end the uploads are completed, then the other files go, and
//! the config last of all: without it nothing takes the folder for a checkpoint.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::fmt;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{ObjectStoreExt, PutPayload};

use super::address::Address;
use super::client::{Client, Settings, Store};
use super::error::StoreError;
use super::list::{Entry, list};
use super::marker::{MARKER, Marker, remove};
use super::parts::{PartsStore, StoredPart};
use super::spill::PIECE;
use super::uploads::{AT_A_TIME, Upload, Uploads, call_off};
use checkpoint::{ScratchFolder, Transfer};
use engine::Tile;
use errors::Refusal;
use run::destination::{Chunks, Destination, Held, Layout, Parts, Staged};
use run::{Part, RunError};

/// What makes a folder a checkpoint: one of these in it.
const CONFIGS: [&str; 3] = ["config.json", "adapter_config.json", "model_index.json"];

/// The ending of the index of weight files.
const INDEX: &str = ".safetensors.index.json";

/// A folder in an object store.
pub struct Output {
    address: Address,
    path: PathBuf,
    force: bool,
    settings: Settings,
    cache: PathBuf,
    observer: Arc<dyn Transfer>,
    store: Mutex<Option<Store>>,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Output").field(&self.path).finish()
    }
}

impl Output {
    /// The folder at an address; with `force` a checkpoint that is there is replaced. What is on its way lies in a folder
    /// of `cache`.
    ///
    /// # Errors
    /// It is no address, or one of a web server, which takes nothing.
    pub fn new(
        address: &str,
        force: bool,
        settings: Settings,
        cache: PathBuf,
        observer: Arc<dyn Transfer>,
    ) -> Result<Output, StoreError> {
        let address = Address::parse(address)?;
        if address.is_web() {
            return Err(StoreError::OnWeb {
                address: address.text().to_owned(),
            });
        }
        if address.path.parts().next().is_none() {
            return Err(StoreError::BadAddress {
                address: address.text().to_owned(),
                problem: "is a whole bucket, and a checkpoint is a folder in it".to_owned(),
            });
        }
        Ok(Output {
            path: address.text().into(),
            address,
            force,
            settings,
            cache,
            observer,
            store: Mutex::default(),
        })
    }

    /// A client of the store. Nothing is asked for yet.
    fn store(&self) -> Result<Store, StoreError> {
        let mut made = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = &*made {
            return Ok(store.clone());
        }
        let store = Client::new(self.settings.clone())?.open(&self.address)?;
        Ok(made.insert(store).clone())
    }

    /// Waits for requests about parts.
    fn of_parts<T, F>(&self, ask: impl FnOnce(PartsStore) -> F) -> Result<T, RunError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let store = self.store().map_err(failed)?;
        let stopped = || self.observer.stopped();
        let asked = ask(PartsStore::new(store.clone()));
        store.wait(&stopped, asked).map_err(failed)
    }

    /// Looks at what is there already: it may be nothing, or, with `force`, a checkpoint.
    fn check_free(&self, store: &Store, force: bool) -> Result<BTreeMap<String, u64>, RunError> {
        let stopped = || self.observer.stopped();
        let there = store.wait(&stopped, list(store)).map_err(failed)?;
        let mut old: BTreeMap<String, u64> = there.into_iter().map(Entry::into).collect();
        let was_begun = old.remove(MARKER).is_some();
        if old.is_empty() {
            return Ok(old);
        }
        if !force {
            return Err(RunError::OutputExists {
                path: self.path.clone(),
            });
        }
        // A run that was stopped while it put files in place has left no config.
        match was_begun || CONFIGS.iter().any(|config| old.contains_key(*config)) {
            true => Ok(old),
            false => Err(failed(StoreError::NoCheckpoint {
                address: self.address.text().to_owned(),
                objects: old.len(),
            })),
        }
    }

    fn check_inputs(&self, reads: &[PathBuf]) -> Result<(), RunError> {
        let out = format!("{}/", self.address.text());
        for input in reads {
            if format!("{}/", input.display()).starts_with(&out) {
                return Err(RunError::OutputIsInput {
                    path: self.path.clone(),
                    input: input.clone(),
                });
            }
        }
        Ok(())
    }
}

impl Destination for Output {
    fn path(&self) -> &Path {
        &self.path
    }

    fn begin(&self, layout: &Layout<'_>) -> Result<Box<dyn Staged>, RunError> {
        self.check_inputs(&layout.reads)?;
        let store = self.store().map_err(failed)?;
        let old = self.check_free(&store, self.force)?;
        let here = Here::new(&self.cache).map_err(failed)?;
        let stopped = || self.observer.stopped();
        let marker = Marker::leave(&store, name_of_run(), self.force, &stopped).map_err(failed)?;
        let mut staged = Box::new(StagedOutput {
            uploads: None,
            done: Vec::new(),
            adopted: Vec::new(),
            parts: BTreeMap::new(),
            old,
            here,
            marker: Some(marker),
            store,
            observer: Arc::clone(&self.observer),
        });
        staged.begin(layout).map_err(failed)?;
        Ok(staged)
    }
}

impl Parts for Output {
    fn check(&self, reads: &[PathBuf], replace: bool) -> Result<(), RunError> {
        self.check_inputs(reads)?;
        let store = self.store().map_err(failed)?;
        self.check_free(&store, replace).map(drop)
    }

    fn parts(&self) -> Result<BTreeSet<Part>, RunError> {
        self.of_parts(|parts| async move { parts.list().await })
    }

    fn look_at(&self, part: Part) -> Result<Held, RunError> {
        let found = self.of_parts(|parts| async move { parts.read(part).await })?;
        Ok(match found {
            None => Held::Nothing,
            Some((None, _)) => Held::Other,
            Some((Some(made), _)) => made.held(),
        })
    }

    fn begin_part(
        &self,
        part: Part,
        replace: bool,
        layout: &Layout<'_>,
    ) -> Result<Box<dyn Staged>, RunError> {
        self.check_inputs(&layout.reads)?;
        let place = PartsStore::new(self.store().map_err(failed)?);
        let staged = place.begin(part, replace, layout, &self.cache, &self.observer);
        Ok(Box::new(staged.map_err(failed)?))
    }

    fn remove_parts(&self, _parts: &[Part]) -> Result<(), RunError> {
        let left = self.of_parts(|parts| async move { parts.left().await })?;
        call_off(&self.store().map_err(failed)?, &left);
        self.of_parts(|parts| async move { parts.remove_all().await })
    }
}

/// What tells uploads from others.
fn digest_of(uploads: &[Upload]) -> String {
    let mut hasher = blake3::Hasher::new();
    for upload in uploads {
        for text in [&upload.file, &upload.id] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
    }
    hasher.finalize().to_string()
}

/// A name that no other run has.
pub(crate) fn name_of_run() -> String {
    // The standard library seeds its hash maps from the system's random numbers.
    format!("{:016x}", RandomState::new().build_hasher().finish())
}

/// What a run says when the store, or the disk on the way there, fails.
pub(crate) fn failed(error: StoreError) -> RunError {
    match error {
        StoreError::Stopped => RunError::Cancelled,
        error => RunError::NotStored(Refusal::from(&error)),
    }
}

/// The local folder of an output: files beside the weights, and what of the weights has not gone yet.
pub(crate) struct Here {
    files: PathBuf,
    scratch: ScratchFolder,
}

impl Here {
    pub(crate) fn new(cache: &Path) -> Result<Here, StoreError> {
        let make = |source| StoreError::io("make a folder in", cache, source);
        let scratch = ScratchFolder::new(cache).map_err(make)?;
        let files = scratch.path().join("output");
        fs::create_dir(&files).map_err(make)?;
        Ok(Here { files, scratch })
    }

    /// Where the files lie, as they will in the store.
    pub(crate) fn files(&self) -> &Path {
        &self.files
    }

    pub(crate) fn side_file(&self, name: &str, chunks: &mut Chunks<'_>) -> Result<(), RunError> {
        let path = self.files.join(name);
        let failed = |error| failed(StoreError::io("write", &path, error));
        let create = || {
            fs::create_dir_all(path.parent().unwrap_or(&self.files))?;
            File::create_new(&path)
        };
        let mut file = create().map_err(failed)?;
        for chunk in chunks {
            file.write_all(&chunk?).map_err(failed)?;
        }
        Ok(())
    }

    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<(Vec<u8>, u64), RunError> {
        let path = self.files.join(name);
        let read = || {
            let file = File::open(&path)?;
            let len = file.metadata()?.len();
            let mut bytes = Vec::new();
            file.take(limit).read_to_end(&mut bytes)?;
            Ok((bytes, len))
        };
        read().map_err(|error| failed(StoreError::io("read", &path, error)))
    }

    pub(crate) fn unnamed(&self) -> Result<File, RunError> {
        let folder = self.scratch.path();
        let file = tempfile::tempfile_in(folder);
        file.map_err(|error| failed(StoreError::io("make a file in", folder, error)))
    }

    /// The files beside the weights, and their lengths.
    pub(crate) fn beside(&self, weights: &[Upload]) -> Result<BTreeMap<String, u64>, StoreError> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.files.clone()];
        while let Some(folder) = folders.pop() {
            let read = |source| StoreError::io("read", &folder, source);
            for entry in fs::read_dir(&folder).map_err(read)? {
                let path = entry.map_err(read)?.path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let name = path.strip_prefix(&self.files).unwrap_or(&path);
                let name = name.to_string_lossy().into_owned();
                if weights.iter().all(|upload| upload.file != name) {
                    let bytes = fs::metadata(&path).map_err(read)?.len();
                    found.insert(name, bytes);
                }
            }
        }
        Ok(found)
    }
}

/// The output while it is filled.
struct StagedOutput {
    /// Present until all weights have gone.
    uploads: Option<Uploads>,
    /// The uploads that are not completed yet.
    done: Vec<Upload>,
    /// Those of parts, which stay the parts' if this fails.
    adopted: Vec<Upload>,
    /// The parts that files were taken of.
    parts: BTreeMap<Part, StoredPart>,
    /// What was there before: names and lengths.
    old: BTreeMap<String, u64>,
    here: Here,
    /// Present until the output is in place, or given up in a way that leaves it.
    marker: Option<Marker>,
    store: Store,
    observer: Arc<dyn Transfer>,
}

impl StagedOutput {
    fn begin(&mut self, layout: &Layout<'_>) -> Result<(), StoreError> {
        if layout.shards.is_empty() {
            return Ok(());
        }
        let files = self.here.files();
        let uploads = Uploads::begin(&self.store, layout.shards, files, &self.observer)?;
        let ids = uploads.ids();
        self.uploads = Some(uploads);
        if let Some(marker) = &mut self.marker {
            let stopped = || self.observer.stopped();
            self.store
                .wait(&stopped, marker.note_uploads(&self.store, ids))?;
        }
        Ok(())
    }

    /// Puts everything in place.
    async fn place(&mut self) -> Result<(), StoreError> {
        let store = &self.store;
        if let Some(marker) = &mut self.marker {
            marker.note_placing(store).await?;
        }
        // From here on the old checkpoint is none.
        let decides = |name: &str| CONFIGS.contains(&name) || name.ends_with(INDEX);
        for name in self.old.keys().filter(|name| decides(name)) {
            remove(store, name).await?;
        }
        let beside = self
            .here
            .beside(&[&self.done[..], &self.adopted].concat())?;
        let mut expected = beside.clone();
        let uploads = [std::mem::take(&mut self.done), self.adopted.clone()].concat();
        // What has the name of an upload from here on was made of it: an upload may be found completed.
        let digest = digest_of(&uploads);
        if let Some(marker) = &mut self.marker
            && marker.cleared() != Some(&digest)
        {
            for upload in &uploads {
                if self.old.contains_key(&upload.file) {
                    remove(store, &upload.file).await?;
                }
            }
            marker.note_cleared(store, digest).await?;
        }
        expected.extend(uploads.iter().map(|done| (done.file.clone(), done.bytes)));
        let complete = |upload: &Upload| {
            let upload = upload.clone();
            async move {
                let done = upload.complete(store).await;
                (done.is_err().then_some(upload), done)
            }
        };
        let mut all = stream::iter(uploads.iter().map(complete)).buffer_unordered(AT_A_TIME);
        let mut result = Ok(());
        while let Some((left, done)) = all.next().await {
            self.done
                .extend(left.filter(|left| !self.adopted.contains(left)));
            result = result.and(done);
        }
        result?;
        let rank = |name: &str| match name {
            name if CONFIGS.contains(&name) => 3,
            name if name.ends_with("config.json") => 2,
            name if name.ends_with(INDEX) => 1,
            _ => 0,
        };
        let mut names: Vec<&String> = beside.keys().collect();
        names.sort_by_key(|name| rank(name));
        let (config, others): (Vec<&String>, _) =
            names.into_iter().partition(|name| rank(name) == 3);
        let files = self.here.files();
        let put = |name: &String| {
            let (name, path) = (name.clone(), files.join(name));
            async move { put_file(store, &name, &path).await }
        };
        let all = stream::iter(others.into_iter().map(put)).buffered(AT_A_TIME);
        all.try_collect::<Vec<()>>().await?;
        for name in self.old.keys().filter(|name| !expected.contains_key(*name)) {
            remove(store, name).await?;
        }
        let found: BTreeMap<String, u64> =
            list(store).await?.into_iter().map(Entry::into).collect();
        for (name, bytes) in expected.iter().filter(|(name, _)| rank(name) < 3) {
            if found.get(name) != Some(bytes) {
                let found = found.get(name);
                let found = found.map_or("nothing".to_owned(), |found| format!("{found} bytes"));
                return Err(StoreError::Wrong {
                    what: store.name_of(name),
                    problem: format!("{bytes} bytes were put there, and the store has {found}"),
                });
            }
        }
        for name in config {
            put_file(store, name, &files.join(name)).await?;
        }
        Ok(())
    }

    /// Removes the config, and all else if nothing was there before; says whether it is as it was.
    async fn take_back(&self) -> bool {
        for config in CONFIGS {
            if remove(&self.store, config).await.is_err() {
                return false;
            }
        }
        if !self.old.is_empty() {
            return false;
        }
        let Ok(there) = list(&self.store).await else {
            return false;
        };
        // Of a part that is joined, what is completed cannot be made again: it stays for the next try.
        let is_joined = |entry: &Entry| (self.adopted.iter()).any(|part| part.file == entry.name);
        if there.iter().any(is_joined) {
            return false;
        }
        for entry in there.iter().filter(|entry| entry.name != MARKER) {
            if remove(&self.store, &entry.name).await.is_err() {
                return false;
            }
        }
        true
    }
}

impl Staged for StagedOutput {
    fn write(&self, shard: usize, start: u64, bytes: Tile) -> io::Result<()> {
        match &self.uploads {
            Some(uploads) => uploads.write(shard, start, &bytes),
            None => Err(io::Error::other("all weights were written already")),
        }
    }

    fn finish(&mut self) -> Result<(), RunError> {
        if let Some(uploads) = self.uploads.take() {
            self.done = uploads.finish().map_err(failed)?;
        }
        Ok(())
    }

    fn side_file(&mut self, name: &str, chunks: &mut Chunks<'_>) -> Result<(), RunError> {
        self.here.side_file(name, chunks)
    }

    fn adopt(&mut self, part: Part, name: &str, bytes: u64) -> Result<(), RunError> {
        let (store, observer) = (self.store.clone(), Arc::clone(&self.observer));
        let wait = || observer.stopped();
        let place = PartsStore::new(store.clone());
        if let btree_map::Entry::Vacant(entry) = self.parts.entry(part) {
            let found = store.wait(&wait, place.read(part)).map_err(failed)?;
            let made = found.and_then(|(made, _)| made).ok_or_else(|| {
                let message = format!(
                    "part {part} of {} is not there any more",
                    store.address.text()
                );
                let hint = format!("make it again with --part {part}");
                RunError::NotJoined(Refusal::new(message).with_hint(hint))
            })?;
            entry.insert(made);
        }
        let made = &self.parts[&part];
        let path = self.here.files().join(name);
        let taken = store.wait(&wait, place.take(part, made, name, &path));
        taken.map_err(failed)?;
        let found = fs::metadata(&path).map_or(0, |found| found.len());
        if found != bytes {
            let message = format!("part {part}: {name}: expected {bytes} bytes, found {found}");
            let hint = "make that part again with --force";
            return Err(RunError::NotJoined(Refusal::new(message).with_hint(hint)));
        }
        let upload = made.uploads.iter().find(|upload| upload.file == name);
        self.adopted.extend(upload.cloned());
        Ok(())
    }

    fn read(&self, name: &str, limit: u64) -> Result<(Vec<u8>, u64), RunError> {
        self.here.read(name, limit)
    }

    fn folder(&self) -> Option<&Path> {
        Some(self.here.files())
    }

    fn scratch(&self) -> Result<File, RunError> {
        self.here.unnamed()
    }

    fn commit(mut self: Box<Self>) -> Result<Vec<String>, RunError> {
        self.finish()?;
        let (store, observer) = (self.store.clone(), Arc::clone(&self.observer));
        let placed = store.wait(&|| observer.stopped(), self.place());
        match placed {
            Ok(()) => {}
            // Another run writes there now, and its note says so.
            Err(error @ StoreError::TakenOver { .. }) => {
                self.marker = None;
                return Err(failed(error));
            }
            Err(error) => {
                let taken_back = store.wait(&|| false, async { Ok(self.take_back().await) });
                if taken_back.unwrap_or(false) {
                    return Err(failed(error));
                }
                // The note stays, so that the next run knows.
                self.marker = None;
                return Err(failed(StoreError::HalfPlaced {
                    address: store.address.text().to_owned(),
                    reason: Refusal::from(&error).to_string(),
                }));
            }
        }
        let mut notes = Vec::new();
        if let Some(marker) = self.marker.take()
            && let Err(error) = store.wait(&|| false, marker.remove(&store))
        {
            notes.push(format!(
                "{error}: {MARKER} is not needed any more, and may be removed"
            ));
        }
        Ok(notes)
    }
}

impl Drop for StagedOutput {
    fn drop(&mut self) {
        // Calls them off, if they go on.
        self.uploads = None;
        let left = std::mem::take(&mut self.done).into_iter();
        let left: Vec<_> = left.map(|upload| (upload.file, upload.id)).collect();
        call_off(&self.store, &left);
        if let Some(marker) = self.marker.take() {
            let _ = self.store.wait(&|| false, marker.remove(&self.store));
        }
    }
}

/// Puts a local file into the store. A large one goes in pieces.
pub(crate) async fn put_file(store: &Store, name: &str, path: &Path) -> Result<(), StoreError> {
    let read = |source| StoreError::io("read", path, source);
    let sent = |error| StoreError::of(error, &store.name_of(name));
    let mut file = File::open(path).map_err(read)?;
    let place = store.address.below(name);
    if file.metadata().map_err(read)?.len() <= PIECE {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(read)?;
        let put = store.objects.put(&place, PutPayload::from(bytes)).await;
        return put.map(drop).map_err(sent);
    }
    let multipart = store.uploads()?;
    let id = multipart.create_multipart(&place).await.map_err(sent)?;
    let send = async {
        let mut pieces = Vec::new();
        loop {
            let mut bytes = Vec::new();
            (&mut file)
                .take(PIECE)
                .read_to_end(&mut bytes)
                .map_err(read)?;
            if bytes.is_empty() {
                break;
            }
            let number = pieces.len();
            let piece = multipart.put_part(&place, &id, number, PutPayload::from(bytes));
            pieces.push(piece.await.map_err(sent)?);
        }
        multipart
            .complete_multipart(&place, &id, pieces)
            .await
            .map_err(sent)
    };
    let done = send.await;
    if done.is_err() {
        let _ = multipart.abort_multipart(&place, &id).await;
    }
    done.map(drop)
}
