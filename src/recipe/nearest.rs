//! "did you mean": the known name most similar to an unknown one.

use super::problem::listed;
pub use checkpoint::nearest;

/// The most names that a hint lists in full.
const MAX_LISTED: usize = 24;

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
