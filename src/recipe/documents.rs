//! Several documents in one file: merges that use each other's results by name, as in mergekit-multi.

use std::collections::HashMap;

use super::problem::{Located, Problem, ProblemKind, quoted};
use super::schema::Recipe;
use checkpoint::ModelRef;

/// Sorts the documents: the one whose result is written, after those that it uses.
///
/// `complete` says whether every document could be read; if not, none is reported as unused.
pub(super) fn link(
    documents: Vec<Recipe>,
    complete: bool,
    problems: &mut Vec<Problem>,
) -> Option<Recipe> {
    let before = problems.len();
    let (_, uses) = uses(&documents, problems);
    let last = match complete {
        true => written(&documents, &uses, problems),
        false => None,
    };
    if problems.len() > before {
        return None;
    }
    let last = last?;
    let mut order = Vec::new();
    collect(last, &uses, &mut order);
    refuse_unused(&documents, &order, problems);
    if problems.len() > before {
        return None;
    }
    let mut results = in_order(documents, &order);
    let recipe = results.pop()?;
    Some(Recipe { results, ..recipe })
}

/// Sorts the merges that an assembly of these models uses.
pub(super) fn link_models<'a>(
    models: impl Iterator<Item = &'a Located<ModelRef>>,
    documents: Vec<Recipe>,
    problems: &mut Vec<Problem>,
) -> Option<Vec<Recipe>> {
    let before = problems.len();
    let (by_name, uses) = uses(&documents, problems);
    if let Some(nameless) = documents.iter().find(|document| document.name.is_none()) {
        let message = "a merge beside a mixture of experts has no name";
        let hint = "give it a `name:`, and use it as the base, the backbone or an expert";
        let at = nameless.method_at;
        problems.push(Problem::new(ProblemKind::Missing, at, message).with_hint(hint));
    }
    if problems.len() > before {
        return None;
    }
    let mut order = Vec::new();
    for model in models {
        if let Some(&index) = by_name.get(&model.value.path) {
            collect(index, &uses, &mut order);
        }
    }
    refuse_unused(&documents, &order, problems);
    (problems.len() == before).then(|| in_order(documents, &order))
}

fn in_order(documents: Vec<Recipe>, order: &[usize]) -> Vec<Recipe> {
    let mut documents: Vec<Option<Recipe>> = documents.into_iter().map(Some).collect();
    let taken = order
        .iter()
        .filter_map(|&index| documents.get_mut(index)?.take());
    taken.collect()
}

/// The documents by name, and which documents each of them uses; refuses equal names and cycles.
fn uses(
    documents: &[Recipe],
    problems: &mut Vec<Problem>,
) -> (HashMap<String, usize>, Vec<Vec<usize>>) {
    let mut by_name: HashMap<String, usize> = HashMap::new();
    for (index, document) in documents.iter().enumerate() {
        let Some(name) = &document.name else { continue };
        if by_name.insert(name.value.clone(), index).is_some() {
            let message = format!("two documents have the name {}", quoted(&name.value));
            problems.push(Problem::new(ProblemKind::Invalid, name.at, message));
        }
    }
    let uses: Vec<Vec<usize>> = documents
        .iter()
        .map(|document| {
            let mut used: Vec<usize> = document
                .mentions()
                .filter_map(|model| by_name.get(&model.value.path).copied())
                .collect();
            used.sort_unstable();
            used.dedup();
            used
        })
        .collect();
    refuse_cycles(documents, &uses, problems);
    (by_name, uses)
}

/// The document whose result is written: the one without a name, or the only one that no other uses.
fn written(
    documents: &[Recipe],
    uses: &[Vec<usize>],
    problems: &mut Vec<Problem>,
) -> Option<usize> {
    let unnamed: Vec<usize> = (0..documents.len())
        .filter(|&index| documents[index].name.is_none())
        .collect();
    if let [first, second, ..] = unnamed[..] {
        let message = "two documents have no name, and only one result is written";
        let at = documents[second].method_at;
        problems.push(
            Problem::new(ProblemKind::Invalid, at, message).with_hint(format!(
                "give the documents that others use a `name:`; the other one stands at line {}",
                documents[first].method_at.line
            )),
        );
        return None;
    }
    if let [only] = unnamed[..] {
        return Some(only);
    }
    let last: Vec<usize> = (0..documents.len())
        .filter(|index| !uses.iter().any(|used| used.contains(index)))
        .collect();
    if let [only] = last[..] {
        return Some(only);
    }
    let names: Vec<String> = last
        .iter()
        .filter_map(|&index| documents[index].name.as_ref())
        .map(|name| quoted(&name.value))
        .collect();
    // If there is none, the documents form a cycle, which has been reported.
    if let Some(&index) = last.get(1) {
        let message = format!(
            "no other document uses {}, and only one result is written",
            names.join(" and ")
        );
        let at = documents[index].name.as_ref().map(|name| name.at);
        problems.push(
            Problem::new(ProblemKind::Invalid, at, message)
                .with_hint("leave out the `name:` of the last merge, and use the others in it"),
        );
    }
    None
}

/// Refuses documents that need their own result.
fn refuse_cycles(documents: &[Recipe], uses: &[Vec<usize>], problems: &mut Vec<Problem>) {
    for (index, document) in documents.iter().enumerate() {
        let mut reached = Vec::new();
        uses[index]
            .iter()
            .for_each(|&used| collect(used, uses, &mut reached));
        if let (true, Some(Located { value, at })) = (reached.contains(&index), &document.name) {
            let message = format!("{} is made from its own result", quoted(value));
            let hint = "a document may use the results of others that do not use its own";
            problems.push(Problem::new(ProblemKind::Invalid, *at, message).with_hint(hint));
        }
    }
}

fn refuse_unused(documents: &[Recipe], used: &[usize], problems: &mut Vec<Problem>) {
    for (index, document) in documents.iter().enumerate() {
        if let (false, Some(Located { value, at })) = (used.contains(&index), &document.name) {
            let message = format!("the result {} is not used", quoted(value));
            let hint = "use it as a model, or remove the document: only one result is written";
            problems.push(Problem::new(ProblemKind::Invalid, *at, message).with_hint(hint));
        }
    }
}

/// The documents that a document uses, each after those it uses itself, and the document last.
fn collect(index: usize, uses: &[Vec<usize>], order: &mut Vec<usize>) {
    // An explicit stack: a file may chain thousands of documents.
    let mut stack = vec![(index, false)];
    let mut entered = vec![false; uses.len()];
    while let Some((index, done)) = stack.pop() {
        if done {
            order.push(index);
        } else if !entered[index] && !order.contains(&index) {
            entered[index] = true;
            stack.push((index, true));
            stack.extend(uses[index].iter().map(|&used| (used, false)));
        }
    }
}
