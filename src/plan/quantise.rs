//! `quantization:`: which tensors of the output become codes and scales, which keep those of a model, and what the config
//! says of it.
//!
//! What is only copied from a model that stores it in the same way keeps its codes and scales byte for byte. Everything
//! else is computed as it would be for plain floats, and encoded on the way out.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::{Map, Value, json};

use super::models::Models;
use super::parts::Whole;
use super::planned::{Operation, PlannedTensor, SourceTensor};
use super::problems::{Problems, count, some_of};
use super::views::View;
use architecture::{WeightOrder, is_router, linear_weight};
use checkpoint::{Checkpoint, Dtype, EncodedTensor, ModelConfig, is_comfy_marker};
use numeric::{CodeFormat, Encoding, FloatType};
use recipe::{Located, Quantization, Recipe};

/// Rows and columns that share a scale, as DeepSeek's models have it.
const BLOCK: [usize; 2] = [128, 128];

/// The keys that list the modules whose matrices stay plain, as runtimes read them.
const LISTS: [&str; 3] = ["modules_to_not_convert", "ignored_layers", "ignore"];

/// Parts of names of towers whose matrices runtimes do not expect in FP8.
const TOWERS: [&str; 6] = [
    "visual",
    "vision",
    "image",
    "audio",
    "video",
    "multi_modal_projector",
];

/// How the weights of the output are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantized {
    /// What the recipe asks for.
    pub asked: Quantization,
    /// Weights that are computed and encoded.
    pub encoded: usize,
    /// Weights that keep their codes and scales.
    pub kept: usize,
}

/// What is asked for, as it is done.
struct Scheme<'a> {
    asked: &'a Located<Quantization>,
    models: &'a Models,
    /// How values are encoded as FP8, if they are.
    fp8: Option<Fp8>,
    /// Whether experts are encoded as gpt-oss has them. If neither, there are only codes to keep.
    mxfp4: bool,
    /// What the donor's config says of its codes.
    of_donor: Option<&'a Value>,
    /// Whether the donor holds a [diffusion model](DIFFUSION) beside others.
    has_diffusion: bool,
}

/// FP8 with scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fp8 {
    shared: Shared,
    /// Whether scales are powers of two.
    powers: bool,
    spelling: Spelling,
}

/// What shares a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shared {
    Block([usize; 2]),
    Row,
    Tensor,
}

/// Who reads it, and so what scales are called and what says that weights are stored so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// `weight_scale_inv`, and the config.
    Blocks,
    /// `weight_scale`, and the config.
    Compressed,
    /// `weight_scale`, and `comfy_quant` beside each.
    Comfy,
    /// `scale_weight`, and `scaled_fp8` once: what ComfyUI had until 2025.
    ComfyMarked,
}

/// What becomes of a tensor.
enum Fate {
    Plain,
    /// The codes and scales of this source are copied.
    Kept(SourceTensor),
    Encoded(Encoding),
}

/// What ComfyUI reads beside a weight.
const COMFY_FORMAT: &str = r#"{"format": "float8_e4m3fn"}"#;

/// Where the tensors of the diffusion model lie in a checkpoint that holds everything. ComfyUI reads codes nowhere else
/// in it.
const DIFFUSION: &str = "model.diffusion_model.";

/// How the name of a tensor ends that says how the weight of its module is stored.
const COMFY_QUANT: &str = ".comfy_quant";

