//! Notes on finished rows: which layers can hardly tell their experts apart.

use super::Recipe;
use super::rows::Rows;
use matrix::{Eigen, Matrix, MatrixError};
use numeric::{NoMemory, dot};

/// A layer is reported if its rows have a larger condition number; the threshold is mergekit's.
const CONDITION: f64 = 5.0;

/// Two experts are reported if their rows have a larger cosine.
const COINCIDE: f64 = 0.98;

/// The number of pairs of experts that are named; the others are only counted.
const PAIRS: usize = 3;

/// Notes on the rows of all layers.
///
/// # Errors
/// If there is no memory for the inner products of a layer's rows, or if they hold NaN or infinity.
pub(super) fn notes(layers: &[Rows], recipe: &Recipe) -> Result<Vec<String>, MatrixError> {
    let (names, experts) = (&recipe.names, recipe.experts);
    // Centred rows sum to zero, so their rank is one less.
    let spare = usize::from(recipe.center);
    let grams = layers.iter().map(gram);
    let grams = grams.collect::<Result<Vec<Matrix<f64>>, NoMemory>>()?;
    let conditions = grams.iter().map(|gram| condition(gram, spare));
    let conditions = conditions.collect::<Result<Vec<f64>, MatrixError>>()?;
    let worst = (0..layers.len()).max_by(|a, b| conditions[*a].total_cmp(&conditions[*b]));
    let bad = conditions
        .iter()
        .filter(|number| **number > CONDITION)
        .count();
    let mut notes = Vec::new();
    if let (Some(worst), true) = (worst, bad > 0) {
        let number = match conditions[worst] {
            number if number < 1e6 => format!("{number:.1}"),
            _ => "over a million".to_owned(),
        };
        let hint = match recipe.mode.needs_prompts() {
            true if !recipe.center => {
                "; more different prompts, or `router: {center: true}`, tell experts apart better"
            }
            true => "; more different prompts tell experts apart better",
            false => "",
        };
        notes.push(format!(
            "the rows of {bad} of {} routers are nearly dependent: the condition number of `{}` is {number}{hint}",
            layers.len(),
            names[worst]
        ));
    }
    let mut pairs = Vec::new();
    for a in 0..experts {
        for b in a + 1..experts {
            // A row of length zero has no direction.
            let alike = |gram: &&Matrix<f64>| {
                gram.at(a, b) > COINCIDE * (gram.at(a, a) * gram.at(b, b)).sqrt()
            };
            let count = grams.iter().filter(alike).count();
            if count > 0 {
                pairs.push((count, a, b));
            }
        }
    }
    pairs.sort_by_key(|(count, ..)| std::cmp::Reverse(*count));
    for (count, a, b) in pairs.iter().take(PAIRS) {
        notes.push(format!(
            "the rows of experts {a} and {b} nearly coincide in {count} of {} routers (cosine above {COINCIDE})",
            layers.len()
        ));
    }
    if pairs.len() > PAIRS {
        notes.push(format!("so do those of {} more pairs", pairs.len() - PAIRS));
    }
    Ok(notes)
}

/// The inner products of the rows of a layer.
fn gram(rows: &Rows) -> Result<Matrix<f64>, NoMemory> {
    let count = rows.values.len() / rows.hidden;
    Matrix::from_fn(count, count, |a, b| dot(rows.row(a), rows.row(b)))
}

/// The condition number of rows, from their inner products: the largest singular value over the smallest one, without
/// the `spare` smallest.
fn condition(gram: &Matrix<f64>, spare: usize) -> Result<f64, MatrixError> {
    let values = Eigen::new(gram.clone())?.values;
    Ok(match (values.first(), values.iter().nth_back(spare)) {
        // Too few rows to depend on each other.
        (None, _) | (_, None) => 1.0,
        (Some(most), Some(least)) if *least > most * f64::EPSILON => (most / least).sqrt(),
        _ => f64::INFINITY,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use recipe::{GateMode, PromptTokens};

    fn rows(values: &[f64], hidden: usize) -> Rows {
        Rows {
            values: values.into(),
            hidden,
        }
    }

    fn recipe(center: bool) -> Recipe {
        Recipe {
            mode: GateMode::Hidden,
            names: vec!["a".to_owned(), "b".to_owned()],
            hidden: 2,
            experts: 2,
            parts: 1,
            shared_gate: false,
            seed: 0,
            center,
            normalize: true,
            temperature: 1.0,
            file: None,
            layers: vec![0, 1],
            prompts: Vec::new(),
            tokens: PromptTokens::Last,
            model: None,
            most_tokens: 1,
            changes: None,
            beside: None,
            splits: None,
        }
    }

    fn condition_of(values: &[f64], hidden: usize, spare: usize) -> f64 {
        condition(&gram(&rows(values, hidden)).unwrap(), spare).unwrap()
    }

    #[test]
    fn the_condition_number_is_that_of_the_matrix() {
        assert_eq!(condition_of(&[1.0, 0.0, 0.0, 1.0], 2, 0), 1.0);
        assert!((condition_of(&[3.0, 0.0, 0.0, 0.0, 0.5, 0.0], 3, 0) - 6.0).abs() < 1e-12);
        assert_eq!(condition_of(&[1.0, 2.0, 1.0, 2.0], 2, 0), f64::INFINITY);
        assert_eq!(condition_of(&[1.0, 2.0, -1.0, -2.0], 2, 1), 1.0);
    }

    #[test]
    fn experts_that_are_alike_are_named() {
        let apart = rows(&[1.0, 0.0, 0.0, 1.0], 2);
        let alike = rows(&[1.0, 0.0, 0.999, 0.01], 2);
        assert!(
            notes(&[apart.clone(), apart.clone()], &recipe(false))
                .unwrap()
                .is_empty()
        );
        let found = notes(&[apart, alike], &recipe(false)).unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].contains("1 of 2 routers") && found[0].contains("`b`"),
            "{found:?}"
        );
        assert!(found[1].contains("experts 0 and 1"), "{found:?}");
        let opposite = rows(&[1.0, 0.0, -1.0, 0.0], 2);
        assert!(
            notes(&[opposite.clone(), opposite], &recipe(true))
                .unwrap()
                .is_empty()
        );
    }
}
