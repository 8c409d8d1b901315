use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use super::aliases::{Alias, Shapes, of_denoiser, of_text_encoder};
use crate::adapter::cuts::Rows;
use crate::fixtures::{raw, write};
use crate::locate::Locator;
use crate::model_ref::ModelRef;
use crate::reader::Checkpoint;

mod pairs;

/// A tensor: its name, shape and values.
type Tensor = (String, Vec<usize>, Vec<f32>);

/// Small whole numbers by name: sums of their products are exact.
fn tensor(name: &str, shape: &[usize]) -> Tensor {
    let mut state = name.bytes().fold(5u32, |state, byte| {
        state.wrapping_mul(31).wrapping_add(u32::from(byte))
    });
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as f32 % 7.0 - 3.0
    };
    let values = (0..shape.iter().product()).map(|_| next()).collect();
    (name.to_owned(), shape.to_vec(), values)
}

fn file(tensors: &[Tensor], metadata: &[(&str, String)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        let entries = metadata
            .iter()
            .map(|(key, text)| ((*key).to_owned(), text.as_str().into()));
        let entries: serde_json::Map<_, _> = entries.collect();
        header.insert("__metadata__".into(), entries.into());
    }
    let mut data = Vec::new();
    for (name, shape, values) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    raw(&serde_json::Value::Object(header).to_string(), &data)
}

fn open(folder: &Path, name: &str) -> Result<Checkpoint, String> {
    let locator = Locator {
        working_dir: folder.into(),
        ..Locator::default()
    };
    let model = ModelRef::parse(name).unwrap();
    let location = locator
        .locate(&model)
        .map_err(|e| errors::in_one_line(&e))?;
    Checkpoint::open(name, &location).map_err(|e| errors::in_one_line(&e))
}

/// A single file `model.safetensors` and an adapter `lora.safetensors`.
fn bench(model: &[Tensor], adapter: &[Tensor]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("model.safetensors"), &file(model, &[]));
    write(&folder.path().join("lora.safetensors"), &file(adapter, &[]));
    folder
}

fn both(folder: &TempDir) -> Result<Checkpoint, String> {
    open(folder.path(), "model.safetensors+lora.safetensors")
}

fn values(model: &Checkpoint, name: &str) -> Vec<f64> {
    let index = model.find(name).unwrap();
    let mut out = vec![0f64; model.tensors()[index].elements() as usize];
    let elements = model.elements(index).unwrap();
    numeric::Fill::<f64>::fill(elements.as_ref(), 0, &mut out).unwrap();
    out
}

