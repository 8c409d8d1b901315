//! The recipe that edits a mixture of experts: the experts that the output has, or the one that becomes a dense model.

use safetensors::Dtype;

use super::keys::Place;
use super::moe::{GateMode, Ranges, RouterRecipe};
use super::problem::{Located, Position, Problem, ProblemKind, RecipeError, quoted};
use super::schema::{Recipe, RecipeText};
use super::walk::Walk;
use super::yaml::{Entry, Node, Value};
use checkpoint::ModelRef;

/// An edit of a mixture, typed and checked as far as possible without the models.
#[derive(Debug)]
pub struct EditRecipe {
    /// The mixture to edit.
    pub base_model: Located<ModelRef>,
    /// The edit.
    pub change: Change,
    /// `dtype:`.
    pub dtype: Option<Dtype>,
    /// The position of the recipe.
    pub at: Position,
    /// Merges that the models may refer to, each after those it uses itself.
    pub results: Vec<Recipe>,
    /// Parts that are well formed but have no effect.
    pub warnings: Vec<Problem>,
    /// The recipe's path, as the user gave it.
    pub path: String,
    /// The text.
    pub text: RecipeText,
}

/// The result of the edit.
#[derive(Debug)]
pub enum Change {
    /// Another mixture.
    Experts(Edited),
    /// A dense model whose MLPs are these experts side by side, each with the same weight.
    Extract(Located<Ranges>),
}

/// The experts of an edited mixture.
#[derive(Debug)]
pub struct Edited {
    /// In order; never empty.
    pub members: Vec<Member>,
    /// Where the router rows of added experts come from.
    pub gate_mode: Located<GateMode>,
    /// How these rows are computed.
    pub router: RouterRecipe,
    /// Number of experts per token, if it changes.
    pub experts_per_token: Option<Located<usize>>,
}

/// One expert of the output, or several in a row.
#[derive(Debug)]
pub struct Member {
    /// Where it comes from.
    pub which: Which,
    /// Prompts for which an added expert should be chosen.
    pub positive_prompts: Vec<String>,
    /// Prompts for which it should not be chosen.
    pub negative_prompts: Vec<String>,
    /// Standard deviation of the normal noise added to each element of its matrices.
    pub noise_scale: Option<f64>,
    /// The factor of its last matrix, the one that writes to the residual stream.
    pub residual_scale: Option<f64>,
    /// Its position.
    pub at: Position,
}

/// Where an expert comes from.
#[derive(Debug)]
pub enum Which {
    /// Experts of a mixture, the base by default, with their rows in its routers.
    Kept {
        /// A mixture other than the base.
        of: Option<Located<ModelRef>>,
        /// Their numbers in it.
        experts: Located<Ranges>,
    },
    /// A dense model's MLPs in place of one of the base's experts, whose router rows stay.
    Replaced {
        /// The number of that expert.
        expert: Located<Ranges>,
        /// The dense model.
        source: Located<ModelRef>,
    },
    /// A dense model's MLPs, with new router rows.
    Added(Located<ModelRef>),
}

impl EditRecipe {
    /// Every reference to a model: the base, then those of the experts.
    pub fn mentions(&self) -> impl Iterator<Item = &Located<ModelRef>> {
        let members: &[Member] = match &self.change {
            Change::Experts(edited) => &edited.members,
            Change::Extract(_) => &[],
        };
        [&self.base_model]
            .into_iter()
            .chain(members.iter().filter_map(|member| member.which.model()))
    }

    /// The error for problems that later layers found, which know the models.
    pub fn error(&self, problems: Vec<Problem>) -> RecipeError {
        RecipeError::new(self.path.clone(), self.text.read.clone(), problems)
    }
}

impl Edited {
    /// The experts whose router rows are new.
    pub fn added(&self) -> impl Iterator<Item = &Member> {
        let added = |member: &&Member| matches!(member.which, Which::Added(_));
        self.members.iter().filter(added)
    }
}

