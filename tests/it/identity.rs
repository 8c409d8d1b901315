//! Merging copies of one model returns it, bit for bit.

use safetensors::Dtype;

use crate::fixtures::{Bench, floats, llama_config, load, noise};

/// Recipes that must return their model when `a`, `b` and `c` are copies of it; `base` is another model.
const RECIPES: &[&str] = &[
    "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 0.1}}\n- {model: b, parameters: {weight: 0.2}}\n- {model: c, parameters: {weight: 0.7}}\n",
    "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 3}}\n- {model: b, parameters: {weight: 0.11}}\n",
    "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 0.3}}\n- {model: b, parameters: {weight: 0.7}}\nparameters: {normalize: false}\n",
    "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.3}\n",
    "merge_method: task_arithmetic\nbase_model: base\nmodels:\n- {model: a, parameters: {weight: 0.1}}\n- {model: b, parameters: {weight: 0.2}}\n- {model: c, parameters: {weight: 0.7}}\n",
    "merge_method: ties\nbase_model: base\nmodels:\n- {model: a, parameters: {weight: 0.3}}\n- {model: b, parameters: {weight: 0.7}}\n",
    "merge_method: ties\nbase_model: base\nmodels:\n- {model: a, parameters: {weight: 0.1}}\n- {model: b, parameters: {weight: 0.2}}\n- {model: c, parameters: {weight: 0.7}}\nparameters: {normalize: false}\n",
    "merge_method: ties\nbase_model: a\nmodels:\n- {model: b, parameters: {weight: 0.3, density: 0.5}}\n- {model: c, parameters: {weight: 0.9, density: 0.2}}\n",
    "merge_method: dare_ties\nbase_model: a\nmodels:\n- {model: b, parameters: {weight: 0.3, density: 0.5}}\n- {model: c, parameters: {weight: 0.9, density: 0.2}}\n",
    "merge_method: nuslerp\nmodels:\n- {model: a, parameters: {weight: 0.3}}\n- {model: b, parameters: {weight: 0.7}}\n",
    "merge_method: nuslerp\nbase_model: base\nmodels:\n- {model: a, parameters: {weight: 0.3}}\n- {model: b, parameters: {weight: 0.7}}\n",
    "merge_method: nuslerp\nbase_model: c\nmodels:\n- {model: a, parameters: {weight: 0.3}}\n- {model: b, parameters: {weight: 0.7}}\n",
    "merge_method: nuslerp\nbase_model: base\nmodels:\n- {model: a, parameters: {weight: 0.3}}\n- {model: b, parameters: {weight: 0.7}}\nparameters: {nuslerp_flatten: false}\n",
    "merge_method: nuslerp\nbase_model: base\nmodels:\n- {model: a, parameters: {weight: 0.3}}\n- {model: b, parameters: {weight: 0.7}}\nparameters: {nuslerp_flatten: false, nuslerp_row_wise: true}\n",
    "merge_method: nuslerp\nmodels:\n- {model: a, parameters: {weight: 0.3}}\n- {model: b, parameters: {weight: 0.7}}\nparameters: {nuslerp_flatten: false, nuslerp_row_wise: true}\n",
    "merge_method: multislerp\nmodels:\n- {model: a, parameters: {weight: 0.1}}\n- {model: b, parameters: {weight: 0.2}}\n- {model: c, parameters: {weight: 0.7}}\n",
    "merge_method: multislerp\nbase_model: base\nmodels:\n- {model: a, parameters: {weight: 0.1}}\n- {model: b, parameters: {weight: 0.2}}\n- {model: c, parameters: {weight: 0.7}}\n",
    "merge_method: multislerp\nbase_model: c\nmodels:\n- {model: a, parameters: {weight: 0.3}}\n- {model: b, parameters: {weight: 0.7}}\n",
    "merge_method: multislerp\nbase_model: base\nmodels: [{model: a, parameters: {weight: 0.3}}]\n",
    "merge_method: karcher\nmodels: [{model: a}, {model: b}, {model: c}]\n",
    "merge_method: karcher\nbase_model: a\nmodels: [{model: a}, {model: b}, {model: c}]\n",
    "merge_method: karcher\nmodels: [{model: a}]\n",
    "merge_method: model_stock\nbase_model: base\nmodels: [{model: a}, {model: b}, {model: c}]\n",
    "merge_method: model_stock\nbase_model: base\nmodels: [{model: a}, {model: b}, {model: c}]\nparameters: {filter_wise: true}\n",
    "merge_method: model_stock\nbase_model: a\nmodels: [{model: a}, {model: b}, {model: c}]\nparameters: {filter_wise: true}\n",
    "merge_method: nearswap\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: 0.001}\n",
    "merge_method: nearswap\nbase_model: base\nmodels: [{model: a}]\nparameters: {t: 1000}\n",
    "merge_method: nearswap\nbase_model: a\nmodels: [{model: base}]\nparameters: {t: 0}\n",
    "merge_method: ram\nbase_model: base\nmodels: [{model: a}, {model: b}, {model: c}]\nparameters: {epsilon: 0}\n",
    "merge_method: ram\nbase_model: a\nmodels: [{model: b}, {model: c}]\n",
    "merge_method: ramplus_tl\nbase_model: base\nmodels: [{model: a}, {model: b}, {model: c}]\nparameters: {epsilon: 0}\n",
    "merge_method: passthrough\nmodels: [{model: a}]\n",
    "merge_method: della\nbase_model: base\nmodels:\n- {model: a, parameters: {weight: 0.1}}\n- {model: b, parameters: {weight: 0.2}}\n- {model: c, parameters: {weight: 0.7}}\n",
    "merge_method: della_linear\nbase_model: base\nmodels:\n- {model: a, parameters: {weight: 0.1}}\n- {model: b, parameters: {weight: 0.2}}\n- {model: c, parameters: {weight: 0.7}}\n",
    "merge_method: breadcrumbs\nbase_model: base\nmodels:\n- {model: a, parameters: {weight: 0.1}}\n- {model: b, parameters: {weight: 0.2}}\n- {model: c, parameters: {weight: 0.7}}\n",
    "merge_method: breadcrumbs_ties\nbase_model: base\nmodels:\n- {model: a, parameters: {weight: 0.1}}\n- {model: b, parameters: {weight: 0.2}}\n- {model: c, parameters: {weight: 0.7}}\n",
    "merge_method: consensus_ta\nbase_model: base\nmodels:\n- {model: a, parameters: {weight: 0.1}}\n- {model: b, parameters: {weight: 0.2}}\n- {model: c, parameters: {weight: 0.7}}\n",
    "merge_method: consensus_ties\nbase_model: base\nmodels:\n- {model: a, parameters: {weight: 0.1}}\n- {model: b, parameters: {weight: 0.2}}\n- {model: c, parameters: {weight: 0.7}}\n",
    "merge_method: breadcrumbs\nbase_model: a\nmodels:\n- {model: b, parameters: {weight: 0.3, density: 0.5}}\n- {model: c, parameters: {weight: 0.9, density: 0.2}}\n",
    "merge_method: breadcrumbs_ties\nbase_model: a\nmodels:\n- {model: b, parameters: {weight: 0.3, density: 0.5}}\n- {model: c, parameters: {weight: 0.9, density: 0.2}}\n",
    "merge_method: consensus_ties\nbase_model: a\nmodels:\n- {model: b, parameters: {weight: 0.3, density: 0.5}}\n- {model: c, parameters: {weight: 0.9, density: 0.2}}\n",
    "merge_method: della\nbase_model: a\nmodels:\n- {model: b, parameters: {weight: 0.3, density: 0.5}}\n- {model: c, parameters: {weight: 0.9, density: 0.2}}\nparameters: {epsilon: 0.1}\n",
    "merge_method: della_linear\nbase_model: a\nmodels:\n- {model: b, parameters: {weight: 0.3, density: 0.5}}\n- {model: c, parameters: {weight: 0.9, density: 0.2}}\nparameters: {epsilon: 0.1}\n",
    "merge_method: sce\nbase_model: base\nmodels: [{model: a}, {model: b}, {model: c}]\n",
    "merge_method: sce\nbase_model: a\nmodels: [{model: b}, {model: c}]\nparameters: {select_topk: 0.3}\n",
    "merge_method: tsvm\nbase_model: a\nmodels: [{model: b}, {model: c}]\nparameters: {lambda: 0.9}\n",
    "merge_method: iso_c\nbase_model: a\nmodels: [{model: b}, {model: c}]\nparameters: {lambda: 1.1}\n",
    "merge_method: iso_cts\nbase_model: a\nmodels: [{model: b}, {model: c}]\nparameters: {common_space_fraction: 0.6}\n",
    "merge_method: cart\nbase_model: a\nmodels: [{model: b}, {model: c}]\nparameters: {rank_ratio: 0.1, lambda: 0.7}\n",
    "merge_method: star\nbase_model: a\nmodels: [{model: b}, {model: c}]\nparameters: {eta: 0.6}\n",
    "merge_method: subspace_boosting\nbase_model: a\nmodels: [{model: b}, {model: c}]\nparameters: {beta: 0.1, lambda: 0.5}\n",
    "merge_method: tsvm\nbase_model: base\nmodels: [{model: a}]\n",
    "merge_method: cart\nbase_model: base\nmodels: [{model: a}]\n",
    "merge_method: wudi\nbase_model: a\nmodels: [{model: b}, {model: c}]\nparameters: {time: 30, keep: 0.7}\n",
    "merge_method: wudi\nbase_model: base\nmodels: [{model: a}]\n",
    "merge_method: swudi_a\nbase_model: a\nmodels: [{model: b}, {model: c}]\nparameters: {rule: gavish_donoho}\n",
    "merge_method: swudi_a\nbase_model: base\nmodels: [{model: a}]\n",
    "merge_method: actmat\nbase_model: a\nmodels: [{model: b}, {model: c}]\nparameters: {lambda: 0.6}\n",
    "merge_method: actmat\nbase_model: base\nmodels: [{model: a}]\n",
    "merge_method: resmerge\nbase_model: a\nmodels: [{model: b}, {model: c}]\n",
    "merge_method: svc\nbase_model: a\nmodels: [{model: b, parameters: {merged: true}}, {model: c}]\n",
    "merge_method: lines\nbase_model: base\nmodels: [{model: a}]\nparameters: {alpha: 1, beta: 0}\n",
    "merge_method: lines\nbase_model: a\nmodels: [{model: b}]\nparameters: {alpha: 0.3, beta: 0.2}\n",
    "merge_method: localize_stitch\nbase_model: a\nmodels: [{model: b}, {model: c}]\n",
    "merge_method: localize_stitch\nbase_model: base\nmodels: [{model: a}, {model: b}, {model: c}]\nparameters: {sparsity: 1}\n",
    "merge_method: regmean\nmodels:\n- {model: a, statistics: a.stats, parameters: {weight: 0.1}}\n- {model: b, statistics: b.stats}\n- {model: c, statistics: c.stats}\n",
    "merge_method: regmean\nmodels: [{model: a, statistics: a.stats}]\n",
    "merge_method: regmean\nmodels:\n- {model: base, statistics: base.stats, parameters: {weight: 0}}\n- {model: b, statistics: b.stats}\n",
    "merge_method: fisher\nmodels:\n- {model: a, statistics: a.stats, parameters: {weight: 0.1}}\n- {model: b, statistics: b.stats}\n- {model: c, statistics: c.stats}\n",
    "merge_method: fisher\nmodels: [{model: a, statistics: a.stats}]\n",
    "merge_method: aim\nbase_model: base\nstatistics: base.stats\nmodels: [{model: a}]\nparameters: {omega: 1}\n",
    "merge_method: aim\nbase_model: a\nstatistics: a.stats\nmodels: [{model: b}]\n",
    "merge_method: magmax\nbase_model: base\nmodels: [{model: a}, {model: b}]\n",
    "merge_method: geometric_median\nmodels: [{model: a}, {model: b}, {model: c}]\n",
    "merge_method: geometric_median\nbase_model: base\nmodels: [{model: a}, {model: b}, {model: c}]\n",
    "merge_method: arcee_fusion\nbase_model: a\nmodels: [{model: b}]\n",
];

