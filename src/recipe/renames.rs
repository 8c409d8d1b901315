//! `rename:`: tensors that a model calls by other names than the merge.

use super::keys::Place;
use super::problem::{Located, Position, ProblemKind, quoted};
use super::walk::Walk;
use super::yaml::{Entry, Node};
use checkpoint::ModelRef;

/// An entry of `rename:`.
#[derive(Debug)]
pub struct Rename {
    /// The model whose tensors it renames; all of them, if none is named.
    pub model: Option<Located<ModelRef>>,
    /// How names change.
    pub rule: RenameRule,
    /// Its position in the recipe.
    pub at: Position,
}

/// A rule by which names become others: a whole name, or one with a `*` that stands for the same characters in both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenameRule {
    from: Pattern,
    to: Pattern,
}

/// A whole name, or the two parts of a name around a `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    before: String,
    after: Option<String>,
}

const RENAME: Place = Place {
    name: "an entry of `rename`",
    keys: &["from", "to", "model"],
};

impl RenameRule {
    /// Reads a rule; `None` unless `from` and `to` are two different names, or each has one `*`.
    pub fn parse(from: &str, to: &str) -> Option<RenameRule> {
        let rule = RenameRule {
            from: Pattern::parse(from)?,
            to: Pattern::parse(to)?,
        };
        let alike = rule.from.after.is_some() == rule.to.after.is_some();
        (alike && from != to).then_some(rule)
    }

    /// The new name of a tensor; `None` if the rule does not fit its name.
    pub fn apply(&self, name: &str) -> Option<String> {
        let middle = self.from.middle(name)?;
        let Pattern { before, after } = &self.to;
        let renamed = format!("{before}{middle}{}", after.as_deref().unwrap_or_default());
        (!renamed.is_empty()).then_some(renamed)
    }
}

impl Pattern {
    /// Reads a pattern; `None` if it is empty or has more than one `*`.
    fn parse(text: &str) -> Option<Pattern> {
        let (before, after) = match text.split_once('*') {
            Some((before, after)) => (before, Some(after)),
            None => (text, None),
        };
        let one_star = after.is_none_or(|after| !after.contains('*'));
        (!text.is_empty() && one_star).then(|| Pattern {
            before: before.to_owned(),
            after: after.map(str::to_owned),
        })
    }

    /// What stands for the `*` in a name that the pattern fits: nothing if it has none.
    fn middle<'n>(&self, name: &'n str) -> Option<&'n str> {
        let rest = name.strip_prefix(self.before.as_str())?;
        match &self.after {
            Some(after) => rest.strip_suffix(after.as_str()),
            None => Some(rest).filter(|rest| rest.is_empty()),
        }
    }
}

impl Walk<'_> {
    /// `rename: [{from: ..., to: ..., model: ...}, ...]`.
    pub(super) fn renames(&mut self, entry: &Entry) -> Vec<Rename> {
        let items = self.items(entry, "rename").unwrap_or_default();
        items.iter().filter_map(|item| self.rename(item)).collect()
    }

    fn rename(&mut self, node: &Node) -> Option<Rename> {
        let entries = self.entries(node, &RENAME)?;
        let (mut from, mut to, mut model) = (None, None, None);
        for entry in entries {
            match entry.key.as_str() {
                "from" => from = Some(self.text(entry)),
                "to" => to = Some(self.text(entry)),
                "model" if entry.node.is_null() => {}
                "model" => model = Some(self.model(&entry.node)),
                _ => self.other_key(&RENAME, entry),
            }
        }
        for (key, given) in [("from", &from), ("to", &to)] {
            if given.is_none() {
                self.missing(key, node, &RENAME);
            }
        }
        let (from, to) = (from??, to??);
        let model = match model {
            Some(model) => Some(model?),
            None => None,
        };
        let Some(rule) = RenameRule::parse(&from, &to) else {
            let message = format!("{} cannot be renamed to {}", quoted(&from), quoted(&to));
            let hint = "`from` and `to` are two different names, or each has one `*`, which stands for the same \
                        characters in both: `{from: 'encoder.*', to: 'model.encoder.*'}`";
            self.refuse(ProblemKind::Invalid, node.at, message, Some(hint));
            return None;
        };
        let at = node.at;
        Some(Rename { model, rule, at })
    }
}
