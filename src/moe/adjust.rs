//! Changes the values of an assembly's tensors, segment by segment: `scale * (x + noise) + shift`. It can also redraw
//! neurons from the normal distribution of the values that they replace.

use std::ops::Range;
use std::sync::Arc;

use engine::{AnyProgram, Apply, Block, Cost, Measure, Measured, Pass, Program};
use numeric::{NoMemory, NormalKey, Real};

/// What is done to a run of elements.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    /// Number of elements.
    pub(super) elements: u64,
    pub(super) scale: f64,
    pub(super) shift: f64,
    /// Normal noise of this standard deviation; a draw is keyed by the element's place in the segment.
    pub(super) noise: Option<(NormalKey, f64)>,
    /// Elements that are redrawn first, before noise, scale and shift.
    pub(super) redraw: Option<Redraw>,
}

/// Rows or columns of a segment whose elements are replaced by normal draws. The draws have the mean and the standard
/// deviation of the elements that they replace: Drop-Upcycling (Nakamura et al. 2025).
#[derive(Debug, Clone)]
pub(super) struct Redraw {
    pub(super) key: NormalKey,
    /// True for each row or column that is replaced; at least one is.
    pub(super) which: Arc<[bool]>,
    /// Whether `which` counts rows; otherwise columns.
    pub(super) rows: bool,
    /// Elements per row.
    pub(super) columns: usize,
}

impl Redraw {
    /// Whether the element at this place in the segment is replaced.
    fn hits(&self, place: u64) -> bool {
        let columns = self.columns.max(1) as u64;
        let at = match self.rows {
            true => place / columns,
            false => place % columns,
        };
        self.which.get(at as usize).copied().unwrap_or(false)
    }

    /// How many of the segment's elements are replaced.
    fn count(&self, elements: u64) -> f64 {
        let hit = self.which.iter().filter(|hit| **hit).count() as f64;
        elements as f64 * hit / self.which.len().max(1) as f64
    }
}

impl Segment {
    /// A segment that changes nothing.
    pub(super) fn plain(elements: u64) -> Self {
        Segment {
            elements,
            scale: 1.0,
            shift: 0.0,
            noise: None,
            redraw: None,
        }
    }

    /// Whether the segment changes nothing.
    pub(super) fn is_plain(&self) -> bool {
        self.scale == 1.0 && self.shift == 0.0 && self.noise.is_none() && self.redraw.is_none()
    }
}

/// The segments of a tensor, in order.
#[derive(Debug, Clone)]
pub(super) struct Adjust(pub(super) Arc<[Segment]>);

impl Adjust {
    fn redraws(&self) -> usize {
        let redraws = self.0.iter().filter(|segment| segment.redraw.is_some());
        redraws.count()
    }

    /// Cuts a block into its overlap with each segment: the segment's number, the first element within the segment, and
    /// the range within the block.
    fn parts(&self, first: u64, length: usize) -> impl Iterator<Item = (usize, u64, Range<usize>)> {
        let end = first + length as u64;
        let mut start = 0;
        self.0
            .iter()
            .enumerate()
            .filter_map(move |(number, segment)| {
                let here = start.max(first)..(start + segment.elements).min(end);
                let inner = here.start - start;
                start += segment.elements;
                (here.start < here.end).then(|| {
                    let place = (here.start - first) as usize..(here.end - first) as usize;
                    (number, inner, place)
                })
            })
    }
}

impl<R: Real> Program<R> for Adjust {
    fn next(&self, measured: &[Measured]) -> Pass<R> {
        if self.redraws() == 0 {
            return Pass::Apply(Box::new(Adjusted(self.clone(), Vec::new())));
        }
        let Some(Measured { sums, .. }) = measured.first() else {
            return Pass::Measure(Box::new(self.clone()));
        };
        let mut sums = sums.chunks_exact(2);
        let moments = self.0.iter().map(|segment| {
            let redraw = segment.redraw.as_ref()?;
            let count = redraw.count(segment.elements);
            let [sum, squares] = *sums.next()? else {
                return None;
            };
            let mean = sum / count;
            let variance = (squares / count - mean * mean).max(0.0);
            Some((mean, variance.sqrt()))
        });
        Pass::Apply(Box::new(Adjusted(self.clone(), moments.collect())))
    }
}

impl AnyProgram for Adjust {
    fn cost(&self) -> Cost {
        let redraws = self.redraws();
        Cost {
            measures: redraws.min(1),
            sums: 2 * redraws,
            ..Cost::default()
        }
    }
}

/// Measures the sum and the sum of squares of the elements that each segment replaces.
impl<R: Real> Measure<R> for Adjust {
    fn sums(&self) -> usize {
        2 * self.redraws()
    }

    fn counts(&self) -> usize {
        0
    }

    fn block(
        &self,
        block: Block<'_, R>,
        sums: &mut [f64],
        _counts: &mut [u64],
    ) -> Result<(), NoMemory> {
        let Some(values) = block.sources.first() else {
            return Ok(());
        };
        for (number, inner, place) in self.parts(block.first, values.len()) {
            let Some(redraw) = &self.0[number].redraw else {
                continue;
            };
            let before = self.0[..number].iter();
            let at = 2 * before.filter(|segment| segment.redraw.is_some()).count();
            for (index, value) in (inner..).zip(&values[place]) {
                if redraw.hits(index) {
                    let value = value.to_f64();
                    sums[at] += value;
                    sums[at + 1] += value * value;
                }
            }
        }
        Ok(())
    }
}

