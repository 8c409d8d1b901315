//! Every method on the tiles of one tensor in memory, through the engine with one thread, in bytes of its sources
//! a second: what a method takes where no file is read or written.
//!
//! ```sh
//! cargo bench --bench methods
//! cargo bench --bench methods -- ties
//! cargo bench --bench methods -- matrices   # whole matrices, two threads, four models; minutes each
//! cargo bench --bench methods -- alone      # the decompositions and products that these are made of
//! ```

use std::io;

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use matrix::Matrix;
use weldment::engine::{self, Budget, Cost, Job, Observer, ResultUse, Settings, Sink, Tile, Work};
use weldment::methods::{
    self, Action, BaseRule, Context, Linear, Method, ParamScope, ParamValue, Shared, Tensor,
    TensorParams,
};
use weldment::numeric::{Elements, FloatType, NormalKey, Stored};

fn main() {
    divan::main();
}

/// A matrix of 8 MiB in BF16: more than most second caches hold, for every source.
const SHAPE: [usize; 2] = [2048, 2048];
const ELEMENTS: u64 = 2048 * 2048;

/// Values of parameters that have no default, or whose default does nothing.
const VALUES: [(&str, f64); 5] = [
    ("alpha", 0.4),
    ("weight", 0.5),
    ("density", 0.5),
    ("t", 0.4),
    ("select_topk", 0.5),
];

/// The methods that go over blocks.
fn names() -> impl Iterator<Item = &'static str> {
    let of_blocks = methods::all().iter().filter(|method| !is_whole(**method));
    of_blocks.map(|method| method.info().name)
}

/// Whether the method takes whole matrices.
fn is_whole(method: &dyn Method) -> bool {
    let mut params = method.info().params.iter();
    params.any(|param| matches!(param.name, "others" | "merged"))
}

#[divan::bench(args = names())]
fn tiles(bencher: Bencher<'_, '_>, name: &str) {
    let method = methods::find(name).expect("a registered method");
    let (count, action) = (1..=most_sources(method))
        .rev()
        .find_map(|count| Some((count, action(method, count)?)))
        .expect("a number of sources that the method takes");
    let first = u64::from(!has_base(method));
    let stored: Vec<Vec<u8>> = (first..).take(count).map(model).collect();
    let (work, cost) = match &action {
        Action::Copy(source) => {
            let sources = vec![stored[*source].as_slice()];
            let format = Some(FloatType::Bf16);
            let output = Some(0);
            let copy = Work::Copy {
                sources,
                format,
                output,
            };
            (copy, Cost::default())
        }
        Action::Compute(program) => {
            let sources = stored.iter().map(|bytes| {
                let format = FloatType::Bf16;
                Box::new(Stored { bytes, format }) as Box<dyn Elements + '_>
            });
            let work = Work::Compute {
                sources: sources.collect(),
                elements: ELEMENTS,
                program: program.as_ref(),
                target: ResultUse::values(0, FloatType::Bf16),
            };
            (work, program.cost())
        }
    };
    let jobs = [Job {
        names: Box::new("w"),
        work,
        after_all: false,
        sample: None,
    }];
    let settings = Settings {
        threads: 1,
        memory: Budget::Limit(256 << 20),
        allow_non_finite: false,
        saturate: false,
    };
    let limits = settings.limits(stored.len(), cost).expect("room enough");
    engine::survey(&jobs, &settings, &Nobody).expect("it is measured");
    let bytes: usize = stored.iter().map(Vec::len).sum();
    bencher.counter(BytesCount::new(bytes)).bench_local(|| {
        engine::execute(black_box(&jobs), &settings, &limits, &Nowhere, &Nobody)
            .expect("the method has a result")
    });
}

/// Shapes of one matrix of a layer: of attention, of an MLP.
const WHOLE: [[usize; 2]; 2] = [[4096, 4096], [14336, 4096]];

/// Each method on whole matrices with each shape.
fn whole() -> impl Iterator<Item = String> {
    let methods = methods::all().iter().filter(|method| is_whole(**method));
    // This one needs the result of another.
    let methods = methods.filter(|method| method.info().name != "svc");
    let shapes = |method: &&dyn Method| {
        let name = method.info().name;
        WHOLE.map(|[rows, columns]| format!("{name} {rows}x{columns}"))
    };
    methods.flat_map(shapes)
}

