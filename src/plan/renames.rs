//! Applies `rename:` to the models of a recipe, before anything else looks at their names, and proposes rules.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::counterparts::Counterparts;
use super::models::Models;
use super::problems::{Problems, count};
use checkpoint::Checkpoint;
use recipe::{Position, Recipe, Rename, RenameRule};

/// Renames the tensors of all models, notes what was renamed, and reports rules that fit nothing or clash.
pub(super) fn apply(
    recipe: &Recipe,
    models: &mut Models,
    notes: &mut Vec<String>,
    problems: &mut Problems,
) {
    let rules = &recipe.renames;
    if !rules.is_empty() && !models.statistics.is_empty() {
        let names = |model: &Arc<Checkpoint>| {
            let tensors = model.tensors().iter();
            tensors.map(|tensor| tensor.name.clone()).collect()
        };
        let merged = models.checkpoints[..models.merged].iter().map(names);
        models.own_names = merged.enumerate().collect();
    }
    let mut used = vec![false; rules.len()];
    for (rule, used) in rules.iter().zip(&mut used) {
        if let Some(model) = &rule.model
            && models.index(&model.value).is_none()
        {
            *used = true;
            let message = format!("`{}` is none of the models that are merged", model.value);
            let hint = "write it as `models`, `slices` or `base_model` does";
            problems.add(Some(model.at), message, Some(hint.to_owned()));
        }
    }
    for model in 0..models.checkpoints.len() {
        rename(rules, model, models, &mut used, notes, problems);
    }
    for (rule, _) in rules.iter().zip(used).filter(|(_, used)| !used) {
        let message = match &rule.model {
            Some(model) => format!("this rule renames no tensor of `{}`", model.value),
            None => "this rule renames no tensor of any model".to_owned(),
        };
        let hint = "`from` is a whole name as `weld inspect` shows it, with one `*` for any characters; the first \
                    rule that fits a name is used";
        problems.add(Some(rule.at), message, Some(hint.to_owned()));
    }
}

fn rename(
    rules: &[Rename],
    model: usize,
    models: &mut Models,
    used: &mut [bool],
    notes: &mut Vec<String>,
    problems: &mut Problems,
) {
    let checkpoint = &models.checkpoints[model];
    let concerns = |rule: &Rename| {
        let named = rule.model.as_ref();
        named.is_none_or(|named| models.index(&named.value) == Some(model))
    };
    let rules: Vec<(usize, &Rename)> = (0..).zip(rules).filter(|(_, r)| concerns(r)).collect();
    let mut first = None;
    let mut renamed = 0;
    let mut names = Vec::with_capacity(checkpoint.tensors().len());
    // The rule that made each name, if one did.
    let mut made: HashMap<String, (usize, Option<Position>)> = HashMap::new();
    for (tensor, entry) in checkpoint.tensors().iter().enumerate() {
        let mut fits = rules.iter();
        let fit = fits.find_map(|(rule, of)| Some((*rule, of.at, of.rule.apply(&entry.name)?)));
        let (name, at) = match fit {
            None => (entry.name.clone(), None),
            Some((rule, at, name)) => {
                used[rule] = true;
                renamed += 1;
                first.get_or_insert_with(|| (entry.name.clone(), name.clone()));
                (name, Some(at))
            }
        };
        if let Some((other, other_at)) = made.insert(name.clone(), (tensor, at)) {
            let others = &checkpoint.tensors()[other].name;
            let message = format!(
                "`{others}` and `{}` of `{}` would both be `{name}`",
                entry.name,
                checkpoint.label()
            );
            let hint = "two tensors cannot have one name: let `from` fit fewer names, or rename the other tensor too";
            problems.add(at.or(other_at), message, Some(hint.to_owned()));
            return;
        }
        names.push(name);
    }
    let Some((old, new)) = first else {
        return;
    };
    notes.push(format!(
        "`rename` gives {} of `{}` another name: `{old}` is `{new}`",
        count(renamed, "tensor"),
        checkpoint.label()
    ));
    let Some(renamed) = checkpoint.renamed(names) else {
        let message = format!(
            "`rename` would move tensors of `{}` to another folder of it: `{old}` to `{new}`",
            checkpoint.label()
        );
        let hint = "let names keep what stands before their last `/`".to_owned();
        let at = rules.first().map(|(_, rule)| rule.at);
        problems.add(at, message, Some(hint));
        return;
    };
    models.checkpoints[model] = Arc::new(renamed);
}

/// The most rules that are proposed.
const PROPOSED: usize = 4;

/// The most tensors that are tried as the one that is missing.
const TRIED: usize = 16;

