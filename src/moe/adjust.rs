//! The program that changes the values of an assembly's tensors: `scale * (x + noise) + shift`, by segments.

use std::sync::Arc;

use crate::engine::{AnyProgram, Apply, Block, Cost, Measured, Pass, Program};
use crate::numeric::{NormalKey, Real};

/// What is done with a run of elements.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    /// How many elements.
    pub(super) elements: u64,
    pub(super) scale: f64,
    pub(super) shift: f64,
    /// Normal noise of this standard deviation, drawn by place in the segment.
    pub(super) noise: Option<(NormalKey, f64)>,
}

impl Segment {
    /// Elements as they are.
    pub(super) fn plain(elements: u64) -> Self {
        Segment {
            elements,
            scale: 1.0,
            shift: 0.0,
            noise: None,
        }
    }

    /// Whether it changes nothing.
    pub(super) fn is_plain(&self) -> bool {
        self.scale == 1.0 && self.shift == 0.0 && self.noise.is_none()
    }
}

/// Segments one after the other.
#[derive(Debug, Clone)]
pub(super) struct Adjust(pub(super) Arc<[Segment]>);

impl<R: Real> Program<R> for Adjust {
    fn next(&self, _measured: &[Measured]) -> Pass<R> {
        Pass::Apply(Box::new(self.clone()))
    }
}

impl AnyProgram for Adjust {
    fn cost(&self) -> Cost {
        Cost::default()
    }
}

impl<R: Real> Apply<R> for Adjust {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) {
        let Some(mut values) = block.sources.first().copied() else {
            return;
        };
        let mut out = out;
        let mut start = 0;
        let mut first = block.first;
        for segment in self.0.iter() {
            let end = start + segment.elements;
            let here = end.saturating_sub(first).min(out.len() as u64) as usize;
            let (of_segment, rest) = values.split_at(here);
            let (target, after) = out.split_at_mut(here);
            segment.apply(first.saturating_sub(start), of_segment, target);
            (values, out, first) = (rest, after, first + here as u64);
            start = end;
        }
    }
}

impl Segment {
    fn apply<R: Real>(&self, first: u64, values: &[R], out: &mut [R]) {
        let Segment {
            scale,
            shift,
            noise,
            ..
        } = *self;
        match noise {
            None => {
                for (out, value) in out.iter_mut().zip(values) {
                    *out = R::from_f64(scale * value.to_f64() + shift);
                }
            }
            Some((key, deviation)) => {
                for ((index, out), value) in (first..).zip(out).zip(values) {
                    let noisy = value.to_f64() + deviation * key.draw(index);
                    *out = R::from_f64(scale * noisy + shift);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cut_anywhere_give_the_same() {
        let key = NormalKey::new(1, "a", 0);
        let segment = |elements, scale, shift, noise| Segment {
            elements,
            scale,
            shift,
            noise,
        };
        let segments = [
            segment(3, 2.0, 0.0, None),
            segment(0, 5.0, 0.0, None),
            segment(4, 1.0, 1.0, Some((key, 0.5))),
            segment(2, 0.0, 0.0, None),
        ];
        let program = Adjust(segments.into());
        let values: Vec<f64> = (1..10).map(f64::from).collect();
        let expected: Vec<f64> = (0..9u64)
            .map(|index| match index {
                0..3 => 2.0 * values[index as usize],
                3..7 => values[index as usize] + 0.5 * key.draw(index - 3) + 1.0,
                _ => 0.0,
            })
            .collect();
        for first in 0..9 {
            for end in first..=9 {
                let mut out = vec![f64::NAN; end - first];
                let block = Block {
                    index: 0,
                    first: first as u64,
                    sources: &[&values[first..end]],
                };
                Apply::<f64>::block(&program, block, &mut out);
                assert_eq!(out, expected[first..end]);
            }
        }
    }
}
