//! The keys of `rank_pattern` and `alpha_pattern`: which modules they match, by PEFT's rules.

use regex_lite::{Regex, RegexBuilder};

/// The longest pattern, in bytes: real ones are a module's name.
const MAX_PATTERN_BYTES: usize = 4096;

/// The most memory that a compiled pattern may take.
const MAX_COMPILED_BYTES: usize = 256 << 10;

/// A pattern for the ends of module names: it matches the whole name, or the part after one of its dots.
///
/// Source: PEFT, `get_pattern_key`: a regular expression between an optional `.*\.` and `$`.
#[derive(Debug, Clone)]
pub(super) enum Pattern {
    /// A name only; nearly all patterns are. Its dots match any character.
    Plain(String),
    /// Any other pattern, in the syntax that Python and Rust share.
    Expression(Regex),
}

impl Pattern {
    /// Parses a pattern; the error says what is wrong.
    pub(super) fn parse(text: &str) -> Result<Pattern, String> {
        if text.len() > MAX_PATTERN_BYTES {
            return Err(format!("it is longer than {MAX_PATTERN_BYTES} bytes"));
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        if text.bytes().all(plain) {
            return Ok(Pattern::Plain(text.into()));
        }
        RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{text})$"))
            .size_limit(MAX_COMPILED_BYTES)
            .build()
            .map(Pattern::Expression)
            .map_err(|error| error.to_string())
    }

    /// Whether it costs memory and time beyond its own length.
    pub(super) fn is_expression(&self) -> bool {
        matches!(self, Pattern::Expression(_))
    }

    /// Whether it matches the module of that name.
    pub(super) fn fits(&self, module: &str) -> bool {
        match self {
            Pattern::Plain(text) => {
                let (module, text) = (module.as_bytes(), text.as_bytes());
                let Some(start) = module.len().checked_sub(text.len()) else {
                    return false;
                };
                let same = |(&found, &wanted): (&u8, &u8)| found == wanted || wanted == b'.';
                (start == 0 || module[start - 1] == b'.')
                    && module[start..].iter().zip(text).all(same)
            }
            Pattern::Expression(expression) => expression.is_match(module),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each case was tried with PEFT's `get_pattern_key`.
    #[test]
    fn patterns_fit_the_ends_of_names() {
        let cases = [
            ("q_proj", "model.layers.0.self_attn.q_proj", true),
            ("q_proj", "q_proj", true),
            ("proj", "model.layers.0.self_attn.q_proj", false),
            ("q_proj", "model.layers.0.q_proj.base", false),
            ("self_attn.q_proj", "model.layers.0.self_attn.q_proj", true),
            ("self_attn.q_proj", "model.layers.0.self_attn_q_proj", true),
            ("attn.q_proj", "model.layers.0.self_attn.q_proj", false),
            ("layers.1.fc", "model.layers.11.fc", false),
            (r"layers\.1\d?\.fc", "model.layers.11.fc", true),
            ("layers.(0|1).fc", "model.layers.1.fc", true),
            ("^model.layers.0.fc", "model.layers.0.fc", true),
            ("^layers.0.fc", "model.layers.0.fc", false),
            (".*fc", "model.layers.0.xfc", true),
            ("fc|q", "layers.0.q", true),
            ("", "model.", true),
            ("", "model", false),
            ("a-b", "x.a-b", true),
        ];
        for (pattern, module, fits) in cases {
            let pattern = Pattern::parse(pattern).unwrap();
            assert_eq!(pattern.fits(module), fits, "{pattern:?} {module}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        let long = "x".repeat(5000);
        let huge = "(x{1000}){1000}".to_owned();
        for text in ["(", "a(?=b)", r"(a)\1", "[", &long, &huge] {
            assert!(Pattern::parse(text).is_err(), "{text:?}");
        }
    }
}
