//! Decides which neurons stay together when an expert is cut: balanced k-means over the directions of their gate rows.
//!
//! LLaMA-MoE (Zhu et al. 2024) cuts an MLP into experts in this way: neurons whose gate rows point the same way fire on
//! the same tokens, so a router can tell the parts apart. Rows are scaled to unit length and clustered by Lloyd's
//! algorithm, in which every step gives all clusters equally many neurons. The seeds are drawn by greedy k-means++
//! (Arthur and Vassilvitskii 2007). All sums run in a fixed order, so the cut depends only on the weights and the seed.

use std::collections::BTreeMap;
use std::sync::Arc;

use checkpoint::Checkpoint;
use engine::scan;
use errors::Refusal;
use numeric::{NormalKey, dot};
use plan::LatePicks;

/// The limit on Lloyd's steps; most cuts settle after ten.
const STEPS: usize = 24;
/// The limit on rounds of exchanges between clusters. Each round improves the cut; two or three are usual.
const ROUNDS: usize = 32;
/// Candidates for each seed. A single one too often falls into a cluster that already has a seed.
const CANDIDATES: usize = 4;
/// Rows that are read at once.
const TILE: usize = 256;

/// The cuts that a plan needs, by model number and layer.
pub(super) type Cuts = BTreeMap<(usize, usize), LatePicks>;

/// Cuts that are decided before the plan's tensors are computed.
#[derive(Debug)]
pub(super) struct Splits {
    pub(super) wanted: Vec<Split>,
    /// The models whose experts are cut, by number.
    pub(super) models: BTreeMap<usize, Arc<Checkpoint>>,
    /// Parts per expert.
    pub(super) parts: usize,
    pub(super) seed: u64,
}

/// One cut.
#[derive(Debug)]
pub(super) struct Split {
    pub(super) model: usize,
    pub(super) layer: usize,
    /// The tensor that begins with the gate rows.
    pub(super) gate: String,
    /// Number of gate rows, and elements per row.
    pub(super) shape: [usize; 2],
    /// The result: the neurons of the first part, then those of the next.
    pub(super) picks: LatePicks,
}

impl Splits {
    /// Bytes of all results, and of the working memory for the largest cut.
    pub(super) fn bytes(&self) -> u64 {
        let neurons = self.wanted.iter().map(|split| split.shape[0]);
        let kept = neurons.clone().sum::<usize>() * size_of::<u32>();
        let made = neurons.max().unwrap_or(0) * (self.parts + CANDIDATES + 4) * size_of::<f64>();
        (kept + made) as u64
    }

    /// Decides all cuts.
    ///
    /// # Errors
    ///
    /// A gate matrix cannot be read or holds NaN or infinity, or the run is cancelled.
    pub(super) fn decide(
        &self,
        threads: usize,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), Refusal> {
        let made = scan(&self.wanted, threads, cancelled, |_: &mut (), split| {
            self.one(split, cancelled)
        })?;
        for (split, made) in self.wanted.iter().zip(made) {
            split.picks.decide(made);
        }
        Ok(())
    }

    fn one(
        &self,
        split: &Split,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<u32>, Refusal> {
        let model = self.models.get(&split.model).ok_or("a model is not open")?;
        let [width, hidden] = split.shape;
        let read = |first: usize, rows: &mut [f32]| -> Result<(), Refusal> {
            if cancelled() {
                return Err("stopped".into());
            }
            forward::read(model, &split.gate, first * hidden, rows).map_err(|error| {
                let what = format_args!("`{}` of `{}`", split.gate, model.label());
                Refusal::from(&error).within(what)
            })?;
            match rows.iter().all(|value| value.is_finite()) {
                true => Ok(()),
                false => Err(format!(
                    "`{}` of `{}` holds NaN or infinity",
                    split.gate,
                    model.label()
                )
                .into()),
            }
        };
        let name = format!("neurons of layer {}", split.layer);
        let neurons = Neurons {
            read: &read,
            width,
            hidden,
        };
        neurons.clusters(self.parts, NormalKey::new(self.seed, &name, 0))
    }
}

/// Fills a slice with rows, starting at the given one.
type Read<'a> = dyn Fn(usize, &mut [f32]) -> Result<(), Refusal> + 'a;

/// Rows that are read a tile at a time.
struct Neurons<'a> {
    read: &'a Read<'a>,
    width: usize,
    hidden: usize,
}

