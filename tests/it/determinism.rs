//! The same bytes whatever the threads, the memory (and so the tiles) and the shard size.

use safetensors::Dtype;

use crate::fixtures::{Bench, files, floats, llama_config, load, noise};

/// Recipes of every method over `base`, `a` and `b`.
pub(crate) const RECIPES: &[(&str, &str)] = &[
    (
        "linear",
        "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 0.3}}\n- {model: b, parameters: {weight: 0.6}}\n",
    ),
    (
        "slerp",
        "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.3}\n",
    ),
    (
        "task_arithmetic",
        "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.4}\n",
    ),
    (
        "task_arithmetic, rounded by draws",
        "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.3}\nrounding: stochastic\n",
    ),
    (
        "ties",
        "merge_method: ties\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5, density: 0.37}\n",
    ),
    (
        "ties, rescaled",
        "merge_method: ties\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5, density: 0.37, rescale: true, normalize: false}\n",
    ),
    (
        "dare_linear",
        "merge_method: dare_linear\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5, density: 0.37}\n",
    ),
    (
        "dare_linear, by expectation",
        "merge_method: dare_linear\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5, density: 0.37, rescale: expectation}\n",
    ),
    (
        "dare_ties",
        "merge_method: dare_ties\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5, density: 0.6, lambda: 0.8}\n",
    ),
    (
        "regmean",
        "merge_method: regmean\nmodels:\n- {model: a, statistics: a.stats}\n- {model: b, statistics: b.stats, parameters: {weight: 0.8}}\nparameters: {reduction: 0.7}\n",
    ),
    (
        "fisher",
        "merge_method: fisher\nmodels:\n- {model: a, statistics: a.stats}\n- {model: b, statistics: b.stats, parameters: {weight: 0.8}}\nparameters: {normalize: true}\n",
    ),
    (
        "aim",
        "merge_method: aim\nbase_model: base\nstatistics: base.stats\nmodels: [{model: a}]\nparameters: {omega: 0.3}\n",
    ),
    (
        "tsvm",
        "merge_method: tsvm\nbase_model: base\nmodels: [{model: a}, {model: b, parameters: {weight: 0.8}}]\nparameters: {lambda: 0.9}\n",
    ),
    (
        "iso_c",
        "merge_method: iso_c\nbase_model: base\nmodels: [{model: a}, {model: b, parameters: {weight: 0.8}}]\nparameters: {lambda: 1.1}\n",
    ),
    (
        "iso_cts",
        "merge_method: iso_cts\nbase_model: base\nmodels: [{model: a}, {model: b, parameters: {weight: 0.8}}]\nparameters: {common_space_fraction: 0.6}\n",
    ),
    (
        "cart",
        "merge_method: cart\nbase_model: base\nmodels: [{model: a}, {model: b, parameters: {weight: 0.8}}]\nparameters: {rank_ratio: 0.1, lambda: 0.7}\n",
    ),
    (
        "star",
        "merge_method: star\nbase_model: base\nmodels: [{model: a}, {model: b, parameters: {weight: 0.8}}]\nparameters: {eta: 0.6}\n",
    ),
    (
        "subspace_boosting",
        "merge_method: subspace_boosting\nbase_model: base\nmodels: [{model: a}, {model: b, parameters: {weight: 0.8}}]\nparameters: {beta: 0.1, lambda: 0.5}\n",
    ),
    (
        "wudi",
        "merge_method: wudi\nbase_model: base\nmodels: [{model: a}, {model: b, parameters: {weight: 0.8}}]\nparameters: {time: 30, keep: 0.7}\n",
    ),
    (
        "swudi_a",
        "merge_method: swudi_a\nbase_model: base\nmodels: [{model: a}, {model: b, parameters: {weight: 0.8}}]\nparameters: {rule: gavish_donoho}\n",
    ),
    (
        "actmat",
        "merge_method: actmat\nbase_model: base\nmodels: [{model: a}, {model: b, parameters: {weight: 0.8}}]\nparameters: {lambda: 0.6}\n",
    ),
    (
        "resmerge",
        "merge_method: resmerge\nbase_model: base\nmodels: [{model: a}, {model: b, parameters: {weight: 0.8}}]\nparameters: {rank: 2, head_budget: 0.3}\n",
    ),
    (
        "svc",
        "merge_method: svc\nbase_model: base\nmodels: [{model: a, parameters: {merged: true}}, {model: b}]\nparameters: {alpha: 0.5}\n",
    ),
    (
        "lines",
        "merge_method: lines\nbase_model: base\nmodels: [{model: a}]\nparameters: {alpha: 0.4, beta: 0.3}\n",
    ),
    (
        "localize_stitch",
        "merge_method: localize_stitch\nbase_model: base\nmodels: [{model: a}, {model: b, parameters: {weight: 0.8}}]\nparameters: {sparsity: 0.23}\n",
    ),
    (
        "magmax",
        "merge_method: magmax\nbase_model: base\nmodels: [{model: a}, {model: b, parameters: {weight: 0.8}}]\nparameters: {lambda: 0.6}\n",
    ),
    (
        "geometric_median",
        "merge_method: geometric_median\nmodels: [{model: base}, {model: a}, {model: b}]\n",
    ),
    (
        "passthrough",
        "merge_method: passthrough\nmodels: [{model: a}]\n",
    ),
    (
        "passthrough, scaled",
        "merge_method: passthrough\nmodels: [{model: a, parameters: {scale: 0.7}}]\n",
    ),
    (
        "della",
        "merge_method: della\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5, density: 0.6, epsilon: 0.1}\n",
    ),
    (
        "della, by expectation",
        "merge_method: della\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5, density: 0.6, epsilon: 0.1, rescale: expectation}\n",
    ),
    (
        "della_linear",
        "merge_method: della_linear\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5, density: 0.5, lambda: 0.8}\n",
    ),
    (
        "breadcrumbs",
        "merge_method: breadcrumbs\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5, density: 0.6, gamma: 0.13}\n",
    ),
    (
        "breadcrumbs_ties, rescaled",
        "merge_method: breadcrumbs_ties\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5, density: 0.6, gamma: 0.13, rescale: true}\n",
    ),
    (
        "consensus_ta",
        "merge_method: consensus_ta\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5, lambda: 0.6, k: 2}\n",
    ),
    (
        "consensus_ties",
        "merge_method: consensus_ties\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5, density: 0.37, lambda: 0.3}\n",
    ),
    (
        "sce",
        "merge_method: sce\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {select_topk: 0.3}\n",
    ),
    (
        "sce of all",
        "merge_method: sce\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {}\n",
    ),
    (
        "arcee_fusion",
        "merge_method: arcee_fusion\nbase_model: base\nmodels: [{model: a}]\n",
    ),
    (
        "nuslerp",
        "merge_method: nuslerp\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.4}\n",
    ),
    (
        "nuslerp by rows",
        "merge_method: nuslerp\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.4, nuslerp_flatten: false}\n",
    ),
    (
        "nuslerp by columns",
        "merge_method: nuslerp\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.4, nuslerp_flatten: false, nuslerp_row_wise: true}\n",
    ),
    (
        "multislerp",
        "merge_method: multislerp\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.4}\n",
    ),
    (
        "karcher",
        "merge_method: karcher\nmodels: [{model: a}, {model: b}, {model: base}]\n",
    ),
    (
        "model_stock",
        "merge_method: model_stock\nbase_model: base\nmodels: [{model: a}, {model: b}]\n",
    ),
    (
        "model_stock by rows",
        "merge_method: model_stock\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {filter_wise: true}\n",
    ),
    (
        "nearswap",
        "merge_method: nearswap\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: 0.01}\n",
    ),
    (
        "ram",
        "merge_method: ram\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {epsilon: 0.02}\n",
    ),
    (
        "ramplus_tl",
        "merge_method: ramplus_tl\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {epsilon: 0.02}\n",
    ),
];

