//! Cuts what is run into batches.

/// Cuts items into batches of at most `most` tokens; an item that has more is a batch of its own.
pub fn batches<T>(items: &[T], most: usize, tokens: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut batches = Vec::new();
    let (mut start, mut held) = (0, 0);
    for (at, item) in items.iter().enumerate() {
        let more = tokens(item);
        if at > start && held + more > most {
            batches.push(&items[start..at]);
            (start, held) = (at, 0);
        }
        held += more;
    }
    if start < items.len() {
        batches.push(&items[start..]);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_holds_what_fits_and_one_item_at_least() {
        let cut = |items: &[usize]| -> Vec<Vec<usize>> {
            let batches = batches(items, 5, |&tokens| tokens);
            batches.into_iter().map(<[usize]>::to_vec).collect()
        };
        assert_eq!(
            cut(&[2, 3, 1, 9, 4, 1]),
            [vec![2, 3], vec![1], vec![9], vec![4, 1]]
        );
        assert!(cut(&[]).is_empty());
    }
}
