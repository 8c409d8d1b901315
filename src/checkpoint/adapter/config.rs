//! `adapter_config.json`: every option that changes the merged weights is either applied or refused by name.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::AdapterError;
use super::pattern::Pattern;
use crate::bounded::{plain, read_bounded};
use crate::error::CheckpointError;
use crate::limits::{MAX_ADAPTER_RANK, MAX_CONFIG_BYTES};

/// The file's name.
pub(super) const FILE: &str = "adapter_config.json";

/// Which of the two an update is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PairKind {
    /// Multiplied element by element.
    LoHa,
    /// Multiplied as Kronecker does.
    LoKr,
}

impl PairKind {
    /// As it is called.
    pub(super) fn name(self) -> &'static str {
        match self {
            PairKind::LoHa => "LoHa",
            PairKind::LoKr => "LoKr",
        }
    }
}

/// What the config says about the arithmetic.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    path: PathBuf,
    rank: usize,
    alpha: f64,
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
    rank_stabilised: bool,
    /// Which of the two it is, if its updates are pairs of matrices and not LoRA's.
    pub(super) pair: Option<PairKind>,
    /// Whether rows or columns get new norms.
    pub(super) dora: bool,
    /// Whether weights are stored as `[in, out]`; shapes take precedence over it.
    pub(super) fan_in_fan_out: bool,
    /// The parameters that are adapted by their own names, or by the ends of these.
    target_parameters: Vec<String>,
    /// Whether stacks of experts were taken for `[experts, in, out]`, whatever they are: PEFT before 0.19.
    pub(super) stacks_as_in_out: bool,
    /// The tokens whose rows are replaced, by the module or the end of its name; without one, those of the embedding.
    token_indices: TokenIndices,
    /// Whether a tied head was trained as a copy of the embedding.
    pub(super) ensure_weight_tying: bool,
    /// The model that the adapter was trained on.
    pub(super) base_model: Option<String>,
    /// Notes on what is odd but harmless.
    pub(super) notes: Vec<String>,
}

/// Tokens, by the module or the end of its name; without one, by the embedding.
type TokenIndices = Vec<(Option<String>, Vec<usize>)>;

/// Options about training or loading the adapter. They select modules (the weight file names them), draw initial values
/// (the file has the final ones), or drop out activations: the merged weights do not depend on them.
const NO_MATTER: [&str; 25] = [
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "modules_to_save",
    "parent_library",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "velora_config",
    // Known from the tensors that exist.
    "lora_bias",
    // Read below.
    "init_lora_weights",
    "peft_type",
];

/// Options that are applied.
const HONOURED: [&str; 11] = [
    "alpha_pattern",
    "ensure_weight_tying",
    "fan_in_fan_out",
    "lora_alpha",
    "peft_version",
    "r",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
];

/// Those of LoHa and LoKr; all but the ranks and alphas are about training, or known from the tensors.
const OF_PAIRS: [&str; 12] = [
    "alpha",
    "alpha_pattern",
    "decompose_both",
    "decompose_factor",
    "init_weights",
    "module_dropout",
    "peft_version",
    "r",
    "rank_dropout",
    "rank_dropout_scale",
    "rank_pattern",
    "use_effective_conv2d",
];

/// Options that are refused if they are set, and why.
const REFUSED: [(&str, &str); 7] = [
    (
        "alora_invocation_tokens",
        "(aLoRA) adapts some tokens and not others, so that no merged weights do the same",
    ),
    (
        "arrow_config",
        "routes between adapters by token, so that no merged weights do the same",
    ),
    (
        "kasa_config",
        "(KaSA) changes the model's own weights first",
    ),
    (
        "layer_replication",
        "repeats layers before they are adapted, which is not supported",
    ),
    (
        "monteclora_config",
        "(MonteCLoRA) samples its weights, which is not supported",
    ),
    (
        "use_bdlora",
        "(BD-LoRA) has factors in blocks, which is not supported",
    ),
    (
        "use_qalora",
        "(QA-LoRA) adapts groups of inputs of a quantised model, which is not supported",
    ),
];

/// Initialisations that leave the model's own weights unchanged, so that the adapter fits the model as it is.
const PLAIN_STARTS: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];

