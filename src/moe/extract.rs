//! Extracts a dense model from a mixture: its MLPs are one expert, or several side by side with equal weights.

use super::MoeOptions;
use super::config;
use super::exact::Misfit;
use super::family::{Dense, Window};
use super::mixture::Mixture;
use super::pieces::{Donor, EXPERT, ExpertMatrix, Pieces, Tensors, layer_of};
use super::{Decided, finish, open, report_misfits};
use architecture::{Bias, Matrix, QueryNorms, SharedLayout};
use checkpoint::{Checkpoint, ModelConfig, Resolver};
use numeric::FloatType;
use plan::{self, Plan, PlannedTensor, Problems, Results, SourceTensor, View};
use recipe::{EditRecipe, Located, Position, Ranges};

use super::adjust::Segment;

/// Plans the dense model.
pub(super) fn attempt(
    recipe: &EditRecipe,
    experts: &Located<Ranges>,
    (path, resolver, options): (&str, &dyn Resolver, &MoeOptions),
    results: &Results,
    mut notes: Vec<String>,
    problems: &mut Problems,
) -> Option<Plan> {
    let mut mentions = recipe.mentions();
    let models = open(&mut mentions, None, resolver, options, results, problems)?;
    notes.extend(models.notes());
    let (base, base_at) = (models.donor, Some(recipe.base_model.at));
    let model = &models.checkpoints[base];
    let config = model.config()?;
    let mixture = Mixture::read(model)
        .map_err(|refusal| problems.add_error(base_at, &refusal))
        .ok()?;
    let chosen = mixture.numbers(experts, model.label(), problems)?;
    let shared = Shared::find(&mixture, model);
    let misfits = misfits(&mixture, config, &shared, model.label());
    let misfits = misfits
        .into_iter()
        .map(|misfit| (base_at, misfit))
        .collect();
    report_misfits(misfits, options.inexact, &mut notes, problems);
    let dtype = recipe.dtype.and_then(FloatType::from_dtype);
    let factor = config
        .get("routed_scaling_factor")
        .and_then(serde_json::Value::as_f64);
    let beside = match &shared {
        Shared::Plain(layout, width) => Some((*layout, *width)),
        Shared::None | Shared::Zeros | Shared::Gated(_) => None,
    };
    let width = chosen.len() * mixture.dense.width + beside.map_or(0, |(_, width)| width);
    let extraction = Extraction {
        pieces: mixture.pieces(&models, base, dtype),
        base,
        base_at,
        mixture: &mixture,
        share: factor.unwrap_or(1.0) / chosen.len() as f64,
        chosen: &chosen,
        beside,
        width,
    };
    let tensors = extraction.tensors(problems);
    if let Some((_, shared)) = beside {
        notes.push(format!(
            "of the {width} neurons of each MLP, the last {shared} are the shared expert's"
        ));
    }
    if matches!(shared, Shared::Zeros) {
        notes.push(
            "the shared expert is zeros in every layer: it is left out, as it adds nothing"
                .to_owned(),
        );
    }
    let named = plan::dtype_name(extraction.pieces.main);
    let extracted = Dense {
        width,
        ..mixture.dense
    };
    let decided = Decided {
        file: None,
        described: format!(
            "{} from {} of the {}'s {}",
            extracted.family.name(),
            plan::count(chosen.len(), "expert"),
            mixture.target.model_type,
            mixture.experts
        ),
        random: false,
        tensors,
        router: None,
        config: Some(config::dense(config, &extracted, named)),
        recipe: (path.to_owned(), recipe.text.resolved.clone()),
    };
    if !problems.is_empty() {
        return None;
    }
    finish(decided, models, base, notes, options, problems)
}