impl Neurons<'_> {
    /// Visits all rows, scaled to unit length unless they are zero.
    fn each(&self, mut visit: impl FnMut(usize, &[f32])) -> Result<(), Refusal> {
        let mut tile = vec![0f32; TILE.min(self.width) * self.hidden];
        for first in (0..self.width).step_by(TILE) {
            let rows = TILE.min(self.width - first);
            let tile = &mut tile[..rows * self.hidden];
            (self.read)(first, tile)?;
            for (row, values) in tile.chunks_exact_mut(self.hidden).enumerate() {
                normalize(values);
                visit(first + row, values);
            }
        }
        Ok(())
    }

    /// The neurons of the first cluster, then those of the next, each ascending.
    fn clusters(&self, parts: usize, key: NormalKey) -> Result<Vec<u32>, Refusal> {
        let mut centres = self.seeds(parts, key)?;
        let mut cluster = vec![usize::MAX; self.width];
        let mut near = vec![0f64; self.width * parts];
        for _ in 0..STEPS {
            let offsets: Vec<f64> = centres
                .chunks_exact(self.hidden)
                .map(|centre| dot(centre, centre) / 2.0)
                .collect();
            // `dot(row, centre) - dot(centre, centre) / 2` is minus half the squared distance, apart from a term that
            // is the same for all centres.
            self.each(|row, values| {
                let of_row = &mut near[row * parts..][..parts];
                let centres = centres.chunks_exact(self.hidden).zip(&offsets);
                for (near, (centre, offset)) in of_row.iter_mut().zip(centres) {
                    *near = dot(values, centre) - offset;
                }
            })?;
            let found = assign(&near, parts);
            if found == cluster {
                break;
            }
            cluster = found;
            centres = self.means(&cluster, parts)?;
        }
        let of = |part: usize| {
            let neurons = cluster.iter().enumerate();
            neurons.filter_map(move |(neuron, of)| (*of == part).then_some(neuron as u32))
        };
        Ok((0..parts).flat_map(of).collect())
    }

    /// Chooses rows that are far apart as seeds. For each seed, a few candidates are drawn with probabilities
    /// proportional to their squared distance from the seeds before. The candidate that leaves the other rows nearest
    /// to a seed is taken.
    fn seeds(&self, parts: usize, key: NormalKey) -> Result<Vec<f32>, Refusal> {
        let mut centres: Vec<f32> = Vec::with_capacity(parts * self.hidden);
        let mut far = vec![1f64; self.width];
        for part in 0..parts {
            let all: f64 = far.iter().sum();
            let mut candidates = Vec::with_capacity(CANDIDATES);
            for draw in 0..CANDIDATES {
                let draw = key.uniform((part * CANDIDATES + draw) as u64);
                let mut left = (draw + 1.0) / 2.0 * all;
                let passed = far.iter().position(|far| {
                    left -= far;
                    left < 0.0
                });
                // If all distances are zero, any neuron will do.
                let neuron = passed.unwrap_or(part % self.width.max(1));
                let mut row = vec![0f32; self.hidden];
                (self.read)(neuron, &mut row)?;
                normalize(&mut row);
                candidates.push((row, vec![0f64; self.width]));
            }
            self.each(|row, values| {
                for (candidate, after) in &mut candidates {
                    let squares = dot(values, values) + dot(candidate, candidate);
                    let squared = (squares - 2.0 * dot(values, candidate)).max(0.0);
                    after[row] = match part {
                        0 => squared,
                        _ => far[row].min(squared),
                    };
                }
            })?;
            let left = |of: &(Vec<f32>, Vec<f64>)| of.1.iter().sum::<f64>();
            let best = candidates
                .into_iter()
                .min_by(|a, b| left(a).total_cmp(&left(b)));
            if let Some((centre, after)) = best {
                centres.extend(centre);
                far = after;
            }
        }
        Ok(centres)
    }

    /// The mean row of each cluster.
    fn means(&self, cluster: &[usize], parts: usize) -> Result<Vec<f32>, Refusal> {
        let mut sums = vec![0f64; parts * self.hidden];
        self.each(|row, values| {
            let sums = &mut sums[cluster[row] * self.hidden..][..self.hidden];
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += f64::from(*value);
            }
        })?;
        let each = (self.width / parts).max(1) as f64;
        Ok(sums.into_iter().map(|sum| (sum / each) as f32).collect())
    }
}

