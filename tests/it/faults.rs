//! Reads that fail: each read of a merge, an assembly and an edit fails once, by its number, and nothing is put in
//! place.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use weldment::checkpoint::{
    Checkpoint, CheckpointError, InMemory, Reclaim, TensorEntry, TensorSource,
};
use weldment::errors::Refusal;
use weldment::moe::{self, MoeOptions};
use weldment::numeric::Elements;
use weldment::plan::{self, Plan};
use weldment::recipe::{self, AnyRecipe};
use weldment::run::{self, RunOptions, destination::Memory};

use crate::fixtures::{Spec, llama, llama_config};
use crate::moe::dense;
use crate::sources::{Held, Silent, in_memory, model_of, options};

/// Counts what is asked of the sources that share it; once it has been asked for `last`, that fails.
#[derive(Debug, Default)]
struct Reads {
    done: AtomicU64,
    last: AtomicU64,
}

impl Reads {
    fn fails(&self) -> bool {
        let last = self.last.load(SeqCst);
        self.done.fetch_add(1, SeqCst) + 1 == last
    }

    /// Counts from one again; the read with this number fails, none if it is 0.
    fn restart(&self, last: u64) {
        self.done.store(0, SeqCst);
        self.last.store(last, SeqCst);
    }
}

/// Tensors of which one read fails.
#[derive(Debug)]
struct Failing {
    base: InMemory,
    reads: Arc<Reads>,
}

impl TensorSource for Failing {
    fn entries(&self) -> &[TensorEntry] {
        self.base.entries()
    }

    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        let values = self.base.elements(index)?;
        (!self.reads.fails()).then_some(values)
    }

    fn bytes(&self, index: usize) -> Option<&[u8]> {
        let bytes = self.base.bytes(index)?;
        (!self.reads.fails()).then_some(bytes)
    }

    fn release(&self, index: usize, bytes: Range<u64>, reclaim: Reclaim) {
        self.base.release(index, bytes, reclaim);
    }

    fn prepare(&self, _: usize, _: &(dyn Fn() -> bool + Sync)) -> Result<(), Refusal> {
        match self.reads.fails() {
            true => Err("the source is gone".into()),
            false => Ok(()),
        }
    }

    fn check_unchanged(&self) -> Result<(), CheckpointError> {
        match self.reads.fails() {
            true => Err(CheckpointError::io(
                "read",
                "memory".as_ref(),
                std::io::ErrorKind::NotFound.into(),
            )),
            false => Ok(()),
        }
    }
}

/// Models of which one read fails.
struct Bank {
    reads: Arc<Reads>,
    models: BTreeMap<String, Arc<Checkpoint>>,
}

impl Bank {
    fn new() -> Self {
        Self {
            reads: Arc::default(),
            models: BTreeMap::new(),
        }
    }

    fn add(&mut self, name: &str, config: Value, specs: Vec<Spec>) {
        let source = Failing {
            base: in_memory(specs),
            reads: Arc::clone(&self.reads),
        };
        let model = model_of(name, config, source);
        self.models.insert(name.to_owned(), Arc::new(model));
    }

    fn plan(&self, recipe: &str) -> Plan {
        let held = Held(self.models.clone());
        let options = MoeOptions::from(options());
        let path = "recipe.yml";
        match recipe::parse_any(path, recipe).unwrap() {
            AnyRecipe::Merge(recipe) => plan::plan(&recipe, path, &held, &options.plan),
            AnyRecipe::Moe(recipe) => moe::plan(&recipe, path, &held, &options),
            AnyRecipe::Edit(recipe) => moe::plan_edit(&recipe, path, &held, &options),
        }
        .unwrap()
    }