/// The rules by which a model would have all the tensors that it lacks, in the same shapes, ready to paste into a recipe.
///
/// `None` if there are no such rules, or too many.
pub(super) fn proposed(
    donor: (&Checkpoint, &Counterparts),
    model: (&Checkpoint, &Counterparts),
    missing: &[String],
) -> Option<String> {
    let (checkpoint, names) = model;
    // Names that were already changed by known spellings are not those that a rule sees.
    let own = checkpoint.tensors().iter().zip(&names.names);
    let own = own.map(|(tensor, name)| (tensor.name.as_str(), tensor.shape.as_slice(), name));
    let (known, mut extra): (Vec<_>, Vec<_>) =
        own.partition(|(_, _, name)| donor.1.find(name).is_some());
    extra.retain(|(own, _, name)| own == name && !own.contains(['*', '\n']));
    let known: HashSet<&str> = known.into_iter().map(|(own, _, _)| own).collect();
    let mut extra: HashMap<&str, &[usize]> = extra.into_iter().map(|(n, s, _)| (n, s)).collect();
    let mut lacking: HashMap<&str, &[usize]> = HashMap::new();
    for name in missing {
        let tensor = donor.1.find(name)?;
        lacking.insert(name, donor.0.tensors()[tensor].shape.as_slice());
    }
    let mut rules = Vec::new();
    for name in missing {
        if !lacking.contains_key(name.as_str()) {
            continue;
        }
        let (rule, found) = best_rule(name, &lacking, &extra, &known)?;
        for (from, to) in found {
            extra.remove(from.as_str());
            lacking.remove(to.as_str());
        }
        rules.push(rule);
        if rules.len() > PROPOSED {
            return None;
        }
    }
    let model = quoted(checkpoint.label());
    let rules = rules.iter().map(|(from, to)| {
        let (from, to) = (quoted(from), quoted(to));
        format!("{{model: {model}, from: {from}, to: {to}}}")
    });
    Some(format!(
        "rename: [{}]",
        rules.collect::<Vec<_>>().join(", ")
    ))
}

/// A rule as text, and the pairs of names that it brings together.
type Proposal = ((String, String), Vec<(String, String)>);

/// The rule that gives the model the missing tensor, and the most others with it.
fn best_rule(
    missing: &str,
    lacking: &HashMap<&str, &[usize]>,
    extra: &HashMap<&str, &[usize]>,
    known: &HashSet<&str>,
) -> Option<Proposal> {
    let shape = lacking.get(missing)?;
    let alike = extra.iter().filter(|(_, other)| *other == shape);
    let mut alike: Vec<&str> = alike.map(|(name, _)| *name).collect();
    alike.sort_by_key(|name| (strsim::damerau_levenshtein(name, missing), *name));
    let mut best: Option<Proposal> = None;
    for name in alike.into_iter().take(TRIED) {
        for (from, to) in rules_between(name, missing) {
            let Some(rule) = RenameRule::parse(&from, &to) else {
                continue;
            };
            if known.iter().any(|name| rule.apply(name).is_some()) {
                continue;
            }
            let renamed = extra
                .keys()
                .filter_map(|name| Some((*name, rule.apply(name)?)));
            let mut found: Vec<(String, String)> =
                renamed.map(|(name, to)| (name.to_owned(), to)).collect();
            let fits = |(name, to): &(String, String)| {
                lacking.get(to.as_str()) == extra.get(name.as_str())
            };
            if !found.iter().all(fits) {
                continue;
            }
            found.sort();
            if best
                .as_ref()
                .is_none_or(|(_, most)| most.len() < found.len())
            {
                best = Some(((from, to), found));
            }
        }
    }
    best
}

/// The rules that turn a name into another: the whole name, what comes before their common end, or what comes after
/// their common start. A pattern has the dot beside its `*`, so that it fits whole parts of names only.
fn rules_between(from: &str, to: &str) -> [(String, String); 3] {
    let same = |(a, b): &(&str, &str)| a == b;
    let end = from.rsplit('.').zip(to.rsplit('.')).take_while(same);
    let end: usize = end.map(|(part, _)| part.len() + 1).sum();
    let start = from.split('.').zip(to.split('.')).take_while(same);
    let start: usize = start.map(|(part, _)| part.len() + 1).sum();
    let before_end = |name: &str| format!("{}.*", &name[..name.len().saturating_sub(end)]);
    let after_start = |name: &str| {
        let rest = name.get(start.saturating_sub(1)..);
        format!("*{}", rest.unwrap_or_default())
    };
    [
        (from.to_owned(), to.to_owned()),
        (before_end(from), before_end(to)),
        (after_start(from), after_start(to)),
    ]
}

/// A text in YAML's single quotes.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
