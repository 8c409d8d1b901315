//! Finds the one prefix by which two checkpoints name the same tensors differently.
//!
//! `bert.encoder...` in one file is `encoder...` in another; composite models have moved `language_model.` around.

use std::collections::{BTreeMap, HashMap, HashSet};

use architecture::{is_input_embedding, is_number, is_output_head};
use architecture::{layer_lists, layer_stacks};

/// A prefix of one model's names that stands for another prefix in a second model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefixAlias {
    /// The prefix in the reference's names: whole components with their dot, or nothing.
    pub reference_prefix: String,
    /// The prefix in the other model's names.
    pub model_prefix: String,
}

impl PrefixAlias {
    /// The model's name for a tensor of the reference; none if the name lacks the prefix.
    ///
    /// A name that the model has unchanged needs no alias: look for that first.
    pub fn apply(&self, name: &str) -> Option<String> {
        let rest = name.strip_prefix(self.reference_prefix.as_str())?;
        (!rest.is_empty()).then(|| format!("{}{rest}", self.model_prefix))
    }
}

/// The most names with the same suffix that are considered as partners: real models have one or two.
const PARTNERS: usize = 4;

/// The most pairs of prefixes that are tried on all names.
const CANDIDATES: usize = 16;

/// Names and shapes.
type Shapes<'a> = HashMap<&'a str, &'a [usize]>;

/// The result of looking for a prefix that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AliasSearch {
    /// No prefix explains the missing names.
    Nothing,
    /// One prefix stands for another.
    Found(PrefixAlias),
    /// Names and shapes would match, but nothing shows that they mean the same: a head, or another single module.
    TooWeak(PrefixAlias),
}

/// Finds the alias that resolves most of the names which `reference` has and `other` lacks, if it is of a trunk.
///
/// Shapes must agree, and no name may already belong to another tensor of the reference. A trunk is a stack of layers,
/// or all missing names: a single module with another name, such as a head, may be a different module.
pub fn find_alias(reference: &[(&str, &[usize])], other: &[(&str, &[usize])]) -> AliasSearch {
    let in_reference: HashSet<&str> = reference.iter().map(|(name, _)| *name).collect();
    let in_other: HashSet<&str> = other.iter().map(|(name, _)| *name).collect();
    let mut missing: Vec<_> = reference
        .iter()
        .filter(|(name, _)| !in_other.contains(name))
        .collect();
    let extra: Vec<_> = other
        .iter()
        .filter(|(name, _)| !in_reference.contains(name))
        .collect();
    // Sorted, so that the first partners of a suffix do not depend on the order of a file.
    missing.sort();
    let shapes: Shapes = extra.iter().map(|(name, shape)| (*name, *shape)).collect();

    let partners = partners_by_suffix(shapes.keys().copied().collect());
    let mut votes: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (name, _) in &missing {
        for pair in candidates(name, &partners) {
            *votes.entry(pair).or_default() += 1;
        }
    }
    let mut pairs: Vec<((&str, &str), usize)> = votes.into_iter().collect();
    pairs.sort_by_key(|(pair, votes)| (std::cmp::Reverse(*votes), pair.0.len() + pair.1.len()));

    let (mut trunk, mut weak) = (None, None);
    for ((reference_prefix, model_prefix), _) in pairs.into_iter().take(CANDIDATES) {
        let alias = PrefixAlias {
            reference_prefix: reference_prefix.into(),
            model_prefix: model_prefix.into(),
        };
        let resolved = resolved(&alias, &missing, &shapes);
        let best = match is_trunk(&alias, &resolved, missing.len(), reference.len()) {
            true => &mut trunk,
            false => &mut weak,
        };
        if best.as_ref().is_none_or(|(most, _)| *most < resolved.len()) {
            *best = Some((resolved.len(), alias));
        }
    }
    match (trunk, weak) {
        (Some((_, alias)), _) => AliasSearch::Found(alias),
        (None, Some((1.., alias))) => AliasSearch::TooWeak(alias),
        (None, _) => AliasSearch::Nothing,
    }
}

/// Whether the names that an alias resolves are enough evidence for it.
fn is_trunk(alias: &PrefixAlias, resolved: &[&str], missing: usize, reference: usize) -> bool {
    if resolved.len() == reference && reference > 0 {
        return true;
    }
    // `encoder.` for `bert.encoder.` is one level of nesting more or less; `score.` for `head.` is another name.
    let nested = alias.reference_prefix.is_empty() || alias.model_prefix.is_empty();
    let stacked = !layer_lists(resolved.iter().copied()).is_empty()
        || resolved.len() * 2 > reference && !layer_stacks(resolved.iter().copied()).is_empty();
    if stacked {
        return true;
    }
    let modules: HashSet<&str> = resolved
        .iter()
        .map(|name| name.rsplit_once('.').map_or(*name, |(module, _)| module))
        .collect();
    let has_a_role = |name: &&str| is_output_head(name) || is_input_embedding(name);
    nested && resolved.len() == missing && (modules.len() > 1 || resolved.iter().all(has_a_role))
}

