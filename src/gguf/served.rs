//! Where llama.cpp computes something else from a file than the checkpoint means, by the tables in `architecture`.

use architecture::llama_cpp::Dialect;
use architecture::{Family, Misreading, Outcome, Runtime, Served, Topic};
use checkpoint::Checkpoint;
use serde_json::Value as Json;

/// A note for each such place. The file is written by `model_type`, whatever class the config names.
pub(super) fn notes(
    checkpoint: &Checkpoint,
    config: &Json,
    (dialect, family): (&Dialect, &Family),
) -> Vec<String> {
    let Some(runtime) = Runtime::all().find(|runtime| runtime.name == "llama.cpp") else {
        return Vec::new();
    };
    let tensors = checkpoint.tensors();
    let is_zero = |at| checkpoint.is_zero(at);
    let mut config = config.clone();
    config["architectures"] = Json::from(vec![family.class]);
    let served = Served {
        config: &config,
        names: tensors.iter().map(|entry| entry.name.as_str()).collect(),
        is_zero: Some(&is_zero),
    };
    let found = runtime.misreadings(&served).into_iter();
    let in_file = found.filter(|misreading| remains(misreading, dialect));
    in_file
        .map(|Misreading { means, does, .. }| {
            format!("{} {does}, and the model means {means}", runtime.version)
        })
        .collect()
}

/// Whether the file leaves it so. What llama.cpp or its converter would not load is written so that it loads, or
/// refused; layers with windows are named.
fn remains(misreading: &Misreading, dialect: &Dialect) -> bool {
    match (misreading.outcome, misreading.topic) {
        (Outcome::Fails, _) | (_, Topic::Tokenizer) => false,
        (_, Topic::Layers) => dialect.window_period.is_none(),
        _ => true,
    }
}