impl Which {
    /// The model that it names, if that is not the base.
    pub fn model(&self) -> Option<&Located<ModelRef>> {
        match self {
            Which::Kept { of, .. } => of.as_ref(),
            Which::Replaced { source, .. } | Which::Added(source) => Some(source),
        }
    }
}

const EDIT: Place = Place {
    name: "a recipe that edits a mixture of experts",
    keys: &[
        "base_model",
        "experts",
        "extract",
        "experts_per_token",
        "gate_mode",
        "router",
        "dtype",
    ],
};

const MEMBER: Place = Place {
    name: "an expert",
    keys: &[
        "expert",
        "of",
        "source_model",
        "positive_prompts",
        "negative_prompts",
        "noise_scale",
        "residual_scale",
    ],
};

/// Whether a document edits a mixture, and does not assemble one.
pub(super) fn is_edit(root: &Node) -> bool {
    let Value::Map(entries) = &root.value else {
        return false;
    };
    let of_mixture = |item: &Node| match &item.value {
        Value::Map(keys) => keys
            .iter()
            .any(|entry| entry.key == "expert" || entry.key == "of"),
        _ => false,
    };
    entries
        .iter()
        .any(|entry| match (entry.key.as_str(), &entry.node.value) {
            ("extract", _) => true,
            ("experts", Value::List(items)) => items.iter().any(of_mixture),
            _ => false,
        })
}

