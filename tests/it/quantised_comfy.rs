//! FP8 as ComfyUI reads it: one scale for each weight, and tensors beside the weights that say so.

use std::collections::BTreeMap;
use std::fs;

use safetensors::Dtype;
use weldment::numeric::FloatType;

use crate::fixtures::{Bench, Loaded, Spec, by_name, floats, noise};
use crate::quantised_outputs::with;

pub(crate) const LINEAR: &str = "merge_method: linear\nmodels: [{model: a.safetensors}, {model: b.safetensors}]\nparameters: {weight: 0.5}\n";
const FORMAT: &str = r#"{"format": "float8_e4m3fn"}"#;

/// The weights that are encoded.
const ENCODED: [&str; 4] = [
    "double_blocks.0.img_attn.qkv",
    "double_blocks.0.img_mlp.0",
    "double_blocks.1.img_attn.qkv",
    "double_blocks.1.img_mlp.0",
];

/// A small image model, under a prefix.
fn flux(seed: u64, prefix: &str) -> Vec<Spec> {
    let mut shapes = vec![
        ("img_in.weight".to_owned(), vec![24, 16]),
        ("time_in.0.weight".to_owned(), vec![24, 16]),
        ("final_layer.linear.weight".to_owned(), vec![16, 24]),
    ];
    for block in 0..2 {
        let own =
            |name: &str, shape: &[usize]| (format!("double_blocks.{block}.{name}"), shape.to_vec());
        shapes.extend([
            own("img_attn.norm.query_norm.scale", &[8]),
            own("img_attn.qkv.bias", &[72]),
            own("img_attn.qkv.weight", &[72, 24]),
            own("img_mlp.0.weight", &[40, 24]),
        ]);
    }
    let tensors = shapes.into_iter().zip(0..);
    tensors
        .map(|((name, shape), at)| {
            let values = noise(seed * 100 + at, shape.iter().product());
            floats(&format!("{prefix}{name}"), Dtype::BF16, &shape, values)
        })
        .collect()
}

pub(crate) fn bench(prefix: &str) -> Bench {
    let bench = Bench::new();
    bench.tensors("a.safetensors", &flux(1, prefix));
    bench.tensors("b.safetensors", &flux(2, prefix));
    bench
}

/// The slow twin: a scale, and of all codes that whose value is nearest to a quotient; of two, the even one.
fn twin(values: &[f64]) -> (f32, Vec<u8>) {
    let largest = values
        .iter()
        .fold(0f64, |most, value| most.max(value.abs()));
    let scale = (largest / 448.0) as f32;
    let mut numbers = [0f64; 0x7f];
    let codes: Vec<u8> = (0..0x7f).collect();
    FloatType::F8E4m3.decode(&codes, &mut numbers);
    let nearest = |value: &f64| {
        let quotient = f64::from(*value as f32 / scale);
        let apart = |code: &u8| (numbers[usize::from(*code)] - quotient.abs()).abs();
        let code = codes
            .iter()
            .min_by(|a, b| apart(a).total_cmp(&apart(b)).then((*a % 2).cmp(&(*b % 2))));
        code.unwrap() | u8::from(quotient.is_sign_negative()) << 7
    };
    (scale, values.iter().map(nearest).collect())
}

/// Compares an output with the same merge in float32. `spelled` gives the name of a module's scale.
#[track_caller]
fn is_encoded(
    plain: &BTreeMap<String, Loaded>,
    found: &BTreeMap<String, Loaded>,
    prefix: &str,
    spelled: &str,
) {
    for module in ENCODED.map(|module| format!("{prefix}{module}")) {
        let weight = &found[&format!("{module}.weight")];
        let (scale, codes) = twin(&plain[&format!("{module}.weight")].values());
        assert_eq!(weight.dtype, Dtype::F8_E4M3, "{module}");
        assert!(weight.bytes == codes, "{module}");
        let stored = &found[&format!("{module}.{spelled}")];
        assert_eq!(
            (stored.dtype, stored.shape.as_slice()),
            (Dtype::F32, [].as_slice())
        );
        assert_eq!(stored.bytes, scale.to_le_bytes(), "{module}");
    }
}

