//! What there is to be said of finished rows: layers whose experts a token can hardly be told apart by.

use nalgebra::DMatrix;

use super::rows::Rows;

/// The condition number above which a layer's rows are called nearly dependent; mergekit's.
const CONDITION: f64 = 5.0;

/// The cosine above which two experts' rows are called nearly the same.
const COINCIDE: f64 = 0.98;

/// Pairs of experts that are named; more are counted.
const PAIRS: usize = 3;

/// Notes on the rows of all layers, whose routers have these names.
pub(super) fn notes(layers: &[Rows], names: &[String], experts: usize) -> Vec<String> {
    let conditions: Vec<f64> = layers.iter().map(condition).collect();
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
        notes.push(format!(
            "the rows of {bad} of {} routers are nearly dependent: the condition number of `{}` is {number}; more \
             different prompts, or `router: {{center: true}}`, tell experts apart better",
            layers.len(),
            names[worst]
        ));
    }
    let mut pairs = Vec::new();
    for a in 0..experts {
        for b in a + 1..experts {
            let alike = |rows: &&Rows| rows.cosine(a, b).is_some_and(|cosine| cosine > COINCIDE);
            let count = layers.iter().filter(alike).count();
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
    notes
}

/// The largest singular value of the rows over the smallest.
fn condition(rows: &Rows) -> f64 {
    let count = rows.values.len() / rows.hidden;
    let gram = DMatrix::from_fn(count, count, |a, b| {
        let (a, b) = (rows.row(a), rows.row(b));
        a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>()
    });
    let values = gram.symmetric_eigenvalues();
    let (least, most) = (values.min(), values.max());
    match least > most * f64::EPSILON {
        true => (most / least).sqrt(),
        false => f64::INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(values: &[f64], hidden: usize) -> Rows {
        Rows {
            values: values.into(),
            hidden,
        }
    }

    #[test]
    fn the_condition_number_is_that_of_the_matrix() {
        assert_eq!(condition(&rows(&[1.0, 0.0, 0.0, 1.0], 2)), 1.0);
        assert!((condition(&rows(&[3.0, 0.0, 0.0, 0.0, 0.5, 0.0], 3)) - 6.0).abs() < 1e-12);
        assert_eq!(condition(&rows(&[1.0, 2.0, 1.0, 2.0], 2)), f64::INFINITY);
    }

    #[test]
    fn experts_that_are_alike_are_named() {
        let names = ["a".to_owned(), "b".to_owned()];
        let apart = rows(&[1.0, 0.0, 0.0, 1.0], 2);
        let alike = rows(&[1.0, 0.0, 0.999, 0.01], 2);
        assert!(notes(&[apart.clone(), apart.clone()], &names, 2).is_empty());
        let found = notes(&[apart, alike], &names, 2);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].contains("1 of 2 routers") && found[0].contains("`b`"),
            "{found:?}"
        );
        assert!(found[1].contains("experts 0 and 1"), "{found:?}");
    }
}