/// Models with a tensor of several blocks, whose values tie often, and small ones.
pub(crate) fn bench(dtype: Dtype) -> Bench {
    let bench = Bench::new();
    for (seed, name) in ["base", "a", "b"].into_iter().enumerate() {
        let seed = seed as u64 + 1;
        // Rounded to a coarse grid, so that many differences are equal in magnitude.
        let coarse = noise(seed, 700 * 331).map(|value| (value * 200.0).round() / 200.0);
        let specs = [
            floats("lm_head.weight", dtype, &[700, 331], coarse),
            floats(
                "model.embed_tokens.weight",
                dtype,
                &[300, 331],
                noise(seed + 10, 300 * 331),
            ),
            floats(
                "model.layers.0.norm.weight",
                dtype,
                &[331],
                noise(seed + 20, 331),
            ),
            floats(
                "model.layers.1.norm.weight",
                dtype,
                &[331],
                noise(seed + 30, 331),
            ),
            // More columns than one worker sums at a time.
            floats(
                "model.layers.0.wide.weight",
                dtype,
                &[30, 1300],
                noise(seed + 50, 30 * 1300),
            ),
            floats("model.scale", dtype, &[], noise(seed + 40, 1)),
        ];
        bench.model(name, &llama_config(2), &specs);
        bench.statistics(name, seed + 60);
    }
    bench
}