/// Groups names by their last parts; each group has at most as many names as are ever considered.
fn partners_by_suffix(mut names: Vec<&str>) -> HashMap<&str, Vec<&str>> {
    names.sort_unstable();
    let mut partners: HashMap<&str, Vec<&str>> = HashMap::new();
    for name in names {
        for (_, suffix) in prefix_cuts(name) {
            let partners = partners.entry(suffix).or_default();
            if partners.len() < PARTNERS {
                partners.push(name);
            }
        }
    }
    partners
}

/// The pairs of prefixes that would explain a name: those that leave the longest common suffix.
fn candidates<'a>(
    name: &'a str,
    partners: &HashMap<&str, Vec<&'a str>>,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    let longest = prefix_cuts(name).find_map(|(prefix, suffix)| {
        let partners = partners.get(suffix)?;
        Some((prefix, suffix, partners.clone()))
    });
    longest.into_iter().flat_map(|(prefix, suffix, partners)| {
        partners.into_iter().filter_map(move |partner| {
            let partner_prefix = &partner[..partner.len() - suffix.len()];
            let whole = prefix.is_empty() || partner_prefix.is_empty();
            (whole || suffix.contains('.')).then_some((prefix, partner_prefix))
        })
    })
}

/// Every way to split a name after whole components, none of them a number: the shortest prefix first.
fn prefix_cuts(name: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut next = Some(0);
    std::iter::from_fn(move || {
        let start = next?;
        let rest = &name[start..];
        next = rest
            .split_once('.')
            .filter(|(part, rest)| !is_number(part) && !rest.is_empty())
            .map(|(part, _)| start + part.len() + 1);
        Some((&name[..start], rest))
    })
}

