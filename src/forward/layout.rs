//! The tensors of a model: finds every name and checks every shape before anything is computed.

use std::collections::BTreeSet;

use architecture::{Experts as ExpertNames, Matrix as ExpertMatrix, SharedLayout};

use super::error::ForwardError;
use super::settings::{Mixture, QueryNorm, Routing, Settings};
use super::weights::{read, shape};
use checkpoint::Checkpoint;

/// A matrix: a tensor, or a part of one.
#[derive(Debug, Clone)]
pub(super) struct Matrix {
    pub(super) tensor: String,
    /// The number of its first element in the tensor.
    pub(super) start: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

/// A vector: a tensor, or a part of one.
#[derive(Debug, Clone)]
pub(super) struct Vector {
    pub(super) tensor: String,
    pub(super) start: usize,
    pub(super) length: usize,
}

impl Vector {
    pub(super) fn read(&self, weights: &Checkpoint) -> Result<Vec<f32>, ForwardError> {
        let mut values = vec![0.0; self.length];
        read(weights, &self.tensor, self.start, &mut values)?;
        Ok(values)
    }
}

/// A matrix, and perhaps a bias.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    pub(super) matrix: Matrix,
    pub(super) bias: Option<Vector>,
}

/// A gated MLP.
#[derive(Debug, Clone)]
pub(super) struct Gated {
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

/// Experts and their router.
#[derive(Debug)]
pub(super) struct Experts {
    pub(super) router: Linear,
    pub(super) routing: Routing,
    /// Number of experts per token.
    pub(super) per_token: usize,
    /// Added to the scores for the choice only.
    pub(super) correction: Option<Vector>,
    pub(super) experts: Vec<Gated>,
    pub(super) shared: Option<Gated>,
    pub(super) shared_gate: Option<Linear>,
}

/// The part of a layer after the attention.
#[derive(Debug)]
pub(super) enum Mlp {
    Dense(Box<Gated>),
    Experts(Box<Experts>),
}

/// The tensors of a layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attention_norm: Vector,
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) output: Linear,
    /// The norms of queries and of keys.
    pub(super) query_norms: Option<(Vector, Vector)>,
    pub(super) mlp_norm: Vector,
    pub(super) mlp: Mlp,
}

impl Linear {
    fn names(&self) -> impl Iterator<Item = &str> {
        let bias = self.bias.iter().map(|bias| bias.tensor.as_str());
        bias.chain([self.matrix.tensor.as_str()])
    }
}

impl Gated {
    fn linears(&self) -> [&Linear; 3] {
        [&self.gate, &self.up, &self.down]
    }
}

impl Layer {
    /// The names of its tensors.
    pub(super) fn names(&self) -> BTreeSet<&str> {
        let mut linears = vec![&self.query, &self.key, &self.value, &self.output];
        let mut vectors = vec![&self.attention_norm, &self.mlp_norm];
        vectors.extend(
            self.query_norms
                .iter()
                .flat_map(|(query, key)| [query, key]),
        );
        match &self.mlp {
            Mlp::Dense(gated) => linears.extend(gated.linears()),
            Mlp::Experts(experts) => {
                let gated = experts.experts.iter().chain(&experts.shared);
                linears.push(&experts.router);
                linears.extend(gated.flat_map(Gated::linears));
                linears.extend(&experts.shared_gate);
                vectors.extend(&experts.correction);
            }
        }
        let vectors = vectors.into_iter().map(|vector| vector.tensor.as_str());
        vectors
            .chain(linears.into_iter().flat_map(Linear::names))
            .collect()
    }
}

/// Finds the tensors of a model.
pub(super) struct Tensors<'a> {
    pub(super) weights: &'a Checkpoint,
    /// The prefix of their names.
    pub(super) prefix: &'static str,
}

impl<'a> Tensors<'a> {
    /// Finds out whether names start with `model.`, or the body was saved without a prefix.
    pub(super) fn new(weights: &'a Checkpoint) -> Self {
        let prefix = match shape(weights, "embed_tokens.weight") {
            Some(_) => "",
            None => "model.",
        };
        Tensors { weights, prefix }
    }

    /// The embedding: one row per token.
    pub(super) fn embedding(&self, settings: &Settings) -> Result<Matrix, ForwardError> {
        self.matrix(
            format!("{}embed_tokens.weight", self.prefix),
            settings.vocabulary,
            settings.hidden,
        )
    }

    /// The norm before the head.
    pub(super) fn last_norm(&self, settings: &Settings) -> Result<Vector, ForwardError> {
        self.vector(format!("{}norm.weight", self.prefix), settings.hidden)
    }

    /// The head's matrix, which may be the embedding.
    pub(super) fn head(&self, settings: &Settings) -> Result<Matrix, ForwardError> {
        match settings.tied {
            true => self.embedding(settings),
            false => self.stored_head(settings),
        }
    }

    /// A head that is stored although it is tied to the embedding.
    pub(super) fn tied_head(&self, settings: &Settings) -> Result<Option<Matrix>, ForwardError> {
        match settings.tied && shape(self.weights, HEAD).is_some() {
            true => self.stored_head(settings).map(Some),
            false => Ok(None),
        }
    }

