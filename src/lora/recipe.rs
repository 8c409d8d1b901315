//! What `weld extract-lora` is asked for, as the lock of its adapter keeps it.

use checkpoint::{Checkpoint, ModelRef};
use errors::Refusal;
use numeric::FloatType;
use run::{AdapterOrigin, LockedOptions};
use serde::{Deserialize, Serialize};

use super::patterns::Patterns;
use super::request::{Rank, Request};

/// PEFT has no higher rank than a matrix has sides.
const MOST_RANK: usize = 1 << 20;

/// What is extracted from which models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtractionRecipe {
    /// The base, by its name.
    pub base: String,
    /// The fine-tune.
    pub finetune: String,
    /// The rank of each matrix; or `energy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// The share of each matrix's change to keep, in squares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<f64>,
    /// The highest rank that `energy` may give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rank: Option<usize>,
    /// Patterns of the only modules that are adapted; all linear layers if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<String>,
    /// Patterns of modules that stay out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Patterns of modules that are saved whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub save: Vec<String>,
    /// The format of the factors: `float32`, `bfloat16` or `float16`.
    pub dtype: String,
}

impl ExtractionRecipe {
    /// Reads it from the text of a lock.
    ///
    /// # Errors
    /// The text is not JSON, or not such a recipe.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        serde_json::from_str(text).map_err(|error| {
            Refusal::new(format!(
                "the recipe of the lock is not one of extract-lora: {error}"
            ))
        })
    }

    /// Its text.
    pub fn text(&self) -> String {
        // Strings, numbers and lists of strings can always be written as JSON.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// The base and the fine-tune.
    ///
    /// # Errors
    /// A name cannot be one of a model.
    pub fn models(&self) -> Result<[ModelRef; 2], Refusal> {
        let parsed = |name: &str| {
            ModelRef::parse(name)
                .map_err(|why| Refusal::new(format!("`{}`: {why}", name.escape_debug())))
        };
        Ok([parsed(&self.base)?, parsed(&self.finetune)?])
    }

    /// What is to be extracted from the two models.
    ///
    /// # Errors
    /// A pattern is none, or a number is out of its range.
    pub fn request<'a>(
        &'a self,
        base: &'a Checkpoint,
        tuned: &'a Checkpoint,
        threads: usize,
    ) -> Result<Request<'a>, Refusal> {
        let patterns = |texts: &[String]| Patterns::parse(texts).map_err(Refusal::new);
        Ok(Request {
            base,
            tuned,
            base_name: &self.base,
            rank: self.size()?,
            only: patterns(&self.modules)?,
            except: patterns(&self.exclude)?,
            save: patterns(&self.save)?,
            format: self.format()?,
            threads,
            also_reads: Vec::new(),
        })
    }

    /// What the adapter's lock and card say.
    pub fn origin<'a>(
        &self,
        base: &'a Checkpoint,
        tuned: &'a Checkpoint,
        threads: usize,
    ) -> AdapterOrigin<'a> {
        AdapterOrigin {
            command: "extract-lora",
            recipe: self.text(),
            options: LockedOptions::default(),
            seed: None,
            models: vec![base, tuned],
            made: format!(
                "A LoRA adapter: what a fine-tune changed in its base, extracted with Weldment {}.",
                env!("CARGO_PKG_VERSION")
            ),
            hash_inputs: false,
            threads,
        }
    }

    fn size(&self) -> Result<Rank, Refusal> {
        let is_rank = |rank: &usize| (1..=MOST_RANK).contains(rank);
        let is_share = |share: &f64| *share > 0.0 && *share <= 1.0;
        match (self.rank, self.energy, self.max_rank) {
            (Some(rank), None, None) if is_rank(&rank) => Ok(Rank::Fixed(rank)),
            (None, Some(share), most) if is_share(&share) && most.iter().all(is_rank) => {
                Ok(Rank::Energy { share, most })
            }
            _ => Err(Refusal::new(format!(
                "expected a rank from 1 to {MOST_RANK}, or an energy above 0 and up to 1, found rank {:?}, energy {:?}, \
                 max_rank {:?}",
                self.rank, self.energy, self.max_rank
            ))),
        }
    }

    fn format(&self) -> Result<FloatType, Refusal> {
        match self.dtype.as_str() {
            "float32" => Ok(FloatType::F32),
            "bfloat16" => Ok(FloatType::Bf16),
            "float16" => Ok(FloatType::F16),
            other => Err(Refusal::new(format!(
                "expected the dtype float32, bfloat16 or float16, found `{}`",
                other.escape_debug()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> ExtractionRecipe {
        ExtractionRecipe {
            base: "base".to_owned(),
            finetune: "tuned".to_owned(),
            rank: Some(8),
            energy: None,
            max_rank: None,
            modules: vec!["q_proj".to_owned()],
            exclude: Vec::new(),
            save: Vec::new(),
            dtype: "float32".to_owned(),
        }
    }

    #[test]
    fn a_recipe_is_read_as_it_was_written() {
        for recipe in [
            recipe(),
            ExtractionRecipe {
                rank: None,
                energy: Some(0.99),
                max_rank: Some(64),
                ..recipe()
            },
        ] {
            assert_eq!(ExtractionRecipe::parse(&recipe.text()).unwrap(), recipe);
            recipe.size().unwrap();
        }
    }

    #[test]
    fn numbers_that_no_command_line_takes_are_refused() {
        type Sizes = (Option<usize>, Option<f64>, Option<usize>);
        let bad: [Sizes; 6] = [
            (None, None, None),
            (Some(0), None, None),
            (Some(usize::MAX), None, None),
            (Some(4), Some(0.5), None),
            (None, Some(1.5), None),
            (None, Some(0.5), Some(0)),
        ];
        for (rank, energy, max_rank) in bad {
            let recipe = ExtractionRecipe {
                rank,
                energy,
                max_rank,
                ..recipe()
            };
            let refused = recipe.size().unwrap_err().to_string();
            assert!(refused.contains("expected a rank"), "{refused}");
        }
        let other = ExtractionRecipe {
            dtype: "int8".to_owned(),
            ..recipe()
        };
        assert!(other.format().unwrap_err().to_string().contains("`int8`"));
    }
}
