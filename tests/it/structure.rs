//! How files depend on each other. Between layers the compiler decides: each is a crate, and its `Cargo.toml` lists
//! those below it. Within a layer, this test looks for circles.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Files in a circle at the most: two or three that know each other can be one idea, more cannot.
const LONGEST_CIRCLE: usize = 3;

/// A module by its path within its crate.
type Module = Vec<String>;

#[test]
fn no_circle_of_imports_has_more_than_three_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for layer in fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
    {
        if !layer.is_dir() {
            continue;
        }
        let mut files = BTreeMap::new();
        read(&layer, &mut Vec::new(), &mut files);
        let imports: BTreeMap<&Module, BTreeSet<&Module>> = files
            .iter()
            .map(|(module, text)| (module, imports(module, text, &files)))
            .collect();
        for module in imports.keys() {
            let circle: Vec<_> = reached(module, &imports)
                .into_iter()
                .filter(|other| reached(other, &imports).contains(module))
                .map(|module| module.join("::"))
                .collect();
            assert!(
                circle.len() <= LONGEST_CIRCLE,
                "{}: a circle of {} files: {}",
                layer.display(),
                circle.len(),
                circle.join(", ")
            );
        }
        seen += files.len();
    }
    assert!(seen > 200, "only {seen} files were read");
}

#[test]
fn a_circle_is_found() {
    let files: BTreeMap<Module, String> = [
        ("a", "use super::b::{self, c::Deep};"),
        ("b", "fn f() { crate::d::g() }"),
        ("b::c", ""),
        (
            "d",
            "// use super::a::Nothing;\nuse super::{e, a as other};",
        ),
        ("e", "use crate::a::Text;"),
    ]
    .map(|(module, text)| {
        (
            module.split("::").map(str::to_owned).collect(),
            text.to_owned(),
        )
    })
    .into();
    let imports: BTreeMap<&Module, BTreeSet<&Module>> = files
        .iter()
        .map(|(module, text)| (module, imports(module, text, &files)))
        .collect();
    let names = |found: &BTreeSet<&Module>| -> Vec<String> {
        found.iter().map(|module| module.join("::")).collect()
    };
    assert_eq!(names(&imports[&vec!["a".to_owned()]]), ["b", "b::c"]);
    assert_eq!(names(&imports[&vec!["d".to_owned()]]), ["a", "e"]);
    let from_a = reached(&vec!["a".to_owned()], &imports);
    assert_eq!(names(&from_a), ["a", "b", "b::c", "d", "e"]);
    assert!(reached(&vec!["b".to_owned(), "c".to_owned()], &imports).is_empty());
}

/// The modules of a layer and their text, without tests. The layer's own `lib.rs` only names the others, so it has
/// no entry.
fn read(folder: &Path, above: &mut Module, files: &mut BTreeMap<Module, String>) {
    for path in fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
    {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name == "tests" || name == "fixtures" {
            continue;
        }
        if path.is_dir() {
            above.push(name);
            read(&path, above, files);
            above.pop();
        } else if path.extension().is_some_and(|ending| ending == "rs") && name != "lib" {
            let mut module = above.clone();
            if name != "mod" {
                module.push(name);
            }
            let text = fs::read_to_string(&path).unwrap();
            let end = text.find("#[cfg(test)]").unwrap_or(text.len());
            files.insert(module, text[..end].to_owned());
        }
    }
}

/// The other modules that a file names by paths that begin with `crate` or `super`.
fn imports<'f>(
    module: &Module,
    text: &str,
    files: &'f BTreeMap<Module, String>,
) -> BTreeSet<&'f Module> {
    let code: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut found = BTreeSet::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            let within_path = |before: char| before.is_alphanumeric() || "_:$".contains(before);
            // `pub(in super::super)` says who may see a thing, and imports nothing.
            if before.is_some_and(within_path) || code[..at].ends_with("(in ") {
                continue;
            }
            let mut rest = &code[at..];
            let mut base = match rest.strip_prefix("crate::") {
                Some(after) => {
                    rest = after;
                    Vec::new()
                }
                None => module.clone(),
            };
            while let Some(after) = rest.strip_prefix("super::") {
                rest = after;
                base.pop();
            }
            for path in paths(rest) {
                let mut named = base.clone();
                named.extend(path);
                // The longest part of the path that is a file; what follows is an item in it.
                while !named.is_empty() && !files.contains_key(&named) {
                    named.pop();
                }
                if let Some((other, _)) = files.get_key_value(&named)
                    && other != module
                {
                    found.insert(other);
                }
            }
        }
    }
    found
}

/// The paths that begin here: one, or all within braces.
fn paths(text: &str) -> Vec<Module> {
    let is_name = |letter: char| letter.is_alphanumeric() || letter == '_';
    let end = text.find(|letter| !is_name(letter)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if let Some(inner) = rest.strip_prefix("::").filter(|_| !name.is_empty()) {
        let mut below = paths(inner);
        below
            .iter_mut()
            .for_each(|path| path.insert(0, name.to_owned()));
        return below;
    }
    if let Some(inner) = text.strip_prefix('{') {
        let mut depth = 0;
        let mut starts = vec![0];
        for (at, letter) in inner.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => starts.push(at + 1),
                _ => {}
            }
        }
        let entries = starts.into_iter().map(|start| inner[start..].trim_start());
        return entries.flat_map(paths).collect();
    }
    vec![if name.is_empty() || name == "self" {
        Vec::new()
    } else {
        vec![name.to_owned()]
    }]
}

/// All modules that can be reached from one by imports, itself only in a circle.
fn reached<'f>(
    module: &Module,
    imports: &BTreeMap<&'f Module, BTreeSet<&'f Module>>,
) -> BTreeSet<&'f Module> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&Module> = imports[module].iter().copied().collect();
    while let Some(next) = open.pop() {
        if found.insert(next) {
            open.extend(&imports[next]);
        }
    }
    found
}
