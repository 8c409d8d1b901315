//! "did you mean": the known name most similar to an unknown one.

use super::problem::listed;

/// Longer names get no suggestion: computing the distance costs the product of the lengths.
const MAX_NAME_BYTES: usize = 64;

/// The most names that a hint lists in full.
const MAX_LISTED: usize = 20;

/// The most similar of the known names, if at most a third of the letters differ.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if MAX_NAME_BYTES < name.len() {
        return None;
    }
    let name = name.to_lowercase();
    known
        .into_iter()
        .map(|candidate| {
            let distance = strsim::damerau_levenshtein(&name, &candidate.to_lowercase());
            (distance, candidate)
        })
        .filter(|(distance, candidate)| *distance <= name.len().max(candidate.len()).max(3) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// A hint for an unknown name: the most similar known one, and the whole list if it is short. `whose` precedes the
/// list: "the parameters of `ties` are".
pub(super) fn suggestion(name: &str, whose: &str, known: &[&str]) -> Option<String> {
    let near = nearest(name, known.iter().copied()).map(|near| format!("did you mean `{near}`?"));
    let all = (!known.is_empty() && known.len() <= MAX_LISTED)
        .then(|| format!("{whose} {}", listed(known.iter().copied())));
    match (near, all) {
        (Some(near), Some(all)) => Some(format!("{near} {all}")),
        (near, all) => near.or(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let known = ["weight", "density", "normalize", "t"];
        let check = |name: &str, expected: Option<&str>| {
            assert_eq!(nearest(name, known), expected, "{name}");
        };
        check("wieght", Some("weight"));
        check("WEIGHTS", Some("weight"));
        check("normalise", Some("normalize"));
        check("denisty", Some("density"));
        check("gamma", None);
        check("", Some("t"));
        check(&"weight".repeat(100), None);
    }
}
