//! Outputs that become codes and scales, band by band.

use super::*;
use numeric::{BLOCK, CodeFormat, Coding, Encoding, EncodingError, Oddities, Survival};

/// Keeps what is told beside the bytes.
#[derive(Default)]
struct Told {
    memory: Memory,
    errors: Mutex<BTreeMap<usize, EncodingError>>,
    survived: Mutex<BTreeMap<usize, Survival>>,
    odd: Mutex<Vec<(usize, usize, Oddities)>>,
}

impl Sink for Told {
    fn start(&self, output: usize) -> u64 {
        self.memory.start(output)
    }

    fn look(&self, output: usize, offset: u64, bytes: &[u8]) {
        self.memory.look(output, offset, bytes);
    }

    fn write(&self, output: usize, offset: u64, bytes: Tile) -> io::Result<()> {
        self.memory.write(output, offset, bytes)
    }

    fn survived(&self, output: usize, survival: Survival) {
        self.survived.lock().unwrap().insert(output, survival);
    }

    fn encoded(&self, output: usize, error: EncodingError) {
        self.errors.lock().unwrap().insert(output, error);
    }

    fn odd(&self, output: usize, source: usize, found: Oddities) {
        self.odd.lock().unwrap().push((output, source, found));
    }
}

/// Weights that are far apart from block to block, so that a wrong scale shows.
fn weights(seed: u64, rows: usize, columns: usize) -> Vec<u8> {
    let noise = noise(seed, rows * columns).into_iter().enumerate();
    let spread = noise
        .map(|(at, value)| value * 2f64.powi((at / columns / 64 + at % columns / 64) as i32 % 9));
    encode(FloatType::Bf16, &spread.collect::<Vec<_>>())
}

fn target(encoding: Encoding) -> ResultUse<'static> {
    ResultUse::Outputs(vec![Output {
        base: Some(0),
        encoded: Some(Encoded {
            encoding,
            scales: 2,
        }),
        ..Output::new(1, Encoding::CODES)
    }])
}

/// The values by themselves, encoded in one thread.
fn expected(encoding: Encoding, sources: &[Vec<u8>]) -> (Vec<f32>, [Vec<u8>; 2]) {
    let mut decoded = [Vec::new(), Vec::new()];
    for (values, bytes) in decoded.iter_mut().zip(sources) {
        values.resize(bytes.len() / 2, 0f32);
        FloatType::Bf16.decode(bytes, values);
    }
    let pairs = decoded[0].iter().zip(&decoded[1]);
    let mean: Vec<f32> = pairs
        .map(|(a, b)| ((f64::from(*a) + f64::from(*b)) / 2.0) as f32)
        .collect();
    let largest = Encoding::largest_of(&mean);
    let mut codes = vec![0; mean.len()];
    let mut scales = vec![0; 4 * encoding.bands() * encoding.across()];
    for (band, scales) in scales.chunks_mut(4 * encoding.across()).enumerate() {
        let places = encoding.elements(band..band + 1);
        let places = places.start as usize..places.end as usize;
        let coding = Coding {
            largest,
            ..Coding::default()
        };
        encoding.encode(
            &mean[places.clone()],
            places.start as u64,
            coding,
            &mut codes[places],
            scales,
        );
    }
    if encoding.whole {
        scales.truncate(4);
    }
    (mean, [codes, scales])
}

