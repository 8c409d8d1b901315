//! The recipe of a mixture of experts: mergekit-moe's keys and Weldment's, typed.

use safetensors::Dtype;

use super::keys::Place;
use super::nearest::suggestion;
use super::problem::{Located, Position, Problem, ProblemKind, RecipeError, quoted};
use super::schema::{Recipe, RecipeText};
use super::walk::Walk;
use super::yaml::{Entry, Node, Value};
use checkpoint::ModelRef;

/// The name that the recipe's models use for a backbone written inside the recipe.
const BACKBONE: &str = "backbone";

/// The most experts: more are a typing error, and could not be shown in a table.
pub const MAX_EXPERTS: usize = 1024;

/// A recipe for a mixture of experts, typed and checked as far as possible without the models.
#[derive(Debug)]
pub struct MoeRecipe {
    /// The model that provides config, tokenizer, and every tensor outside of the experts.
    pub base_model: Located<ModelRef>,
    /// Provides the tensors outside of the experts instead: a merge of the recipe, or a model.
    pub backbone: Option<Located<ModelRef>>,
    /// `architecture:`, as written.
    pub architecture: Option<Located<String>>,
    /// Where the rows of routers come from.
    pub gate_mode: Located<GateMode>,
    /// How the rows are computed.
    pub router: RouterRecipe,
    /// `dtype:`.
    pub dtype: Option<Dtype>,
    /// Number of experts per token.
    pub experts_per_token: Located<usize>,
    /// The experts; never empty.
    pub experts: Vec<Expert>,
    /// Experts that every token uses.
    pub shared_experts: Vec<Expert>,
    /// Whether the norm that an expert was trained with is folded into it.
    pub fold_norms: bool,
    /// `upcycle:`: how each expert is split into smaller ones, if it is.
    pub upcycle: Option<Located<Upcycle>>,
    /// `layers:`: the layers that get experts, if not all of them.
    pub layers: Option<Located<Ranges>>,
    /// Merges that `base_model`, `backbone` and experts may refer to, each after those it uses itself.
    pub results: Vec<Recipe>,
    /// Parts that are well formed but have no effect.
    pub warnings: Vec<Problem>,
    /// The recipe's path, as the user gave it.
    pub path: String,
    /// The text.
    pub text: RecipeText,
}

/// One expert.
#[derive(Debug)]
pub struct Expert {
    /// The dense model that it comes from.
    pub source: Located<ModelRef>,
    /// Prompts for which it should be chosen.
    pub positive_prompts: Vec<String>,
    /// Prompts for which it should not be chosen.
    pub negative_prompts: Vec<String>,
    /// Standard deviation of the normal noise added to each element of its matrices.
    pub noise_scale: Option<f64>,
    /// The factor of its last matrix, the one that writes to the residual stream.
    pub residual_scale: Option<f64>,
    /// For a shared expert: its share of the block's output; the others get the rest.
    pub alpha: Option<f64>,
    /// Its position.
    pub at: Position,
}

/// How router rows are computed, besides the mode.
#[derive(Debug, Default)]
pub struct RouterRecipe {
    /// Which tokens of a prompt are used.
    pub tokens: Option<PromptTokens>,
    /// The divisor of the rows: below one, the choice gets sharper.
    pub temperature: Option<f64>,
    /// Whether rows are scaled to norm one; the default is yes.
    pub normalize: Option<bool>,
    /// Whether the mean of a layer's rows is subtracted from each row before they are normalised. What all rows have in
    /// common does not affect the choice of experts, but it affects their norms.
    pub center: bool,
    /// The seed of random rows, instead of the run's seed.
    pub seed: Option<u64>,
    /// A safetensors file with the rows.
    pub file: Option<Located<String>>,
}

/// How an expert is split into several narrower ones, which are chosen together, and how much of each is kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Upcycle {
    /// The number of parts.
    pub granularity: usize,
    /// Which neurons each part gets.
    pub split: Split,
    /// The share of each part's neurons that are redrawn at random, from 0 to 1.
    pub drop: f64,
}

impl Default for Upcycle {
    /// Experts are not split.
    fn default() -> Self {
        Self {
            granularity: 1,
            split: Split::Contiguous,
            drop: 0.0,
        }
    }
}