/// Gives the output its codes and scales, and its config what says so. `None` if the recipe asks for plain floats, or
/// something is wrong.
pub(super) fn apply(
    recipe: &Recipe,
    models: &Models,
    whole: &mut Whole,
    config: &mut Option<Value>,
    notes: &mut Vec<String>,
    problems: &mut Problems,
) -> Option<Quantized> {
    let asked = recipe.quantization.as_ref()?;
    let scheme = Scheme::new(asked, models, config.as_ref(), problems)?;
    let own = whole
        .parts
        .first()
        .map_or(0..0, |part| part.tensors.clone());
    let fates = scheme.fates(&whole.tensors[own.clone()], config.as_ref(), problems)?;
    let mut quantized = Quantized {
        asked: asked.value,
        encoded: 0,
        kept: 0,
    };
    let mut modules = Modules::default();
    let mut tensors: Vec<PlannedTensor> = Vec::with_capacity(whole.tensors.len());
    let mut rest = whole.tensors.drain(..);
    for (tensor, fate) in rest.by_ref().take(own.len()).zip(fates) {
        modules.add(&tensor, !matches!(fate, Fate::Plain), config.as_ref());
        match fate {
            Fate::Plain => tensors.push(tensor),
            Fate::Kept(source) => {
                quantized.kept += 1;
                let name = tensor.name.clone();
                let parts = kept(models, tensor, source);
                let is_said = parts.iter().any(|part| part.name.ends_with(COMFY_QUANT));
                tensors.extend(parts);
                tensors.extend(scheme.said_beside(&name).filter(|_| !is_said));
            }
            Fate::Encoded(encoding) => {
                quantized.encoded += 1;
                let (name, beside) = (
                    scheme.scales_of(&tensor.name),
                    scheme.said_beside(&tensor.name),
                );
                let tensor = PlannedTensor {
                    name: scheme.codes_of(&tensor.name),
                    ..tensor
                };
                tensors.extend(encoded(tensor, encoding, name, scheme.shape_of_one()));
                tensors.extend(beside);
            }
        }
    }
    tensors.extend(scheme.marker());
    let more = tensors.len() - own.len();
    tensors.extend(rest);
    whole.tensors = tensors;
    for (index, part) in whole.parts.iter_mut().enumerate() {
        let before = if index == 0 { 0 } else { more };
        part.tensors = part.tensors.start + before..part.tensors.end + more;
    }
    if quantized.encoded + quantized.kept == 0 {
        let message = format!(
            "`quantization: {}` leaves every tensor plain: none is the matrix of a linear layer in a layer of the model{}",
            asked.value.name(),
            match asked.value {
                Quantization::Fp8Block =>
                    format!(", with sides that are multiples of {}", BLOCK[0]),
                Quantization::Mxfp4 =>
                    ", that of experts of gpt-oss with a multiple of 32 inputs".to_owned(),
                _ => String::new(),
            }
        );
        problems.add(Some(asked.at), message, Some("leave it out".to_owned()));
        return None;
    }
    if let Some(config) = config {
        scheme.edit_config(config, &modules);
    }
    if asked.value == Quantization::Fp8Block {
        modules.note(notes);
    }
    Some(quantized)
}

impl<'a> Scheme<'a> {
    fn new(
        asked: &'a Located<Quantization>,
        models: &'a Models,
        config: Option<&Value>,
        problems: &mut Problems,
    ) -> Option<Self> {
        let donor = models.donor();
        let name = asked.value.name();
        let mut refuse = |message: String, hint: &str| {
            problems.add(Some(asked.at), message, Some(hint.to_owned()));
            None
        };
        if donor.is_pipeline() {
            let message = format!(
                "`quantization: {name}` is for one model, and `{}` is a pipeline",
                donor.label()
            );
            return refuse(message, "merge the folder of the component by itself");
        }
        let as_donor = Fp8::of_model(donor);
        let is_comfy = match asked.value {
            Quantization::Keep => as_donor.is_some_and(|fp8| fp8.is_comfy()),
            other => other == Quantization::ComfyFp8,
        };
        if config.is_none() && !is_comfy {
            let message = format!(
                "`{}` has no config.json, and only a config tells runtimes that weights are quantised",
                donor.label()
            );
            let hint = "name the folder of a model, not its file; ComfyUI's `quantization: comfy_fp8` needs no config";
            return refuse(message, hint);
        }
        let of_donor = donor.config().and_then(ModelConfig::quantization);
        let of_donor = of_donor.map(|found| &found.value);
        let fp8 = match asked.value {
            Quantization::Fp8Block => Some(Fp8::of(Shared::Block(BLOCK), Spelling::Blocks)),
            Quantization::Fp8Channel => Some(Fp8::of(Shared::Row, Spelling::Compressed)),
            Quantization::Fp8Tensor => Some(Fp8::of(Shared::Tensor, Spelling::Compressed)),
            Quantization::ComfyFp8 => Some(Fp8::of(Shared::Tensor, Spelling::Comfy)),
            Quantization::Mxfp4 => {
                let kind = donor
                    .config()
                    .and_then(|config| config.get_str("model_type"));
                if kind != Some("gpt_oss") {
                    let message = format!(
                        "`quantization: mxfp4` is how gpt-oss stores experts, and `{}` is no gpt_oss by its config",
                        donor.label()
                    );
                    return refuse(message, "name another scheme: `quantization: fp8_block`");
                }
                None
            }
            Quantization::Keep => {
                if of_donor.is_none() && !is_comfy {
                    let message = format!(
                        "`quantization: keep` is the scheme of `{}`, whose weights are plain",
                        donor.label()
                    );
                    return refuse(
                        message,
                        "name a quantised model as base or first one, or a scheme: `quantization: fp8_block`",
                    );
                };
                if donor.left_out_tensors() > 0 {
                    let message = format!(
                        "`{}` has {} of activations, which belong to its weights and not to others",
                        donor.label(),
                        count(donor.left_out_tensors(), "scale")
                    );
                    let scheme = if is_comfy { "comfy_fp8" } else { "fp8_block" };
                    return refuse(message, &format!("name a scheme: `quantization: {scheme}`"));
                }
                as_donor
            }
        };
        let said = of_donor.and_then(|said| said.get("quant_method")?.as_str());
        let mxfp4 = match asked.value {
            Quantization::Keep => said == Some("mxfp4"),
            other => other == Quantization::Mxfp4,
        };
        Some(Self {
            asked,
            models,
            fp8,
            mxfp4,
            of_donor,
            has_diffusion: (donor.tensors().iter()).any(|entry| entry.name.starts_with(DIFFUSION)),
        })
    }

