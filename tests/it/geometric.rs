//! Geometric methods where there is no answer, or no room for one.

use safetensors::Dtype;

use crate::fixtures::{Bench, floats, noise};

#[test]
fn directions_that_cancel_name_the_tensor() {
    let bench = Bench::new();
    for (name, values) in [("a", [1.0, 0.0]), ("b", [-0.5, 0.75]), ("c", [-0.5, -0.75])] {
        let values = values.map(|value: f64| value / values[0].hypot(values[1]));
        // Unit vectors whose weighted sum is zero: 1, 1, 1 would need 120 degrees, so d fills up.
        bench.tensors(
            &format!("{name}.safetensors"),
            &[floats("w", Dtype::F64, &[2], values)],
        );
    }
    // b and c lean back by 0.5547 each.
    bench.recipe(
        "merge_method: multislerp\nmodels:\n- {model: a.safetensors, parameters: {weight: 1.1094003924504583}}\n\
         - {model: b.safetensors, parameters: {weight: 1}}\n- {model: c.safetensors, parameters: {weight: 1}}\n",
    );
    let outcome = bench.weld(&["merge", "recipe.yml", "out"]);
    assert_ne!(outcome.code, Some(0));
    assert!(outcome.stderr.contains("tensor `w`"), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("3 models cancel"),
        "{}",
        outcome.stderr
    );
    assert!(!bench.path("out").exists());
}

#[test]
fn rows_and_columns_too_long_for_the_budget_are_named() {
    let bench = Bench::new();
    for name in ["a", "b"] {
        let wide = floats("wide", Dtype::BF16, &[2, 400_000], noise(1, 800_000));
        bench.tensors(&format!("{name}.safetensors"), &[wide]);
    }
    for (row_wise, what) in [("false", "holds whole rows"), ("true", "sums each column")] {
        bench.recipe(&format!(
            "merge_method: nuslerp\nmodels: [{{model: a.safetensors}}, {{model: b.safetensors}}]\n\
             parameters: {{weight: 1, nuslerp_flatten: false, nuslerp_row_wise: {row_wise}}}\n"
        ));
        let tight = ["plan", "recipe.yml", "--memory", "40MiB", "--threads", "2"];
        let outcome = bench.weld(&tight);
        assert_ne!(outcome.code, Some(0));
        assert!(outcome.stderr.contains(what), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("`wide`"), "{}", outcome.stderr);
        assert_eq!(bench.weld(&["plan", "recipe.yml"]).code, Some(0));
    }
}
