//! Positions in a recipe's text: from the YAML parser's terms to those of editors.

use serde_saphyr::Location;

use super::problem::Position;

/// Converts the parser's character offsets to lines, columns and bytes.
///
/// The parser's errors lack byte offsets, and its lines count lone carriage returns, which editors do not; its
/// character offsets are always right.
pub(super) struct Places<'a> {
    text: &'a str,
    /// The byte offset of each character, and the total length last.
    bytes: Vec<usize>,
    /// The first character of each line.
    lines: Vec<usize>,
}

impl<'a> Places<'a> {
    /// Measures a text.
    pub(super) fn new(text: &'a str) -> Places<'a> {
        let mut bytes = Vec::with_capacity(text.len() + 1);
        let mut lines = vec![0];
        for (char_index, (byte, c)) in text.char_indices().enumerate() {
            bytes.push(byte);
            if c == '\n' {
                lines.push(char_index + 1);
            }
        }
        bytes.push(text.len());
        Places { text, bytes, lines }
    }

    fn byte(&self, char_index: usize) -> usize {
        self.bytes
            .get(char_index)
            .copied()
            .unwrap_or(self.text.len())
    }

    /// The position from the first character of `from` to the last of `to`, cut at the end of its first line.
    pub(super) fn position(&self, from: Location, to: Location) -> Position {
        let first = usize::try_from(from.span().offset()).unwrap_or(usize::MAX);
        let first = first.min(self.bytes.len() - 1);
        let last = to.span().offset().saturating_add(to.span().len());
        let last = usize::try_from(last).unwrap_or(usize::MAX);
        let line = self.lines.partition_point(|start| *start <= first).max(1);
        let line_start = self.lines.get(line - 1).copied().unwrap_or(0);
        let line_end = match self.lines.get(line) {
            Some(next) => self.byte(next - 1),
            None => self.text.len(),
        };
        let start = self.byte(first);
        let end = self.byte(last).min(line_end).max(start);
        let end = match self.text.get(start..end) {
            Some(covered) => start + covered.trim_end().len(),
            None => start,
        };
        Position {
            line,
            column: first - line_start + 1,
            start,
            end,
        }
    }

    /// The first character of a position.
    pub(super) fn char_at(&self, at: Position) -> Option<char> {
        self.text.get(at.start..)?.chars().next()
    }

    /// The byte past the closing bracket of a flow list or mapping, whose last value ends at `end`; `end` if it has no
    /// brackets.
    pub(super) fn past_bracket(&self, at: Position, end: usize) -> usize {
        if !matches!(self.char_at(at), Some('[' | '{')) {
            return end;
        }
        let rest = self.text.get(end..).unwrap_or_default();
        let mut in_comment = false;
        for (place, c) in rest.char_indices() {
            match c {
                '\n' => in_comment = false,
                _ if in_comment => {}
                '#' => in_comment = true,
                ']' | '}' => return end + place + 1,
                ',' => {}
                _ if c.is_whitespace() => {}
                _ => break,
            }
        }
        end
    }

    /// Extends the position of a flow list or mapping to its closing bracket.
    pub(super) fn close_bracket(&self, at: &mut Position) {
        let rest = |from: usize| self.text.get(from..).unwrap_or_default();
        let close = match rest(at.start).chars().next() {
            Some('[') => ']',
            Some('{') => '}',
            _ => return,
        };
        let from = at.end.max(at.start + 1);
        let gap = rest(from)
            .bytes()
            .take_while(|byte| matches!(byte, b' ' | b','))
            .count();
        if rest(from + gap).starts_with(close) {
            at.end = from + gap + 1;
        }
    }
}
