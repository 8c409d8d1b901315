//! How layers with experts are built and named, which layers they are, and what `moe` writes beside that.

use serde_json::Value;

use super::fields::{FieldError, Fields};
use super::rules::{Condition, Layers, Line, Role};

/// The experts of a decoder, as checkpoints on the Hub name them, which transformers, vLLM and llama.cpp read.
#[derive(Debug)]
pub struct Mixture {
    /// The router's rows, one for each expert, behind a layer's prefix.
    pub router: &'static str,
    /// The experts.
    pub experts: Experts,
    /// An expert for all tokens.
    pub shared: Option<Shared>,
    /// A bias of the choice of experts.
    pub correction: Option<Correction>,
    /// Whether the router's rows are kept in float32, as the class does.
    pub router_f32: bool,
    /// Which layers have experts.
    pub sparse: Sparse,
    /// How the config counts.
    pub counts: Counts,
    /// How a token is weighed over the experts that it goes to.
    pub routing: RoutingRule,
    /// What an assembly by `weld moe` needs; none if it is not written.
    pub written: Option<Written>,
}

/// How the matrices of experts are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Experts {
    /// Each by itself: what stands before the expert's number, and the names of gate, up and down behind it.
    Each {
        /// Before the number, with its dot.
        prefix: &'static str,
        /// The gate matrix.
        gate: &'static str,
        /// The up matrix.
        up: &'static str,
        /// The down matrix.
        down: &'static str,
    },
    /// All in two tensors: `[experts, 2 * width, hidden]`, gate rows first, and `[experts, hidden, width]`.
    Fused {
        /// Gate and up.
        input: &'static str,
        /// Down.
        output: &'static str,
    },
}

/// One of the three matrices of a gated MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matrix {
    /// What the activation is applied to.
    Gate,
    /// What that is multiplied with.
    Up,
    /// What leads back.
    Down,
}

impl Matrix {
    /// All three.
    pub const ALL: [Matrix; 3] = [Matrix::Gate, Matrix::Up, Matrix::Down];

    /// Its name in most families.
    pub fn name(self) -> &'static str {
        match self {
            Matrix::Gate => "gate_proj.weight",
            Matrix::Up => "up_proj.weight",
            Matrix::Down => "down_proj.weight",
        }
    }
}

/// How a layer's router and experts are named.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// The router's rows, behind the layer's prefix.
    pub router: &'static str,
    /// The experts.
    pub experts: &'static Experts,
}

impl Names {
    /// The name of a tensor of an expert, behind the layer's prefix; of fused ones, of the tensor that holds it.
    pub fn tensor(&self, expert: usize, matrix: Matrix) -> String {
        match (self.experts, matrix) {
            (
                Experts::Each {
                    prefix,
                    gate,
                    up,
                    down,
                },
                _,
            ) => {
                let suffix = match matrix {
                    Matrix::Gate => gate,
                    Matrix::Up => up,
                    Matrix::Down => down,
                };
                format!("{prefix}{expert}.{suffix}")
            }
            (Experts::Fused { output, .. }, Matrix::Down) => (*output).to_owned(),
            (Experts::Fused { input, .. }, _) => (*input).to_owned(),
        }
    }

    /// What stands before a layer's names, and the number of the expert whose matrix a tensor is; `None` if it is none,
    /// or experts are fused.
    pub fn expert_of<'n>(&self, name: &'n str, matrix: Matrix) -> Option<(&'n str, usize)> {
        let Experts::Each {
            prefix,
            gate,
            up,
            down,
        } = self.experts
        else {
            return None;
        };
        let suffix = match matrix {
            Matrix::Gate => gate,
            Matrix::Up => up,
            Matrix::Down => down,
        };
        let before = name.strip_suffix(*suffix)?.strip_suffix('.')?;
        let (before, number) = before.rsplit_once('.')?;
        let layer = format!("{before}.").strip_suffix(*prefix)?.len();
        Some((&name[..layer], number.parse().ok()?))
    }
}

/// What transformers 5 holds in memory, writes for checkpoints that it read so, and reads.
pub(super) static HELD: Experts = Experts::Fused {
    input: "mlp.experts.gate_up_proj",
    output: "mlp.experts.down_proj",
};

/// The expert that every token goes through.
#[derive(Debug)]
pub struct Shared {
    /// Its matrices.
    pub layout: SharedLayout,
    /// A row whose sigmoid the result is multiplied by.
    pub gate: Option<&'static str>,
    /// What there is where a model has no shared expert.
    pub absent: Absent,
    /// How the config gives its width.
    pub width: SharedWidth,
}

