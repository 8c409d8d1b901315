//! Fits text to the terminal that shows it: long lines are broken at spaces, and what follows is indented.

use std::io;

use terminal_size::{Height, Width, terminal_size_of};

/// The narrowest terminal that text is fitted to.
const MIN_WIDTH: usize = 30;

/// What stands at the end of a line where a word goes on in the next.
const BROKEN: char = '…';

/// The least room for words, however far a line is indented.
const MIN_ROOM: usize = 12;

/// The widest label: what a line has after its first word and two spaces or more is aligned, if it begins up to here.
const MAX_LABEL: usize = 18;

/// The widest help.
pub(super) const MAX_HELP_WIDTH: usize = 100;

/// How wide stdout's terminal is; none if stdout is no terminal.
pub(super) fn stdout_width() -> Option<usize> {
    let terminal = terminal_size_of(io::stdout());
    terminal.map(|(Width(width), _)| usize::from(width).max(MIN_WIDTH))
}

/// The text as stdout's terminal shows it best; unchanged if stdout is none.
pub(super) fn to_stdout(text: &str) -> String {
    fitted(text, terminal_size_of(io::stdout()))
}

/// The text as stderr's terminal shows it best; unchanged if stderr is none.
pub(super) fn to_stderr(text: &str) -> String {
    fitted(text, terminal_size_of(io::stderr()))
}

/// The text of a help as stdout's terminal shows it best; where there is none, as wide as clap's.
pub(super) fn to_help(text: &str) -> String {
    let columns = std::env::var("COLUMNS").ok();
    let terminal = terminal_size_of(io::stdout()).map(|(Width(width), _)| usize::from(width));
    let width = terminal.or_else(|| columns?.parse().ok());
    wrapped(text, width.unwrap_or(MAX_HELP_WIDTH).min(MAX_HELP_WIDTH))
}

fn fitted(text: &str, terminal: Option<(Width, Height)>) -> String {
    match terminal {
        Some((Width(width), _)) => wrapped(text, usize::from(width)),
        None => text.to_owned(),
    }
}

/// The text with lines of at most `width` characters, broken at spaces; a word that is longer is broken with a sign.
pub(super) fn wrapped(text: &str, width: usize) -> String {
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
        let mut word = piece.trim_start_matches(' ');
        let length = piece.chars().count();
        if column + length <= width {
            out.push_str(piece);
            column += length;
            continue;
        }
        match column > indent {
            true => new_line(&mut out, indent),
            // The line begins with spaces of its own.
            false => out.extend(std::iter::repeat_n(' ', piece.len() - word.len())),
        }
        let own = if column > indent {
            indent
        } else {
            column + piece.len() - word.len()
        };
        let mut room = width.saturating_sub(own).max(MIN_ROOM);
        // A name that no line can hold.
        while word.chars().count() > room {
            let (head, rest) = broken(word, room - 1);
            out.push_str(head);
            out.push(BROKEN);
            new_line(&mut out, indent);
            word = rest;
            room = width.saturating_sub(indent).max(MIN_ROOM);
        }
        out.push_str(word);
        column = width.saturating_sub(room) + word.chars().count();
    }
    out
}

fn new_line(out: &mut String, indent: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n(' ', indent));
}

/// A word cut in two, of which the first has at most `most` characters: after a dot, a slash or an underscore if there is
/// one in the second half of it.
fn broken(word: &str, most: usize) -> (&str, &str) {
    let end = word
        .char_indices()
        .nth(most)
        .map_or(word.len(), |(at, _)| at);
    let mark = word[..end]
        .rfind(['.', '/', '_', ',', '-'])
        .map(|at| at + 1);
    let half = word.char_indices().nth(most / 2).map_or(0, |(at, _)| at);
    word.split_at(mark.filter(|at| *at > half).unwrap_or(end))
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
                        a.name.without.a.space.that.is.…\n\
                        \x20 longer.than.any.terminal.would.be\n\
                        \x20 and more\n";
        assert_eq!(wrapped(text, 36), expected);
        assert_eq!(wrapped(text, 200), text);
        for width in 0..80 {
            let letters = |text: &str| text.replace([' ', '\n', '…'], "");
            let fitted = wrapped(text, width);
            assert_eq!(letters(&fitted), letters(text), "{width}");
            let most = width.max(MIN_WIDTH);
            let is_short = |line: &str| line.chars().count() <= most;
            assert!(fitted.lines().all(is_short), "{width}: {fitted}");
        }
    }
}
