//! What happens to each tensor: its module gets factors, it is saved as it is, or it stays out of the adapter.

use std::collections::BTreeSet;

use architecture::{
    Family, WeightOrder, is_derived_buffer, is_input_embedding, is_output_head, is_router,
    linear_weight,
};
use checkpoint::{Checkpoint, ModelConfig, TensorEntry};
use errors::{About, Refusal};

use super::patterns::module_of;
use super::report::LeftOut;
use super::request::Request;

/// Words in a module's name by which PEFT tells its own tensors from those of the model.
const OF_PEFT: [&str; 4] = [
    "base_layer",
    "modules_to_save",
    "original_module",
    "token_adapter",
];

/// What happens to a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Treatment {
    /// Its module gets factors; how it lies.
    Adapt(WeightOrder),
    /// It is written as it is.
    Save,
    /// It is measured only, and why.
    Leave(&'static str),
}

/// A tensor of both models.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tensor {
    /// Its number in the base.
    pub(super) base: usize,
    /// Its number in the fine-tune.
    pub(super) tuned: usize,
    pub(super) treatment: Treatment,
}

/// All tensors of both models.
#[derive(Debug)]
pub(super) struct Selection {
    pub(super) tensors: Vec<Tensor>,
    /// Those that cannot be compared, and were excluded.
    pub(super) left_out: Vec<LeftOut>,
    /// What the names of modules begin with in the class that PEFT wraps, where the model was saved without it.
    pub(super) prefix: &'static str,
    /// Whether the head is the embedding.
    pub(super) is_tied: bool,
}

/// Decides for every tensor.
///
/// # Errors
/// If the models do not have the same tensors, but for those that are excluded, or if a pattern matches nothing.
pub(super) fn select(request: &Request<'_>) -> Result<Selection, Refusal> {
    let (base, tuned) = (request.base, request.tuned);
    let modules: BTreeSet<&str> = (base.tensors().iter())
        .map(|tensor| module_of(&tensor.name))
        .collect();
    for (option, patterns) in [
        ("--module", &request.only),
        ("--exclude", &request.except),
        ("--save", &request.save),
    ] {
        if let Some(pattern) = patterns.unused(modules.iter().copied()) {
            let why = format!(
                "no module of {} matches `{pattern}` of {option}",
                base.label()
            );
            return Err(Refusal::new(why).with_hint(
                "a pattern is a module's name, or its end after a dot, with `*` for any characters; \
                 `weld inspect MODEL --all` lists the tensors",
            ));
        }
    }
    let mut selection = Selection {
        tensors: Vec::new(),
        left_out: Vec::new(),
        prefix: prefix(base),
        is_tied: is_tied(base) && is_tied(tuned),
    };
    let is_same = |name: &str| is_derived_buffer(name) || selection.is_tied && is_output_head(name);
    let mut tensors = Vec::new();
    let mut left_out = Vec::new();
    let mut leave = |name: &str, why: Refusal| match request.except.matches(module_of(name)) {
        true => {
            left_out.push(LeftOut::unmeasured(name, why.to_string()));
            Ok(())
        }
        false => Err(why.about(About::default().tensor(name))),
    };
    for (at, entry) in base.tensors().iter().enumerate() {
        let name = &entry.name;
        if is_same(name) {
            continue;
        }
        let Some(other) = tuned.find(name) else {
            leave(name, absent(name, base, tuned))?;
            continue;
        };
        let shape = &tuned.tensors()[other].shape;
        if *shape != entry.shape {
            leave(name, misshapen(entry, shape, base, tuned))?;
            continue;
        }
        tensors.push(Tensor {
            base: at,
            tuned: other,
            treatment: treatment(request, entry, selection.is_tied),
        });
    }
    for entry in tuned.tensors() {
        if base.find(&entry.name).is_none() && !is_same(&entry.name) {
            leave(&entry.name, absent(&entry.name, tuned, base))?;
        }
    }
    selection.tensors = tensors;
    selection.left_out = left_out;
    Ok(selection)
}

