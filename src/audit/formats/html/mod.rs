//! A report, or a plan, as one HTML page without scripts and external resources, in light and dark.
//!
//! The page is a template that escapes all its input. The positions in drawings are computed here.

mod heat;
mod histogram;
mod page;
mod plan;

pub use minijinja::Error as PageError;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Error, syntax::SyntaxConfig};
use serde::Serialize;

use crate::Report;
pub use plan::plan_page;

/// The template's input.
#[derive(Serialize)]
struct Context {
    page: page::Page,
    heat_maps: Vec<heat::Heat>,
    histograms: Vec<histogram::Drawing>,
}

/// The report as an HTML page.
///
/// # Errors
/// The template failed, which no report should cause.
pub fn html(report: &Report) -> Result<String, Error> {
    let context = Context {
        page: page::page(report),
        heat_maps: report.heat_maps.iter().map(heat::heat).collect(),
        histograms: report.histograms.iter().map(histogram::histogram).collect(),
    };
    environment()?
        .get_template("page.html")?
        .render(Serde(context))
}

/// A page by a template of its own, which may include `head.html`, `page.css`, and `facts.html` with `facts.css`.
///
/// # Errors
/// The template failed.
pub fn page_of(template: &str, context: &impl Serialize) -> Result<String, PageError> {
    environment()?.render_str(template, Serde(context))
}

/// The templates of all pages, which escape all their input.
fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let mut syntax = SyntaxConfig::builder();
    environment.set_syntax(syntax.trim_blocks(true).lstrip_blocks(true).build()?);
    for (name, text) in [
        ("broken.html", include_str!("broken.html")),
        ("facts.css", include_str!("facts.css")),
        ("facts.html", include_str!("facts.html")),
        ("head.html", include_str!("head.html")),
        ("page.css", include_str!("page.css")),
        ("page.html", include_str!("page.html")),
        ("plan.css", include_str!("plan.css")),
        ("plan.html", include_str!("plan.html")),
    ] {
        environment.add_template(name, text)?;
    }
    Ok(environment)
}

/// A number with four significant digits, for people.
fn number(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        return value.to_string();
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    if !(1e-3..1e5).contains(&size) {
        return trimmed(format!("{value:.2e}"));
    }
    let digits = (3 - size.log10().floor() as i64).clamp(0, 9) as usize;
    trimmed(format!("{value:.digits$}"))
}

/// Removes the zeros at the end of a fraction.
fn trimmed(text: String) -> String {
    let (mantissa, exponent) = match text.split_once('e') {
        Some((mantissa, exponent)) => (mantissa, format!("e{exponent}")),
        None => (text.as_str(), String::new()),
    };
    match mantissa.contains('.') {
        true => {
            mantissa
                .trim_end_matches('0')
                .trim_end_matches('.')
                .to_owned()
                + &exponent
        }
        false => mantissa.to_owned() + &exponent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let check = |value: f64, expected: &str| assert_eq!(number(value), expected, "{value}");
        check(0.0, "0");
        check(0.5, "0.5");
        check(0.999_987, "1");
        check(0.012_345_6, "0.01235");
        check(1234.567, "1235");
        check(-12.0, "-12");
        check(1.5e-7, "1.5e-7");
        check(2e9, "2e9");
        check(f64::NAN, "NaN");
        check(f64::NEG_INFINITY, "-inf");
    }
}
