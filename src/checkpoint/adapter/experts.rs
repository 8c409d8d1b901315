//! Experts: adapters of fused ones, and the two layouts of a mixture's experts.
//!
//! transformers 5 holds the experts of a layer in two tensors, and PEFT adapts these as parameters
//! (`target_parameters`). Checkpoints and older adapters have each expert by itself.

use super::config::AdapterConfig;
use super::cuts::{Cut, Lies, Rows, placement};
use super::error::AdapterError;
use super::pieces::{Placed, ProductPiece, TensorUpdate};
use super::subject::Subject;
use super::targets::Targets;
use super::weights::AdapterWeights;
use architecture::{ExpertLayouts, Experts, Matrix, WeightOrder, expert_layouts, linear_weight};

const OTHER_PARAMETERS: &str = "name the model that the adapter was trained on, or merge the adapter with PEFT \
                                (`merge_and_unload`) and name the result";

/// The most experts of a layer; real models have hundreds.
const MAX_EXPERTS: usize = 1 << 16;

/// Where the experts of a layer lie in the model.
enum Found {
    /// In one tensor, `[experts, _, _]`.
    Fused(usize),
    /// Each in tensors of its own: for each expert, the gate and up matrices, or the down matrix.
    Each(Vec<Vec<usize>>),
}

/// The experts of a model.
pub(super) struct ModelExperts<'a> {
    model: &'a Subject,
    layouts: ExpertLayouts,
}

impl<'a> ModelExperts<'a> {
    pub(super) fn of(model: &'a Subject) -> Self {
        let config = model.config.as_ref();
        Self {
            layouts: expert_layouts(config.and_then(|config| config.model_type())),
            model,
        }
    }