/// The program with the mean and the standard deviation of the elements that each segment replaces.
struct Adjusted(Adjust, Vec<Option<(f64, f64)>>);

impl<R: Real> Apply<R> for Adjusted {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        let Some(values) = block.sources.first() else {
            return Ok(());
        };
        let Adjusted(adjust, moments) = self;
        for (number, inner, place) in adjust.parts(block.first, values.len()) {
            let moments = moments.get(number).copied().flatten();
            adjust.0[number].apply(inner, moments, &values[place.clone()], &mut out[place]);
        }
        Ok(())
    }
}

impl Segment {
    fn apply<R: Real>(&self, first: u64, moments: Option<(f64, f64)>, values: &[R], out: &mut [R]) {
        let Segment { scale, shift, .. } = *self;
        if self.noise.is_none() && self.redraw.is_none() {
            for (out, value) in out.iter_mut().zip(values) {
                *out = R::from_f64(scale * value.to_f64() + shift);
            }
            return;
        }
        for ((index, out), value) in (first..).zip(out).zip(values) {
            let mut value = value.to_f64();
            if let (Some(redraw), Some((mean, deviation))) = (&self.redraw, moments)
                && redraw.hits(index)
            {
                value = mean + deviation * redraw.key.draw(index);
            }
            if let Some((key, deviation)) = self.noise {
                value += deviation * key.draw(index);
            }
            *out = R::from_f64(scale * value + shift);
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
            redraw: None,
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
                    next: &[],
                    carried: None,
                };
                Apply::<f64>::block(&Adjusted(program.clone(), Vec::new()), block, &mut out)
                    .unwrap();
                assert_eq!(out, expected[first..end]);
            }
        }
    }

    #[test]
    fn what_is_drawn_anew_has_the_moments_of_what_it_replaces() {
        let key = NormalKey::new(1, "a", 0);
        let redraw = |rows, which: &[bool], columns| Redraw {
            key,
            which: which.into(),
            rows,
            columns,
        };
        // A plain segment, one whose second row of two is replaced, and one whose first column of two is replaced.
        let segments = [
            Segment::plain(3),
            Segment {
                scale: 2.0,
                redraw: Some(redraw(true, &[false, true], 500)),
                ..Segment::plain(1000)
            },
            Segment {
                redraw: Some(redraw(false, &[true, false], 2)),
                ..Segment::plain(1000)
            },
        ];
        let program = Adjust(segments.into());
        let values: Vec<f64> = (0..2003)
            .map(|at| f64::from(at % 7) + f64::from(at / 1003))
            .collect();
        // The blocks may be cut anywhere.
        let mut sums = vec![0.0; 4];
        for (number, block) in values.chunks(333).enumerate() {
            let block = Block {
                index: number,
                first: number as u64 * 333,
                sources: &[block],
                next: &[],
                carried: None,
            };
            Measure::<f64>::block(&program, block, &mut sums, &mut []).unwrap();
        }
        let replaced = [
            values[503..1003].to_vec(),
            values[1003..]
                .iter()
                .step_by(2)
                .copied()
                .collect::<Vec<f64>>(),
        ];
        for (sums, replaced) in sums.chunks(2).zip(&replaced) {
            assert_eq!(sums[0], replaced.iter().sum::<f64>());
            assert_eq!(sums[1], replaced.iter().map(|x| x * x).sum::<f64>());
        }
        let measured = Measured {
            sums,
            ..Measured::default()
        };
        let Pass::Apply(apply) = Program::<f64>::next(&program, &[measured]) else {
            panic!("it is applied once it is measured");
        };
        let mut out = vec![f64::NAN; values.len()];
        let block = Block {
            index: 0,
            first: 0,
            sources: &[&values],
            next: &[],
            carried: None,
        };
        apply.block(block, &mut out).unwrap();
        assert_eq!(out[..3], values[..3]);
        for at in 0..500 {
            assert_eq!(out[3 + at], 2.0 * values[3 + at]);
            assert_eq!(out[1003 + 2 * at + 1], values[1003 + 2 * at + 1]);
        }
        let moments = |values: &[f64]| {
            let count = values.len() as f64;
            let mean = values.iter().sum::<f64>() / count;
            let squares = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
            (mean, (squares / count).sqrt())
        };
        let drawn = [
            out[503..1003].iter().map(|x| x / 2.0).collect::<Vec<f64>>(),
            out[1003..].iter().step_by(2).copied().collect(),
        ];
        for (drawn, replaced) in drawn.iter().zip(&replaced) {
            let ((mean, deviation), (expected, spread)) = (moments(drawn), moments(replaced));
            // Five standard errors of 500 draws.
            assert!((mean - expected).abs() < 5.0 * spread / 500f64.sqrt());
            assert!((deviation - spread).abs() < 5.0 * spread / 1000f64.sqrt());
            assert!(drawn.iter().zip(replaced).all(|(a, b)| a != b));
        }
    }
}
