//! The models that a recipe is written for: opened, adapters told from models, the base found.

use std::collections::BTreeMap;

use serde_json::Value;

use super::kinship::base_of;
use super::reference;
use crate::output::Failure;
use checkpoint::{Checkpoint, CheckpointError, Location, Locator, read_bounded};
use errors::Refusal;

/// A model that is merged.
pub(super) struct Member {
    /// Its name in the recipe.
    pub(super) name: String,
    pub(super) checkpoint: Checkpoint,
}

/// The models of a recipe, and what was found in them.
pub(super) struct Found {
    /// Those that are merged, without the base.
    pub(super) members: Vec<Member>,
    /// The model that they were fine-tuned from.
    pub(super) base: Option<Member>,
    /// Why this one is the base, if nobody said so.
    pub(super) why_base: Option<String>,
    /// What else is worth a comment.
    pub(super) remarks: Vec<String>,
}

/// The largest `adapter_config.json` that is read.
const MAX_ADAPTER_CONFIG: u64 = 16 << 20;

impl Found {
    /// Opens models by their names. A LoRA adapter goes onto the base, or onto the model that it names.
    pub(super) fn open(
        names: &[String],
        base: Option<&str>,
        locator: &Locator,
    ) -> Result<Found, Failure> {
        let mut remarks = Vec::new();
        let mut members: Vec<Member> = Vec::new();
        for name in names.iter().filter(|name| Some(name.as_str()) != base) {
            let name = on_a_model(name, base, locator, &mut remarks)?;
            if members.iter().any(|member| member.name == name) {
                return Err(Failure::input(format!("the model `{name}` is named twice")));
            }
            members.push(member(&name, locator)?);
        }
        let (mut base, mut why_base) = (base.map(|base| member(base, locator)).transpose()?, None);
        if base.is_none() {
            let checkpoints: Vec<&Checkpoint> =
                members.iter().map(|member| &member.checkpoint).collect();
            if let Some((at, why)) = base_of(&checkpoints) {
                base = Some(members.remove(at));
                why_base = Some(why);
            }
        }
        if members.is_empty() {
            return Err(Failure::input(
                Refusal::new("there is no model to merge besides the base")
                    .with_hint("name one model or more, as in `weld new MODEL MODEL --base MODEL`"),
            ));
        }
        let found = Found {
            members,
            base,
            why_base,
            remarks,
        };
        found.check()?;
        Ok(found)
    }

    /// All models, those that are merged first.
    pub(super) fn all(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().chain(&self.base)
    }

    /// Refuses models of different architectures, before anything is said of tensors.
    fn check(&self) -> Result<(), Failure> {
        let kind = |member: &Member| {
            let config = member.checkpoint.config()?;
            Some(config.model_type()?.to_owned())
        };
        let kinds: Vec<(String, &str)> = self
            .all()
            .filter_map(|member| Some((kind(member)?, member.name.as_str())))
            .collect();
        let Some((first, name)) = kinds.first() else {
            return Ok(());
        };
        match kinds.iter().find(|(kind, _)| kind != first) {
            None => Ok(()),
            Some((other, other_name)) => Err(Failure::input(
                Refusal::new(format!(
                    "`{name}` is of the type {first}, and `{other_name}` of the type {other}"
                ))
                .with_hint("models of different architectures cannot be merged"),
            )),
        }
    }

    /// The dtype of most of the elements of the first model, as recipes write it.
    pub(super) fn dtype(&self) -> Option<&'static str> {
        let mut elements: BTreeMap<&'static str, u64> = BTreeMap::new();
        for tensor in self.all().next()?.checkpoint.tensors() {
            let name = match format!("{:?}", tensor.dtype).as_str() {
                "BF16" => "bfloat16",
                "F16" => "float16",
                "F32" | "F64" => "float32",
                _ => continue,
            };
            *elements.entry(name).or_default() += tensor.elements();
        }
        elements
            .into_iter()
            .max_by_key(|(_, count)| *count)
            .map(|(name, _)| name)
    }
}

fn member(name: &str, locator: &Locator) -> Result<Member, Failure> {
    let location = locator.locate(&reference(name)?)?;
    let checkpoint = Checkpoint::open(name, &location)?;
    Ok(Member {
        name: name.to_owned(),
        checkpoint,
    })
}

/// The name as it is, or the adapter of this name on its model.
fn on_a_model(
    name: &str,
    base: Option<&str>,
    locator: &Locator,
    remarks: &mut Vec<String>,
) -> Result<String, Failure> {
    let location = locator.locate(&reference(name)?)?;
    let Some(stated) = adapter(&location)? else {
        return Ok(name.to_owned());
    };
    let of_adapter = stated.as_deref().filter(|stated| {
        let found = reference(stated).ok().map(|model| locator.locate(&model));
        matches!(found, Some(Ok(_)))
    });
    let Some(model) = base.or(of_adapter) else {
        let of = stated.map_or(String::new(), |stated| format!(" of `{stated}`"));
        return Err(Failure::input(
            Refusal::new(format!(
                "`{name}` is a LoRA adapter{of}, and its model is not here"
            ))
            .with_hint(format!(
                "name it with --base MODEL, or write `MODEL+{name}`"
            )),
        ));
    };
    let by = match base {
        Some(_) => "it is put on the base",
        None => "its config names the model",
    };
    remarks.push(format!("{name} is a LoRA adapter: {by}."));
    Ok(format!("{model}+{name}"))
}

/// The model that an adapter names, if the location is that of an adapter without a model.
fn adapter(location: &Location) -> Result<Option<Option<String>>, Failure> {
    let config = location.path.join("adapter_config.json");
    if !location.adapters.is_empty()
        || !config.is_file()
        || location.path.join("config.json").is_file()
    {
        return Ok(None);
    }
    let bytes = read_bounded(&config, MAX_ADAPTER_CONFIG, "adapter's config, in bytes")
        .map_err(|error: CheckpointError| Failure::from(error))?;
    let config: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let stated = config.get("base_model_name_or_path");
    Ok(Some(stated.and_then(Value::as_str).map(str::to_owned)))
}
