//! Tree-structured Parzen estimators (Bergstra et al., 2011), over all dimensions at once (Falkner et al., 2018).
//!
//! The trials so far are parted into the best and the others. Each part is a density: a mixture with one component for
//! each of its points, and one that is uniform. Of some points that are drawn from the density of the best, the one is
//! proposed at which that density is largest over the other's.

use super::{Seen, random};
use crate::draw::Draw;
use crate::space::{Dimension, index, middle};

/// Trials that are drawn uniformly, before anything is known.
const STARTUP: usize = 10;
/// The share of trials that count as the best, and the most of them.
const BEST: (f64, usize) = (0.1, 25);
/// Points that are drawn, of which one is proposed.
const CANDIDATES: usize = 48;
/// The weight of the uniform component over that of a point.
const PRIOR: f64 = 1.0;
/// How often a normal draw is repeated that falls out of the cube.
const TRIES: usize = 50;

pub(super) fn propose(
    dimensions: &[Dimension],
    seed: u64,
    number: usize,
    before: &[&Seen],
) -> Vec<f64> {
    if before.len() < STARTUP {
        return random(dimensions, seed, number);
    }
    let mut ranked = before.to_vec();
    ranked.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.number.cmp(&b.number)));
    let (share, most) = BEST;
    let best = ((share * ranked.len() as f64).ceil() as usize).clamp(2, most);
    let (best, others) = ranked.split_at(best);
    let (best, others) = (
        Density::new(dimensions, best),
        Density::new(dimensions, others),
    );
    let mut draw = Draw::new(seed, number, "tpe");
    let mut chosen: Option<(f64, Vec<f64>)> = None;
    for _ in 0..CANDIDATES {
        let point = best.draw(&mut draw);
        let gain = best.log(&point) - others.log(&point);
        if chosen.as_ref().is_none_or(|(most, _)| gain > *most) {
            chosen = Some((gain, point));
        }
    }
    chosen.map_or_else(|| random(dimensions, seed, number), |(_, point)| point)
}

/// A mixture with a component around each point, and a uniform one.
struct Density<'a> {
    dimensions: &'a [Dimension],
    points: Vec<&'a [f64]>,
    /// The width of a component in a continuous dimension.
    width: f64,
}

impl<'a> Density<'a> {
    fn new(dimensions: &'a [Dimension], seen: &[&'a Seen]) -> Self {
        let points: Vec<&[f64]> = seen.iter().map(|one| one.point.as_slice()).collect();
        let exponent = -1.0 / (dimensions.len() as f64 + 4.0);
        Self {
            dimensions,
            // Scott's rule for points in the cube.
            width: 0.25 * libm::pow(points.len().max(1) as f64, exponent),
            points,
        }
    }

    fn draw(&self, draw: &mut Draw) -> Vec<f64> {
        let mut weights = vec![1.0; self.points.len()];
        weights.push(PRIOR);
        let centre = self.points.get(draw.of_weights(&weights)).copied();
        let coordinate = |(at, dimension): (usize, &Dimension)| match (centre, dimension.count()) {
            (None, _) => draw.unit(),
            (Some(centre), None) => {
                let wide = |draw: &mut Draw| centre[at] + self.width * draw.normal();
                let mut tries = (0..TRIES).map(|_| wide(draw));
                let inside = tries.find(|value| (0.0..1.0).contains(value));
                inside.unwrap_or(centre[at])
            }
            (Some(centre), Some(count)) => {
                let shares = self.shares(index(centre[at], count), *dimension, count);
                middle(draw.of_weights(&shares), count)
            }
        };
        self.dimensions.iter().enumerate().map(coordinate).collect()
    }

    /// How likely each value is under the component of a point with value `centre`.
    fn shares(&self, centre: usize, dimension: Dimension, count: usize) -> Vec<f64> {
        let share = |value: usize| match dimension {
            Dimension::Ordered(_) => {
                let distance = value.abs_diff(centre) as f64 / count as f64;
                // A neighbour stays within reach, however many points there are.
                let width = self.width.max(1.0 / count as f64);
                libm::exp(-0.5 * (distance / width) * (distance / width))
            }
            _ if value == centre => 1.0,
            _ => self.width / (count.max(2) - 1) as f64,
        };
        let mut shares: Vec<f64> = (0..count).map(share).collect();
        let sum: f64 = shares.iter().sum();
        shares.iter_mut().for_each(|share| *share /= sum);
        shares
    }

    /// The logarithm of the density.
    fn log(&self, point: &[f64]) -> f64 {
        let mut logs: Vec<f64> = self
            .points
            .iter()
            .map(|centre| self.log_of(centre, point))
            .collect();
        // The share of one value, or one for a continuous dimension.
        let uniform = self
            .dimensions
            .iter()
            .filter_map(|dimension| dimension.count());
        let uniform: f64 = uniform.map(|count| -libm::log(count as f64)).sum();
        logs.push(libm::log(PRIOR) + uniform);
        let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logs.iter().map(|log| libm::exp(log - largest)).sum();
        largest + libm::log(sum / (self.points.len() as f64 + PRIOR))
    }

    fn log_of(&self, centre: &[f64], point: &[f64]) -> f64 {
        let dimensions = self.dimensions.iter().enumerate();
        let log = |(at, dimension): (usize, &Dimension)| match dimension.count() {
            None => {
                let distance = (point[at] - centre[at]) / self.width;
                // What of the normal distribution lies in the cube.
                let below = |value: f64| {
                    0.5 * libm::erfc((centre[at] - value) / self.width / std::f64::consts::SQRT_2)
                };
                -0.5 * distance * distance
                    - libm::log(self.width * libm::sqrt(std::f64::consts::TAU))
                    - libm::log(below(1.0) - below(0.0))
            }
            Some(count) => {
                let shares = self.shares(index(centre[at], count), *dimension, count);
                libm::log(shares[index(point[at], count)])
            }
        };
        dimensions.map(log).sum()
    }
}
