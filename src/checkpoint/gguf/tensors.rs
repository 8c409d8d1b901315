//! The tensors of a model as checkpoints name them, and where each lies in a file.
//!
//! A config promises tensors by their names in a checkpoint. Each is looked up by the name that a writer would give it, so
//! there is no second table of names.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use architecture::llama_cpp::{Dialect, Head, interleaved};
use architecture::{Expected, Experts, Layers, Matrix, Presence, Rule, SharedLayout};
use errors::Refusal;
use serde_json::Value as Json;

use super::config::Known;
use super::keys::TAKE_CONFIG;

/// Tensors that are no weights, from which the config is made.
const OF_CONFIG: [&str; 3] = [
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
];

/// A tensor of a model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) from: From,
    /// What is taken from each value.
    pub(super) offset: f32,
}

/// Where the values of a tensor lie.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum From {
    /// All of a tensor of the file.
    Whole(usize),
    /// The rows of a tensor of the file, of so many elements each, in this order.
    Rows {
        tensor: usize,
        columns: usize,
        picks: Arc<[u32]>,
    },
    /// Runs of elements of tensors of the file, one after the other.
    Runs(Vec<(usize, Range<u64>)>),
}

/// The tensors of a model, and how many of the file's are of layers that predict further tokens.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) tensors: Vec<Named>,
    pub(super) left_out: usize,
}

/// A tensor of the file: its name and shape.
pub(super) type Shaped<'a> = (&'a str, &'a [usize]);

/// Finds the tensors that a config promises.
pub(super) fn find(
    known: Known,
    config: &Json,
    file: &[Shaped<'_>],
    layers: [usize; 2],
) -> Result<Model, Refusal> {
    let places = (0..).zip(file).map(|(at, (name, _))| (*name, at));
    let mut finder = Finder {
        known,
        file,
        by_name: places.collect(),
        used: BTreeSet::new(),
        heads: heads(config),
        tensors: Vec::new(),
    };
    let expected = Expected::new(known.family, config, std::iter::empty::<&str>);
    for body in expected.iter().filter(|expected| expected.body.is_decoder) {
        if body.count() != Some(layers[0]) {
            let said = body.count().unwrap_or(0);
            return Err(Refusal::new(format!(
                "config.json counts {said} layers, the file {}",
                layers[0]
            ))
            .with_hint("the two are of different models: remove one of them from the folder"));
        }
        for rule in &body.rules {
            finder.rule(body, rule, layers[0])?;
        }
    }
    finder.head(config)?;
    finder.all_are_used(layers)
}

/// Heads of queries, and of keys.
fn heads(config: &Json) -> [usize; 2] {
    let size = |field: &str| {
        config
            .get(field)?
            .as_u64()
            .and_then(|size| usize::try_from(size).ok())
    };
    let queries = size("num_attention_heads").unwrap_or(0);
    [queries, size("num_key_value_heads").unwrap_or(queries)]
}

struct Finder<'f> {
    known: Known,
    file: &'f [Shaped<'f>],
    by_name: HashMap<&'f str, usize>,
    /// Tensors of the file that the model has.
    used: BTreeSet<usize>,
    heads: [usize; 2],
    tensors: Vec<Named>,
}

