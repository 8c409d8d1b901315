//! Adapters that are one file of factors, as kohya's scripts, ai-toolkit and diffusers write them for image models.
//!
//! They have no config: ranks are those of the factors, and each module may have an `alpha`. Names are resolved by those
//! of the model's own modules, flattened or as they are.

mod aliases;
mod components;
mod keys;
mod names;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use components::Component;
use keys::Part;
use names::Names;

use super::config::{self, AdapterConfig};
use super::cuts::Cut;
use super::error::AdapterError;
use super::lycoris::{PairParts, PairPiece};
use super::pieces::{Placed, ProductPiece, TensorUpdate};
use super::subject::Subject;
use super::weights::{AdapterWeights, twice};
use numeric::FloatType;
use serde_json::{Map, Value};

/// The modules of such a file.
#[derive(Debug)]
pub(super) struct SingleFile {
    modules: Vec<Module>,
}

/// What the file holds for a module.
#[derive(Debug)]
struct Module {
    /// The part of the model, as far as the file says.
    component: Option<Component>,
    /// The module as it is written, without the part.
    name: String,
    added: Added,
}

/// What is added to a module's weight.
#[derive(Debug)]
enum Added {
    Product {
        a: usize,
        b: usize,
        rank: usize,
        scale: f64,
    },
    Pair(Box<PairPiece>),
}

/// The parts of a module while the file is read.
#[derive(Default)]
struct Parts {
    a: Option<usize>,
    b: Option<usize>,
    alpha: Option<usize>,
    of_pair: PairParts,
}

impl SingleFile {
    /// Reads the names of a file, and the numbers in it that scale.
    pub(super) fn read(weights: &AdapterWeights) -> Result<SingleFile, AdapterError> {
        let mut modules: BTreeMap<&str, Parts> = BTreeMap::new();
        for (index, tensor) in weights.tensors().iter().enumerate() {
            let (module, part) =
                keys::split(&tensor.name).map_err(|why| AdapterError::Unsupported {
                    path: weights.path.clone(),
                    what: format!("`{}`", tensor.name),
                    why,
                    hint: "merge it with the tool that trained it, and name the result",
                })?;
            weights.check_float(index)?;
            let parts = modules.entry(module).or_default();
            let before = match part {
                Part::A => parts.a.replace(index),
                Part::B => parts.b.replace(index),
                Part::Alpha => parts.alpha.replace(index),
                Part::OfPair(part) => parts.of_pair.insert(part, index),
            };
            if let Some(first) = before {
                return Err(twice(weights, first, index));
            }
        }
        let configs = Configs::read(weights)?;
        let module = |(name, parts): (&str, Parts)| Module::read(weights, &configs, name, &parts);
        let modules = modules.into_iter().map(module).collect::<Result<_, _>>()?;
        Ok(SingleFile { modules })
    }

    /// How many modules it is for.
    pub(super) fn len(&self) -> usize {
        self.modules.len()
    }

    /// What it holds for a part of a model, whose folder is `part`. The modules are marked in `used`.
    pub(super) fn gather(
        &self,
        weights: &AdapterWeights,
        part: &str,
        model: &Subject,
        used: &mut [bool],
    ) -> Result<Vec<Placed>, AdapterError> {
        let names = Names::of(part, model);
        let mut placed = Vec::new();
        for (module, used) in self.modules.iter().zip(used) {
            let targets =
                names
                    .find(module.component, &module.name)
                    .map_err(|[first, second]| AdapterError::Ambiguous {
                        path: weights.path.clone(),
                        key: weights.key(module.key()).into(),
                        first,
                        second,
                    })?;
            *used |= !targets.is_empty();
            placed.extend(targets.iter().map(|target| Placed {
                module: module.name.clone(),
                name: model.tensors[target.tensor].name.clone(),
                lies: None,
                piece: module.piece(&target.cut),
            }));
        }
        Ok(placed)
    }

    /// Checks that each module was for some part of the model.
    pub(super) fn check_used(
        &self,
        weights: &AdapterWeights,
        used: &[bool],
    ) -> Result<(), AdapterError> {
        let mut unused = self.modules.iter().zip(used).filter(|(_, used)| !**used);
        let Some((first, _)) = unused.next() else {
            return Ok(());
        };
        Err(AdapterError::NoModule {
            path: weights.path.clone(),
            key: weights.key(first.key()).into(),
            further: unused.count(),
            of: self.modules.len(),
        })
    }
}

