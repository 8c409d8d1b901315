//! Names of modules, and patterns of them.

use checkpoint::Glob;

/// Patterns, of which each stands for the modules that it matches.
#[derive(Debug, Clone, Default)]
pub struct Patterns(Vec<Glob>);

impl Patterns {
    /// Reads globs, where `*` stands for any characters.
    ///
    /// # Errors
    /// If one is no glob; says which, and why.
    pub fn parse<'t>(texts: impl IntoIterator<Item = &'t String>) -> Result<Self, String> {
        let pattern = |text: &String| {
            Glob::parse(text).map_err(|why| format!("`{text}` is no pattern: {why}"))
        };
        texts
            .into_iter()
            .map(pattern)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one matches a module: its whole name, or what follows one of its dots, as PEFT's `target_modules` do.
    pub(super) fn matches(&self, module: &str) -> bool {
        self.0.iter().any(|pattern| is_module(pattern, module))
    }

    /// The first that matches none of these modules.
    pub(super) fn unused<'m>(
        &self,
        modules: impl Iterator<Item = &'m str> + Clone,
    ) -> Option<&str> {
        let is_unused = |pattern: &&Glob| !modules.clone().any(|module| is_module(pattern, module));
        self.0.iter().find(is_unused).map(Glob::text)
    }
}

/// Whether a pattern stands for a module's whole name, or for what follows one of its dots.
fn is_module(pattern: &Glob, module: &str) -> bool {
    let ends = module.match_indices('.').map(|(dot, _)| &module[dot + 1..]);
    std::iter::once(module)
        .chain(ends)
        .any(|end| pattern.is_match(end))
}

/// The module of a tensor.
pub(super) fn module_of(tensor: &str) -> &str {
    tensor.rsplit_once('.').map_or("", |(module, _)| module)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_name_its_end_or_a_glob() {
        let patterns = |text: &str| Patterns::parse([&text.to_owned()]).unwrap();
        let q = "model.layers.10.self_attn.q_proj";
        for (pattern, expected) in [
            ("q_proj", true),
            ("self_attn.q_proj", true),
            (q, true),
            ("*.layers.1?.*", true),
            ("layers.1.*", false),
            ("proj", false),
            ("{k,q}_proj", true),
        ] {
            assert_eq!(patterns(pattern).matches(q), expected, "{pattern}");
        }
        assert_eq!(patterns("v").unused([q].into_iter()), Some("v"));
        assert_eq!(patterns("q_proj").unused([q].into_iter()), None);
        assert!(
            Patterns::parse([&"a[".to_owned()])
                .unwrap_err()
                .contains("`a[`")
        );
    }
}
