//! LoHa and LoKr, as LyCORIS writes them.

use super::*;

const PROJ: &str = "lora_unet_input_blocks_1_1_proj_in";
const CONV: &str = "lora_unet_down_blocks_0_resnets_0_conv1";

fn model() -> [Tensor; 2] {
    let unet = |name: &str| format!("model.diffusion_model.{name}.weight");
    [
        tensor(&unet("input_blocks.1.1.proj_in"), &[6, 4, 1, 1]),
        tensor(&unet("input_blocks.1.0.in_layers.2"), &[6, 4, 3, 3]),
    ]
}

/// The parts of a module, with an alpha.
fn module(name: &str, parts: &[(&str, &[usize])], scale: Option<f32>) -> Vec<Tensor> {
    let part = |(part, shape): &(&str, &[usize])| tensor(&format!("{name}.{part}"), shape);
    let parts = parts.iter().map(part);
    let alpha = scale.map(|value| alpha(&format!("{name}.alpha"), value));
    parts.chain(alpha).collect()
}

/// A matrix of numbers, row by row.
#[derive(Debug, Clone)]
struct Matrix(usize, Vec<f64>);

impl Matrix {
    fn of(tensor: &Tensor) -> Matrix {
        let columns = tensor.1[1..].iter().product();
        Matrix(
            columns,
            tensor.2.iter().map(|value| f64::from(*value)).collect(),
        )
    }

    fn rows(&self) -> usize {
        self.1.len() / self.0
    }

    fn times(&self, other: &Matrix) -> Matrix {
        let at = |place: usize| {
            let (row, column) = (place / other.0, place % other.0);
            let term = |k: usize| self.1[row * self.0 + k] * other.1[k * other.0 + column];
            (0..self.0).map(term).sum()
        };
        Matrix(other.0, (0..self.rows() * other.0).map(at).collect())
    }

    fn by_elements(&self, other: &Matrix) -> Matrix {
        let pairs = self.1.iter().zip(&other.1);
        Matrix(self.0, pairs.map(|(one, other)| one * other).collect())
    }

    fn kron(&self, other: &Matrix) -> Matrix {
        let columns = self.0 * other.0;
        let at = |place: usize| {
            let (row, column) = (place / columns, place % columns);
            let first = self.1[row / other.rows() * self.0 + column / other.0];
            first * other.1[row % other.rows() * other.0 + column % other.0]
        };
        Matrix(columns, (0..self.1.len() * other.1.len()).map(at).collect())
    }

    fn added_to(&self, base: &Tensor, scale: f64) -> Vec<f64> {
        assert_eq!(base.2.len(), self.1.len());
        let pairs = base.2.iter().zip(&self.1);
        pairs
            .map(|(base, value)| f64::from(*base) + scale * value)
            .collect()
    }
}

/// `sum over i, j of core[i, j, k] a[i, row] b[j, input]`.
fn tucker(core: &Tensor, a: &Tensor, b: &Tensor) -> Matrix {
    let (rank, rows, inputs) = (core.1[0], a.1[1], b.1[1]);
    let kernel = core.2.len() / rank / rank;
    let mut out = Vec::new();
    for row in 0..rows {
        for (input, k) in (0..inputs).flat_map(|input| (0..kernel).map(move |k| (input, k))) {
            let pairs = (0..rank).flat_map(|i| (0..rank).map(move |j| (i, j)));
            let term = |(i, j)| {
                let core: f32 = core.2[(i * rank + j) * kernel + k];
                f64::from(core * a.2[i * rows + row] * b.2[j * inputs + input])
            };
            out.push(pairs.map(term).sum());
        }
    }
    Matrix(inputs * kernel, out)
}

#[test]
fn loha_is_added_to_linear_layers_and_kernels() {
    let flat: [(&str, &[usize]); 4] = [
        ("hada_w1_a", &[6, 2]),
        ("hada_w1_b", &[2, 4]),
        ("hada_w2_a", &[6, 2]),
        ("hada_w2_b", &[2, 4]),
    ];
    let kernel: [(&str, &[usize]); 6] = [
        ("hada_t1", &[2, 2, 3, 3]),
        ("hada_w1_a", &[2, 6]),
        ("hada_w1_b", &[2, 4]),
        ("hada_t2", &[2, 2, 3, 3]),
        ("hada_w2_a", &[2, 6]),
        ("hada_w2_b", &[2, 4]),
    ];
    let (one, other) = (module(PROJ, &flat, Some(3.0)), module(CONV, &kernel, None));
    let model = model();
    let folder = bench(&model, &[one.clone(), other.clone()].concat());
    let adapted = both(&folder).unwrap();
    let product = |at: usize| Matrix::of(&one[at]).times(&Matrix::of(&one[at + 1]));
    let expected = product(0).by_elements(&product(2)).added_to(&model[0], 1.5);
    assert_eq!(values(&adapted, &model[0].0), expected);
    let first = tucker(&other[0], &other[1], &other[2]);
    let second = tucker(&other[3], &other[4], &other[5]);
    let expected = first.by_elements(&second).added_to(&model[1], 1.0);
    assert_eq!(values(&adapted, &model[1].0), expected);
    let adapter = adapted.only_adapter().unwrap();
    assert_eq!(
        (adapter.kinds(), adapter.ranks()),
        (vec!["LoHa"], Some((2, 2)))
    );
    assert!(
        adapter
            .product(adapted.find(&model[0].0).unwrap())
            .is_none()
    );
}

