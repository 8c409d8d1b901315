//! Draws problems as compilers do: the line of the recipe, a caret under the position, the hint.

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use super::problem::{Position, Problem, RecipeError};
use errors::{printable, printable_in_place};

/// The most problems that are drawn: nobody reads more, and each costs a pass over the text.
const MAX_DRAWN: usize = 50;

/// Every problem with its line of the recipe, and their number if there is more than one.
pub fn render(error: &RecipeError, color: bool) -> String {
    let drawn = error.problems.iter().take(MAX_DRAWN);
    let mut parts: Vec<String> = drawn
        .map(|problem| draw(&error.path, &error.text, problem, color))
        .collect();
    let count = error.problems.len();
    let path = printable(&error.path);
    if MAX_DRAWN < count {
        parts.push(format!(
            "{count} problems in {path}, the first {MAX_DRAWN} shown"
        ));
    } else if 1 < count {
        parts.push(format!("{count} problems in {path}"));
    }
    parts.join("\n\n")
}

fn draw(path: &str, text: &str, problem: &Problem, color: bool) -> String {
    let path = printable(path);
    let text = printable_in_place(text);
    let title = Level::ERROR.primary_title(problem.message.as_str());
    let mut group = Group::with_title(title);
    group = match problem.at {
        Some(at) => {
            let mark = AnnotationKind::Primary.span(span_in(&text, at));
            group.element(Snippet::source(&*text).path(&*path).annotation(mark))
        }
        None => group.element(Origin::path(&*path)),
    };
    if let Some(hint) = &problem.hint {
        group = group.element(Level::HELP.with_name("hint").message(hint.as_str()));
    }
    let renderer = match color {
        true => Renderer::styled(),
        false => Renderer::plain(),
    };
    renderer.render(&[group])
}

/// The position as a range that lies within the text, even if the position is wrong.
fn span_in(text: &str, at: Position) -> std::ops::Range<usize> {
    let start = text.floor_char_boundary(at.start);
    let end = text.floor_char_boundary(at.end).max(start);
    start..end
}
