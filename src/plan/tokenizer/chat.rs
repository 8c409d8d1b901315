//! `chat_template:`: the most common one of the inputs, one of the known formats, or the recipe's own text.

use chat::parses;

use crate::models::Models;
use crate::problems::Problems;
use checkpoint::chat_template as template_of;
use recipe::{Located, nearest};

/// Known formats by name.
const NAMED: [(&str, &str); 5] = [
    ("alpaca", include_str!("templates/alpaca.jinja")),
    ("chatml", include_str!("templates/chatml.jinja")),
    ("exaone", include_str!("templates/exaone.jinja")),
    ("llama3", include_str!("templates/llama3.jinja")),
    ("mistral", include_str!("templates/mistral.jinja")),
];

/// The template that the recipe asks for; none if it asks for none, or if `auto` finds none.
pub(crate) fn chat_template(
    asked: &Located<String>,
    models: &Models,
    notes: &mut Vec<String>,
    problems: &mut Problems,
) -> Option<String> {
    let text = asked.value.as_str();
    if text == "auto" {
        return most_frequent(models, notes, problems);
    }
    if let Some((_, template)) = NAMED.iter().find(|(name, _)| *name == text) {
        return Some((*template).to_owned());
    }
    if !text.contains('{') {
        let names = NAMED.map(|(name, _)| name);
        let known = format!("the names are `auto`, `{}`", names.join("`, `"));
        let hint = match nearest(text, names) {
            Some(near) => format!("did you mean `{near}`? {known}"),
            None => format!("{known}; a template of your own has `{{{{ ... }}}}` in it"),
        };
        let message = format!("unknown chat template {text:?}");
        problems.add(Some(asked.at), message, Some(hint));
        return None;
    }
    if let Err(why) = parses(text) {
        let message = format!("the chat template is not sound Jinja: {why}");
        problems.add(Some(asked.at), message, None);
        return None;
    }
    Some(text.to_owned())
}

/// The template that most of the merged models have, ignoring white space at its ends. On a tie, the donor's wins,
/// then the first model's.
fn most_frequent(
    models: &Models,
    notes: &mut Vec<String>,
    problems: &mut Problems,
) -> Option<String> {
    let mut found: Vec<(String, Vec<usize>)> = Vec::new();
    let others = (0..models.merged).filter(|&model| model != models.donor);
    for model in [models.donor].into_iter().chain(others) {
        match template_of(&models.checkpoints[model]) {
            Err(error) => {
                problems.add_error(models.at[model], &error);
                return None;
            }
            Ok(Some(text)) if !text.trim().is_empty() => {
                let text = text.trim();
                match found.iter_mut().find(|(known, _)| known == text) {
                    Some((_, having)) => having.push(model),
                    None => found.push((text.to_owned(), vec![model])),
                }
            }
            Ok(_) => {}
        }
    }
    let most = found.iter().map(|(_, having)| having.len()).max();
    let kinds = found.len();
    let chosen = found
        .into_iter()
        .find(|(_, having)| Some(having.len()) == most);
    let Some((template, having)) = chosen else {
        notes.push("`chat_template: auto`: no model has one, so the output has none".to_owned());
        return None;
    };
    let first = having.first().map_or("", |&model| models.label(model));
    notes.push(format!(
        "`chat_template: auto`: the models have {kinds}; taken is that of `{first}`, which {} of {} have",
        having.len(),
        models.merged
    ));
    Some(template)
}

#[cfg(test)]
mod tests {
    use minijinja::{Environment, context};

    use super::*;

    fn rendered(name: &str, turns: &[(&str, &str)]) -> String {
        let (_, text) = NAMED
            .iter()
            .find(|(known, _)| *known == name)
            .expect("known");
        let messages: Vec<_> = turns
            .iter()
            .map(|&(role, content)| context! { role, content })
            .collect();
        let environment = Environment::new();
        let values = context! { messages, bos_token => "<s>", eos_token => "</s>", add_generation_prompt => true };
        environment.render_str(text, values).expect("renders")
    }

    #[test]
    fn known_formats_write_conversations() {
        let turns = [
            ("system", "S"),
            ("user", " U "),
            ("assistant", "A"),
            ("user", "V"),
        ];
        for (name, expected) in [
            (
                "chatml",
                "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n U <|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n\
                 <|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n",
            ),
            (
                "llama3",
                "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>\
                 <|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>\
                 <|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>\
                 <|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|>\
                 <|start_header_id|>assistant<|end_header_id|>\n\n",
            ),
            (
                "mistral",
                "<s> [INST] S\n\n U  [/INST] A</s> [INST] V [/INST]",
            ),
            (
                "alpaca",
                "S\n\n### Instruction:\nU\n\n### Response:A</s>\n\n### Instruction:\nV\n\n### Response:",
            ),
            (
                "exaone",
                "[|system|]S[|endofturn|]\n[|user|] U \n[|assistant|]A[|endofturn|]\n[|user|]V\n[|assistant|]",
            ),
        ] {
            assert_eq!(rendered(name, &turns), expected, "{name}");
        }
        // Word for word as Stanford's train.py has it.
        assert_eq!(
            rendered("alpaca", &[("user", "U"), ("assistant", "A")]),
            "Below is an instruction that describes a task. Write a response that appropriately completes the \
             request.\n\n### Instruction:\nU\n\n### Response:A</s>\n\n### Response:"
        );
    }
}