    /// What becomes of each tensor; `None` if one cannot be written so.
    fn fates(
        &self,
        tensors: &[PlannedTensor],
        config: Option<&Value>,
        problems: &mut Problems,
    ) -> Option<Vec<Fate>> {
        let ragged = match self.asked.value {
            Quantization::Fp8Block => self.ragged(tensors, config),
            _ => HashSet::new(),
        };
        let mut impossible: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        let mut fates = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            if !self.is_quantized(tensor, config, &ragged) {
                fates.push(Fate::Plain);
                continue;
            }
            if let Some(source) = only_source(tensor).filter(|source| self.is_kept(source)) {
                fates.push(Fate::Kept(source));
                continue;
            }
            match self.encoding(tensor) {
                Ok(encoding) => fates.push(Fate::Encoded(encoding)),
                Err(scheme) => {
                    impossible.entry(scheme).or_default().push(&tensor.name);
                    fates.push(Fate::Plain);
                }
            }
        }
        for (scheme, names) in &impossible {
            let message = format!(
                "`quantization: keep` can only copy weights that are stored as {scheme}, and these are computed: {}",
                some_of(names)
            );
            let named = if self.is_comfy() {
                "comfy_fp8"
            } else {
                "fp8_block"
            };
            let hint = format!(
                "name a scheme that is written: `quantization: {named}`; or leave the key out for plain weights"
            );
            problems.add(Some(self.asked.at), message, Some(hint));
        }
        impossible.is_empty().then_some(fates)
    }

    /// Whether a tensor becomes codes and scales.
    fn is_quantized(
        &self,
        tensor: &PlannedTensor,
        config: Option<&Value>,
        ragged: &HashSet<&str>,
    ) -> bool {
        if FloatType::from_dtype(tensor.dtype).is_none() || tensor.elements() == 0 {
            return false;
        }
        let of_sources = || {
            tensor
                .sources
                .iter()
                .any(|source| self.stored(source).is_some())
        };
        match self.asked.value {
            // As the donor stores it, or else as its other source does.
            Quantization::Keep => {
                let donor = self.models.donor();
                let mut sources = tensor.sources.iter();
                let own = sources.find(|source| source.model == self.models.donor);
                let own = own
                    .map(|source| source.tensor)
                    .or_else(|| donor.find(&tensor.name));
                match own {
                    Some(own) => donor.encoded(own).is_some(),
                    None if self.mxfp4 => of_sources() || is_expert(tensor, config),
                    None if self.is_comfy() => of_sources() || self.is_comfy_matrix(tensor),
                    None => of_sources() || is_matrix(tensor, config),
                }
            }
            Quantization::Fp8Block => {
                is_matrix(tensor, config)
                    && (of_sources() || !ragged.contains(parent(&tensor.name)))
            }
            // compressed-tensors and ComfyUI know linear layers alone.
            Quantization::Fp8Channel | Quantization::Fp8Tensor => {
                tensor.shape.len() == 2 && is_matrix(tensor, config)
            }
            Quantization::ComfyFp8 => self.is_comfy_matrix(tensor),
            Quantization::Mxfp4 => is_expert(tensor, config),
        }
    }

    /// The modules that have a matrix whose sides are no multiples of a block: runtimes that join matrices of a module
    /// need all of them alike.
    fn ragged<'t>(&self, tensors: &'t [PlannedTensor], config: Option<&Value>) -> HashSet<&'t str> {
        let is_ragged = |tensor: &&PlannedTensor| {
            let sides = tensor.shape.iter().rev().zip(BLOCK);
            is_matrix(tensor, config) && sides.into_iter().any(|(side, of)| side % of != 0)
        };
        let ragged = tensors.iter().filter(is_ragged);
        ragged.map(|tensor| parent(&tensor.name)).collect()
    }

    fn stored(&self, source: &SourceTensor) -> Option<EncodedTensor<'_>> {
        self.models
            .checkpoints
            .get(source.model)?
            .encoded(source.tensor)
    }

    /// Whether the codes and scales of a source are those that the output has for it.
    fn is_kept(&self, source: &SourceTensor) -> bool {
        let Some(stored) = self.stored(source) else {
            return false;
        };
        let is_here = stored.parts.iter().all(|part| part.bytes.is_some());
        if stored.parts.is_empty() || !is_here {
            return false;
        }
        let config = self.models.checkpoints[source.model].config();
        let said = config
            .and_then(ModelConfig::quantization)
            .map(|found| &found.value);
        let fp8 = match said {
            Some(said) => Fp8::of_config(said),
            None => Fp8::of_comfy(&stored),
        };
        let is_same = stored.is_fp8 && fp8.is_some() && fp8 == self.fp8;
        match self.asked.value {
            Quantization::Keep if source.model == self.models.donor => true,
            Quantization::Keep => match (said, self.of_donor) {
                (Some(own), Some(donor)) => alike(own, donor),
                (None, None) => is_same,
                _ => false,
            },
            Quantization::Mxfp4 => stored.is_mxfp4,
            _ => is_same,
        }
    }

    /// How a tensor that is computed is encoded; else how it is stored in words, if that is not written.
    fn encoding(&self, tensor: &PlannedTensor) -> Result<Encoding, String> {
        let stored = tensor.sources.iter().find_map(|source| self.stored(source));
        let is_written = |stored: &EncodedTensor<'_>| match self.mxfp4 {
            true => stored.is_mxfp4,
            false => stored.is_fp8,
        };
        let is_other =
            self.asked.value == Quantization::Keep && !stored.as_ref().is_none_or(is_written);
        if let (true, &[experts, rows, columns], false) =
            (self.mxfp4, tensor.shape.as_slice(), is_other)
            && rows % 32 == 0
        {
            return Ok(Encoding::mxfp4(experts, rows, columns));
        }
        let (Some(fp8), [matrices @ .., rows, columns], false) =
            (self.fp8, tensor.shape.as_slice(), is_other)
        else {
            let scheme = stored.map(|stored| stored.scheme.to_owned());
            return Err(scheme.unwrap_or_else(|| "those of the model are".to_owned()));
        };
        let (block, scales) = match fp8.shared {
            Shared::Block(block) => (block, FloatType::F32),
            Shared::Row | Shared::Tensor => ([1, *columns], fp8.spelling.scales()),
        };
        Ok(Encoding {
            rows: *rows,
            columns: *columns,
            matrices: matrices.iter().product(),
            format: CodeFormat::Fp8,
            block,
            whole: fp8.shared == Shared::Tensor,
            powers: fp8.powers,
            scales,
        })
    }

    fn is_comfy(&self) -> bool {
        self.fp8.is_some_and(|fp8| fp8.is_comfy())
    }

    /// Whether a tensor is the matrix of a linear layer in a block of a model that ComfyUI runs. What has a number only
    /// as its own is no block: `time_embedding.0`.
    fn is_comfy_matrix(&self, tensor: &PlannedTensor) -> bool {
        let name = tensor.name.as_str();
        let is_elsewhere = self.has_diffusion && !name.starts_with(DIFFUSION);
        let is_number = |part: &&str| part.parse::<usize>().is_ok();
        let parts: Vec<&str> = module(name).split('.').collect();
        let Some(at) = parts.iter().position(is_number) else {
            return false;
        };
        let is_tower = |part: &&str| TOWERS.iter().any(|tower| part.contains(tower));
        let is_in_block = !parts[at..].iter().all(is_number);
        let order = linear_weight(name, &tensor.shape, None);
        let is_linear = tensor.shape.len() == 2 && name.ends_with(".weight") && order.is_some();
        let is_linear = is_linear && !is_router(name);
        is_linear && is_in_block && !is_elsewhere && !parts[..at].iter().any(is_tower)
    }

    /// What the codes of a tensor are called.
    fn codes_of(&self, name: &str) -> String {
        match self.mxfp4 {
            true => format!("{name}_blocks"),
            false => name.to_owned(),
        }
    }

    /// What the scales of a tensor are called.
    fn scales_of(&self, name: &str) -> String {
        if self.mxfp4 {
            return format!("{name}_scales");
        }
        match self.fp8.map(|fp8| fp8.spelling) {
            Some(Spelling::Compressed | Spelling::Comfy) => format!("{name}_scale"),
            Some(Spelling::ComfyMarked) => format!("{}.scale_weight", module(name)),
            Some(Spelling::Blocks) | None => format!("{name}_scale_inv"),
        }
    }

    /// The shape of a scale that is the only one of its tensor, if it is not that of a list.
    fn shape_of_one(&self) -> Option<Vec<usize>> {
        self.is_comfy().then(Vec::new)
    }

    /// The tensor that says how a weight is stored, if there is one beside each: as the donor says it of its own.
    fn said_beside(&self, weight: &str) -> Option<PlannedTensor> {
        let is_needed = self.fp8.is_some_and(|fp8| fp8.spelling == Spelling::Comfy);
        let donor = self.models.donor();
        let stored = donor.find(weight).and_then(|at| donor.encoded(at));
        let said = stored.and_then(|stored| {
            let mut parts = stored.parts.into_iter();
            parts.find(|part| part.name.ends_with(COMFY_QUANT))?.bytes
        });
        let said = match self.asked.value {
            Quantization::Keep => said.unwrap_or(COMFY_FORMAT.as_bytes()),
            _ => COMFY_FORMAT.as_bytes(),
        };
        let name = format!("{}{COMFY_QUANT}", module(weight));
        is_needed.then(|| constant(name, Dtype::U8, vec![said.len()], said))
    }

    /// The tensor that says of all weights that they are stored so, if there is one: the donor's.
    fn marker(&self) -> Option<PlannedTensor> {
        if self.fp8?.spelling != Spelling::ComfyMarked {
            return None;
        }
        let stored = self.models.donor().as_stored();
        let tensors = stored.tensors().iter();
        let found = tensors.zip(0..).find(|(entry, _)| is_comfy_marker(entry));
        let (entry, bytes) = found.and_then(|(entry, at)| Some((entry, stored.bytes(at)?)))?;
        Some(constant(
            entry.name.clone(),
            entry.dtype,
            entry.shape.clone(),
            bytes,
        ))
    }

    /// What configs say of a scheme that the recipe names.
    fn said(&self) -> Value {
        let strategy = match self.asked.value {
            Quantization::Fp8Channel => "channel",
            Quantization::Fp8Tensor => "tensor",
            Quantization::Mxfp4 => {
                let plain = [
                    "model.layers.*.self_attn",
                    "model.layers.*.mlp.router",
                    "model.embed_tokens",
                    "lm_head",
                ];
                return json!({"modules_to_not_convert": plain, "quant_method": "mxfp4"});
            }
            Quantization::Fp8Block | Quantization::Keep | Quantization::ComfyFp8 => {
                return json!({
                    "activation_scheme": "dynamic",
                    "fmt": "e4m3",
                    "quant_method": "fp8",
                    "weight_block_size": BLOCK,
                });
            }
        };
        let float8 = |strategy: &str, dynamic: bool| {
            json!({
                "dynamic": dynamic,
                "num_bits": 8,
                "strategy": strategy,
                "symmetric": true,
                "type": "float",
            })
        };
        json!({
            "config_groups": {"group_0": {
                "format": "float-quantized",
                "input_activations": float8("token", true),
                "output_activations": null,
                "targets": ["Linear"],
                "weights": float8(strategy, false),
            }},
            "format": "float-quantized",
            "ignore": [],
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
        })
    }

    /// Says in the config how the weights are stored, and which modules are plain.
    fn edit_config(&self, config: &mut Value, modules: &Modules) {
        if self.is_comfy() {
            return;
        }
        let of_donor = self
            .models
            .donor()
            .config()
            .and_then(ModelConfig::quantization);
        let (part, key, mut value) = match (self.asked.value, of_donor) {
            (Quantization::Keep, Some(found)) => {
                (found.part, found.key.as_str(), found.value.clone())
            }
            _ => (None, "quantization_config", self.said()),
        };
        if let (Some(said), true) = (value.as_object_mut(), self.fp8.is_some()) {
            let donor = self.models.donor();
            let is_plain_there = |module: &str| {
                let stored = donor.find(&format!("{module}.weight"));
                stored.is_some_and(|at| donor.encoded(at).is_none())
            };
            let is_told = self.asked.value == Quantization::Keep
                && LISTS
                    .iter()
                    .all(|list| said.get(*list).is_none_or(Value::is_null))
                && modules.plain.iter().all(|module| is_plain_there(module));
            // Where nothing is listed, runtimes know which modules of the model are plain.
            if !is_told {
                modules.list(said);
            }
        }
        let object = match part {
            Some(part) => config.get_mut(part).and_then(Value::as_object_mut),
            None => config.as_object_mut(),
        };
        if let Some(object) = object {
            object.insert(key.to_owned(), value);
        }
    }
}

