//! The note that a run leaves where it writes, so that no second one writes there too.

use object_store::{
    GetResult, MultipartId, ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion,
};
use serde::{Deserialize, Serialize};

use super::client::Store;
use super::error::StoreError;
use super::uploads::call_off;

/// Its name.
pub(crate) const MARKER: &str = "weldment.writing.json";

/// The version of its form.
const FORMAT: &str = "weldment-writing/1";

/// The longest note that is read: two names for each weight file.
const MAX_BYTES: u64 = 64 << 20;

/// How often the note is tried for, while others come and go.
const TRIES: usize = 5;

/// What the note says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    format: String,
    /// Tells runs from each other.
    run: String,
    /// The uploads of the run: files, and the store's names of the uploads.
    uploads: Vec<(String, MultipartId)>,
    /// Whether files are being put in place.
    placing: bool,
    /// The uploads, by their digest, of which no other files have the names any more.
    cleared: Option<String>,
}

/// A run's note.
#[derive(Debug)]
pub(crate) struct Marker {
    note: Note,
    /// Its state in the store: who replaces it must have seen this.
    seen: UpdateVersion,
}

impl Marker {
    /// Leaves a note, if no other is there. With `force`, one that is there is replaced, and the uploads that it names
    /// are called off.
    pub(crate) fn leave(
        store: &Store,
        run: String,
        force: bool,
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<Marker, StoreError> {
        let mut note = Note {
            format: FORMAT.to_owned(),
            run,
            uploads: Vec::new(),
            placing: false,
            cleared: None,
        };
        for _ in 0..TRIES {
            match store.wait(stopped, put(store, &note, PutMode::Create))? {
                Put::Done(seen) => return Ok(Marker { note, seen }),
                Put::Taken => {}
            }
            let Some((other, seen, since)) = store.wait(stopped, read(store))? else {
                // It has gone meanwhile.
                continue;
            };
            if other.as_ref().is_some_and(|other| other.run == note.run) {
                // It was taken, and the answer got lost.
                return Ok(Marker { note, seen });
            }
            if !force {
                return Err(StoreError::Written {
                    address: store.address.text().to_owned(),
                    since,
                });
            }
            if let Some(other) = other {
                call_off(store, &other.uploads);
                note.cleared = other.cleared;
            }
            if let Put::Done(seen) =
                store.wait(stopped, put(store, &note, PutMode::Update(seen)))?
            {
                return Ok(Marker { note, seen });
            }
        }
        Err(StoreError::TakenOver {
            address: store.address.text().to_owned(),
        })
    }

    /// Notes the uploads of the run.
    pub(crate) async fn note_uploads(
        &mut self,
        store: &Store,
        uploads: Vec<(String, MultipartId)>,
    ) -> Result<(), StoreError> {
        self.note.uploads = uploads;
        self.renew(store).await
    }

    /// Notes that files are put in place now. From here on the run is the only one that may do that.
    pub(crate) async fn note_placing(&mut self, store: &Store) -> Result<(), StoreError> {
        self.note.placing = true;
        self.renew(store).await
    }

    /// Notes that there are no other files with the names of these uploads, given by their digest.
    pub(crate) async fn note_cleared(
        &mut self,
        store: &Store,
        uploads: String,
    ) -> Result<(), StoreError> {
        self.note.cleared = Some(uploads);
        self.renew(store).await
    }

    /// The uploads, by their digest, of which no other files have the names.
    pub(crate) fn cleared(&self) -> Option<&str> {
        self.note.cleared.as_deref()
    }

    async fn renew(&mut self, store: &Store) -> Result<(), StoreError> {
        let mode = PutMode::Update(self.seen.clone());
        if let Put::Done(seen) = put(store, &self.note, mode).await? {
            self.seen = seen;
            return Ok(());
        }
        // It was put, and the answer got lost; or another run has put its own.
        match read(store).await? {
            Some((Some(found), seen, _)) if found == self.note => {
                self.seen = seen;
                Ok(())
            }
            _ => Err(StoreError::TakenOver {
                address: store.address.text().to_owned(),
            }),
        }
    }

    /// Removes the note, if it is still this run's.
    pub(crate) async fn remove(&self, store: &Store) -> Result<(), StoreError> {
        match read(store).await? {
            Some((Some(found), ..)) if found.run == self.note.run => remove(store, MARKER).await,
            _ => Ok(()),
        }
    }
}

/// Removes a file below the store's address. One that is not there is as good as removed.
pub(crate) async fn remove(store: &Store, name: &str) -> Result<(), StoreError> {
    match store.objects.delete(&store.address.below(name)).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(StoreError::of(error, &store.name_of(name))),
    }
}

/// What became of a note.
enum Put {
    Done(UpdateVersion),
    /// Another is there.
    Taken,
}

async fn put(store: &Store, note: &Note, mode: PutMode) -> Result<Put, StoreError> {
    let text = serde_json::to_vec(note).unwrap_or_default();
    let options = PutOptions::from(mode);
    let path = store.address.below(MARKER);
    match store
        .objects
        .put_opts(&path, PutPayload::from(text), options)
        .await
    {
        Ok(done) => Ok(Put::Done(done.into())),
        Err(
            object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. },
        ) => Ok(Put::Taken),
        Err(object_store::Error::NotImplemented { .. }) => Err(StoreError::NoConditions {
            address: store.address.text().to_owned(),
        }),
        Err(error) => Err(StoreError::of(error, &store.name_of(MARKER))),
    }
}

/// The note that is there, if it can be read, its state, and when it was left.
async fn read(store: &Store) -> Result<Option<(Option<Note>, UpdateVersion, String)>, StoreError> {
    let failed = |error| StoreError::of(error, &store.name_of(MARKER));
    let answer: GetResult = match store.objects.get(&store.address.below(MARKER)).await {
        Ok(answer) => answer,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let seen = UpdateVersion {
        e_tag: answer.meta.e_tag.clone(),
        version: answer.meta.version.clone(),
    };
    let since = answer
        .meta
        .last_modified
        .format("%Y-%m-%d %H:%M UTC")
        .to_string();
    let note = match answer.meta.size <= MAX_BYTES {
        true => serde_json::from_slice(&answer.bytes().await.map_err(failed)?).ok(),
        false => None,
    };
    let note = note.filter(|note: &Note| note.format == FORMAT);
    Ok(Some((note, seen, since)))
}
