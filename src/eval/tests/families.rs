//! The small families do what their pages say: weld's own forward pass finds the accuracies of the tables again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{Options, Tasks, score};
use checkpoint::{Checkpoint, Location};

fn recipes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes")
}

/// The table below `## Accuracy` of a family's page: by model, and by skill, the share of problems that it answers.
fn accuracies(family: &str) -> BTreeMap<String, BTreeMap<String, f64>> {
    let page = std::fs::read_to_string(recipes().join(family).join("README.md")).unwrap();
    let (_, table) = page.split_once("## Accuracy").unwrap();
    let rows = table.lines().skip_while(|line| !line.starts_with('|'));
    let rows = rows.take_while(|line| line.starts_with('|'));
    let mut rows = rows.map(|row| {
        let cells = row.trim_matches('|').split('|');
        let cells = cells.map(|cell| cell.trim().trim_matches('`').to_owned());
        cells.collect::<Vec<String>>()
    });
    let skills = rows.next().unwrap();
    rows.skip(1)
        .map(|row| {
            let shares = row.iter().map(|cell| cell.parse::<f64>());
            let shares = skills.iter().cloned().zip(shares);
            let shares =
                shares.filter_map(|(skill, percent)| percent.ok().map(|p| (skill, p / 100.0)));
            (row[0].clone(), shares.collect())
        })
        .collect()
}

/// The share of a skill's tasks that a model answers, and how many those are.
fn share(family: &str, model: &str, skill: &str) -> (f64, f64) {
    let file = recipes().join(format!("studies/tasks/{skill}.jsonl"));
    let tasks = Tasks::read(&[file]).unwrap();
    let model = Checkpoint::open(model, &Location::local(recipes().join(family).join(model)));
    let options = Options {
        limit: Some(200),
        ..Options::default()
    };
    let scores = score(&model.unwrap(), &tasks, &options, &()).unwrap();
    (
        scores.tasks[0].main().value,
        scores.tasks[0].items.len() as f64,
    )
}

#[test]
fn families_do_what_their_pages_say() {
    for (family, skills) in [
        ("family", ["sort", "reverse", "add", "cipher"]),
        ("family-qwen2", ["count", "largest", "close", "runs"]),
    ] {
        let page = accuracies(family);
        assert_eq!(page.len(), 5, "{family}: the base and four fine-tunes");
        for skill in skills {
            let [base, tuned] = ["base", skill].map(|model| {
                let said = page[model][skill];
                let (found, items) = share(family, model, skill);
                // The page's 500 problems are others than these.
                let error = (said * (1.0 - said) * (1.0 / 500.0 + 1.0 / items)).sqrt();
                assert!(
                    (found - said).abs() <= 3.0 * error + 0.01,
                    "{family}/{model} of {skill}: found {found}, the page says {said}"
                );
                found
            });
            assert!(tuned > base + 0.1, "{family}/{skill}: {tuned}, base {base}");
        }
    }
}