#[test]
fn weights_are_written_as_comfyui_reads_them() {
    for prefix in ["", "model.diffusion_model."] {
        let bench = bench(prefix);
        let plain = by_name(&bench.merge(&with(LINEAR, "out_dtype: float32"), &[]));
        let bf16 = by_name(&bench.merge(LINEAR, &[]));
        let recipe = with(LINEAR, "quantization: comfy_fp8");
        let out = bench.merge(&recipe, &[]);
        let found = by_name(&out);
        is_encoded(&plain, &found, prefix, "weight_scale");
        assert_eq!(found.len(), plain.len() + 2 * ENCODED.len());
        for module in ENCODED.map(|module| format!("{prefix}{module}")) {
            let said = &found[&format!("{module}.comfy_quant")];
            assert_eq!(
                (said.dtype, said.shape.as_slice()),
                (Dtype::U8, [FORMAT.len()].as_slice())
            );
            assert_eq!(said.bytes, FORMAT.as_bytes());
        }
        for (name, tensor) in &bf16 {
            let module = name
                .strip_prefix(prefix)
                .and_then(|name| name.strip_suffix(".weight"));
            if !module.is_some_and(|module| ENCODED.contains(&module)) {
                assert_eq!(found[name], *tensor, "{name}");
            }
        }
        for more in [
            ["--threads", "1"],
            ["--memory", "64MiB"],
            ["--shard-size", "4KB"],
        ] {
            assert_eq!(by_name(&bench.merge(&recipe, &more)), found, "{more:?}");
        }
        let checked = bench.checked(&["merge", "recipe.yml", "checked", "-q"]);
        assert_eq!(checked.code, Some(0), "{}", checked.stderr);
        for coverage in ["--full", "--samples=2"] {
            bench.passes(&["verify", "out", coverage]);
        }
        let check = bench.weld(&["check", "out"]).stdout;
        assert!(
            !check.contains("container.codes") && !check.contains("error["),
            "{check}"
        );
        assert!(
            check.contains("tensors are as they were written"),
            "{check}"
        );
        // What says how weights are stored is proven too, to the last space.
        let files: Vec<_> = fs::read_dir(&out)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        let said = FORMAT.as_bytes();
        let changed = files
            .iter()
            .filter(|path| path.extension().is_some_and(|end| end == "safetensors"));
        for file in changed.take(2) {
            let mut bytes = fs::read(file).unwrap();
            if let Some(at) =
                (0..bytes.len() - said.len()).find(|&at| bytes[at..].starts_with(said))
            {
                bytes[at + 10] = b'\t';
                fs::write(file, bytes).unwrap();
            }
        }
        let verified = bench.weld(&["verify", "out", "--recipe", "recipe.yml", "--full"]);
        assert_eq!(verified.code, Some(1), "{}", verified.stdout);
        assert!(
            verified.stdout.contains(".comfy_quant"),
            "{}",
            verified.stdout
        );
    }
}

#[test]
fn what_lies_beside_a_diffusion_model_stays_plain() {
    let bench = Bench::new();
    let mut specs = flux(1, "model.diffusion_model.");
    specs.extend(flux(2, "conditioner.embedders.0."));
    bench.tensors("a.safetensors", &specs);
    let recipe =
        "merge_method: passthrough\nmodels: [{model: a.safetensors}]\nquantization: comfy_fp8\n";
    let found = by_name(&bench.merge(recipe, &[]));
    let encoded: Vec<_> = found
        .iter()
        .filter(|(_, tensor)| tensor.dtype == Dtype::F8_E4M3)
        .collect();
    assert_eq!(encoded.len(), ENCODED.len());
    assert!(
        encoded
            .iter()
            .all(|(name, _)| name.starts_with("model.diffusion_model."))
    );
}

#[test]
fn a_merge_in_parts_and_a_resumed_one_are_the_same() {
    let bench = bench("");
    let recipe = with(LINEAR, "quantization: comfy_fp8");
    let more = ["--shard-size", "4KB"];
    let found = by_name(&bench.merge(&recipe, &more));
    fs::remove_dir_all(bench.path("out")).unwrap();
    for part in ["1/2", "2/2"] {
        bench.passes(&[
            "merge",
            "recipe.yml",
            "out",
            "--shard-size",
            "4KB",
            "--part",
            part,
        ]);
    }
    bench.passes(&["join", "out"]);
    assert_eq!(by_name(&bench.path("out")), found);
    bench.passes(&["verify", "out", "--full"]);
    fs::remove_dir_all(bench.path("out")).unwrap();
    assert_eq!(
        by_name(&bench.merge(&recipe, &["--shard-size", "4KB", "--resume"])),
        found
    );
}

