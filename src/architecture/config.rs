//! Where in a config.json a field stands: at its top, or in the language model's part.

use serde_json::Value;

/// Where multimodal configs keep those of their language model.
pub const TEXT_PARTS: [&str; 3] = ["text_config", "llm_config", "language_config"];

/// The names that the number of layers goes by.
pub const LAYER_COUNTS: [&str; 4] = ["num_hidden_layers", "n_layer", "n_layers", "num_layers"];

/// A field at the top of a config, or else in the language model's part; null counts as absent.
pub fn field<'c>(config: &'c Value, key: &str) -> Option<&'c Value> {
    let parts = TEXT_PARTS.iter().filter_map(|part| config.get(part));
    std::iter::once(config)
        .chain(parts)
        .filter_map(|part| part.get(key))
        .find(|value| !value.is_null())
}

/// A value; of a list that says the same for each layer, what it says.
pub fn in_all_layers(value: &Value) -> &Value {
    match value.as_array().map(Vec::as_slice) {
        Some([first, others @ ..]) if others.iter().all(|other| other == first) => first,
        _ => value,
    }
}