fn treatment(request: &Request<'_>, entry: &TensorEntry, is_tied: bool) -> Treatment {
    let name = &entry.name;
    let module = module_of(name);
    let config = request.base.config().map(ModelConfig::value);
    let is_named = request.only.matches(module);
    if request.except.matches(module) {
        return Treatment::Leave("excluded");
    }
    if request.save.matches(module) {
        return Treatment::Save;
    }
    if !is_named && !request.only.is_empty() {
        return Treatment::Leave("not among the modules of --module");
    }
    let order = linear_weight(name, &entry.shape, config);
    let is_head = is_output_head(name) && entry.shape.len() == 2;
    let order = order.or((is_named && is_head && !is_tied).then_some(WeightOrder::OutIn));
    let words = || module.split('.');
    match order.filter(|_| name.ends_with(".weight")) {
        None => Treatment::Leave("not the weight of a linear layer"),
        Some(_) if entry.shape.len() != 2 => Treatment::Leave("a stack of experts"),
        Some(_) if words().any(|word| word.starts_with("lora_") || OF_PEFT.contains(&word)) => {
            Treatment::Leave("named as tensors of PEFT are")
        }
        // In transformers 5 these are no modules that PEFT could adapt.
        Some(_) if !is_named && (is_router(name) || words().any(|word| word == "experts")) => {
            Treatment::Leave("of a mixture of experts; --module adapts it")
        }
        Some(order) => Treatment::Adapt(order),
    }
}

fn absent(name: &str, has: &Checkpoint, lacks: &Checkpoint) -> Refusal {
    let why = format!(
        "{} has `{name}`, and {} does not",
        has.label(),
        lacks.label()
    );
    Refusal::new(why).with_hint(format!(
        "name the base that the model was fine-tuned from; --exclude {} leaves it out",
        module_of(name)
    ))
}

fn misshapen(
    entry: &TensorEntry,
    found: &[usize],
    base: &Checkpoint,
    tuned: &Checkpoint,
) -> Refusal {
    let name = &entry.name;
    let module = module_of(name);
    let why = format!(
        "`{name}` has the shape {:?} in {}, and {found:?} in {}",
        entry.shape,
        base.label(),
        tuned.label()
    );
    Refusal::new(why).with_hint(match is_input_embedding(name) || is_output_head(name) {
        true => format!(
            "resize the embeddings of the base to those of the fine-tune (`resize_token_embeddings`), save it, and name \
             that model; or leave it out with --exclude {module}"
        ),
        false => format!(
            "name the base that the model was fine-tuned from; --exclude {module} leaves it out"
        ),
    })
}

/// Whether the head is the embedding.
fn is_tied(model: &Checkpoint) -> bool {
    model.config().is_some_and(|config| {
        let family = config.model_type().and_then(Family::named);
        let usual = || family.is_some_and(Family::is_tied);
        config.tie_word_embeddings().unwrap_or_else(usual)
    })
}

/// What a body's names begin with in a class with a head, where it was saved alone: GPT-2's `transformer.`.
pub(super) fn prefix(base: &Checkpoint) -> &'static str {
    let Some(config) = base.config() else {
        return "";
    };
    let class = config.architectures().into_iter().next();
    let is_bare = class.is_some_and(|class| {
        class.ends_with("Model") && !class.ends_with("LMHeadModel") && !class.contains("For")
    });
    let family = config.model_type().and_then(Family::named);
    let Some(body) = family
        .and_then(|family| family.bodies.first())
        .filter(|_| !is_bare)
    else {
        return "";
    };
    let starts = |prefix: &str| {
        let mut tensors = base.tensors().iter();
        !prefix.is_empty() && tensors.any(|tensor| tensor.name.starts_with(prefix))
    };
    let is_alone =
        body.prefixes.contains(&"") && !body.prefixes.iter().any(|prefix| starts(prefix));
    match is_alone {
        true => body.prefixes.first().copied().unwrap_or_default(),
        false => "",
    }
}
