//! Fits text to the terminal that shows it: long lines are broken at spaces, and what follows is indented.

use std::io;

use terminal_size::{Height, Width, terminal_size_of};

/// The narrowest terminal that text is fitted to.
const MIN_WIDTH: usize = 30;

/// The widest label: what a line has after its first word and two spaces or more is aligned, if it begins up to here.
const MAX_LABEL: usize = 14;

/// The text as stdout's terminal shows it best; unchanged if stdout is none.
pub(super) fn to_stdout(text: &str) -> String {
    fitted(text, terminal_size_of(io::stdout()))
}

/// The text as stderr's terminal shows it best; unchanged if stderr is none.
pub(super) fn to_stderr(text: &str) -> String {
    fitted(text, terminal_size_of(io::stderr()))
}

fn fitted(text: &str, terminal: Option<(Width, Height)>) -> String {
    match terminal {
        Some((Width(width), _)) => wrapped(text, usize::from(width)),
        None => text.to_owned(),
    }
}

/// The text with lines of at most `width` characters, as far as there are spaces to break them at.
fn wrapped(text: &str, width: usize) -> String {
    let width = width.max(MIN_WIDTH);
    let lines: Vec<String> = text
        .split('\n')
        .map(|line| wrapped_line(line, width))
        .collect();
    lines.join("\n")
}

fn wrapped_line(line: &str, width: usize) -> String {
    if line.chars().count() <= width {
        return line.to_owned();
    }
    let indent = hanging_indent(line);
    let (mut out, mut column) = (String::new(), 0);
    // Each word with the spaces before it.
    for piece in pieces(line) {
        let word = piece.trim_start_matches(' ');
        let length = piece.chars().count();
        if column + length > width && column > indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent));
            out.push_str(word);
            column = indent + word.chars().count();
        } else {
            out.push_str(piece);
            column += length;
        }
    }
    out
}

/// The line cut before each run of spaces.
fn pieces(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = line;
    std::iter::from_fn(move || {
        let word = rest.find(|c| c != ' ')?;
        let end = rest[word..]
            .find(' ')
            .map_or(rest.len(), |length| word + length);
        let (piece, later) = rest.split_at(end);
        rest = later;
        Some(piece)
    })
}

/// How far the lines that continue one are indented: as far as what follows its label, or two more than it is itself.
fn hanging_indent(line: &str) -> usize {
    let own = line.len() - line.trim_start_matches(' ').len();
    let label = line[own..].find(' ').unwrap_or(0);
    let after = line[own + label..].trim_start_matches(' ');
    let start = line.len() - after.len();
    let is_label = start >= own + label + 2 && start <= MAX_LABEL && line.is_char_boundary(start);
    match is_label {
        true => start,
        false => own + 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_broken_at_spaces_and_aligned() {
        let text = "note     the first word is a label, so what follows is aligned with it\n\
                    \x20 an indented line that goes on for longer than the terminal is wide\n\
                    short\n\
                    a.name.without.a.space.that.is.longer.than.any.terminal.would.be and more\n";
        let expected = "note     the first word is a label,\n\
                        \x20        so what follows is aligned\n\
                        \x20        with it\n\
                        \x20 an indented line that goes on for\n\
                        \x20   longer than the terminal is wide\n\
                        short\n\
                        a.name.without.a.space.that.is.longer.than.any.terminal.would.be\n\
                        \x20 and more\n";
        assert_eq!(wrapped(text, 36), expected);
        assert_eq!(wrapped(text, 200), text);
        for width in 0..80 {
            let words = |text: &str| {
                text.split_whitespace()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            };
            assert_eq!(words(&wrapped(text, width)), words(text), "{width}");
        }
    }
}
