//! What a command measured of a model, as a report: `weld eval --command`.

use serde_json::json;

use crate::report::{Command, Report, Table};
use eval::{Measured, Split, TWO_SIDED_95};

/// Makes the report of metrics that a program measured. Of the command only the program is in it: words of it may be secret.
pub fn measurements(model: &str, program: &str, split: Split, measured: &[Measured]) -> Report {
    let mut report = Report::new(Command::Eval, model.to_owned());
    report.tables.push(table(measured));
    report.say("scored by", program.to_owned());
    if split != Split::All {
        report.say("split", split.name().to_owned());
    }
    report.details = json!({
        "program": program,
        "split": split,
        "metrics": measured,
    });
    report
}

fn table(measured: &[Measured]) -> Table {
    let rows = measured.iter().map(|one| {
        let half_width = one.standard_error.map(|error| TWO_SIDED_95 * error);
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        vec![
            one.name.clone(),
            or_none(one.items.map(|items| items.to_string())),
            format!("{:.4}", one.value),
            or_none(one.standard_error.map(|error| format!("{error:.4}"))),
            or_none(
                half_width
                    .map(|half| format!("{:.4} to {:.4}", one.value - half, one.value + half)),
            ),
            if one.larger_is_better {
                "higher"
            } else {
                "lower"
            }
            .to_owned(),
        ]
    });
    let columns = [
        "metric",
        "items",
        "value",
        "± error",
        "95 % interval",
        "better",
    ];
    Table {
        title: "Metrics (intervals: normal, from the standard error that the command gives)"
            .to_owned(),
        columns: columns.map(str::to_owned).to_vec(),
        rows: rows.collect(),
    }
}