#[test]
fn copies_return_the_model() {
    for dtype in [
        Dtype::F64,
        Dtype::F32,
        Dtype::BF16,
        Dtype::F16,
        Dtype::F8_E4M3,
        Dtype::F8_E5M2,
    ] {
        let bench = Bench::new();
        let range = 1e-3;
        // Values beside which the base is huge, zeros of both signs, subnormals.
        let mut values: Vec<f64> = noise(7, 3000).collect();
        values.extend([0.0, -0.0, 1e-30, -1e-30, 1e-6, -1e-6, range, 6e-8, 1e-40]);
        let count = values.len();
        let copy = || {
            [
                floats("model.layers.0.w", dtype, &[count], values.clone()),
                floats("model.layers.1.w", dtype, &[3], [1e-30, -0.0, 1.0]),
                floats("model.tiny", dtype, &[2], [1e-20, -1e-20]),
                floats("model.matrix", dtype, &[20, 700], noise(8, 14_000)),
                floats("model.linear.weight", dtype, &[20, 30], noise(11, 600)),
            ]
        };
        for name in ["a", "b", "c"] {
            bench.model(name, &llama_config(2), &copy());
        }
        let base = [
            floats(
                "model.layers.0.w",
                dtype,
                &[count],
                noise(9, count).map(|value| value * 20.0),
            ),
            floats("model.layers.1.w", dtype, &[3], [1.0, 1.0, -1.0]),
            floats("model.tiny", dtype, &[2], [0.5, 0.5]),
            floats(
                "model.matrix",
                dtype,
                &[20, 700],
                noise(10, 14_000).map(|value| value + 1.0),
            ),
            floats("model.linear.weight", dtype, &[20, 30], noise(12, 600)),
        ];
        bench.model("base", &llama_config(2), &base);
        for (seed, name) in [(1, "a"), (2, "b"), (3, "c"), (4, "base")] {
            bench.statistics(name, seed);
        }
        let model = load(&bench.path("a"));
        for recipe in RECIPES {
            assert!(
                load(&bench.merge(recipe, &[])) == model,
                "{dtype:?}\n{recipe}"
            );
        }
    }
}

#[test]
fn every_method_returns_copies() {
    for method in weldment::methods::all() {
        let named = format!("merge_method: {}\n", method.info().name);
        assert!(
            RECIPES.iter().any(|recipe| recipe.contains(&named)) || method.info().random,
            "{named} is not among the identities"
        );
    }
}

#[test]
fn the_base_alone_comes_out_of_weights_of_zero() {
    let bench = Bench::new();
    bench.llama("base", 1, Dtype::BF16);
    bench.llama("a", 2, Dtype::BF16);
    let weighted = weldment::methods::all().iter().filter(|method| {
        let info = method.info();
        let has = |name| info.params.iter().any(|param| param.name == name);
        info.base == weldment::methods::BaseRule::Required && has("weight") && has("normalize")
    });
    for method in weighted {
        let method = method.info().name;
        let recipe = format!(
            "merge_method: {method}\nbase_model: base\nmodels: [{{model: a}}]\nparameters: {{weight: 0, normalize: false}}\n"
        );
        assert!(
            load(&bench.merge(&recipe, &[])) == load(&bench.path("base")),
            "{method}"
        );
    }
}
