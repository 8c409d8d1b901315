//! The prompt of a chat, as the model's own template writes it.

use std::collections::BTreeMap;
use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::parse::{on_a_large_stack, parses, said, without_generation};

/// The most steps that a template takes, where 64 bytes of what it computes with are a step too. Real ones take some hundred.
const FUEL: u64 = 200_000;
/// How deep macros may call each other.
const MAX_DEPTH: usize = 50;
/// The most bytes of a prompt beside those of what the user says.
const MAX_BYTES: usize = 1 << 20;
/// What the template is called in its environment, which has no other.
const NAME: &str = "chat";

/// A chat template, and the special tokens that it may name.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// A template that sees the texts of special tokens by their names, such as `bos_token`.
    ///
    /// # Errors
    /// It is too long, or is not valid; the error says why, and where.
    pub fn new(text: &str, special: BTreeMap<String, String>) -> Result<ChatTemplate, String> {
        parses(text)?;
        let mut environment = environment()?;
        let text = without_generation(text);
        let environment = on_a_large_stack(move || {
            let added = environment.add_template_owned(NAME, text);
            added.map_err(|error| said(&error))?;
            Ok(environment)
        })?;
        Ok(ChatTemplate {
            environment,
            special,
        })
    }

    /// What the model is shown when a user has said something and it is to answer.
    ///
    /// # Errors
    /// The template refuses, takes too many steps or writes too much; the error says which.
    pub fn prompt(&self, user: &str) -> Result<String, String> {
        let values = context! {
            messages => [context! { role => "user", content => user }],
            add_generation_prompt => true,
            tools => (),
            documents => (),
            ..Value::from_pairs(self.special.clone())
        };
        let template = self.environment.get_template(NAME);
        let template = template.map_err(|error| said(&error))?;
        let mut prompt = Bounded {
            bytes: Vec::new(),
            most: user.len().saturating_mul(4).saturating_add(MAX_BYTES),
        };
        let rendered = template.render_captured_to(values, &mut prompt);
        if let Err(error) = rendered {
            return Err(match error.kind() {
                ErrorKind::OutOfFuel => format!("it takes more than {FUEL} steps"),
                ErrorKind::WriteFailure => format!("it writes more than {} bytes", prompt.most),
                _ => said(&error),
            });
        }
        String::from_utf8(prompt.bytes).map_err(|error| error.to_string())
    }
}

/// Where templates are run: as transformers has it, with bounds, and without the date.
fn environment() -> Result<Environment<'static>, String> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    environment.set_syntax(syntax.map_err(|error| said(&error))?);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_DEPTH);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_function("raise_exception", |why: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, why))
    });
    Ok(environment)
}

/// Takes so many bytes and no more.
struct Bounded {
    bytes: Vec<u8>,
    most: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.most - self.bytes.len() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(template: &str, user: &str) -> Result<String, String> {
        let special = [("bos_token", "<s>"), ("eos_token", "</s>")];
        let special = special.map(|(name, text)| (name.to_owned(), text.to_owned()));
        ChatTemplate::new(template, special.into())?.prompt(user)
    }

    /// Expectations are those of transformers' `apply_chat_template(..., tokenize=False, add_generation_prompt=True)`.
    #[test]
    fn prompts_are_those_of_transformers() {
        let cases = [
            (
                include_str!("examples/qwen3.jinja"),
                " hi <b> & 'you' ",
                "<|im_start|>user\n hi <b> & 'you' <|im_end|>\n<|im_start|>assistant\n",
            ),
            (
                include_str!("examples/llama3.jinja"),
                "  What is 1+1?\n",
                "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhat is 1+1?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            ),
            (
                include_str!("examples/gemma.jinja"),
                " hi\n",
                "<s><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n",
            ),
            (
                include_str!("examples/mistral.jinja"),
                "hi {{ bos_token }}",
                "<s>[INST] hi {{ bos_token }}[/INST]",
            ),
            (
                include_str!("examples/blocks.jinja"),
                " A|b c ",
                "A  A/B C \n</s> ",
            ),
            (
                include_str!("examples/blocks.jinja"),
                "\n\nzé ",
                "x zé</s> ",
            ),
        ];
        for (template, user, expected) in cases {
            assert_eq!(
                prompt(template, user).as_deref(),
                Ok(expected),
                "{template}"
            );
        }
    }

    #[test]
    fn a_template_that_is_too_much_is_refused() {
        for (template, why) in [
            (
                "{% for i in range(90000) %}{% for j in range(9) %}{{ j }}{% endfor %}{% endfor %}",
                "more than 200000 steps",
            ),
            (
                "{% for i in range(2000) %}{{ 'abcdefgh' * 1000 }}{% endfor %}",
                "it writes more than",
            ),
            (
                "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
                "recursion limit",
            ),
            ("{% include 'config.json' %}", "config.json"),
            (
                "{{ raise_exception('only tools') }}",
                "only tools, in its line 1",
            ),
            ("{{ strftime_now('%Y') }}", "strftime_now is unknown"),
            (
                "{{ messages[0].content.nonsense() }}",
                "no method named nonsense",
            ),
            ("{{ x.y.z }}", "undefined"),
            ("{{ 'a' * 10000000000 }}", "more than 200000 steps"),
            (
                "{% set ns = namespace(s='abcdefgh') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
                "more than 200000 steps",
            ),
        ] {
            let refused = prompt(template, "hello").unwrap_err();
            assert!(refused.contains(why), "{template}: {refused}");
        }
        // What the user says may be long, and is never run.
        let said = "{{ 7 * 7 }}".repeat(100_000);
        assert_eq!(prompt("{{ messages[0]['content'] }}", &said), Ok(said));
    }
}