    fn stored_head(&self, settings: &Settings) -> Result<Matrix, ForwardError> {
        self.matrix(HEAD.into(), settings.vocabulary, settings.hidden)
    }

    /// The tensors of a layer.
    pub(super) fn layer(&self, settings: &Settings, layer: usize) -> Result<Layer, ForwardError> {
        let start = format!("{}layers.{layer}.", self.prefix);
        let name = |rest: &str| format!("{start}{rest}");
        let hidden = settings.hidden;
        let too_many = |field: &str| ForwardError::Field {
            field: field.into(),
            expected: "a size that fits memory".into(),
            found: settings.head_dim.to_string(),
            hint: "correct config.json, or download it again",
        };
        let features = |heads: usize| {
            let features = heads.checked_mul(settings.head_dim);
            features.ok_or_else(|| too_many("head_dim"))
        };
        let (queries, keys) = (features(settings.heads)?, features(settings.key_heads)?);
        let [query, key, value] = match settings.fused {
            true => {
                let rows = [queries, keys, keys];
                self.fused(name("self_attn.qkv_proj"), rows, hidden)?
            }
            false => {
                let part = |part: &str, rows| {
                    self.linear(
                        name(&format!("self_attn.{part}_proj")),
                        rows,
                        hidden,
                        settings.qkv_bias,
                    )
                };
                [part("q", queries)?, part("k", keys)?, part("v", keys)?]
            }
        };
        let norm = |norm: &str, length| self.vector(name(&format!("{norm}.weight")), length);
        let query_norms = match settings.query_norm {
            QueryNorm::None => {
                for norm in ["q_norm", "k_norm"] {
                    self.refuse(name(&format!("self_attn.{norm}.weight")))?;
                }
                None
            }
            QueryNorm::Head => Some((settings.head_dim, settings.head_dim)),
            QueryNorm::All => Some((queries, keys)),
        };
        let query_norms = match query_norms {
            None => None,
            Some((of_queries, of_keys)) => Some((
                norm("self_attn.q_norm", of_queries)?,
                norm("self_attn.k_norm", of_keys)?,
            )),
        };
        let [attention_norm, mlp_norm] = settings.norm_names;
        Ok(Layer {
            attention_norm: norm(attention_norm, hidden)?,
            query,
            key,
            value,
            output: self.linear(
                name("self_attn.o_proj"),
                hidden,
                queries,
                settings.output_bias,
            )?,
            query_norms,
            mlp_norm: norm(mlp_norm, hidden)?,
            mlp: match settings
                .mixture
                .as_ref()
                .filter(|all| all.layers.has(layer))
            {
                Some(mixture) => Mlp::Experts(Box::new(self.experts(settings, mixture, &start)?)),
                None => Mlp::Dense(Box::new(self.dense(settings, &name("mlp."))?)),
            },
        })
    }

    fn dense(&self, settings: &Settings, start: &str) -> Result<Gated, ForwardError> {
        let (hidden, inner) = (settings.hidden, settings.inner);
        if !settings.fused {
            return self.gated(start, inner, hidden, settings.mlp_bias);
        }
        let [gate, up] = self.fused(format!("{start}gate_up_proj"), [inner, inner], hidden)?;
        let down = self.linear(format!("{start}down_proj"), hidden, inner, false)?;
        Ok(Gated { gate, up, down })
    }

    fn gated(
        &self,
        start: &str,
        inner: usize,
        hidden: usize,
        bias: bool,
    ) -> Result<Gated, ForwardError> {
        Ok(Gated {
            gate: self.linear(format!("{start}gate_proj"), inner, hidden, bias)?,
            up: self.linear(format!("{start}up_proj"), inner, hidden, bias)?,
            down: self.linear(format!("{start}down_proj"), hidden, inner, bias)?,
        })
    }

