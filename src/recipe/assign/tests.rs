use super::*;

const RECIPE: &str = "\
# A recipe.
merge_method: ties   # by sign
base_model: base
models:
  - model: a
    parameters:
      weight: 0.5 # of a
  - model: b
parameters: {density: 0.3}
dtype: float32
";

fn edited(text: &str, assignments: &[&str]) -> String {
    let parsed: Vec<Assignment> = assignments
        .iter()
        .map(|text| Assignment::parse(text).unwrap())
        .collect();
    assign("r.yml", text, &parsed).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(text: &str, assignment: &str) -> String {
    let parsed = Assignment::parse(assignment).unwrap();
    assign("r.yml", text, &[parsed]).unwrap_err().to_string()
}

#[test]
fn values_are_set_in_place() {
    insta::assert_snapshot!(edited(RECIPE, &[
        "merge_method=dare_ties",
        "parameters.density=0.9",
        "parameters.lambda=1.5",
        "models[*].parameters.weight=1e-7",
        "models[1].parameters.density=[0, 1]",
        "models[0].model=../x/a b",
        "out_dtype=bfloat16",
        "dtype=",
    ]), @r#"
    # A recipe.
    merge_method: dare_ties   # by sign
    base_model: base
    models:
      - model: "../x/a b"
        parameters:
          weight: 1.0e-7 # of a
      - model: b
        parameters: {density: [0, 1], weight: 1.0e-7}
    parameters: {lambda: 1.5, density: 0.9}
    dtype: null
    out_dtype: bfloat16
    "#);
}

#[test]
fn a_value_that_others_share_is_set_alone() {
    let shared = "a: &w {weight: 0.5}\nb: *w\nc: {<<: *w, d: 1}\n";
    insta::assert_snapshot!(edited(shared, &["a.weight=1"]), @r"
    a: {weight: 1}
    b: {weight: 0.5}
    c: {d: 1, weight: 0.5}
    ");
    insta::assert_snapshot!(edited(shared, &["b.weight=1"]), @r"
    a: {weight: 0.5}
    b: {weight: 1}
    c: {d: 1, weight: 0.5}
    ");
    // Values over several lines.
    insta::assert_snapshot!(edited("a:\n- b\n- c\nd: >\n  e\n  f\n", &["a=[x]", "d=1"]), @r"
    a: [x]
    d: 1
    ");
}

#[test]
fn absent_values_are_filled() {
    insta::assert_snapshot!(edited("a:\nb: ~\nc: {}\nd: # none\n", &["a=1", "b.x=2", "c.x.z=3", "d=4", "e=5"]), @r"
    a: 1
    b: {x: 2}
    c: {x: {z: 3}}
    d: 4 # none
    e: 5
    ");
    insta::assert_snapshot!(edited("a: [{b: 1,\n  c: 2}]\n", &["a[0].d=3"]), @r"
    a: [{d: 3, b: 1,
      c: 2}]
    ");
    assert_eq!(edited("a: 1", &["b=2"]), "a: 1\nb: 2");
    assert_eq!(
        edited("\u{feff}a: 1\r\nb: 2\r\n", &["a=3"]),
        "a: 3\r\nb: 2\r\n"
    );
    assert_eq!(edited("", &["b=2"]), "");
}

#[test]
fn documents_are_chosen_by_name() {
    let two = "name: skills\ndtype: float32\n---\ndtype: bfloat16\n";
    insta::assert_snapshot!(edited(two, &["dtype=float16", "skills:dtype=float64"]), @r"
    name: skills
    dtype: float64
    ---
    dtype: float16
    ");
    insta::assert_snapshot!(refused(two, "skil:dtype=float16"), @r"
    r.yml: `--set skil:dtype`: no document has the name `skil`
      hint: the names are `skills`
    ");
    insta::assert_snapshot!(refused("name: a\n---\nname: b\n", "dtype=float16"), @r"
    r.yml: `--set dtype`: the recipe has 2 documents
      hint: begin with the name of one, as in `NAME:dtype`; the names are `a`, `b`
    ");
}

#[test]
fn places_that_do_not_exist_are_refused() {
    insta::assert_snapshot!(refused(RECIPE, "models[2].parameters.weight=1"), @r"
    r.yml:5:3: `--set models[2].parameters.weight`: `models` has 2 entries, [0] to [1], and no [2]
      hint: entries are numbered from 0; a new one is written in the recipe
    ");
    insta::assert_snapshot!(refused(RECIPE, "models.parameters.weight=1"), @r"
    r.yml:5:3: `--set models.parameters.weight`: `models` is a list of 2
      hint: say which entry: `models[0]`, or `models[*]` for all
    ");
    insta::assert_snapshot!(refused(RECIPE, "parameters[0]=1"), @r"
    r.yml:9:13: `--set parameters[0]`: `parameters` is a mapping, not a list
      hint: its keys are `density`
    ");
    insta::assert_snapshot!(refused(RECIPE, "dtype.x=1"), @r"
    r.yml:10:8: `--set dtype.x`: `dtype` is `float32`, not a mapping
      hint: end the path there to replace it
    ");
    insta::assert_snapshot!(refused(RECIPE, "slices[0].sources=1"), @r"
    r.yml:2:1: `--set slices[0].sources`: `slices` does not exist, so it has no entries
      hint: there is `merge_method`, `base_model`, `models`, `parameters`, `dtype`
    ");
    insta::assert_snapshot!(refused("a: [", "a=1"), @"r.yml:1:4: invalid YAML: unclosed bracket '['");
}

#[test]
fn what_is_no_assignment_is_refused() {
    for text in ["", "a", "=1", "a=[1", "a=1\n---\n2", "a[\"x=1"] {
        assert!(Assignment::parse(text).is_err(), "{text}");
    }
    let shown = Assignment::parse("a[0]=x = y").unwrap().to_string();
    assert_eq!(shown, "a[0]=\"x = y\"");
}
