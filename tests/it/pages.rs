//! The recipes on the pages of `docs`: all can be read, and those whose models are in this repository can be planned.

use std::path::Path;

use crate::fixtures::Bench;

/// The blocks of a language on a page.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let start = format!("```{language}\n");
    let after = page.split(&start).skip(1);
    after
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

/// What `weld plan --all` prints of a recipe, run in a folder of this repository. `None` if all that is wrong is that
/// models are not there.
fn planned(recipe: &str, folder: &str) -> Option<String> {
    let bench = Bench::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut command = bench.command();
    command.current_dir(folder).args(["plan", "--all"]);
    let output = command.arg(bench.recipe(recipe)).output().unwrap();
    if output.status.success() {
        return Some(String::from_utf8(output.stdout).unwrap());
    }
    let message = String::from_utf8(output.stderr).unwrap();
    let errors: Vec<&str> = message
        .lines()
        .filter(|line| line.starts_with("error:"))
        .collect();
    assert!(
        !errors.is_empty() && errors.iter().all(|error| error.contains("not found")),
        "{recipe}\n{message}"
    );
    None
}

#[test]
fn the_examples_of_recipes_run_on_the_tiny_models() {
    let page = include_str!("../../docs/recipes.md");
    let recipes = blocks(page, "yaml");
    let plans: Vec<String> = recipes
        .iter()
        .filter_map(|recipe| planned(recipe, "tests/peer/golden/models"))
        .collect();
    // One of vocabularies and one of adapters have made-up models.
    assert_eq!((recipes.len(), plans.len()), (13, 10));
    let shown = blocks(page, "text");
    assert_eq!(shown.len(), 1);
    assert!(
        plans
            .iter()
            .any(|plan| shown[0].lines().all(|line| plan.contains(line))),
        "no plan prints\n{}",
        shown[0]
    );
}

#[test]
fn the_example_for_users_of_mergekit_runs_on_the_tiny_models() {
    let recipes = blocks(include_str!("../../docs/from-mergekit.md"), "yaml");
    assert_eq!(recipes.len(), 1);
    assert!(planned(recipes[0], "tests/peer/golden/models").is_some());
}

#[test]
fn the_examples_of_mixtures_run_on_the_family() {
    let recipes = blocks(include_str!("../../docs/moe.md"), "yaml");
    let [assembly, backbone, edit, extraction] = recipes[..] else {
        panic!("{recipes:?}");
    };
    assert!(planned(assembly, "recipes").is_some());
    let with_backbone = format!("{assembly}{backbone}");
    assert!(planned(&with_backbone, "recipes").is_some());
    // These two have a mixture that is not in the repository.
    for recipe in [edit, extraction] {
        assert_eq!(planned(recipe, "recipes"), None);
    }
}