/// The names for which the alias finds a tensor of the same shape.
fn resolved<'a>(
    alias: &PrefixAlias,
    missing: &[&(&'a str, &[usize])],
    extra: &Shapes,
) -> Vec<&'a str> {
    let resolves = |(name, shape): &&&(&str, &[usize])| {
        alias
            .apply(name)
            .is_some_and(|target| extra.get(target.as_str()) == Some(shape))
    };
    let found = missing.iter().filter(resolves);
    found.map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: &[usize] = &[2, 3];

    fn alias(reference: &[&str], other: &[&str]) -> Option<(String, String)> {
        let shaped = |names: &[&'static str]| -> Vec<(&str, &[usize])> {
            names.iter().map(|name| (*name, SHAPE)).collect()
        };
        let leak = |names: &[&str]| -> Vec<&'static str> {
            names.iter().map(|name| &*name.to_string().leak()).collect()
        };
        match find_alias(&shaped(&leak(reference)), &shaped(&leak(other))) {
            AliasSearch::Found(alias) => Some((alias.reference_prefix, alias.model_prefix)),
            AliasSearch::TooWeak(_) | AliasSearch::Nothing => None,
        }
    }

    #[test]
    fn prefixes_are_found() {
        let cases: [(&[&str], &[&str], &str, &str); 7] = [
            (
                &["model.layers.0.w", "model.norm.weight"],
                &["layers.0.w", "norm.weight"],
                "model.",
                "",
            ),
            (
                &["layers.0.w", "norm.weight"],
                &["model.layers.0.w", "model.norm.weight"],
                "",
                "model.",
            ),
            (
                &[
                    "language_model.model.layers.0.w",
                    "language_model.model.layers.1.w",
                    "language_model.lm_head.weight",
                ],
                &[
                    "model.language_model.layers.0.w",
                    "model.language_model.layers.1.w",
                    "lm_head.weight",
                ],
                "language_model.model.",
                "model.language_model.",
            ),
            (
                &[
                    "bert.encoder.layer.0.w",
                    "bert.pooler.dense.weight",
                    "cls.bias",
                ],
                &["encoder.layer.0.w", "pooler.dense.weight", "cls.bias"],
                "bert.",
                "",
            ),
            (
                &["lm_head.weight", "a.b"],
                &["model.lm_head.weight", "a.b"],
                "",
                "model.",
            ),
            (&["model.w"], &["w"], "model.", ""),
            (
                &["m.a.0.x.w", "m.a.1.x.w", "m.a.2.x.w", "x.b.0.w"],
                &["a.0.x.w", "a.1.x.w", "a.2.x.w", "b.0.w"],
                "m.",
                "",
            ),
        ];
        for (reference, other, reference_prefix, model_prefix) in cases {
            let expected = Some((reference_prefix.into(), model_prefix.into()));
            assert_eq!(alias(reference, other), expected, "{reference:?}");
        }
    }

    #[test]
    fn weak_evidence_is_none() {
        let cases: [(&[&str], &[&str]); 7] = [
            (&[], &[]),
            (&["a.w", "b.w"], &["a.w", "b.w"]),
            (&["lm_head.weight"], &["score.weight"]),
            (&["a.0.w", "b.0.w", "c.0.w"], &["m.a.0.w"]),
            (&["layers.0.w", "layers.1.w"], &["layers.2.w", "layers.3.w"]),
            (&["model.a", "model.b"], &["x", "y"]),
            // The alias would resolve to a tensor that the reference itself has.
            (&["model.a.w", "model.b.w", "a.w", "b.w"], &["a.w", "b.w"]),
        ];
        for (reference, other) in cases {
            assert_eq!(alias(reference, other), None, "{reference:?}");
        }
        let other_shape: &[usize] = &[3, 2];
        let reference = [("m.a.w", SHAPE), ("m.b.w", SHAPE)];
        assert_eq!(
            find_alias(&reference, &[("a.w", other_shape), ("b.w", other_shape)]),
            AliasSearch::Nothing
        );
    }

    /// The classifier of one model and the pooler of another have equal shapes, and nothing in common.
    #[test]
    fn a_module_of_another_name_is_another_module() {
        let cases: [(&[&str], &[&str]); 5] = [
            (
                &["t.x.w", "p.dense.w", "p.dense.b"],
                &["t.x.w", "q.dense.w", "q.dense.b"],
            ),
            (
                &[
                    "bert.layer.0.w",
                    "cls.predictions.transform.dense.w",
                    "cls.predictions.transform.dense.b",
                ],
                &[
                    "bert.layer.0.w",
                    "bert.pooler.dense.w",
                    "bert.pooler.dense.b",
                ],
            ),
            (
                &["t.x.w", "pooler.dense.w", "pooler.dense.b"],
                &["t.x.w", "dense.w", "dense.b"],
            ),
            (
                &["h.0.w", "score.0.w", "score.2.w"],
                &["h.0.w", "classifier.0.w", "classifier.2.w"],
            ),
            // The trunk is renamed; the head stays apart.
            (
                &["h.0.w", "h.1.w", "lm.dense.w", "lm.dense.b"],
                &["h.0.w", "h.1.w", "x.dense.w", "x.dense.b", "y.dense.w"],
            ),
        ];
        for (reference, other) in cases {
            assert_eq!(alias(reference, other), None, "{reference:?}");
        }
        let trunk = alias(
            &[
                "bert.layer.0.x.w",
                "bert.layer.1.x.w",
                "cls.dense.w",
                "cls.dense.b",
                "cls.norm.w",
            ],
            &[
                "layer.0.x.w",
                "layer.1.x.w",
                "pooler.dense.w",
                "pooler.dense.b",
                "pooler.norm.w",
            ],
        );
        assert_eq!(trunk, Some(("bert.".into(), String::new())));
        let weak = find_alias(
            &[("t.w", SHAPE), ("p.d.w", SHAPE)],
            &[("t.w", SHAPE), ("q.d.w", SHAPE)],
        );
        let expected = PrefixAlias {
            reference_prefix: "p.".into(),
            model_prefix: "q.".into(),
        };
        assert_eq!(weak, AliasSearch::TooWeak(expected));
    }

    #[test]
    fn an_alias_swaps_the_prefix() {
        let alias = PrefixAlias {
            reference_prefix: "bert.".into(),
            model_prefix: "x.y.".into(),
        };
        assert_eq!(alias.apply("bert.a.w").as_deref(), Some("x.y.a.w"));
        assert_eq!(alias.apply("a.w"), None);
        assert_eq!(alias.apply("bert."), None);
    }

    /// Quadratic work on these would take minutes.
    #[test]
    fn a_hundred_thousand_names_are_no_trouble() {
        let names =
            |make: &dyn Fn(usize) -> String| -> Vec<String> { (0..100_000).map(make).collect() };
        let pairs = [
            (
                names(&|i| format!("model.layers.{}.experts.{}.w", i / 256, i % 256)),
                names(&|i| format!("layers.{}.experts.{}.w", i / 256, i % 256)),
                true,
            ),
            (
                names(&|i| format!("a{i}.x.weight")),
                names(&|i| format!("b{i}.x.weight")),
                false,
            ),
        ];
        for (reference, other, found) in &pairs {
            let shaped = |names: &'static [String]| -> Vec<(&str, &[usize])> {
                names.iter().map(|name| (name.as_str(), SHAPE)).collect()
            };
            let reference = shaped(reference.clone().leak());
            let other = shaped(other.clone().leak());
            let alias = find_alias(&reference, &other);
            assert_eq!(matches!(alias, AliasSearch::Found(_)), *found);
        }
    }
}
