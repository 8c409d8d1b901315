//! The last step of planning, whatever is planned: lays out the files and computes the memory.

use bytesize::ByteSize;

use super::models::Models;
use super::output_part::OutputPart;
use super::problems::Problems;
use super::results::{all_of, held_by, made_once, reading};
use super::{Options, Plan, PlannedTensor, Purpose, TensorUsage, VocabularySummary};
use checkpoint::{CheckpointError, ShardLayout, Sidecar, shard_layout, single_file_layout};
use engine::{Cost, Limits, Settings};
use errors::Hint;
use methods::MethodInfo;
use numeric::BLOCK;
use recipe::Rounding;

/// A plan without its files and its memory.
pub struct Draft {
    /// The merge method.
    pub method: &'static MethodInfo,
    /// What it is for, if not a merge.
    pub purpose: Option<Purpose>,
    /// Whether the result depends on random numbers.
    pub random: bool,
    /// How computed values are rounded.
    pub rounding: Rounding,
    /// The recipe's path and its text.
    pub recipe: (String, String),
    /// The models, opened.
    pub models: Models,
    /// The output's tensors, in order.
    pub tensors: Vec<PlannedTensor>,
    /// Pairs of tensors that must hold the same bytes: a model, and two of its tensors.
    pub equal: Vec<(usize, usize, usize)>,
    /// What happens to each tensor of each model.
    pub usages: Vec<Vec<TensorUsage>>,
    /// Its parts; none stands for one that is the whole.
    pub parts: Vec<OutputPart>,
    /// The output's `config.json`.
    pub config: Option<serde_json::Value>,
    /// Files copied from the models: the model, and the file.
    pub sidecars: Vec<(usize, Sidecar)>,
    /// Generated files: name and bytes.
    pub made: Vec<(String, Vec<u8>)>,
    /// How vocabularies were aligned, if they were.
    pub vocabulary: Option<VocabularySummary>,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl Draft {
    /// Completes the plan; `None` if it cannot be written, or does not fit into the memory allowed.
    pub fn finish(self, options: &Options, problems: &mut Problems) -> Option<Plan> {
        let Draft {
            models,
            tensors,
            mut parts,
            ..
        } = self;
        if parts.is_empty() {
            parts = vec![OutputPart::whole(models.donor().stem(), tensors.len())];
        }
        let shards = match shards(&tensors, &mut parts, options.shard_size) {
            Ok(shards) => shards,
            Err(error) => {
                problems.add_error(None, &error);
                return None;
            }
        };
        let readings: Vec<_> = tensors
            .iter()
            .map(|tensor| reading(tensor, &models.checkpoints, &models.results))
            .collect();
        let widest = readings.iter().map(|tensor| tensor.held).max().unwrap_or(1);
        let cost = tensors
            .iter()
            .map(PlannedTensor::cost)
            .chain(
                // A result that is made once is computed by itself, and then read like a file.
                (models
                    .results
                    .values()
                    .filter(|result| !result.is_made_once()))
                .map(|result| result.plan.cost),
            )
            .fold(Cost::default(), Cost::max);
        // Sources that make their values hold memory of their own, in addition to the engine's.
        let inner = all_of(&models.results).into_iter();
        let inner = inner.map(|result| held_by(&result.plan.models));
        let held = held_by(&models.checkpoints) + inner.sum::<u64>();
        let settings = Settings {
            memory: options.settings.memory.without(held),
            ..options.settings
        };
        let limits = match settings.limits(widest, cost) {
            Ok(limits) => Limits {
                peak: limits.peak + held,
                ..limits
            },
            Err(error) => {
                let error = error.beside(held);
                let mut hint = error.hint().unwrap_or_default().into_owned();
                let mut message = error.to_string();
                if let Some((why, name)) = held_whole(&tensors) {
                    message += &why;
                    hint += &format!(
                        "; or leave `{name}` out of the merge: `except: [{{tensors: \"{name}\", action: base}}]`"
                    );
                }
                problems.add(None, message, Some(hint));
                return None;
            }
        };
        let read_itself: u64 = tensors
            .iter()
            .zip(&readings)
            .map(|(tensor, reading)| reading.bytes(tensor))
            .sum();
        let made = made_once(&models.results).into_iter();
        let bytes_read = read_itself + made.map(|result| result.plan.read_itself).sum::<u64>();
        Some(Plan {
            method: self.method,
            purpose: self.purpose,
            random: self.random || models.results.values().any(|result| result.plan.random),
            rounding: self.rounding,
            seed: options.seed,
            recipe: self.recipe,
            shard_size: options.shard_size,
            tokenizer_from: options
                .tokenizer_from
                .as_ref()
                .map(|model| model.text().to_owned()),
            donor: models.donor,
            tokenizer_donor: models.tokenizer_donor,
            base: models.base,
            models: models.checkpoints,
            results: models.results,
            tensors,
            equal: self.equal,
            usages: self.usages,
            shards,
            parts,
            config: self.config,
            sidecars: self.sidecars,
            made: self.made,
            quantization: None,
            vocabulary: self.vocabulary,
            licences: Vec::new(),
            notes: self.notes,
            settings: options.settings,
            limits,
            cost,
            read_itself,
            bytes_read,
        })
    }
}

/// Lays out the files of each part by itself, and says which they are.
fn shards(
    tensors: &[PlannedTensor],
    parts: &mut [OutputPart],
    shard_size: u64,
) -> Result<Vec<ShardLayout>, CheckpointError> {
    let mut shards = Vec::new();
    for part in parts.iter_mut() {
        let begin = shards.len();
        // A part whose tensors are all dropped has no file.
        if !part.tensors.is_empty() {
            let signatures = part.signatures(tensors);
            let mut files = match part.is_one_file() {
                true => vec![single_file_layout(&signatures, &part.stem, part.format)?],
                false => shard_layout(&signatures, shard_size, &part.stem)?,
            };
            let numbers = files.iter_mut().flat_map(|file| &mut file.tensors);
            numbers.for_each(|(tensor, _)| *tensor += part.tensors.start);
            shards.extend(files);
        }
        part.shards = begin..shards.len();
    }
    Ok(shards)
}

/// Why a tensor takes more memory than blocks usually do, and its name: it is held whole, or its rows are, or its
/// columns are summed.
fn held_whole(tensors: &[PlannedTensor]) -> Option<(String, &str)> {
    let need = |tensor: &&PlannedTensor| {
        let cost = tensor.cost();
        let others = cost.row.max(cost.column_sums) as u64;
        (cost.matrix, others)
    };
    let tensor = tensors.iter().max_by_key(need)?;
    let cost = tensor.cost();
    let held = if cost.matrix > 0 {
        format!("holds {} for all of", ByteSize(cost.matrix))
    } else if cost.column_sums > BLOCK {
        "sums each column of".to_owned()
    } else if cost.row > BLOCK {
        "holds whole rows of".to_owned()
    } else {
        return None;
    };
    let (name, shape) = (&tensor.name, &tensor.shape);
    let why = format!(": the method {held} `{name}`, whose shape is {shape:?}");
    Some((why, name))
}

#[cfg(test)]
mod tests {
    use super::super::Operation;
    use super::*;
    use checkpoint::Dtype;
    use engine::{AnyProgram, Measured, Pass, Program};
    use numeric::Real;

    /// Holds three whole matrices of f32.
    struct Whole;

    impl<R: Real> Program<R> for Whole {
        fn next(&self, _measured: &[Measured]) -> Pass<R> {
            Pass::Refuse("it is only planned".into())
        }
    }

    impl AnyProgram for Whole {
        fn cost(&self) -> Cost {
            Cost {
                matrix: 3 * 4 * 4096 * 4096,
                ..Cost::default()
            }
        }
    }

    #[test]
    fn a_matrix_that_is_held_whole_is_named_with_its_bytes() {
        let operation = |program| Operation::Compute {
            name: "whole",
            program,
        };
        let planned = |name: &str, operation| {
            let (name, shape) = (name.to_owned(), vec![4096, 4096]);
            PlannedTensor::plain(name, Dtype::BF16, shape, Vec::new(), operation)
        };
        let tensors = [
            planned("a", Operation::Copy),
            planned("b", operation(Box::new(Whole))),
        ];
        assert_eq!(
            held_whole(&tensors),
            Some((
                ": the method holds 192.0 MiB for all of `b`, whose shape is [4096, 4096]"
                    .to_owned(),
                "b"
            ))
        );
        assert_eq!(held_whole(&tensors[..1]), None);
    }
}
