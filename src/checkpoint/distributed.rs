//! Distributed checkpoints of PyTorch (`.metadata` and `.distcp` files): tensors in boxes, which lie in several files.
//!
//! The boxes are read where they lie, and never put together but for integers.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::path::{Component, Path};

use super::bounded::plain;
use super::error::CheckpointError;
use super::files::{BoxInFile, Files, InFile, Where};
use super::format::DISTRIBUTED_METADATA;
use super::header::{check_name, tensor_bytes};
use super::limits::{MAX_CLAIMED_BYTES, MAX_GATHERED_BYTES, MAX_SHARDS};
use super::pickle::{self, Distributed, DistributedTensor, Place, StoredBox, shown};
use super::shard::Shard;
use super::source::TensorEntry;
use numeric::{BoxPlace, FloatType};

/// The keys under which trainers save the weights.
const WRAPPERS: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];

/// How often boxes may be compared with each other, to see that none overlap: in a real checkpoint as often as there are
/// boxes, or their number times the ranks that share a matrix by its columns.
const MAX_COMPARED: usize = 1 << 26;

/// The most entries that a note or an error names.
const NAMED: usize = 4;

/// A checkpoint while it is opened.
struct Opening<'p> {
    /// Its metadata.
    path: &'p Path,
    files: Files,
    /// The files that are open, by name.
    open: HashMap<String, usize>,
    gathered: u64,
    claimed: u64,
    compared: usize,
}

/// Opens the checkpoint that a `.metadata` describes: the tensors under the keys of `entry`, or the only weights.
pub(super) fn open(
    path: &Path,
    entry: Option<&str>,
) -> Result<(Files, Vec<String>), CheckpointError> {
    let metadata = Shard::open_plain(path)?;
    let content = pickle::read_distributed(path, metadata.bytes_from(0))?;
    let (tensors, notes) = weights(path, content, entry)?;
    let mut opening = Opening {
        path,
        files: Files::default(),
        open: HashMap::new(),
        gathered: 0,
        claimed: 0,
        compared: 0,
    };
    opening.files.shards.push(metadata);
    for tensor in &tensors {
        opening.add(tensor)?;
    }
    Ok((opening.files, notes))
}

/// The weights among the tensors, and notes on what is left out.
fn weights(
    path: &Path,
    content: Distributed,
    entry: Option<&str>,
) -> Result<(Vec<DistributedTensor>, Vec<String>), CheckpointError> {
    let Distributed { tensors, others } = content;
    let mut groups: BTreeMap<Vec<String>, Vec<DistributedTensor>> = BTreeMap::new();
    for mut tensor in tensors {
        let own = tensor.keys.pop().unwrap_or_default();
        let outer = std::mem::replace(&mut tensor.keys, vec![own]);
        groups.entry(outer).or_default().push(tensor);
    }
    let is_weights = |keys: &&Vec<String>| match entry {
        Some(entry) => keys.join(".") == entry,
        None => {
            let of_optimizer = keys.iter().any(|key| key.starts_with("optim"));
            let wraps = |key: &String| WRAPPERS.contains(&key.as_str());
            !of_optimizer && keys.last().is_some_and(wraps)
        }
    };
    let mut chosen = groups.keys().filter(is_weights);
    let chosen = match (chosen.next(), chosen.next()) {
        (Some(only), None) => Some(only.clone()),
        // Without dicts around them, all names are there.
        (None, _) if entry.is_none() && groups.contains_key(&Vec::new()) => Some(Vec::new()),
        _ => None,
    };
    let Some((chosen, tensors)) = chosen.and_then(|chosen| groups.remove_entry(&chosen)) else {
        return Err(no_weights(path, &groups, entry));
    };
    let left: usize = groups.values().map(Vec::len).sum();
    let mut notes = Vec::new();
    if left + others > 0 || !chosen.is_empty() {
        let first = groups.keys().filter_map(|keys| keys.first());
        let mut first: Vec<String> = first.map(|key| format!("`{}`", plain(key))).collect();
        first.dedup();
        let count = |count: usize, what: &str| match count {
            1 => format!("1 {what}"),
            count => format!("{count} {what}s"),
        };
        let left = match first.is_empty() {
            true => String::new(),
            false => format!("{} of {}", count(left, "tensor"), some(&first)),
        };
        let others = match others {
            0 => String::new(),
            1 => "1 entry without values".to_owned(),
            others => format!("{others} entries without values"),
        };
        let aside: Vec<String> = [left, others]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect();
        let of = match chosen.is_empty() {
            true => "those without a key around them".to_owned(),
            false => format!("those of its entry `{}`", plain(&chosen.join("."))),
        };
        let aside = match aside.is_empty() {
            true => String::new(),
            false => format!("; left aside: {}", aside.join(", ")),
        };
        notes.push(format!("{}: the tensors are {of}{aside}", path.display()));
    }
    Ok((tensors, notes))
}