impl Module {
    fn read(
        weights: &AdapterWeights,
        configs: &Configs,
        name: &str,
        parts: &Parts,
    ) -> Result<Module, AdapterError> {
        let half = |there: Option<usize>, missing| AdapterError::Half {
            path: weights.path.clone(),
            key: weights.key(there.unwrap_or_default()).into(),
            missing,
        };
        let (component, module) = components::split(name);
        let plain = keys::plain(module);
        if let Some(&of_pair) = parts.of_pair.values().next() {
            if let Some(factor) = parts.a.or(parts.b) {
                return Err(twice(weights, of_pair, factor));
            }
            let pair = PairPiece::read(weights, &parts.of_pair)?;
            let alpha = parts
                .alpha
                .map(|alpha| scalar(weights, alpha))
                .transpose()?;
            let scale = match (alpha, pair.rank) {
                (Some(alpha), Some(rank)) => alpha / rank as f64,
                // Without factors there is no rank, and LyCORIS takes no notice of alpha.
                _ => 1.0,
            };
            return Ok(Module {
                component,
                name: plain,
                added: Added::Pair(Box::new(pair.with_scale(scale))),
            });
        }
        let (a, b) = match (parts.a, parts.b) {
            (Some(a), Some(b)) => (a, b),
            (None, Some(b)) => return Err(half(Some(b), "first factor (`lora_down`, `lora_A`)")),
            (Some(a), None) => return Err(half(Some(a), "second factor (`lora_up`, `lora_B`)")),
            (None, None) => return Err(half(parts.alpha, "factors")),
        };
        let rank = weights.shape(a).first().copied().unwrap_or_default();
        if rank == 0 {
            let expected = "at least one rank".into();
            return Err(weights.shape_error(a, expected, "copy or download the file again"));
        }
        let scale = match parts.alpha {
            Some(alpha) => scalar(weights, alpha)? / rank as f64,
            None => configs.scale(component, module, rank),
        };
        Ok(Module {
            component,
            name: plain,
            added: Added::Product { a, b, rank, scale },
        })
    }

    /// One of its tensors, to name it by.
    fn key(&self) -> usize {
        match &self.added {
            Added::Product { a, .. } => *a,
            Added::Pair(pair) => pair.key(),
        }
    }

    /// The update of a part of a tensor.
    fn piece(&self, cut: &Cut) -> TensorUpdate {
        let cut = cut.clone();
        match &self.added {
            &Added::Product { a, b, rank, scale } => TensorUpdate::Product(ProductPiece {
                a,
                b,
                magnitude: None,
                is_embedding: false,
                rank,
                scale,
                cut,
            }),
            Added::Pair(pair) => TensorUpdate::Pair(Box::new(pair.as_ref().clone().with_cut(cut))),
        }
    }
}

/// The value of a tensor with one.
fn scalar(weights: &AdapterWeights, tensor: usize) -> Result<f64, AdapterError> {
    let mut value = [0f64];
    let stored = weights.stored(tensor, FloatType::F32);
    if weights.tensors()[tensor].elements() == 1 {
        stored.format.decode(stored.bytes, &mut value);
    }
    match weights.tensors()[tensor].elements() == 1 && value[0].is_finite() {
        true => Ok(value[0]),
        false => Err(weights.shape_error(
            tensor,
            "one finite number".into(),
            "copy or download the file again",
        )),
    }
}

/// The configs of PEFT that diffusers keeps in the file's header, one for each part of the pipeline.
struct Configs(Vec<(Component, AdapterConfig)>);

impl Configs {
    fn read(weights: &AdapterWeights) -> Result<Configs, AdapterError> {
        const KEY: &str = "lora_adapter_metadata";
        let text = weights.metadata().and_then(|metadata| metadata.get(KEY));
        let Some(Value::Object(all)) = text.and_then(|text| serde_json::from_str(text).ok()) else {
            return Ok(Configs(Vec::new()));
        };
        let mut parts: BTreeMap<Component, Map<String, Value>> = BTreeMap::new();
        for (key, value) in all {
            let Some((part, option)) = key.split_once('.') else {
                continue;
            };
            if let Some(component) = components::named(part) {
                let options = match parts.entry(component) {
                    Entry::Occupied(options) => options.into_mut(),
                    Entry::Vacant(options) => options.insert(Map::new()),
                };
                options.insert(option.to_owned(), value);
            }
        }
        let config = |(component, mut options): (Component, Map<String, Value>)| {
            options.entry("peft_type").or_insert("LORA".into());
            Ok((component, config::parse(weights.path.clone(), &options)?))
        };
        let parts: Result<Vec<_>, AdapterError> = parts.into_iter().map(config).collect();
        parts.map(Configs)
    }

    /// What the product of a module is multiplied with that has no alpha of its own.
    fn scale(&self, component: Option<Component>, module: &str, rank: usize) -> f64 {
        let config = self.0.iter().find(|(known, _)| Some(*known) == component);
        config.map_or(1.0, |(_, config)| {
            let (stated, scale) = config.rank_and_scale(module);
            // A rank that was not stated for this module.
            scale * stated as f64 / rank as f64
        })
    }
}

/// The whole of a tensor.
#[derive(Debug)]
pub(super) struct Target {
    tensor: usize,
    cut: Cut,
}
