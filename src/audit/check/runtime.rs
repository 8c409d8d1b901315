//! What runtimes read otherwise than the checkpoint means it, for those that are asked for: `weld check --for`.

use crate::{CheckInfo, Finding, Place, Report, Severity};
use architecture::{Misreading, Outcome, Runtime, Served, Topic};
use checkpoint::{Checkpoint, Survey, TensorEntry};

checks! {
    FAMILY = "runtime.family", Error,
        "A runtime does not have the family",
        "It refuses the checkpoint, or cannot convert it.",
        "serve it with another runtime, or see whether a newer version has the family";
    ACTIVATION = "runtime.activation", Error,
        "A runtime computes another activation than the config names",
        "Most runtimes have one activation for each family, whatever the config says. Where one approximates the other, this is a warning.",
        "serve it with a runtime that reads the activation";
    ROPE = "runtime.rope", Error,
        "A runtime does not read the rotary positions",
        "It ignores the scaling, or looks for it under other names, and the logits differ from the first tokens on.",
        "write the fields that it reads, or serve it with a runtime that reads these";
    WINDOW = "runtime.window", Warning,
        "A runtime ignores the window of attention",
        "Texts that are longer than the window give other logits.",
        "keep texts as short as the window, or serve it with a runtime that reads it";
    LAYERS = "runtime.layers", Error,
        "A runtime expects layers of other kinds",
        "It goes by a fixed order, such as every sixth layer without a window, whatever the config says. A restack can break such an order.",
        "serve it with a runtime that reads the order from the config";
    EXPERTS = "runtime.experts", Error,
        "A runtime computes experts otherwise",
        "It weighs them otherwise than the config says, or expects another shared expert.",
        "choose another architecture for the mixture, or serve it with another runtime";
    ATTENTION = "runtime.attention", Error,
        "A runtime expects other heads or biases",
        "It takes sizes from other fields, or has no place for a bias, and does not load the checkpoint.",
        "serve it with a runtime that reads them";
    HEAD = "runtime.head", Error,
        "A runtime expects another output head",
        "It wants a head of its own where the embedding is the head, or the other way round.",
        "save the model with the head that the runtime wants";
    TENSORS = "runtime.tensors", Error,
        "A runtime does not know the names of tensors",
        "They are those that a library holds in memory, which this runtime does not read.",
        "write the tensors under the names that the Hub uses";
    CONFIG = "runtime.config", Error,
        "A runtime wants fields that the config does not have",
        "Its loader or its converter stops where they are missing.",
        "complete config.json";
    TOKENIZER = "runtime.tokenizer", Warning,
        "A runtime's converter takes other tokenizers only",
        "For some families a converter knows the tokenizer of their maker alone.",
        "convert it with a tool that reads the tokenizer as it is";
}

/// What the runtimes make of a checkpoint, as findings for its report.
pub struct Runtimes(Option<Vec<Finding>>);

impl Runtimes {
    /// Looks at a checkpoint for these runtimes.
    pub fn new(survey: &Survey, runtimes: &[&Runtime]) -> Runtimes {
        let model = survey.checkpoint.as_ref();
        Runtimes(model.and_then(|model| findings(model, runtimes)))
    }

    /// Adds the findings to a report.
    pub fn add_to(self, report: &mut Report) {
        match self.0 {
            Some(findings) => {
                report.checked.extend(CHECKS);
                report.extend(findings);
            }
            None => super::skip(report, CHECKS, "there is no config.json beside the tensors"),
        }
    }
}

/// None if there is no config, by which runtimes go.
fn findings(model: &Checkpoint, runtimes: &[&Runtime]) -> Option<Vec<Finding>> {
    let config = model.config()?;
    let is_zero = |at| model.is_zero(at);
    let names = model.tensors().iter();
    let served = Served {
        config: config.value(),
        names: names
            .map(|tensor: &TensorEntry| tensor.name.as_str())
            .collect(),
        is_zero: Some(&is_zero),
    };
    let of = |runtime: &&Runtime| {
        let misreadings = runtime.misreadings(&served).into_iter();
        let version = runtime.version;
        misreadings
            .map(move |misreading| finding(version, misreading))
            .collect::<Vec<_>>()
    };
    Some(runtimes.iter().flat_map(of).collect())
}

fn finding(version: &str, misreading: Misreading) -> Finding {
    let place = match misreading.field {
        Some(field) => Place::field("config.json", field),
        None => Place::default(),
    };
    let silent = match misreading.outcome {
        Outcome::Silent => ", without a word",
        Outcome::Slight | Outcome::Fails => "",
    };
    let found = format!("{version} {}{silent}", misreading.does);
    let finding = Finding::new(check_of(misreading.topic), place, misreading.means, found);
    let finding = finding.with_remedy(misreading.remedy);
    match misreading.outcome {
        Outcome::Slight => finding.with_severity(Severity::Warning),
        Outcome::Silent | Outcome::Fails => finding,
    }
}

fn check_of(topic: Topic) -> &'static CheckInfo {
    match topic {
        Topic::Family => &FAMILY,
        Topic::Activation => &ACTIVATION,
        Topic::Rope => &ROPE,
        Topic::Window => &WINDOW,
        Topic::Layers => &LAYERS,
        Topic::Experts => &EXPERTS,
        Topic::Attention => &ATTENTION,
        Topic::Head => &HEAD,
        Topic::Tensors => &TENSORS,
        Topic::Config => &CONFIG,
        Topic::Tokenizer => &TOKENIZER,
    }
}
