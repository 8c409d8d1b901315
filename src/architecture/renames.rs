//! Names of tensors that loaders translate: wrappers of training, and old spellings.

use std::collections::HashSet;

/// Parts that `torch.compile`, activation checkpointing and FSDP put into names.
const WRAPPERS: [&str; 3] = [
    "_orig_mod",
    "_checkpoint_wrapped_module",
    "_fsdp_wrapped_module",
];

/// What `DataParallel` puts before every name.
const PARALLEL: &str = "module.";

/// Old and new spellings of the same parameter, by the ends of names.
const SPELLINGS: [(&str, &str); 4] = [
    ("LayerNorm.gamma", "LayerNorm.weight"),
    ("LayerNorm.beta", "LayerNorm.bias"),
    (".weight_g", ".parametrizations.weight.original0"),
    (".weight_v", ".parametrizations.weight.original1"),
];

/// The names of a model without the wrappers of its training; as they are where two would be the same.
pub fn unwrapped<'n>(names: impl Iterator<Item = &'n str> + Clone) -> Vec<String> {
    let parallel = names.clone().all(|name| name.starts_with(PARALLEL));
    let unwrap = |name: &str| {
        let name = match parallel {
            true => &name[PARALLEL.len()..],
            false => name,
        };
        let parts = name.split('.').filter(|part| !WRAPPERS.contains(part));
        parts.collect::<Vec<&str>>().join(".")
    };
    let plain: Vec<String> = names.clone().map(unwrap).collect();
    let different: HashSet<&String> = plain.iter().collect();
    match different.len() == plain.len() && !plain.iter().any(String::is_empty) {
        true => plain,
        false => names.map(str::to_owned).collect(),
    }
}

/// The other spelling of a name, old or new; none if it has none.
pub fn other_spelling(name: &str) -> Option<String> {
    SPELLINGS.iter().find_map(|(old, new)| {
        let from = |end: &str, other: &str| Some(format!("{}{other}", name.strip_suffix(end)?));
        from(old, new).or_else(|| from(new, old))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_are_taken_off_and_spellings_known() {
        let of = |names: &[&str]| unwrapped(names.iter().copied());
        assert_eq!(
            of(&["_orig_mod.a.w", "_orig_mod.b._fsdp_wrapped_module.w"]),
            ["a.w", "b.w"]
        );
        assert_eq!(
            of(&["module.a.w", "module.b._checkpoint_wrapped_module.w"]),
            ["a.w", "b.w"]
        );
        assert_eq!(of(&["module.a.w", "b.w"]), ["module.a.w", "b.w"]);
        assert_eq!(of(&["a._orig_mod.w", "a.w"]), ["a._orig_mod.w", "a.w"]);
        assert_eq!(of(&["module."]), ["module."]);
        assert_eq!(of(&[]), [""; 0]);
        for (old, new) in [
            (
                "bert.embeddings.LayerNorm.gamma",
                "bert.embeddings.LayerNorm.weight",
            ),
            (
                "bert.embeddings.LayerNorm.beta",
                "bert.embeddings.LayerNorm.bias",
            ),
            ("conv.weight_g", "conv.parametrizations.weight.original0"),
            ("conv.weight_v", "conv.parametrizations.weight.original1"),
        ] {
            assert_eq!(other_spelling(old).as_deref(), Some(new));
            assert_eq!(other_spelling(new).as_deref(), Some(old));
        }
        assert_eq!(other_spelling("norm.weight"), None);
    }
}
