//! A file of records, one JSON object a line, that is appended to and synced, and cut off where a line was torn.
//!
//! All of this happens under the lock of the study's folder.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::StudyError;
use checkpoint::{CheckpointError, open_no_link};
use errors::{About, Refusal};

/// The largest file that is read.
const MAX_BYTES: u64 = 4 << 30;

/// Where whole records end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct End {
    bytes: u64,
    lines: usize,
}

/// A file of records.
pub(crate) struct Journal<T> {
    path: PathBuf,
    _records: PhantomData<T>,
}

impl<T: Serialize + DeserializeOwned> Journal<T> {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            _records: PhantomData,
        }
    }

    /// Hands its records after `end` to `take`, which may refuse one, and moves `end` to where they end. A last line
    /// without an end was torn when its process died: it is no record.
    ///
    /// # Errors
    /// The file cannot be read, or a line of it is no record or was refused.
    pub(crate) fn read(
        &self,
        end: &mut End,
        mut take: impl FnMut(T) -> Result<(), String>,
    ) -> Result<(), StudyError> {
        let failed = || StudyError::file("read", &self.path);
        let mut file = match open_no_link(&self.path, OpenOptions::new().read(true)) {
            Ok(file) => file,
            Err(CheckpointError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        file.seek(SeekFrom::Start(end.bytes)).map_err(failed())?;
        let mut bytes = Vec::new();
        file.take(MAX_BYTES)
            .read_to_end(&mut bytes)
            .map_err(failed())?;
        let last = bytes.iter().rposition(|&byte| byte == b'\n');
        bytes.truncate(last.map_or(0, |last| last + 1));
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            end.lines += 1;
            let record = serde_json::from_slice(line)
                .map_err(|error| format!("this line is no record of a study: {error}"));
            record
                .and_then(&mut take)
                .map_err(|why| self.refused(end.lines, &why))?;
            end.bytes += line.len() as u64;
        }
        Ok(())
    }

    /// Appends a record after `end`, where the whole records end, and moves it; whatever was torn there is cut off. When
    /// this returns, the record survives a crash of the system. The record is returned as it will be read.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn append(&self, record: &T, end: &mut End) -> Result<T, StudyError> {
        let number = end.lines + 1;
        let unwritable = |error: serde_json::Error| self.refused(number, &error.to_string());
        let mut line = serde_json::to_vec(record).map_err(unwritable)?;
        line.push(b'\n');
        let failed = || StudyError::file("write", &self.path);
        let mut file = open_no_link(&self.path, OpenOptions::new().create(true).write(true))?;
        file.set_len(end.bytes).map_err(failed())?;
        file.seek(SeekFrom::Start(end.bytes)).map_err(failed())?;
        file.write_all(&line).map_err(failed())?;
        file.sync_all().map_err(failed())?;
        if let (0, Some(folder)) = (end.bytes, self.path.parent()) {
            // The file itself is new.
            sync_folder(folder)?;
        }
        let read = serde_json::from_slice(&line).map_err(unwritable)?;
        end.bytes += line.len() as u64;
        end.lines = number;
        Ok(read)
    }

    fn refused(&self, line: usize, why: &str) -> StudyError {
        let about = About {
            line: Some(line),
            ..About::file(&self.path)
        };
        Refusal::new(format!("{}:{line}: {why}", self.path.display()))
            .with_hint("remove the line; what it held is done again")
            .about(about)
            .into()
    }
}

/// Syncs a folder, so that files that were made in it survive a crash.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), StudyError> {
    let failed = || StudyError::file("sync", folder);
    File::open(folder)
        .map_err(failed())?
        .sync_all()
        .map_err(failed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(
        journal: &Journal<(usize, String)>,
        mut end: End,
    ) -> Result<(Vec<(usize, String)>, End), StudyError> {
        let mut records = Vec::new();
        journal.read(&mut end, |record| {
            records.push(record);
            Ok(())
        })?;
        Ok((records, end))
    }

    #[test]
    fn a_torn_line_is_cut_off_and_a_wrong_one_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.jsonl");
        let journal = Journal::<(usize, String)>::new(path.clone());
        assert_eq!(
            read(&journal, End::default()).unwrap(),
            (Vec::new(), End::default())
        );
        let one = (1, "a\nb".to_owned());
        let mut end = End::default();
        assert_eq!(journal.append(&one, &mut end).unwrap(), one);
        // Whatever is left of a line at any byte of it is no record, and the next record takes its place.
        let line = b"[2,\"whole\"]\n";
        for torn in 0..line.len() {
            let mut file = OpenOptions::new().append(true).open(&path).unwrap();
            file.write_all(&line[..torn]).unwrap();
            assert_eq!(
                read(&journal, End::default()).unwrap(),
                (vec![one.clone()], end),
                "{torn}"
            );
            let mut after = end;
            journal.append(&(3, "c".into()), &mut after).unwrap();
            assert_eq!(read(&journal, end).unwrap(), (vec![(3, "c".into())], after));
            OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(end.bytes)
                .unwrap();
        }
        std::fs::write(&path, "[1,\"a\"]\n{}\n").unwrap();
        let refused = |error: StudyError| error.to_string();
        let error = refused(read(&journal, End::default()).unwrap_err());
        assert!(
            error.contains("records.jsonl:2: this line is no record"),
            "{error}"
        );
        let no = journal.read(&mut End::default(), |_| Err("no".to_owned()));
        let error = refused(no.unwrap_err());
        assert!(error.ends_with("records.jsonl:1: no"), "{error}");
    }
}