#[test]
fn bytes_of_bf16_do_not_depend_on_threads_memory_or_shards() {
    bytes_do_not_depend_on_threads_memory_or_shards(Dtype::BF16);
}

#[test]
fn bytes_of_f32_do_not_depend_on_threads_memory_or_shards() {
    bytes_do_not_depend_on_threads_memory_or_shards(Dtype::F32);
}

fn bytes_do_not_depend_on_threads_memory_or_shards(dtype: Dtype) {
    let bench = bench(dtype);
    for (name, recipe) in RECIPES {
        let whole = files(&bench.merge(recipe, &["--threads", "1", "--memory", "256MiB"]));
        for more in [
            ["--threads", "2", "--memory", "256MiB"],
            ["--threads", "5", "--memory", "256MiB"],
            ["--threads", "1", "--memory", "64MiB"],
            ["--threads", "3", "--memory", "96MiB"],
        ] {
            assert!(
                files(&bench.merge(recipe, &more)) == whole,
                "{name} in {dtype:?} with {more:?}"
            );
        }
        let mut tensors = load(&bench.merge(recipe, &[]));
        let mut sharded = load(&bench.merge(recipe, &["--shard-size", "300kB", "--threads", "2"]));
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        sharded.sort_by(|(a, _), (b, _)| a.cmp(b));
        assert!(tensors == sharded, "{name} in {dtype:?}, sharded");
    }
}

#[test]
fn every_method_has_a_recipe_here() {
    for method in weldment::methods::all() {
        let line = format!("merge_method: {}\n", method.info().name);
        assert!(
            RECIPES.iter().any(|(_, recipe)| recipe.starts_with(&line)),
            "{line}"
        );
    }
}

#[test]
fn random_masks_depend_on_the_seed_and_nothing_else() {
    let bench = bench(Dtype::BF16);
    for method in weldment::methods::all() {
        let info = method.info();
        let line = format!("merge_method: {}\n", info.name);
        let recipe = RECIPES
            .iter()
            .find(|(_, recipe)| recipe.starts_with(&line))
            .unwrap()
            .1;
        let first = load(&bench.merge(recipe, &["--seed", "1"]));
        let other = load(&bench.merge(recipe, &["--seed", "2"]));
        assert_eq!(other != first, info.random, "{}", info.name);
        assert!(load(&bench.merge(recipe, &["--seed", "1"])) == first);
    }
}

#[test]
fn exactly_k_elements_stay_where_magnitudes_tie() {
    // All differences are equal: the first k by index stay.
    let bench = Bench::new();
    let count = 50_000;
    bench.tensors(
        "base.safetensors",
        &[floats(
            "w",
            Dtype::F32,
            &[count],
            std::iter::repeat_n(0.0, count),
        )],
    );
    bench.tensors(
        "a.safetensors",
        &[floats(
            "w",
            Dtype::F32,
            &[count],
            std::iter::repeat_n(0.5, count),
        )],
    );
    let recipe = "merge_method: ties\nbase_model: base.safetensors\nmodels: [{model: a.safetensors}]\n\
                  parameters: {weight: 1, density: 0.5001}\n";
    let merged = load(&bench.merge(recipe, &["--threads", "2"]));
    let values = merged[0].1.values();
    assert!(values[..25_005].iter().all(|&value| value == 0.5));
    assert!(values[25_005..].iter().all(|&value| value == 0.0));
}

/// glibc picks another sine, cosine and exponential for each processor; those of a merge must not be among them.
#[test]
fn bytes_do_not_depend_on_the_systems_mathematics() {
    let bench = bench(Dtype::F64);
    for method in [
        "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: [0.1, 0.9, 0.3]}\n",
        "merge_method: karcher\nmodels: [{model: base}, {model: a}, {model: b}]\n",
        "merge_method: arcee_fusion\nbase_model: base\nmodels: [{model: a}]\n",
    ] {
        let whole = load(&bench.merge(method, &[]));
        let mut command = bench.command();
        command.args([
            "merge",
            "recipe.yml",
            "masked",
            "-q",
            "--force",
            "--no-check",
        ]);
        command.env(
            "GLIBC_TUNABLES",
            "glibc.cpu.hwcaps=-AVX2,-AVX2_Usable,-FMA,-FMA4,-FMA_Usable,-AVX512F,-AVX",
        );
        assert!(command.output().unwrap().status.success(), "{method}");
        assert!(load(&bench.path("masked")) == whole, "{method}");
    }
}
