use std::path::Path;

use super::*;

fn refused(text: &str) -> String {
    parse("study.yml", text)
        .map(|study| format!("{study:?}"))
        .unwrap_err()
        .to_string()
}

#[test]
fn a_study_is_read() {
    let study = parse(
        "dir/study.yml",
        "
recipe: ../ties.yml
set: {dtype: float32}
tasks: [a.jsonl, b.jsonl]
space:
  parameters.density: {uniform: [0.1, 0.9]}
  models[0].parameters.weight: {log: [1e-3, 1], layers: 4}
  weights: {simplex: [\"models[1].parameters.weight\", \"models[2].parameters.weight\"], total: 2}
  merge_method: {choice: [ties, dare_ties]}
trials: 200
time: 1.5min
halving: {items: 50}
",
    )
    .unwrap();
    assert_eq!(study.searches[0].name, "ties");
    assert_eq!(study.searches[0].space.dimensions().len(), 1 + 4 + 2 + 1);
    assert_eq!(study.time, Some(std::time::Duration::from_secs(90)));
    assert_eq!(
        study.halving,
        Some(Halving {
            items: 50,
            factor: 2
        })
    );
    assert_eq!(
        (study.strategy, study.objective),
        (Strategy::Tpe, Objective::Accuracy)
    );
    assert_eq!(
        study.located(&study.searches[0].recipe),
        std::path::Path::new("dir/../ties.yml")
    );
}

#[test]
fn all_that_is_wrong_with_a_study_is_told_at_once() {
    insta::assert_snapshot!(refused("
recipe: r.yml
taks: [a.jsonl]
space:
  parameters.density: {uniform: [0.9, 0.1]}
  parameters.weight: {log: [0, 1]}
  parameters[: {grid: [1]}
  parameters.lambda: {unifrom: [0, 1]}
  x: {simplex: [a]}
strategy: bayes
"), @r"
    study.yml:2:1: missing `tasks`
      hint: `tasks: [FILE.jsonl]` says what merges are scored on
    study.yml:2:1: missing `trials`
      hint: `trials: 100` says how many there are of each search, `time: 10min` how long each goes on
    study.yml:3:1: unknown key `taks` in a study
      hint: did you mean `tasks`?
    study.yml:5:33: the least value, 0.9, is more than the largest, 0.1
      hint: as in `[0.1, 0.9]`
    study.yml:6:28: expected values of more than 0
      hint: as in `[0.1, 0.9]`
    study.yml:7:3: `parameters[` is no path into a recipe: `[` has no `]`
    study.yml:8:22: expected one of `grid`, `choice`, `uniform`, `log` and `simplex` for `parameters.lambda`, found 0
      hint: as in `parameters.density: {uniform: [0.1, 0.9]}`
    study.yml:8:23: unknown key `unifrom` in a searched value
      hint: did you mean `uniform`?
    study.yml:9:16: expected two paths at least on a simplex
      hint: each is a path to a weight
    study.yml:10:11: expected one of `grid`, `random`, `tpe`, `cma-es` as `strategy`, found `bayes`
    ");
    let twice = "searches: [{recipe: a.yml}, {recipe: b/a.yml}]\ntasks: [t]\ntrials: 0\n";
    insta::assert_snapshot!(refused(twice), @r"
    study.yml:1:29: two searches have the name `a`
      hint: give each a `name:`
    study.yml:3:9: expected a whole number from 1 to 1000000 as `trials`, found `0`
    ");
    let study = |rest: &str| refused(&format!("recipe: r.yml\ntasks: [t]\n{rest}"));
    let choice = "trials: 3\nstrategy: cma-es\nspace: {a: {choice: [x, y]}}\n";
    insta::assert_snapshot!(study(choice), @r"
    study.yml:5:9: `strategy: cma-es` takes `uniform`, `log` and `simplex`, and `a` is a list of values
      hint: `tpe` and `random` take all of them
    ");
    insta::assert_snapshot!(study("strategy: grid\nspace: {a: {uniform: [0, 1]}}\n"), @r"
    study.yml:4:9: `strategy: grid` takes `grid` and `choice`, and `a` is any number
      hint: `tpe` and `random` take all of them
    ");
    insta::assert_snapshot!(refused(""), @r"
    study.yml: expected a study, found 0 YAML documents
      hint: docs/study.md shows one
    ");
    insta::assert_snapshot!(refused("recipe: [\n"), @r"study.yml:1:9: invalid YAML: unclosed bracket '['");
}

#[test]
fn a_grid_has_as_many_trials_as_combinations() {
    let space = "space: {a: {grid: [1, 2, 3]}, b: {choice: [x, y]}}";
    let text = format!("recipe: r.yml\ntasks: [t]\nstrategy: grid\n{space}\n");
    assert_eq!(parse("s.yml", &text).unwrap().trials, 6);
}

/// Each is told where it stands, with what to do.
#[test]
fn spaces_that_search_nothing_or_a_value_twice_are_refused() {
    let space = |lines: &str| {
        refused(&format!(
            "recipe: r.yml\ntasks: [t]\ntrials: 3\nspace:\n{lines}"
        ))
    };
    insta::assert_snapshot!(space("
  models[0].parameters: {choice: [{weight: 1}, {weight: 2}]}
  models[0].parameters.weight: {uniform: [0, 1]}
  models[*].parameters.density: {uniform: [0, 1]}
  models[1].parameters[\"density\"]: {uniform: [0, 1]}
"), @r#"
    study.yml:7:3: `models[0].parameters.weight` and `models[0].parameters` set the same value of the recipe
      hint: keep one of the two
    study.yml:8:3: `models[*].parameters.density` and `models[0].parameters` set the same value of the recipe
      hint: keep one of the two
    study.yml:9:3: `models[1].parameters["density"]` and `models[*].parameters.density` set the same value of the recipe
      hint: keep one of the two
    "#);
    insta::assert_snapshot!(space("
  a: {simplex: [b, c], total: -1}
  d: {simplex: [e, f], total: 0}
  g: {simplex: [h, i], total: .nan}
  j: {uniform: [-1.7e308, 1.7e308]}
  k: {uniform: [0.5, 0.5]}
  l: {log: [0, 1]}
  m: {log: [-1, 1]}
  n: {log: [.nan, 1]}
  o: {grid: [1, 1, 1.0]}
  p: {choice: [ties, .inf, ties]}
  q: {uniform: [0, .inf]}
"), @r#"
    study.yml:6:31: expected a sum of more than 0 as total, found -1
      hint: weights on a simplex are shares of their sum
    study.yml:7:31: expected a sum of more than 0 as total, found 0
      hint: weights on a simplex are shares of their sum
    study.yml:8:31: expected a number as total, found `NaN`
      hint: as in `0.3`
    study.yml:9:16: the range is wider than numbers go
      hint: search orders of magnitude: `{log: [1e-3, 1e3]}`
    study.yml:10:16: the least value and the largest are both 0.5: there is nothing to search
      hint: write it into `set`
    study.yml:11:12: expected values of more than 0
      hint: as in `[0.1, 0.9]`
    study.yml:12:12: expected values of more than 0
      hint: as in `[0.1, 0.9]`
    study.yml:13:13: expected a number as the least value, found `NaN`
      hint: as in `0.3`
    study.yml:14:13: 1 stands twice
      hint: keep one of the two
    study.yml:14:13: 1.0 and 1 are the same value
      hint: keep one of the two
    study.yml:15:15: expected a number, found .inf
      hint: remove it
    study.yml:15:15: ties stands twice
      hint: keep one of the two
    study.yml:16:20: expected a number as the largest value, found `inf`
      hint: as in `0.3`
    "#);
    let study = "recipe: r.yml\nset: {parameters.density: 0.5}\ntasks: [t]\ntrials: 3\nspace: {parameters: {choice: [{density: 1}]}}\n";
    insta::assert_snapshot!(refused(study), @r#"
    study.yml:5:9: `parameters` is searched, and `set` has `parameters.density`
      hint: keep one of the two
    "#);
    let named = "searches: [{recipe: a.yml, name: a/b}]\ntasks: [t]\ntrials: 1\n";
    insta::assert_snapshot!(refused(named), @r#"
    study.yml:1:34: `a/b` cannot name a search
      hint: letters, digits, `-` and `_` can, up to 100
    "#);
}

#[test]
fn the_seed_of_masks_is_set_or_searched() {
    let study = |lines: &str| format!("recipe: r.yml\ntasks: [t]\ntrials: 3\n{lines}");
    let set = parse("s.yml", &study("set: {random_seed: 7}\n")).unwrap();
    assert_eq!((set.searches[0].seed, set.searches[0].set.len()), (7, 0));
    let searched = study("space: {random_seed: {choice: [0, 5]}}\n");
    assert_eq!(parse("s.yml", &searched).unwrap().searches[0].seed, 0);
    for wrong in [
        "space: {random_seed: {uniform: [0, 5]}}\n",
        "space: {random_seed: {choice: [0, -5]}}\n",
        "space: {random_seed: {grid: [1, 2.5]}}\n",
        "space: {random_seed: {grid: [1, 2], layers: 2}}\n",
    ] {
        let error = refused(&study(wrong));
        assert!(error.contains("whole numbers for `random_seed`"), "{error}");
    }
    let both = "set: {random_seed: 7}\nspace: {random_seed: {choice: [0, 5]}}\n";
    assert!(refused(&study(both)).contains("`set` has it too"));
    assert!(refused(&study("set: {random_seed: x}\n")).contains("as `random_seed`"));
}

#[test]
fn names_of_searches_can_be_names_of_files() {
    let named = |name: &str| {
        let name = serde_json::to_string(name).unwrap();
        parse(
            "s.yml",
            &format!("searches: [{{recipe: a.yml, name: {name}}}]\ntasks: [t]\ntrials: 1\n"),
        )
    };
    assert!(named("dare, 0.9 <b>").is_ok());
    let long = "x".repeat(101);
    for name in [
        "a/b",
        ".a",
        "a\nb",
        "a\u{202e}b",
        "a\u{1b}[31mb",
        long.as_str(),
    ] {
        let error = named(name).unwrap_err().to_string();
        assert!(error.contains("cannot name a search"), "{error}");
        assert!(error.len() < 300 && !error.contains('\u{202e}'), "{error}");
    }
}

#[test]
fn time_alone_bounds_a_study() {
    let study = "recipe: r.yml\ntasks: [t]\ntime: 2h\nspace: {a: {uniform: [0, 1]}}\n";
    let study = parse("s.yml", study).unwrap();
    assert_eq!(study.time, Some(std::time::Duration::from_secs(7200)));
    assert_eq!(study.trials, 1_000_000);
}

/// The study of docs/leaderboard.md searches every method but that which merges nothing.
#[test]
fn the_committed_study_has_every_method() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/studies/family.yml");
    let study = crate::file::read(&path).unwrap();
    let searched: Vec<&str> = study
        .searches
        .iter()
        .map(|search| search.name.as_str())
        .collect();
    for method in methods::all() {
        let name = method.info().name;
        let merges = name != "passthrough";
        assert_eq!(searched.contains(&name), merges, "{name}");
    }
}
