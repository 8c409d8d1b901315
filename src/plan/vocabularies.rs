//! Refuses models whose token ids mean different things.

use super::models::Models;
use super::problems::Problems;
use architecture::is_input_embedding;
use checkpoint::{VocabularyComparison, compare_vocabularies, vocabulary_end};

/// The share of ids that may mean a different token before models count as having different vocabularies.
///
/// Fine-tunes rename reserved tokens (Llama 3 reserves 250 of 128,256); unrelated vocabularies differ in nearly every
/// id.
const RENAMED: f64 = 0.01;

/// Compares each merged model's vocabulary with the donor's.
pub fn check(models: &Models, notes: &mut Vec<String>, problems: &mut Problems) {
    let donor = models.donor();
    let rows = donor
        .config()
        .and_then(|config| config.vocab_size())
        .unwrap_or(0);
    note_beyond(models, notes);
    for (model, checkpoint) in models.checkpoints.iter().enumerate() {
        if model == models.donor {
            continue;
        }
        let (ours, theirs) = (donor.label(), checkpoint.label());
        match compare_vocabularies(donor, checkpoint) {
            Err(error) => problems.add_error(models.at[model], &error),
            Ok(VocabularyComparison::Same | VocabularyComparison::Unknown) => {}
            Ok(VocabularyComparison::Compatible { only_a, only_b }) => notes.push(format!(
                "the tokenizers of `{ours}` and `{theirs}` differ: {only_a} ids only in the first, {only_b} only in \
                 the second; the output has the tokenizer of `{}`",
                models.label(models.donor)
            )),
            Ok(VocabularyComparison::Conflict { differing, examples }) => {
                let examples: Vec<String> =
                    examples.iter().map(|(id, a, b)| format!("{id} is \"{a}\" in one and \"{b}\" in the other")).collect();
                let examples = examples.join(", ");
                if differing as f64 <= RENAMED * rows as f64 {
                    notes.push(format!(
                        "`{ours}` and `{theirs}` give {differing} token ids different meanings: {examples}; few \
                         enough to be renamed reserved tokens"
                    ));
                } else {
                    problems.add(
                        models.at[model],
                        format!(
                            "the vocabularies of `{ours}` and `{theirs}` differ: {differing} token ids do not mean \
                             the same token: {examples}"
                        ),
                        Some(different_vocabularies()),
                    );
                }
            }
        }
    }
}

/// Notes that the output's vocabulary has more ids than its embedding has rows. Of a `tokenizer.json`, `weld check` says
/// it, and so what looks at an output before it is done.
fn note_beyond(models: &Models, notes: &mut Vec<String>) {
    let donor = models.donor();
    let embeddings = donor
        .tensors()
        .iter()
        .filter(|tensor| is_input_embedding(&tensor.name));
    let rows = embeddings.filter_map(|tensor| tensor.shape.first()).max();
    // What cannot be read is said where vocabularies are compared.
    if let (Some(rows), Ok(Some((file, end)))) = (rows, vocabulary_end(donor))
        && file != "tokenizer.json"
        && end > *rows as u64
    {
        notes.push(format!(
            "`{}` of `{}` has ids up to {}, and its embedding has {rows} rows: a text with one of the others crashes, or is \
             read wrong",
            file.escape_debug(),
            models.label(models.donor),
            end - 1
        ));
    }
}

/// What can be done about different vocabularies.
pub(super) fn different_vocabularies() -> String {
    "rows of an embedding can be merged only where the same id means the same token: add `tokenizer: {source: union}` \
     to the recipe, which aligns the rows by token (`source: base` keeps the base's tokens only), or leave this model \
     out"
        .to_owned()
}