#[test]
fn lokr_is_added_whole_and_in_factors() {
    let model = model();
    let check =
        |parts: &[(&str, &[usize])], at: usize, twin: &dyn Fn(&[Tensor]) -> Matrix, scale| {
            let name = [PROJ, CONV][at];
            let adapter = module(name, parts, Some(3.0));
            let adapted = both(&bench(&model, &adapter)).unwrap();
            let expected = twin(&adapter).added_to(&model[at], scale);
            assert_eq!(values(&adapted, &model[at].0), expected, "{parts:?}");
            // Where nothing is in factors there is no rank, and alpha means nothing.
            let ranks = adapted.only_adapter().unwrap().ranks();
            assert_eq!(ranks.is_none(), scale == 1.0);
        };
    let of = |tensors: &[Tensor], at: usize| Matrix::of(&tensors[at]);
    let whole: [(&str, &[usize]); 2] = [("lokr_w1", &[2, 2]), ("lokr_w2", &[3, 2])];
    check(&whole, 0, &|t| of(t, 0).kron(&of(t, 1)), 1.0);
    let kernel: [(&str, &[usize]); 2] = [("lokr_w1", &[3, 4]), ("lokr_w2", &[2, 1, 3, 3])];
    check(&kernel, 1, &|t| of(t, 0).kron(&of(t, 1)), 1.0);
    let second: [(&str, &[usize]); 3] = [
        ("lokr_w1", &[2, 2]),
        ("lokr_w2_a", &[3, 2]),
        ("lokr_w2_b", &[2, 18]),
    ];
    check(
        &second,
        1,
        &|t| of(t, 0).kron(&of(t, 1).times(&of(t, 2))),
        1.5,
    );
    let both: [(&str, &[usize]); 4] = [
        ("lokr_w1_a", &[2, 1]),
        ("lokr_w1_b", &[1, 2]),
        ("lokr_w2_a", &[3, 1]),
        ("lokr_w2_b", &[1, 2]),
    ];
    let twin = |t: &[Tensor]| of(t, 0).times(&of(t, 1)).kron(&of(t, 2).times(&of(t, 3)));
    check(&both, 0, &twin, 3.0);
    let core: [(&str, &[usize]); 4] = [
        ("lokr_w1", &[2, 2]),
        ("lokr_t2", &[2, 2, 3, 3]),
        ("lokr_w2_a", &[2, 3]),
        ("lokr_w2_b", &[2, 2]),
    ];
    check(
        &core,
        1,
        &|t| of(t, 0).kron(&tucker(&t[1], &t[2], &t[3])),
        1.5,
    );
}

/// Diffusers' projections, each by itself, and a model that has them fused.
#[test]
fn lokr_goes_into_the_rows_of_a_fused_projection() {
    let fused = "double_blocks.0.img_attn.qkv.weight";
    let model = [tensor(fused, &[12, 4])];
    let name = "transformer.transformer_blocks.0.attn.to_k";
    let parts: [(&str, &[usize]); 2] = [("lokr_w1", &[2, 2]), ("lokr_w2", &[2, 2])];
    let adapter = module(name, &parts, None);
    let adapted = both(&bench(&model, &adapter)).unwrap();
    let product = Matrix::of(&adapter[0]).kron(&Matrix::of(&adapter[1]));
    let keys = product.added_to(&rows(&model[0], 4..8), 1.0);
    let found = values(&adapted, fused);
    assert_eq!(found[16..32], keys);
    let rest = |range: std::ops::Range<usize>| -> Vec<f64> {
        model[0].2[range]
            .iter()
            .map(|value| f64::from(*value))
            .collect()
    };
    assert_eq!(
        (&found[..16], &found[32..]),
        (&rest(0..16)[..], &rest(32..48)[..])
    );
}

/// The other way round: one projection of a fused one's update.
#[test]
fn lokr_of_a_fused_projection_is_cut_into_its_parts() {
    let split = ["q", "k", "v"].map(|part| format!("transformer_blocks.0.attn.to_{part}.weight"));
    let model = [&split[0], &split[1], &split[2]].map(|name| tensor(name, &[4, 4]));
    let parts: [(&str, &[usize]); 2] = [("lokr_w1", &[4, 2]), ("lokr_w2", &[3, 2])];
    let adapter = module("lora_unet_double_blocks_0_img_attn_qkv", &parts, None);
    let adapted = both(&bench(&model, &adapter)).unwrap();
    let product = Matrix::of(&adapter[0]).kron(&Matrix::of(&adapter[1]));
    for (at, base) in model.iter().enumerate() {
        let own = Matrix(4, product.1[at * 16..(at + 1) * 16].to_vec());
        assert_eq!(
            values(&adapted, &base.0),
            own.added_to(base, 1.0),
            "{}",
            base.0
        );
    }
}