/// How a shared expert is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedLayout {
    /// What stands before `gate_proj.weight` and the others.
    Each(&'static str),
    /// Gate and up in one matrix, and down.
    Fused(&'static str, &'static str),
}

/// What stands for a shared expert that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// Nothing.
    Nothing,
    /// One of zeros, as wide as an expert: the class always has it, and few runtimes load one without width.
    Zeros,
}

/// How the config gives the width of the shared expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedWidth {
    /// In neurons, by this field.
    Neurons(&'static str),
    /// In experts, by this field.
    Experts(&'static str),
    /// It is always as wide as an expert.
    Fixed,
}

/// A bias of the choice of experts, which weighs nothing; kept in float32.
#[derive(Debug, Clone, Copy)]
pub struct Correction {
    /// Its name, behind a layer's prefix.
    pub name: &'static str,
    /// Whether it has a first dimension of one.
    pub two_dimensions: bool,
    /// The field and text of the config without which a model need not have it; none: it always has.
    pub only_if: Option<(&'static str, &'static str)>,
}

/// How a config says which layers have experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sparse {
    /// All have.
    All,
    /// All but those that `mlp_only_layers` lists and `decoder_sparse_step` leaves out.
    MlpOnlyLayers,
    /// All but the first `first_k_dense_replace`, or so many; of these the multiples of `moe_layer_freq`.
    FirstDense(usize),
    /// `moe_layer_start_index` to `moe_layer_end_index`, every `moe_layer_interval`.
    StartAndEnd,
}

/// The config's fields for counts and widths.
#[derive(Debug)]
pub struct Counts {
    /// Experts; several where versions differ.
    pub experts: &'static [&'static str],
    /// Experts for each token.
    pub per_token: &'static str,
    /// Their width.
    pub width: &'static str,
}

/// Which experts a token goes to, and with what weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoutingRule {
    /// Probabilities over all experts, of which the largest are made to sum to one.
    Softmax,
    /// The same if `norm_topk_prob` is true, or this where the field is not written.
    SoftmaxNorm(bool),
    /// Probabilities over the largest logits.
    TopSoftmax,
    /// Each logit by itself, chosen among groups of experts; summing to one as in `SoftmaxNorm`.
    Sigmoid(bool),
}

/// What `weld moe` needs to write a mixture.
#[derive(Debug)]
pub struct Written {
    /// What mergekit calls it.
    pub title: &'static str,
    /// The dense families that it holds exactly, by their model type.
    pub holds: &'static [&'static str],
    /// Fields of its config with fixed values, as JSON.
    pub fixed: &'static str,
    /// Fields of its config that have an entry for each layer.
    pub listed: &'static [(&'static str, Listed)],
}

/// What a list in a mixture's config says for each layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// How many experts a token goes to.
    PerToken,
    /// How wide an expert is.
    Width,
    /// How many shared experts there are: one.
    Shared,
}

/// Which layers of a config have experts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SparseLayers {
    first: usize,
    end: usize,
    /// Of the layers, only those that are a multiple of this, once the offset is added.
    step: usize,
    offset: usize,
    dense: Vec<u64>,
}

impl SparseLayers {
    /// Whether that layer has.
    pub fn has(&self, layer: usize) -> bool {
        (self.first..self.end).contains(&layer)
            && (layer + self.offset).is_multiple_of(self.step)
            && !self.dense.contains(&(layer as u64))
    }
}

impl Sparse {
    /// Whether a layer may have none.
    pub(crate) fn allows_dense(self) -> bool {
        self != Sparse::All
    }

