//! Whether a chat template parses.

use std::thread;

use minijinja::{Environment, Error};

use super::limits::within_limits;

/// The stack of the thread that parses a template. Within the limits, far less is needed.
const PARSER_STACK: usize = 64 << 20;

/// Whether it is a valid Jinja template; it is parsed, never run. Takes bounded time and stack, whatever the text.
///
/// # Errors
/// It is too long, or is not valid; the error says why, and where.
pub fn parses(text: &str) -> Result<(), String> {
    let text = without_generation(text);
    within_limits(&text)?;
    on_a_large_stack(|| match Environment::new().template_from_str(&text) {
        Ok(_) => Ok(()),
        Err(error) => Err(said(&error)),
    })
}

/// What an error says, and where.
pub(crate) fn said(error: &Error) -> String {
    match (error.detail(), error.line()) {
        (Some(detail), Some(line)) => format!("{detail}, in its line {line}"),
        (Some(detail), None) => detail.to_owned(),
        _ => error.to_string(),
    }
}

/// Runs the parser where its recursion has room.
pub(crate) fn on_a_large_stack<T: Send>(
    parse: impl FnOnce() -> Result<T, String> + Send,
) -> Result<T, String> {
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
pub(crate) fn without_generation(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("{%") {
        // A tag ends behind the two characters that begin it: `{%}` is no tag.
        let Some(length) = rest[start + 2..].find("%}") else {
            break;
        };
        let end = start + 2 + length + 2;
        let tag = &rest[start..end];
        let word = tag[2..tag.len() - 2].trim_matches(['-', '+']).trim();
        out.push_str(&rest[..start]);
        // What trims the white space around a tag stays.
        out.push_str(&match word {
            "generation" => tag.replace(word, "if true"),
            "endgeneration" => tag.replace(word, "endif"),
            _ => tag.to_owned(),
        });
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

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