    fn targets(&self) -> Targets<'_> {
        Targets {
            tensors: &self.model.tensors,
            by_name: &self.model.by_name,
        }
    }

    /// The updates of the experts by one parameter of a module: that of `names` which has the shape of the factors.
    pub(super) fn of_parameter(
        &self,
        weights: &AdapterWeights,
        config: &AdapterConfig,
        names: &[String],
        piece: (usize, usize),
    ) -> Result<Vec<Placed>, AdapterError> {
        let (a, b) = piece;
        let mut fitting = Vec::new();
        for name in names {
            let Some(found) = self.find(name) else {
                continue;
            };
            let (rank, scale) = config.rank_and_scale(name);
            let piece = ProductPiece {
                a,
                b,
                magnitude: None,
                is_embedding: false,
                rank,
                scale,
                cut: Cut::WHOLE,
            };
            let placed = self.lay(weights, config, name, &found, &piece);
            fitting.extend(placed);
        }
        let mut fitting = fitting.into_iter();
        match (fitting.next(), fitting.next()) {
            (Some(placed), None) => Ok(placed),
            (None, _) => {
                let expected = format!(
                    "factors with {:?} that fit one of {} in the model",
                    weights.shape(b),
                    names.join(", ")
                );
                Err(weights.shape_error(a, expected, OTHER_PARAMETERS))
            }
            (Some(first), Some(second)) => {
                let name =
                    |placed: &[Placed]| placed.first().map_or("", |one| &one.module).to_owned();
                Err(AdapterError::Ambiguous {
                    path: weights.path.clone(),
                    key: weights.key(a).into(),
                    first: name(&first),
                    second: name(&second),
                })
            }
        }
    }

    /// The updates of all experts; `None` if the factors do not fit them.
    fn lay(
        &self,
        weights: &AdapterWeights,
        config: &AdapterConfig,
        name: &str,
        found: &Found,
        piece: &ProductPiece,
    ) -> Option<Vec<Placed>> {
        let (a, b) = (weights.shape(piece.a), weights.shape(piece.b));
        let &[ranks, _] = a else { return None };
        let shape_of = |tensor: usize| self.model.tensors[tensor].shape.as_slice();
        let (experts, targets): (usize, Vec<(usize, Cut)>) = match found {
            Found::Fused(tensor) => {
                let experts = *shape_of(*tensor).first()?;
                let cut = |expert| Cut {
                    expert: Some((expert, experts)),
                    into_expert: Some(expert),
                    ..Cut::WHOLE
                };
                if experts > MAX_EXPERTS {
                    return None;
                }
                (
                    experts,
                    (0..experts).map(|expert| (*tensor, cut(expert))).collect(),
                )
            }
            Found::Each(each) => {
                let experts = each.len();
                let cut = |expert, index, of| Cut {
                    expert: Some((expert, experts)),
                    rows: Rows::Part { index, of },
                    ..Cut::WHOLE
                };
                let of_expert = |(expert, tensors): (usize, &Vec<usize>)| {
                    let parts = tensors.iter().enumerate();
                    let parts = parts.map(|(at, &tensor)| (tensor, cut(expert, at, tensors.len())));
                    parts.collect::<Vec<_>>()
                };
                (
                    experts,
                    each.iter().enumerate().flat_map(of_expert).collect(),
                )
            }
        };
        if piece.rank.checked_mul(experts) != Some(ranks) {
            return None;
        }
        let place = |(tensor, cut): (usize, Cut)| {
            let shape = shape_of(tensor);
            let fits = |lies| placement(shape, a, b, &cut, lies).is_some();
            let lies = match (fits(Lies::OutIn), fits(Lies::InOut)) {
                (true, true) => self.square(config, tensor),
                (true, false) => Lies::OutIn,
                (false, true) => Lies::InOut,
                (false, false) => return None,
            };
            Some(Placed {
                module: name.to_owned(),
                name: self.model.tensors[tensor].name.clone(),
                lies: Some(lies),
                piece: TensorUpdate::Product(ProductPiece {
                    cut,
                    ..piece.clone()
                }),
            })
        };
        targets.into_iter().map(place).collect()
    }

    /// How the experts of a tensor lie whose shape does not tell.
    fn square(&self, config: &AdapterConfig, tensor: usize) -> Lies {
        let entry = &self.model.tensors[tensor];
        let value = self.model.config.as_ref().map(|config| config.value());
        let order = linear_weight(&entry.name, &entry.shape, value);
        match config.stacks_as_in_out || order == Some(WeightOrder::InOut) {
            true => Lies::InOut,
            false => Lies::OutIn,
        }
    }

    /// Whether the model has a parameter that holds all experts, in either layout.
    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The tensors of a parameter that holds all experts.
    fn find(&self, name: &str) -> Option<Found> {
        if let Some(tensor) = self.targets().lookup(name) {
            return (self.model.tensors[tensor].shape.len() == 3).then_some(Found::Fused(tensor));
        }
        let Experts::Fused { input, output } = self.layouts.fused.experts else {
            return None;
        };
        let (layer, matrices) = match (name.strip_suffix(*input), name.strip_suffix(*output)) {
            (Some(layer), _) => (layer, &[Matrix::Gate, Matrix::Up][..]),
            (None, Some(layer)) => (layer, &[Matrix::Down][..]),
            (None, None) => return None,
        };
        let expert = |expert: usize| -> Option<Vec<usize>> {
            let name = |matrix| format!("{layer}{}", self.layouts.each.tensor(expert, matrix));
            let tensors = matrices
                .iter()
                .map(|&matrix| self.targets().lookup(&name(matrix)));
            tensors.collect()
        };
        let each: Vec<Vec<usize>> = (0..).map_while(expert).collect();
        (!each.is_empty()).then_some(Found::Each(each))
    }

    /// Where the model has a tensor of the adapter that it names in the other layout: its name there, and which part of
    /// it. `None` if it has not.
    pub(super) fn elsewhere(&self, name: &str) -> Option<(String, Cut)> {
        if self.targets().lookup(name).is_some() {
            return None;
        }
        let ExpertLayouts { each, fused } = &self.layouts;
        for (from, to) in [(fused, each), (each, fused)] {
            if let Some(layer) = name.strip_suffix(from.router)
                && let Some(tensor) = self.targets().lookup(&format!("{layer}{}", to.router))
            {
                return Some((self.model.tensors[tensor].name.clone(), Cut::WHOLE));
            }
        }
        Matrix::ALL.into_iter().find_map(|matrix| {
            let (layer, expert) = each.expert_of(name, matrix)?;
            let name = format!("{layer}{}", fused.tensor(expert, matrix));
            let tensor = self.targets().lookup(&name)?;
            let into_rows = match matrix {
                Matrix::Gate => Rows::Part { index: 0, of: 2 },
                Matrix::Up => Rows::Part { index: 1, of: 2 },
                Matrix::Down => Rows::All,
            };
            let cut = Cut {
                into_expert: Some(expert),
                into_rows,
                ..Cut::WHOLE
            };
            Some((self.model.tensors[tensor].name.clone(), cut))
        })
    }
}
