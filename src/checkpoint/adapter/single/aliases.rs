//! The other names of a tensor: image models are published with the names of diffusers and with those of their authors,
//! and some projections are fused in one of the two.

use crate::adapter::cuts::Rows;

/// Another name of a module, or of a module that it is a part of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Alias {
    /// The name.
    pub(super) module: String,
    /// Which rows of that module's product are for this one.
    pub(super) rows: Rows,
    /// Which rows of this module they are for.
    pub(super) into_rows: Rows,
}

impl Alias {
    fn whole(module: String) -> Alias {
        Alias {
            module,
            rows: Rows::All,
            into_rows: Rows::All,
        }
    }
}

/// The shapes of a model's modules, by their names.
pub(super) trait Shapes {
    /// The shape of a module's weight.
    fn shape(&self, module: &str) -> Option<&[usize]>;

    /// Whether any module's name starts so.
    fn has(&self, prefix: &str) -> bool;
}

/// The other names of a module of an image model's denoiser.
pub(super) fn of_denoiser(module: &str, model: &dyn Shapes) -> Vec<Alias> {
    let words: Vec<&str> = module.split('.').collect();
    let unet = unet_in_diffusers(&words).or_else(|| unet_of_authors(&words, model));
    match unet {
        Some(other) => vec![Alias::whole(other)],
        None => flux_in_diffusers(&words, model.shape(module))
            .or_else(|| flux_of_authors(&words, module, model))
            .unwrap_or_default(),
    }
}

/// The other names of a module of a text encoder: those of CLIP in transformers, for OpenCLIP's.
pub(super) fn of_text_encoder(module: &str) -> Vec<Alias> {
    let words: Vec<&str> = module.split('.').collect();
    let ["transformer", "resblocks", layer, rest @ ..] = words.as_slice() else {
        // The model's own prefix is left out in some files.
        return match module.starts_with("encoder.layers.") {
            true => vec![Alias::whole(format!("text_model.{module}"))],
            false => Vec::new(),
        };
    };
    let at = |name: &str| format!("text_model.encoder.layers.{layer}.{name}");
    match rest {
        ["attn"] => (0..3)
            .zip(["q_proj", "k_proj", "v_proj"])
            .map(|(index, name)| Alias {
                module: at(&format!("self_attn.{name}")),
                rows: Rows::All,
                into_rows: Rows::Part { index, of: 3 },
            })
            .collect(),
        ["attn", "out_proj"] => vec![Alias::whole(at("self_attn.out_proj"))],
        ["mlp", "c_fc"] => vec![Alias::whole(at("mlp.fc1"))],
        ["mlp", "c_proj"] => vec![Alias::whole(at("mlp.fc2"))],
        _ => Vec::new(),
    }
}

/// The parts of a residual block, as the authors and as diffusers call them.
const RESIDUAL: [(&str, &str); 6] = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];

/// The modules of a UNet that lie in no block, as the authors and as diffusers call them.
const OUTSIDE: [(&str, &str); 7] = [
    ("input_blocks.0.0", "conv_in"),
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
];

/// How many of the authors' blocks one of diffusers' is: two layers and what changes the size.
const LEVEL: usize = 3;

