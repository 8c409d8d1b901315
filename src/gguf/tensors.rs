//! Which tensors the file has, what each is put together from, and its values.

use std::ops::Range;

use super::encoding::Encoding;
use super::parameters::Sizes;
use architecture::llama_cpp::{Dialect, Head, interleaved};
use architecture::{Decoder, Experts, Family, Matrix, is_mtp_module, module_index};
use checkpoint::Checkpoint;
use errors::Refusal;
use numeric::Fill;

/// A tensor of the file.
#[derive(Debug)]
pub(super) struct Output {
    /// Its name in llama.cpp.
    pub name: String,
    /// Its shape, in C order.
    pub shape: Vec<usize>,
    /// Its type.
    pub encoding: Encoding,
    /// Its values.
    pub values: Values,
    /// What is added to each value.
    pub offset: f32,
}

/// Where the values of a tensor come from.
#[derive(Debug, Clone)]
pub(super) enum Values {
    /// Elements of tensors of the checkpoint, one part after the other.
    Parts(Vec<ElementRange>),
    /// The rows of one tensor, each head's halves of rows interleaved.
    Interleaved {
        /// The tensor.
        tensor: usize,
        /// Rows of a head.
        head: usize,
        /// Elements of a row.
        columns: usize,
    },
    /// These.
    Given(Vec<f32>),
}

/// Some elements of a tensor of the checkpoint.
#[derive(Debug, Clone)]
pub(super) struct ElementRange {
    tensor: usize,
    elements: Range<u64>,
}

impl Output {
    /// Number of elements.
    pub(super) fn elements(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }

    /// Sets `out` to the values from element `first` on.
    pub(super) fn read(
        &self,
        checkpoint: &Checkpoint,
        first: u64,
        out: &mut [f32],
    ) -> Result<(), Refusal> {
        let mut done = 0;
        while done < out.len() {
            let at = first + done as u64;
            let (tensor, from, most) = match &self.values {
                Values::Given(values) => {
                    out.copy_from_slice(&values[first as usize..][..out.len()]);
                    return Ok(());
                }
                Values::Parts(parts) => piece(parts, at),
                Values::Interleaved {
                    tensor,
                    head,
                    columns,
                } => {
                    let (row, column) = (at / *columns as u64, at % *columns as u64);
                    let from = interleaved(row, *head as u64) * *columns as u64 + column;
                    (*tensor, from, *columns as u64 - column)
                }
            };
            let count =
                usize::try_from(most).map_or(out.len() - done, |most| most.min(out.len() - done));
            let elements = checkpoint
                .elements(tensor)
                .ok_or_else(|| no_floats(checkpoint, tensor))?;
            let read = Fill::<f32>::fill(&*elements, from, &mut out[done..done + count]);
            read.map_err(|error| Refusal::new(error.to_string()))?;
            done += count;
        }
        if self.offset != 0.0 {
            out.iter_mut().for_each(|value| *value += self.offset);
        }
        Ok(())
    }
}

/// The tensor that holds an element, its place there, and how many follow it in this part.
fn piece(parts: &[ElementRange], mut at: u64) -> (usize, u64, u64) {
    for part in parts {
        let len = part.elements.end - part.elements.start;
        if at < len {
            return (part.tensor, part.elements.start + at, len - at);
        }
        at -= len;
    }
    unreachable!("a tensor's parts make up its shape")
}

fn no_floats(checkpoint: &Checkpoint, tensor: usize) -> Refusal {
    let entry = &checkpoint.tensors()[tensor];
    Refusal::new(format!(
        "{}: expected floats, found {:?}",
        entry.name, entry.dtype
    ))
    .with_hint("export the checkpoint before it was quantised")
}

/// The tensors of a file, as they are found.
pub(super) struct Collector<'c> {
    checkpoint: &'c Checkpoint,
    dialect: &'static Dialect,
    family: &'static Family,
    decoder: &'static Decoder,
    /// Heads of queries and of keys.
    heads: [usize; 2],
    /// Layers of the decoder, and with those that predict further tokens.
    layers: [usize; 2],
    encoding: Encoding,
    /// Whether the output head is the embedding.
    tied: bool,
    /// What the names of the decoder's tensors begin with.
    prefix: &'static str,
    outputs: Vec<Output>,
    /// The tensors of each output that is made of experts, by the number of the expert.
    experts: Vec<(usize, Vec<(usize, usize)>)>,
    /// Tensors that the file does not have.
    left_out: usize,
}

