use ndarray::{Array2, linalg::kron};
use proptest::prelude::*;

use super::*;
use crate::elements::Order;

/// How one of the two matrices is stored.
#[derive(Debug, Clone, Copy)]
enum Form {
    Whole,
    Product(usize, Order, Order),
    Tucker(usize),
}

/// One of the two: its numbers as they are stored, and the whole of it.
struct Made {
    tensors: Vec<Vec<u8>>,
    whole: Array2<f64>,
}

struct Noise(u64);

impl Noise {
    /// Numbers that an F32 holds.
    fn tensor(&mut self, count: usize) -> (Vec<u8>, Vec<f64>) {
        let next = |_| {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005) ^ 0x9e37_79b9;
            f64::from((self.0 >> 40) as f32 / 16_777_216.0 - 0.5)
        };
        let values: Vec<f64> = (0..count).map(next).collect();
        let bytes = values
            .iter()
            .flat_map(|value| (*value as f32).to_le_bytes());
        (bytes.collect(), values)
    }
}

impl Form {
    /// A matrix of so many rows and inputs, each with a kernel.
    fn make(self, rows: usize, inputs: usize, kernel: usize, noise: &mut Noise) -> Made {
        let columns = inputs * kernel;
        let matrix = |order, places, rank, values: Vec<f64>| match order == Order::ByPlace {
            true => Array2::from_shape_vec((places, rank), values).unwrap(),
            false => Array2::from_shape_vec((rank, places), values)
                .unwrap()
                .reversed_axes(),
        };
        match self {
            Form::Whole => {
                let (bytes, values) = noise.tensor(rows * columns);
                Made {
                    tensors: vec![bytes],
                    whole: Array2::from_shape_vec((rows, columns), values).unwrap(),
                }
            }
            Form::Product(rank, of_left, of_right) => {
                let (left_bytes, left) = noise.tensor(rows * rank);
                let (right_bytes, right) = noise.tensor(rank * columns);
                let left = matrix(of_left, rows, rank, left);
                Made {
                    tensors: vec![left_bytes, right_bytes],
                    whole: left.dot(&matrix(of_right, columns, rank, right).t()),
                }
            }
            Form::Tucker(rank) => {
                let (core_bytes, core) = noise.tensor(rank * rank * kernel);
                let (left_bytes, left) = noise.tensor(rank * rows);
                let (right_bytes, right) = noise.tensor(rank * inputs);
                let at = |(row, column): (usize, usize)| {
                    let (input, k) = (column / kernel, column % kernel);
                    let pairs = (0..rank).flat_map(|i| (0..rank).map(move |j| (i, j)));
                    let term = |(i, j)| {
                        let core: f64 = core[(i * rank + j) * kernel + k];
                        core * left[i * rows + row] * right[j * inputs + input]
                    };
                    pairs.map(term).sum()
                };
                Made {
                    tensors: vec![core_bytes, left_bytes, right_bytes],
                    whole: Array2::from_shape_fn((rows, columns), at),
                }
            }
        }
    }

    fn of<'a>(self, tensors: &'a [Vec<u8>], columns: usize, kernel: usize) -> PairedMatrix<'a> {
        let stored = |at: usize| Stored {
            bytes: &tensors[at],
            format: FloatType::F32,
        };
        let factor = |at, order| Factor {
            values: stored(at),
            order,
        };
        match self {
            Form::Whole => PairedMatrix::Whole {
                values: stored(0),
                columns,
            },
            Form::Product(rank, left, right) => PairedMatrix::Product {
                left: factor(0, left),
                right: factor(1, right),
                rank,
            },
            Form::Tucker(rank) => PairedMatrix::Tucker {
                core: stored(0),
                left: factor(1, Order::ByRank),
                right: factor(2, Order::ByRank),
                rank,
                kernel,
            },
        }
    }
}

fn form() -> impl Strategy<Value = Form> {
    let order = prop::sample::select(vec![Order::ByRank, Order::ByPlace]);
    prop_oneof![
        Just(Form::Whole),
        (1usize..20, order.clone(), order).prop_map(|(rank, l, r)| Form::Product(rank, l, r)),
        (1usize..6).prop_map(Form::Tucker),
    ]
}

