//! Weight files that go to a store while they are computed, several pieces at a time. Until an upload is completed,
//! nobody sees its file.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path as LocalPath;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use object_store::multipart::PartId;
use object_store::path::Path;
use object_store::{MultipartId, ObjectStoreExt, PutPayload};
use serde::{Deserialize, Serialize};

use super::client::Store;
use super::error::StoreError;
use super::spill::{PIECE, Spill};
use checkpoint::{ShardLayout, Transfer};

/// How many pieces go at a time, each in memory, and how many more may wait on the disk.
pub(crate) const AT_A_TIME: usize = 8;
const MOST_WAITING: usize = 16;

/// The memory that the pieces on their way take, in bytes.
pub const HELD: u64 = AT_A_TIME as u64 * PIECE;

/// For how long uploads are called off at most, when a run has failed.
const CALL_OFF: Duration = Duration::from_secs(30);

/// An upload whose pieces are all there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Upload {
    /// The file, by its name in the checkpoint.
    pub(crate) file: String,
    /// Its length.
    pub(crate) bytes: u64,
    /// The store's name of the upload.
    pub(crate) id: String,
    /// The store's names of its pieces, in order.
    pub(crate) pieces: Vec<String>,
}

impl Upload {
    /// Makes the file of the pieces. No other may have its name.
    ///
    /// # Errors
    /// The store refuses it, or has dropped the upload.
    pub(crate) async fn complete(&self, store: &Store) -> Result<(), StoreError> {
        let path = store.address.below(&self.file);
        let pieces = self.pieces.iter().map(|piece| PartId {
            content_id: piece.clone(),
        });
        let done = (store.uploads()?)
            .complete_multipart(&path, &self.id, pieces.collect())
            .await;
        match done {
            Ok(_) => Ok(()),
            // It may have been done, and the answer got lost.
            Err(object_store::Error::NotFound { .. })
                if (store.objects.head(&path).await)
                    .is_ok_and(|found| found.size == self.bytes) =>
            {
                Ok(())
            }
            Err(error) => Err(StoreError::of(error, &store.name_of(&self.file))),
        }
    }
}

/// Calls uploads off, given by file and id. One that is no more is as good as called off; of what cannot be called off
/// the store's own rules for old uploads dispose.
pub(crate) fn call_off(store: &Store, uploads: &[(String, MultipartId)]) {
    let Ok(multipart) = store.uploads() else {
        return;
    };
    let until = Instant::now() + CALL_OFF;
    let stopped = || Instant::now() > until;
    let all = stream::iter(uploads).for_each_concurrent(AT_A_TIME, |(file, id)| async move {
        let path = store.address.below(file);
        let _ = multipart.abort_multipart(&path, id).await;
    });
    let _ = store.wait(&stopped, async {
        all.await;
        Ok(())
    });
}

/// Weight files that are being uploaded. If it is dropped before they are [finished](Self::finish), they are called off.
pub(crate) struct Uploads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    finished: bool,
}

impl fmt::Debug for Uploads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uploads").finish_non_exhaustive()
    }
}

struct Shared {
    store: Store,
    files: Vec<Uploading>,
    observer: Arc<dyn Transfer>,
    state: Mutex<State>,
    changed: Condvar,
    /// Whether the run has failed, and nothing needs to go any more.
    given_up: AtomicBool,
}

struct Uploading {
    name: String,
    path: Path,
    size: u64,
    id: MultipartId,
    spill: Spill,
}

#[derive(Default)]
struct State {
    /// Pieces that wait: their file, and their number.
    waiting: VecDeque<(usize, usize)>,
    /// Whether no more will come.
    closed: bool,
    /// The names of the pieces that have gone, by file.
    gone: Vec<Vec<Option<String>>>,
    failure: Option<StoreError>,
}

impl Uploads {
    /// Begins the upload of weight files, which lie in a local folder until they have gone.
    ///
    /// # Errors
    /// The store refuses one, or the disk a file. What was begun is called off.
    pub(crate) fn begin(
        store: &Store,
        shards: &[ShardLayout],
        folder: &LocalPath,
        observer: &Arc<dyn Transfer>,
    ) -> Result<Uploads, StoreError> {
        let ids = begun(store, shards, observer)?;
        let mut files = Vec::new();
        let mut state = State::default();
        for (number, (shard, (name, id))) in shards.iter().zip(&ids).enumerate() {
            let path = folder.join(name);
            let made = Spill::new(path.clone(), &shard.header, shard.file_size);
            let (spill, whole): (Spill, Range<usize>) = made.map_err(|source| {
                call_off(store, &ids);
                StoreError::io("write", &path, source)
            })?;
            state.waiting.extend(whole.map(|piece| (number, piece)));
            state.gone.push(vec![None; spill.pieces()]);
            files.push(Uploading {
                name: name.clone(),
                path: store.address.below(name),
                size: shard.file_size,
                id: id.clone(),
                spill,
            });
        }
        let mut uploads = Uploads {
            shared: Arc::new(Shared {
                store: store.clone(),
                files,
                observer: Arc::clone(observer),
                state: Mutex::new(state),
                changed: Condvar::new(),
                given_up: AtomicBool::new(false),
            }),
            threads: Vec::new(),
            finished: false,
        };
        for number in 0..AT_A_TIME {
            let its = Arc::clone(&uploads.shared);
            let thread = std::thread::Builder::new().name(format!("weld-upload-{number}"));
            let thread = thread.spawn(move || its.send_all());
            let failed = |source| StoreError::io("start threads for", folder, source);
            uploads.threads.push(thread.map_err(failed)?);
        }
        Ok(uploads)
    }