    /// Runs a recipe; each of its reads fails once. Returns what is written where none fails.
    fn each_read_fails_once(&self, recipe: &str, least: u64) -> BTreeMap<String, Vec<u8>> {
        let run = |last: u64| {
            self.reads.restart(0);
            // What is read to plan is another matter: a plan decides nothing by a read that fails.
            let plan = self.plan(recipe);
            self.reads.restart(last);
            let out = Memory::new("out");
            let done = run::run(&plan, &out, RunOptions::default(), &Silent);
            (
                done.map(drop),
                out.into_files(),
                self.reads.done.load(SeqCst),
            )
        };
        let (done, whole, reads) = run(0);
        done.unwrap();
        assert!(reads >= least, "{reads} reads");
        for last in 1..=reads {
            let (done, files, _) = run(last);
            assert!(
                done.is_err(),
                "read {last} of {reads} failed, and nobody said so"
            );
            assert!(
                files.is_empty(),
                "read {last} of {reads} left {:?}",
                files.keys()
            );
        }
        assert!(run(0).1 == whole);
        whole
    }
}

#[test]
fn a_read_of_a_merge_that_fails_leaves_nothing() {
    let mut bank = Bank::new();
    for (name, seed) in [("a", 1), ("b", 2)] {
        bank.add(name, llama_config(2), llama(seed, 2, Dtype::BF16));
    }
    // A method with passes that measure, a result that is made once, one that is computed where it is read, and
    // copies that must be equal.
    bank.each_read_fails_once(
        "name: one\nmerge_method: ties\nbase_model: a\nparameters: {weight: 1, density: 0.5}\nmodels: [{model: b}]\n\
         ---\nname: two\nmerge_method: linear\nparameters: {weight: 1}\nmodels: [{model: one}, {model: a}]\n\
         ---\nmerge_method: slerp\nbase_model: one\nparameters: {t: 0.3}\nmodels: [{model: one}, {model: two}]\n",
        20,
    );
}

/// Tensors that are copied are held against each other, and so are tied ones against what is left out.
#[test]
fn a_read_of_what_must_be_equal_that_fails_leaves_nothing() {
    let mut bank = Bank::new();
    for (name, seed) in [("a", 1), ("b", 2)] {
        let mut config = llama_config(2);
        config["tie_word_embeddings"] = json!(true);
        let mut specs = llama(seed, 2, Dtype::BF16);
        let embedding = specs[0].bytes.clone();
        let head = specs.iter_mut().find(|spec| spec.name == "lm_head.weight");
        head.unwrap().bytes = embedding;
        specs.push(Spec {
            name: "model.ids".into(),
            dtype: Dtype::I32,
            shape: vec![4],
            bytes: vec![1; 16],
        });
        bank.add(name, config, specs);
    }
    let whole = bank.each_read_fails_once(
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n",
        20,
    );
    let written = SafeTensors::deserialize(&whole["model.safetensors"]).unwrap();
    assert_eq!(written.tensor("model.ids").unwrap().data(), [1; 16]);
}

#[test]
fn a_read_of_an_assembly_or_an_edit_that_fails_leaves_nothing() {
    let mut bank = Bank::new();
    for (name, seed) in [("base", 1), ("one", 2)] {
        let (config, specs) = dense("llama", seed);
        bank.add(name, config, specs);
    }
    let whole = bank.each_read_fails_once(
        "base_model: base\ngate_mode: random\nexperts: [{source_model: base}, {source_model: one}]\n",
        20,
    );
    let config = serde_json::from_slice(&whole["config.json"]).unwrap();
    let written = SafeTensors::deserialize(&whole["model.safetensors"]).unwrap();
    let specs = written.tensors().into_iter().map(|(name, tensor)| Spec {
        name,
        dtype: tensor.dtype(),
        shape: tensor.shape().to_vec(),
        bytes: tensor.data().to_vec(),
    });
    bank.add("mixture", config, specs.collect());
    bank.each_read_fails_once(
        "base_model: mixture\nexperts: [{expert: 1}, {expert: 0}, {expert: 1}]\n",
        20,
    );
}
