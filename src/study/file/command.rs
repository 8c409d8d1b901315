//! The keys of a study's file that are about its command.

use std::path::PathBuf;

use super::{Reader, node_of};
use crate::command::Command;
use eval::{CommandLine, MetricPlace};
use recipe::{Entry, Node, Value};

/// The keys that only a study with a command has.
pub(super) const OF_COMMAND: [&str; 6] = [
    "metrics",
    "time_limit",
    "retries",
    "slots",
    "gpus",
    "scratch",
];
/// Those that it does not have.
const NOT_OF_COMMAND: [&str; 5] = ["tasks", "score", "chat_template", "halving", "split_seed"];
const METRIC: &[&str] = &["pointer", "error", "better"];
/// The most trials that are scored at once.
const MAX_SLOTS: u64 = 64;

impl Reader {
    /// The command of a study, if it has one.
    pub(super) fn command(&mut self, entries: &[Entry]) -> Option<Command> {
        let get = |key: &str| node_of(entries, key);
        let Some(node) = get("command") else {
            for key in OF_COMMAND {
                if let Some(node) = get(key) {
                    let hint = "add `command:`, or remove it";
                    self.refuse(
                        node,
                        &format!("`{key}` is of a study with a `command`"),
                        hint,
                    );
                }
            }
            return None;
        };
        for key in NOT_OF_COMMAND {
            if let Some(node) = get(key) {
                let hint = format!("remove `{key}`, or the command");
                self.refuse(
                    node,
                    &format!("`command` and `{key}` exclude each other"),
                    &hint,
                );
            }
        }
        let text = self.text(node, "a command")?;
        let line = match CommandLine::parse(&text) {
            Ok(line) => line,
            Err(why) => {
                let (why, hint) = why.into_parts();
                self.refuse(node, &why, &hint.unwrap_or_default());
                return None;
            }
        };
        let gpus = get("gpus").map(|node| self.gpus(node)).unwrap_or_default();
        let slots = match get("slots") {
            Some(node) => self.whole(node, "slots", 1, MAX_SLOTS)? as usize,
            None => gpus.len().max(1),
        };
        if let (Some(node), false) = (get("gpus"), gpus.is_empty() || gpus.len() == slots) {
            let message = format!("there are {slots} slots, and GPUs for {}", gpus.len());
            self.refuse(
                node,
                &message,
                "give each slot its own, as in `gpus: [0, 1]` or `gpus: [\"0,1\", \"2,3\"]`",
            );
        }
        Some(Command {
            line,
            metrics: get("metrics")
                .map(|node| self.metrics(node))
                .unwrap_or_default(),
            time_limit: get("time_limit").and_then(|node| self.time(node)),
            retries: get("retries")
                .and_then(|node| self.whole(node, "retries", 0, 100))
                .unwrap_or(0) as u32,
            slots,
            gpus,
            scratch: get("scratch")
                .and_then(|node| self.text(node, "a folder"))
                .map(PathBuf::from),
        })
    }

    /// The GPUs of each slot.
    fn gpus(&mut self, node: &Node) -> Vec<String> {
        let mut gpus = Vec::new();
        for item in self.list(node, "gpus") {
            match &item.value {
                Value::Int(number) if *number >= 0 => gpus.push(number.to_string()),
                _ => gpus.extend(self.text(item, "the number of a GPU, or several as a text")),
            }
        }
        gpus
    }

    fn metrics(&mut self, node: &Node) -> Vec<MetricPlace> {
        let entries = self.mapping(node, "`metrics`").unwrap_or_default();
        if entries.is_empty() {
            self.refuse(
                node,
                "there are no metrics",
                "name one, as in `acc: /results/sums/acc,none`",
            );
        }
        entries
            .iter()
            .filter_map(|entry| self.metric(entry))
            .collect()
    }

    /// A metric: its pointer, or a mapping with it.
    fn metric(&mut self, entry: &Entry) -> Option<MetricPlace> {
        let node = &entry.node;
        let Value::Map(_) = &node.value else {
            return Some(MetricPlace {
                name: entry.key.clone(),
                pointer: self.pointer(node)?,
                error: None,
                larger_is_better: true,
            });
        };
        let entries = self.entries(node, "a metric", METRIC)?;
        let get = |key: &str| node_of(entries, key);
        let Some(pointer) = get("pointer") else {
            self.missing(
                node,
                "pointer",
                "`pointer: /results/sums/acc,none` is its place in the JSON",
            );
            return None;
        };
        let directions = [("higher", true), ("lower", false)];
        let better = get("better").and_then(|node| self.word(node, "better", &directions));
        Some(MetricPlace {
            name: entry.key.clone(),
            pointer: self.pointer(pointer)?,
            error: get("error").and_then(|node| self.pointer(node)),
            larger_is_better: better.unwrap_or(true),
        })
    }

    /// A JSON pointer.
    fn pointer(&mut self, node: &Node) -> Option<String> {
        let pointer = self.text(node, "a JSON pointer")?;
        if !pointer.starts_with('/') {
            let hint = "it begins with `/`, as in /results/sums/acc,none";
            self.refuse(node, &format!("`{pointer}` is no JSON pointer"), hint);
            return None;
        }
        Some(pointer)
    }
}
