//! Decides whether a target can express a dense model exactly, and what an expert must have in common with its base.

use super::family::{Dense, Window};
use super::targets::Target;
use architecture::{Bias, HeadDim, QueryNorms, WindowRule};
use errors::Refusal;

/// A reason why an assembly would not compute what its models do: names the field, the expected and the found value.
pub(super) type Misfit = Refusal;

fn misfit(message: String, hint: Option<String>) -> Misfit {
    let misfit = Misfit::new(message);
    match hint {
        Some(hint) => misfit.with_hint(hint),
        None => misfit,
    }
}

/// The properties of the base that the target cannot express. The base supplies everything except the experts.
pub(super) fn of_base(base: &Dense, target: Target, label: &str) -> Vec<Misfit> {
    let (name, decoder) = (target.model_type, target.decoder);
    let mut found = Vec::new();
    let family = base.family.name();
    let elsewhere = |fits: &dyn Fn(&Target) -> bool| {
        let holds = |other: &Target| other.holds(family) && fits(other);
        let others: Vec<&str> = Target::all()
            .filter(holds)
            .map(|other| other.model_type)
            .collect();
        (!others.is_empty()).then(|| format!("`architecture: {}` holds it", others.join("` or `")))
    };
    if !target.holds(family) {
        found.push(misfit(
            format!(
                "`{label}` is of the family `{family}`, which `{name}` does not hold exactly: it holds {}",
                target.written.holds.join(", ")
            ),
            elsewhere(&|_| true),
        ));
        // The other misfits would follow from this one.
        return found;
    }
    if base.qkv_bias && decoder.qkv_bias == Bias::None {
        found.push(misfit(
            format!("`{label}` has biases of q, k or v (`attention_bias`), and `{name}` has none"),
            elsewhere(&|other| other.decoder.qkv_bias != Bias::None),
        ));
    }
    if base.o_bias && decoder.o_bias == Bias::None {
        found.push(misfit(
            format!("`{label}` has a bias of o (`attention_bias`), and `{name}` has none"),
            elsewhere(&|other| other.decoder.o_bias != Bias::None),
        ));
    }
    match (decoder.query_norms, base.qk_norm) {
        (QueryNorms::None, true) => found.push(misfit(
            format!("`{label}` has norms of q and k, and `{name}` has none"),
            None,
        )),
        (QueryNorms::Head | QueryNorms::All, false) => found.push(misfit(
            format!("`{name}` norms q and k, and `{label}` does not: no weight makes such a norm the identity"),
            None,
        )),
        _ => {}
    }
    match base.window {
        Window::All(size) if !has_window(&target) => found.push(misfit(
            format!("`{label}` looks back {size} tokens (`sliding_window`), and `{name}` has no window"),
            elsewhere(&has_window),
        )),
        Window::Some => found.push(misfit(
            format!("`{label}` has a window (`sliding_window`) in some layers only, which `{name}` cannot express"),
            None,
        )),
        _ => {}
    }
    if !has_head_dim(&target) && base.head_dim * base.heads != base.hidden {
        found.push(misfit(
            format!(
                "`{label}` has {} heads of {} (`head_dim`), and `{name}` takes them to be {} wide: `hidden_size` over \
                 `num_attention_heads`",
                base.heads,
                base.head_dim,
                base.hidden / base.heads
            ),
            elsewhere(&has_head_dim),
        ));
    }
    if base.rope.partial != 1.0 {
        found.push(misfit(
            format!("`{label}` turns a share of {} of each head (`partial_rotary_factor`), and `{name}` all of it", base.rope.partial),
            None,
        ));
    }
    // Every class of transformers computes these kinds alike. Other kinds depend on more than the config's rope fields.
    if !matches!(base.rope.kind(), "default" | "linear" | "llama3" | "yarn") {
        found.push(misfit(
            format!("`{label}` has rotary positions of the kind `{}` (`rope_scaling`), which `{name}` does not have", base.rope.kind()),
            None,
        ));
    }
    found
}

/// Whether the target has one window for all layers.
fn has_window(target: &Target) -> bool {
    matches!(target.decoder.window, WindowRule::All(_))
}

/// Whether the target's heads may have a width other than `hidden_size / num_attention_heads`.
fn has_head_dim(target: &Target) -> bool {
    target.decoder.head_dim != HeadDim::AlwaysShare
}

/// The reasons why a model's MLPs cannot be experts beside the base.
pub(super) fn of_expert(base: &Dense, expert: &Dense, label: &str) -> Vec<Misfit> {
    let mut found = Vec::new();
    if expert.mlp_bias {
        found.push(misfit(
            format!("`{label}` has biases in its MLP (`mlp_bias`), which no expert has"),
            Some("the layouts of experts have no place for them: leave this model out".to_owned()),
        ));
    }
    let sizes = [
        ("hidden_size", base.hidden, expert.hidden),
        ("intermediate_size", base.width, expert.width),
        ("num_hidden_layers", base.layers, expert.layers),
    ];
    for (field, expected, value) in sizes {
        if expected != value {
            found.push(misfit(
                format!("the expert `{label}` has `{field}` {value}, expected {expected} as the base has"),
                Some("experts are fine-tunes of one base".to_owned()),
            ));
        }
    }
    if base.activation != expert.activation {
        found.push(misfit(
            format!(
                "the expert `{label}` has `hidden_act` `{}`, expected `{}` as the base has",
                expert.activation, base.activation
            ),
            Some("all experts have one activation".to_owned()),
        ));
    }
    found
}

/// Properties that the expert was trained with and the assembly does not have. It runs, but computes something else.
pub(super) fn of_surroundings(base: &Dense, expert: &Dense, label: &str) -> Vec<Misfit> {
    let mut found = Vec::new();
    if base.rope != expert.rope {
        found.push(misfit(
            format!(
                "the expert `{label}` was trained with other rotary positions (`rope_theta` {} and {} in the base, \
                 scaling `{}` and `{}`)",
                expert.rope.theta,
                base.rope.theta,
                expert.rope.kind(),
                base.rope.kind()
            ),
            Some("its MLPs will see states that they were not trained on".to_owned()),
        ));
    }
    if base.window != expert.window {
        found.push(misfit(
            format!("the expert `{label}` was trained with another `sliding_window` than the base"),
            Some("its MLPs will see states that they were not trained on".to_owned()),
        ));
    }
    if (base.qkv_bias, base.o_bias, base.qk_norm)
        != (expert.qkv_bias, expert.o_bias, expert.qk_norm)
    {
        found.push(misfit(
            format!("the attention of the expert `{label}` is built otherwise than the base's (biases, norms of q and k)"),
            Some("experts are fine-tunes of one base".to_owned()),
        ));
    }
    found
}