impl Finder<'_> {
    /// Adds the tensors of a rule.
    fn rule(&mut self, body: &Expected<'_>, rule: &Rule, layers: usize) -> Result<(), Refusal> {
        let must = rule.presence != Presence::Optional;
        let Some(suffix) = rule.name.strip_prefix(&format!("{}*.", body.layers_before)) else {
            let within = rule.name.rsplit_once('.').map_or("", |(module, _)| module);
            let start = within.rfind('.').map_or(0, |dot| dot + 1);
            let Some(name) = Dialect::outside_layers(&rule.name[start..]) else {
                return match must {
                    true => Err(self.no_such(&rule.name)),
                    false => Ok(()),
                };
            };
            return self.whole(name, &rule.name, rule, must);
        };
        for layer in 0..layers {
            let sparse = body.is_sparse(layer).unwrap_or(false);
            let has = match rule.layers {
                Layers::All => true,
                Layers::Sparse => sparse,
                Layers::Dense => !sparse,
            };
            if has {
                let name = format!("{}{layer}.{suffix}", body.layers_before);
                self.of_layer(layer, suffix, &name, rule, must)?;
            }
        }
        Ok(())
    }

    /// Adds a tensor of a layer, or one for each expert.
    fn of_layer(
        &mut self,
        layer: usize,
        suffix: &str,
        name: &str,
        rule: &Rule,
        must: bool,
    ) -> Result<(), Refusal> {
        let Known {
            dialect, decoder, ..
        } = self.known;
        let block = |module: &str| format!("blk.{layer}.{module}");
        if let Some(mixture) = &decoder.mixture {
            if mixture
                .correction
                .is_some_and(|correction| correction.name == suffix)
            {
                return self.whole(&block("exp_probs_b.bias"), name, rule, must);
            }
            if let Some(SharedLayout::Fused(input, _)) =
                mixture.shared.as_ref().map(|shared| shared.layout)
                && suffix == input
            {
                let parts =
                    ["gate", "up"].map(|matrix| block(&format!("ffn_{matrix}_shexp.weight")));
                return self.halves(&parts, name, rule, must);
            }
            match mixture.experts {
                Experts::Each {
                    prefix,
                    gate,
                    up,
                    down,
                } => {
                    let matrix = suffix
                        .strip_prefix(prefix)
                        .and_then(|rest| rest.strip_prefix("#."));
                    let names = [(gate, Matrix::Gate), (up, Matrix::Up), (down, Matrix::Down)];
                    if let Some(matrix) = matrix
                        && let Some((_, matrix)) =
                            names.into_iter().find(|(name, _)| *name == matrix)
                    {
                        return self.each_expert(&block(of_experts(matrix)), name, rule);
                    }
                }
                Experts::Fused { input, output } => {
                    if suffix == input {
                        let parts =
                            [Matrix::Gate, Matrix::Up].map(|matrix| block(of_experts(matrix)));
                        return self.halves(&parts, name, rule, must);
                    }
                    if suffix == output {
                        return self.whole(&block(of_experts(Matrix::Down)), name, rule, must);
                    }
                }
            }
        }
        let found = suffix.rsplit_once('.').and_then(|(module, kind)| {
            let module = dialect.module(decoder, module)?;
            Some((module, format!("{module}.{kind}")))
        });
        match found {
            Some((module, of_file)) => {
                let before = self.tensors.len();
                self.whole(&block(&of_file), name, rule, must)?;
                match (dialect.interleaves(module), before < self.tensors.len()) {
                    (Some(true), true) => self.take_turns_back(self.heads[0]),
                    (Some(false), true) => self.take_turns_back(self.heads[1]),
                    _ => Ok(()),
                }
            }
            None if must => Err(self.no_such(name)),
            None => Ok(()),
        }
    }

    /// The tensor of the file, if it has it.
    fn place(&mut self, of_file: &str, name: &str, must: bool) -> Result<Option<usize>, Refusal> {
        let found = self.by_name.get(of_file).copied();
        self.used.extend(found);
        match (found, must) {
            (None, true) => Err(Refusal::new(format!(
                "tensor `{of_file}` is missing, which is `{name}` in a checkpoint of {}",
                self.known.family.name()
            ))
            .with_hint("take a file of the whole model, or put its own config.json beside it")),
            _ => Ok(found),
        }
    }

    /// Adds a tensor that the file has as it is.
    fn whole(&mut self, of_file: &str, name: &str, rule: &Rule, must: bool) -> Result<(), Refusal> {
        let Some(at) = self.place(of_file, name, must)? else {
            return Ok(());
        };
        let shape = shape(rule, self.file[at].1);
        check_shape(of_file, self.file[at].1, &shape)?;
        let offset = match of_file.ends_with("norm.weight") {
            true => self.known.decoder.norm_offset as f32,
            false => 0.0,
        };
        self.tensors.push(Named {
            name: name.to_owned(),
            shape,
            from: From::Whole(at),
            offset,
        });
        Ok(())
    }

    /// Lets the rows of the last tensor lie as the checkpoint has them: of each head the first half, then the second.
    fn take_turns_back(&mut self, heads: usize) -> Result<(), Refusal> {
        let Some(last) = self.tensors.last_mut() else {
            return Ok(());
        };
        let (rows, columns) = match *last.shape {
            [rows] => (rows, 1),
            [rows, columns] => (rows, columns),
            _ => return Ok(()),
        };
        let sound = heads > 0 && rows.is_multiple_of(heads) && (rows / heads).is_multiple_of(2);
        let (Ok(count), true, From::Whole(tensor)) = (u32::try_from(rows), sound, &last.from)
        else {
            return Err(Refusal::new(format!(
                "`{}` has {rows} rows, which are no {heads} heads of an even number of features",
                last.name
            ))
            .with_hint(TAKE_CONFIG));
        };
        let mut picks = vec![0; rows];
        for row in 0..count {
            let there = interleaved(u64::from(row), (rows / heads) as u64);
            picks[there as usize] = row;
        }
        last.from = From::Rows {
            tensor: *tensor,
            columns,
            picks: picks.into(),
        };
        Ok(())
    }

    /// Adds the matrices of experts that the file has in one tensor.
    fn each_expert(&mut self, of_file: &str, name: &str, rule: &Rule) -> Result<(), Refusal> {
        let Some(at) = self.place(of_file, name, true)? else {
            return Ok(());
        };
        let found = self.file[at].1;
        let &[experts, rows, columns] = found else {
            return Err(other_shape(of_file, found, "three dimensions"));
        };
        let shape = shape(rule, &[rows, columns]);
        check_shape(of_file, &found[1..], &shape)?;
        let each = rows as u64 * columns as u64;
        for expert in 0..experts as u64 {
            self.tensors.push(Named {
                name: name.replacen('#', &expert.to_string(), 1),
                shape: shape.clone(),
                from: From::Runs(vec![(at, expert * each..(expert + 1) * each)]),
                offset: 0.0,
            });
        }
        Ok(())
    }

    /// Adds a matrix, or one for each expert, of which the file has the upper half and the lower.
    fn halves(
        &mut self,
        of_file: &[String; 2],
        name: &str,
        rule: &Rule,
        must: bool,
    ) -> Result<(), Refusal> {
        let [gate, up] = of_file;
        let gate_at = self.place(gate, name, must)?;
        let up_at = self.place(up, name, must || gate_at.is_some())?;
        let (Some(gate_at), Some(up_at)) = (gate_at, up_at) else {
            return Ok(());
        };
        let found = self.file[gate_at].1;
        if self.file[up_at].1 != found {
            return Err(other_shape(
                up,
                self.file[up_at].1,
                &format!("{found:?}, as `{gate}` has"),
            ));
        }
        let (experts, rows, columns) = match *found {
            [rows, columns] => (None, rows, columns),
            [experts, rows, columns] => (Some(experts), rows, columns),
            _ => return Err(other_shape(gate, found, "two or three dimensions")),
        };
        let stacked: Vec<usize> = experts.into_iter().chain([2 * rows, columns]).collect();
        let shape = shape(rule, &stacked);
        check_shape(gate, &stacked, &shape)?;
        let half = rows as u64 * columns as u64;
        let runs = (0..experts.unwrap_or(1) as u64).flat_map(|expert| {
            let range = expert * half..(expert + 1) * half;
            [(gate_at, range.clone()), (up_at, range)]
        });
        self.tensors.push(Named {
            name: name.to_owned(),
            shape,
            from: From::Runs(runs.collect()),
            offset: 0.0,
        });
        Ok(())
    }

    /// Adds the output head, unless it is the embedding.
    fn head(&mut self, config: &Json) -> Result<(), Refusal> {
        const HEAD: &str = "output.weight";
        let tied = config.get("tie_word_embeddings").and_then(Json::as_bool);
        let tied = tied.unwrap_or(self.known.family.is_tied());
        let names = self.known.family.head.map_or(&[][..], |head| head.names);
        let (Some(name), false) = (names.first(), tied) else {
            if self.known.dialect.head == Head::Needed {
                self.used.extend(self.by_name.get(HEAD));
            }
            return Ok(());
        };
        let Some(at) = self.place(HEAD, name, true)? else {
            return Ok(());
        };
        self.tensors.push(Named {
            name: (*name).to_owned(),
            shape: self.file[at].1.to_vec(),
            from: From::Whole(at),
            offset: 0.0,
        });
        Ok(())
    }

    /// Refuses tensors of the file that the model does not have.
    fn all_are_used(self, [layers, all]: [usize; 2]) -> Result<Model, Refusal> {
        let mut left_out = 0;
        for (at, (name, _)) in self.file.iter().enumerate() {
            let layer = name
                .strip_prefix("blk.")
                .and_then(|rest| rest.split_once('.'));
            let layer = layer.and_then(|(number, _)| number.parse::<usize>().ok());
            if self.used.contains(&at) || OF_CONFIG.contains(name) {
                continue;
            }
            if layer.is_some_and(|layer| (layers..all).contains(&layer)) {
                left_out += 1;
                continue;
            }
            return Err(Refusal::new(format!(
                "tensor `{name}` is none that a {} has by its config",
                self.known.family.name()
            ))
            .with_hint(TAKE_CONFIG));
        }
        Ok(Model {
            tensors: self.tensors,
            left_out,
        })
    }

    fn no_such(&self, name: &str) -> Refusal {
        Refusal::new(format!(
            "`{name}`, which a {} must have, has no name in GGUF",
            self.known.family.name()
        ))
        .with_hint(TAKE_CONFIG)
    }
}

