//! The archives of torch.save: a zip with a pickle and one file per storage, all of them uncompressed.
//!
//! The rawzip crate reads the directory and finds the data. This file checks that an archive was written by torch and
//! can be read in place. It knows no pickle.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use rawzip::{CompressionMethod, ZipArchive, ZipFileHeaderRecord, ZipSliceArchive};

use crate::bounded::plain;
use crate::error::CheckpointError;
use crate::limits::MAX_ARCHIVE_ENTRIES;

/// The first bytes of an archive.
pub(super) const MAGIC: &[u8] = b"PK\x03\x04";

/// The pickle of an archive, below the archive's only folder.
const PICKLE: &str = "/data.pkl";

/// Where the parts of an archive of torch are.
#[derive(Debug)]
pub(super) struct Archive<'a> {
    /// The archive's only folder.
    folder: &'a str,
    entries: HashMap<&'a str, Range<usize>>,
}

/// One entry of an archive's directory.
struct Entry<'a> {
    name: &'a str,
    /// The offset of its header in the file.
    header: usize,
    data: Range<usize>,
}

impl<'a> Archive<'a> {
    /// Reads the directory of a whole file, and checks its entries against each other.
    pub(super) fn read(path: &Path, file: &'a [u8]) -> Result<Archive<'a>, CheckpointError> {
        let archive = ZipArchive::from_slice(file).map_err(|e| malformed(path, &e))?;
        refuse_others(path, &archive)?;
        let mut found = entries(path, &archive)?;
        found.sort_by_key(|entry| (entry.header, entry.data.end));
        let mut end = 0;
        for entry in &found {
            if entry.header < end {
                let detail = format!("entry `{}` overlaps another", entry.name);
                return Err(malformed(path, &detail));
            }
            end = entry.data.end;
        }
        if end as u64 > archive.directory_offset() {
            return Err(malformed(path, &"an entry overlaps the directory"));
        }

        let mut folders = found
            .iter()
            .filter_map(|entry| entry.name.strip_suffix(PICKLE))
            .filter(|folder| !folder.contains('/'));
        let (Some(folder), None) = (folders.next(), folders.next()) else {
            return Err(malformed(path, &"expected one pickle `*/data.pkl` in it"));
        };
        let mut entries = HashMap::with_capacity(found.len());
        for entry in &found {
            if entries.insert(entry.name, entry.data.clone()).is_some() {
                let detail = format!("entry `{}` is there twice", entry.name);
                return Err(malformed(path, &detail));
            }
        }
        let archive = Archive { folder, entries };
        archive.check_order(path, file)?;
        Ok(archive)
    }

    /// Refuses big-endian numbers.
    fn check_order(&self, path: &Path, file: &[u8]) -> Result<(), CheckpointError> {
        let order = self.find("byteorder").and_then(|range| file.get(range));
        match order {
            None | Some(b"little") => Ok(()),
            Some(_) => Err(CheckpointError::NotSafetensors {
                path: path.into(),
                what: "an archive of numbers that are not little-endian",
                hint: "convert it to safetensors where it was made",
            }),
        }
    }

    /// The byte range of the pickle.
    pub(super) fn pickle(&self) -> Range<usize> {
        self.find("data.pkl").unwrap_or_default()
    }

    /// The byte range of the storage with that key.
    pub(super) fn storage(&self, key: &str) -> Option<Range<usize>> {
        self.find(&format!("data/{key}"))
    }

    fn find(&self, name: &str) -> Option<Range<usize>> {
        let name = format!("{}/{name}", self.folder);
        self.entries.get(name.as_str()).cloned()
    }
}

/// Archives that torch.save does not write, by the endings of names in them: what they are, and what to do.
const OTHERS: [(&str, &str, &str); 5] = [
    (
        "/constants.pkl",
        "a TorchScript program, not a state dict",
        "load it by `torch.jit.load` where you trust it, and save its `state_dict()` as safetensors",
    ),
    (
        "/archive_format",
        "a program of torch.export, not a state dict",
        "load it by `torch.export.load` where you trust it, and save its `state_dict` as safetensors",
    ),
    (
        "/.data/python_version",
        "an archive of torch.package, not a state dict",
        "load it where you trust it, and save its `state_dict()` as safetensors",
    ),
    (
        ".npy",
        "an archive of NumPy, not a state dict",
        "save its arrays as safetensors",
    ),
    (
        "model.weights.h5",
        "a Keras model, not a state dict",
        "save its weights as safetensors",
    ),
];

/// Refuses an archive of another kind by name: such may be compressed, and have no pickle of tensors.
fn refuse_others(path: &Path, archive: &ZipSliceArchive<&[u8]>) -> Result<(), CheckpointError> {
    let mut records = archive.entries();
    let mut count = 0;
    while let Ok(Some(record)) = records.next_entry() {
        count += 1;
        if count > MAX_ARCHIVE_ENTRIES {
            break;
        }
        let name = record.file_path();
        let name = name.as_bytes();
        let is = |end: &str| {
            name.ends_with(end.as_bytes()) || name == end.trim_start_matches('/').as_bytes()
        };
        if let Some((_, what, hint)) = OTHERS.into_iter().find(|(end, ..)| is(end)) {
            return Err(CheckpointError::NotSafetensors {
                path: path.into(),
                what,
                hint,
            });
        }
    }
    Ok(())
}

fn malformed(path: &Path, detail: &dyn std::fmt::Display) -> CheckpointError {
    CheckpointError::ArchiveMalformed {
        path: path.into(),
        detail: plain(detail),
    }
}

fn entries<'a>(
    path: &Path,
    archive: &ZipSliceArchive<&'a [u8]>,
) -> Result<Vec<Entry<'a>>, CheckpointError> {
    let mut found = Vec::new();
    let mut records = archive.entries();
    while let Some(record) = records.next_entry().map_err(|e| malformed(path, &e))? {
        if found.len() == MAX_ARCHIVE_ENTRIES {
            return Err(CheckpointError::TooLarge {
                path: path.into(),
                what: "number of entries in the archive",
                limit: MAX_ARCHIVE_ENTRIES as u64,
                found: archive.entries_hint(),
            });
        }
        found.push(entry(path, archive, &record)?);
    }
    if found.len() as u64 != archive.entries_hint() {
        let detail = format!(
            "expected {} entries in its directory, found {}",
            archive.entries_hint(),
            found.len()
        );
        return Err(malformed(path, &detail));
    }
    Ok(found)
}

