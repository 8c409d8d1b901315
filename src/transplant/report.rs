//! How the rows of a new vocabulary came about.

use serde_json::{Value, json};

/// How a table of rows came about: the embedding, or the head.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TableReport {
    /// The tensor.
    pub tensor: String,
    /// Rows that were copied, because both vocabularies have the token.
    pub copied: usize,
    /// Rows that were approximated.
    pub approximated: usize,
    /// Rows that are the mean of all, because the method has nothing to go by.
    pub means: usize,
    /// Rows of zeros: by that method, or of ids without a token.
    pub zeros: usize,
    /// By matching pursuit: the tokens, and the length of what is left out as a share of the donor's row, the worst first.
    pub left_out: Vec<Approximation>,
}

/// A token that was approximated.
#[derive(Debug, Clone, PartialEq)]
pub struct Approximation {
    /// The token, as the donor writes it.
    pub token: String,
    /// The length of what is left out, as a share of that of the donor's row.
    pub left_out: f64,
}

impl TableReport {
    /// The least share of left-out length that this part of the approximated rows stays within.
    pub fn within(&self, part: f64) -> Option<f64> {
        let count = self.left_out.len();
        let place = ((1.0 - part) * count as f64) as usize;
        self.left_out
            .get(place.min(count.checked_sub(1)?))
            .map(|worst| worst.left_out)
    }
}

/// How the rows of a new vocabulary came about.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The embedding, and the head if it is another tensor.
    pub tables: Vec<TableReport>,
    /// Tokens of the new vocabulary.
    pub tokens: usize,
    /// Rows of the new tables.
    pub rows: usize,
}

impl Report {
    /// The report for programs; of the approximated tokens, the worst.
    pub fn json(&self, worst: usize) -> Value {
        let token =
            |token: &Approximation| json!({"token": token.token, "left_out": token.left_out});
        let table = |table: &TableReport| {
            json!({
                "tensor": table.tensor,
                "copied": table.copied,
                "approximated": table.approximated,
                "means": table.means,
                "zeros": table.zeros,
                "median_left_out": table.within(0.5),
                "worst": table.left_out.iter().take(worst).map(token).collect::<Vec<Value>>(),
            })
        };
        json!({
            "tokens": self.tokens,
            "rows": self.rows,
            "tables": self.tables.iter().map(table).collect::<Vec<Value>>(),
        })
    }
}
