//! Patterns: of names, and of the paths of models.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use errors::{Refusal, printable};
use globset::{GlobBuilder, GlobMatcher};

/// The most entries of folders that are compared with the pattern of a path.
const MAX_ENTRIES: usize = 100_000;

/// A pattern of names: `*` stands for any characters, `?` for one, `[ab]` and `{a,b}` for one of several.
#[derive(Debug, Clone)]
pub struct Glob {
    text: String,
    matcher: GlobMatcher,
}

impl Glob {
    /// Reads a pattern.
    ///
    /// # Errors
    /// The text is no pattern; says why: a bracket that is not closed, say.
    pub fn parse(text: &str) -> Result<Glob, String> {
        let glob = GlobBuilder::new(text).literal_separator(false).build();
        let glob = glob.map_err(|error| error.kind().to_string())?;
        Ok(Glob {
            text: text.to_owned(),
            matcher: glob.compile_matcher(),
        })
    }

    /// Whether the pattern stands for the whole name.
    pub fn is_match(&self, name: &str) -> bool {
        self.matcher.is_match(name)
    }

    /// The pattern as written.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// The paths that a pattern stands for, in the first of `folders` that has any, written as the pattern is. Numbers in
/// them are ordered as numbers: `checkpoint-900` comes before `checkpoint-1000`.
///
/// Each part of the path between `/` is a pattern of its own, so `*` stands for no `/`. A part that is there as it is
/// written is taken literally. Hidden files and folders only match a part that begins with a dot.
///
/// # Errors
/// A part is no pattern, a folder cannot be listed, folders have too many entries, or a name that matches is not UTF-8.
pub fn paths_matching(pattern: &str, folders: &[PathBuf]) -> Result<Vec<String>, Refusal> {
    for folder in folders {
        let mut found = Search::default().run(pattern, folder)?;
        if !found.is_empty() {
            found.sort_by(|a, b| by_number(a, b));
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

/// Looks for paths, and counts the entries that it has seen.
#[derive(Default)]
struct Search {
    entries: usize,
}

impl Search {
    fn run(&mut self, pattern: &str, folder: &Path) -> Result<Vec<String>, Refusal> {
        let relative = pattern.trim_start_matches('/');
        let root = &pattern[..pattern.len() - relative.len()];
        let mut found = BTreeSet::from([root.to_owned()]);
        for part in relative.split('/').filter(|part| !part.is_empty()) {
            let mut next = BTreeSet::new();
            for before in found {
                self.matches(&before, part, folder, &mut next)?;
            }
            found = next;
        }
        found.remove(root);
        Ok(found.into_iter().collect())
    }

    /// Adds the entries of a folder that match a part of the pattern.
    fn matches(
        &mut self,
        before: &str,
        part: &str,
        folder: &Path,
        found: &mut BTreeSet<String>,
    ) -> Result<(), Refusal> {
        let joined = |name: &str| match before.is_empty() || before.ends_with('/') {
            true => format!("{before}{name}"),
            false => format!("{before}/{name}"),
        };
        let is_literal = !part.contains(['*', '?', '[', '{']);
        if is_literal || folder.join(joined(part)).exists() {
            found.extend(Some(joined(part)).filter(|path| folder.join(path).exists()));
            return Ok(());
        }
        if part == "**" {
            return Err(Refusal::new("`**` stands for no folders")
                .with_hint("write a `*` for each folder between: `runs/*/checkpoint-*`"));
        }
        let glob = Glob::parse(part)
            .map_err(|why| Refusal::new(format!("`{}` is no pattern: {why}", printable(part))))?;
        let place = match before.is_empty() && folder.as_os_str().is_empty() {
            true => PathBuf::from("."),
            false => folder.join(before),
        };
        if !place.is_dir() {
            return Ok(());
        }
        let unreadable = |error: std::io::Error| {
            Refusal::new(format!(
                "cannot list {}: {error}",
                printable(&place.display().to_string())
            ))
        };
        for entry in fs::read_dir(&place).map_err(unreadable)? {
            self.entries += 1;
            if MAX_ENTRIES < self.entries {
                return Err(Refusal::new(format!(
                    "the pattern is compared with more than {MAX_ENTRIES} files and folders"
                ))
                .with_hint("write out more of the path"));
            }
            let name = entry.map_err(unreadable)?.file_name();
            let shown = name.to_string_lossy();
            let is_hidden = shown.starts_with('.') && !part.starts_with('.');
            if is_hidden || !glob.is_match(&shown) {
                continue;
            }
            let Some(name) = name.to_str() else {
                return Err(Refusal::new(format!(
                    "the name of `{}` is not UTF-8",
                    printable(&joined(&shown))
                ))
                .with_hint("rename it, or write a pattern that leaves it out"));
            };
            found.insert(joined(name));
        }
        Ok(())
    }
}

/// The order of two texts in which runs of digits are numbers.
fn by_number(a: &str, b: &str) -> Ordering {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let (mut x, mut y) = (a, b);
    loop {
        let (in_x, in_y) = (digits(x), digits(y));
        if in_x > 0 && in_y > 0 {
            let number = |text: &str| text.trim_start_matches('0').to_owned();
            let (first, second) = (number(&x[..in_x]), number(&y[..in_y]));
            let order = first.len().cmp(&second.len()).then(first.cmp(&second));
            if order.is_ne() {
                return order;
            }
            (x, y) = (&x[in_x..], &y[in_y..]);
            continue;
        }
        // The entries of a folder come together.
        let rank = |c: Option<char>| c.map(|c| (c != '/', c));
        let (mut rest_of_x, mut rest_of_y) = (x.chars(), y.chars());
        match (rest_of_x.next(), rest_of_y.next()) {
            // `01` and `1` are the same number, and two names.
            (None, None) => return a.cmp(b),
            (first, second) if first != second => return rank(first).cmp(&rank(second)),
            _ => (x, y) = (rest_of_x.as_str(), rest_of_y.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_are_ordered_as_numbers() {
        let mut names = [
            "c-1000",
            "c-900",
            "c-90",
            "c-0900",
            "c-900/x",
            "c-best",
            "b-5000",
            "c-",
            "c-123456789012345678901234567890",
            "c-900-2",
            "c-900-10",
            "d",
        ];
        names.sort_by(|a, b| by_number(a, b));
        let expected = [
            "b-5000",
            "c-",
            "c-90",
            "c-0900",
            "c-900",
            "c-900/x",
            "c-900-2",
            "c-900-10",
            "c-1000",
            "c-123456789012345678901234567890",
            "c-best",
            "d",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn a_path_is_found_part_by_part_in_the_first_folder_that_has_it() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for folder in [
            "a/run/checkpoint-1000/x",
            "a/run/checkpoint-900/x",
            "a/run/checkpoint-80",
            "a/run/.checkpoint-1",
            "a/run/[x]/y-1",
            "a/run-2/checkpoint-5",
            "b/run/checkpoint-7",
            "b/other/checkpoint-1",
        ] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::write(root.join("a/run/log-1.txt"), "").unwrap();
        let folders = [root.join("a"), root.join("b")];
        let found = |pattern: &str| paths_matching(pattern, &folders).unwrap();
        let steps = [
            "run/checkpoint-80",
            "run/checkpoint-900",
            "run/checkpoint-1000",
        ];
        assert_eq!(found("run/checkpoint-*"), steps);
        assert_eq!(found("run//checkpoint-*/"), steps);
        assert_eq!(found("./run/checkpoint-?0"), ["./run/checkpoint-80"]);
        assert_eq!(
            found("run/checkpoint-*/x"),
            ["run/checkpoint-900/x", "run/checkpoint-1000/x"]
        );
        assert_eq!(
            found("run*/checkpoint-{5,80}"),
            ["run/checkpoint-80", "run-2/checkpoint-5"]
        );
        assert_eq!(found("run/[x]/y-*"), ["run/[x]/y-1"]);
        assert_eq!(found("run/.check*"), ["run/.checkpoint-1"]);
        assert_eq!(found("other/*"), ["other/checkpoint-1"]);
        assert_eq!(found("run/log-1.txt/*"), [""; 0]);
        assert_eq!(found("none/*"), [""; 0]);
        let absolute = root.join("a/run/checkpoint-*");
        assert_eq!(found(absolute.to_str().unwrap()).len(), 3);
        for (pattern, part) in [
            ("run/**/x", "`**`"),
            ("run/check[", "`check[` is no pattern"),
        ] {
            let error = paths_matching(pattern, &folders).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_name_that_is_no_text_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let root = tempfile::tempdir().unwrap();
        let name = std::ffi::OsStr::from_bytes(b"c-\xff\x1b");
        fs::create_dir(root.path().join(name)).unwrap();
        let error = paths_matching("c-*", &[root.path().to_owned()]).unwrap_err();
        assert!(error.to_string().contains("is not UTF-8"), "{error}");
        assert!(!error.to_string().contains('\u{1b}'), "{error}");
        assert_eq!(
            paths_matching("d-*", &[root.path().to_owned()]),
            Ok(Vec::new())
        );
    }
}
