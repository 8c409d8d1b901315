//! Bounds a chat template before it is parsed: the parser and the compiler of Jinja recurse along chains of operators
//! and of `elif`, and look at each chain once per link.

use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;

/// The longest template in bytes; real ones reach some 20 KB.
const MAX_BYTES: usize = 1 << 20;

/// The most lines, and the most bytes of a line: the parser counts both in 16 bits.
const MAX_LINES: usize = 65_000;

/// The most tokens of a tag, `{{ ... }}` or `{% ... %}`. Real ones have some hundred.
const MAX_TAG_TOKENS: u64 = 2_000;

/// The most `elif` of a template.
const MAX_ELIFS: u64 = 500;

/// The most work: the sum of the squares of the tags' tokens.
const MAX_WORK: u64 = 50_000_000;

/// Whether a template can be parsed in bounded time and stack; says what is too much.
pub(super) fn within_limits(text: &str) -> Result<(), String> {
    let at_most = |what: &str, found: u64, most: u64| match found > most {
        true => Err(format!("{what} {found}, expected at most {most}")),
        false => Ok(()),
    };
    at_most("its bytes are", text.len() as u64, MAX_BYTES as u64)?;
    at_most(
        "its lines are",
        text.lines().count() as u64,
        MAX_LINES as u64,
    )?;
    let longest = text.lines().map(str::len).max().unwrap_or(0);
    at_most(
        "the bytes of its longest line are",
        longest as u64,
        MAX_LINES as u64,
    )?;
    let (mut tokens, mut elifs, mut work) = (0, 0, 0);
    for token in tokenize(text, false, SyntaxConfig::default()) {
        let Ok((token, _)) = token else {
            // The parser stops there too, and says why.
            break;
        };
        match token {
            Token::TemplateData(_) => {}
            Token::VariableEnd | Token::BlockEnd => {
                work += tokens * tokens;
                tokens = 0;
            }
            token => {
                tokens += 1;
                elifs += u64::from(matches!(token, Token::Ident("elif")));
            }
        }
        at_most("the tokens of a tag are", tokens, MAX_TAG_TOKENS)?;
        at_most("its `elif` are", elifs, MAX_ELIFS)?;
        at_most("its tags are too long, their work is", work, MAX_WORK)?;
    }
    Ok(())
}