impl Fp8 {
    fn of(shared: Shared, spelling: Spelling) -> Fp8 {
        Fp8 {
            shared,
            powers: false,
            spelling,
        }
    }

    fn is_comfy(&self) -> bool {
        matches!(self.spelling, Spelling::Comfy | Spelling::ComfyMarked)
    }

    /// How a model's weights are stored, by its config, or by its tensors if the config says nothing.
    fn of_model(model: &Checkpoint) -> Option<Fp8> {
        match model.config().and_then(ModelConfig::quantization) {
            Some(said) => Fp8::of_config(&said.value),
            None => {
                let mut stored = (0..model.tensors().len()).filter_map(|at| model.encoded(at));
                stored.find_map(|stored| Fp8::of_comfy(&stored))
            }
        }
    }

    /// ComfyUI's, where no config says anything: one scale, by its name.
    fn of_comfy(stored: &EncodedTensor<'_>) -> Option<Fp8> {
        let mut parts = stored.parts.iter();
        let is_float8 = |dtype| matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2);
        let has_codes = parts.clone().any(|part| is_float8(part.dtype));
        let spelling = parts.find_map(|part| {
            let is_one = part.dtype == Dtype::F32 && part.shape.iter().product::<usize>() == 1;
            let (_, last) = part.name.rsplit_once('.')?;
            match last {
                "weight_scale" if is_one => Some(Spelling::Comfy),
                "scale_weight" if is_one => Some(Spelling::ComfyMarked),
                _ => None,
            }
        });
        spelling
            .filter(|_| has_codes)
            .map(|spelling| Fp8::of(Shared::Tensor, spelling))
    }

    /// What the config of an FP8 model says of its scales, if they are written so.
    fn of_config(said: &Value) -> Option<Fp8> {
        match said.get("quant_method")?.as_str()? {
            "fp8" => Fp8::of_blocks(said),
            "compressed-tensors" => Fp8::of_groups(said),
            _ => None,
        }
    }

    /// DeepSeek's, of blocks.
    fn of_blocks(said: &Value) -> Option<Fp8> {
        let block = match said.get("weight_block_size") {
            None => BLOCK,
            Some(sides) => {
                let side = |at: usize| {
                    let side = usize::try_from(sides.get(at)?.as_u64()?).ok();
                    side.filter(|&side| side > 0)
                };
                [side(0)?, side(1)?]
            }
        };
        let powers = said.get("scale_fmt").and_then(Value::as_str) == Some("ue8m0");
        Some(Fp8 {
            powers,
            ..Fp8::of(Shared::Block(block), Spelling::Blocks)
        })
    }

    /// Those of compressed-tensors, where one group is all.
    fn of_groups(said: &Value) -> Option<Fp8> {
        let groups: Vec<&Value> = said.get("config_groups")?.as_object()?.values().collect();
        let [group] = groups.as_slice() else {
            return None;
        };
        let weights = group.get("weights")?;
        let is = |key: &str, value: Value| weights.get(key) == Some(&value);
        let is_fp8 = is("type", "float".into()) && is("num_bits", 8.into());
        let is_plain = said.get("format")? == "float-quantized" && is("symmetric", true.into());
        let shared = match weights.get("strategy")?.as_str()? {
            "channel" => Shared::Row,
            "tensor" => Shared::Tensor,
            _ => return None,
        };
        (is_fp8 && is_plain).then(|| Fp8::of(shared, Spelling::Compressed))
    }
}

