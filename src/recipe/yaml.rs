//! Parses YAML text to a tree in which every key and value has its position. Knows nothing of recipes.
//!
//! serde-saphyr reads YAML into typed structs and stops at the first mismatch. Reading into a tree first allows the
//! schema to report every problem at once.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, NonFiniteFloatPolicy, Options, Spanned, UserMessageFormatter};

use super::places::Places;
use super::problem::{Position, Problem, ProblemKind, quoted};

/// The deepest nesting; the grammar needs ten levels, and the tree is walked recursively.
const MAX_DEPTH: usize = 32;

/// The most values in a recipe; a slice for each of a thousand layers takes about ten thousand.
const MAX_NODES: usize = 200_000;

/// The most values that aliases may add: otherwise a few lines of them could expand to gigabytes.
const MAX_ALIASED: usize = 200_000;

/// A value and its position.
#[derive(Debug, Clone)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Its position; that of its key if it is absent.
    pub at: Position,
    /// The byte past its last, which `at` does not go to if that is on another line.
    pub end: usize,
}

/// A YAML value.
#[derive(Debug, Clone)]
pub enum Value {
    /// No value: `key:`, `~` or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the file; no key stands twice.
    Map(Vec<Entry>),
}

/// A key of a mapping with its value.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Its position.
    pub key_at: Position,
    /// The value.
    pub node: Node,
}

impl Node {
    /// Whether there is no value: `key:`, `~` or `null`.
    pub fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }
}

impl Value {
    /// Describes the value for a message.
    pub fn found(&self) -> String {
        match self {
            Value::Null => "nothing".into(),
            Value::Bool(value) => format!("`{value}`"),
            Value::Int(value) => format!("`{value}`"),
            // Debug writes very large numbers with an exponent.
            Value::Float(value) => format!("`{value:?}`"),
            Value::Text(value) => quoted(value),
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a mapping".into(),
        }
    }
}

/// Parses the YAML documents of a text, without the empty ones.
///
/// # Errors
/// The first error of syntax, or what is too large or too deeply nested.
pub fn read(text: &str) -> Result<Vec<Node>, Problem> {
    let places = Places::new(text);
    match serde_saphyr::from_multiple_with_options::<Spanned<Raw>>(text, options()) {
        Ok(documents) => Ok(documents.into_iter().map(|raw| places.node(raw)).collect()),
        Err(error) => Err(syntax_problem(&error, &places)),
    }
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_ALIASED,
        },
        // Ignoring a tag would mean ignoring something that the user asked for.
        reject_unsupported_tags: true,
        // The schema refuses them, with the parameter's name.
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        // `y` and `no` may be names; where a bool is expected, the schema accepts them as one.
        strict_booleans: true,
        with_snippet: false,
    }
}

fn syntax_problem(error: &serde_saphyr::Error, places: &Places<'_>) -> Problem {
    use serde_saphyr::Error;
    let at = error
        .location()
        .map(|location| places.position(location, location));
    let invalid =
        |reason: &str| Problem::new(ProblemKind::Syntax, at, format!("invalid YAML: {reason}"));
    match bare(error) {
        Error::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().map(quoted);
            let message = format!("duplicate key {}", key.unwrap_or_default());
            Problem::new(ProblemKind::Syntax, at, message.trim_end())
                .with_hint("a key may be given once in a mapping: remove one of the two")
        }
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => Problem::new(
            ProblemKind::Syntax,
            at,
            "the recipe is too large or too deeply nested",
        )
        .with_hint(format!(
            "a recipe has at most {MAX_NODES} values, {MAX_DEPTH} levels deep, and {MAX_ALIASED} by aliases"
        )),
        Error::UnknownAnchor { .. } => invalid("this alias refers to no anchor")
            .with_hint("if it is no alias, put it in quotes: a plain value can't begin with `*`"),
        Error::RecursiveReferencesRequireWeakTypes { .. } => {
            invalid("this alias refers to what it is part of")
        }
        Error::NullIntoString { .. }
        | Error::Unexpected {
            expected: "string scalar",
            ..
        } => invalid("expected a key that is text"),
        _ => {
            let reason = reason(error);
            let problem = invalid(&reason);
            match at.and_then(|at| places.char_at(at)) {
                Some(mark @ ('*' | '@' | '`' | '%')) => problem.with_hint(format!(
                    "put it in quotes: a plain value can't begin with `{mark}`"
                )),
                _ if reason.starts_with("tabs ") => problem.with_hint("indent with spaces"),
                _ => problem,
            }
        }
    }
}

