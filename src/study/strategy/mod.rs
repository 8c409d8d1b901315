//! Strategies: which point to try next. Each is a function of the seed, the trial's number and the trials before it.

mod cma_es;
mod grid;
mod tpe;

use serde::{Deserialize, Serialize};

use super::draw::Draw;
use super::space::Dimension;

/// How points are proposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Every combination of values once, the last parameter changing fastest.
    Grid,
    /// Points drawn uniformly.
    Random,
    /// Tree-structured Parzen estimators: points that are likelier among the best trials than among the others.
    Tpe,
    /// Covariance matrix adaptation: a normal distribution that moves to where trials were good.
    CmaEs,
}

/// A trial that was scored.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its number.
    pub number: usize,
    /// Its point.
    pub point: Vec<f64>,
    /// Its score; larger is better. Negative infinity if its merge failed.
    pub score: f64,
}

/// What a strategy says to a number.
#[derive(Debug, Clone, PartialEq)]
pub enum Proposal {
    /// Try this point.
    Point(Vec<f64>),
    /// Trials with smaller numbers must end first.
    Wait,
    /// There is no such trial: everything has been tried.
    End,
}

impl Strategy {
    /// All strategies.
    pub const ALL: [Strategy; 4] = [Self::Grid, Self::Random, Self::Tpe, Self::CmaEs];

    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Strategy::Grid => "grid",
            Strategy::Random => "random",
            Strategy::Tpe => "tpe",
            Strategy::CmaEs => "cma-es",
        }
    }

    /// The point of the trial of that number. Of `seen`, only trials with smaller numbers count.
    pub fn propose(
        self,
        dimensions: &[Dimension],
        seed: u64,
        number: usize,
        seen: &[Seen],
    ) -> Proposal {
        match self {
            Strategy::Grid => grid::propose(dimensions, number),
            Strategy::Random => Proposal::Point(random(dimensions, seed, number)),
            Strategy::Tpe => {
                let before: Vec<&Seen> = seen.iter().filter(|one| one.number < number).collect();
                Proposal::Point(tpe::propose(dimensions, seed, number, &before))
            }
            Strategy::CmaEs => cma_es::propose(dimensions.len(), seed, number, seen),
        }
    }
}

/// A point drawn uniformly.
fn random(dimensions: &[Dimension], seed: u64, number: usize) -> Vec<f64> {
    let mut draw = Draw::new(seed, number, "random");
    dimensions.iter().map(|_| draw.unit()).collect()
}

#[cfg(test)]
mod tests;