impl Spelling {
    /// The format of scales.
    fn scales(self) -> FloatType {
        match self {
            Spelling::Compressed => FloatType::Bf16,
            Spelling::Blocks | Spelling::Comfy | Spelling::ComfyMarked => FloatType::F32,
        }
    }
}

fn constant(name: String, dtype: Dtype, shape: Vec<usize>, bytes: &[u8]) -> PlannedTensor {
    let operation = Operation::Constant(bytes.to_vec());
    PlannedTensor::plain(name, dtype, shape, Vec::new(), operation)
}

/// Whether two configs say the same of how weights are stored; the modules that they list may differ.
fn alike(one: &Value, other: &Value) -> bool {
    let rest = |said: &Value| {
        let mut said = said.as_object().cloned().unwrap_or_default();
        said.retain(|key, _| !LISTS.contains(&key.as_str()));
        said
    };
    rest(one) == rest(other)
}

/// The source whose values the tensor has unchanged, if there is one.
fn only_source(tensor: &PlannedTensor) -> Option<SourceTensor> {
    if tensor.views.iter().any(Option::is_some) {
        return None;
    }
    match (&tensor.operation, tensor.sources.as_slice()) {
        (
            Operation::Compute {
                name: "convert", ..
            }
            | Operation::Copy,
            [source],
        ) => Some(*source),
        (Operation::Compute { name: "linear", .. }, sources) => {
            let weight = |at: usize| tensor.params.source_number(at, "weight");
            let mut weighed = (0..sources.len()).filter(|&at| weight(at) != 0.0);
            let (Some(only), None) = (weighed.next(), weighed.next()) else {
                return None;
            };
            let is_whole = weight(only) == 1.0 || tensor.params.flag("normalize");
            is_whole.then_some(sources[only])
        }
        _ => None,
    }
}

