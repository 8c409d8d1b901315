//! Finds out what the tensors of a quantised checkpoint mean.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use super::super::config::ModelConfig;
use super::super::error::CheckpointError;
use super::super::header::tensor_bytes;
use super::super::source::{TensorEntry, TensorSource};
use super::dequantised::{Decoded, Dequantised, Storage, is_float8};
use super::evidence::Evidence;
use super::look::{Contradiction, Look, Reading, float_named};
use super::settings::{MAX_BLOCK, Settings};
use super::{bitsandbytes, eight_bits, microscaling, packed};
use numeric::FloatType;

const HINT: &str = "dequantise it first, or name the model it was made from";
const CONFIG_HINT: &str = "dequantise it first, or name the model it was made from; \
                           if its weights are plain, drop the entry from config.json";

/// The `quant_method`s whose storage is read.
const METHODS: [&str; 8] = [
    "fp8",
    "compressed-tensors",
    "fbgemm_fp8",
    "modelopt",
    "mxfp4",
    "gptq",
    "awq",
    "bitsandbytes",
];

/// Scales and zeros of activations and of cached keys and values: no value of a weight depends on them.
const OF_ACTIVATIONS: [&str; 12] = [
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "output_scale",
    "output_zero_point",
    "output_global_scale",
    "activation_scale",
    "k_scale",
    "v_scale",
    "q_scale",
    "prob_scale",
    "scale_input",
];

/// What a checkpoint is, as its names, dtypes, shapes and config tell.
#[derive(Debug)]
pub(crate) enum Found {
    /// Its tensors are what they say.
    Plain,
    /// Some are codes and scales; how to decode them, and what is wrong with them.
    Known(Decoder, Vec<CheckpointError>),
    /// It is quantised, and how is not known.
    Unknown(CheckpointError),
    /// What its config says of it makes no sense.
    Malformed(CheckpointError),
}

/// The tensors that a quantised checkpoint means, in the order of the stored ones.
#[derive(Debug)]
pub(crate) struct Decoder {
    decoded: Vec<Decoded>,
    /// How weights are stored, in words, and how many are stored so.
    schemes: BTreeMap<String, usize>,
    /// Stored tensors that are left out, as no weight depends on them.
    left_out: usize,
    float: FloatType,
}

impl Decoder {
    /// Looks at the tensors of a source. `is_here` tells whether their bytes may be read.
    pub(crate) fn find(
        label: &str,
        config: Option<&ModelConfig>,
        source: &dyn TensorSource,
        by_name: &HashMap<String, usize>,
        is_here: bool,
    ) -> Found {
        let settings = Settings::of(config);
        let block = match settings.block() {
            Ok(block) => block,
            Err(found) => {
                return Found::Malformed(CheckpointError::JsonMalformed {
                    path: config.map_or_else(PathBuf::new, |config| config.path().into()),
                    detail: format!(
                        "expected the sides of a block of weights that share a scale, two numbers from 1 to {MAX_BLOCK}, \
                         found {found}"
                    ),
                });
            }
        };
        let look = Look {
            source,
            by_name,
            settings,
            block,
            is_here,
        };
        let path_of = |at: usize| match source.place(at) {
            Some((shard, _)) => shard.path.clone(),
            None => PathBuf::from(label),
        };
        let tensors = source.entries();
        let unknown = |path: PathBuf, seen: String, hint| {
            Found::Unknown(CheckpointError::Quantised {
                model: label.into(),
                path,
                seen,
                hint,
            })
        };
        let readers = [
            bitsandbytes::read,
            packed::compressed,
            packed::gptq,
            packed::awq,
            microscaling::read,
            eight_bits::read,
        ];
        let mut readings: Vec<Option<Reading>> = Vec::with_capacity(tensors.len());
        let mut problems: Vec<Contradiction> = Vec::new();
        for at in 0..tensors.len() {
            let said = readers.iter().find_map(|reader| reader(&look, at));
            readings.push(match said {
                Some(Ok(reading)) => Some(reading),
                Some(Err(problem)) => {
                    problems.push(problem);
                    None
                }
                None => None,
            });
        }
        let evidence = Evidence::new(tensors, by_name);
        let found = tensors
            .iter()
            .enumerate()
            .find_map(|(at, tensor)| Some((at, evidence.in_tensor(tensor)?)));
        let is_known = look
            .settings
            .method()
            .is_some_and(|method| METHODS.contains(&method.as_str()));
        let is_plain = problems.is_empty() && readings.iter().all(Option::is_none);
        if is_plain && (!is_known || found.is_none()) {
            return match (config.zip(look.settings.seen()), found) {
                (Some((config, seen)), _) => unknown(config.path().into(), seen, CONFIG_HINT),
                (None, Some((at, seen))) => unknown(path_of(at), seen, HINT),
                (None, None) => Found::Plain,
            };
        }
        let float = config.and_then(|config| {
            ["dtype", "torch_dtype"]
                .iter()
                .find_map(|key| float_named(config.get_str(key)?))
        });
        let float = float.unwrap_or(FloatType::Bf16);
        let decoder = Decoder::of(&look, readings, &evidence, float, &mut problems);
        let errors = problems.into_iter().map(|problem| CheckpointError::Codes {
            path: path_of(problem.tensor),
            tensor: tensors[problem.tensor].name.clone(),
            expected: problem.expected,
            found: problem.found,
        });
        Found::Known(decoder, errors.collect())
    }

