//! The place of every byte of the output, computed before a weight is read: shards, headers, offsets, the index.

use std::collections::{HashMap, HashSet};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value, json};

use super::bounded::plain;
use super::error::CheckpointError;
use super::format::WrittenAs;
use super::header::{LENGTH_BYTES, tensor_bytes};
use super::limits::MAX_HEADER_BYTES;
use super::torch_file::torch_layout;

/// One file of the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardLayout {
    /// Its path from the folder of the output: `model.safetensors`, `unet/model-00001-of-00003.safetensors`.
    pub file_name: String,
    /// The start of the file: the header's length and the header, padded so that data begins at a page.
    pub header: Vec<u8>,
    /// The tensors by offset: index into the input, offset in the file.
    pub tensors: Vec<(usize, u64)>,
    /// The length of the whole file.
    pub file_size: u64,
}

/// The alignment of data: a page, so that whole pages of tensors can be written and mapped.
const ALIGNMENT: u64 = 4096;

/// The metadata of models' files: transformers loads none without it.
const OF_MODELS: (&str, &str) = ("format", "pt");

/// The bytes of a tensor's header entry besides its name and shape: keys, dtype, two offsets.
const ENTRY_BYTES: u64 = 128;

/// The most bytes that one dimension takes: twenty digits and a comma.
const DIM_BYTES: u64 = 21;

/// Distributes tensors over shards of at most `shard_size` bytes of data, in their order.
///
/// A larger tensor gets a shard of its own.
///
/// # Errors
/// A name occurs twice, the size of a tensor overflows, or a shard's header would be longer than readers allow.
pub fn shard_layout(
    tensors: &[(String, Dtype, Vec<usize>)],
    shard_size: u64,
    stem: &str,
) -> Result<Vec<ShardLayout>, CheckpointError> {
    let lens = checked_lens(tensors)?;
    let groups = fill_shards(tensors, &lens, shard_size);
    let count = groups.len();
    let layout = |(at, group): (usize, Vec<usize>)| {
        let file_name = match count {
            1 => format!("{stem}.safetensors"),
            _ => format!("{stem}-{:05}-of-{count:05}.safetensors", at + 1),
        };
        lay_out(file_name, tensors, &lens, group, OF_MODELS)
    };
    groups.into_iter().enumerate().map(layout).collect()
}

/// Puts tensors into a single file, whatever their size.
///
/// # Errors
/// As [`shard_layout`]; and a file of torch takes tensors of one dtype only.
pub fn single_file_layout(
    tensors: &[(String, Dtype, Vec<usize>)],
    stem: &str,
    format: WrittenAs,
) -> Result<ShardLayout, CheckpointError> {
    let lens = checked_lens(tensors)?;
    let file_name = format!("{stem}{}", format.end());
    match format {
        WrittenAs::Safetensors => {
            let all = (0..tensors.len()).collect();
            lay_out(file_name, tensors, &lens, all, OF_MODELS)
        }
        WrittenAs::Torch => torch_layout(file_name, tensors, &lens),
    }
}

/// Puts tensors into a single file of safetensors whose metadata is one entry.
///
/// # Errors
/// As [`shard_layout`].
pub fn annotated_layout(
    tensors: &[(String, Dtype, Vec<usize>)],
    file_name: &str,
    metadata: (&str, &str),
) -> Result<ShardLayout, CheckpointError> {
    let lens = checked_lens(tensors)?;
    let all = (0..tensors.len()).collect();
    lay_out(file_name.to_owned(), tensors, &lens, all, metadata)
}

/// The stem of the names of a model's weight files, as `model`: components of diffusers have one of their own.
pub fn stem_of(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    let stem = name.split('.').next().unwrap_or(name);
    let numbered = stem
        .split_once("-of-")
        .and_then(|(first, _)| first.rsplit_once('-'));
    numbered.map_or(stem, |(stem, _)| stem)
}

/// The folder part of a path that is written with `/`: `unet/`, or nothing.
pub fn folder_of(path: &str) -> &str {
    path.rfind('/').map_or("", |end| &path[..=end])
}

