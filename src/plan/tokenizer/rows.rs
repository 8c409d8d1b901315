//! Where the row of each token comes from, and the rules for tokens that a model lacks.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Alignment, RowOf};
use numeric::RowMap;

/// How many rows of a model's aligned embedding come from elsewhere, by where they come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filled {
    /// From the base model.
    pub base: usize,
    /// From the only model that has the token.
    pub only: usize,
    /// The mean over the models that have the token, because the base lacks it.
    pub mean: usize,
    /// Zeros, because no model has the token.
    pub nowhere: usize,
    /// From where the recipe says.
    pub recipe: usize,
}

impl Filled {
    /// All of them.
    pub fn total(&self) -> usize {
        self.base + self.only + self.mean + self.nowhere + self.recipe
    }
}

/// The row maps of the models that are merged into one tensor.
pub(super) struct GroupRows {
    /// For each model of the group, where its rows come from. Part 0 is the model's own tensor, part `i + 1` that of
    /// `parts[i]`.
    pub(super) maps: Vec<Arc<RowMap>>,
    /// The models of the parts; `None` for one that no map takes a row from.
    pub(super) parts: Vec<Option<usize>>,
    pub(super) filled: Vec<Filled>,
}

impl Alignment<'_> {
    /// The row maps of a group; computed once per group.
    pub(super) fn group_rows(&self, group: &[usize], base: Option<usize>) -> Arc<GroupRows> {
        let key = (group.to_vec(), base);
        let known = self.groups.borrow().get(&key).cloned();
        known.unwrap_or_else(|| {
            let made = Arc::new(self.make(group, base));
            self.groups.borrow_mut().insert(key, Arc::clone(&made));
            self.first
                .borrow_mut()
                .get_or_insert_with(|| (group.to_vec(), Arc::clone(&made)));
            made
        })
    }

    fn make(&self, group: &[usize], base: Option<usize>) -> GroupRows {
        let parts: Vec<usize> = (0..self.tokens.len())
            .filter(|&model| self.tokens[model].is_some())
            .collect();
        let mut used = BTreeSet::new();
        let mut maps = Vec::with_capacity(group.len());
        let mut filled = Vec::with_capacity(group.len());
        let tokens = self.vocabulary_ids();
        for &model in group {
            let (map, counts) = self.model_rows(model, group, base, &tokens, &mut used);
            maps.push(Arc::new(map));
            filled.push(counts);
        }
        GroupRows {
            maps,
            parts: parts
                .into_iter()
                .map(|part| used.contains(&part).then_some(part))
                .collect(),
            filled,
        }
    }

    /// For each row of the output, whether it belongs to a token.
    fn vocabulary_ids(&self) -> Vec<bool> {
        let mut named = vec![false; self.rows];
        for (id, _) in self.vocabulary.tokens() {
            if let Some(named) = named.get_mut(id as usize) {
                *named = true;
            }
        }
        named
    }

    fn model_rows(
        &self,
        model: usize,
        group: &[usize],
        base: Option<usize>,
        tokens: &[bool],
        used: &mut BTreeSet<usize>,
    ) -> (RowMap, Filled) {
        // Parts are the models with tokens, in order; see `make`.
        let place = |other: usize| self.tokens[..other].iter().flatten().count() as u32 + 1;
        let mut part_of = |other: usize| {
            if other == model {
                return 0;
            }
            used.insert(other);
            place(other)
        };
        let own =
            |model: usize, id: usize| -> Option<u32> { *self.tokens[model].as_ref()?.own.get(id)? };
        // A row that belongs to no token of the model.
        let spare = |model: usize, id: usize| -> bool {
            let of_model = self.tokens[model].as_ref();
            of_model.is_some_and(|tokens| tokens.named.get(id) == Some(&false))
        };
        let mut map = RowMap::new();
        let mut filled = Filled::default();
        let mut pairs = Vec::new();
        for (id, is_token) in tokens.iter().enumerate() {
            pairs.clear();
            if !is_token {
                let from = [model, self.source]
                    .into_iter()
                    .find(|&from| spare(from, id));
                match from {
                    Some(from) => map.push(&[(part_of(from), id as u32)]),
                    None => map.push_average(),
                }
                continue;
            }
            let rule = self.rules.get(&(id as u32));
            let forced = rule.is_some_and(|rule| rule.force);
            if let (Some(row), false) = (own(model, id), forced) {
                map.push(&[(0, row)]);
                continue;
            }
            match rule.and_then(|rule| rule.row.as_ref()) {
                Some(RowOf::Zero) => filled.recipe += 1,
                Some(RowOf::Row(from, row)) => {
                    pairs.push((part_of(*from), *row));
                    filled.recipe += 1;
                }
                None => {
                    let mut having: Vec<usize> = Vec::new();
                    for &other in group {
                        if own(other, id).is_some() && !having.contains(&other) {
                            having.push(other);
                        }
                    }
                    let base = base.filter(|base| having.contains(base));
                    match (having.len(), base) {
                        (0, _) => filled.nowhere += 1,
                        (1, _) => filled.only += 1,
                        (_, Some(base)) => {
                            having = vec![base];
                            filled.base += 1;
                        }
                        (_, None) => filled.mean += 1,
                    }
                    for from in having {
                        if let Some(row) = own(from, id) {
                            pairs.push((part_of(from), row));
                        }
                    }
                }
            }
            map.push(&pairs);
        }
        (map, filled)
    }
}
