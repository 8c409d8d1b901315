//! What lies below an address.

use futures_util::StreamExt;

use super::client::Store;
use super::error::StoreError;
use super::read::ATTEMPTS;
use checkpoint::ListedFile;

/// The most objects of a folder that are listed.
pub(crate) const MAX_OBJECTS: usize = 100_000;

/// A file in a store.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Its path from the folder of the model.
    pub(crate) name: String,
    /// Its length.
    pub(crate) size: u64,
}

impl ListedFile for Entry {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.size
    }
}

impl From<Entry> for (String, u64) {
    fn from(entry: Entry) -> (String, u64) {
        (entry.name, entry.size)
    }
}

/// The files below an address. A list that breaks off is asked for again.
///
/// # Errors
/// The store gives none, or there are too many files.
pub(crate) async fn list(store: &Store) -> Result<Vec<Entry>, StoreError> {
    let mut failures = 0;
    loop {
        match list_once(store).await {
            Err(StoreError::Unreachable { .. }) if failures + 1 < ATTEMPTS => {
                failures += 1;
                store.pause(failures).await;
            }
            done => return done,
        }
    }
}

async fn list_once(store: &Store) -> Result<Vec<Entry>, StoreError> {
    let address = &store.address;
    let mut entries = Vec::new();
    let mut objects = store.objects.list(Some(&address.path));
    while let Some(object) = objects.next().await {
        let object = object
            .map_err(|error| StoreError::of(error, &format!("the list of `{}`", address.text())))?;
        // A store may list what was not asked for.
        let Some(parts) = object.location.prefix_match(&address.path) else {
            continue;
        };
        let parts: Vec<String> = parts.map(|part| part.as_ref().to_owned()).collect();
        if parts.is_empty() {
            continue;
        }
        if entries.len() == MAX_OBJECTS {
            return Err(StoreError::TooMany {
                address: address.text().to_owned(),
                limit: MAX_OBJECTS,
            });
        }
        entries.push(Entry {
            name: parts.join("/"),
            size: object.size,
        });
    }
    Ok(entries)
}