/// Whether a tensor is the matrix of a linear layer that runtimes read in FP8: no router, and no part of a tower.
fn is_matrix(tensor: &PlannedTensor, config: Option<&Value>) -> bool {
    let name = &tensor.name;
    let order = linear_weight(name, &tensor.shape, config);
    let is_tower = name
        .split('.')
        .any(|part| TOWERS.iter().any(|tower| part.contains(tower)));
    let is_numbered = name.split('.').any(|part| part.parse::<usize>().is_ok());
    order == Some(WeightOrder::OutIn) && is_numbered && !is_tower && !is_router(name)
}

/// Whether a tensor holds the matrices of gpt-oss's experts: a row for each input.
fn is_expert(tensor: &PlannedTensor, config: Option<&Value>) -> bool {
    let order = linear_weight(&tensor.name, &tensor.shape, config);
    let is_whole = matches!(tensor.shape.as_slice(), [_, rows, _] if rows % 32 == 0);
    is_whole && order == Some(WeightOrder::InOut)
}

/// The module of a matrix: `model.layers.0.mlp.up_proj`.
fn module(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(module, _)| module)
}

/// The module around that of a matrix: `model.layers.0.mlp`.
fn parent(name: &str) -> &str {
    module(module(name))
}

/// The tensor as codes, and its scales of this name and, if one is given, of this shape.
fn encoded(
    mut tensor: PlannedTensor,
    encoding: Encoding,
    name: String,
    shape: Option<Vec<usize>>,
) -> [PlannedTensor; 2] {
    if matches!(tensor.operation, Operation::Copy) {
        tensor.operation = Operation::convert();
    }
    tensor.dtype = encoding.code_dtype();
    tensor.encoding = Some(encoding);
    let shape = shape.unwrap_or_else(|| encoding.scale_shape(&tensor.shape));
    let dtype = encoding.scale_dtype();
    tensor.shape = encoding.code_shape(&tensor.shape);
    let scales = PlannedTensor::plain(name, dtype, shape, Vec::new(), Operation::Scales);
    [tensor, scales]
}