/// `W + scale B A`; a kernel counts as the inputs of each output.
fn sum(base: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Vec<f64> {
    let (out, rank) = (b.1[0], b.1[1]);
    let inputs = a.2.len() / rank;
    assert_eq!(base.2.len(), out * inputs);
    let at = |(place, value): (usize, &f32)| {
        let (row, column) = (place / inputs, place % inputs);
        let part = |k: usize| f64::from(b.2[row * rank + k]) * f64::from(a.2[k * inputs + column]);
        f64::from(*value) + scale * (0..rank).map(part).sum::<f64>()
    };
    base.2.iter().enumerate().map(at).collect()
}

fn alpha(name: &str, value: f32) -> Tensor {
    (name.to_owned(), vec![], vec![value])
}

/// The rows of a tensor, as one with a name of its own.
fn rows(tensor: &Tensor, range: std::ops::Range<usize>) -> Tensor {
    let width: usize = tensor.1[1..].iter().product();
    let shape = [&[range.len()], &tensor.1[1..]].concat();
    let values = tensor.2[range.start * width..range.end * width].to_vec();
    (tensor.0.clone(), shape, values)
}

#[test]
fn kohyas_files_go_onto_single_files() {
    let unet = |name: &str| format!("model.diffusion_model.{name}.weight");
    let te = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight";
    let model = [
        tensor(&unet("input_blocks.1.1.proj_in"), &[4, 3, 1, 1]),
        tensor(&unet("input_blocks.1.0.in_layers.2"), &[4, 3, 3, 3]),
        tensor(&unet("output_blocks.2.1.conv"), &[4, 4]),
        tensor(te, &[6, 3]),
        tensor("first_stage_model.encoder.conv_in.weight", &[2, 2]),
    ];
    let own = "lora_unet_input_blocks_1_1_proj_in";
    let of_diffusers = "lora_unet_down_blocks_0_resnets_0_conv1";
    let text = "lora_te_text_model_encoder_layers_0_mlp_fc1";
    let up = "lora_unet_up_blocks_0_upsamplers_0_conv";
    let adapter = [
        // A linear layer's factors for a convolution with a kernel of one.
        tensor(&format!("{own}.lora_down.weight"), &[2, 3]),
        tensor(&format!("{own}.lora_up.weight"), &[4, 2]),
        alpha(&format!("{own}.alpha"), 1.0),
        tensor(&format!("{of_diffusers}.lora_down.weight"), &[2, 3, 3, 3]),
        tensor(&format!("{of_diffusers}.lora_up.weight"), &[4, 2, 1, 1]),
        alpha(&format!("{of_diffusers}.alpha"), 6.0),
        tensor(&format!("{text}.lora_down.weight"), &[1, 3]),
        tensor(&format!("{text}.lora_up.weight"), &[6, 1]),
        tensor(&format!("{up}.lora_down.weight"), &[2, 4]),
        tensor(&format!("{up}.lora_up.weight"), &[4, 2]),
    ];
    let folder = bench(&model, &adapter);
    let adapted = both(&folder).unwrap();
    let expected = [
        (0, sum(&model[0], &adapter[0], &adapter[1], 0.5)),
        (1, sum(&model[1], &adapter[3], &adapter[4], 3.0)),
        (2, sum(&model[2], &adapter[8], &adapter[9], 1.0)),
        (3, sum(&model[3], &adapter[6], &adapter[7], 1.0)),
    ];
    for (at, expected) in expected {
        assert_eq!(values(&adapted, &model[at].0), expected, "{}", model[at].0);
    }
    assert_eq!(adapted.only_adapter().unwrap().changed().len(), 4);
    // Twice, once with the other sign.
    let name = "model.safetensors+lora.safetensors@0.5+lora.safetensors@-0.25";
    let adapted = open(folder.path(), name).unwrap();
    assert_eq!(
        values(&adapted, te),
        sum(&model[3], &adapter[6], &adapter[7], 0.25)
    );
    let names: Vec<String> = adapted
        .shards()
        .iter()
        .map(|shard| shard.file_name())
        .collect();
    assert_eq!(
        names,
        [
            "model.safetensors",
            "lora.safetensors",
            "+2/lora.safetensors"
        ]
    );
}

#[test]
fn projections_that_are_fused_in_one_of_the_two_are_found_in_the_other() {
    // Flux as its authors publish it, and an adapter as diffusers names it.
    let (hidden, mlp) = (4, 6);
    let fused = [
        tensor("double_blocks.0.img_attn.qkv.weight", &[3 * hidden, hidden]),
        tensor(
            "single_blocks.1.linear1.weight",
            &[3 * hidden + mlp, hidden],
        ),
        tensor(
            "final_layer.adaLN_modulation.1.weight",
            &[2 * hidden, hidden],
        ),
    ];
    let names = [
        ("transformer_blocks.0.attn.to_q", 0, 0..4),
        ("transformer_blocks.0.attn.to_v", 0, 8..12),
        ("single_transformer_blocks.1.attn.to_k", 1, 4..8),
        ("single_transformer_blocks.1.proj_mlp", 1, 12..18),
    ];
    let mut adapter = Vec::new();
    for (name, _, range) in &names {
        adapter.push(tensor(
            &format!("transformer.{name}.lora_A.weight"),
            &[2, hidden],
        ));
        adapter.push(tensor(
            &format!("transformer.{name}.lora_B.weight"),
            &[range.len(), 2],
        ));
    }
    let norm = "transformer.norm_out.linear";
    adapter.push(tensor(&format!("{norm}.lora_A.weight"), &[2, hidden]));
    adapter.push(tensor(&format!("{norm}.lora_B.weight"), &[2 * hidden, 2]));
    let adapted = both(&bench(&fused, &adapter)).unwrap();
    for (number, (name, at, range)) in names.iter().enumerate() {
        let base = rows(&fused[*at], range.clone());
        let expected = sum(&base, &adapter[2 * number], &adapter[2 * number + 1], 1.0);
        let found = values(&adapted, &fused[*at].0);
        assert_eq!(
            found[range.start * hidden..range.end * hidden],
            expected,
            "{name}"
        );
    }
    let untouched = values(&adapted, &fused[0].0)[4 * hidden..8 * hidden].to_vec();
    assert_eq!(
        untouched,
        sum(&rows(&fused[0], 4..8), &adapter[0], &adapter[1], 0.0)
    );
    // Shift and scale lie the other way round.
    let (a, b) = (&adapter[8], &adapter[9]);
    let found = values(&adapted, &fused[2].0);
    let halves = [(0..4, 4..8), (4..8, 0..4)];
    for (of_model, of_adapter) in halves {
        let expected = sum(
            &rows(&fused[2], of_model.clone()),
            a,
            &rows(b, of_adapter),
            1.0,
        );
        assert_eq!(
            found[of_model.start * hidden..of_model.end * hidden],
            expected
        );
    }

    // The other way round: the model of diffusers, and the authors' names.
    let split = [
        tensor("transformer_blocks.0.attn.to_q.weight", &[hidden, hidden]),
        tensor("transformer_blocks.0.attn.to_k.weight", &[hidden, hidden]),
        tensor("transformer_blocks.0.attn.to_v.weight", &[hidden, hidden]),
        tensor(
            "single_transformer_blocks.1.attn.to_q.weight",
            &[hidden, hidden],
        ),
        tensor(
            "single_transformer_blocks.1.attn.to_k.weight",
            &[hidden, hidden],
        ),
        tensor(
            "single_transformer_blocks.1.attn.to_v.weight",
            &[hidden, hidden],
        ),
        tensor(
            "single_transformer_blocks.1.proj_mlp.weight",
            &[mlp, hidden],
        ),
    ];
    let (qkv, linear) = (
        "lora_unet_double_blocks_0_img_attn_qkv",
        "lora_unet_single_blocks_1_linear1",
    );
    let adapter = [
        tensor(&format!("{qkv}.lora_down.weight"), &[2, hidden]),
        tensor(&format!("{qkv}.lora_up.weight"), &[3 * hidden, 2]),
        tensor(&format!("{linear}.lora_down.weight"), &[2, hidden]),
        tensor(&format!("{linear}.lora_up.weight"), &[3 * hidden + mlp, 2]),
    ];
    let adapted = both(&bench(&split, &adapter)).unwrap();
    let starts = [0, 4, 8, 0, 4, 8, 12];
    for (number, (base, start)) in split.iter().zip(starts).enumerate() {
        let (a, b) = if number < 3 { (0, 1) } else { (2, 3) };
        let b = rows(&adapter[b], start..start + base.1[0]);
        assert_eq!(
            values(&adapted, &base.0),
            sum(base, &adapter[a], &b, 1.0),
            "{}",
            base.0
        );
    }
}

#[test]
fn the_parts_of_a_pipeline_each_get_what_is_theirs() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| write(&folder.path().join("pipe").join(name), bytes);
    let index = json!({
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"], "text_encoder": ["transformers", "CLIPTextModel"],
    });
    put("model_index.json", index.to_string().as_bytes());
    let to_q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
    let fc1 = "text_model.encoder.layers.0.mlp.fc1";
    let unet = tensor(&format!("{to_q}.weight"), &[4, 4]);
    let text = tensor(&format!("{fc1}.weight"), &[6, 3]);
    put(
        "unet/config.json",
        br#"{"_class_name": "UNet2DConditionModel"}"#,
    );
    put(
        "unet/diffusion_pytorch_model.safetensors",
        &file(std::slice::from_ref(&unet), &[]),
    );
    put(
        "text_encoder/config.json",
        br#"{"model_type": "clip_text_model"}"#,
    );
    put(
        "text_encoder/model.safetensors",
        &file(std::slice::from_ref(&text), &[]),
    );
    let adapter = [
        tensor(&format!("unet.{to_q}.lora_A.weight"), &[2, 4]),
        tensor(&format!("unet.{to_q}.lora_B.weight"), &[4, 2]),
        tensor(&format!("text_encoder.{fc1}.lora_A.weight"), &[2, 3]),
        tensor(&format!("text_encoder.{fc1}.lora_B.weight"), &[6, 2]),
    ];
    let said = json!({"unet.r": 2, "unet.lora_alpha": 8, "text_encoder.r": 2, "text_encoder.lora_alpha": 1});
    let lora = folder.path().join("lora/pytorch_lora_weights.safetensors");
    write(
        &lora,
        &file(&adapter, &[("lora_adapter_metadata", said.to_string())]),
    );
    let adapted = open(folder.path(), "pipe+lora").unwrap();
    let expected = sum(&unet, &adapter[0], &adapter[1], 4.0);
    assert_eq!(values(&adapted, &format!("unet/{to_q}.weight")), expected);
    let expected = sum(&text, &adapter[2], &adapter[3], 0.5);
    assert_eq!(
        values(&adapted, &format!("text_encoder/{fc1}.weight")),
        expected
    );
    assert_eq!(adapted.adapters().len(), 2);
    let changed: Vec<usize> = adapted
        .adapters()
        .iter()
        .flat_map(|applied| applied.changed())
        .collect();
    assert!(changed.iter().all(|&index| adapted.is_adapted(index)) && changed.len() == 2);
    // A folder of PEFT is for one of them.
    std::fs::create_dir(folder.path().join("peft")).unwrap();
    let message = open(folder.path(), "pipe+peft").unwrap_err();
    assert!(
        message.contains("this is a pipeline of several"),
        "{message}"
    );
    // An older name, and a component by itself, which lacks the text encoder.
    let old = to_q.replace("to_q", "processor.to_q_lora");
    let adapter = [
        tensor(&format!("unet.{old}.down.weight"), &[2, 4]),
        tensor(&format!("unet.{old}.up.weight"), &[4, 2]),
    ];
    write(&lora, &file(&adapter, &[]));
    let adapted = open(folder.path(), "pipe/unet+lora@2").unwrap();
    assert_eq!(
        values(&adapted, &format!("{to_q}.weight")),
        sum(&unet, &adapter[0], &adapter[1], 2.0)
    );
}