/// The shared expert of a mixture.
enum Shared {
    None,
    /// Its layout and its width.
    Plain(&'static SharedLayout, usize),
    /// It is zeros in every layer, as for a class that always has one: it adds nothing.
    Zeros,
    /// Has a gate that depends on the token, which no dense MLP has; its width.
    Gated(usize),
}

impl Shared {
    fn find(mixture: &Mixture, model: &Checkpoint) -> Shared {
        let Some(shared) = &mixture.target.mixture.shared else {
            return Shared::None;
        };
        let name = match &shared.layout {
            SharedLayout::Each(each) => format!("{each}{}", Matrix::Down.name()),
            SharedLayout::Fused(_, output) => (*output).to_owned(),
        };
        let last_matrix = |layer: &usize| model.find(&format!("model.layers.{layer}.{name}"));
        let found = last_matrix(&mixture.layers[0]);
        let width = found.and_then(|at| model.tensors()[at].shape.last().copied());
        let is_zero = |layer| last_matrix(layer).is_some_and(|at| model.is_zero(at));
        match (width, shared.gate) {
            (None | Some(0), _) => Shared::None,
            (Some(_), _) if mixture.layers.iter().all(is_zero) => Shared::Zeros,
            (Some(width), None) => Shared::Plain(&shared.layout, width),
            (Some(width), Some(_)) => Shared::Gated(width),
        }
    }
}

/// The reasons why a dense model cannot compute what the mixture does with these experts alone.
fn misfits(mixture: &Mixture, config: &ModelConfig, shared: &Shared, label: &str) -> Vec<Misfit> {
    let dense = &mixture.dense;
    let family = dense.family.name();
    let mut found = Vec::new();
    let mut add = |message: String| {
        found.push(Misfit::new(message));
    };
    if let Shared::Gated(width) = shared {
        add(format!(
            "`{label}` has a shared expert of {width} neurons with a gate of its own, which no dense MLP has: it is \
             left out"
        ));
    }
    if config.get_bool("norm_topk_prob") == Some(false) {
        add(format!(
            "the weights of `{label}`'s experts do not sum to one (`norm_topk_prob: false`): alone, an expert weighs \
             more than it did"
        ));
    }
    if dense.rope.partial != 1.0 {
        add(format!(
            "`{label}` turns a share of {} of each head (`partial_rotary_factor`), and `{family}` all of it",
            dense.rope.partial
        ));
    }
    if dense.window == Window::Some {
        add(format!(
            "`{label}` has a window (`sliding_window`) in some layers, which is not carried over"
        ));
    }
    let decoder = dense.decoder;
    // One config field states both biases. In some families it states that of the MLP too, which the mixture does not
    // have.
    let has = |bias: Bias| match bias {
        Bias::None => false,
        Bias::Always => true,
        Bias::Flag(..) => dense.o_bias && decoder.mlp_bias != bias,
    };
    let biases = (has(decoder.qkv_bias), has(decoder.o_bias));
    let norms = decoder.query_norms != QueryNorms::None;
    if biases != (dense.qkv_bias, dense.o_bias) {
        add(format!(
            "`{label}` has biases of q, k and v, or of o, where `{family}` has others (`attention_bias`)"
        ));
    }
    if norms != dense.qk_norm {
        add(format!("`{label}` norms q and k otherwise than `{family}`"));
    }
    found
}

/// The tensors of the dense model.
struct Extraction<'a> {
    pieces: Pieces<'a>,
    base: usize,
    base_at: Option<Position>,
    mixture: &'a Mixture,
    chosen: &'a [usize],
    /// The factor on the last matrix of each chosen expert.
    share: f64,
    /// The shared expert that is placed beside them, and its width.
    beside: Option<(&'static SharedLayout, usize)>,
    /// Of each MLP.
    width: usize,
}

impl Extraction<'_> {
    fn tensors(&self, problems: &mut Problems) -> Tensors {
        let mut out = Tensors::default();
        let model = &self.pieces.models.checkpoints[self.base];
        let mut done = std::collections::BTreeSet::new();
        for (tensor, entry) in model.tensors().iter().enumerate() {
            match layer_of(&entry.name) {
                // Heads that predict further tokens: no dense class has them.
                Some((layer, _)) if layer >= self.mixture.dense.layers => {}
                Some((layer, rest))
                    if self.mixture.has(layer)
                        && (rest.starts_with("mlp.")
                            || rest.starts_with("block_sparse_moe.")
                            || rest.starts_with("shared_mlp.")) =>
                {
                    if done.insert(layer) {
                        self.mlp(layer, &mut out, problems);
                    }
                }
                other => {
                    let source = SourceTensor {
                        model: self.base,
                        tensor,
                    };
                    if let Some((layer, "mlp.down_proj.weight")) = other
                        && entry.shape.last() != Some(&self.width)
                    {
                        let message = format!(
                            "layer {layer} has no experts and an MLP of {} neurons, and the others would have {}: a \
                             dense config has one width (`intermediate_size`)",
                            entry.shape.last().unwrap_or(&0),
                            self.width
                        );
                        problems.add(self.base_at, message, None);
                        return out;
                    }
                    let plain = Segment::plain(entry.elements());
                    let name = entry.name.clone();
                    out.planned
                        .push(self.pieces.values(source, name, entry, plain, EXPERT));
                }
            }
        }
        out.usages = self.pieces.usages(&out.planned, None);
        out
    }

