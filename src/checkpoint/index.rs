//! The index of a sharded checkpoint, checked against its shards: neither is trusted without the other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::bounded::{plain, read_bounded};
use super::error::CheckpointError;
use super::files::Files;
use super::format::FileFormat;
use super::header::check_name;
use super::limits::{MAX_FILE_NAME_BYTES, MAX_INDEX_BYTES, MAX_SHARDS};
use super::shard::Shard;
use super::source::TensorEntry;
use super::weight_names::{NumberedSet, numbered};

/// A parsed index whose file names are safe to use.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    format: FileFormat,
    /// Tensor and file, in the index's order.
    weight_map: Vec<(String, String)>,
    total_size: Option<serde_json::Value>,
}

impl Index {
    /// Reads an index; refuses file names other than those of shards in the same folder.
    pub(super) fn read(path: &Path, format: FileFormat) -> Result<Index, CheckpointError> {
        let bytes = read_bounded(path, MAX_INDEX_BYTES, "index, in bytes")?;
        let malformed = |detail| CheckpointError::IndexMalformed {
            path: path.into(),
            detail,
        };
        let raw: RawIndex = serde_json::from_slice(&bytes).map_err(|e| malformed(plain(&e)))?;
        let weight_map = match raw.weight_maps.len() {
            0 => return Err(malformed("expected a `weight_map`, found none".into())),
            1 => raw.weight_maps.into_iter().flat_map(|map| map.0).collect(),
            _ => return Err(malformed("expected one `weight_map`, found several".into())),
        };
        let index = Index {
            path: path.into(),
            format,
            weight_map,
            total_size: raw.total_size,
        };
        index.check_names()?;
        Ok(index)
    }

    fn check_names(&self) -> Result<(), CheckpointError> {
        let mut seen = HashMap::with_capacity(self.weight_map.len());
        for (tensor, file) in &self.weight_map {
            check_name(&self.path, tensor)?;
            if !is_shard_name(file, self.format) {
                return Err(CheckpointError::IndexFileName {
                    path: self.path.clone(),
                    tensor: tensor.clone(),
                    file: plain(file),
                    ends: self.format.ends().join(" or "),
                });
            }
            if seen.insert(tensor.as_str(), file.as_str()).is_some() {
                return Err(CheckpointError::DuplicateKey {
                    path: self.path.clone(),
                    tensor: tensor.clone(),
                });
            }
        }
        Ok(())
    }

    /// The files that it names, in name order.
    pub(super) fn shards(&self) -> Result<BTreeSet<&str>, CheckpointError> {
        let shards: BTreeSet<&str> = self.weight_map.iter().map(|(_, f)| f.as_str()).collect();
        if shards.len() > MAX_SHARDS {
            return Err(CheckpointError::TooLarge {
                path: self.path.clone(),
                what: "number of shards",
                limit: MAX_SHARDS as u64,
                found: shards.len() as u64,
            });
        }
        Ok(shards)
    }

    /// Whether it names that file and no other.
    pub(super) fn names_only(&self, file: &str) -> bool {
        let mut shards = self.weight_map.iter().map(|(_, shard)| shard);
        shards.next().is_some_and(|first| first == file) && shards.all(|shard| shard == file)
    }

    /// The file that it names for each tensor.
    pub(super) fn files(&self) -> HashMap<&str, &str> {
        let entries = self.weight_map.iter();
        entries
            .map(|(tensor, file)| (tensor.as_str(), file.as_str()))
            .collect()
    }

    /// An error if it names fewer shards of a set than the set has by the names of its files.
    pub(super) fn left_out(&self) -> Option<CheckpointError> {
        let mut sets: BTreeMap<NumberedSet<'_>, BTreeSet<usize>> = BTreeMap::new();
        for (set, number) in self.shards().ok()?.into_iter().filter_map(numbered) {
            sets.entry(set).or_default().insert(number);
        }
        let (set, numbers) = sets.iter().find(|(set, numbers)| numbers.len() < set.of)?;
        Some(CheckpointError::ShardsNotNamed {
            path: self.path.clone(),
            named: numbers.len(),
            of: set.of,
            missing: set.missing(numbers),
        })
    }

    /// Entries whose tensor is not in the named shard, and tensors of the shards without an entry. Entries for files
    /// that could not be read are not reported.
    pub(super) fn problems(
        &self,
        opened: &Files,
        by_name: &HashMap<String, usize>,
    ) -> Vec<CheckpointError> {
        let known: BTreeSet<String> = opened.shards.iter().map(Shard::file_name).collect();
        let mut indexed = vec![false; opened.tensors.len()];
        let mut problems = Vec::new();
        for (name, file) in &self.weight_map {
            let at = by_name.get(name).copied();
            if let Some(at) = at {
                indexed[at] = true;
            }
            let found_in = at.map(|at| opened.shard_of(at).file_name());
            if known.contains(file) && found_in.as_ref() != Some(file) {
                problems.push(CheckpointError::NotInShard {
                    path: self.path.clone(),
                    tensor: name.clone(),
                    shard: file.clone(),
                    found_in,
                });
            }
        }
        if let Some(first) = indexed.iter().position(|&indexed| !indexed) {
            problems.push(CheckpointError::Unindexed {
                path: self.path.clone(),
                tensor: opened.tensors[first].name.clone(),
                shard: opened.shard_of(first).file_name(),
                count: indexed.iter().filter(|&&indexed| !indexed).count(),
            });
        }
        problems
    }

    /// `total_size` is often wrong in practice and nothing depends on it, so a wrong value is only noted.
    pub(super) fn total_size_note(&self, tensors: &[TensorEntry]) -> Option<String> {
        let stated = self
            .total_size
            .as_ref()
            .filter(|stated| !stated.is_null())?;
        let found: u64 = tensors.iter().map(|tensor| tensor.len).sum();
        let agrees = stated.as_u64() == Some(found) || stated.as_f64() == Some(found as f64);
        (!agrees).then(|| {
            format!(
                "{}: `total_size` is {}, the shards hold {found} bytes of tensors",
                self.path.display(),
                plain(stated)
            )
        })
    }
}

/// Whether this is a plain file name, which cannot lead out of the folder on any system.
fn is_shard_name(file: &str, format: FileFormat) -> bool {
    let mut ends = format.ends().iter();
    file.len() <= MAX_FILE_NAME_BYTES
        && ends.any(|end| file.ends_with(end) && file.len() > end.len())
        && !file.contains(['/', '\\', ':'])
        && !file.chars().any(char::is_control)
}

/// The index's JSON; duplicate keys are kept, not overwritten.
#[derive(Default)]
struct RawIndex {
    weight_maps: Vec<WeightMap>,
    total_size: Option<serde_json::Value>,
}

/// Pairs in file order, equal names included.
struct WeightMap(Vec<(String, String)>);

impl<'de> Deserialize<'de> for RawIndex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = RawIndex;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a `weight_map`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawIndex, A::Error> {
                let mut index = RawIndex::default();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "weight_map" => index.weight_maps.push(map.next_value()?),
                        "metadata" => {
                            let metadata: serde_json::Value = map.next_value()?;
                            index.total_size = metadata.get("total_size").cloned();
                        }
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(index)
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a `weight_map` of file names by tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(WeightMap(pairs))
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}