/// The name in diffusers of a module of Stable Diffusion's UNet.
fn unet_in_diffusers(words: &[&str]) -> Option<String> {
    let module = words.join(".");
    if let Some((_, other)) = OUTSIDE.iter().find(|(name, _)| *name == module) {
        return Some((*other).to_owned());
    }
    let [stack, number, rest @ ..] = words else {
        return None;
    };
    let residual = |rest: &[&str]| {
        let name = rest.join(".");
        RESIDUAL
            .iter()
            .find(|(own, _)| *own == name)
            .map(|(_, other)| *other)
    };
    let number: usize = number.parse().ok()?;
    match (*stack, rest) {
        ("middle_block", rest) if number == 1 => {
            Some(format!("mid_block.attentions.0.{}", rest.join(".")))
        }
        ("middle_block", rest) if number < LEVEL => Some(format!(
            "mid_block.resnets.{}.{}",
            number / 2,
            residual(rest)?
        )),
        ("input_blocks", [place, rest @ ..]) => {
            let number = number.checked_sub(1)?;
            let (level, layer) = (number / LEVEL, number % LEVEL);
            match (*place, rest) {
                ("0", ["op"]) => Some(format!("down_blocks.{level}.downsamplers.0.conv")),
                ("0", rest) => Some(format!(
                    "down_blocks.{level}.resnets.{layer}.{}",
                    residual(rest)?
                )),
                ("1", rest) => Some(format!(
                    "down_blocks.{level}.attentions.{layer}.{}",
                    rest.join(".")
                )),
                _ => None,
            }
        }
        ("output_blocks", [place, rest @ ..]) => {
            let (level, layer) = (number / LEVEL, number % LEVEL);
            match (*place, rest) {
                (_, ["conv"]) => Some(format!("up_blocks.{level}.upsamplers.0.conv")),
                ("0", rest) => Some(format!(
                    "up_blocks.{level}.resnets.{layer}.{}",
                    residual(rest)?
                )),
                ("1", rest) => Some(format!(
                    "up_blocks.{level}.attentions.{layer}.{}",
                    rest.join(".")
                )),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The authors' name of a module of diffusers' UNet.
fn unet_of_authors(words: &[&str], model: &dyn Shapes) -> Option<String> {
    let module = words.join(".");
    if let Some((other, _)) = OUTSIDE.iter().find(|(_, name)| *name == module) {
        return Some((*other).to_owned());
    }
    let (stack, level, kind, number, rest) = match words {
        ["mid_block", kind, number, rest @ ..] => ("mid_block", "0", *kind, *number, rest),
        [stack, level, kind, number, rest @ ..] => (*stack, *level, *kind, *number, rest),
        _ => return None,
    };
    let (level, number): (usize, usize) = (level.parse().ok()?, number.parse().ok()?);
    let rest = rest.join(".");
    let inside = match kind {
        "resnets" => RESIDUAL.iter().find(|(_, own)| *own == rest)?.0.to_owned(),
        _ => rest,
    };
    let first = level.checked_mul(LEVEL)?.checked_add(number)?;
    match (stack, kind) {
        ("mid_block", "resnets") => Some(format!("middle_block.{}.{inside}", 2 * number.min(1))),
        ("mid_block", "attentions") => Some(format!("middle_block.1.{inside}")),
        ("down_blocks", "resnets") => Some(format!("input_blocks.{}.0.{inside}", first + 1)),
        ("down_blocks", "attentions") => Some(format!("input_blocks.{}.1.{inside}", first + 1)),
        ("down_blocks", "downsamplers") => Some(format!("input_blocks.{}.0.op", first + LEVEL)),
        ("up_blocks", "resnets") => Some(format!("output_blocks.{first}.0.{inside}")),
        ("up_blocks", "attentions") => Some(format!("output_blocks.{first}.1.{inside}")),
        ("up_blocks", "upsamplers") => {
            let attends = model.has(&format!("up_blocks.{level}.attentions."));
            let place = if attends { 2 } else { 1 };
            Some(format!("output_blocks.{}.{place}.conv", first + 2))
        }
        _ => None,
    }
}

/// The modules of Flux that are one in both, as its authors and as diffusers call them. A number stands for `#`.
const FLUX: [(&str, &str); 20] = [
    ("img_in", "x_embedder"),
    ("txt_in", "context_embedder"),
    (
        "time_in.in_layer",
        "time_text_embed.timestep_embedder.linear_1",
    ),
    (
        "time_in.out_layer",
        "time_text_embed.timestep_embedder.linear_2",
    ),
    (
        "guidance_in.in_layer",
        "time_text_embed.guidance_embedder.linear_1",
    ),
    (
        "guidance_in.out_layer",
        "time_text_embed.guidance_embedder.linear_2",
    ),
    (
        "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_1",
    ),
    (
        "vector_in.out_layer",
        "time_text_embed.text_embedder.linear_2",
    ),
    ("final_layer.linear", "proj_out"),
    (
        "double_blocks.#.img_mod.lin",
        "transformer_blocks.#.norm1.linear",
    ),
    (
        "double_blocks.#.txt_mod.lin",
        "transformer_blocks.#.norm1_context.linear",
    ),
    (
        "double_blocks.#.img_attn.proj",
        "transformer_blocks.#.attn.to_out.0",
    ),
    (
        "double_blocks.#.txt_attn.proj",
        "transformer_blocks.#.attn.to_add_out",
    ),
    (
        "double_blocks.#.img_mlp.0",
        "transformer_blocks.#.ff.net.0.proj",
    ),
    ("double_blocks.#.img_mlp.2", "transformer_blocks.#.ff.net.2"),
    (
        "double_blocks.#.txt_mlp.0",
        "transformer_blocks.#.ff_context.net.0.proj",
    ),
    (
        "double_blocks.#.txt_mlp.2",
        "transformer_blocks.#.ff_context.net.2",
    ),
    (
        "single_blocks.#.linear2",
        "single_transformer_blocks.#.proj_out",
    ),
    (
        "single_blocks.#.modulation.lin",
        "single_transformer_blocks.#.norm.linear",
    ),
    // Scale and shift lie the other way round.
    (FINAL_NORM.0, FINAL_NORM.1),
];

/// The last normalisation of Flux, whose two halves are exchanged.
const FINAL_NORM: (&str, &str) = ("final_layer.adaLN_modulation.1", "norm_out.linear");

/// The projections of Flux that its authors fuse by three.
const FUSED: [(&str, [&str; 3]); 2] = [
    ("double_blocks.#.img_attn.qkv", ["to_q", "to_k", "to_v"]),
    (
        "double_blocks.#.txt_attn.qkv",
        ["add_q_proj", "add_k_proj", "add_v_proj"],
    ),
];

/// What the authors of Flux fuse in the first matrix of a single block, before the MLP.
const ATTENTION: [&str; 3] = ["attn.to_q", "attn.to_k", "attn.to_v"];

/// A name with `#` for its only number, and the number.
fn numbered(words: &[&str]) -> (String, String) {
    let is_block = |at: usize| at == 1 && words[0].ends_with("_blocks");
    let name = |(at, word): (usize, &&str)| {
        if is_block(at) {
            "#".to_owned()
        } else {
            (*word).to_owned()
        }
    };
    let names: Vec<String> = words.iter().enumerate().map(name).collect();
    let number = words.get(1).filter(|_| words[0].ends_with("_blocks"));
    (
        names.join("."),
        number.copied().unwrap_or_default().to_owned(),
    )
}

/// The same halves, or those exchanged.
fn halves(module: String, is_final_norm: bool) -> Vec<Alias> {
    if !is_final_norm {
        return vec![Alias::whole(module)];
    }
    let half = |index: usize| Alias {
        module: module.clone(),
        rows: Rows::Part { index, of: 2 },
        into_rows: Rows::Part {
            index: 1 - index,
            of: 2,
        },
    };
    vec![half(0), half(1)]
}

/// The names in diffusers of a module of Flux as its authors publish it.
fn flux_in_diffusers(words: &[&str], shape: Option<&[usize]>) -> Option<Vec<Alias>> {
    let (name, number) = numbered(words);
    let with_number = |name: &str| name.replace('#', &number);
    if let Some((_, other)) = FLUX.iter().find(|(own, _)| *own == name) {
        return Some(halves(with_number(other), name == FINAL_NORM.0));
    }
    if let Some((_, parts)) = FUSED.iter().find(|(own, _)| *own == name) {
        let part = |(index, part): (usize, &&str)| Alias {
            module: format!("transformer_blocks.{number}.attn.{part}"),
            rows: Rows::All,
            into_rows: Rows::Part { index, of: 3 },
        };
        return Some(parts.iter().enumerate().map(part).collect());
    }
    if name != "single_blocks.#.linear1" {
        return None;
    }
    let &[of, hidden] = shape? else { return None };
    let attention = hidden.checked_mul(ATTENTION.len())?;
    let part = |(module, range): (&str, std::ops::Range<usize>)| Alias {
        module: format!("single_transformer_blocks.{number}.{module}"),
        rows: Rows::All,
        into_rows: Rows::Range { range, of },
    };
    let projections = ATTENTION.iter().enumerate();
    let projections = projections.map(|(at, name)| (*name, at * hidden..(at + 1) * hidden));
    Some(
        projections
            .chain([("proj_mlp", attention..of)])
            .map(part)
            .collect(),
    )
}

/// The authors' names of a module of Flux as diffusers publishes it.
fn flux_of_authors(words: &[&str], module: &str, model: &dyn Shapes) -> Option<Vec<Alias>> {
    let (name, number) = numbered(words);
    let with_number = |name: &str| name.replace('#', &number);
    if let Some((other, _)) = FLUX.iter().find(|(_, own)| *own == name) {
        return Some(halves(with_number(other), name == FINAL_NORM.1));
    }
    let fused = FUSED.iter().find_map(|(fused, parts)| {
        let part = name.strip_prefix("transformer_blocks.#.attn.")?;
        let index = parts.iter().position(|other| *other == part)?;
        Some((*fused, index))
    });
    if let Some((fused, index)) = fused {
        return Some(vec![Alias {
            module: with_number(fused),
            rows: Rows::Part { index, of: 3 },
            into_rows: Rows::All,
        }]);
    }
    let part = name.strip_prefix("single_transformer_blocks.#.")?;
    let mlp = model.shape(&format!("single_transformer_blocks.{number}.proj_mlp"))?;
    let &[out, hidden] = model.shape(module)? else {
        return None;
    };
    let attention = hidden.checked_mul(ATTENTION.len())?;
    let range = match ATTENTION.iter().position(|name| *name == part) {
        Some(at) => at * hidden..(at + 1) * hidden,
        None if part == "proj_mlp" => attention..attention.checked_add(out)?,
        None => return None,
    };
    Some(vec![Alias {
        module: format!("single_blocks.{number}.linear1"),
        rows: Rows::Range {
            range,
            of: attention.checked_add(*mlp.first()?)?,
        },
        into_rows: Rows::All,
    }])
}
