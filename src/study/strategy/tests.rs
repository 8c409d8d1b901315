use super::*;
use crate::space::index;

/// Runs a strategy on a function; returns the trials.
fn search(
    strategy: Strategy,
    dimensions: &[Dimension],
    trials: usize,
    seed: u64,
    f: impl Fn(&[f64]) -> f64,
) -> Vec<Seen> {
    let mut seen = Vec::new();
    for number in 0..trials {
        match strategy.propose(dimensions, seed, number, &seen) {
            Proposal::Point(point) => {
                assert!(
                    point.iter().all(|unit| (0.0..=1.0).contains(unit)),
                    "{point:?}"
                );
                let score = f(&point);
                seen.push(Seen {
                    number,
                    point,
                    score,
                });
            }
            Proposal::Wait => panic!("trial {number} waits for one that was scored"),
            Proposal::End => break,
        }
    }
    seen
}

fn best(seen: &[Seen]) -> f64 {
    seen.iter()
        .map(|one| one.score)
        .fold(f64::NEG_INFINITY, f64::max)
}

fn sphere(point: &[f64]) -> f64 {
    -point
        .iter()
        .zip([0.3, 0.8, 0.55, 0.12])
        .map(|(x, at)| (x - at) * (x - at))
        .sum::<f64>()
}

/// Rosenbrock's valley, with its optimum of 0 at (0.75, 0.75) of the cube [-2, 2]².
fn valley(point: &[f64]) -> f64 {
    let [x, y] = [point[0], point[1]].map(|unit| 4.0 * unit - 2.0);
    -((1.0 - x) * (1.0 - x) + 100.0 * (y - x * x) * (y - x * x))
}

#[test]
fn both_searches_find_the_optimum_of_known_functions() {
    let four = [Dimension::Continuous; 4];
    for seed in 0..4 {
        let random = best(&search(Strategy::Random, &four, 200, seed, sphere));
        let tpe = best(&search(Strategy::Tpe, &four, 200, seed, sphere));
        let cma = best(&search(Strategy::CmaEs, &four, 200, seed, sphere));
        assert!(
            tpe > -0.012 && tpe > random,
            "tpe {tpe}, random {random}, seed {seed}"
        );
        assert!(
            cma > -1e-3 && cma > 0.1 * random,
            "cma-es {cma}, seed {seed}"
        );
        let cma = best(&search(Strategy::CmaEs, &four[..2], 700, seed, valley));
        assert!(cma > -1e-3, "cma-es in a valley {cma}, seed {seed}");
    }
}

/// An optimum at a corner, and one that is a choice.
#[test]
fn edges_and_choices_are_found() {
    let dimensions = [
        Dimension::Continuous,
        Dimension::Unordered(6),
        Dimension::Ordered(8),
    ];
    let f = |point: &[f64]| {
        let choice = if index(point[1], 6) == 4 { 0.5 } else { 0.0 };
        point[0] + choice - 0.1 * (index(point[2], 8) as f64 - 5.0).abs()
    };
    for seed in 0..4 {
        let found = best(&search(Strategy::Tpe, &dimensions, 120, seed, f));
        assert!(found > 1.4, "{found}, seed {seed}");
        let corner = search(
            Strategy::CmaEs,
            &[Dimension::Continuous; 2],
            150,
            seed,
            |p| p[0] - p[1],
        );
        assert!(best(&corner) > 0.95, "{}", best(&corner));
    }
}

#[test]
fn a_grid_has_every_combination_once() {
    let dimensions = [Dimension::Ordered(2), Dimension::Unordered(3)];
    let seen = search(Strategy::Grid, &dimensions, 100, 0, |_| 0.0);
    let all: Vec<[usize; 2]> = seen
        .iter()
        .map(|one| [index(one.point[0], 2), index(one.point[1], 3)])
        .collect();
    assert_eq!(all, [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]);
    assert_eq!(
        Strategy::Grid.propose(&[], 0, 0, &[]),
        Proposal::Point(Vec::new())
    );
    assert_eq!(Strategy::Grid.propose(&[], 0, 1, &[]), Proposal::End);
}

/// What comes later, or is scored meanwhile by another process, does not change what was proposed before.
#[test]
fn proposals_depend_on_the_trials_before_alone() {
    let four = [Dimension::Continuous; 4];
    for strategy in [Strategy::Random, Strategy::Tpe, Strategy::CmaEs] {
        let seen = search(strategy, &four, 40, 7, sphere);
        for number in [3, 17, 32] {
            let proposed = strategy.propose(&four, 7, number, &seen);
            assert_eq!(
                proposed,
                Proposal::Point(seen[number].point.clone()),
                "{strategy:?}"
            );
            assert_ne!(
                proposed,
                strategy.propose(&four, 8, number, &seen),
                "{strategy:?}"
            );
        }
    }
    // A generation waits for the whole one before.
    let mut seen = search(Strategy::CmaEs, &four, 16, 7, sphere);
    seen.remove(5);
    assert_eq!(Strategy::CmaEs.propose(&four, 7, 16, &seen), Proposal::Wait);
    assert!(matches!(
        Strategy::CmaEs.propose(&four, 7, 15, &seen),
        Proposal::Wait
    ));
    assert!(matches!(
        Strategy::CmaEs.propose(&four, 7, 6, &seen),
        Proposal::Point(_)
    ));
}

/// Trials that fail are the worst, and break nothing.
#[test]
fn failed_trials_are_avoided() {
    let f = |point: &[f64]| {
        if point[0] < 0.6 {
            f64::NEG_INFINITY
        } else {
            -(point[0] - 0.9) * (point[0] - 0.9)
        }
    };
    for strategy in [Strategy::Tpe, Strategy::CmaEs] {
        let found = best(&search(strategy, &[Dimension::Continuous; 2], 100, 3, f));
        assert!(found > -1e-3, "{strategy:?}: {found}");
    }
}
