//! How a decoder of the Llama kind is built: what its block is made of, and what its class takes a field for that the
//! config leaves out.

use std::ops::Range;

use super::mixture::{Matrix, Mixture, Names};
use super::rules::{Condition, Layers, Line, Role};

/// A decoder: embedding, layers of attention and a gated MLP or experts, last norm.
///
/// Defaults are those of the classes of transformers, 4.57 and 5.
#[derive(Debug)]
pub struct Decoder {
    /// The matrices of attention.
    pub attention: Attention,
    /// Features of a head where the config has no `head_dim`.
    pub head_dim: HeadDim,
    /// Heads of keys and values where the config has no `num_key_value_heads`; none: as many as of queries.
    pub kv_heads: Option<usize>,
    /// What other sizes are where the config does not say, by their fields.
    pub absent_sizes: &'static [(&'static str, usize)],
    /// Biases of queries, keys and values.
    pub qkv_bias: Bias,
    /// The bias of the attention's output.
    pub o_bias: Bias,
    /// Biases inside the MLP.
    pub mlp_bias: Bias,
    /// Norms of queries and keys.
    pub query_norms: QueryNorms,
    /// What those norms are called, behind `self_attn.`.
    pub query_norm_names: [&'static str; 2],
    /// Where the norms of a layer are.
    pub norms: NormPlacement,
    /// What is added to the weight of each norm.
    pub norm_offset: f64,
    /// What norms add under the root where the config has no `rms_norm_eps`.
    pub norm_eps: f64,
    /// Whether embeddings are multiplied by the root of the hidden size.
    pub scaled_embedding: bool,
    /// The fields that name the activation, the first that is there.
    pub activation_fields: &'static [&'static str],
    /// The activation where the config names none.
    pub activation: &'static str,
    /// Whether `gelu` means its approximation by tanh, as the first Gemma wrote it.
    pub gelu_is_tanh: bool,
    /// The base of rotary frequencies where the config has no `rope_theta`.
    pub theta: f64,
    /// Which part of a head is rotated where the config does not say; none: its code always rotates all of it.
    pub partial_rotary: Option<f64>,
    /// Whether `su` and `yarn` mean longrope, as for Phi-3.
    pub longrope: bool,
    /// How far back attention looks.
    pub window: WindowRule,
    /// The field by which every so many layers one attends to all tokens, where `layer_types` does not list them.
    pub window_period: Option<&'static str>,
    /// Whether it has Granite's four multipliers.
    pub multipliers: bool,
    /// The experts of its layers.
    pub mixture: Option<Mixture>,
    /// Whether `forward` runs it: its block is what these fields say, and nothing else.
    pub runs: bool,
}

/// The matrices of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attention {
    /// Queries, keys and values each by themselves.
    Separate,
    /// Queries, keys and values in one matrix, and so gate and up of the MLP.
    Fused,
    /// Others: their lines, as in [`Body::tensors`](super::Body).
    Listed(&'static str),
}

/// Features of a head where the config does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadDim {
    /// The hidden size over the number of heads.
    Share,
    /// As `Share`, and some versions of its class read no `head_dim`.
    AlwaysShare,
    /// So many.
    Of(usize),
}

/// Whether matrices have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// They have none.
    None,
    /// They always have.
    Always,
    /// A field of the config says so, or this where it does not.
    Flag(&'static str, bool),
}

/// Which features of queries and keys are normed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryNorms {
    /// They have no norms.
    None,
    /// Those of a head.
    Head,
    /// Those of a head, if this field of the config is true.
    HeadIf(&'static str),
    /// All.
    All,
}

/// Where the norms of a layer are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlacement {
    /// Before the attention and before the MLP.
    Before,
    /// After each of them, before the residual is added.
    After,
    /// Before and after each of them.
    Around,
}

/// How the config says how far back attention looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowRule {
    /// To the beginning.
    None,
    /// `sliding_window` for all layers; what that is where the field is not written.
    All(Option<usize>),
    /// The same, if `use_sliding_window` is true.
    Switched,
    /// By `layer_types`, or from the layer `max_window_layers` on.
    Listed {
        /// Whether `use_sliding_window` must be true.
        switched: bool,
        /// That layer where the field is not written; none: versions of transformers differ in which layers these are.
        from: Option<usize>,
    },
}

impl Bias {
    /// The field of the config that says so.
    pub fn field(self) -> Option<&'static str> {
        match self {
            Bias::Flag(field, _) => Some(field),
            Bias::None | Bias::Always => None,
        }
    }

    /// When a tensor is there that has such a bias; none: never.
    fn when(self) -> Option<Condition> {
        match self {
            Bias::None => None,
            Bias::Always => Some(Condition::Always),
            Bias::Flag(field, default) => Some(Condition::Flag(field, default)),
        }
    }
}

impl Decoder {
    /// Llama, by which the others are told.
    pub(super) const LLAMA: Decoder = Decoder {
        attention: Attention::Separate,
        head_dim: HeadDim::Share,
        kv_heads: None,
        absent_sizes: &[],
        qkv_bias: Bias::Flag("attention_bias", false),
        o_bias: Bias::Flag("attention_bias", false),
        mlp_bias: Bias::None,
        query_norms: QueryNorms::None,
        query_norm_names: ["q_norm", "k_norm"],
        norms: NormPlacement::Before,
        norm_offset: 0.0,
        norm_eps: 1e-6,
        scaled_embedding: false,
        activation_fields: &["hidden_act"],
        activation: "silu",
        gelu_is_tanh: false,
        theta: 10_000.0,
        partial_rotary: None,
        longrope: false,
        window: WindowRule::None,
        window_period: None,
        multipliers: false,
        mixture: None,
        runs: true,
    };