impl<'c> Collector<'c> {
    pub(super) fn new(
        checkpoint: &'c Checkpoint,
        (dialect, family, decoder): (&'static Dialect, &'static Family, &'static Decoder),
        sizes: &Sizes,
        encoding: Encoding,
        tied: bool,
    ) -> Self {
        let body = family.bodies.iter().find(|body| body.is_decoder);
        let prefixes = body.map_or(&[""][..], |body| body.prefixes);
        let names = checkpoint.tensors();
        let begins = |prefix: &&&str| names.iter().any(|entry| entry.name.starts_with(**prefix));
        Collector {
            checkpoint,
            dialect,
            family,
            decoder,
            heads: sizes.heads,
            layers: sizes.layers,
            encoding,
            tied,
            prefix: prefixes.iter().find(begins).copied().unwrap_or_default(),
            outputs: Vec::new(),
            experts: Vec::new(),
            left_out: 0,
        }
    }

    /// Adds values that no tensor holds.
    pub(super) fn given(&mut self, name: &str, values: Vec<f32>) {
        self.push(name.into(), vec![values.len()], Values::Given(values));
    }

    /// All tensors of the checkpoint, and how many are of towers and modules that the file does not have.
    pub(super) fn collect(mut self) -> Result<(Vec<Output>, usize), Refusal> {
        for (index, entry) in self.checkpoint.tensors().iter().enumerate() {
            if entry.name.ends_with(".rotary_emb.inv_freq") {
                continue;
            }
            if is_mtp_module(&entry.name) || self.is_of_tower(&entry.name) {
                self.left_out += 1;
            } else if !self.add(index)? {
                let families = "the family has no such tensor in llama.cpp";
                return Err(Refusal::new(format!("{}: {families}", entry.name))
                    .with_hint("`weld check` says which tensors config.json promises"));
            }
        }
        self.join_experts()?;
        self.check_layers()?;
        self.add_needed_head();
        Ok((self.outputs, self.left_out))
    }

    /// Whether a tensor is of a body that is not the decoder, such as one that looks at images.
    fn is_of_tower(&self, name: &str) -> bool {
        let mut towers = self.family.bodies.iter().filter(|body| !body.is_decoder);
        towers.any(|tower| tower.prefixes.iter().any(|prefix| name.starts_with(prefix)))
    }

    /// Writes the embedding as the output head too, where llama.cpp wants one.
    fn add_needed_head(&mut self) {
        let (head, embedding) = ("output.weight", "token_embd.weight");
        let has = |name: &str| self.outputs.iter().position(|output| output.name == name);
        if let (Head::Needed, None, Some(embedding)) =
            (self.dialect.head, has(head), has(embedding))
        {
            let embedding = &self.outputs[embedding];
            let (shape, values) = (embedding.shape.clone(), embedding.values.clone());
            self.push(head.into(), shape, values);
        }
    }

    /// Adds a tensor of the checkpoint; whether it is one of the family's.
    fn add(&mut self, index: usize) -> Result<bool, Refusal> {
        let checkpoint = self.checkpoint;
        let full = checkpoint.tensors()[index].name.as_str();
        let names = self.family.head.map_or(&[][..], |head| head.names);
        if names.contains(&full) {
            match (self.dialect.head, self.tied) {
                (Head::Dropped, _) | (Head::Untied, true) => {}
                _ => self.whole("output.weight".into(), index),
            }
            return Ok(true);
        }
        let Some(name) = full.strip_prefix(self.prefix) else {
            return Ok(false);
        };
        if let Some(top) = Dialect::outside_layers(name) {
            self.whole(top.into(), index);
            return Ok(true);
        }
        let layer = name
            .strip_prefix("layers.")
            .and_then(|rest| rest.split_once('.'));
        let Some((number, rest)) = layer else {
            return Ok(false);
        };
        let Some(number) = module_index(number).filter(|&number| number < self.layers[1]) else {
            return Ok(false);
        };
        if self.add_experts(number, rest, index)? {
            return Ok(true);
        }
        let mixture = self.decoder.mixture.as_ref();
        let correction = mixture.and_then(|mixture| mixture.correction);
        if correction.is_some_and(|correction| correction.name == rest) {
            self.whole(format!("blk.{number}.exp_probs_b.bias"), index);
            return Ok(true);
        }
        let Some((module, suffix)) = rest.rsplit_once('.') else {
            return Ok(false);
        };
        let Some(module) = self.dialect.module(self.decoder, module) else {
            return Ok(false);
        };
        let name = format!("blk.{number}.{module}.{suffix}");
        match self.dialect.interleaves(module) {
            Some(true) => self.interleaved(name, index, self.heads[0])?,
            Some(false) => self.interleaved(name, index, self.heads[1])?,
            None => self.whole(name, index),
        }
        Ok(true)
    }

    /// Adds a tensor of experts, or of a shared one whose gate and up are one matrix; whether it is one.
    fn add_experts(&mut self, layer: usize, rest: &str, index: usize) -> Result<bool, Refusal> {
        let Some(mixture) = self.decoder.mixture.as_ref() else {
            return Ok(false);
        };
        match rest {
            "shared_mlp.input_linear.weight" => {
                self.halves(layer, "shexp", index)?;
                return Ok(true);
            }
            // As transformers 5 may write any mixture.
            "mlp.experts.gate_up_proj" => {
                self.halves(layer, "exps", index)?;
                return Ok(true);
            }
            "mlp.experts.down_proj" => {
                self.whole(format!("blk.{layer}.ffn_down_exps.weight"), index);
                return Ok(true);
            }
            _ => {}
        }
        match mixture.experts {
            Experts::Fused { input, .. } if rest == input => self.halves(layer, "exps", index)?,
            Experts::Fused { output, .. } if rest == output => {
                self.whole(format!("blk.{layer}.ffn_down_exps.weight"), index);
            }
            Experts::Each {
                prefix,
                gate,
                up,
                down,
            } => {
                let expert = rest
                    .strip_prefix(prefix)
                    .and_then(|rest| rest.split_once('.'));
                let Some((expert, matrix)) = expert else {
                    return Ok(false);
                };
                let names = [(gate, Matrix::Gate), (up, Matrix::Up), (down, Matrix::Down)];
                let found = names.into_iter().find(|(name, _)| *name == matrix);
                let (Some((_, matrix)), Some(expert)) = (found, module_index(expert)) else {
                    return Ok(false);
                };
                self.expert(layer, matrix, expert, index);
            }
            Experts::Fused { .. } => return Ok(false),
        }
        Ok(true)
    }

    fn expert(&mut self, layer: usize, matrix: Matrix, expert: usize, index: usize) {
        let matrix = match matrix {
            Matrix::Gate => "gate",
            Matrix::Up => "up",
            Matrix::Down => "down",
        };
        let name = format!("blk.{layer}.ffn_{matrix}_exps.weight");
        let joined = self.outputs.iter().position(|output| output.name == name);
        let output = joined.unwrap_or_else(|| {
            let shape = self.checkpoint.tensors()[index].shape.clone();
            self.push(name, shape, Values::Parts(Vec::new()));
            self.outputs.len() - 1
        });
        match self.experts.iter_mut().find(|(of, _)| *of == output) {
            Some((_, experts)) => experts.push((expert, index)),
            None => self.experts.push((output, vec![(expert, index)])),
        }
    }

    /// Puts the experts of each matrix one after the other.
    fn join_experts(&mut self) -> Result<(), Refusal> {
        for (output, mut experts) in std::mem::take(&mut self.experts) {
            experts.sort_unstable();
            let output = &mut self.outputs[output];
            let mut parts = Vec::with_capacity(experts.len());
            for (place, &(expert, index)) in experts.iter().enumerate() {
                let entry = &self.checkpoint.tensors()[index];
                if expert != place || entry.shape != output.shape {
                    let name = &output.name;
                    return Err(Refusal::new(format!(
                        "{}: the experts of {name} must be numbered from 0 on and have one shape",
                        entry.name
                    )));
                }
                parts.push(ElementRange {
                    tensor: index,
                    elements: 0..entry.elements(),
                });
            }
            output.shape.insert(0, parts.len());
            output.values = Values::Parts(parts);
        }
        Ok(())
    }

    /// Every layer that the config counts must have given something.
    fn check_layers(&self) -> Result<(), Refusal> {
        let layers = self.layers[0];
        for layer in 0..layers {
            let prefix = format!("blk.{layer}.");
            if !self
                .outputs
                .iter()
                .any(|output| output.name.starts_with(&prefix))
            {
                return Err(Refusal::new(format!(
                    "config.json counts {layers} layers, and layer {layer} has no tensor"
                ))
                .with_hint("`weld check` says what is missing"));
            }
        }
        Ok(())
    }

    /// Cuts a matrix, or one for each expert, whose first half of rows is the gate and whose second is up.
    fn halves(&mut self, layer: usize, kind: &str, index: usize) -> Result<(), Refusal> {
        let entry = &self.checkpoint.tensors()[index];
        let (rows, columns, experts) = match *entry.shape {
            [rows, columns] => (rows, columns, None),
            [experts, rows, columns] => (rows, columns, Some(experts)),
            _ => return Err(bad_rows(&entry.name)),
        };
        if !rows.is_multiple_of(2) {
            return Err(bad_rows(&entry.name));
        }
        let half = (rows / 2 * columns) as u64;
        for (at, matrix) in ["gate", "up"].into_iter().enumerate() {
            let parts = (0..experts.unwrap_or(1) as u64).map(|expert| {
                let start = (2 * expert + at as u64) * half;
                ElementRange {
                    tensor: index,
                    elements: start..start + half,
                }
            });
            let parts = parts.collect();
            let shape = experts.into_iter().chain([rows / 2, columns]).collect();
            let name = format!("blk.{layer}.ffn_{matrix}_{kind}.weight");
            self.push(name, shape, Values::Parts(parts));
        }
        Ok(())
    }

    fn interleaved(&mut self, name: String, index: usize, heads: usize) -> Result<(), Refusal> {
        let entry = &self.checkpoint.tensors()[index];
        let (rows, columns) = match *entry.shape {
            [rows] => (rows, 1),
            [rows, columns] => (rows, columns),
            _ => return Err(bad_rows(&entry.name)),
        };
        if heads == 0
            || !rows.is_multiple_of(heads)
            || !(rows / heads).is_multiple_of(2)
            || rows == 0
            || columns == 0
        {
            return Err(bad_rows(&entry.name));
        }
        let values = Values::Interleaved {
            tensor: index,
            head: rows / heads,
            columns,
        };
        self.push(name, entry.shape.clone(), values);
        Ok(())
    }

    fn whole(&mut self, name: String, index: usize) {
        let entry = &self.checkpoint.tensors()[index];
        let part = ElementRange {
            tensor: index,
            elements: 0..entry.elements(),
        };
        self.push(name, entry.shape.clone(), Values::Parts(vec![part]));
    }

    fn push(&mut self, name: String, shape: Vec<usize>, values: Values) {
        let offset = match name.ends_with("norm.weight") {
            true => self.decoder.norm_offset as f32,
            false => 0.0,
        };
        let always_f32 = shape.len() <= 1
            || !name.ends_with(".weight")
            || name.ends_with("_norm.weight")
            || name.ends_with(".ffn_gate_inp.weight")
            || name.ends_with(".ffn_gate_inp_shexp.weight");
        let encoding = match (always_f32, shape.last()) {
            (true, _) | (_, None) => Encoding::F32,
            (false, Some(&columns)) => self.encoding.for_rows_of(columns),
        };
        self.outputs.push(Output {
            name,
            shape,
            encoding,
            values,
            offset,
        });
    }
}

fn bad_rows(name: &str) -> Refusal {
    Refusal::new(format!(
        "{name}: its shape does not follow from config.json"
    ))
    .with_hint("`weld check` says which shape it must have")
}
