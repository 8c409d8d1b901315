//! `chat_template:`: the most common one of the inputs, one of the known formats, or the recipe's own text.

use std::thread;

use minijinja::Environment;

use super::limits::within_limits;

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

/// The stack of the thread that parses a template. Within the limits, far less is needed.
const PARSER_STACK: usize = 64 << 20;

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

/// Whether it is a valid Jinja template; it is parsed, never run. Takes bounded time and stack, whatever the text.
///
/// # Errors
/// It is too long, or is not valid; the error says why, and where.
pub fn parses(text: &str) -> Result<(), String> {
    let text = without_generation(text);
    within_limits(&text)?;
    let parse = || match Environment::new().template_from_str(&text) {
        Ok(_) => Ok(()),
        Err(error) => Err(match (error.detail(), error.line()) {
            (Some(detail), Some(line)) => format!("{detail}, in its line {line}"),
            (Some(detail), None) => detail.to_owned(),
            _ => error.to_string(),
        }),
    };
    thread::scope(|scope| {
        let parser = thread::Builder::new().stack_size(PARSER_STACK);
        match parser.spawn_scoped(scope, parse) {
            Ok(parser) => parser
                .join()
                .unwrap_or_else(|_| Err("its parser failed".to_owned())),
            Err(error) => Err(format!("its parser cannot be started: {error}")),
        }
    })
}

/// The template without `{% generation %}`, a tag that only transformers knows.
fn without_generation(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("{%") {
        // A tag ends behind the two characters that begin it: `{%}` is no tag.
        let Some(length) = rest[start + 2..].find("%}") else {
            break;
        };
        let end = start + 2 + length + 2;
        let word = rest[start + 2..end - 2].trim_matches(['-', '+']).trim();
        out.push_str(&rest[..start]);
        out.push_str(match word {
            "generation" => "{% if true %}",
            "endgeneration" => "{% endif %}",
            _ => &rest[start..end],
        });
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
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
    use minijinja::context;

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

    #[test]
    fn templates_of_the_field_parse_and_unsound_ones_do_not() {
        for sound in [
            "{%- for m in messages -%}{%- if m['role'] == 'user' -%}{{ m['content'].strip() }}{%- break -%}{%- endif -%}{%- endfor -%}",
            "{% set ns = namespace(x=none) %}{%- set ns.x = messages[1:] | list %}{{ raise_exception('a' ~ \"b\") }}",
            "{% for m in messages %}{% generation %}{{ m.content }}{%- endgeneration -%}{% endfor %}",
            "{%- macro render(tools) -%}{{ tools | tojson(indent=4) }}{%- endmacro -%}{{ render(tools) }}",
            "{% if messages[0]['role'] == 'system' and tools is defined and tools is not none %}{{- '\\n' }}{% endif %}",
            "{{ (messages|selectattr('role', 'equalto', 'system')|list|last).content|trim if x else '' }}",
            "{%- for i in range(messages|length - 1, -1, -1) %}{{ loop.index0 }}{% endfor %}",
        ] {
            assert_eq!(parses(sound), Ok(()), "{sound}");
        }
        for unsound in [
            "{{ a",
            "{% for x in y %}",
            "{% endif %}",
            "{% generation",
            "{%}",
            "{{ a }{%}{% b %}",
            "{{ a b }}",
            "{% nonsense %}",
        ] {
            assert!(parses(unsound).is_err(), "{unsound}");
        }
        assert!(parses(&"{{ a }}".repeat(1 << 18)).is_err());
        let chain = |first: &str, link: &str, last: &str| {
            let links = format!("{}\n", link.repeat(20)).repeat(5_000);
            let text = format!("{first}{links}{last}");
            assert!(parses(&text).is_err(), "{first}{link}{last}");
        };
        for link in [
            "+1",
            ".a",
            "|a",
            "~a",
            " and a",
            "[0]",
            "(1)",
            " is not b",
            " if a",
            "**a",
            ", a",
        ] {
            chain("{{ a", link, " }}");
        }
        for link in ["not ", "-", "(", "[", "{a:"] {
            chain("{{ ", link, "a }}");
        }
        chain("{% for ", "(", "a in b %}{% endfor %}");
        chain("{% if a %}", "{% elif a %}", "{% endif %}");
        chain("{% if a %}", "{% if a %}", "{% endif %}");
        chain("", "{% generation %}", "");
        // As long as is allowed, and as many: this must not take long.
        let longest = format!("{{{{ a{} }}}}", "+1".repeat(990));
        assert_eq!(parses(&longest.repeat(12)), Ok(()));
        assert!(parses(&longest.repeat(13)).is_err());
        // The parser counts lines and columns in 16 bits.
        assert_eq!(parses(&"\n".repeat(60_000)), Ok(()));
        for (sound, many) in [("\n", 70_000), ("a", 70_000)] {
            assert!(parses(&format!("{}{{{{ a b }}}}", sound.repeat(many))).is_err());
        }
        let deep = format!("{{{{ {}a{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
        assert!(parses(&deep).is_err());
    }
}
