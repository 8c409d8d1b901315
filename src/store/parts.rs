//! Parts of an output in a store.
//!
//! The weight files of a part are uploads to where the output will be, which nobody completes before all parts are
//! joined: so joining copies nothing. Beside the output, in `OUT.weld-parts/3-of-16`, lies `weldment.part.json`, with the
//! run's manifest and the uploads; it is put there last, and makes the part. A folder beside it, named after the run,
//! holds the headers of its weight files and its other files. While a run does a part, `3-of-16.writing` has a note of
//! its uploads, so that they can be called off if it is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{MultipartId, ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::client::Store;
use super::error::StoreError;
use super::list::{Entry, list};
use super::marker::remove;
use super::output::{Here, failed, name_of_run, put_file};
use super::read::Object;
use super::uploads::{AT_A_TIME, Upload, Uploads, call_off};
use checkpoint::{ShardLayout, Transfer};
use engine::Tile;
use run::destination::{Chunks, Held, Layout, MANIFEST_FILE, MAX_MANIFEST_BYTES, Staged};
use run::{Part, RunError};

/// The version of the form of what makes a part.
const FORMAT: &str = "weldment-stored-part/1";

/// The ending of the folder of notes of runs that do a part.
const WRITING: &str = ".writing";

/// The longest file of this form: a manifest and the names of pieces.
const MAX_BYTES: u64 = 2 * MAX_MANIFEST_BYTES;

/// What makes a part.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredPart {
    format: String,
    /// The run that did it, which is the name of the folder of its files.
    run: String,
    /// Its weight files.
    pub(crate) uploads: Vec<Upload>,
    /// The lengths of its headers.
    headers: BTreeMap<String, u64>,
    /// The lengths of its other files.
    files: BTreeMap<String, u64>,
    manifest: Box<RawValue>,
}

impl StoredPart {
    /// What there is of a part, to those who join.
    pub(crate) fn held(&self) -> Held {
        let weights = self.uploads.iter();
        let weights = weights.map(|upload| (upload.file.clone(), upload.bytes));
        Held::Part {
            manifest: self.manifest.get().as_bytes().to_vec(),
            files: weights.chain(self.files.clone()).collect(),
        }
    }

    /// Puts a file of the part into a local folder: of a weight file the header, and a hole for the rest.
    async fn take(
        &self,
        store: &Store,
        folder: &str,
        name: &str,
        path: &Path,
    ) -> Result<(), StoreError> {
        let upload = self.uploads.iter().find(|upload| upload.file == name);
        let (kind, size) = match upload {
            Some(_) => ("headers", self.headers.get(name)),
            None => ("files", self.files.get(name)),
        };
        let place = format!("{folder}/{}/{kind}/{name}", self.run);
        let size = *size.ok_or_else(|| StoreError::Wrong {
            what: store.name_of(&place),
            problem: "the part does not list it".to_owned(),
        })?;
        let (object, _) = Object::open(store, &place, size, 0).await?;
        let make = || -> io::Result<File> {
            std::fs::create_dir_all(path.parent().unwrap_or(Path::new("")))?;
            let file = File::create_new(path)?;
            file.set_len(upload.map_or(size, |upload| upload.bytes))?;
            Ok(file)
        };
        let failed = |source| StoreError::io("write", path, source);
        let file = make().map_err(failed)?;
        match upload {
            Some(_) => file
                .write_all_at(&object.bytes(0..size).await?, 0)
                .map_err(failed),
            None => object.fetch(&file, path, &|_| {}).await,
        }
    }
}

/// The place of the parts of an output.
#[derive(Debug, Clone)]
pub(crate) struct PartsStore {
    /// The output's own.
    pub(crate) out: Store,
    /// The folder of the parts.
    parts: Store,
}

impl PartsStore {
    pub(crate) fn new(out: Store) -> PartsStore {
        let parts = out.beside(".weld-parts");
        PartsStore { out, parts }
    }

    /// The parts that there are.
    pub(crate) async fn list(&self) -> Result<BTreeSet<Part>, StoreError> {
        let made = list(&self.parts).await?.into_iter().filter_map(|entry| {
            let (folder, name) = entry.name.split_once('/')?;
            Part::of_folder(folder).filter(|_| name == MANIFEST_FILE)
        });
        Ok(made.collect())
    }