    /// The layers that have experts, by a config.
    ///
    /// # Errors
    /// If a field that says so is not what it must be.
    pub fn layers(self, config: &Fields<'_>) -> Result<SparseLayers, FieldError> {
        let mut layers = SparseLayers {
            first: 0,
            end: usize::MAX,
            step: 1,
            offset: 0,
            dense: Vec::new(),
        };
        match self {
            Sparse::All => {}
            Sparse::MlpOnlyLayers => {
                layers.step = config.size("decoder_sparse_step")?.unwrap_or(1);
                layers.offset = 1;
                for layer in config.list("mlp_only_layers")?.unwrap_or_default() {
                    let Some(layer) = layer.as_u64() else {
                        return Err(config.wrong("mlp_only_layers", "numbers of layers"));
                    };
                    layers.dense.push(layer);
                }
            }
            Sparse::FirstDense(default) => {
                let first = config.size_or_zero("first_k_dense_replace")?;
                layers.first = first.unwrap_or(default);
                // Some configs list it layer by layer, which no class reads.
                if config.get("moe_layer_freq").is_some_and(Value::is_u64) {
                    layers.step = config.size("moe_layer_freq")?.unwrap_or(1);
                }
            }
            Sparse::StartAndEnd => {
                layers.first = config.size_or_zero("moe_layer_start_index")?.unwrap_or(1);
                let last = config.get("moe_layer_end_index").and_then(Value::as_i64);
                if last.is_some_and(|last| last >= 0) {
                    let last = config.size_or_zero("moe_layer_end_index")?;
                    layers.end = last.map_or(usize::MAX, |last| last + 1);
                }
                layers.step = config.size("moe_layer_interval")?.unwrap_or(1);
                layers.offset = 1;
            }
        }
        Ok(layers)
    }
}

impl Experts {
    /// As most families name them, each by itself.
    pub(super) const EACH: Experts = Experts::Each {
        prefix: "mlp.experts.",
        gate: "gate_proj.weight",
        up: "up_proj.weight",
        down: "down_proj.weight",
    };
}

impl Mixture {
    /// The names on the Hub, or those that transformers 5 holds in memory.
    pub fn names(&'static self, held: bool) -> Names {
        match (&self.experts, self.router) {
            (Experts::Each { .. }, router) if held => Names {
                router: match router {
                    "block_sparse_moe.gate.weight" => "mlp.gate.weight",
                    other => other,
                },
                experts: &HELD,
            },
            (experts, router) => Names { router, experts },
        }
    }

    /// The names that a checkpoint uses, told by what follows the layers' numbers in its names.
    pub fn names_among<'n>(&'static self, mut suffixes: impl Iterator<Item = &'n str>) -> Names {
        let hub = self.names(false);
        let held = self.names(true);
        let is_held = |suffix: &str| {
            let of_experts = match held.experts {
                Experts::Fused { input, output } => suffix == *input || suffix == *output,
                Experts::Each { .. } => false,
            };
            of_experts || held.router != hub.router && suffix == held.router
        };
        match suffixes.any(is_held) {
            true => held,
            false => hub,
        }
    }

    /// The tensors of a layer with experts, by these names.
    pub(super) fn lines(&self, names: Names, lines: &mut Vec<Line>) {
        let mut add = |name: &str, sizes: &str, role: Role, when: Condition| {
            let line = Line::new(format!("layers.*.{name}"), sizes);
            lines.push(line.of(role).when(when).on(Layers::Sparse));
        };
        add(names.router, "E H", Role::Router, Condition::Always);
        let always = Condition::Always;
        match names.experts {
            Experts::Each {
                prefix,
                gate,
                up,
                down,
            } => {
                for (name, sizes) in [(gate, "M H"), (up, "M H"), (down, "H M")] {
                    add(&format!("{prefix}#.{name}"), sizes, Role::Expert, always);
                }
            }
            Experts::Fused { input, output } => {
                add(input, "E MM H", Role::Expert, always);
                add(output, "E H M", Role::Expert, always);
            }
        }
        if let Some(correction) = self.correction {
            let sizes = match correction.two_dimensions {
                true => "1 E",
                false => "E",
            };
            let when = match correction.only_if {
                None => always,
                Some((field, text)) => Condition::Equals(field, text),
            };
            add(correction.name, sizes, Role::Other, when);
        }
        let Some(shared) = &self.shared else { return };
        let when = match shared.width {
            SharedWidth::Neurons(field) | SharedWidth::Experts(field) => Condition::Positive(field),
            SharedWidth::Fixed => always,
        };
        match shared.layout {
            SharedLayout::Each(each) => {
                for matrix in Matrix::ALL {
                    let sizes = match matrix {
                        Matrix::Gate | Matrix::Up => "S H",
                        Matrix::Down => "H S",
                    };
                    add(
                        &format!("{each}{}", matrix.name()),
                        sizes,
                        Role::Other,
                        when,
                    );
                }
            }
            SharedLayout::Fused(input, output) => {
                add(input, "SS H", Role::Other, when);
                add(output, "H S", Role::Other, when);
            }
        }
        if let Some(gate) = shared.gate {
            add(gate, "1 H", Role::Other, when);
        }
    }
}