/// The most patterns that are not plain names; real adapters have a handful.
const MAX_EXPRESSIONS: usize = 256;

const WITH_PEFT: &str =
    "merge the adapter with PEFT (`merge_and_unload`) and name the result, if PEFT can do that";

impl AdapterConfig {
    /// Reads the config of a folder.
    pub(super) fn read(folder: &Path) -> Result<AdapterConfig, AdapterError> {
        let path = folder.join(FILE);
        let bytes =
            read_bounded(&path, MAX_CONFIG_BYTES, "adapter config, in bytes").map_err(Box::new)?;
        let malformed = |detail| {
            Box::new(CheckpointError::JsonMalformed {
                path: path.clone(),
                detail,
            })
        };
        let value: Value = serde_json::from_slice(&bytes).map_err(|e| malformed(plain(&e)))?;
        let Value::Object(options) = value else {
            return Err(malformed("expected an object".into()).into());
        };
        parse(path, &options)
    }

    /// The config of a file that has none.
    pub(super) fn none(path: &Path) -> AdapterConfig {
        AdapterConfig {
            path: path.into(),
            rank: 1,
            alpha: 1.0,
            ranks: Vec::new(),
            alphas: Vec::new(),
            rank_stabilised: false,
            pair: None,
            dora: false,
            fan_in_fan_out: false,
            target_parameters: Vec::new(),
            stacks_as_in_out: false,
            token_indices: Vec::new(),
            ensure_weight_tying: false,
            base_model: None,
            notes: Vec::new(),
        }
    }

    /// The rank of a module, and the factor of its product.
    pub(super) fn rank_and_scale(&self, module: &str) -> (usize, f64) {
        let rank = first_fit(&self.ranks, module).unwrap_or(self.rank);
        let alpha = first_fit(&self.alphas, module).unwrap_or(self.alpha);
        let divisor = match self.rank_stabilised {
            true => (rank as f64).sqrt(),
            false => rank as f64,
        };
        (rank, alpha / divisor)
    }