    /// The uploads: their files and ids.
    pub(crate) fn ids(&self) -> Vec<(String, MultipartId)> {
        let files = self.shared.files.iter();
        files
            .map(|file| (file.name.clone(), file.id.clone()))
            .collect()
    }

    /// Takes bytes of a file. Waits while too many pieces wait to go.
    ///
    /// # Errors
    /// The disk does not take them, or a piece did not go.
    pub(crate) fn write(&self, file: usize, start: u64, bytes: &[u8]) -> io::Result<()> {
        let beyond = || io::Error::other("no place is planned for these bytes");
        let spill = &self.shared.files.get(file).ok_or_else(beyond)?.spill;
        let whole = match spill.write(start, bytes) {
            Ok(whole) => whole,
            Err(error) => {
                let again = io::Error::new(error.kind(), error.to_string());
                let failure = StoreError::io("write", spill.path(), error);
                self.shared.lock().failure.get_or_insert(failure);
                return Err(again);
            }
        };
        let mut state = self.shared.lock();
        if !whole.is_empty() {
            state
                .waiting
                .extend(whole.into_iter().map(|piece| (file, piece)));
            self.shared.changed.notify_all();
        }
        while state.failure.is_none() && state.waiting.len() > MOST_WAITING {
            state = self.shared.wait(state);
        }
        match &state.failure {
            Some(failure) => Err(io::Error::other(failure.to_string())),
            None => Ok(()),
        }
    }

    /// Waits until all pieces have gone. The uploads can be completed then, and are not called off any more.
    ///
    /// # Errors
    /// The first piece that did not go.
    pub(crate) fn finish(mut self) -> Result<Vec<Upload>, StoreError> {
        self.close();
        let mut state = self.shared.lock();
        if let Some(failure) = state.failure.take() {
            return Err(failure);
        }
        let files = self.shared.files.iter().zip(&state.gone);
        let uploads = files.map(|(file, pieces)| {
            Some(Upload {
                file: file.name.clone(),
                bytes: file.size,
                id: file.id.clone(),
                pieces: pieces.iter().cloned().collect::<Option<_>>()?,
            })
        });
        let uploads = uploads.collect::<Option<_>>();
        let uploads = uploads.ok_or_else(|| self.shared.broken("not all pieces are there"))?;
        drop(state);
        self.finished = true;
        Ok(uploads)
    }

    /// Ends the threads when nothing waits any more.
    fn close(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                let failure = self
                    .shared
                    .broken("a thread that sends pieces has panicked");
                self.shared.lock().failure.get_or_insert(failure);
            }
        }
    }
}

impl Drop for Uploads {
    fn drop(&mut self) {
        if !self.finished {
            self.shared.given_up.store(true, Relaxed);
            self.shared.lock().waiting.clear();
            self.close();
            call_off(&self.shared.store, &self.ids());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        let state = self.changed.wait(state);
        state.unwrap_or_else(PoisonError::into_inner)
    }

    fn broken(&self, problem: &str) -> StoreError {
        StoreError::Wrong {
            what: format!("`{}`", self.store.address.text()),
            problem: problem.to_owned(),
        }
    }

    /// The loop of a sending thread: sends pieces until no more will come.
    fn send_all(&self) {
        let mut state = self.lock();
        loop {
            let Some((number, piece)) = state.waiting.pop_front() else {
                if state.closed {
                    return;
                }
                state = self.wait(state);
                continue;
            };
            drop(state);
            let sent = self.send(number, piece);
            state = self.lock();
            match sent {
                Ok(name) => state.gone[number][piece] = Some(name),
                Err(error) => {
                    state.failure.get_or_insert(error);
                    state.waiting.clear();
                }
            }
            // Whoever writes may wait for room.
            self.changed.notify_all();
        }
    }

    /// Sends a piece, and makes room for others; returns the store's name of it.
    fn send(&self, number: usize, piece: usize) -> Result<String, StoreError> {
        let file = &self.files[number];
        let read = file.spill.piece(piece);
        let bytes = read.map_err(|error| StoreError::io("read", file.spill.path(), error))?;
        let multipart = self.store.uploads()?;
        let stopped = || self.given_up.load(Relaxed) || self.observer.stopped();
        let sent = self.store.wait(&stopped, async {
            let sent = multipart.put_part(&file.path, &file.id, piece, PutPayload::from(bytes));
            let what = || self.store.name_of(&file.name);
            sent.await.map_err(|error| StoreError::of(error, &what()))
        })?;
        file.spill.drop_piece(piece);
        Ok(sent.content_id)
    }
}

/// Begins an upload for each weight file.
fn begun(
    store: &Store,
    shards: &[ShardLayout],
    observer: &Arc<dyn Transfer>,
) -> Result<Vec<(String, MultipartId)>, StoreError> {
    let multipart = store.uploads()?;
    let begin = |shard: &ShardLayout| {
        let name = shard.file_name.clone();
        async move {
            let path = store.address.below(&name);
            let id = multipart.create_multipart(&path).await;
            let id = id.map_err(|error| StoreError::of(error, &store.name_of(&name)));
            (name, id)
        }
    };
    let mut ids = Vec::new();
    let begun = store.wait(&|| observer.stopped(), async {
        let mut all = stream::iter(shards.iter().map(begin)).buffered(AT_A_TIME);
        while let Some((name, id)) = all.next().await {
            ids.push((name, id?));
        }
        Ok(())
    });
    if let Err(error) = begun {
        call_off(store, &ids);
        return Err(error);
    }
    Ok(ids)
}