    fn experts(
        &self,
        settings: &Settings,
        mixture: &Mixture,
        start: &str,
    ) -> Result<Experts, ForwardError> {
        let (hidden, width) = (settings.hidden, mixture.width);
        let name = |rest: &str| format!("{start}{rest}");
        let held = mixture.table.names(true);
        let is_held = match held.experts {
            ExpertNames::Fused { input, .. } => shape(self.weights, &name(input)).is_some(),
            ExpertNames::Each { .. } => false,
        };
        let names = mixture.table.names(is_held);
        let router = self.weight(&name(names.router), mixture.experts, hidden)?;
        // The router has a row for each: the number of experts is no longer a mere claim.
        let numbers = 0..mixture.experts;
        let experts: Result<Vec<Gated>, ForwardError> = match names.experts {
            ExpertNames::Each { .. } => numbers
                .map(|expert| {
                    let part = |matrix, rows, columns| {
                        self.weight(&name(&names.tensor(expert, matrix)), rows, columns)
                    };
                    Ok(Gated {
                        gate: part(ExpertMatrix::Gate, width, hidden)?,
                        up: part(ExpertMatrix::Up, width, hidden)?,
                        down: part(ExpertMatrix::Down, hidden, width)?,
                    })
                })
                .collect(),
            ExpertNames::Fused { input, output } => {
                let (input, output) = (name(input), name(output));
                self.expect(&input, &[mixture.experts, 2 * width, hidden])?;
                self.expect(&output, &[mixture.experts, hidden, width])?;
                // These products cannot overflow: the tensors have this many elements.
                let part = |tensor: &str, start, rows, columns| Linear {
                    matrix: Matrix {
                        tensor: tensor.into(),
                        start,
                        rows,
                        columns,
                    },
                    bias: None,
                };
                let expert = |expert: usize| Gated {
                    gate: part(&input, 2 * expert * width * hidden, width, hidden),
                    up: part(&input, (2 * expert + 1) * width * hidden, width, hidden),
                    down: part(&output, expert * hidden * width, hidden, width),
                };
                Ok(numbers.map(expert).collect())
            }
        };
        let shared = match mixture.shared {
            None => None,
            Some(shared) => Some(match shared.layout {
                SharedLayout::Each(each) => self.gated(&name(each), shared.width, hidden, false)?,
                SharedLayout::Fused(input, output) => {
                    let rows = [shared.width, shared.width];
                    let [gate, up] = self.fused(module(&name(input)), rows, hidden)?;
                    let down = self.weight(&name(output), hidden, shared.width)?;
                    Gated { gate, up, down }
                }
            }),
        };
        let shared_gate = mixture.shared.and_then(|shared| shared.gate);
        Ok(Experts {
            router,
            routing: mixture.routing,
            per_token: mixture.per_token,
            correction: match (mixture.routing, mixture.table.correction) {
                (Routing::Sigmoid { .. }, Some(correction)) => {
                    Some(self.vector(name(correction.name), mixture.experts)?)
                }
                _ => None,
            },
            experts: experts?,
            shared,
            shared_gate: match shared_gate {
                Some(gate) => Some(self.weight(&name(gate), 1, hidden)?),
                None => None,
            },
        })
    }

    /// A matrix by the name of its weight, that has no bias.
    fn weight(&self, name: &str, rows: usize, columns: usize) -> Result<Linear, ForwardError> {
        self.linear(module(name), rows, columns, false)
    }

    /// Matrices that are one tensor, one below the other.
    fn fused<const N: usize>(
        &self,
        module: String,
        rows: [usize; N],
        columns: usize,
    ) -> Result<[Linear; N], ForwardError> {
        let all = rows
            .iter()
            .fold(0usize, |all, rows| all.saturating_add(*rows));
        let tensor = format!("{module}.weight");
        self.matrix(tensor.clone(), all, columns)?;
        self.refuse(format!("{module}.bias"))?;
        let mut first = 0;
        Ok(rows.map(|rows| {
            let start = first * columns;
            first += rows;
            Linear {
                matrix: Matrix {
                    tensor: tensor.clone(),
                    start,
                    rows,
                    columns,
                },
                bias: None,
            }
        }))
    }

    fn linear(
        &self,
        module: String,
        rows: usize,
        columns: usize,
        bias: bool,
    ) -> Result<Linear, ForwardError> {
        let matrix = self.matrix(format!("{module}.weight"), rows, columns)?;
        let name = format!("{module}.bias");
        let bias = match bias {
            true => Some(self.vector(name, rows)?),
            false => self.refuse(name).map(|()| None)?,
        };
        Ok(Linear { matrix, bias })
    }

    fn matrix(&self, tensor: String, rows: usize, columns: usize) -> Result<Matrix, ForwardError> {
        self.expect(&tensor, &[rows, columns])?;
        Ok(Matrix {
            tensor,
            start: 0,
            rows,
            columns,
        })
    }

    fn vector(&self, tensor: String, length: usize) -> Result<Vector, ForwardError> {
        self.expect(&tensor, &[length])?;
        Ok(Vector {
            tensor,
            start: 0,
            length,
        })
    }

    /// Returns an error unless the tensor exists with that shape and has elements.
    fn expect(&self, tensor: &str, expected: &[usize]) -> Result<(), ForwardError> {
        match shape(self.weights, tensor) {
            None => Err(ForwardError::Missing {
                tensor: tensor.into(),
                expected: expected.into(),
            }),
            Some(found) if found != expected || found.contains(&0) => Err(ForwardError::Shape {
                tensor: tensor.into(),
                expected: expected.into(),
                found: found.into(),
            }),
            Some(_) => Ok(()),
        }
    }

    /// Returns an error if this tensor exists, as the config does not mention it.
    fn refuse(&self, tensor: String) -> Result<(), ForwardError> {
        match shape(self.weights, &tensor) {
            None => Ok(()),
            Some(_) => Err(ForwardError::Surplus { tensor }),
        }
    }
}

/// The module of a weight.
fn module(weight: &str) -> String {
    weight.strip_suffix(".weight").unwrap_or(weight).to_owned()
}

/// The name of the head's matrix.
const HEAD: &str = "lm_head.weight";