/// The stored tensors of a source, under the names that they have beside the tensor's own.
fn kept(models: &Models, tensor: PlannedTensor, source: SourceTensor) -> Vec<PlannedTensor> {
    let model: &Checkpoint = &models.checkpoints[source.model];
    let Some(stored) = model.encoded(source.tensor) else {
        return vec![tensor];
    };
    let part = |(at, part): (usize, &checkpoint::StoredPart<'_>)| PlannedTensor {
        views: vec![Some(View::Stored(at))],
        ..PlannedTensor::plain(
            renamed(part.name, stored.name, &tensor.name),
            part.dtype,
            part.shape.to_vec(),
            vec![source],
            Operation::Copy,
        )
    };
    stored.parts.iter().enumerate().map(part).collect()
}

/// The name of a stored tensor beside values that are called otherwise than in their file.
fn renamed(part: &str, values: &str, now: &str) -> String {
    let shared = part.chars().zip(values.chars()).take_while(|(a, b)| a == b);
    let shared: usize = shared.map(|(a, _)| a.len_utf8()).sum();
    let stem = now.strip_suffix(&values[shared..]).unwrap_or(now);
    format!("{stem}{}", &part[shared..])
}

/// The modules of an output that have matrices.
#[derive(Default)]
struct Modules {
    /// Those of linear layers that are plain.
    plain: Vec<String>,
    quantized: BTreeSet<String>,
    /// Matrices in layers that could be quantised but for their sides.
    ragged: Vec<String>,
}