/// Checks an entry of the directory against the header in front of its data.
fn entry<'a>(
    path: &Path,
    archive: &ZipSliceArchive<&'a [u8]>,
    record: &ZipFileHeaderRecord<'_>,
) -> Result<Entry<'a>, CheckpointError> {
    let shown = plain(&String::from_utf8_lossy(record.file_path().as_bytes()));
    let wrong = |what: &str| malformed(path, &format!("entry `{shown}` {what}"));
    if record.flags().is_encrypted() || record.flags().has_strong_encryption() {
        return Err(wrong("is encrypted"));
    }
    if record.compression_method() != CompressionMethod::STORE {
        return Err(wrong("is compressed, and torch compresses nothing"));
    }
    if record.compressed_size_hint() != record.uncompressed_size_hint() {
        return Err(wrong("is not compressed, but has two sizes"));
    }
    let data = archive.get_entry(record.wayfinder());
    let data = data.map_err(|_| wrong("lies beyond the end of the file"))?;
    let header = data.local_header();
    if header.file_path().as_bytes() != record.file_path().as_bytes()
        || header.compression_method() != CompressionMethod::STORE
    {
        return Err(wrong("is described in two ways"));
    }
    // If no record of sizes follows the data, one precedes it.
    let stated = (
        header.compressed_size_hint(),
        header.uncompressed_size_hint(),
    );
    let size = record.compressed_size_hint();
    if !header.flags().has_data_descriptor() && stated != (size, size) {
        return Err(wrong("has two sizes"));
    }
    let place = |at: u64| usize::try_from(at).map_err(|_| wrong("lies beyond any file"));
    let (start, end) = data.compressed_data_range();
    let (start, end) = (place(start)?, place(end)?);
    let begin = place(record.local_header_offset())?;
    let name = archive.get_ref().get(begin..start).unwrap_or_default();
    // The name follows the fixed part of the header, which is 30 bytes long.
    let name = name
        .get(30..30 + record.file_path().len())
        .unwrap_or_default();
    match std::str::from_utf8(name) {
        Ok(name) if !name.chars().any(char::is_control) => Ok(Entry {
            name,
            header: begin,
            data: start..end,
        }),
        _ => Err(wrong("has a name that can't be printed")),
    }
}