/// Which neurons a part of an expert gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Adjacent ones.
    Contiguous,
    /// A random choice, drawn by seed.
    Random,
    /// Those with similar directions of their gate rows, by balanced k-means.
    KMeans,
}

/// The tokens of a prompt that a router's row is computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptTokens {
    /// The last token of each prompt, as in mergekit.
    Last,
    /// The mean over all tokens but the one that begins a text.
    Mean,
}

/// Half-open ranges of layers or experts; a range without an end goes to the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges(pub Vec<(usize, Option<usize>)>);

impl Ranges {
    /// Whether a number is in one of the ranges.
    pub fn has(&self, number: usize) -> bool {
        let mut ranges = self.0.iter();
        ranges.any(|(first, end)| *first <= number && end.is_none_or(|end| number < end))
    }

    /// The numbers in the order of the ranges, with `count` as the total. None if a number is not below `count`, or
    /// there are more numbers than a mixture may have experts.
    pub fn of(&self, count: usize) -> Option<Vec<usize>> {
        let mut numbers = Vec::new();
        for (first, end) in &self.0 {
            let end = end.unwrap_or(count);
            let fits = *first < count && end <= count && end - first <= MAX_EXPERTS - numbers.len();
            if !fits {
                return None;
            }
            numbers.extend(*first..end);
        }
        Some(numbers)
    }
}

/// Where the rows of routers come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateMode {
    /// The input states of a layer, at the last token of each prompt.
    Hidden,
    /// The input states of a layer, averaged over tokens.
    HiddenAvg,
    /// The states that the router will get: after attention and norm.
    GateInput,
    /// Sums of the prompts' token embeddings, the same in every layer.
    CheapEmbed,
    /// Normal draws.
    Random,
    /// Uniform draws, as in a new linear layer.
    UniformRandom,
    /// Normal draws made orthonormal in each layer.
    Orthogonal,
    /// Zeros: all experts score alike, and the first ones are chosen.
    Zero,
    /// The direction in which an expert's first matrices differ most from the base's.
    TaskVector,
    /// Rows from a file.
    File,
}

impl GateMode {
    /// Every mode, its name, and what it does.
    pub const ALL: [(&str, GateMode, &str); 11] = [
        (
            "hidden",
            GateMode::Hidden,
            "states entering the layer at each prompt's last token (mergekit's default)",
        ),
        (
            "hidden_avg",
            GateMode::HiddenAvg,
            "the same, the mean over a prompt's tokens",
        ),
        ("hidden_last", GateMode::Hidden, "another name of `hidden`"),
        (
            "gate_input",
            GateMode::GateInput,
            "states that the router will see: behind attention and norm",
        ),
        (
            "cheap_embed",
            GateMode::CheapEmbed,
            "sums of the prompts' token embeddings, the same in every layer",
        ),
        ("random", GateMode::Random, "normal draws"),
        (
            "uniform_random",
            GateMode::UniformRandom,
            "uniform draws between -1 and 1 over the root of the width",
        ),
        (
            "orthogonal",
            GateMode::Orthogonal,
            "normal draws, orthonormal in each layer",
        ),
        (
            "zero",
            GateMode::Zero,
            "zeros: training decides; until then the first experts are taken",
        ),
        (
            "task_vector",
            GateMode::TaskVector,
            "where an expert's gate and up matrices differ most from the base's: the first right singular vector",
        ),
        (
            "file",
            GateMode::File,
            "rows of a safetensors file, `router: {file: ...}`",
        ),
    ];