fn no_weights(
    path: &Path,
    groups: &BTreeMap<Vec<String>, Vec<DistributedTensor>>,
    entry: Option<&str>,
) -> CheckpointError {
    let names: Vec<String> = groups
        .keys()
        .filter(|keys| !keys.is_empty())
        .map(|keys| format!("`#{}`", plain(&keys.join("."))))
        .collect();
    CheckpointError::NotStateDict {
        path: path.into(),
        found: match entry {
            Some(entry) => format!("no entry `{}`", plain(&entry)),
            None if groups.is_empty() => "no tensors".into(),
            None => "no entry or several that may be the weights".into(),
        },
        hint: match names.is_empty() {
            true => "name another folder".into(),
            false => format!(
                "choose the tensors by their entry, behind the folder's name: {}",
                some(&names)
            ),
        },
    }
}

fn some(names: &[String]) -> String {
    let shown = &names[..names.len().min(NAMED)];
    match names.len() - shown.len() {
        0 => shown.join(", "),
        _ => format!("{}, ...", shown.join(", ")),
    }
}

impl Opening<'_> {
    /// Finds the boxes of a tensor, checks that they are all of it, and adds it.
    fn add(&mut self, tensor: &DistributedTensor) -> Result<(), CheckpointError> {
        let name = tensor.keys.last().map_or("", String::as_str);
        check_name(self.path, name)?;
        let path = self.path;
        let wrong = |why: String| CheckpointError::PickledTensor {
            path: path.into(),
            tensor: name.into(),
            why,
        };
        let (dtype, shape) = (tensor.dtype, &tensor.shape);
        let len = tensor_bytes(dtype, shape)
            .map_err(|why| wrong(format!("of dtype {dtype} and shape {} {why}", shown(shape))))?;
        let mut boxes = Vec::new();
        let mut filled = 0u64;
        for part in &tensor.boxes {
            let place = BoxPlace::new(shape, &part.offsets, &part.sizes).ok_or_else(|| {
                wrong(format!(
                    "of shape {} has a box of {} at {}, outside of it",
                    shown(shape),
                    shown(&part.sizes),
                    shown(&part.offsets)
                ))
            })?;
            // Within the tensor, whose size is known to be one that can be counted.
            let elements: usize = part.sizes.iter().product();
            if elements == 0 {
                continue;
            }
            filled = filled.saturating_add(elements as u64);
            let (shard, found) = self.stored(name, part)?;
            if (found.dtype, found.shape.as_slice()) != (dtype, part.sizes.as_slice()) {
                return Err(wrong(format!(
                    "has a box of {dtype} and {}, which is stored as {} and {}",
                    shown(&part.sizes),
                    found.dtype,
                    shown(&found.shape)
                )));
            }
            self.claimed = self.claimed.saturating_add(found.len);
            let size = self
                .files
                .shards
                .iter()
                .map(|shard| shard.file_size)
                .sum::<u64>();
            if self.claimed > MAX_CLAIMED_BYTES.saturating_add(size.saturating_mul(4)) {
                let claimed = self.claimed;
                return Err(wrong(format!(
                    "makes the tensors {claimed} bytes, in files of {size}: more than any model has"
                )));
            }
            let at = InFile {
                shard,
                offset: found.offset,
                place: found.place,
            };
            boxes.push((
                part,
                BoxInFile {
                    place,
                    at,
                    len: found.len,
                },
            ));
        }
        let elements: u64 = shape.iter().map(|&dim| dim as u64).product();
        self.check_apart(
            &wrong,
            &boxes.iter().map(|(part, _)| *part).collect::<Vec<_>>(),
        )?;
        if filled != elements {
            return Err(wrong(format!(
                "of {elements} elements has boxes with {filled}: some are missing"
            )));
        }
        let entry = TensorEntry {
            name: name.into(),
            dtype,
            stored: dtype,
            shape: shape.clone(),
            len,
        };
        let mut boxes: Vec<BoxInFile> = boxes.into_iter().map(|(_, stored)| stored).collect();
        let at = match boxes.len() {
            // Nothing of it is stored.
            0 => Where::One(InFile {
                shard: 0,
                offset: 0,
                place: Place::Gathered(Vec::new()),
            }),
            1 => Where::One(boxes.remove(0).at),
            _ if FloatType::from_dtype(dtype).is_some() => Where::Boxes(boxes),
            _ => Where::One(self.gather(&wrong, &entry, &boxes)?),
        };
        self.files.add(entry, at);
        Ok(())
    }

    /// The box where it is stored, and the file.
    fn stored(
        &mut self,
        name: &str,
        part: &StoredBox,
    ) -> Result<(usize, pickle::PickledTensor), CheckpointError> {
        let wrong = |path: &Path, why: String| CheckpointError::PickledTensor {
            path: path.into(),
            tensor: name.into(),
            why,
        };
        let shard = match self.open.get(&part.file) {
            Some(shard) => *shard,
            None => {
                let mut parts = Path::new(&part.file).components();
                let is_plain = matches!(
                    (parts.next(), parts.next()),
                    (Some(Component::Normal(_)), None)
                );
                if !is_plain || part.file.contains(['/', '\\', '\0']) {
                    let file = plain(&part.file);
                    return Err(wrong(
                        self.path,
                        format!("is in `{file}`, which is no file of the folder"),
                    ));
                }
                if self.files.shards.len() >= MAX_SHARDS {
                    return Err(CheckpointError::TooLarge {
                        path: self.path.into(),
                        what: "number of shards",
                        limit: MAX_SHARDS as u64,
                        found: MAX_SHARDS as u64 + 1,
                    });
                }
                let folder = self.path.parent().unwrap_or(Path::new("."));
                let path = folder.join(&part.file);
                if !path.is_file() {
                    return Err(CheckpointError::ShardMissing {
                        path: folder.into(),
                        shard: plain(&part.file),
                        expected_by: DISTRIBUTED_METADATA.into(),
                        hint: "copy the files of all ranks into the folder".into(),
                    });
                }
                self.files.shards.push(Shard::open_plain(&path)?);
                let shard = self.files.shards.len() - 1;
                self.open.insert(part.file.clone(), shard);
                shard
            }
        };
        let file = &self.files.shards[shard];
        let end = part
            .first
            .checked_add(part.len)
            .filter(|end| *end <= file.file_size);
        let Some(end) = end else {
            return Err(wrong(
                &file.path,
                format!(
                    "begins at byte {} and has {}, in a file of {}",
                    part.first, part.len, file.file_size
                ),
            ));
        };
        // Within the map, so within the address space.
        let range = part.first as usize..end as usize;
        let found = pickle::read_tensor(
            &file.path,
            file.bytes_from(0),
            range,
            &mut self.gathered,
            name,
        )?;
        Ok((shard, found))
    }

    /// Checks that no two boxes have an element in common.
    fn check_apart(
        &mut self,
        wrong: &impl Fn(String) -> CheckpointError,
        boxes: &[&StoredBox],
    ) -> Result<(), CheckpointError> {
        let mut order: Vec<&StoredBox> = boxes.to_vec();
        order.sort_by_key(|part| part.offsets.first().copied());
        for (at, one) in order.iter().enumerate() {
            // Those that begin before this one ends, along the first dimension.
            let end = one
                .offsets
                .first()
                .zip(one.sizes.first())
                .map(|(from, size)| from + size);
            for other in &order[at + 1..] {
                if let (Some(end), Some(begin)) = (end, other.offsets.first())
                    && *begin >= end
                {
                    break;
                }
                self.compared += 1;
                if self.compared > MAX_COMPARED {
                    return Err(wrong("is in more boxes than any checkpoint has".into()));
                }
                let meet = |dim: usize| {
                    one.offsets[dim] < other.offsets[dim] + other.sizes[dim]
                        && other.offsets[dim] < one.offsets[dim] + one.sizes[dim]
                };
                if (0..one.offsets.len()).all(meet) {
                    return Err(wrong(format!(
                        "has boxes that overlap, at {} and {}",
                        shown(&one.offsets),
                        shown(&other.offsets)
                    )));
                }
            }
        }
        Ok(())
    }

    /// Copies integers or bools of several boxes.
    fn gather(
        &mut self,
        wrong: &impl Fn(String) -> CheckpointError,
        entry: &TensorEntry,
        boxes: &[BoxInFile],
    ) -> Result<InFile, CheckpointError> {
        self.gathered = self.gathered.saturating_add(entry.len);
        if self.gathered > MAX_GATHERED_BYTES {
            return Err(wrong(format!(
                "of {} is in several boxes: of integers and bools in such, {MAX_GATHERED_BYTES} bytes are copied at most",
                entry.dtype
            )));
        }
        let mut out = vec![0; entry.len as usize];
        let size = entry.dtype.bitsize() / 8;
        for part in boxes {
            let Some(bytes) = self.files.bytes_at(&part.at, part.len) else {
                return Err(wrong("is stored with gaps".into()));
            };
            let done = part
                .place
                .visit(0, entry.elements() as usize, |from, at, count| {
                    let from = from as usize * size;
                    out[at * size..][..count * size]
                        .copy_from_slice(&bytes[from..][..count * size]);
                    Ok::<(), Infallible>(())
                });
            match done {
                Ok(()) => {}
                Err(never) => match never {},
            }
        }
        Ok(InFile {
            shard: boxes[0].at.shard,
            offset: boxes[0].at.offset,
            place: Place::Gathered(out),
        })
    }
}

#[cfg(test)]
mod tests;
