//! Held to transformers: hidden states, logits and log-probabilities of tiny models that it wrote, committed.
//!
//! `tests/peer/forward.py` makes them, and runs the test below that is ignored over all families.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use weldment::checkpoint::{Checkpoint, Location};
use weldment::forward::{Decoder, Observer};

/// What is compared: `layer.N`, `gate.N`, `logits`, `log_probabilities`.
type States = BTreeMap<String, Vec<f32>>;

#[derive(Default)]
struct Kept(States);

impl Observer for Kept {
    fn layer_input(&mut self, layer: usize, states: &[f32], _: &[Range<usize>]) {
        self.0.insert(format!("layer.{layer:02}"), states.to_vec());
    }

    fn gate_input(&mut self, layer: usize, states: &[f32], _: &[Range<usize>]) {
        self.0.insert(format!("gate.{layer:02}"), states.to_vec());
    }
}

fn open(folder: &Path) -> Checkpoint {
    let location = Location::local(folder);
    Checkpoint::open("model", &location).unwrap()
}

fn states(folder: &Path, threads: usize) -> States {
    let prompts = fs::read(folder.join("prompts.json")).unwrap();
    let prompts: Vec<Vec<u32>> = serde_json::from_slice(&prompts).unwrap();
    let checkpoint = open(folder);
    let decoder = Decoder::new(checkpoint.config().unwrap().value(), &checkpoint).unwrap();
    let mut kept = Kept::default();
    decoder.run(&prompts, threads, &mut kept, None).unwrap();
    let mut states = kept.0;
    let logits = decoder.logits(&prompts, threads).unwrap();
    states.insert("logits".into(), logits.concat());
    let given = decoder.log_probabilities(&prompts, threads).unwrap();
    let given = given.iter().flatten().map(|&one| one as f32);
    states.insert("log_probabilities".into(), given.collect());
    states
}

fn read(path: &Path) -> States {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |view: TensorView| -> Vec<f32> {
        let (values, rest) = view.data().as_chunks::<4>();
        assert!(view.dtype() == Dtype::F32 && rest.is_empty());
        values.iter().map(|raw| f32::from_le_bytes(*raw)).collect()
    };
    let each = file.iter();
    each.map(|(name, view)| (name.to_owned(), floats(view)))
        .collect()
}

fn write(path: &Path, states: &States) {
    let bytes = |values: &[f32]| -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    };
    let bytes: Vec<(&String, Vec<u8>)> = states
        .iter()
        .map(|(name, values)| (name, bytes(values)))
        .collect();
    let views = bytes.iter().map(|(name, bytes)| {
        let view = TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes).unwrap();
        (name.as_str(), view)
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// The folders in one, in order.
fn cases(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

#[test]
fn states_are_those_of_transformers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peer/states");
    let cases = cases(&root);
    assert!(cases.len() >= 3);
    for folder in cases {
        let expected = read(&folder.join("expected.safetensors"));
        let one = states(&folder, 1);
        assert_eq!(one, states(&folder, 3), "{}", folder.display());
        assert_eq!(
            one.keys().collect::<Vec<_>>(),
            expected.keys().collect::<Vec<_>>()
        );
        for (name, expected) in expected {
            let found = &one[&name];
            assert_eq!(found.len(), expected.len(), "{name}");
            let largest = expected.iter().fold(0f32, |most, one| most.max(one.abs()));
            let off = found
                .iter()
                .zip(&expected)
                .fold(0f32, |most, (a, b)| most.max((a - b).abs()));
            let case = folder.display();
            assert!(off <= 1e-5 * largest, "{case}: {name}: {off} of {largest}");
        }
    }
}

#[test]
#[ignore = "run by tests/peer/forward.py, with the folder of its models in WELD_STATES"]
fn states_of_folders() {
    let root = std::env::var("WELD_STATES").expect("WELD_STATES names a folder of models");
    for folder in cases(Path::new(&root)) {
        write(&folder.join("found.safetensors"), &states(&folder, 2));
    }
}