    /// The name of the mode.
    pub fn name(self) -> &'static str {
        let mut all = Self::ALL.iter();
        all.find(|(_, mode, _)| *mode == self)
            .map_or("", |(name, ..)| name)
    }

    /// Whether it requires prompts.
    pub fn needs_prompts(self) -> bool {
        self.needs_states() || self == GateMode::CheapEmbed
    }

    /// Whether it uses states inside the model.
    pub fn needs_states(self) -> bool {
        matches!(
            self,
            GateMode::Hidden | GateMode::HiddenAvg | GateMode::GateInput
        )
    }

    /// Whether it uses the states that the router will get.
    pub fn sees_gate_inputs(self) -> bool {
        matches!(self, GateMode::GateInput | GateMode::TaskVector)
    }

    /// The default choice of tokens.
    pub fn tokens(self) -> PromptTokens {
        match self {
            GateMode::HiddenAvg | GateMode::GateInput | GateMode::TaskVector => PromptTokens::Mean,
            _ => PromptTokens::Last,
        }
    }

    /// Whether it is random.
    pub fn is_random(self) -> bool {
        matches!(
            self,
            GateMode::Random | GateMode::UniformRandom | GateMode::Orthogonal
        )
    }
}

impl MoeRecipe {
    /// Every reference to a model: the base, the backbone, then the experts.
    pub fn mentions(&self) -> impl Iterator<Item = &Located<ModelRef>> {
        let experts = self.experts.iter().chain(&self.shared_experts);
        [&self.base_model]
            .into_iter()
            .chain(&self.backbone)
            .chain(experts.map(|expert| &expert.source))
    }

    /// Whether the rows are computed from prompts: a mode for which they are optional uses them if there are any.
    pub fn uses_prompts(&self) -> bool {
        let mode = self.gate_mode.value;
        let mut experts = self.experts.iter();
        mode.needs_prompts()
            || mode == GateMode::TaskVector
                && experts.any(|expert| !expert.positive_prompts.is_empty())
    }

    /// The error for problems that later layers found, which know the models.
    pub fn error(&self, problems: Vec<Problem>) -> RecipeError {
        RecipeError::new(self.path.clone(), self.text.read.clone(), problems)
    }
}

const MOE: Place = Place {
    name: "a recipe of a mixture of experts",
    keys: &[
        "base_model",
        "experts",
        "shared_experts",
        "gate_mode",
        "router",
        "experts_per_token",
        "architecture",
        "dtype",
        "backbone",
        "fold_norms",
        "upcycle",
        "layers",
    ],
};

const EXPERT: Place = Place {
    name: "an expert",
    keys: &[
        "source_model",
        "positive_prompts",
        "negative_prompts",
        "noise_scale",
        "residual_scale",
        "alpha",
    ],
};

const ROUTER: Place = Place {
    name: "`router`",
    keys: &[
        "tokens",
        "temperature",
        "normalize",
        "center",
        "seed",
        "file",
    ],
};

const UPCYCLE: Place = Place {
    name: "`upcycle`",
    keys: &["granularity", "split", "drop", "scale"],
};

/// Whether a document assembles a mixture of experts instead of merging.
pub(super) fn is_moe(root: &Node) -> bool {
    let Value::Map(entries) = &root.value else {
        return false;
    };
    let has = |key: &str| entries.iter().any(|entry| entry.key == key);
    !has("merge_method") && (has("experts") || has("gate_mode") || has("extract"))
}