    /// The parameters of a module that are adapted by their own names.
    pub(super) fn parameters_of(&self, module: &str) -> Vec<String> {
        let parameter = |target: &String| {
            let last = target.rsplit('.').next().unwrap_or(target);
            let name = format!("{module}.{last}");
            ends_in(&name, target).then_some(name)
        };
        let mut names: Vec<String> = self
            .target_parameters
            .iter()
            .filter_map(parameter)
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Whether a tensor is adapted by its own name.
    pub(super) fn is_target(&self, name: &str) -> bool {
        self.target_parameters
            .iter()
            .any(|target| ends_in(name, target))
    }

    /// The tokens whose rows in a module are replaced, in the order of the rows.
    pub(super) fn tokens_of(&self, module: &str) -> Option<&[usize]> {
        let fits = |name: &Option<String>| name.as_ref().is_none_or(|name| ends_in(module, name));
        let (_, tokens) = self.token_indices.iter().find(|(name, _)| fits(name))?;
        Some(tokens)
    }

    /// Where it was read from.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether a name is this one, or ends in it after a dot.
fn ends_in(name: &str, end: &str) -> bool {
    let before = name.strip_suffix(end);
    before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// The value of the first pattern that matches, in file order.
fn first_fit<T: Copy>(patterns: &[(Pattern, T)], module: &str) -> Option<T> {
    patterns
        .iter()
        .find(|(pattern, _)| pattern.fits(module))
        .map(|(_, value)| *value)
}

type Options = serde_json::Map<String, Value>;

/// Reads a config's options.
pub(super) fn parse(path: PathBuf, options: &Options) -> Result<AdapterConfig, AdapterError> {
    let reader = Reader {
        path: &path,
        options,
    };
    if let Some(kind) = reader.kind()? {
        return reader.pair(kind);
    }
    reader.refusals()?;
    reader.start()?;
    let rank = reader.rank("r", options.get("r"))?;
    let alpha = reader.alpha("lora_alpha", options.get("lora_alpha"))?;
    let config = AdapterConfig {
        rank,
        alpha,
        ranks: reader.patterns("rank_pattern", Reader::rank)?,
        alphas: reader.patterns("alpha_pattern", Reader::alpha)?,
        rank_stabilised: reader.flag("use_rslora")?,
        pair: None,
        dora: reader.flag("use_dora")?,
        fan_in_fan_out: reader.flag("fan_in_fan_out")?,
        ensure_weight_tying: reader.flag("ensure_weight_tying")?,
        target_parameters: reader.target_parameters()?,
        stacks_as_in_out: reader.is_before(0, 19),
        token_indices: reader.token_indices()?,
        base_model: reader.base_model(),
        notes: reader.unknown(&HONOURED),
        path: path.clone(),
    };
    Ok(config)
}

struct Reader<'a> {
    path: &'a Path,
    options: &'a Options,
}

impl Reader<'_> {
    /// Checks that it is a LoRA adapter (`None`), LoHa or LoKr; AdaLoRA, IA3 and others are adapters too.
    fn kind(&self) -> Result<Option<PairKind>, AdapterError> {
        match self.options.get("peft_type") {
            Some(Value::String(kind)) if kind == "LORA" => Ok(None),
            Some(Value::String(kind)) if kind == "LOHA" => Ok(Some(PairKind::LoHa)),
            Some(Value::String(kind)) if kind == "LOKR" => Ok(Some(PairKind::LoKr)),
            Some(Value::String(kind)) => Err(self.unsupported(
                format!("`peft_type: {}`", plain(kind)),
                "is not LoRA, LoHa or LoKr, the kinds of adapters that are supported",
                WITH_PEFT,
            )),
            other => Err(self.wrong("peft_type", "\"LORA\", \"LOHA\" or \"LOKR\"", other)),
        }
    }

    /// The config of LoHa or LoKr.
    fn pair(&self, kind: PairKind) -> Result<AdapterConfig, AdapterError> {
        Ok(AdapterConfig {
            rank: self.rank("r", self.options.get("r"))?,
            alpha: self.alpha("alpha", self.options.get("alpha"))?,
            ranks: self.patterns("rank_pattern", Reader::rank)?,
            alphas: self.patterns("alpha_pattern", Reader::alpha)?,
            pair: Some(kind),
            base_model: self.base_model(),
            notes: self.unknown(&OF_PAIRS),
            ..AdapterConfig::none(self.path)
        })
    }

    /// The model that the adapter was trained on.
    fn base_model(&self) -> Option<String> {
        let name = self.options.get("base_model_name_or_path")?.as_str()?;
        (!name.is_empty()).then(|| plain(&name))
    }

    fn refusals(&self) -> Result<(), AdapterError> {
        for (option, why) in REFUSED {
            if self.options.get(option).is_some_and(is_set) {
                return Err(self.unsupported(format!("`{option}`"), why, WITH_PEFT));
            }
        }
        Ok(())
    }

    /// Refuses initial values that were split off the model's weights: the adapter fits only the remainder.
    fn start(&self) -> Result<(), AdapterError> {
        let start = match self.options.get("init_lora_weights") {
            None | Some(Value::Null | Value::Bool(_)) => return Ok(()),
            Some(Value::String(start)) => start,
            other => return Err(self.wrong("init_lora_weights", "true, false or a name", other)),
        };
        let lower = start.to_ascii_lowercase();
        if PLAIN_STARTS.contains(&lower.as_str()) || matches!(lower.as_str(), "true" | "false") {
            return Ok(());
        }
        let changed = ["pissa", "olora", "corda", "lora_ga", "loftq"]
            .iter()
            .any(|name| lower.starts_with(name));
        let what = format!("`init_lora_weights: {}`", plain(start));
        Err(match changed {
            true if lower == "loftq" => self.unsupported(
                what,
                "was trained on a quantised copy of the model",
                "apply it to that copy with PEFT (`merge_and_unload`) and name the result",
            ),
            true => self.unsupported(
                what,
                "was trained on what its first values left of the model's weights, not on the model",
                "save it with PEFT's `path_initial_model_for_weight_conversion`, which makes it an adapter of the \
                 model itself",
            ),
            false => self.unsupported(
                what,
                "is not known: it may have changed the model's own weights",
                WITH_PEFT,
            ),
        })
    }

    /// The names in `target_parameters`. Unsloth's adapters have them too, and order the factors otherwise.
    fn target_parameters(&self) -> Result<Vec<String>, AdapterError> {
        const OPTION: &str = "target_parameters";
        let names = match self.options.get(OPTION) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(names)) => names,
            other => return Err(self.wrong(OPTION, "a list of names", other)),
        };
        let by_unsloth = self.options.get("auto_mapping");
        if by_unsloth.is_some_and(|mapping| mapping["unsloth_fixed"] == true) && !names.is_empty() {
            return Err(self.unsupported(
                format!("`{OPTION}`"),
                "was trained by Unsloth, which orders the factors of experts in another way than PEFT",
                "merge the adapter with Unsloth (`save_pretrained_merged`) and name the result",
            ));
        }
        let name = |name: &Value| match name {
            Value::String(name) if !name.is_empty() => Ok(name.clone()),
            other => Err(self.wrong(OPTION, "a list of names", Some(other))),
        };
        names.iter().map(name).collect()
    }

    /// Whether it was written by a version of PEFT before this one; 0.18 and later say which they are.
    fn is_before(&self, major: u64, minor: u64) -> bool {
        let text = self.options.get("peft_version").and_then(Value::as_str);
        let mut numbers = text.unwrap_or_default().split('.').map(str::parse::<u64>);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(found)), Some(Ok(lesser))) => (found, lesser) < (major, minor),
            _ => true,
        }
    }

    /// The tokens of `trainable_token_indices`: a list, or one for each module.
    fn token_indices(&self) -> Result<TokenIndices, AdapterError> {
        const OPTION: &str = "trainable_token_indices";
        const EXPECTED: &str = "a list of different tokens, or one for each module";
        let list = |value: &Value| {
            let wrong = || self.wrong(OPTION, EXPECTED, Some(value));
            let token = |value: &Value| {
                let token = value.as_u64().and_then(|token| usize::try_from(token).ok());
                token.ok_or_else(wrong)
            };
            let tokens = value.as_array().ok_or_else(wrong)?;
            let tokens: Vec<usize> = tokens.iter().map(token).collect::<Result<_, _>>()?;
            let different: HashSet<&usize> = tokens.iter().collect();
            match different.len() == tokens.len() {
                true => Ok(tokens),
                false => Err(wrong()),
            }
        };
        match self.options.get(OPTION) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Object(modules)) => modules
                .iter()
                .map(|(module, tokens)| Ok((Some(module.clone()), list(tokens)?)))
                .collect(),
            Some(tokens) => Ok(vec![(None, list(tokens)?)]),
        }
    }

    fn flag(&self, option: &str) -> Result<bool, AdapterError> {
        match self.options.get(option) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            other => Err(self.wrong(option, "true or false", other)),
        }
    }

    fn rank(&self, option: &str, value: Option<&Value>) -> Result<usize, AdapterError> {
        value
            .and_then(Value::as_u64)
            .and_then(|rank| usize::try_from(rank).ok())
            .filter(|rank| (1..=MAX_ADAPTER_RANK).contains(rank))
            .ok_or_else(|| self.wrong(option, "a whole number from 1 to 1048576", value))
    }

    fn alpha(&self, option: &str, value: Option<&Value>) -> Result<f64, AdapterError> {
        value
            .and_then(Value::as_f64)
            .filter(|alpha| alpha.is_finite())
            .ok_or_else(|| self.wrong(option, "a number", value))
    }

    fn patterns<T>(
        &self,
        option: &'static str,
        read: impl Fn(&Self, &str, Option<&Value>) -> Result<T, AdapterError>,
    ) -> Result<Vec<(Pattern, T)>, AdapterError> {
        let entries = match self.options.get(option) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Object(entries)) => entries,
            other => return Err(self.wrong(option, "an object", other)),
        };
        let mut expressions = 0;
        let entry = |(text, value): (&String, &Value)| {
            let refused = |detail: &str| AdapterError::Pattern {
                path: self.path.into(),
                option,
                pattern: plain(text),
                detail: plain(&detail),
            };
            let pattern = Pattern::parse(text).map_err(|detail| refused(&detail))?;
            expressions += usize::from(pattern.is_expression());
            if expressions > MAX_EXPRESSIONS {
                return Err(refused(
                    "it is one of more than 256 that are not plain names",
                ));
            }
            let value = read(self, &format!("{option}.{}", plain(text)), Some(value))?;
            Ok((pattern, value))
        };
        entries.iter().map(entry).collect()
    }

    /// Notes options that are set but unknown.
    fn unknown(&self, honoured: &[&str]) -> Vec<String> {
        let known = |option: &str| {
            NO_MATTER.contains(&option)
                || honoured.contains(&option)
                || REFUSED.iter().any(|(refused, _)| *refused == option)
        };
        self.options
            .iter()
            .filter(|(option, value)| !known(option) && is_set(value))
            .map(|(option, _)| {
                format!(
                    "{}: `{}` is not known and has no effect",
                    self.path.display(),
                    plain(option)
                )
            })
            .collect()
    }

    fn unsupported(&self, what: String, why: &'static str, hint: &'static str) -> AdapterError {
        AdapterError::Unsupported {
            path: self.path.into(),
            what,
            why,
            hint,
        }
    }

    fn wrong(&self, option: &str, expected: &'static str, found: Option<&Value>) -> AdapterError {
        AdapterError::Option {
            path: self.path.into(),
            option: option.into(),
            expected,
            found: found.map_or("nothing".into(), |value| plain(value)),
        }
    }
}

