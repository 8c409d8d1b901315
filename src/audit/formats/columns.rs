//! Columns of text that fit a terminal: what is cut has a sign, and what does not fit beside goes below.

use std::collections::HashMap;

/// What stands where a text was cut.
const CUT: char = '…';

/// The narrowest that a column of names becomes before its row is written in several lines.
const MIN_NAME: usize = 12;

/// Spaces between columns.
const GAP: usize = 2;

/// Rows of cells with each column as wide as its widest cell; of at most `width` characters, if one is given. The first
/// row is the heading, if `has_heading`. Where there is too little room, names are cut in the middle; where that would
/// leave too little of them, each row becomes several lines, with the headings as labels.
pub fn columns(rows: &[Vec<String>], has_heading: bool, width: Option<usize>) -> Vec<String> {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widest = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| length(cell)).max().unwrap_or(0)
    };
    let mut widths: Vec<usize> = (0..count).map(widest).collect();
    let Some(width) = width else {
        return rows.iter().map(|row| line(row, &widths)).collect();
    };
    let values = if has_heading {
        rows.get(1..)
    } else {
        Some(rows)
    }
    .unwrap_or_default();
    // Names and paths can be cut, prose and figures cannot.
    let is_name = |column: &usize| {
        let cells = values.iter().filter_map(|row| row.get(*column));
        let mut cells = cells.filter(|cell| !cell.is_empty()).peekable();
        cells.peek().is_some() && cells.all(|cell| !cell.contains(' ') && !is_figure(cell))
    };
    let names: Vec<usize> = (0..count).filter(is_name).collect();
    let fits = shrink(&mut widths, &names, width);
    let tells = |column: &usize| tells_apart(values, *column, widths[*column]);
    match fits && names.iter().all(tells) {
        true => rows.iter().map(|row| line(row, &widths)).collect(),
        false => stacked(rows, has_heading, width),
    }
}

/// Whether different cells of a column are still different where they are cut.
fn tells_apart(rows: &[Vec<String>], column: usize, width: usize) -> bool {
    let mut known: HashMap<String, &str> = HashMap::new();
    rows.iter().filter_map(|row| row.get(column)).all(|cell| {
        let before = known.insert(cut(cell, width), cell);
        before.is_none_or(|before| before == cell)
    })
}

/// Narrows the widest columns of names until a row fits; whether it does.
fn shrink(widths: &mut [usize], names: &[usize], width: usize) -> bool {
    let total =
        |widths: &[usize]| widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
    while total(widths) > width {
        let widest = names.iter().copied().max_by_key(|column| widths[*column]);
        match widest.filter(|column| widths[*column] > MIN_NAME) {
            Some(column) => widths[column] -= 1,
            None => return false,
        }
    }
    true
}

/// A row in one line.
fn line(row: &[String], widths: &[usize]) -> String {
    let cells = row.iter().zip(widths).map(|(cell, width)| {
        let cell = cut(cell, *width);
        let padding = width.saturating_sub(length(&cell));
        format!("{cell}{}", " ".repeat(padding))
    });
    let cells: Vec<String> = cells.collect();
    cells.join(&" ".repeat(GAP)).trim_end().to_owned()
}

/// Each row in several lines: its first cell, then the others with their headings, as many in a line as fit.
fn stacked(rows: &[Vec<String>], has_heading: bool, width: usize) -> Vec<String> {
    let none = Vec::new();
    let heading = rows.first().filter(|_| has_heading).unwrap_or(&none);
    let mut lines = Vec::new();
    for row in rows.iter().skip(usize::from(has_heading)) {
        let Some((first, others)) = row.split_first() else {
            continue;
        };
        lines.push(cut(first, width));
        let indent = "    ";
        let mut current = String::new();
        for (at, cell) in others
            .iter()
            .enumerate()
            .filter(|(_, cell)| !cell.is_empty())
        {
            let label = heading.get(at + 1).filter(|label| !label.is_empty());
            let item = label.map_or_else(|| cell.clone(), |label| format!("{label} {cell}"));
            let item = cut(&item, width.saturating_sub(indent.len()).max(1));
            if current.is_empty() {
                current = format!("{indent}{item}");
            } else if length(&current) + GAP + length(&item) <= width {
                current = format!("{current}{}{item}", " ".repeat(GAP));
            } else {
                lines.push(std::mem::replace(&mut current, format!("{indent}{item}")));
            }
        }
        lines.extend((!current.is_empty()).then_some(current));
    }
    lines
}

/// A text of at most `width` characters: the middle is left out, as names differ at their ends.
pub fn cut(text: &str, width: usize) -> String {
    let count = length(text);
    if count <= width {
        return text.to_owned();
    }
    let kept = width.saturating_sub(1);
    // Of a name of a tensor, the end tells more than the start.
    let end = kept - kept / 3;
    let start: String = text.chars().take(kept / 3).collect();
    let rest: String = text.chars().skip(count - end).collect();
    format!("{start}{CUT}{rest}")
}

fn length(text: &str) -> usize {
    text.chars().count()
}

/// Whether a cell is a number or a shape.
fn is_figure(cell: &str) -> bool {
    let begins = |c: char| c.is_ascii_digit() || "-+.[".contains(c);
    let is_path = cell.contains('/');
    cell.starts_with(begins) && !is_path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Vec<Vec<String>> {
        let rows: [[&str; 4]; 3] = [
            ["tensor", "shape", "relative l2", "cosine"],
            [
                "model.layers.10.self_attn.q_proj.weight",
                "[64, 64]",
                "0.0123",
                "0.9999",
            ],
            ["model.norm.weight", "[64]", "1.5e-7", "1"],
        ];
        rows.iter()
            .map(|row| row.iter().map(|cell| (*cell).to_owned()).collect())
            .collect()
    }

    #[test]
    fn columns_are_as_wide_as_they_need_to_be() {
        let lines = columns(&table(), true, None);
        assert_eq!(lines, columns(&table(), true, Some(80)));
        assert_eq!(
            lines,
            [
                "tensor                                   shape     relative l2  cosine",
                "model.layers.10.self_attn.q_proj.weight  [64, 64]  0.0123       0.9999",
                "model.norm.weight                        [64]      1.5e-7       1",
            ]
        );
    }

    #[test]
    fn names_are_cut_with_a_sign_and_numbers_are_not() {
        assert_eq!(
            columns(&table(), true, Some(60)),
            [
                "tensor                         shape     relative l2  cosine",
                "model.lay…_attn.q_proj.weight  [64, 64]  0.0123       0.9999",
                "model.norm.weight              [64]      1.5e-7       1",
            ]
        );
    }

    #[test]
    fn every_line_fits_and_every_number_is_there() {
        for width in 20..90 {
            let lines = columns(&table(), true, Some(width));
            assert!(
                lines.iter().all(|line| length(line) <= width),
                "{width}: {lines:#?}"
            );
            let all = lines.join("\n");
            for number in ["0.0123", "0.9999", "1.5e-7"] {
                assert!(all.contains(number), "{width}: {all}");
            }
            let whole = all.contains("model.layers.10.self_attn.q_proj.weight");
            assert!(whole || all.contains(CUT), "{width}: {all}");
        }
    }

    #[test]
    fn the_middle_of_a_name_is_left_out() {
        let name = "model.layers.10.mlp.up_proj.weight";
        assert_eq!(cut(name, 20), "model.…p_proj.weight");
        assert_eq!(cut("short", 20), "short");
        assert_eq!(cut("abc", 1), "…");
        assert_eq!(cut("", 0), "");
    }
}