impl Walk<'_> {
    /// Types the whole recipe, and the merge that it may contain as its backbone.
    pub(super) fn moe(&mut self, root: &Node) -> Option<(MoeRecipe, Option<Recipe>)> {
        let entries = self.entries(root, &MOE)?;
        let mut base_model = None;
        let mut backbone_node = None;
        let mut experts = None;
        let mut recipe = Parts::default();
        let before = self.problems.len();
        for entry in entries {
            let node = &entry.node;
            match entry.key.as_str() {
                "gate_mode" | "router" | "experts_per_token" | "architecture" | "dtype"
                | "backbone" | "fold_norms" | "upcycle" | "layers" | "shared_experts"
                    if node.is_null() => {}
                "base_model" => base_model = Some(self.model(node)),
                "experts" => experts = Some(self.experts(entry, false)),
                "shared_experts" => {
                    recipe.shared_experts = self.experts(entry, true).unwrap_or_default();
                }
                "gate_mode" => recipe.gate_mode = self.gate_mode(entry),
                "router" => recipe.router = self.router(node).unwrap_or_default(),
                "experts_per_token" => recipe.experts_per_token = self.experts_per_token(entry),
                "architecture" => {
                    recipe.architecture =
                        self.text(entry).map(|value| Located { value, at: node.at });
                }
                "dtype" => recipe.dtype = self.dtype(entry),
                // Typed once the base is known.
                "backbone" => backbone_node = Some(node),
                "fold_norms" => recipe.fold_norms = self.flag(entry).unwrap_or_default(),
                "upcycle" => recipe.upcycle = self.upcycle(node),
                "layers" => recipe.layers = self.ranges(entry, "layers"),
                _ => self.other_key(&MOE, entry),
            }
        }
        if base_model.is_none() {
            self.missing("base_model", root, &MOE);
        }
        if experts.is_none() {
            self.missing("experts", root, &MOE);
        }
        let (backbone, inner) = match backbone_node {
            Some(node) => self.backbone(node, base_model.as_ref().and_then(Option::as_ref)),
            None => (None, None),
        };
        let (base_model, experts) = (base_model??, experts??);
        let default = Located {
            value: 2,
            at: root.at,
        };
        let recipe = MoeRecipe {
            base_model,
            backbone,
            architecture: recipe.architecture,
            gate_mode: recipe.gate_mode.unwrap_or(Located {
                value: GateMode::Hidden,
                at: root.at,
            }),
            router: recipe.router,
            dtype: recipe.dtype,
            experts_per_token: recipe.experts_per_token.unwrap_or(default),
            experts,
            shared_experts: recipe.shared_experts,
            fold_norms: recipe.fold_norms,
            upcycle: recipe.upcycle,
            layers: recipe.layers,
            results: Vec::new(),
            warnings: Vec::new(),
            path: String::new(),
            text: RecipeText::default(),
        };
        if self.problems.len() == before {
            self.check_moe(&recipe);
        }
        Some((recipe, inner))
    }

    fn experts(&mut self, entry: &Entry, shared: bool) -> Option<Vec<Expert>> {
        let items = self.expert_items(entry)?;
        items.iter().map(|item| self.expert(item, shared)).collect()
    }

    /// The items of a list of experts, up to the maximum.
    pub(super) fn expert_items<'n>(&mut self, entry: &'n Entry) -> Option<&'n [Node]> {
        let items = self.items(entry, &entry.key)?;
        if items.len() > MAX_EXPERTS {
            let message = format!(
                "expected at most {MAX_EXPERTS} experts, found {}",
                items.len()
            );
            self.problem(ProblemKind::Invalid, entry.node.at, message);
            return None;
        }
        Some(items)
    }

    fn expert(&mut self, node: &Node, shared: bool) -> Option<Expert> {
        let entries = self.entries(node, &EXPERT)?;
        let mut source = None;
        let mut expert = ExpertParts::default();
        for entry in entries {
            match entry.key.as_str() {
                "positive_prompts" | "negative_prompts" | "noise_scale" | "residual_scale"
                | "alpha"
                    if entry.node.is_null() => {}
                "source_model" => source = Some(self.model(&entry.node)),
                "positive_prompts" => expert.positive = self.prompts(entry),
                "negative_prompts" => expert.negative = self.prompts(entry),
                "noise_scale" => expert.noise = self.number(entry, "at least 0", |x| x >= 0.0),
                "residual_scale" => expert.residual = self.number(entry, "finite", |_| true),
                "alpha" if shared => {
                    let fits = |x| (0.0..=1.0).contains(&x);
                    expert.alpha = self.number(entry, "from 0 to 1", fits);
                }
                "alpha" => {
                    let message =
                        "`alpha` is the share of a shared expert, and this is a routed one";
                    let hint = "put the expert under `shared_experts`, or remove `alpha`";
                    self.refuse(ProblemKind::Invalid, entry.key_at, message, Some(hint));
                }
                _ => self.other_key(&EXPERT, entry),
            }
        }
        if source.is_none() {
            self.missing("source_model", node, &EXPERT);
        }
        Some(Expert {
            source: source??,
            positive_prompts: expert.positive,
            negative_prompts: expert.negative,
            noise_scale: expert.noise,
            residual_scale: expert.residual,
            alpha: expert.alpha,
            at: node.at,
        })
    }

    pub(super) fn prompts(&mut self, entry: &Entry) -> Vec<String> {
        let Some(items) = self.items(entry, &entry.key) else {
            return Vec::new();
        };
        let mut prompts = Vec::with_capacity(items.len());
        for item in items {
            match &item.value {
                Value::Text(text) => prompts.push(text.clone()),
                other => {
                    let message = format!("expected a prompt, found {}", other.found());
                    let hint = "a prompt is text: put it in quotes";
                    self.refuse(ProblemKind::Invalid, item.at, message, Some(hint));
                }
            }
        }
        prompts
    }

    pub(super) fn gate_mode(&mut self, entry: &Entry) -> Option<Located<GateMode>> {
        let text = self.text(entry)?;
        let at = entry.node.at;
        let known = GateMode::ALL.iter().find(|(name, ..)| *name == text);
        if let Some((_, value, _)) = known {
            return Some(Located { value: *value, at });
        }
        let names: Vec<&str> = GateMode::ALL.iter().map(|(name, ..)| *name).collect();
        let hint = suggestion(&text, "the modes are", &names);
        let message = format!("unknown gate mode {}", quoted(&text));
        self.refuse(ProblemKind::Unknown, at, message, hint.as_deref());
        None
    }

    pub(super) fn router(&mut self, node: &Node) -> Option<RouterRecipe> {
        let entries = self.entries(node, &ROUTER)?;
        let mut router = RouterRecipe::default();
        for entry in entries {
            match entry.key.as_str() {
                _ if entry.node.is_null() => {}
                "tokens" => router.tokens = self.prompt_tokens(entry),
                "temperature" => {
                    router.temperature = self.number(entry, "more than 0", |x| x > 0.0);
                }
                "normalize" => router.normalize = self.flag(entry),
                "center" => router.center = self.flag(entry).unwrap_or_default(),
                "seed" => router.seed = self.whole(entry, 0).map(|seed| seed as u64),
                "file" => {
                    let at = entry.node.at;
                    router.file = self.text(entry).map(|value| Located { value, at });
                }
                _ => self.other_key(&ROUTER, entry),
            }
        }
        Some(router)
    }

    fn upcycle(&mut self, node: &Node) -> Option<Located<Upcycle>> {
        let entries = self.entries(node, &UPCYCLE)?;
        let mut upcycle = Upcycle::default();
        for entry in entries {
            match entry.key.as_str() {
                _ if entry.node.is_null() => {}
                "granularity" => upcycle.granularity = self.whole(entry, 1)?,
                "drop" => {
                    let fits = |share| (0.0..=1.0).contains(&share);
                    upcycle.drop = self.number(entry, "from 0 to 1", fits)?;
                }
                // The only supported way: the last matrix of each part times the number of parts.
                "scale" => {
                    let scale = self.text(entry)?;
                    if scale != "exact" {
                        let message =
                            format!("expected `exact` for `scale`, found {}", quoted(&scale));
                        self.problem(ProblemKind::Unknown, entry.node.at, message);
                        return None;
                    }
                }
                "split" => {
                    upcycle.split = match self.text(entry)?.as_str() {
                        "contiguous" => Split::Contiguous,
                        "random" => Split::Random,
                        "kmeans" => Split::KMeans,
                        other => {
                            let found = quoted(other);
                            let message = format!(
                                "expected `contiguous`, `random` or `kmeans` for `split`, found {found}"
                            );
                            self.problem(ProblemKind::Unknown, entry.node.at, message);
                            return None;
                        }
                    };
                }
                _ => self.other_key(&UPCYCLE, entry),
            }
        }
        Some(Located {
            value: upcycle,
            at: node.at,
        })
    }

    fn prompt_tokens(&mut self, entry: &Entry) -> Option<PromptTokens> {
        match self.text(entry)?.as_str() {
            "last" => Some(PromptTokens::Last),
            "mean" => Some(PromptTokens::Mean),
            other => {
                let message = format!(
                    "expected `last` or `mean` for `tokens`, found {}",
                    quoted(other)
                );
                self.problem(ProblemKind::Unknown, entry.node.at, message);
                None
            }
        }
    }

    pub(super) fn experts_per_token(&mut self, entry: &Entry) -> Option<Located<usize>> {
        let value = self.whole(entry, 1)?;
        let at = entry.node.at;
        Some(Located { value, at })
    }

    /// A model, or a merge in its place. The merge gets a name by which the recipe's models refer to it, and the
    /// mixture's base if its method requires one and it names none.
    fn backbone(
        &mut self,
        node: &Node,
        base: Option<&Located<ModelRef>>,
    ) -> (Option<Located<ModelRef>>, Option<Recipe>) {
        let is_merge = match &node.value {
            Value::Map(entries) => entries.iter().any(|entry| entry.key == "merge_method"),
            _ => false,
        };
        if !is_merge {
            return (self.model(node), None);
        }
        let mut walk = Walk::new(self.methods);
        walk.outer_base = base.cloned();
        walk.recipe_dir.clone_from(&self.recipe_dir);
        let merge = walk.recipe(node);
        self.found_models.append(&mut walk.found_models);
        self.problems.append(&mut walk.problems);
        self.warnings.append(&mut walk.warnings);
        let at = node.at;
        let named = merge.map(|merge| Recipe {
            name: Some(Located {
                value: BACKBONE.to_owned(),
                at,
            }),
            ..merge
        });
        let model = ModelRef::parse(BACKBONE).ok();
        (model.map(|value| Located { value, at }), named)
    }

    /// `"4-"` or `"0-4, 8-12"`, half-open like layer ranges; or a single number.
    pub(super) fn ranges(&mut self, entry: &Entry, of: &str) -> Option<Located<Ranges>> {
        let at = entry.node.at;
        let text = match &entry.node.value {
            Value::Int(number) => number.to_string(),
            _ => self.text(entry)?,
        };
        let range = |part: &str| -> Option<(usize, Option<usize>)> {
            match part.trim().split_once('-') {
                None => {
                    let number = part.trim().parse::<usize>().ok()?;
                    Some((number, Some(number.checked_add(1)?)))
                }
                Some((first, end)) => {
                    let first = match first.trim() {
                        "" => 0,
                        first => first.parse().ok()?,
                    };
                    let end = match end.trim() {
                        "" => None,
                        end => Some(end.parse().ok()?),
                    };
                    end.is_none_or(|end| first < end).then_some((first, end))
                }
            }
        };
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        if ranges.is_none() {
            let message = format!("expected ranges of {of}, found {}", quoted(&text));
            let hint =
                format!("`\"4-\"` is from number 4 on, `\"0-4, 8-12\"` is half-open: eight {of}");
            self.refuse(ProblemKind::Invalid, at, message, Some(&hint));
        }
        ranges.map(|ranges| Located {
            value: Ranges(ranges),
            at,
        })
    }

    pub(super) fn number(
        &mut self,
        entry: &Entry,
        expected: &str,
        fits: impl Fn(f64) -> bool,
    ) -> Option<f64> {
        let number = match entry.node.value {
            Value::Int(number) => Some(number as f64),
            Value::Float(number) => Some(number),
            _ => None,
        };
        let number = number.filter(|number| number.is_finite() && fits(*number));
        if number.is_none() {
            let (key, found) = (quoted(&entry.key), entry.node.value.found());
            let message = format!("expected a number {expected} for {key}, found {found}");
            self.problem(ProblemKind::Invalid, entry.node.at, message);
        }
        number
    }

    pub(super) fn whole(&mut self, entry: &Entry, least: usize) -> Option<usize> {
        let number = match entry.node.value {
            Value::Int(number) => usize::try_from(number).ok(),
            _ => None,
        };
        let number = number.filter(|number| least <= *number);
        if number.is_none() {
            let (key, found) = (quoted(&entry.key), entry.node.value.found());
            let message = format!("expected a whole number from {least} for {key}, found {found}");
            self.problem(ProblemKind::Invalid, entry.node.at, message);
        }
        number
    }

    /// Checks that a file of rows is given if and only if the mode reads rows from a file.
    pub(super) fn check_file(&mut self, file: Option<&Located<String>>, mode: &Located<GateMode>) {
        match (file, mode.value) {
            (None, GateMode::File) => {
                let hint = "name a safetensors file: `router: {file: rows.safetensors}`";
                let message = "`gate_mode: file` has no file";
                self.refuse(ProblemKind::Missing, mode.at, message, Some(hint));
            }
            (Some(file), mode) if mode != GateMode::File => {
                let message = format!("`file` has no effect with `gate_mode: {}`", mode.name());
                let hint = "say `gate_mode: file`, or remove it";
                self.refuse(ProblemKind::Invalid, file.at, message, Some(hint));
            }
            _ => {}
        }
    }

    /// Checks that the recipe's parts fit each other.
    fn check_moe(&mut self, recipe: &MoeRecipe) {
        let mode = recipe.gate_mode.value;
        let parts = recipe
            .upcycle
            .as_ref()
            .map_or(1, |cut| cut.value.granularity);
        let (experts, per_token) = (
            recipe.experts.len().saturating_mul(parts),
            recipe.experts_per_token.value,
        );
        if let Some(upcycle) = &recipe.upcycle
            && (per_token % parts != 0 || experts > MAX_EXPERTS)
        {
            let message = match experts > MAX_EXPERTS {
                true => format!("expected at most {MAX_EXPERTS} experts, found {experts}"),
                false => format!(
                    "each expert is cut into {parts}, and a token goes through {per_token}: not into whole ones"
                ),
            };
            let hint = "`experts_per_token` counts the parts: make it a multiple of `granularity`";
            self.refuse(ProblemKind::Invalid, upcycle.at, message, Some(hint));
        }
        if experts < per_token {
            let message =
                format!("a token goes through {per_token} experts, and there are {experts}");
            let hint = "add experts, or lower `experts_per_token` (2 if nothing is said)";
            let at = recipe.experts_per_token.at;
            self.refuse(ProblemKind::Invalid, at, message, Some(hint));
        }
        let promptless = recipe
            .experts
            .iter()
            .find(|expert| expert.positive_prompts.is_empty());
        if let (Some(expert), true) = (promptless, recipe.uses_prompts()) {
            let model = quoted(&expert.source.value.to_string());
            let message = format!("the expert {model} has no `positive_prompts`");
            let hint = match mode {
                GateMode::TaskVector => {
                    "`gate_mode: task_vector` takes the signs of all rows from prompts, or of none"
                        .to_owned()
                }
                _ => format!(
                    "`gate_mode: {}` makes a router's rows from them; `random`, `uniform_random`, `orthogonal`, `zero` \
                     and `task_vector` need none",
                    mode.name()
                ),
            };
            self.refuse(ProblemKind::Missing, expert.at, message, Some(&hint));
        }
        let alike = |expert: &Expert| {
            let first = &recipe.experts[0];
            expert.positive_prompts == first.positive_prompts
                && expert.negative_prompts == first.negative_prompts
        };
        if recipe.experts.len() > 1 && mode.needs_prompts() && recipe.experts.iter().all(alike) {
            let message = "all experts have the same prompts, so their routers would be equal";
            let hint =
                "give each expert prompts for what it is good at, or choose another `gate_mode`";
            self.refuse(
                ProblemKind::Invalid,
                recipe.experts[0].at,
                message,
                Some(hint),
            );
        }
        self.check_file(recipe.router.file.as_ref(), &recipe.gate_mode);
        let shares = recipe
            .shared_experts
            .iter()
            .filter_map(|expert| expert.alpha);
        if shares.sum::<f64>() > 1.0 {
            let message = "the shares (`alpha`) of the shared experts are more than 1 together";
            self.problem(ProblemKind::Invalid, recipe.shared_experts[0].at, message);
        }
    }
}

/// The parts of the recipe read so far.
#[derive(Default)]
struct Parts {
    architecture: Option<Located<String>>,
    gate_mode: Option<Located<GateMode>>,
    router: RouterRecipe,
    dtype: Option<Dtype>,
    experts_per_token: Option<Located<usize>>,
    shared_experts: Vec<Expert>,
    fold_norms: bool,
    upcycle: Option<Located<Upcycle>>,
    layers: Option<Located<Ranges>>,
}

/// The parts of an expert read so far.
#[derive(Default)]
struct ExpertParts {
    positive: Vec<String>,
    negative: Vec<String>,
    noise: Option<f64>,
    residual: Option<f64>,
    alpha: Option<f64>,
}