#[test]
fn both_spellings_are_kept() {
    let bench = bench("");
    bench.merge(&with(LINEAR, "quantization: comfy_fp8"), &[]);
    let today: Vec<Spec> = specs(by_name(&bench.path("out")));
    // As it was spelt before: once for all, and with activations' scales of one.
    let mut before: Vec<Spec> = Vec::new();
    for mut spec in today
        .iter()
        .filter(|spec| !spec.name.ends_with(".comfy_quant"))
        .cloned()
    {
        if let Some(module) = spec.name.strip_suffix(".weight_scale") {
            spec.name = format!("{module}.scale_weight");
        }
        before.push(spec);
    }
    let empty = |name: &str, bytes: Vec<u8>| Spec {
        name: name.into(),
        dtype: Dtype::F8_E4M3,
        shape: vec![bytes.len()],
        bytes,
    };
    let marker = empty("scaled_fp8", vec![0x38, 0x38]);
    before.push(marker.clone());
    // Only the header of a file says so: not written, and told beside each weight instead.
    let unsaid: Vec<Spec> = today
        .iter()
        .filter(|spec| !spec.name.ends_with(".comfy_quant"))
        .cloned()
        .collect();
    for (model, specs, spelled, said) in [
        ("today", &today, "weight_scale", true),
        ("before", &before, "scale_weight", false),
        ("unsaid", &unsaid, "weight_scale", true),
    ] {
        bench.tensors(&format!("{model}.safetensors"), specs);
        let copied = format!(
            "merge_method: passthrough\nmodels: [{{model: {model}.safetensors}}]\nquantization: keep\n"
        );
        let out = by_name(&bench.merge(&copied, &[]));
        for spec in specs {
            assert_eq!(out[&spec.name].bytes, spec.bytes, "{model}: {}", spec.name);
        }
        assert_eq!(
            out.keys().any(|name| name.ends_with(".comfy_quant")),
            said,
            "{model}"
        );
        assert_eq!(out.contains_key("scaled_fp8"), model == "before");
        bench.passes(&["verify", "out", "--full"]);
        let mixed = format!(
            "merge_method: linear\nmodels: [{{model: {model}.safetensors}}, {{model: b.safetensors}}]\nparameters: {{weight: 0.5}}\n"
        );
        let plain = by_name(&bench.merge(&with(&mixed, "out_dtype: float32"), &[]));
        let out = by_name(&bench.merge(&with(&mixed, "quantization: keep"), &[]));
        is_encoded(&plain, &out, "", spelled);
        assert_eq!(out.contains_key("scaled_fp8"), model == "before");
        if model == "before" {
            assert_eq!(out["scaled_fp8"].bytes, marker.bytes);
        }
        bench.passes(&["verify", "out", "--full"]);
        // The look before anything is computed knows what is to be written.
        let checked = bench.checked(&["merge", "recipe.yml", "checked"]);
        assert_eq!(checked.code, Some(0), "{}", checked.stderr);
        fs::remove_dir_all(bench.path("checked")).unwrap();
    }
    // The other spelling is the same values, and encoded to the same codes.
    let other = "merge_method: passthrough\nmodels: [{model: before.safetensors}]\nquantization: comfy_fp8\n";
    let found = by_name(&bench.merge(other, &[]));
    assert!(found.contains_key("double_blocks.0.img_mlp.0.comfy_quant"));
    assert!(!found.contains_key("scaled_fp8"));
    bench.tensors("again.safetensors", &specs(found));
    let diff = bench.weld(&["diff", "again.safetensors", "before.safetensors"]);
    assert_eq!(diff.code, Some(0), "{}{}", diff.stdout, diff.stderr);
}

#[test]
fn activations_scales_and_other_codes_are_refused_with_a_remedy() {
    let bench = bench("");
    bench.merge(&with(LINEAR, "quantization: comfy_fp8"), &[]);
    let mut tensors = specs(by_name(&bench.path("out")));
    fs::remove_dir_all(bench.path("out")).unwrap();
    let keep = "merge_method: linear\nmodels: [{model: c.safetensors}, {model: b.safetensors}]\nparameters: {weight: 0.5}\nquantization: keep\n";
    let module = ENCODED[0];
    let weight = tensors
        .iter()
        .position(|spec| spec.name == format!("{module}.weight"))
        .unwrap();
    tensors[weight].dtype = Dtype::F8_E5M2;
    bench.tensors("c.safetensors", &tensors);
    let message = bench.refused(keep, &[]);
    assert!(
        message.contains("can only copy")
            && message.contains("E5M2")
            && message.contains("quantization: comfy_fp8"),
        "{message}"
    );
    tensors[weight].dtype = Dtype::F8_E4M3;
    tensors.push(floats(
        &format!("{module}.input_scale"),
        Dtype::F32,
        &[],
        [0.5],
    ));
    bench.tensors("c.safetensors", &tensors);
    let message = bench.refused(keep, &[]);
    assert!(
        message.contains("1 scale of activations") && message.contains("quantization: comfy_fp8"),
        "{message}"
    );
    let named = keep.replace("quantization: keep", "quantization: comfy_fp8");
    bench.merge(&named, &[]);
}

fn specs(tensors: BTreeMap<String, Loaded>) -> Vec<Spec> {
    let of = |(name, tensor): (String, Loaded)| Spec {
        name,
        dtype: tensor.dtype,
        shape: tensor.shape,
        bytes: tensor.bytes,
    };
    tensors.into_iter().map(of).collect()
}