#[test]
fn codes_and_scales_are_those_of_the_values_by_themselves() {
    let encoding = |matrices, rows, columns, block| Encoding {
        rows,
        columns,
        matrices,
        format: CodeFormat::Fp8,
        block,
        whole: false,
        powers: false,
        scales: FloatType::F32,
    };
    let cases = [
        // Bands of whole blocks of the engine, of parts of them, and several in one.
        encoding(1, 300, 1024, [128, 128]),
        encoding(1, 700, 300, [128, 128]),
        encoding(1, 1000, 20, [128, 128]),
        encoding(1, 3, 500, [128, 128]),
        // Ends of matrices within bands, and rows longer than a block.
        encoding(5, 130, 200, [128, 128]),
        encoding(2, 3, BLOCK + 77, [2, 128]),
        // A scale for each row.
        encoding(1, 40, 900, [1, 900]),
        // One scale for all, which takes a pass of its own.
        Encoding {
            whole: true,
            ..encoding(1, 400, 900, [1, 900])
        },
    ];
    for encoding in cases {
        let rows = encoding.matrices * encoding.rows;
        let sources = [1, 2].map(|seed| weights(seed, rows, encoding.columns));
        let (mean, bytes) = expected(encoding, &sources);
        let cost = Cost {
            more_outputs: 1,
            band: encoding.longest(),
            ..Cost::default()
        };
        let mut first = None;
        for threads in [1, 2, 5] {
            for memory in [least(threads, 2, cost), 256 << 20] {
                let settings = settings(threads, memory);
                let limits = settings.limits(2, cost).unwrap();
                let jobs = [
                    job(
                        FloatType::Bf16,
                        &sources,
                        &Mean,
                        ResultUse::values(0, FloatType::F32),
                    ),
                    job(FloatType::Bf16, &sources, &Mean, target(encoding)),
                ];
                let told = Told::default();
                let totals = execute(&jobs, &settings, &limits, &told, &Nobody).unwrap();
                let found = told.memory.outputs();
                assert_eq!(found[1..], bytes, "{encoding:?} {threads} {memory}");
                assert_eq!(
                    totals.written,
                    found.iter().map(|bytes| bytes.len() as u64).sum::<u64>()
                );
                let passes = if encoding.whole { 6 } else { 4 };
                assert_eq!(totals.read, passes * sources[0].len() as u64);
                assert!(told.odd.into_inner().unwrap().is_empty());
                // What is told depends on neither threads nor memory.
                let said = (
                    told.errors.into_inner().unwrap()[&1],
                    told.survived.into_inner().unwrap()[&1],
                );
                assert_eq!(*first.get_or_insert(said), said, "{encoding:?}");
            }
        }
        // Where all elements are in the sample, the error is that of all.
        let (error, _) = first.unwrap();
        let scales = bytes[1].as_chunks::<4>().0;
        let codes = decode(Encoding::CODES, &bytes[0]);
        let [height, width] = encoding.block;
        let pairs = mean
            .iter()
            .zip(&codes)
            .enumerate()
            .map(|(at, (value, code))| {
                let (row, column) = (at / encoding.columns, at % encoding.columns);
                let band = row / encoding.rows * encoding.rows.div_ceil(height)
                    + row % encoding.rows / height;
                let place = band * encoding.across() + column / width;
                let scale = f32::from_le_bytes(scales[if encoding.whole { 0 } else { place }]);
                ((f64::from(scale) * code) as f32, *value)
            });
        let (written, meant): (Vec<f32>, Vec<f32>) = pairs.unzip();
        let all = EncodingError::measure(&meant, &written, 0.02).relative();
        assert!(all > 0.005 && all < 0.06, "{all}");
        assert!(
            (error.relative() / all - 1.0).abs() < 0.2,
            "{} {all}",
            error.relative()
        );
    }
}

#[test]
fn a_sample_is_of_whole_bands() {
    let encoding = Encoding {
        rows: 700,
        columns: 300,
        matrices: 1,
        format: CodeFormat::Fp8,
        block: [128, 128],
        whole: false,
        powers: false,
        scales: FloatType::F32,
    };
    let sources = [1, 2].map(|seed| weights(seed, 700, 300));
    let (_, bytes) = expected(encoding, &sources);
    let settings = settings(2, 256 << 20);
    let cost = Cost {
        more_outputs: 1,
        band: encoding.longest(),
        ..Cost::default()
    };
    let limits = settings.limits(2, cost).unwrap();
    let mut job = job(FloatType::Bf16, &sources, &Mean, target(encoding));
    assert_eq!(job.pieces(), 6);
    job.sample = Some(vec![2, 5]);
    let told = Told::default();
    execute(&[job], &settings, &limits, &told, &Nobody).unwrap();
    let outputs = told.memory.0.into_inner().unwrap();
    for band in [2, 5] {
        let places = encoding.elements(band..band + 1);
        let places = places.start as usize..places.end as usize;
        assert_eq!(outputs[&1].bytes[places.clone()], bytes[0][places]);
        assert_eq!(
            outputs[&2].bytes[band * 12..(band + 1) * 12],
            bytes[1][band * 12..(band + 1) * 12]
        );
    }
    assert_eq!(outputs[&1].written, (128 + 60) * 300);
    // Nothing is said of the whole from a part of it.
    let told = told.errors.into_inner().unwrap();
    assert_eq!(told.get(&1).map_or(0.0, EncodingError::relative), 0.0);
}