/// What llama.cpp calls a matrix of all experts.
fn of_experts(matrix: Matrix) -> &'static str {
    match matrix {
        Matrix::Gate => "ffn_gate_exps.weight",
        Matrix::Up => "ffn_up_exps.weight",
        Matrix::Down => "ffn_down_exps.weight",
    }
}

/// The shape that a checkpoint has, as far as the config says it.
fn shape(rule: &Rule, found: &[usize]) -> Vec<usize> {
    let sizes: Option<Vec<usize>> = rule.shape.iter().map(|size| size.size).collect();
    sizes.unwrap_or_else(|| found.to_vec())
}

/// Dimensions of one are left out of some tensors in files.
fn check_shape(of_file: &str, found: &[usize], expected: &[usize]) -> Result<(), Refusal> {
    let wide = |shape: &[usize]| -> Vec<usize> {
        shape.iter().copied().filter(|&size| size != 1).collect()
    };
    match wide(found) == wide(expected) {
        true => Ok(()),
        false => Err(other_shape(
            of_file,
            found,
            &format!("{expected:?}, by the config"),
        )),
    }
}

fn other_shape(of_file: &str, found: &[usize], expected: &str) -> Refusal {
    Refusal::new(format!(
        "tensor `{of_file}`: expected shape {expected}, found {found:?}"
    ))
    .with_hint(
        "a config.json beside the file must be of the same model; without one the file is damaged",
    )
}