/// Checks a range of a pair against the whole of it in f64.
fn check(
    elements: &Paired<'_>,
    product: &Array2<f64>,
    base: &[f64],
    (from, to): (f64, f64),
) -> Result<(), TestCaseError> {
    let place = |at: f64| (at * (base.len() + 1) as f64) as usize;
    let (from, to) = (place(from.min(to)), place(from.max(to)));
    let mut whole = vec![f64::NAN; base.len()];
    Fill::<f64>::fill(elements, 0, &mut whole).unwrap();
    let mut part = vec![f64::NAN; to - from];
    Fill::<f64>::fill(elements, from as u64, &mut part).unwrap();
    prop_assert_eq!(&whole[from..to], &part[..]);
    let mut single = vec![f32::NAN; to - from];
    Fill::<f32>::fill(elements, from as u64, &mut single).unwrap();
    let rounded: Vec<f32> = part.iter().map(|value| *value as f32).collect();
    prop_assert_eq!(rounded, single);
    let rows = product.rows().into_iter().skip(elements.first_row);
    let product: Vec<f64> = rows.flatten().copied().collect();
    for (at, found) in whole.iter().enumerate() {
        let expected = base[at] + elements.scale * product[at];
        prop_assert!(
            (found - expected).abs() <= 1e-13 * (1.0 + expected.abs()),
            "{at}: {found} {expected}"
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn element_by_element_any_range_is_that_of_the_whole(
        (one, other) in (form(), form()),
        (rows, inputs, kernel) in (1usize..70, prop_oneof![1usize..8, 60usize..70, 170usize..180], prop::sample::select(vec![1usize, 2, 9])),
        skip in 0.0f64..1.0,
        range in (0.0f64..1.0, 0.0f64..1.0),
        seed: u64,
    ) {
        let mut noise = Noise(seed);
        let (first, second) = (one.make(rows, inputs, kernel, &mut noise), other.make(rows, inputs, kernel, &mut noise));
        let columns = inputs * kernel;
        let first_row = (skip * rows as f64) as usize;
        let (bytes, base) = noise.tensor((rows - first_row) * columns);
        let elements = Paired {
            base: Box::new(Stored { bytes: &bytes, format: FloatType::F32 }),
            columns,
            first_row,
            pairing: Pairing::Hadamard,
            first: one.of(&first.tensors, columns, kernel),
            second: other.of(&second.tensors, columns, kernel),
            scale: 0.75,
        };
        check(&elements, &(first.whole * second.whole), &base, range)?;
    }

    #[test]
    fn kroneckers_any_range_is_that_of_the_whole(
        one in form().prop_filter("no kernel", |form| !matches!(form, Form::Tucker(_))),
        other in form(),
        first_shape in (1usize..8, 1usize..8),
        (rows, inputs, kernel) in (1usize..50, prop_oneof![1usize..8, 60usize..90], prop::sample::select(vec![1usize, 2, 9])),
        skip in 0.0f64..1.0,
        range in (0.0f64..1.0, 0.0f64..1.0),
        seed: u64,
    ) {
        let mut noise = Noise(seed);
        let (a, c) = first_shape;
        let (first, second) = (one.make(a, c, 1, &mut noise), other.make(rows, inputs, kernel, &mut noise));
        let columns = c * inputs * kernel;
        let first_row = (skip * (a * rows) as f64) as usize;
        let (bytes, base) = noise.tensor((a * rows - first_row) * columns);
        let elements = Paired {
            base: Box::new(Stored { bytes: &bytes, format: FloatType::F32 }),
            columns,
            first_row,
            pairing: Pairing::Kronecker { rows, columns: inputs * kernel },
            first: one.of(&first.tensors, c, 1),
            second: other.of(&second.tensors, inputs * kernel, kernel),
            scale: -1.5,
        };
        check(&elements, &kron(&first.whole, &second.whole), &base, range)?;
    }
}

/// `[[1, 2], [3, 4]]` with itself and with `[[0, 5], [6, 7]]`, by hand.
#[test]
fn two_by_two_by_hand() {
    let bytes = |values: &[f32]| -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    };
    let (one, other) = (bytes(&[1.0, 2.0, 3.0, 4.0]), bytes(&[0.0, 5.0, 6.0, 7.0]));
    let base = bytes(&[10.0; 16]);
    let stored = |bytes| Stored {
        bytes,
        format: FloatType::F32,
    };
    let whole = |bytes| PairedMatrix::Whole {
        values: stored(bytes),
        columns: 2,
    };
    let mut elements = Paired {
        base: Box::new(stored(&base)),
        columns: 2,
        first_row: 0,
        pairing: Pairing::Hadamard,
        first: whole(&one),
        second: whole(&other),
        scale: 2.0,
    };
    let mut out = [0f64; 4];
    Fill::<f64>::fill(&elements, 0, &mut out).unwrap();
    assert_eq!(out, [10.0, 30.0, 46.0, 66.0]);
    elements.columns = 4;
    elements.pairing = Pairing::Kronecker {
        rows: 2,
        columns: 2,
    };
    let mut out = [0f64; 16];
    Fill::<f64>::fill(&elements, 0, &mut out).unwrap();
    let second_row = [22.0, 24.0, 34.0, 38.0];
    let third_row = [10.0, 40.0, 10.0, 50.0];
    assert_eq!(out[4..8], second_row);
    assert_eq!(out[8..12], third_row);
}