impl Walk<'_> {
    /// Types the whole recipe.
    pub(super) fn edit(&mut self, root: &Node) -> Option<EditRecipe> {
        let entries = self.entries(root, &EDIT)?;
        let (mut base_model, mut members, mut extract, mut dtype) = (None, None, None, None);
        let (mut gate_mode, mut router, mut experts_per_token) = (None, None, None);
        let before = self.problems.len();
        for entry in entries {
            let node = &entry.node;
            match entry.key.as_str() {
                "gate_mode" | "router" | "experts_per_token" | "dtype" | "extract"
                    if node.is_null() => {}
                "base_model" => base_model = self.model(node),
                "experts" => members = self.members(entry),
                "extract" => extract = self.ranges(entry, "experts"),
                "dtype" => dtype = self.dtype(entry),
                "gate_mode" => gate_mode = self.gate_mode(entry),
                "router" => router = self.router(node),
                "experts_per_token" => experts_per_token = self.experts_per_token(entry),
                _ => self.other_key(&EDIT, entry),
            }
        }
        let has = |key: &str| entries.iter().find(|entry| entry.key == key);
        if has("base_model").is_none() {
            self.missing("base_model", root, &EDIT);
        }
        if let (Some(_), Some(entry)) = (
            has("extract"),
            ["experts", "gate_mode", "router", "experts_per_token"]
                .iter()
                .find_map(|key| has(key)),
        ) {
            let message = format!(
                "`extract` makes a dense model, and {} is of a mixture",
                quoted(&entry.key)
            );
            self.refuse(
                ProblemKind::Invalid,
                entry.key_at,
                message,
                Some("keep one of them"),
            );
        }
        if self.problems.len() > before {
            return None;
        }
        let change = match extract {
            Some(extract) => Change::Extract(extract),
            None => Change::Experts(Edited {
                members: members?,
                gate_mode: gate_mode.unwrap_or(Located {
                    value: GateMode::Hidden,
                    at: root.at,
                }),
                router: router.unwrap_or_default(),
                experts_per_token,
            }),
        };
        if let Change::Experts(edited) = &change {
            self.check_edited(edited);
        }
        Some(EditRecipe {
            base_model: base_model?,
            change,
            dtype,
            at: root.at,
            results: Vec::new(),
            warnings: Vec::new(),
            path: String::new(),
            text: RecipeText::default(),
        })
    }

    fn members(&mut self, entry: &Entry) -> Option<Vec<Member>> {
        let items = self.expert_items(entry)?;
        items.iter().map(|item| self.member(item)).collect()
    }

    fn member(&mut self, node: &Node) -> Option<Member> {
        let entries = self.entries(node, &MEMBER)?;
        let (mut experts, mut of, mut source) = (None, None, None);
        let mut member = Member {
            // A placeholder until it is known.
            which: Which::Kept {
                of: None,
                experts: Located {
                    value: Ranges(Vec::new()),
                    at: node.at,
                },
            },
            positive_prompts: Vec::new(),
            negative_prompts: Vec::new(),
            noise_scale: None,
            residual_scale: None,
            at: node.at,
        };
        let before = self.problems.len();
        for entry in entries {
            match entry.key.as_str() {
                _ if entry.node.is_null() && entry.key != "source_model" => {}
                "expert" => experts = self.ranges(entry, "experts"),
                "of" => of = self.model(&entry.node),
                "source_model" => source = self.model(&entry.node),
                "positive_prompts" => member.positive_prompts = self.prompts(entry),
                "negative_prompts" => member.negative_prompts = self.prompts(entry),
                "noise_scale" => {
                    member.noise_scale = self.number(entry, "at least 0", |x| x >= 0.0);
                }
                "residual_scale" => member.residual_scale = self.number(entry, "finite", |_| true),
                _ => self.other_key(&MEMBER, entry),
            }
        }
        if self.problems.len() > before {
            return None;
        }
        let refusal = match (experts, of, source) {
            (Some(experts), of, None) => {
                member.which = Which::Kept { of, experts };
                None
            }
            (Some(expert), None, Some(source)) => {
                member.which = Which::Replaced { expert, source };
                None
            }
            (None, None, Some(source)) => {
                member.which = Which::Added(source);
                None
            }
            (_, Some(_), Some(_)) => Some((
                "`of` is a mixture whose expert is taken, `source_model` a dense model, and both are named",
                "keep one of them",
            )),
            (None, ..) => Some((
                "an expert has neither `expert`, its number in the mixture, nor `source_model`",
                "`{expert: 0}` keeps the first; `{source_model: model}` adds a dense model's",
            )),
        };
        if let Some((message, hint)) = refusal {
            self.refuse(ProblemKind::Missing, node.at, message, Some(hint));
            return None;
        }
        Some(member)
    }

    /// Checks that the parts fit each other.
    fn check_edited(&mut self, edited: &Edited) {
        let Located { value: mode, at } = edited.gate_mode;
        for member in &edited.members {
            let prompts =
                !member.positive_prompts.is_empty() || !member.negative_prompts.is_empty();
            let added = matches!(member.which, Which::Added(_));
            if prompts && !added {
                let message = "prompts have no effect on an expert that has its rows already";
                self.refuse(
                    ProblemKind::Invalid,
                    member.at,
                    message,
                    Some("remove them"),
                );
            }
            if added && member.positive_prompts.is_empty() && mode.needs_prompts() {
                let model = member.which.model().map(|model| model.value.to_string());
                let message = format!(
                    "the expert {} has no `positive_prompts`",
                    quoted(&model.unwrap_or_default())
                );
                let hint = format!(
                    "`gate_mode: {}` makes its rows from them; `random`, `uniform_random`, `zero` and `file` need none",
                    mode.name()
                );
                self.refuse(ProblemKind::Missing, member.at, message, Some(&hint));
            }
        }
        if matches!(mode, GateMode::Orthogonal | GateMode::TaskVector) {
            let message = format!(
                "`gate_mode: {}` makes all rows of a router, and those of a mixture are kept",
                mode.name()
            );
            let hint = "use `hidden`, `gate_input`, `cheap_embed`, `random`, `uniform_random`, `zero` or `file`";
            self.refuse(ProblemKind::Invalid, at, message, Some(hint));
        }
        self.check_file(edited.router.file.as_ref(), &edited.gate_mode);
    }
}