    /// A part, if it is there and can be read, and its state in the store.
    pub(crate) async fn read(
        &self,
        part: Part,
    ) -> Result<Option<(Option<StoredPart>, UpdateVersion)>, StoreError> {
        let name = manifest_of(part);
        let path = self.parts.address.below(&name);
        let failed = |error| StoreError::of(error, &self.parts.name_of(&name));
        let found = match self.parts.objects.head(&path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let seen = UpdateVersion {
            e_tag: found.e_tag,
            version: found.version,
        };
        if found.size > MAX_BYTES {
            return Ok(Some((None, seen)));
        }
        let (_, text) = Object::open(&self.parts, &name, found.size, found.size).await?;
        let made: Option<StoredPart> = serde_json::from_slice(&text).ok();
        Ok(Some((made.filter(|made| made.format == FORMAT), seen)))
    }

    /// Puts a file of a part into a local folder.
    pub(crate) async fn take(
        &self,
        part: Part,
        made: &StoredPart,
        name: &str,
        path: &Path,
    ) -> Result<(), StoreError> {
        let folder = part.folder_name();
        made.take(&self.parts, &folder, name, path).await
    }

    /// Removes everything, and calls off what runs that were killed have left.
    pub(crate) async fn remove_all(&self) -> Result<(), StoreError> {
        let there = list(&self.parts).await?;
        // What makes a part goes first, so that none is there without its files.
        let (made, others): (Vec<&Entry>, Vec<&Entry>) = there
            .iter()
            .partition(|entry| entry.name.ends_with(&format!("/{MANIFEST_FILE}")));
        for entry in made.into_iter().chain(others) {
            remove(&self.parts, &entry.name).await?;
        }
        Ok(())
    }

    /// The uploads of runs that did not end.
    pub(crate) async fn left(&self) -> Result<Vec<(String, MultipartId)>, StoreError> {
        let there = list(&self.parts).await?.into_iter();
        let notes = there.filter(|entry| {
            let folder = entry.name.split('/').next().unwrap_or("");
            folder.ends_with(WRITING) && entry.size <= MAX_MANIFEST_BYTES
        });
        let read = |entry: Entry| async move {
            let read = Object::open(&self.parts, &entry.name, entry.size, entry.size).await;
            read.map(|(_, text)| serde_json::from_slice(&text).unwrap_or_default())
        };
        let read = stream::iter(notes.map(read)).buffered(AT_A_TIME);
        let read: Vec<Vec<(String, MultipartId)>> = read.try_collect().await?;
        Ok(read.concat())
    }

    /// Begins a part.
    pub(crate) fn begin(
        self,
        part: Part,
        replace: bool,
        layout: &Layout<'_>,
        cache: &Path,
        observer: &Arc<dyn Transfer>,
    ) -> Result<StagedPart, StoreError> {
        let stopped = || observer.stopped();
        let old = self.out.wait(&stopped, self.read(part))?;
        if old.is_some() && !replace {
            return Err(self.done_meanwhile(part));
        }
        let here = Here::new(cache)?;
        let uploads = Uploads::begin(&self.out, layout.shards, here.files(), observer)?;
        let run = name_of_run();
        let note = format!("{}{WRITING}/{run}.json", part.folder_name());
        let text = serde_json::to_vec(&uploads.ids()).unwrap_or_default();
        let staged = StagedPart {
            part,
            run,
            note,
            uploads: Some(uploads),
            done: Vec::new(),
            headers: layout.shards.to_vec(),
            old,
            is_placed: false,
            here,
            place: self,
            observer: Arc::clone(observer),
        };
        let parts = &staged.place.parts;
        let path = parts.address.below(&staged.note);
        parts.wait(&stopped, async {
            let put = parts.objects.put(&path, PutPayload::from(text)).await;
            put.map_err(|error| StoreError::of(error, &parts.name_of(&staged.note)))
        })?;
        Ok(staged)
    }

    fn done_meanwhile(&self, part: Part) -> StoreError {
        StoreError::DoneMeanwhile {
            address: self.out.address.text().to_owned(),
            part: part.to_string(),
        }
    }
}

fn manifest_of(part: Part) -> String {
    format!("{}/{MANIFEST_FILE}", part.folder_name())
}

/// A part that is being done.
pub(crate) struct StagedPart {
    part: Part,
    run: String,
    /// The note of this run.
    note: String,
    /// Present until all weights have gone.
    uploads: Option<Uploads>,
    /// The uploads of this part, until they are its own.
    done: Vec<Upload>,
    headers: Vec<ShardLayout>,
    /// What is there, and is replaced.
    old: Option<(Option<StoredPart>, UpdateVersion)>,
    /// Whether the part is there.
    is_placed: bool,
    here: Here,
    place: PartsStore,
    observer: Arc<dyn Transfer>,
}

impl StagedPart {
    /// Puts everything but the weights into the store; what makes the part goes last.
    async fn place(&mut self) -> Result<(), StoreError> {
        let parts = &self.place.parts;
        let folder = self.part.folder_name();
        let mut beside = self.here.beside(&self.done)?;
        let files = self.here.files();
        let broken = |problem: &str| StoreError::Wrong {
            what: parts.name_of(&folder),
            problem: problem.to_owned(),
        };
        beside.remove(MANIFEST_FILE);
        let manifest = files.join(MANIFEST_FILE);
        let manifest =
            checkpoint::read_bounded(&manifest, MAX_MANIFEST_BYTES, "manifest, in bytes")
                .ok()
                .and_then(|text| serde_json::from_slice(&text).ok());
        let made = StoredPart {
            format: FORMAT.to_owned(),
            run: self.run.clone(),
            uploads: self.done.clone(),
            headers: (self.headers.iter())
                .map(|shard| (shard.file_name.clone(), shard.header.len() as u64))
                .collect(),
            files: beside.clone(),
            manifest: manifest.ok_or_else(|| broken("the run has left no manifest"))?,
        };
        let run = &self.run;
        let put = |name: &String| {
            let place = format!("{folder}/{run}/files/{name}");
            let path = files.join(name);
            async move { put_file(parts, &place, &path).await }
        };
        let all = stream::iter(beside.keys().map(put)).buffered(AT_A_TIME);
        all.try_collect::<Vec<()>>().await?;
        let put = |shard: &ShardLayout| {
            let place = format!("{folder}/{run}/headers/{}", shard.file_name);
            let header = PutPayload::from(shard.header.clone());
            async move {
                let path = parts.address.below(&place);
                let put = parts.objects.put(&path, header).await.map(drop);
                put.map_err(|error| StoreError::of(error, &parts.name_of(&place)))
            }
        };
        let all = stream::iter(self.headers.iter().map(put)).buffered(AT_A_TIME);
        all.try_collect::<Vec<()>>().await?;
        let text = serde_json::to_vec(&made).map_err(|_| broken("it cannot be written"))?;
        let mode = match &self.old {
            Some((_, seen)) => PutMode::Update(seen.clone()),
            None => PutMode::Create,
        };
        let name = manifest_of(self.part);
        let path = parts.address.below(&name);
        let put = parts
            .objects
            .put_opts(&path, PutPayload::from(text), PutOptions::from(mode));
        match put.await {
            Ok(_) => {}
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => {
                // It was put, and the answer got lost; or another run was faster.
                let found = self.place.read(self.part).await?;
                let run = found.and_then(|(made, _)| Some(made?.run));
                if run.as_ref() != Some(&self.run) {
                    return Err(self.place.done_meanwhile(self.part));
                }
            }
            Err(object_store::Error::NotImplemented { .. }) => {
                return Err(StoreError::NoConditions {
                    address: parts.address.text().to_owned(),
                });
            }
            Err(error) => return Err(StoreError::of(error, &parts.name_of(&name))),
        }
        // They are the part's now.
        self.done = Vec::new();
        self.is_placed = true;
        Ok(())
    }