/// The error itself, without the crate's wrappers.
fn bare(error: &serde_saphyr::Error) -> &serde_saphyr::Error {
    match error.without_snippet() {
        serde_saphyr::Error::AliasError { error, .. } => bare(error),
        error => error,
    }
}

/// The crate's message without its position, which the problem already has.
fn reason(error: &serde_saphyr::Error) -> String {
    let mut message = bare(error).render_with_formatter(&UserMessageFormatter);
    if let Some(at) = message.rfind(" at line ") {
        message.truncate(at);
    }
    message
}

/// The tree as serde-saphyr returns it.
enum Raw {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(i64::try_from(value).map_or(Raw::Float(value as f64), Raw::Int))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(i64::try_from(value).map_or(Raw::Float(value as f64), Raw::Int))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Raw, E> {
        Ok(i64::try_from(value).map_or(Raw::Float(value as f64), Raw::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Text(value))
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

impl Places<'_> {
    fn node(&self, raw: Spanned<Raw>) -> Node {
        self.node_and_end(raw).0
    }

    /// The node, and the location of its last scalar: the parser does not report the ends of lists and mappings.
    fn node_and_end(&self, raw: Spanned<Raw>) -> (Node, Location) {
        let from = raw.referenced;
        let mut to = from;
        let value = match raw.value {
            Raw::Null => Value::Null,
            Raw::Bool(value) => Value::Bool(value),
            Raw::Int(value) => Value::Int(value),
            Raw::Float(value) => Value::Float(value),
            Raw::Text(value) => Value::Text(value),
            Raw::List(items) => {
                let mut nodes = Vec::with_capacity(items.len());
                for item in items {
                    let (node, end) = self.node_and_end(item);
                    to = end;
                    nodes.push(node);
                }
                Value::List(nodes)
            }
            Raw::Map(entries) => {
                let mut nodes = Vec::with_capacity(entries.len());
                for (key, value) in entries {
                    let key_at = self.position(key.referenced, key.referenced);
                    let (mut node, end) = self.node_and_end(value);
                    to = end;
                    // An absent value has no position, but its key has one.
                    if node.is_null() && node.at.start == node.at.end {
                        node.at = key_at;
                    }
                    nodes.push(Entry {
                        key: key.value,
                        key_at,
                        node,
                    });
                }
                Value::Map(nodes)
            }
        };
        let mut at = self.position(from, to);
        // What an alias brings stands where the alias does, which need not be last.
        let inner = match &value {
            Value::List(items) => items.iter().map(|item| item.end).max(),
            Value::Map(entries) => entries.iter().map(|entry| entry.node.end).max(),
            _ => None,
        };
        let mut end = inner.unwrap_or(self.position(to, to).end);
        if matches!(value, Value::List(_) | Value::Map(_)) {
            self.close_bracket(&mut at);
            end = self.past_bracket(at, end);
        }
        (Node { value, at, end }, to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every scalar, list and mapping as `line:column text`.
    fn places(text: &str) -> String {
        fn walk(text: &str, node: &Node, out: &mut String) {
            let at = node.at;
            let covered = &text[at.start..at.end];
            out.push_str(&format!("{}:{} {covered}\n", at.line, at.column));
            match &node.value {
                Value::List(items) => items.iter().for_each(|item| walk(text, item, out)),
                Value::Map(entries) => entries.iter().for_each(|entry| {
                    let covered = &text[entry.key_at.start..entry.key_at.end];
                    assert!(
                        covered == entry.key || covered.starts_with('*'),
                        "{covered}"
                    );
                    walk(text, &entry.node, out);
                }),
                _ => {}
            }
        }
        let mut out = String::new();
        match read(text) {
            Ok(nodes) => nodes.iter().for_each(|node| walk(text, node, &mut out)),
            Err(problem) => panic!("{problem:?}"),
        }
        out
    }

    #[test]
    fn places_survive_unicode_and_carriage_returns() {
        let text = "# ünïcode 🔑\r\nä: {é: [ö, 5 ], k: 'q🔑'}\r\nb:\r\n- c\r\n- >\r\n  folded\r\n  text\r\nn:\r\n";
        insta::assert_snapshot!(places(text), @r"
        2:1 ä: {é: [ö, 5 ], k: 'q🔑'}
        2:4 {é: [ö, 5 ], k: 'q🔑'}
        2:8 [ö, 5 ]
        2:9 ö
        2:12 5
        2:20 'q🔑'
        4:3 c
        4:3 c
        6:3 folded
        8:1 n
        ");
    }

    #[test]
    fn aliases_and_merge_keys_are_expanded() {
        let text = "a: &x {b: 1}\nc: {<<: *x, d: [*x]}\n";
        insta::assert_snapshot!(places(text), @r"
        1:1 a: &x {b: 1}
        1:7 {b: 1}
        1:11 1
        2:4 {<<: *x
        2:16 [*x]
        2:17 *x
        2:17 *x
        2:9 *x
        ");
    }

    #[test]
    fn syntax_errors_say_where() {
        let check = |text: &str| match read(text) {
            Ok(node) => format!("no error: {node:?}"),
            Err(problem) => {
                super::super::RecipeError::new("r.yml", text, vec![problem]).to_string()
            }
        };
        insta::assert_snapshot!(check("a: [1, 2\nb: 3\n"), @"r.yml:2:2: invalid YAML: illegal placement of ':' indicator");
        insta::assert_snapshot!(check("a: 1\nb: 2\na: 3\n"), @r"
        r.yml:3:1: duplicate key `a`
          hint: a key may be given once in a mapping: remove one of the two
        ");
        insta::assert_snapshot!(check("a:\n\t- b\n"), @r"
        r.yml:2:2: invalid YAML: tabs disallowed within this context (block indentation)
          hint: indent with spaces
        ");
        insta::assert_snapshot!(check("a: *\n"), @r"
        r.yml:1:4: invalid YAML: while scanning an anchor or alias, did not find expected alphabetic or numeric character
          hint: put it in quotes: a plain value can't begin with `*`
        ");
        insta::assert_snapshot!(check("a: *nope\n"), @r"
        r.yml:1:4: invalid YAML: this alias refers to no anchor
          hint: if it is no alias, put it in quotes: a plain value can't begin with `*`
        ");
        insta::assert_snapshot!(check("a: @b\n"), @r"
        r.yml:1:4: invalid YAML: unexpected character: `@'
          hint: put it in quotes: a plain value can't begin with `@`
        ");
        insta::assert_snapshot!(check("a: \0\n"), @r"r.yml:1:4: invalid YAML: unexpected character: `\u{0}'");
        insta::assert_snapshot!(check("a: \"b\n"), @"r.yml:1:4: invalid YAML: unclosed quote");
        insta::assert_snapshot!(check("? [a]\n: b\n"), @"r.yml:1:3: invalid YAML: expected a key that is text");
        insta::assert_snapshot!(check("a: !!python/object:os.system x\n"), @"r.yml:1:30: invalid YAML: unsupported tag `!!python/object:os.system`");
        insta::assert_snapshot!(check("a: &a [*a]\n"), @"r.yml:1:8: invalid YAML: this alias refers to what it is part of");
        insta::assert_snapshot!(check("<<: 3\n"), @"r.yml:1:5: invalid YAML: YAML merge value must be mapping or sequence of mappings");
        insta::assert_snapshot!(check("~: 3\n"), @"r.yml:1:1: invalid YAML: expected a key that is text");
    }

    #[test]
    fn hostile_yaml_is_refused() {
        let refused = |text: &str| read(text).is_err();
        assert!(refused(&"[".repeat(100_000)));
        assert!(refused(&"{a: ".repeat(100_000)));
        assert!(refused(&"- ".repeat(100_000)));
        assert!(refused(&format!("{}{}", "[".repeat(40), "]".repeat(40))));
        assert!(refused(&format!("[{}]", "0,".repeat(300_000))));

        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        assert!(refused(&bomb));

        let mut merges = "a0: &a0 {k: v}\n".to_owned();
        for level in 1..40 {
            let below = level - 1;
            merges.push_str(&format!(
                "a{level}: &a{level} {{l{level}: 1, <<: [*a{below}, *a{below}]}}\n"
            ));
        }
        // Any result will do, as long as it comes quickly.
        let _ = read(&merges);
    }
}
