//! Reads objects by range. Every answer is held to the state in which the object was first seen.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path as LocalPath;

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta};

use super::client::Store;
use super::error::{StoreError, reason};

/// How much is asked for at once of a file that is fetched whole, and how many such requests there are at a time.
const RANGE: u64 = 16 << 20;
const AT_A_TIME: usize = 8;

/// How often a connection may break without anything new before it is given up.
pub(crate) const ATTEMPTS: u32 = 6;

/// An object in the state in which it was first seen.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    pub(crate) store: Store,
    path: Path,
    /// What messages call it.
    pub(crate) what: String,
    pub(crate) seen: ObjectMeta,
}

impl Object {
    /// Looks at a file below the address of a store: its state, and its first bytes, at most `limit` of `size`.
    pub(crate) async fn open(
        store: &Store,
        name: &str,
        size: u64,
        limit: u64,
    ) -> Result<(Object, Vec<u8>), StoreError> {
        let path = match name {
            "" => store.address.path.clone(),
            name => store.address.below(name),
        };
        let what = match name {
            "" => format!("`{}`", store.address.text()),
            name => store.name_of(name),
        };
        let range = 0..limit.min(size);
        let options = GetOptions {
            // No range without a byte can be asked for.
            range: (!range.is_empty()).then(|| GetRange::Bounded(range.clone())),
            head: range.is_empty(),
            ..GetOptions::default()
        };
        let answer = store.objects.get_opts(&path, options).await;
        let answer = answer.map_err(|error| StoreError::of(error, &what))?;
        let object = Object {
            store: store.clone(),
            path,
            what,
            seen: answer.meta.clone(),
        };
        if object.seen.size != size {
            return Err(StoreError::Wrong {
                what: object.what,
                problem: format!(
                    "expected {size} bytes as the store lists it, found {}",
                    object.seen.size
                ),
            });
        }
        let mut bytes = Vec::new();
        object
            .read_on(range, Some(answer), &mut |_, piece| {
                bytes.extend_from_slice(piece);
                Ok(())
            })
            .await?;
        Ok((object, bytes))
    }

    /// Reads a range.
    pub(crate) async fn bytes(&self, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        let mut keep = |_, piece: &[u8]| {
            bytes.extend_from_slice(piece);
            Ok(())
        };
        self.read_on(range, None, &mut keep).await?;
        Ok(bytes)
    }

    /// Fetches all of it into a file of its length, several ranges at a time. `came` hears of every piece.
    pub(crate) async fn fetch(
        &self,
        file: &File,
        path: &LocalPath,
        came: &(dyn Fn(u64) + Sync),
    ) -> Result<(), StoreError> {
        let size = self.seen.size;
        let ranges = (0..size.div_ceil(RANGE)).map(|number| {
            let start = number * RANGE;
            start..size.min(start + RANGE)
        });
        let fetch = |range: Range<u64>| async move {
            let mut write = |at, piece: &[u8]| {
                came(piece.len() as u64);
                file.write_all_at(piece, at)
            };
            let done = self.read_on(range, None, &mut write).await;
            done.map_err(|error| match error {
                StoreError::Io { action, source, .. } => StoreError::io(action, path, source),
                other => other,
            })
        };
        let all = stream::iter(ranges).map(fetch).buffer_unordered(AT_A_TIME);
        all.try_collect::<Vec<()>>().await.map(drop)
    }

    /// Reads a range piece by piece; an answer may be there already. A connection that breaks is made anew.
    async fn read_on(
        &self,
        range: Range<u64>,
        mut answer: Option<object_store::GetResult>,
        keep: &mut (dyn FnMut(u64, &[u8]) -> io::Result<()> + Send),
    ) -> Result<(), StoreError> {
        let mut at = range.start;
        let mut failures = 0;
        while at < range.end {
            let before = at;
            let answered = match answer.take() {
                Some(answer) => answer,
                None => self.ask(at..range.end).await?,
            };
            let mut pieces = answered.into_stream();
            let mut broke = None;
            while let Some(piece) = pieces.next().await {
                let piece = match piece {
                    Ok(piece) => piece,
                    Err(error) => {
                        broke = Some(reason(&error));
                        break;
                    }
                };
                if piece.len() as u64 > range.end - at {
                    return Err(self.wrong("the store sent more than was asked for"));
                }
                let kept = keep(at, &piece);
                kept.map_err(|source| StoreError::io("write", LocalPath::new(&self.what), source))?;
                at += piece.len() as u64;
            }
            if at == range.end {
                break;
            }
            failures = if at > before { 1 } else { failures + 1 };
            if failures == ATTEMPTS {
                return Err(StoreError::Unreachable {
                    what: self.what.clone(),
                    reason: broke.unwrap_or_else(|| "the connection ended early".to_owned()),
                });
            }
            self.store.pause(failures).await;
        }
        Ok(())
    }

    /// Asks for a range, and compares the state of the object.
    async fn ask(&self, range: Range<u64>) -> Result<object_store::GetResult, StoreError> {
        // A weak tag does not promise the same bytes, so no server compares by it.
        let strong = self.seen.e_tag.clone().filter(|tag| !tag.starts_with("W/"));
        let options = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            if_match: strong,
            ..GetOptions::default()
        };
        let answer = self.store.objects.get_opts(&self.path, options).await;
        let answer = answer.map_err(|error| StoreError::of(error, &self.what))?;
        let is_same = answer.meta.size == self.seen.size
            && match &self.seen.e_tag {
                Some(tag) => answer.meta.e_tag.as_ref() == Some(tag),
                None => answer.meta.last_modified == self.seen.last_modified,
            };
        match is_same {
            true if answer.range == range => Ok(answer),
            true => Err(self.wrong("the store sent another part of the file than was asked for")),
            false => Err(StoreError::Changed {
                what: self.what.clone(),
            }),
        }
    }

    fn wrong(&self, problem: &str) -> StoreError {
        StoreError::Wrong {
            what: self.what.clone(),
            problem: problem.to_owned(),
        }
    }
}
