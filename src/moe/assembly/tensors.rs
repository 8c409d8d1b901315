//! Decides the tensors of a new mixture: the sources of each, and what is done to them.

use super::super::adjust::{Redraw, Segment};
use super::super::family::Dense;
use super::super::pieces::{Donor, EXPERT, ExpertMatrix, Pieces, Tensors, layer_of};
use super::super::router::Synthesized;
use super::super::split::Cuts;
use super::super::targets::Target;
use architecture::{
    Absent, Bias, Experts, Matrix, Names, SharedLayout, is_derived_buffer, is_output_head,
};
use checkpoint::{Dtype, TensorEntry};
use numeric::{NormalKey, Picks};
use plan::{ColumnRatio, Cut, Problems, SourceTensor};
use recipe::{Expert, Position, Split, Upcycle};

/// The name of this operation in plans.
const NORM: &str = "norm";
const EMBEDDING: &str = "embedding";

/// An expert of the recipe and its model.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) recipe: &'a Expert,
    pub(super) model: usize,
    pub(super) dense: &'a Dense,
}

/// An assembly, with everything decided.
pub(super) struct Assembly<'a> {
    pub(super) pieces: Pieces<'a>,
    /// The model that supplies everything except the experts.
    pub(super) base: usize,
    pub(super) base_at: Option<Position>,
    pub(super) dense: &'a Dense,
    pub(super) target: Target,
    /// The names of routers and experts.
    pub(super) names: Names,
    pub(super) experts: Vec<Source<'a>>,
    pub(super) shared: Option<Source<'a>>,
    /// For each layer, whether it has experts.
    pub(super) has_experts: Vec<bool>,
    pub(super) fold_norms: bool,
    /// How each expert is cut and changed.
    pub(super) upcycle: Upcycle,
    /// The cuts that depend on weights.
    pub(super) cuts: Cuts,
    pub(super) seed: u64,
}