/// Scales a row to unit length unless it is zero.
fn normalize(row: &mut [f32]) {
    let length = dot(row, row).sqrt();
    if length > 0.0 {
        let scale = (1.0 / length) as f32;
        row.iter_mut().for_each(|value| *value *= scale);
    }
}

/// Assigns equally many neurons to each cluster. `near` has a row for each neuron and a column for each cluster; the
/// sum of the chosen entries should be as large as possible. Neurons that would lose most with their second choice
/// choose first. Then pairs of neurons are exchanged for as long as that raises the sum.
fn assign(near: &[f64], parts: usize) -> Vec<usize> {
    let width = near.len() / parts;
    let of = |neuron: usize| &near[neuron * parts..][..parts];
    let regret = |neuron: usize| {
        let (mut best, mut second) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
        for value in of(neuron) {
            if *value > best {
                (best, second) = (*value, best);
            } else if *value > second {
                second = *value;
            }
        }
        best - second
    };
    let mut order: Vec<(f64, usize)> = (0..width).map(|neuron| (regret(neuron), neuron)).collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut room = vec![width / parts; parts];
    let mut cluster = vec![0; width];
    for (_, neuron) in order {
        let free = (0..parts).filter(|part| room[*part] > 0);
        // Ties go to the first cluster.
        let best = free.reduce(|best, part| match of(neuron)[part] > of(neuron)[best] {
            true => part,
            false => best,
        });
        let best = best.unwrap_or(0);
        cluster[neuron] = best;
        room[best] = room[best].saturating_sub(1);
    }
    for _ in 0..ROUNDS {
        let mut better = false;
        for a in 0..parts {
            for b in a + 1..parts {
                better |= exchange(&mut cluster, &of, a, b);
            }
        }
        if !better {
            break;
        }
    }
    cluster
}