/// The name of the index of these files.
pub fn index_name(layouts: &[ShardLayout]) -> String {
    let first = layouts.first().map_or("model", |layout| &layout.file_name);
    format!(
        "{}{}.safetensors.index.json",
        folder_of(first),
        stem_of(first)
    )
}

/// The text of the index, such as `model.safetensors.index.json`. It lies beside the files, and names them so.
///
/// `tensors` are those of these files alone, of which the first has the number `first` in the layouts.
pub fn index_json(
    layouts: &[ShardLayout],
    first: usize,
    tensors: &[(String, Dtype, Vec<usize>)],
) -> String {
    let mut files = vec![None; tensors.len()];
    let mut total_size = 0;
    for layout in layouts {
        total_size += layout.file_size - layout.header.len() as u64;
        for (tensor, _) in &layout.tensors {
            files[*tensor - first] = layout.file_name.rsplit('/').next();
        }
    }
    let weight_map: Map<String, Value> = tensors
        .iter()
        .zip(files)
        .filter_map(|((name, ..), file)| Some((name.clone(), file?.into())))
        .collect();
    let index = json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
    format!("{index:#}\n")
}

fn checked_lens(tensors: &[(String, Dtype, Vec<usize>)]) -> Result<Vec<u64>, CheckpointError> {
    let mut seen = HashSet::with_capacity(tensors.len());
    let mut lens = Vec::with_capacity(tensors.len());
    let mut total = 0u64;
    for (name, dtype, shape) in tensors {
        if !seen.insert(name.as_str()) || name == "__metadata__" {
            return Err(CheckpointError::DuplicateKey {
                path: "model.safetensors".into(),
                tensor: name.clone(),
            });
        }
        let len = tensor_bytes(*dtype, shape).and_then(|len| {
            total = total
                .checked_add(len)
                .ok_or("brings the model beyond 2^64 bytes")?;
            Ok(len)
        });
        lens.push(len.map_err(|why| CheckpointError::ImpossibleShape {
            path: "model.safetensors".into(),
            tensor: name.clone(),
            dtype: *dtype,
            shape: plain(&format_args!("{shape:?}")),
            why,
        })?);
    }
    Ok(lens)
}

/// Greedy and in order: a shard is closed when the next tensor would make its data or its header too large.
fn fill_shards(
    tensors: &[(String, Dtype, Vec<usize>)],
    lens: &[u64],
    shard_size: u64,
) -> Vec<Vec<usize>> {
    let mut groups = vec![Vec::new()];
    let (mut data, mut header) = (0u64, ALIGNMENT + ENTRY_BYTES);
    for (at, ((name, _, shape), &len)) in tensors.iter().zip(lens).enumerate() {
        let entry = entry_bytes(name, shape);
        let full = data.saturating_add(len) > shard_size || header + entry > MAX_HEADER_BYTES;
        if full && groups.last().is_some_and(|group| !group.is_empty()) {
            groups.push(Vec::new());
            (data, header) = (0, ALIGNMENT + ENTRY_BYTES);
        }
        if let Some(group) = groups.last_mut() {
            group.push(at);
        }
        data = data.saturating_add(len);
        header += entry;
    }
    groups
}

/// An upper bound of the entry's bytes: JSON may escape one byte of a name as six.
fn entry_bytes(name: &str, shape: &[usize]) -> u64 {
    ENTRY_BYTES + 6 * name.len() as u64 + DIM_BYTES * shape.len() as u64
}

fn lay_out(
    file_name: String,
    tensors: &[(String, Dtype, Vec<usize>)],
    lens: &[u64],
    mut group: Vec<usize>,
    metadata: (&str, &str),
) -> Result<ShardLayout, CheckpointError> {
    if !is_aligned(tensors, lens, &group) {
        // Widest first keeps every offset a multiple of its tensor's width; tensors of equal width keep their order.
        group.sort_by_key(|&at| std::cmp::Reverse(tensors[at].1.bitsize()));
    }
    let mut infos = Vec::with_capacity(group.len());
    let mut end = 0;
    for &at in &group {
        let (name, dtype, shape) = &tensors[at];
        let begin = end;
        end += lens[at];
        let info = TensorInfo {
            dtype: *dtype,
            shape: shape.clone(),
            data_offsets: (begin as usize, end as usize),
        };
        infos.push((name.clone(), info));
    }
    let header = header(&file_name, infos, metadata)?;
    let mut offset = header.len() as u64;
    let mut placed = Vec::with_capacity(group.len());
    for at in group {
        placed.push((at, offset));
        offset += lens[at];
    }
    Ok(ShardLayout {
        file_name,
        header,
        tensors: placed,
        file_size: offset,
    })
}

