//! Runs of zeros in stored values: what is left where bytes never arrived.

use std::ops::Range;

use super::format::FloatType;

/// Runs of zeros of either sign in consecutive elements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ZeroRuns {
    elements: u64,
    /// Zeros at the beginning.
    leading: u64,
    /// Zeros at the end.
    trailing: u64,
    longest: Range<u64>,
}

/// The shortest run within a piece that is looked for.
const SHORTEST: u64 = 16;

impl ZeroRuns {
    /// The runs in little-endian elements, of which `zeros` are zero. Runs of fewer than 16 elements may be passed over
    /// unless they lie at an end.
    pub fn count(format: FloatType, bytes: &[u8], zeros: u64) -> Self {
        match format.size() {
            8 => runs::<8>(bytes, zeros),
            4 => runs::<4>(bytes, zeros),
            2 => runs::<2>(bytes, zeros),
            _ => runs::<1>(bytes, zeros),
        }
    }

    /// Adds the elements that follow.
    pub fn append(&mut self, next: &Self) {
        let joined = self.elements - self.trailing..self.elements + next.leading;
        let later = next.longest.start + self.elements..next.longest.end + self.elements;
        for run in [joined, later] {
            if run.end - run.start > self.longest.end - self.longest.start {
                self.longest = run;
            }
        }
        if self.leading == self.elements {
            self.leading += next.leading;
        }
        self.trailing = match next.trailing == next.elements {
            true => self.trailing + next.trailing,
            false => next.trailing,
        };
        self.elements += next.elements;
    }

    /// The elements of the longest run, the first of them if there are several.
    pub fn longest(&self) -> Range<u64> {
        self.longest.clone()
    }
}

fn runs<const SIZE: usize>(bytes: &[u8], zeros: u64) -> ZeroRuns {
    let elements = bytes.as_chunks::<SIZE>().0;
    let count = |zeros: usize| zeros as u64;
    let leading = count(elements.iter().take_while(|raw| is_zero(raw)).count());
    let trailing = count(elements.iter().rev().take_while(|raw| is_zero(raw)).count());
    let all = count(elements.len());
    let mut longest = match trailing > leading {
        true => all - trailing..all,
        false => 0..leading,
    };
    // All zeros lie at the ends, or too few are left for a run.
    if zeros > leading.max(trailing) + SHORTEST {
        let mut start = 0;
        for (at, raw) in (0..).zip(elements) {
            if !is_zero(raw) {
                start = at + 1;
            } else if at + 1 - start > longest.end - longest.start {
                longest = start..at + 1;
            }
        }
    }
    ZeroRuns {
        elements: all,
        leading,
        trailing,
        longest,
    }
}

/// Whether all little-endian elements, of so many bytes each, are zeros of either sign.
pub fn all_zero(bytes: &[u8], size: usize) -> bool {
    let zero = |element: &[u8]| match element.split_last() {
        Some((sign, rest)) => sign & 0x7f == 0 && rest.iter().all(|&byte| byte == 0),
        None => true,
    };
    bytes.chunks(size.max(1)).all(zero)
}

/// Whether an element is a zero of either sign.
#[inline(always)]
fn is_zero<const SIZE: usize>(raw: &[u8; SIZE]) -> bool {
    let [rest @ .., sign] = raw.as_slice() else {
        return true;
    };
    sign & 0x7f == 0 && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The slow twin: all runs, one after the other.
    fn longest(values: &[f64]) -> Range<u64> {
        let mut best = 0..0;
        let mut start = 0;
        for (at, value) in (0..).zip(values) {
            if *value != 0.0 {
                start = at + 1;
            } else if at + 1 - start > best.end - best.start {
                best = start..at + 1;
            }
        }
        best
    }

    proptest! {
        #[test]
        fn pieces_give_the_longest_run_of_the_whole(
            runs in prop::collection::vec((any::<bool>(), 1usize..200), 1..8),
            cuts in prop::collection::vec(0usize..1200, 0..4),
            format in prop::sample::select(vec![FloatType::F64, FloatType::F32, FloatType::Bf16, FloatType::F8E4m3]),
        ) {
            let values: Vec<f64> = runs.iter().enumerate()
                .flat_map(|(at, (zero, len))| vec![match zero { true if at % 2 == 0 => -0.0, true => 0.0, false => 1.0 }; *len])
                .collect();
            let mut bytes = vec![0; values.len() * format.size()];
            format.encode(&mut values.clone(), false, &mut bytes);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(values.len())).collect();
            cuts.extend([0, values.len()]);
            cuts.sort_unstable();
            let mut whole = ZeroRuns::default();
            for pair in cuts.windows(2) {
                let zeros = values[pair[0]..pair[1]].iter().filter(|value| **value == 0.0).count();
                let piece = &bytes[pair[0] * format.size()..pair[1] * format.size()];
                whole.append(&ZeroRuns::count(format, piece, zeros as u64));
            }
            let (found, expected) = (whole.longest(), longest(&values));
            // Short runs may be passed over.
            if expected.end - expected.start > 2 * SHORTEST {
                prop_assert_eq!(found, expected);
            } else {
                prop_assert!(found.end - found.start <= expected.end - expected.start);
            }
        }
    }
}