#[test]
fn what_does_not_resolve_is_an_error_that_names_it() {
    let model = [
        tensor(
            "model.diffusion_model.input_blocks.1.1.proj_in.weight",
            &[4, 4],
        ),
        tensor("model.diffusion_model.a.b_c.weight", &[4, 4]),
        tensor("model.diffusion_model.a_b.c.weight", &[4, 4]),
    ];
    let module = |name: &str| {
        vec![
            tensor(&format!("{name}.lora_down.weight"), &[2, 4]),
            tensor(&format!("{name}.lora_up.weight"), &[4, 2]),
        ]
    };
    let proj = "lora_unet_input_blocks_1_1_proj_in";
    let more = |key: &str, shape: &[usize]| {
        [module(proj), vec![tensor(&format!("{proj}.{key}"), shape)]].concat()
    };
    let cases = [
        (
            module("lora_unet_input_blocks_9_1_proj_in"),
            "names no module of the model",
        ),
        (
            module("lora_te_text_model_x"),
            "lora_te_text_model_x.lora_down.weight",
        ),
        (
            module("lora_unet_a_b_c"),
            "could be for `model.diffusion_model.a",
        ),
        (
            module("base_model.model.q"),
            "whose scale is in its adapter_config.json",
        ),
        (
            module(proj)[..1].to_vec(),
            "is there without its second factor",
        ),
        (more("alpha", &[2]), "expected one finite number"),
        (more("dora_scale", &[4]), "is of a DoRA"),
        (
            more("hada_w1_a", &[4, 2]),
            "are both that part of the same module",
        ),
        (
            more("lokr_w1", &[4, 2]),
            "are both that part of the same module",
        ),
        (more("lokr_t1", &[2, 2]), "is no part of a LoRA file"),
        (more("lora_mid.weight", &[2, 2]), "Tucker"),
        (more("diff_b", &[4]), "whole difference"),
        (more("other", &[4]), "is no part of a LoRA file"),
        (
            vec![
                tensor(&format!("{proj}.lora_down.weight"), &[2, 4]),
                tensor(&format!("{proj}.lora_up.weight"), &[4, 3]),
            ],
            "[..., 2], the rank of `lora_unet_input_blocks_1_1_proj_in.lora_down.weight`",
        ),
        (
            vec![
                tensor(&format!("{proj}.lora_down.weight"), &[0, 4]),
                tensor(&format!("{proj}.lora_up.weight"), &[4, 0]),
            ],
            "at least one rank",
        ),
        (
            vec![
                tensor(&format!("{proj}.lora_down.weight"), &[2, 5]),
                tensor(&format!("{proj}.lora_up.weight"), &[4, 2]),
            ],
            "that fits `model.diffusion_model.input_blocks.1.1.proj_in.weight`",
        ),
    ];
    for (adapter, part) in cases {
        let message = both(&bench(&model, &adapter)).unwrap_err();
        assert!(message.contains(part), "expected {part:?} in: {message}");
        assert!(
            message.contains("lora.safetensors") && message.contains("; hint: "),
            "{message}"
        );
    }
}