#[test]
fn a_weight_and_several_adapters_add_up() {
    let model = model();
    let parts: [(&str, &[usize]); 2] = [("lokr_w1", &[2, 2]), ("lokr_w2", &[3, 2])];
    let adapter = module(&PROJ.replace("lora_unet", "lycoris"), &parts, None);
    let folder = bench(&model, &adapter);
    let name = "model.safetensors+lora.safetensors@0.5+lora.safetensors@-2";
    let adapted = open(folder.path(), name).unwrap();
    let product = Matrix::of(&adapter[0]).kron(&Matrix::of(&adapter[1]));
    let expected = product.added_to(&model[0], -1.5);
    assert_eq!(values(&adapted, &model[0].0), expected);
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let model = model();
    let loha: [(&str, &[usize]); 4] = [
        ("hada_w1_a", &[6, 2]),
        ("hada_w1_b", &[2, 4]),
        ("hada_w2_a", &[6, 2]),
        ("hada_w2_b", &[2, 4]),
    ];
    let lokr: [(&str, &[usize]); 3] = [
        ("lokr_w1", &[2, 2]),
        ("lokr_w2_a", &[3, 2]),
        ("lokr_w2_b", &[2, 2]),
    ];
    let changed = |parts: &[(&'static str, &'static [usize])],
                   part: &'static str,
                   shape: Option<&'static [usize]>| {
        let mut parts = parts.to_vec();
        parts.retain(|(name, _)| *name != part);
        parts.extend(shape.map(|shape| (part, shape)));
        module(PROJ, &parts, Some(1.0))
    };
    let huge = || {
        let mut parts = module(PROJ, &[("lokr_w1", &[2, 2]), ("lokr_w2", &[3, 2])], None);
        parts[0].1 = vec![usize::MAX, 0];
        parts[1].1 = vec![0, usize::MAX];
        parts.iter_mut().for_each(|part| part.2.clear());
        parts
    };
    let mut no_scalar = module(PROJ, &lokr, None);
    no_scalar.push(tensor(&format!("{PROJ}.alpha"), &[2]));
    let mut not_a_number = module(PROJ, &lokr, None);
    not_a_number.push(alpha(&format!("{PROJ}.alpha"), f32::NAN));
    let cases = [
        (changed(&loha, "hada_w1_b", None), "without its hada_w1_b"),
        (changed(&loha, "hada_w2_a", None), "without its hada_w2_a"),
        (
            changed(&loha, "hada_t1", Some(&[2, 2, 1, 1])),
            "without its hada_t2",
        ),
        (
            changed(&loha, "hada_w2_a", Some(&[5, 2])),
            "a matrix of the size of that",
        ),
        (changed(&loha, "hada_w2_b", Some(&[3, 4])), "[..., rank]"),
        (
            changed(&loha, "lokr_w1", Some(&[2, 2])),
            "are both that part",
        ),
        (changed(&loha, "dora_scale", Some(&[6])), "is of a DoRA"),
        (changed(&lokr, "lokr_w1", None), "without its lokr_w1"),
        (changed(&lokr, "lokr_w2_a", None), "without its lokr_w2_a"),
        (
            changed(&lokr, "lokr_w2", Some(&[3, 2])),
            "are both that part",
        ),
        (
            changed(&lokr, "lokr_w1", Some(&[2, 3])),
            "that fits `model.diffusion_model",
        ),
        (
            changed(&lokr, "lokr_w1", Some(&[2, 2, 1])),
            "a matrix: rows and columns",
        ),
        (changed(&lokr, "lokr_w1", Some(&[2])), "rows and columns"),
        (
            changed(&lokr, "lokr_t2", Some(&[2, 2, 3, 3])),
            "[rank, rank, kernel]",
        ),
        (
            changed(&lokr, "lokr_w2_a", Some(&[0, 2])),
            "at least one row",
        ),
        (no_scalar, "one finite number"),
        (not_a_number, "one finite number"),
        (huge(), "at least one row"),
        (
            module(
                PROJ,
                &[
                    ("lokr_w1", &[2, 2]),
                    ("lokr_w2", &[3, 2]),
                    ("lokr_t2", &[1, 1]),
                ],
                None,
            ),
            "the matrix is there whole",
        ),
        (
            module(
                PROJ,
                &[
                    ("lokr_w1_a", &[2, 2]),
                    ("lokr_w1_b", &[2, 2]),
                    ("lokr_w2_a", &[3, 1]),
                    ("lokr_w2_b", &[1, 2]),
                ],
                None,
            ),
            "the rank of `lora_unet_input_blocks_1_1_proj_in.lokr_w2_a`",
        ),
    ];
    for (adapter, part) in cases {
        let message = both(&bench(&model, &adapter)).unwrap_err();
        assert!(message.contains(part), "expected {part:?} in: {message}");
        let names = message.contains("lora.safetensors") && message.contains("; hint: ");
        assert!(names, "{message}");
    }
}