fn is_aligned(tensors: &[(String, Dtype, Vec<usize>)], lens: &[u64], group: &[usize]) -> bool {
    let mut offset = 0;
    group.iter().all(|&at| {
        let begin = offset;
        offset += lens[at];
        begin % (tensors[at].1.bitsize() as u64).div_ceil(8) == 0
    })
}

fn header(
    file_name: &str,
    infos: Vec<(String, TensorInfo)>,
    (key, value): (&str, &str),
) -> Result<Vec<u8>, CheckpointError> {
    let malformed = |detail: &dyn std::fmt::Display| CheckpointError::HeaderMalformed {
        path: file_name.into(),
        detail: plain(detail),
    };
    let metadata = HashMap::from([(key.to_owned(), value.to_owned())]);
    let metadata = Metadata::new(Some(metadata), infos).map_err(|e| malformed(&e))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|e| malformed(&e))?;
    let padded = (LENGTH_BYTES + json.len() as u64).next_multiple_of(ALIGNMENT) - LENGTH_BYTES;
    json.resize(padded as usize, b' ');
    if json.len() as u64 > MAX_HEADER_BYTES {
        return Err(CheckpointError::HeaderTooLarge {
            path: file_name.into(),
            limit: MAX_HEADER_BYTES,
            found: json.len() as u64,
        });
    }
    Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::super::fixtures::write;
    use super::super::locate::Location;
    use super::super::reader::Checkpoint;
    use super::*;

    type Tensor = (String, Dtype, Vec<usize>);

    fn tensors(list: &[(&str, Dtype, &[usize])]) -> Vec<Tensor> {
        list.iter()
            .map(|(n, d, s)| ((*n).into(), *d, s.to_vec()))
            .collect()
    }

    /// Which tensors go into which file, in file order.
    fn check(tensors: &[Tensor], shard_size: u64, expected: &[&[usize]]) -> Vec<ShardLayout> {
        let layouts = shard_layout(tensors, shard_size, "model").unwrap();
        let order: Vec<Vec<usize>> = layouts
            .iter()
            .map(|layout| layout.tensors.iter().map(|(at, _)| *at).collect())
            .collect();
        assert_eq!(order, expected);
        for layout in &layouts {
            assert_eq!(layout.header.len() as u64 % ALIGNMENT, 0);
            let mut file = layout.header.clone();
            file.resize(layout.file_size as usize, 7);
            let read = SafeTensors::deserialize(&file).unwrap();
            assert_eq!(read.len(), layout.tensors.len());
            for (at, offset) in &layout.tensors {
                let (name, dtype, shape) = &tensors[*at];
                let view = read.tensor(name).unwrap();
                assert_eq!((view.dtype(), view.shape()), (*dtype, shape.as_slice()));
                assert_eq!(
                    offset % (dtype.bitsize() as u64 / 8),
                    0,
                    "{name} is misaligned"
                );
                let within = view.data().as_ptr() as usize - file.as_ptr() as usize;
                assert_eq!(within as u64, *offset);
            }
        }
        layouts
    }

    #[test]
    fn shards_are_filled_in_order() {
        use Dtype::*;
        let four = tensors(&[
            ("a", F32, &[2]),
            ("b", F32, &[2]),
            ("c", F32, &[5]),
            ("d", F32, &[]),
        ]);
        check(&four, 1000, &[&[0, 1, 2, 3]]);
        check(&four, 16, &[&[0, 1], &[2], &[3]]);
        check(&four, 24, &[&[0, 1], &[2, 3]]);
        check(&four, 0, &[&[0], &[1], &[2], &[3]]);
        let empty = tensors(&[("a", F32, &[0]), ("b", BF16, &[3, 0]), ("c", U8, &[1])]);
        check(&empty, 1, &[&[0, 1, 2]]);
        check(&[], 1, &[&[]]);
        let layouts = check(&four, 16, &[&[0, 1], &[2], &[3]]);
        let names: Vec<&str> = layouts
            .iter()
            .map(|layout| layout.file_name.as_str())
            .collect();
        let expected = [
            "model-00001-of-00003.safetensors",
            "model-00002-of-00003.safetensors",
        ];
        assert_eq!(names[..2], expected);
        assert_eq!(
            shard_layout(&four, 99, "model").unwrap()[0].file_name,
            "model.safetensors"
        );
    }

    #[test]
    fn order_gives_way_to_alignment_only() {
        use Dtype::*;
        let aligned = tensors(&[("a", BF16, &[2]), ("b", F32, &[1]), ("c", U8, &[3])]);
        check(&aligned, 99, &[&[0, 1, 2]]);
        let odd = tensors(&[
            ("a", U8, &[3]),
            ("b", BF16, &[1]),
            ("c", F32, &[1]),
            ("d", BF16, &[1]),
        ]);
        check(&odd, 99, &[&[2, 1, 3, 0]]);
        check(&odd, 4, &[&[0], &[1], &[2], &[3]]);
    }

    #[test]
    fn what_cannot_be_laid_out_is_an_error() {
        let max = usize::MAX / 8;
        let cases = [
            (
                tensors(&[("a", Dtype::U8, &[1]), ("a", Dtype::U8, &[1])]),
                "twice",
            ),
            (tensors(&[("__metadata__", Dtype::U8, &[1])]), "twice"),
            (tensors(&[("a", Dtype::F32, &[max])]), "more elements"),
            (tensors(&[("a", Dtype::F4, &[3])]), "within a byte"),
        ];
        for (tensors, expected) in cases {
            let message = errors::in_one_line(&shard_layout(&tensors, 10, "model").unwrap_err());
            assert!(message.contains(expected), "{message}");
        }
        let nine: Vec<Tensor> = (0..9)
            .map(|i| (i.to_string(), Dtype::U8, vec![max]))
            .collect();
        let message = errors::in_one_line(&shard_layout(&nine, 10, "model").unwrap_err());
        assert!(message.contains("2^64"), "{message}");
    }

    #[test]
    fn headers_that_would_be_too_large_split_the_shard() {
        let name = |i: usize| format!("{i}{}", "\u{1}".repeat(200_000));
        let many: Vec<Tensor> = (0..100).map(|i| (name(i), Dtype::U8, vec![1])).collect();
        let layouts = shard_layout(&many, u64::MAX, "model").unwrap();
        assert_eq!(layouts.len(), 2);
    }

    #[test]
    fn a_sharded_output_opens_again() {
        use Dtype::*;
        let list = tensors(&[("z.0", F32, &[4]), ("a\"b", BF16, &[2, 2]), ("m", U8, &[5])]);
        let layouts = shard_layout(&list, 16, "model").unwrap();
        let folder = tempfile::tempdir().unwrap();
        for layout in &layouts {
            let mut file = layout.header.clone();
            file.resize(layout.file_size as usize, 7);
            write(&folder.path().join(&layout.file_name), &file);
        }
        let index = index_json(&layouts, 0, &list);
        write(
            &folder.path().join("model.safetensors.index.json"),
            index.as_bytes(),
        );
        let expected = r#"{
  "metadata": {
    "total_size": 29
  },
  "weight_map": {
    "z.0": "model-00001-of-00002.safetensors",
    "a\"b": "model-00002-of-00002.safetensors",
    "m": "model-00002-of-00002.safetensors"
  }
}
"#;
        assert_eq!(index, expected);
        let checkpoint = Checkpoint::open("out", &Location::local(folder.path())).unwrap();
        assert!(checkpoint.notes().is_empty(), "{:?}", checkpoint.notes());
        let names: Vec<&str> = checkpoint
            .tensors()
            .iter()
            .map(|t| t.name.as_str())
            .collect();
        assert_eq!(names, ["z.0", "a\"b", "m"]);
    }
}