/// A model that has these modules.
struct Modules(Vec<(&'static str, Vec<usize>)>);

impl Shapes for Modules {
    fn shape(&self, module: &str) -> Option<&[usize]> {
        let found = self.0.iter().find(|(name, _)| *name == module);
        found.map(|(_, shape)| shape.as_slice())
    }

    fn has(&self, prefix: &str) -> bool {
        self.0.iter().any(|(name, _)| name.starts_with(prefix))
    }
}

/// Each pair is one of diffusers' conversions (0.42); both directions must give the other.
#[test]
fn names_of_authors_and_of_diffusers_are_each_others() {
    let model = Modules(vec![("up_blocks.1.attentions.0.proj_in", vec![4, 4])]);
    let pairs = [
        ("input_blocks.0.0", "conv_in"),
        ("time_embed.2", "time_embedding.linear_2"),
        ("label_emb.0.2", "add_embedding.linear_2"),
        ("out.2", "conv_out"),
        (
            "input_blocks.1.0.in_layers.2",
            "down_blocks.0.resnets.0.conv1",
        ),
        (
            "input_blocks.2.1.transformer_blocks.0.attn1.to_q",
            "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q",
        ),
        ("input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv"),
        (
            "input_blocks.4.0.skip_connection",
            "down_blocks.1.resnets.0.conv_shortcut",
        ),
        (
            "input_blocks.11.0.emb_layers.1",
            "down_blocks.3.resnets.1.time_emb_proj",
        ),
        ("middle_block.0.out_layers.3", "mid_block.resnets.0.conv2"),
        ("middle_block.1.proj_out", "mid_block.attentions.0.proj_out"),
        ("middle_block.2.in_layers.0", "mid_block.resnets.1.norm1"),
        ("output_blocks.2.1.conv", "up_blocks.0.upsamplers.0.conv"),
        ("output_blocks.5.2.conv", "up_blocks.1.upsamplers.0.conv"),
        (
            "output_blocks.5.1.proj_in",
            "up_blocks.1.attentions.2.proj_in",
        ),
        (
            "output_blocks.11.0.out_layers.0",
            "up_blocks.3.resnets.2.norm2",
        ),
        ("img_in", "x_embedder"),
        (
            "double_blocks.18.txt_mlp.0",
            "transformer_blocks.18.ff_context.net.0.proj",
        ),
        (
            "single_blocks.3.modulation.lin",
            "single_transformer_blocks.3.norm.linear",
        ),
    ];
    for (one, other) in pairs {
        for (module, wanted) in [(one, other), (other, one)] {
            let found = of_denoiser(module, &model);
            let wanted = Alias {
                module: wanted.to_owned(),
                rows: Rows::All,
                into_rows: Rows::All,
            };
            assert_eq!(found, [wanted], "{module}");
        }
    }
    for module in [
        "input_blocks",
        "input_blocks.x.0.op",
        "down_blocks.99999999999999999999.resnets.0.conv1",
        "",
        ".",
        "single_blocks",
    ] {
        assert_eq!(of_denoiser(module, &model), [], "{module}");
    }
    let resblock = "transformer.resblocks.7.";
    let found = of_text_encoder(&format!("{resblock}attn"));
    let names: Vec<&str> = found.iter().map(|alias| alias.module.as_str()).collect();
    let at = |name: &str| format!("text_model.encoder.layers.7.self_attn.{name}");
    assert_eq!(names, [at("q_proj"), at("k_proj"), at("v_proj")]);
    assert_eq!(found[2].into_rows, Rows::Part { index: 2, of: 3 });
    assert_eq!(
        of_text_encoder(&format!("{resblock}mlp.c_fc"))[0].module,
        "text_model.encoder.layers.7.mlp.fc1"
    );
}