    /// Puts together what the readers found.
    fn of(
        look: &Look<'_>,
        readings: Vec<Option<Reading>>,
        evidence: &Evidence<'_>,
        float: FloatType,
        problems: &mut Vec<Contradiction>,
    ) -> Decoder {
        let tensors = look.source.entries();
        let known = readings.iter().flatten();
        let used: HashSet<usize> = known
            .clone()
            .flat_map(|reading| {
                let parts = reading.storage.tensors();
                parts.into_iter().chain(reading.beside.iter().copied())
            })
            .chain(problems.iter().map(|problem| problem.tensor))
            .collect();
        let mut decoder = Decoder {
            decoded: Vec::new(),
            schemes: BTreeMap::new(),
            left_out: 0,
            float,
        };
        for (at, reading) in readings.into_iter().enumerate() {
            let entry = &tensors[at];
            match reading {
                Some(reading) => {
                    *decoder.schemes.entry(reading.scheme.clone()).or_default() += 1;
                    decoder.add(reading, at, look, problems);
                }
                None if used.contains(&at) => {}
                None if is_comfy_marker(entry) => {}
                None if is_of_activations(entry) => decoder.left_out += 1,
                None => {
                    if evidence.in_tensor(entry).is_some() {
                        problems.push(Contradiction {
                            tensor: at,
                            expected: "codes that it belongs to".into(),
                            found: "none".into(),
                        });
                    } else if is_float8(entry.dtype) {
                        problems.push(Contradiction {
                            tensor: at,
                            expected: "a scale, as other 8-bit floats of the model have one".into(),
                            found: "none".into(),
                        });
                    }
                    decoder.decoded.push(Decoded {
                        entry: entry.clone(),
                        storage: Storage::Plain(at),
                        beside: Vec::new(),
                        scheme: String::new(),
                    });
                }
            }
        }
        decoder.unique(look, problems);
        decoder
    }

    /// Adds what was read of a tensor.
    fn add(
        &mut self,
        reading: Reading,
        at: usize,
        look: &Look<'_>,
        problems: &mut Vec<Contradiction>,
    ) {
        let dtype = reading.dtype.unwrap_or(self.float.dtype());
        match tensor_bytes(dtype, &reading.shape) {
            Ok(len) => self.decoded.push(Decoded {
                entry: TensorEntry {
                    name: reading.name,
                    dtype,
                    stored: look.source.entries()[at].dtype,
                    shape: reading.shape,
                    len,
                },
                storage: reading.storage,
                beside: reading.beside,
                scheme: reading.scheme,
            }),
            Err(why) => problems.push(Contradiction {
                tensor: at,
                expected: "values that can be counted".into(),
                found: format!("shape {:?}, which {why}", reading.shape),
            }),
        }
    }

    /// Reports values whose name another tensor has.
    fn unique(&self, look: &Look<'_>, problems: &mut Vec<Contradiction>) {
        let mut names = HashSet::new();
        for one in &self.decoded {
            if !names.insert(&one.entry.name) {
                let tensor = one.storage.tensors()[0];
                // Two files with one tensor are reported elsewhere.
                if look.source.entries()[tensor].name != one.entry.name {
                    problems.push(Contradiction {
                        tensor,
                        expected: format!("`{}` once", one.entry.name),
                        found: "the weight itself beside its codes".into(),
                    });
                }
            }
        }
    }

    /// The values that the codes and scales of `base` make, the source that was looked at.
    pub(crate) fn source(self, base: Arc<dyn TensorSource>) -> Arc<dyn TensorSource> {
        Arc::new(Dequantised::new(base, self.decoded, self.left_out))
    }

    /// How the weights are stored, in words, and what they are read as.
    pub(crate) fn said(&self) -> String {
        if self.schemes.is_empty() {
            return "none of its codes could be read".into();
        }
        let schemes: Vec<String> = self
            .schemes
            .iter()
            .map(|(scheme, count)| match count {
                1 => format!("1 weight is stored as {scheme}"),
                count => format!("{count} weights are stored as {scheme}"),
            })
            .collect();
        let left_out = match self.left_out {
            0 => String::new(),
            count => format!("; {count} scales of activations are left out"),
        };
        format!(
            "{}, and read as {}{left_out}",
            schemes.join(", "),
            self.float.dtype()
        )
    }
}

/// Whether a tensor only says that others are ComfyUI's scaled FP8.
pub fn is_comfy_marker(entry: &TensorEntry) -> bool {
    entry.name.rsplit('.').next() == Some("scaled_fp8") && entry.elements() <= 2
}

/// Whether no weight depends on the tensor, by its name, and it is small enough for that.
fn is_of_activations(entry: &TensorEntry) -> bool {
    let last = entry.name.rsplit('.').next().unwrap_or_default();
    let is_small = entry.elements() <= 2 || entry.shape.len() <= 1;
    is_small
        && OF_ACTIVATIONS
            .iter()
            .any(|name| last == *name || last.ends_with(&format!("_{name}")))
}
