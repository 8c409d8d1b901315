//! A file of records, one JSON object a line, that is appended to and synced, and cut off where a line was torn.
//!
//! All of this happens under the lock of the study's folder.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::StudyError;
use errors::{About, Refusal};

/// The largest file that is read.
const MAX_BYTES: u64 = 4 << 30;

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

    /// Its records from byte `start` on, and where they end. A last line without an end was torn when its process died:
    /// it is no record.
    ///
    /// # Errors
    /// The file cannot be read, or a line of it is no record.
    pub(crate) fn read(&self, start: u64) -> Result<(Vec<T>, u64), StudyError> {
        let failed = || StudyError::file("read", &self.path);
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok((Vec::new(), start));
            }
            Err(error) => return Err(failed()(error)),
        };
        file.seek(SeekFrom::Start(start)).map_err(failed())?;
        let mut bytes = Vec::new();
        file.take(MAX_BYTES)
            .read_to_end(&mut bytes)
            .map_err(failed())?;
        let whole = bytes
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |last| last + 1);
        bytes.truncate(whole);
        let mut records = Vec::new();
        let lines = bytes.split_inclusive(|&byte| byte == b'\n').enumerate();
        for (at, line) in lines {
            let record = serde_json::from_slice(line);
            records.push(record.map_err(|error| self.malformed(start, at, &error))?);
        }
        Ok((records, start + whole as u64))
    }

    /// Appends a record after byte `end`, where the whole records end; whatever was torn there is cut off. When this
    /// returns, the record survives a crash of the system. The record is returned as it will be read.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn append(&self, record: &T, end: u64) -> Result<(T, u64), StudyError> {
        let mut line =
            serde_json::to_vec(record).map_err(|error| self.malformed(end, 0, &error))?;
        line.push(b'\n');
        let failed = || StudyError::file("write", &self.path);
        let options = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&self.path);
        let mut file = options.map_err(failed())?;
        file.set_len(end).map_err(failed())?;
        file.seek(SeekFrom::Start(end)).map_err(failed())?;
        file.write_all(&line).map_err(failed())?;
        file.sync_all().map_err(failed())?;
        if let (0, Some(folder)) = (end, self.path.parent()) {
            // The file itself is new.
            sync_folder(folder)?;
        }
        let read = serde_json::from_slice(&line).map_err(|error| self.malformed(end, 0, &error))?;
        Ok((read, end + line.len() as u64))
    }

    fn malformed(&self, start: u64, line: usize, error: &serde_json::Error) -> StudyError {
        let before = std::fs::read(&self.path).unwrap_or_default();
        let before = before
            .iter()
            .take(start as usize)
            .filter(|&&byte| byte == b'\n')
            .count();
        let line = before + line + 1;
        let why = format!(
            "{}:{line}: this line is no record of a study: {error}",
            self.path.display()
        );
        let about = About {
            line: Some(line),
            ..About::file(&self.path)
        };
        Refusal::new(why)
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

    #[test]
    fn a_torn_line_is_cut_off_and_a_wrong_one_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.jsonl");
        let journal = Journal::<(usize, String)>::new(path.clone());
        assert_eq!(journal.read(0).unwrap(), (Vec::new(), 0));
        let one = (1, "a\nb".to_owned());
        let (read, end) = journal.append(&one, 0).unwrap();
        assert_eq!(read, one);
        // Whatever is left of a line at any byte of it is no record, and the next record takes its place.
        let line = b"[2,\"whole\"]\n";
        for torn in 0..line.len() {
            let mut file = OpenOptions::new().append(true).open(&path).unwrap();
            file.write_all(&line[..torn]).unwrap();
            assert_eq!(journal.read(0).unwrap(), (vec![one.clone()], end), "{torn}");
            let (_, after) = journal.append(&(3, "c".into()), end).unwrap();
            assert_eq!(journal.read(end).unwrap(), (vec![(3, "c".into())], after));
            OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(end)
                .unwrap();
        }
        std::fs::write(&path, "[1,\"a\"]\n{}\n").unwrap();
        let error = journal.read(0).unwrap_err().to_string();
        assert!(
            error.contains("records.jsonl:2: this line is no record"),
            "{error}"
        );
    }
}