impl Assembly<'_> {
    /// Decides the tensors. Tensors that are missing or have the wrong shape are added to `problems`.
    pub(super) fn tensors(&self, problems: &mut Problems) -> Tensors {
        let mut out = Tensors {
            shared_width: self.shared_width(),
            ..Tensors::default()
        };
        let model = &self.pieces.models.checkpoints[self.base];
        let mut seen = vec![false; self.dense.layers];
        for (at, entry) in model.tensors().iter().enumerate() {
            let source = SourceTensor {
                model: self.base,
                tensor: at,
            };
            let layer = layer_of(&entry.name);
            match layer {
                Some((layer, _)) if layer >= self.dense.layers => {
                    let message = format!(
                        "`{}` of `{}` is of layer {layer}, and its config says {} layers",
                        entry.name,
                        model.label(),
                        self.dense.layers
                    );
                    problems.add(self.base_at, message, None);
                    return out;
                }
                Some((layer, rest)) if rest.starts_with("mlp.") => {
                    if !std::mem::replace(&mut seen[layer], true) {
                        self.mlp(layer, &mut out, problems);
                    }
                }
                _ if is_derived_buffer(&entry.name) => {}
                _ => self.outside(source, entry, &mut out, problems),
            }
        }
        if let Some(layer) = seen.iter().position(|seen| !seen) {
            let name = format!("model.layers.{layer}.mlp.{}", Matrix::Gate.name());
            self.pieces.lacks(self.base, self.base_at, &name, problems);
        }
        out.usages = self
            .pieces
            .usages(&out.planned, self.dense.tied.then_some(self.base));
        out
    }

    /// Neurons of the shared expert, be it one of the recipe or one of zeros.
    fn shared_width(&self) -> usize {
        let absent = self.target.mixture.shared.as_ref();
        match (&self.shared, absent.map(|shared| shared.absent)) {
            (Some(shared), _) => shared.dense.width,
            (None, Some(Absent::Zeros)) => self.dense.width / self.upcycle.granularity,
            (None, Some(Absent::Nothing) | None) => 0,
        }
    }

    /// A tensor outside of the MLPs: unchanged, or split and scaled as the target requires.
    fn outside(
        &self,
        source: SourceTensor,
        entry: &TensorEntry,
        out: &mut Tensors,
        problems: &mut Problems,
    ) {
        let (dense, decoder) = (self.dense, self.dense.decoder);
        let name = &entry.name;
        let model = &self.pieces.models.checkpoints[self.base];
        if !name.starts_with("model.") && !is_output_head(name) {
            let message = format!(
                "`{name}` of `{}` has no place in a `{}`",
                model.label(),
                self.target.model_type
            );
            let hint = "expected names such as `model.layers.0.self_attn.q_proj.weight` and `lm_head.weight`";
            problems.add(self.base_at, message, Some(hint.to_owned()));
            return;
        }
        if is_output_head(name) && dense.tied {
            // The output head is left out as a copy of the embedding: the output ties the two, or its head is written
            // from the embedding.
            if let Some(embedding) = model.find("model.embed_tokens.weight") {
                out.equal.push((self.base, source.tensor, embedding));
            }
            return;
        }
        if decoder.is_fused() && name.ends_with(".self_attn.qkv_proj.weight") {
            let (query, key) = (
                dense.heads * dense.head_dim,
                dense.kv_heads * dense.head_dim,
            );
            let cuts = [
                ("q_proj", 0..query),
                ("k_proj", query..query + key),
                ("v_proj", query + key..query + 2 * key),
            ];
            let expected = [query + 2 * key, dense.hidden];
            if entry.shape != expected {
                self.pieces
                    .has_shape(self.base, self.base_at, entry, &expected, problems);
                return;
            }
            for (matrix, rows) in cuts {
                let name = name.replace("qkv_proj", matrix);
                let piece = self.pieces.cut(source, rows, dense.hidden);
                out.planned
                    .push(self.pieces.join(name, vec![piece], Vec::new()));
            }
            return;
        }
        let norm = decoder.norm_offset != 0.0 && name.ends_with("norm.weight");
        let embedding = decoder.scaled_embedding && name == "model.embed_tokens.weight";
        if embedding {
            let head = self.pieces.values(
                source,
                "lm_head.weight".into(),
                entry,
                Segment::plain(0),
                EXPERT,
            );
            if dense.tied {
                out.planned.push(head);
            }
        }
        // A class that has all biases of attention or none gets one of zeros where the base has that of q, k and v only.
        let target = self.target.decoder;
        let bias = (name.strip_suffix(".self_attn.o_proj.weight"))
            .filter(|_| dense.qkv_bias && !dense.o_bias)
            .filter(|_| target.o_bias != Bias::None && target.o_bias == target.qkv_bias);
        if let Some(prefix) = bias {
            self.pieces.invent(
                format!("{prefix}.self_attn.o_proj.bias"),
                vec![dense.hidden],
                self.pieces.main,
                Synthesized::Constant(0.0),
                out,
            );
        }
        let segment = Segment {
            scale: if embedding {
                (dense.hidden as f64).sqrt()
            } else {
                1.0
            },
            shift: if norm { decoder.norm_offset } else { 0.0 },
            ..Segment::plain(entry.elements())
        };
        let what = if norm { NORM } else { EMBEDDING };
        out.planned.push(
            self.pieces
                .values(source, name.clone(), entry, segment, what),
        );
    }

    /// The MLP of a layer: experts, or the dense MLP unchanged.
    fn mlp(&self, layer: usize, out: &mut Tensors, problems: &mut Problems) {
        let prefix = format!("model.layers.{layer}.");
        if !self.has_experts[layer] {
            let donor = Donor {
                model: self.base,
                at: self.base_at,
                dense: self.dense,
            };
            for matrix in [Matrix::Gate, Matrix::Up, Matrix::Down] {
                if let Some(piece) = self.pieces.piece(&donor, layer, matrix, problems) {
                    let name = format!("{prefix}mlp.{}", matrix.name());
                    out.planned.push(self.pieces.one(name, piece));
                }
            }
            return;
        }
        self.router(&prefix, out);
        let routed = 1.0
            - self
                .shared
                .as_ref()
                .and_then(|shared| shared.recipe.alpha)
                .unwrap_or(0.0);
        let parts = self.upcycle.granularity;
        // All parts of an expert get the same weight. Together they count as much as the whole expert would.
        let share = routed * parts as f64;
        let piece = |number: usize, expert: &Source<'_>, matrix, problems: &mut Problems| {
            let whole =
                self.expert_piece(expert, layer, matrix, share, (number, "expert"), problems)?;
            let part = self.part(whole, layer, matrix, number);
            Some(self.redrawn(part, layer, matrix, number))
        };
        let experts = || {
            let cut = self
                .experts
                .iter()
                .flat_map(|expert| std::iter::repeat_n(expert, parts));
            cut.enumerate()
        };
        let width = self.dense.width / parts;
        match self.names.experts {
            Experts::Each {
                prefix: each,
                gate,
                up,
                down,
            } => {
                for (number, expert) in experts() {
                    for (matrix, suffix) in
                        [(Matrix::Gate, gate), (Matrix::Up, up), (Matrix::Down, down)]
                    {
                        if let Some(piece) = piece(number, expert, matrix, problems) {
                            out.planned.push(
                                self.pieces
                                    .one(format!("{prefix}{each}{number}.{suffix}"), piece),
                            );
                        }
                    }
                }
            }
            Experts::Fused { input, output } => {
                let count = self.experts.len() * parts;
                for (name, matrices, rows, columns) in [
                    (
                        input,
                        &[Matrix::Gate, Matrix::Up][..],
                        2 * width,
                        self.dense.hidden,
                    ),
                    (output, &[Matrix::Down][..], self.dense.hidden, width),
                ] {
                    let pieces: Vec<ExpertMatrix> = experts()
                        .flat_map(|(number, expert)| {
                            matrices.iter().map(move |matrix| (number, expert, *matrix))
                        })
                        .filter_map(|(number, expert, matrix)| {
                            piece(number, expert, matrix, problems)
                        })
                        .collect();
                    if pieces.len() == count * matrices.len() {
                        let shape = vec![count, rows, columns];
                        out.planned.push(self.pieces.join(
                            format!("{prefix}{name}"),
                            pieces,
                            shape,
                        ));
                    }
                }
            }
        }
        self.shared_expert(layer, &prefix, out, problems);
    }

    fn router(&self, prefix: &str, out: &mut Tensors) {
        let place = out.routers.len();
        let name = format!("{prefix}{}", self.names.router);
        // Draws are keyed by the name that the router has on the Hub, so that the layout does not change them.
        out.routers
            .push(format!("{prefix}{}", self.target.mixture.router));
        let experts = self.experts.len() * self.upcycle.granularity;
        let dtype = match self.target.mixture.router_f32 {
            true => Dtype::F32,
            false => self.pieces.main,
        };
        self.pieces.invent(
            name,
            vec![experts, self.dense.hidden],
            dtype,
            Synthesized::Rows(place),
            out,
        );
        if let Some(correction) = self.target.mixture.correction {
            let shape = match correction.two_dimensions {
                true => vec![1, experts],
                false => vec![experts],
            };
            self.pieces.invent(
                format!("{prefix}{}", correction.name),
                shape,
                Dtype::F32,
                Synthesized::Constant(0.0),
                out,
            );
        }
    }

    fn shared_expert(
        &self,
        layer: usize,
        prefix: &str,
        out: &mut Tensors,
        problems: &mut Problems,
    ) {
        let Some(layout) = &self.target.mixture.shared else {
            return;
        };
        let (hidden, dtype) = (self.dense.hidden, self.pieces.main);
        let Some(shared) = &self.shared else {
            let width = out.shared_width;
            if width == 0 {
                return;
            }
            if let SharedLayout::Each(each) = &layout.layout {
                for matrix in [Matrix::Gate, Matrix::Up, Matrix::Down] {
                    let shape = match matrix {
                        Matrix::Down => vec![hidden, width],
                        Matrix::Gate | Matrix::Up => vec![width, hidden],
                    };
                    self.pieces.invent(
                        format!("{prefix}{each}{}", matrix.name()),
                        shape,
                        dtype,
                        Synthesized::Constant(0.0),
                        out,
                    );
                }
            }
            if let Some(gate) = layout.gate {
                self.pieces.invent(
                    format!("{prefix}{gate}"),
                    vec![1, hidden],
                    dtype,
                    halving(dtype),
                    out,
                );
            }
            return;
        };
        // A gate that halves the result.
        let share = match (shared.recipe.alpha, layout.gate) {
            (Some(alpha), Some(_)) => 2.0 * alpha,
            (Some(alpha), None) => alpha,
            (None, _) => 1.0,
        };
        let mut piece =
            |matrix| self.expert_piece(shared, layer, matrix, share, (0, "shared"), problems);
        match &layout.layout {
            SharedLayout::Each(each) => {
                for matrix in [Matrix::Gate, Matrix::Up, Matrix::Down] {
                    if let Some(piece) = piece(matrix) {
                        out.planned.push(
                            self.pieces
                                .one(format!("{prefix}{each}{}", matrix.name()), piece),
                        );
                    }
                }
            }
            SharedLayout::Fused(input, output) => {
                if let (Some(gate), Some(up)) = (piece(Matrix::Gate), piece(Matrix::Up)) {
                    let shape = vec![2 * shared.dense.width, hidden];
                    out.planned.push(self.pieces.join(
                        format!("{prefix}{input}"),
                        vec![gate, up],
                        shape,
                    ));
                }
                if let Some(down) = piece(Matrix::Down) {
                    out.planned
                        .push(self.pieces.one(format!("{prefix}{output}"), down));
                }
            }
        }
        if let Some(gate) = layout.gate {
            let what = match shared.recipe.alpha {
                Some(_) => halving(dtype),
                None => Synthesized::SharedGate(out.routers.len() - 1),
            };
            self.pieces
                .invent(format!("{prefix}{gate}"), vec![1, hidden], dtype, what, out);
        }
    }

    /// A matrix of an expert, with the recipe's changes.
    fn expert_piece(
        &self,
        expert: &Source<'_>,
        layer: usize,
        matrix: Matrix,
        share: f64,
        (number, kind): (usize, &str),
        problems: &mut Problems,
    ) -> Option<ExpertMatrix> {
        let donor = Donor {
            model: expert.model,
            at: Some(expert.recipe.source.at),
            dense: expert.dense,
        };
        let mut piece = self.pieces.piece(&donor, layer, matrix, problems)?;
        if let Some(deviation) = expert
            .recipe
            .noise_scale
            .filter(|deviation| *deviation > 0.0)
        {
            let name = format!("{kind} layer {layer} {}", matrix.name());
            piece.segment.noise = Some((NormalKey::new(self.seed, &name, number), deviation));
        }
        if matrix == Matrix::Down {
            piece.segment.scale = share * expert.recipe.residual_scale.unwrap_or(1.0);
        } else if self.fold_norms && expert.model != self.base {
            piece.part.ratio = Some(self.fold(&donor, layer, problems)?);
            piece.whole = false;
        }
        Some(piece)
    }

    /// One part of an expert's neurons: rows of the gate and up matrices, columns of the down matrix.
    fn part(
        &self,
        mut piece: ExpertMatrix,
        layer: usize,
        matrix: Matrix,
        number: usize,
    ) -> ExpertMatrix {
        let Upcycle {
            granularity, split, ..
        } = self.upcycle;
        if granularity == 1 {
            return piece;
        }
        let (width, part) = (self.dense.width / granularity, number % granularity);
        let range = part * width..(part + 1) * width;
        let first = match (&piece.part.rows, matrix) {
            (Cut::Known(Picks::Range(rows)), Matrix::Gate | Matrix::Up) => rows.start,
            _ => 0,
        };
        let picks = match matrix {
            Matrix::Gate | Matrix::Up => &mut piece.part.rows,
            Matrix::Down => &mut piece.part.columns,
        };
        let of = self.dense.width;
        *picks = match split {
            Split::Contiguous => (first + range.start..first + range.end).into(),
            Split::Random => {
                let name = format!("neurons of layer {layer}");
                let order = shuffled(NormalKey::new(self.seed, &name, number / granularity), of);
                let picks = order[range].iter().map(|neuron| first as u32 + neuron);
                Cut::Known(Picks::List {
                    picks: picks.collect(),
                    of,
                })
            }
            Split::KMeans => Cut::Late {
                picks: self
                    .cuts
                    .get(&(piece.part.source.model, layer))
                    .cloned()
                    .unwrap_or_default(),
                range,
                first,
                of,
            },
        };
        piece.shape = match matrix {
            Matrix::Down => [piece.shape[0], width],
            Matrix::Gate | Matrix::Up => [width, piece.shape[1]],
        };
        piece.segment.elements = (piece.shape[0] * piece.shape[1]) as u64;
        piece.whole = false;
        piece
    }

    /// Redraws a share of a piece's neurons: the same neurons in all three matrices, different ones in each expert.
    fn redrawn(
        &self,
        mut piece: ExpertMatrix,
        layer: usize,
        matrix: Matrix,
        number: usize,
    ) -> ExpertMatrix {
        let width = self.dense.width / self.upcycle.granularity;
        let dropped = (self.upcycle.drop * width as f64).round() as usize;
        if dropped == 0 {
            return piece;
        }
        let key = |of: &str| {
            let name = format!("dropped {of} of layer {layer}");
            NormalKey::new(self.seed, &name, number)
        };
        let mut which = vec![false; width];
        for neuron in shuffled(key("neurons"), width).into_iter().take(dropped) {
            which[neuron as usize] = true;
        }
        piece.segment.redraw = Some(Redraw {
            key: key(matrix.name()),
            which: which.into(),
            rows: matrix != Matrix::Down,
            columns: piece.shape[1],
        });
        piece
    }

    /// Folds the expert's norm into the matrix after it: over the norm that it was trained behind, under that which
    /// precedes it in the assembly.
    fn fold(
        &self,
        donor: &Donor<'_>,
        layer: usize,
        problems: &mut Problems,
    ) -> Option<ColumnRatio> {
        let mut norm = |donor: &Donor<'_>| {
            let name = format!("model.layers.{layer}.{}", donor.dense.decoder.mlp_norm()?);
            self.pieces
                .find(donor, &name, &[donor.dense.hidden], problems)
        };
        let base = Donor {
            model: self.base,
            at: self.base_at,
            dense: self.dense,
        };
        Some(ColumnRatio {
            over: norm(donor)?,
            under: norm(&base)?,
            offset: donor.dense.decoder.norm_offset,
        })
    }
}

/// The numbers below `count`, shuffled: sorted by keyed draws, ties by number.
fn shuffled(key: NormalKey, count: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count as u32).collect();
    order.sort_by(|a, b| {
        let draw = |number: u32| key.uniform(u64::from(number));
        draw(*a).total_cmp(&draw(*b)).then(a.cmp(b))
    });
    order
}

/// The row of a shared expert's gate whose sigmoid is one half, whatever the token. It is not zero, as llama.cpp divides
/// by what comes of it; float16 has nothing so small, and gets its least value.
fn halving(dtype: Dtype) -> Synthesized {
    Synthesized::Constant(match dtype {
        Dtype::F64 | Dtype::F32 | Dtype::BF16 => 1e-20,
        Dtype::F16 => 2f64.powi(-24),
        _ => 0.0,
    })
}
