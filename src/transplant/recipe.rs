//! What `weld transplant` is asked for, as the lock of its output keeps it.

use checkpoint::ModelRef;
use errors::Refusal;
use serde::{Deserialize, Serialize};

use super::rows::Method;

/// Which model gets whose vocabulary, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransplantRecipe {
    /// The model, by its name.
    pub model: String,
    /// The model whose vocabulary it gets.
    pub donor: String,
    /// How rows of tokens come about that the model does not have: `omp`, `subword`, `mean` or `zero`.
    pub method: String,
    /// With `omp`: how many shared tokens a row is a sum of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k: Option<u16>,
}

impl TransplantRecipe {
    pub(super) fn new(model: &ModelRef, donor: &ModelRef, method: Method) -> Self {
        let (name, k) = match method {
            Method::Pursuit(k) => ("omp", u16::try_from(k).ok()),
            Method::Subword => ("subword", None),
            Method::Mean => ("mean", None),
            Method::Zero => ("zero", None),
        };
        Self {
            model: model.text().to_owned(),
            donor: donor.text().to_owned(),
            method: name.to_owned(),
            k,
        }
    }

    /// Reads it from the text of a lock.
    ///
    /// # Errors
    /// The text is not JSON, or not such a recipe.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        serde_json::from_str(text).map_err(|error| {
            Refusal::new(format!(
                "the recipe of the lock is not one of transplant: {error}"
            ))
            .with_hint("run `weld transplant` once more: locks of weld before 30 November 2026 do not tell the method")
        })
    }

    /// Its text.
    pub(super) fn text(&self) -> String {
        // Strings and a number can always be written as JSON.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// The model and the donor.
    ///
    /// # Errors
    /// A name cannot be one of a model.
    pub fn models(&self) -> Result<[ModelRef; 2], Refusal> {
        let parsed = |name: &str| {
            ModelRef::parse(name)
                .map_err(|why| Refusal::new(format!("`{}`: {why}", name.escape_debug())))
        };
        Ok([parsed(&self.model)?, parsed(&self.donor)?])
    }

    /// How new rows come about.
    ///
    /// # Errors
    /// There is no such method.
    pub fn method(&self) -> Result<Method, Refusal> {
        match (self.method.as_str(), self.k) {
            ("omp", Some(k)) if k > 0 => Ok(Method::Pursuit(usize::from(k))),
            ("subword", None) => Ok(Method::Subword),
            ("mean", None) => Ok(Method::Mean),
            ("zero", None) => Ok(Method::Zero),
            (method, k) => Err(Refusal::new(format!(
                "expected omp with k from 1, subword, mean or zero, found `{}` with k {k:?}",
                method.escape_debug()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_is_read_as_it_was_written() {
        let names = ["model", "donor"].map(|name| ModelRef::parse(name).unwrap());
        for method in [
            Method::Pursuit(64),
            Method::Subword,
            Method::Mean,
            Method::Zero,
        ] {
            let recipe = TransplantRecipe::new(&names[0], &names[1], method);
            let again = TransplantRecipe::parse(&recipe.text()).unwrap();
            assert_eq!(again, recipe);
            assert_eq!(again.method().unwrap(), method);
        }
        for (method, k) in [
            ("omp", None),
            ("omp", Some(0)),
            ("mean", Some(3)),
            ("median", None),
        ] {
            let recipe = TransplantRecipe {
                method: method.to_owned(),
                k,
                ..TransplantRecipe::new(&names[0], &names[1], Method::Mean)
            };
            let refused = recipe.method().unwrap_err().to_string();
            assert!(refused.contains("expected omp"), "{refused}");
        }
    }
}