/// Exchanges neurons of two clusters, the largest gains first; returns whether there was any.
fn exchange<'n>(
    cluster: &mut [usize],
    of: &dyn Fn(usize) -> &'n [f64],
    a: usize,
    b: usize,
) -> bool {
    let gains = |cluster: &[usize], from: usize, to: usize| {
        let own = (0..cluster.len()).filter(|neuron| cluster[*neuron] == from);
        let gain = own.map(|neuron| (of(neuron)[to] - of(neuron)[from], neuron));
        let mut gains: Vec<(f64, usize)> = gain.collect();
        gains.sort_by(|x, y| y.0.total_cmp(&x.0).then(x.1.cmp(&y.1)));
        gains
    };
    let pairs = gains(cluster, a, b).into_iter().zip(gains(cluster, b, a));
    let mut better = false;
    // A smaller gain may be rounding.
    for ((_, left), (_, right)) in pairs.take_while(|(a, b)| a.0 + b.0 > 1e-12) {
        (cluster[left], cluster[right]) = (b, a);
        better = true;
    }
    better
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn clusters(rows: &[f32], hidden: usize, parts: usize, seed: u64) -> Vec<u32> {
        let read = |first: usize, out: &mut [f32]| {
            out.copy_from_slice(&rows[first * hidden..][..out.len()]);
            Ok(())
        };
        let neurons = Neurons {
            read: &read,
            width: rows.len() / hidden,
            hidden,
        };
        neurons
            .clusters(parts, NormalKey::new(seed, "test", 0))
            .unwrap()
    }

    fn sum(near: &[f64], parts: usize, cluster: &[usize]) -> f64 {
        let of = |(neuron, part): (usize, &usize)| near[neuron * parts + part];
        cluster.iter().enumerate().map(of).sum()
    }

    /// Neurons along a few directions, in random order and of random length: those of one direction are grouped
    /// together.
    #[test]
    fn planted_clusters_are_found() {
        let (parts, each, hidden) = (4, 75, 24);
        let key = NormalKey::new(1, "planted", 0);
        let mut order: Vec<usize> = (0..parts * each).collect();
        order.sort_by(|a, b| key.uniform(*a as u64).total_cmp(&key.uniform(*b as u64)));
        let direction = NormalKey::new(2, "directions", 0);
        let noise = NormalKey::new(3, "noise", 0);
        let mut rows = Vec::new();
        for (row, kind) in order.iter().map(|place| place % parts).enumerate() {
            let length = 2.0 + key.uniform((1000 + row) as u64);
            for column in 0..hidden {
                let value = direction.draw((kind * hidden + column) as u64)
                    + 0.3 * noise.draw((row * hidden + column) as u64);
                rows.push((length * value) as f32);
            }
        }
        for seed in 0..8 {
            let found = clusters(&rows, hidden, parts, seed);
            for cluster in found.chunks(each) {
                let kinds = cluster.iter().map(|row| order[*row as usize] % parts);
                let first = order[cluster[0] as usize] % parts;
                assert!(kinds.into_iter().all(|kind| kind == first), "seed {seed}");
            }
        }
    }

    /// Rows that are equal, or zeros, are cut too.
    #[test]
    fn equal_rows_are_cut_into_equal_parts() {
        for value in [0.0, 1.0] {
            let mut found = clusters(&[value; 12 * 5], 5, 4, 0);
            found.sort_unstable();
            assert_eq!(found, (0..12).collect::<Vec<u32>>());
        }
    }

    proptest! {
        /// With two clusters, the result is the best of all equal cuts. With more, no exchange of two neurons improves
        /// it.
        #[test]
        fn no_exchange_is_better(values in prop::collection::vec(-3f64..3.0, 24), parts in 2usize..5) {
            let (parts, width) = (parts, 24 / parts / parts * parts);
            let near = &values[..width * parts];
            let cluster = assign(near, parts);
            let each = width / parts;
            for part in 0..parts {
                prop_assert_eq!(cluster.iter().filter(|of| **of == part).count(), each);
            }
            let found = sum(near, parts, &cluster);
            for (a, b) in (0..width).flat_map(|a| (0..width).map(move |b| (a, b))) {
                let mut other = cluster.clone();
                other.swap(a, b);
                prop_assert!(sum(near, parts, &other) <= found + 1e-9);
            }
            if parts == 2 {
                for bits in (0u32..1 << width).filter(|bits| bits.count_ones() as usize == each) {
                    let other: Vec<usize> = (0..width).map(|neuron| (bits >> neuron & 1) as usize).collect();
                    prop_assert!(sum(near, parts, &other) <= found + 1e-9);
                }
            }
        }

        /// Every neuron is in exactly one part.
        #[test]
        fn parts_are_a_cut(rows in prop::collection::vec(-1f32..1.0, 12 * 6), parts in prop::sample::select(vec![1usize, 2, 3, 4, 6, 12]), seed in any::<u64>()) {
            let mut found = clusters(&rows, 6, parts, seed);
            found.sort_unstable();
            prop_assert_eq!(found, (0..12).collect::<Vec<u32>>());
        }
    }
}
