//! The mixtures that can be written: families with everything that an assembly needs.

use architecture::{Decoder, Family, Mixture, Names, Written};

/// A family of mixtures that can be written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    /// The `model_type` in configs.
    pub(super) model_type: &'static str,
    /// The class of transformers that loads it.
    pub(super) class: &'static str,
    pub(super) decoder: &'static Decoder,
    pub(super) mixture: &'static Mixture,
    pub(super) written: &'static Written,
}

impl Target {
    /// All targets.
    pub(super) fn all() -> impl Iterator<Item = Target> {
        Family::all().filter_map(|family| {
            let decoder = family.decoder.as_ref()?;
            let mixture = decoder.mixture.as_ref()?;
            Some(Target {
                model_type: family.name(),
                class: family.class,
                decoder,
                mixture,
                written: mixture.written.as_ref()?,
            })
        })
    }

    /// Whether the target can hold a dense family exactly.
    pub(super) fn holds(&self, family: &str) -> bool {
        self.written.holds.contains(&family)
    }

    /// The tensor names on the Hub, or the ones that transformers 5 uses in memory.
    pub(super) fn names(&self, held: bool) -> Names {
        self.mixture.names(held)
    }

    /// The targets that `architecture:` may mean: a model type, or the beginning of mergekit's title or of a class.
    pub(super) fn named(word: &str) -> Vec<Target> {
        let word = word.to_lowercase();
        let exact = |target: &Target| {
            target.model_type == word || target.written.title.to_lowercase() == word
        };
        if let Some(target) = Target::all().find(exact) {
            return vec![target];
        }
        let begins = |text: &str| text.to_lowercase().starts_with(&word);
        let meant = |target: &Target| begins(target.written.title) || begins(target.class);
        Target::all().filter(meant).collect()
    }

    /// The default target for a model, if the recipe names none: of those that hold its family, and a shared expert if
    /// one is asked for, the first that `is_exact` accepts, or the first.
    pub(super) fn by_default(
        family: &str,
        shared: bool,
        is_exact: impl Fn(&Target) -> bool,
    ) -> Option<Target> {
        let holds = |target: &Target| target.holds(family);
        let fits = |target: &Target| !shared || target.mixture.shared.is_some();
        let fitting = || Target::all().filter(|target| holds(target) && fits(target));
        fitting().find(is_exact).or_else(|| fitting().next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_by_its_type_and_by_its_title() {
        assert_eq!(Target::all().count(), 10);
        for target in Target::all() {
            for word in [target.model_type, target.written.title] {
                let named = Target::named(word);
                assert_eq!(named.len(), 1, "{word}");
                assert_eq!(named[0].model_type, target.model_type);
            }
        }
    }
}