/// Whether an option has a value other than those that mean none.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(entries) => !entries.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(more: Value) -> Result<AdapterConfig, AdapterError> {
        let mut options = json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16});
        let Value::Object(more) = more else {
            panic!("an object")
        };
        for (option, value) in more {
            options[option] = value;
        }
        parse("c/adapter_config.json".into(), options.as_object().unwrap())
    }

    #[test]
    fn ranks_and_scales_follow_the_patterns() {
        let config = config(json!({
            "rank_pattern": {"down_proj": 4, r"layers\.1\..*": 2},
            "alpha_pattern": {"^model.layers.0.mlp.down_proj": 1.5},
        }))
        .unwrap();
        let check = |module: &str, rank, scale| {
            assert_eq!(config.rank_and_scale(module), (rank, scale), "{module}");
        };
        check("model.layers.0.self_attn.q_proj", 8, 2.0);
        check("model.layers.0.mlp.down_proj", 4, 1.5 / 4.0);
        // The first pattern that matches counts.
        check("model.layers.1.mlp.down_proj", 4, 4.0);
        check("model.layers.1.mlp.up_proj", 2, 8.0);
    }

    #[test]
    fn loha_and_lokr_have_an_alpha_of_their_own() {
        let read = config(json!({
            "peft_type": "LOKR", "r": 4, "alpha": 6, "alpha_pattern": {"v_proj": 2}, "decompose_factor": 8,
            "use_dora": true,
        }))
        .unwrap();
        assert_eq!(read.pair, Some(PairKind::LoKr));
        assert_eq!(read.rank_and_scale("layers.0.q_proj"), (4, 1.5));
        assert_eq!(read.rank_and_scale("layers.0.v_proj"), (4, 0.5));
        let of_lora = ["lora_alpha", "use_dora"].map(|option| format!("`{option}`"));
        assert_eq!(read.notes.len(), 2, "{:?}", read.notes);
        for (note, option) in read.notes.iter().zip(of_lora) {
            assert!(note.contains(&option), "{note}");
        }
    }

    #[test]
    fn rank_stabilised_scales_divide_by_the_root() {
        let config = config(json!({"use_rslora": true, "r": 16, "lora_alpha": 32})).unwrap();
        assert_eq!(config.rank_and_scale("q"), (16, 8.0));
    }

    #[test]
    fn what_changes_the_result_and_is_not_supported_is_refused_by_name() {
        for (more, part) in [
            (json!({"peft_type": "IA3"}), "`peft_type: IA3`"),
            (json!({"peft_type": "LOHA"}), "`alpha`"),
            (json!({"peft_type": null}), "`peft_type`"),
            (json!({"use_qalora": true}), "`use_qalora`"),
            (
                json!({"alora_invocation_tokens": [1]}),
                "`alora_invocation_tokens`",
            ),
            (
                json!({"layer_replication": [[0, 4]]}),
                "`layer_replication`",
            ),
            (json!({"target_parameters": "x"}), "a list of names"),
            (
                json!({"target_parameters": ["x"], "auto_mapping": {"unsloth_fixed": true}}),
                "was trained by Unsloth",
            ),
            (
                json!({"trainable_token_indices": [1, 1]}),
                "a list of different tokens",
            ),
            (
                json!({"trainable_token_indices": {"wte": [-1]}}),
                "a list of different tokens",
            ),
            (json!({"kasa_config": {"beta": 1}}), "`kasa_config`"),
            (
                json!({"init_lora_weights": "pissa_niter_4"}),
                "path_initial_model_for_weight_conversion",
            ),
            (json!({"init_lora_weights": "olora"}), "olora"),
            (json!({"init_lora_weights": "loftq"}), "quantised"),
            (json!({"init_lora_weights": "novel"}), "is not known"),
            (json!({"init_lora_weights": 3}), "`init_lora_weights`"),
            (json!({"r": 0}), "whole number"),
            (json!({"r": -1}), "whole number"),
            (json!({"r": 8.5}), "whole number"),
            (json!({"r": 1e18}), "whole number"),
            (json!({"r": "8"}), "whole number"),
            (json!({"r": null}), "`r`"),
            (json!({"lora_alpha": "16"}), "a number"),
            (json!({"lora_alpha": null}), "`lora_alpha`"),
            (json!({"use_dora": "yes"}), "true or false"),
            (json!({"rank_pattern": [1]}), "an object"),
            (json!({"rank_pattern": {"q": 0}}), "rank_pattern.q"),
            (json!({"alpha_pattern": {"(": 1}}), "can't read the pattern"),
        ] {
            let message = errors::in_one_line(&config(more.clone()).unwrap_err());
            assert!(message.contains(part), "{more}: {message}");
            assert!(message.contains("adapter_config.json"), "{message}");
        }
    }

    #[test]
    fn parameters_and_tokens_are_found_by_the_ends_of_their_names() {
        let read = config(json!({
            "target_parameters": ["mlp.experts.gate_up_proj", "down_proj", "gate.weight"],
            "trainable_token_indices": {"embed_tokens": [5, 1]}, "peft_version": "0.18.1",
        }))
        .unwrap();
        assert_eq!(
            read.parameters_of("model.layers.0.mlp.experts"),
            [
                "model.layers.0.mlp.experts.down_proj",
                "model.layers.0.mlp.experts.gate_up_proj"
            ]
        );
        assert!(read.is_target("layers.0.gate.weight"));
        assert!(!read.is_target("layers.0.a_gate.weight"));
        assert_eq!(read.tokens_of("model.embed_tokens"), Some(&[5, 1][..]));
        assert_eq!(read.tokens_of("lm_head"), None);
        assert!(read.stacks_as_in_out);
        for (version, before) in [("0.19.0", false), ("0.17.1.dev0", true), ("1.0", false)] {
            let options = json!({"peft_version": version});
            assert_eq!(
                config(options).unwrap().stacks_as_in_out,
                before,
                "{version}"
            );
        }
    }

    #[test]
    fn many_names_are_taken_and_many_expressions_are_not() {
        let many = |pattern: &dyn Fn(usize) -> String| {
            let entries = (0..1000).map(|at| (pattern(at), json!(2)));
            json!({"rank_pattern": entries.collect::<Options>()})
        };
        let names = config(many(&|at| format!("layers.{at}.q"))).unwrap();
        assert_eq!(names.rank_and_scale("m.layers.999.q"), (2, 8.0));
        let message = config(many(&|at| format!("layers.{at}.(q|v)"))).unwrap_err();
        assert!(message.to_string().contains("more than 256"), "{message}");
    }

    #[test]
    fn what_does_not_matter_passes_and_what_is_unknown_is_noted() {
        let quiet = json!({
            "lora_dropout": 0.1, "bias": "none", "target_modules": ["q"], "use_qalora": false,
            "layer_replication": null, "init_lora_weights": "gaussian", "trainable_token_indices": null,
            "eva_config": {"rho": 2.0}, "peft_version": "0.21.2", "target_parameters": [], "qalora_group_size": 16, "new": false, "newer": null,
        });
        assert!(config(quiet).unwrap().notes.is_empty());
        let notes = config(json!({"use_novelty": true})).unwrap().notes;
        assert!(notes[0].contains("`use_novelty`"), "{notes:?}");
    }
}