/// A method on one matrix of four models and their base, with two threads.
#[divan::bench(args = whole(), sample_count = 1, sample_size = 1)]
fn matrices(bencher: Bencher<'_, '_>, case: &str) {
    let (name, shape) = case.split_once(' ').expect("a method and a shape");
    let shape: Vec<usize> = shape.split('x').flat_map(str::parse).collect();
    let method = methods::find(name).expect("a registered method");
    let tensor = Tensor {
        name: "model.layers.0.mlp.up_proj.weight",
        shape: &shape,
        seed: 1,
        base: Some(0),
        sources: 5,
        linear: Linear::new(&shape, false),
        context: Context::default(),
    };
    let program = match method.action(&params(method, 5), &tensor) {
        Ok(Action::Compute(program)) => program,
        _ => panic!("{name} computes nothing"),
    };
    let elements = tensor.elements();
    let stored: Vec<Vec<u8>> = (0..5).map(|number| model_of(number, elements)).collect();
    let sources = stored.iter().map(|bytes| {
        let format = FloatType::Bf16;
        Box::new(Stored { bytes, format }) as Box<dyn Elements + '_>
    });
    let work = Work::Compute {
        sources: sources.collect(),
        elements,
        program: program.as_ref(),
        target: ResultUse::values(0, FloatType::Bf16),
    };
    let jobs = [Job {
        names: Box::new("w"),
        work,
        after_all: false,
        sample: None,
    }];
    let settings = Settings {
        threads: 2,
        memory: Budget::Limit(64 << 30),
        allow_non_finite: false,
        saturate: false,
    };
    let limits = settings.limits(5, program.cost()).expect("room enough");
    bencher.bench_local(|| {
        engine::execute(black_box(&jobs), &settings, &limits, &Nowhere, &Nobody)
            .expect("the method has a result")
    });
}

/// What methods on whole matrices are made of, each by itself, with two threads: of a matrix of these rows and columns,
/// its square, the square's eigenvectors, and its product with a square matrix.
#[divan::bench(
    args = ["square 4096x4096", "square 14336x4096", "eigen 4096x4096", "product 4096x4096", "product 14336x4096"],
    sample_count = 1,
    sample_size = 1
)]
fn alone(bencher: Bencher<'_, '_>, case: &str) {
    let (part, shape) = case.split_once(' ').expect("a part and a shape");
    let shape: Vec<usize> = shape.split('x').flat_map(str::parse).collect();
    let made = |rows| {
        let draws = NormalKey::new(0, "weights", 0);
        let mut matrix = Matrix::<f32>::zeros(rows, shape[1]).expect("room enough");
        let values = matrix.values_mut().iter_mut().zip(0..);
        values.for_each(|(value, at)| *value = draws.draw(at) as f32);
        matrix
    };
    let (matrix, right) = (made(shape[0]), made(shape[1]));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build();
    let pool = pool.expect("two threads");
    match part {
        "square" => bencher.bench_local(|| pool.install(|| matrix::gram(black_box(&matrix)))),
        "product" => bencher.bench_local(|| pool.install(|| black_box(&matrix).times(&right))),
        _ => {
            let square = matrix::gram(&matrix).expect("room enough");
            let squares = bencher.with_inputs(|| square.clone());
            squares.bench_local_values(|square| pool.install(|| matrix::Eigen::new(square)));
        }
    }
}

/// A base, if there must be one, and as many models as the method takes, two at the most.
fn most_sources(method: &dyn Method) -> usize {
    let models = method.info().models.max.map_or(2, |most| most.min(2));
    models + usize::from(has_base(method))
}

/// What the method does with so many sources.
fn action(method: &dyn Method, sources: usize) -> Option<Action> {
    let tensor = Tensor {
        name: "model.layers.0.mlp.up_proj.weight",
        shape: &SHAPE,
        seed: 1,
        base: has_base(method).then_some(0),
        sources,
        linear: Linear::new(&SHAPE, false),
        context: Context {
            shared: Some(&Shared::default()),
            ..Context::default()
        },
    };
    method.action(&params(method, sources), &tensor).ok()
}

/// The weights of the base (0), or of a fine-tune, which differs from it by little.
fn model(number: u64) -> Vec<u8> {
    model_of(number, ELEMENTS)
}

fn model_of(number: u64, elements: u64) -> Vec<u8> {
    let [base, deltas] = [0, number].map(|seed| NormalKey::new(seed, "weights", 0));
    let scale = if number == 0 { 0.0 } else { 0.0004 };
    let values = (0..elements).map(|at| (0.02 * base.draw(at) + scale * deltas.draw(at)) as f32);
    let mut values: Vec<f32> = values.collect();
    let mut bytes = vec![0; 2 * values.len()];
    FloatType::Bf16.encode(&mut values, false, &mut bytes);
    bytes
}

fn has_base(method: &dyn Method) -> bool {
    method.info().base == BaseRule::Required
}

fn params(method: &dyn Method, sources: usize) -> TensorParams {
    let mut params = TensorParams {
        tensor: Vec::new(),
        sources: vec![Vec::new(); sources],
    };
    for param in method.info().params {
        let given = VALUES.iter().find(|(name, _)| *name == param.name);
        let given = given.filter(|_| !is_whole(method));
        let given = given.map(|&(_, value)| ParamValue::Number(value));
        let Some(value) = given.or(param.default) else {
            continue;
        };
        if param.scope == ParamScope::Tensor {
            params.tensor.push((param.name, value));
        } else {
            let sources = params.sources.iter_mut();
            sources.for_each(|source| source.push((param.name, value)));
        }
    }
    params
}

/// Takes nothing.
struct Nowhere;

impl Sink for Nowhere {
    fn write(&self, _output: usize, _offset: u64, bytes: Tile) -> io::Result<()> {
        black_box(&*bytes);
        Ok(())
    }
}

/// Asks nothing.
struct Nobody;

impl Observer for Nobody {
    fn advance(&self, _bytes: u64) {}
    fn cancelled(&self) -> bool {
        false
    }
}