impl Modules {
    fn add(&mut self, tensor: &PlannedTensor, is_quantized: bool, config: Option<&Value>) {
        let module = module(&tensor.name);
        if is_quantized {
            self.quantized.insert(module.to_owned());
            return;
        }
        let is_head = tensor.shape.len() == 2 && tensor.name.ends_with("head.weight");
        if is_head || linear_weight(&tensor.name, &tensor.shape, config).is_some() {
            self.plain.push(module.to_owned());
        }
        if is_matrix(tensor, config) {
            self.ragged.push(tensor.name.clone());
        }
    }

    /// Lists the plain modules, beside what is listed and fits no quantised one.
    fn list(&self, said: &mut Map<String, Value>) {
        let key = LISTS
            .into_iter()
            .find(|key| said.get(*key).is_some_and(Value::is_array));
        let key = key.unwrap_or(LISTS[0]);
        // A regular expression is taken at its word.
        let fits = |pattern: &str, module: &str| {
            let within = module
                .strip_prefix(pattern)
                .is_some_and(|rest| rest.starts_with('.'));
            within || module.ends_with(pattern)
        };
        let known = said
            .get(key)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let known = known.iter().filter_map(Value::as_str);
        let known =
            known.filter(|pattern| !self.quantized.iter().any(|module| fits(pattern, module)));
        let mut list: Vec<String> = known.map(str::to_owned).collect();
        let has_head = self.plain.iter().any(|module| module.ends_with("lm_head"));
        // A head that is the embedding has no tensor of its own, and is a linear layer nevertheless.
        let tied = (!has_head).then(|| "lm_head".to_owned());
        for module in self.plain.iter().cloned().chain(tied) {
            if !list.iter().any(|pattern| fits(pattern, &module)) {
                list.push(module);
            }
        }
        said.insert(key.to_owned(), list.into());
    }

    fn note(&self, notes: &mut Vec<String>) {
        if !self.ragged.is_empty() {
            notes.push(format!(
                "{} of linear layers stay plain, as the sides of matrices in their module are no multiples of {}: {}",
                count(self.ragged.len(), "weight"),
                BLOCK[0],
                some_of(&self.ragged)
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_tensors_follow_the_name_of_their_values() {
        let cases = [
            (
                "a.0.q.weight_scale_inv",
                "a.0.q.weight",
                "a.7.q.weight",
                "a.7.q.weight_scale_inv",
            ),
            (
                "a.0.q.weight",
                "a.0.q.weight",
                "a.7.q.weight",
                "a.7.q.weight",
            ),
            (
                "a.0.q.qweight",
                "a.0.q.weight",
                "b.1.q.weight",
                "b.1.q.qweight",
            ),
            (
                "e.up_proj_blocks",
                "e.up_proj",
                "m.e.up_proj",
                "m.e.up_proj_blocks",
            ),
            ("a.weight.absmax", "a.weight", "b.weight", "b.weight.absmax"),
        ];
        for (part, values, now, expected) in cases {
            assert_eq!(renamed(part, values, now), expected);
        }
    }

    #[test]
    fn what_is_listed_as_plain_is_what_stays_plain() {
        let modules = Modules {
            plain: ["l.0.mlp.gate", "l.1.mlp.gate", "l.1.attn.q"]
                .map(str::to_owned)
                .into(),
            quantized: ["l.0.attn.q", "l.0.mlp.gate_proj"]
                .map(str::to_owned)
                .into(),
            ragged: Vec::new(),
        };
        let mut said = json!({"ignored_layers": ["mlp.gate", "l.0.attn", "visual"]});
        let said = said.as_object_mut().unwrap();
        modules.list(said);
        assert_eq!(
            said["ignored_layers"],
            json!(["mlp.gate", "visual", "l.1.attn.q", "lm_head"])
        );
    }
}