    /// The norm whose result the MLP sees, behind a layer's prefix; none if it sees the state itself.
    pub fn mlp_norm(&self) -> Option<&'static str> {
        match self.norms {
            NormPlacement::Before => Some("post_attention_layernorm.weight"),
            NormPlacement::Around => Some("pre_feedforward_layernorm.weight"),
            NormPlacement::After => None,
        }
    }

    /// What the norms of a layer are called, in the order in which they are used.
    pub fn layer_norms(&self) -> &'static [&'static str] {
        match self.norms {
            NormPlacement::Before => &["input_layernorm", "post_attention_layernorm"],
            NormPlacement::After => &["post_attention_layernorm", "post_feedforward_layernorm"],
            NormPlacement::Around => &[
                "input_layernorm",
                "post_attention_layernorm",
                "pre_feedforward_layernorm",
                "post_feedforward_layernorm",
            ],
        }
    }

    /// Whether queries, keys and values are one matrix, and gate and up another.
    pub fn is_fused(&self) -> bool {
        self.attention == Attention::Fused
    }

    /// Where the gate matrix of an MLP of so many neurons is stored, or the up matrix: the tensor behind `mlp.`, its
    /// rows there, and how many rows the tensor has.
    pub fn input_matrix(&self, up: bool, width: usize) -> (&'static str, Range<usize>, usize) {
        match (self.is_fused(), up) {
            (true, false) => ("gate_up_proj.weight", 0..width, 2 * width),
            (true, true) => ("gate_up_proj.weight", width..2 * width, 2 * width),
            (false, false) => (Matrix::Gate.name(), 0..width, width),
            (false, true) => (Matrix::Up.name(), 0..width, width),
        }
    }

    /// Whether any layer can have an MLP that is no expert.
    pub fn has_dense_mlp(&self) -> bool {
        self.mixture
            .as_ref()
            .is_none_or(|mixture| mixture.sparse.allows_dense())
    }

    /// The tensors that it has, each a line of the table; experts by these names.
    pub(super) fn lines(&self, names: Option<Names>) -> Vec<Line> {
        let mut lines = vec![
            Line::new("embed_tokens.weight", "V H").of(Role::Embedding),
            Line::new("norm.weight", "H"),
        ];
        self.attention_lines(&mut lines);
        for norm in self.layer_norms() {
            lines.push(Line::new(format!("layers.*.{norm}.weight"), "H"));
        }
        if self.has_dense_mlp() {
            self.mlp_lines(&mut lines);
        }
        if let (Some(mixture), Some(names)) = (&self.mixture, names) {
            mixture.lines(names, &mut lines);
        }
        lines
    }

    fn attention_lines(&self, lines: &mut Vec<Line>) {
        let mut add = |module: &str, rows: &str, columns: &str, bias: Bias| {
            let module = format!("layers.*.self_attn.{module}_proj");
            let sizes = format!("{rows} {columns}");
            lines.push(Line::new(format!("{module}.weight"), &sizes));
            if let Some(when) = bias.when() {
                lines.push(Line::new(format!("{module}.bias"), rows).when(when));
            }
        };
        match self.attention {
            Attention::Separate => {
                add("q", "Q", "H", self.qkv_bias);
                add("k", "K", "H", self.qkv_bias);
                add("v", "K", "H", self.qkv_bias);
                add("o", "H", "Q", self.o_bias);
            }
            Attention::Fused => {
                add("qkv", "QKK", "H", self.qkv_bias);
                add("o", "H", "Q", self.o_bias);
            }
            Attention::Listed(listed) => lines.extend(Line::parsed(listed)),
        }
        let (sizes, when) = match self.query_norms {
            QueryNorms::None => return,
            QueryNorms::Head => (["D", "D"], Condition::Always),
            QueryNorms::HeadIf(field) => (["D", "D"], Condition::Flag(field, false)),
            QueryNorms::All => (["Q", "K"], Condition::Always),
        };
        for (norm, sizes) in self.query_norm_names.into_iter().zip(sizes) {
            let name = format!("layers.*.self_attn.{norm}.weight");
            lines.push(Line::new(name, sizes).when(when));
        }
    }

    fn mlp_lines(&self, lines: &mut Vec<Line>) {
        let mut add = |module: &str, rows: &str, columns: &str| {
            let module = format!("layers.*.mlp.{module}");
            let sizes = format!("{rows} {columns}");
            let line = Line::new(format!("{module}.weight"), &sizes);
            lines.push(line.on(Layers::Dense));
            if let Some(when) = self.mlp_bias.when() {
                let line = Line::new(format!("{module}.bias"), rows);
                lines.push(line.when(when).on(Layers::Dense));
            }
        };
        match self.is_fused() {
            true => add("gate_up_proj", "II", "H"),
            false => {
                add("gate_proj", "I", "H");
                add("up_proj", "I", "H");
            }
        }
        add("down_proj", "H", "I");
    }
}