    fn mlp(&self, layer: usize, out: &mut Tensors, problems: &mut Problems) {
        let donor = Donor {
            model: self.base,
            at: self.base_at,
            dense: &self.mixture.dense,
        };
        for matrix in [Matrix::Gate, Matrix::Up, Matrix::Down] {
            let mut pieces = Vec::with_capacity(self.chosen.len() + 1);
            for expert in self.chosen {
                let mixture = self.mixture;
                let piece = mixture.expert(&self.pieces, &donor, layer, *expert, matrix, problems);
                let Some(mut piece) = piece else {
                    return;
                };
                if matrix == Matrix::Down && self.share != 1.0 {
                    piece.part.scale = self.share;
                    piece.whole = false;
                }
                pieces.push(piece);
            }
            if self.beside.is_some() {
                let Some(piece) = self.shared(&donor, layer, matrix, problems) else {
                    return;
                };
                pieces.push(piece);
            }
            let name = format!("model.layers.{layer}.mlp.{}", matrix.name());
            out.planned.push(self.side_by_side(name, matrix, pieces));
        }
    }

    /// Neurons of several MLPs as those of one: rows below each other, or columns beside each other.
    fn side_by_side(
        &self,
        name: String,
        matrix: Matrix,
        mut pieces: Vec<ExpertMatrix>,
    ) -> PlannedTensor {
        let hidden = self.mixture.dense.hidden;
        if pieces.len() == 1
            && let Some(piece) = pieces.pop()
        {
            return self.pieces.one(name, piece);
        }
        match matrix {
            Matrix::Gate | Matrix::Up => self.pieces.join(name, pieces, vec![self.width, hidden]),
            Matrix::Down => {
                let parts = pieces.iter().map(|piece| piece.part.clone()).collect();
                // One segment: scales are those of the parts.
                pieces.truncate(1);
                if let Some(first) = pieces.first_mut() {
                    first.segment = Segment::plain((hidden * self.width) as u64);
                }
                PlannedTensor {
                    views: vec![Some(View::HConcat(parts))],
                    ..self.pieces.join(name, pieces, vec![hidden, self.width])
                }
            }
        }
    }

    /// A matrix of the shared expert.
    fn shared(
        &self,
        donor: &Donor<'_>,
        layer: usize,
        matrix: Matrix,
        problems: &mut Problems,
    ) -> Option<ExpertMatrix> {
        let (layout, width) = self.beside?;
        let hidden = self.mixture.dense.hidden;
        let (name, stored, rows) = match (layout, matrix) {
            (SharedLayout::Each(each), Matrix::Down) => (
                format!("{each}{}", matrix.name()),
                [hidden, width],
                0..hidden,
            ),
            (SharedLayout::Each(each), _) => (
                format!("{each}{}", matrix.name()),
                [width, hidden],
                0..width,
            ),
            (SharedLayout::Fused(_, output), Matrix::Down) => {
                ((*output).to_owned(), [hidden, width], 0..hidden)
            }
            (SharedLayout::Fused(input, _), _) => {
                let first = if matrix == Matrix::Up { width } else { 0 };
                (
                    (*input).to_owned(),
                    [2 * width, hidden],
                    first..first + width,
                )
            }
        };
        let name = format!("model.layers.{layer}.{name}");
        let source = self.pieces.find(donor, &name, &stored, problems)?;
        Some(self.pieces.cut(source, rows, stored[1]))
    }
}