    /// Removes the note of this run, and the files of a run that are no part: of one that was replaced, or of this one, if
    /// it has failed. What cannot be removed goes when parts are joined.
    async fn tidy(&self) {
        let parts = &self.place.parts;
        let folder = format!("{}/", self.part.folder_name());
        let gone = match (&self.old, self.is_placed) {
            (_, false) => Some(&self.run),
            (Some((Some(old), _)), true) => Some(&old.run),
            (_, true) => None,
        };
        let gone = gone.map(|run| format!("{folder}{run}/"));
        let there = list(parts).await.unwrap_or_default();
        let there = there.into_iter().map(|entry| entry.name);
        let is_gone = |name: &String| gone.as_ref().is_some_and(|gone| name.starts_with(gone));
        for name in there.filter(is_gone).chain([self.note.clone()]) {
            let _ = remove(parts, &name).await;
        }
    }
}

impl Staged for StagedPart {
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

    fn read(&self, name: &str, limit: u64) -> Result<(Vec<u8>, u64), RunError> {
        self.here.read(name, limit)
    }

    fn scratch(&self) -> Result<File, RunError> {
        self.here.unnamed()
    }

    fn commit(mut self: Box<Self>) -> Result<Vec<String>, RunError> {
        self.finish()?;
        let (store, observer) = (self.place.out.clone(), Arc::clone(&self.observer));
        let placed = store.wait(&|| observer.stopped(), self.place());
        placed.map_err(failed)?;
        if let Some((Some(old), _)) = &self.old {
            let old = old.uploads.iter();
            let old: Vec<_> = old
                .map(|upload| (upload.file.clone(), upload.id.clone()))
                .collect();
            call_off(&store, &old);
        }
        Ok(Vec::new())
    }
}

impl Drop for StagedPart {
    fn drop(&mut self) {
        self.uploads = None;
        let left = std::mem::take(&mut self.done).into_iter();
        let left: Vec<_> = left.map(|upload| (upload.file, upload.id)).collect();
        call_off(&self.place.out, &left);
        let store = self.place.out.clone();
        let _ = store.wait(&|| false, async {
            self.tidy().await;
            Ok(())
        });
    }
}
