//! Which licence a model states: in the front matter of its `README.md`, as the Hub reads it, or by the text of a
//! licence file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::folder::file_names;
use super::home::file_in;
pub use super::known_licences::LicenceTerm;
use super::known_licences::{by_text, terms_of};
use super::limits::{MAX_CARD_BYTES, MAX_LICENCE_CHARS};

/// The licence that a model's files state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Licence {
    /// Its id as the Hub writes it: `apache-2.0`, `llama3.1`; `other` if the Hub has none for it.
    pub id: String,
    /// Its name, if the id is `other`.
    pub name: Option<String>,
    /// Where its text is.
    pub link: Option<String>,
    /// The file that states it.
    pub file: String,
}

/// The card of a model.
const CARD: &str = "README.md";

/// How the names of licence files begin, in capitals.
const FILES: [&str; 3] = ["LICENSE", "LICENCE", "COPYING"];

/// What each licence file is searched for is near its start.
const MAX_TEXT_BYTES: u64 = 8 << 10;

impl Licence {
    /// The licence that the files of a folder state; `None` if there is no such file, or it says nothing.
    pub fn of_folder(folder: &Path) -> Option<Licence> {
        let of_card = of_card(folder);
        match of_card {
            Some(licence) if !licence.is_vague() => Some(licence),
            vague => match of_files(folder) {
                Some(of_file) if vague.is_none() || !of_file.is_vague() => Some(of_file),
                _ => vague,
            },
        }
    }

    /// What people call it: its name if it has one, or its id.
    pub fn label(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.id)
    }

    /// What it asks for, coarsely; `None` if that is not known.
    pub fn terms(&self) -> Option<&'static [LicenceTerm]> {
        terms_of(self.label())
    }

    /// Whether only a person who reads it can tell which licence it is.
    fn is_vague(&self) -> bool {
        self.name.is_none() && ["other", "unknown"].contains(&self.id.as_str())
    }
}

/// The licence in the front matter of the card.
fn of_card(folder: &Path) -> Option<Licence> {
    let text = start_of(folder, CARD, MAX_CARD_BYTES)?;
    let yaml = front_matter(&text)?;
    let fields: Value = serde_saphyr::from_str_with_options(yaml, options()).ok()?;
    let field = |name: &str| fields.get(name).and_then(one_text);
    let id = field("license")?.to_lowercase();
    let is_other = id == "other";
    Some(Licence {
        name: field("license_name").filter(|_| is_other),
        link: field("license_link"),
        id,
        file: CARD.to_owned(),
    })
}

/// Cards hold whatever their authors wrote, so only size matters.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 64,
            max_nodes: 200_000,
        },
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        with_snippet: false,
    }
}

/// The YAML between the two lines `---` at the start of a card.
fn front_matter(text: &str) -> Option<&str> {
    let text = text.trim_start_matches('\u{feff}');
    let rest = text.strip_prefix("---")?;
    let rest = rest.strip_prefix("\r\n").or(rest.strip_prefix('\n'))?;
    let is_end = |line: &str| line.trim_end() == "---";
    let mut end = 0;
    for line in rest.split_inclusive('\n') {
        if is_end(line) {
            return Some(&rest[..end]);
        }
        end += line.len();
    }
    None
}

/// A text, or the texts of a list, of a length that can be shown.
fn one_text(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(several) => {
            let texts: Vec<&str> = several.iter().filter_map(Value::as_str).collect();
            texts.join(", ")
        }
        _ => return None,
    };
    let text: String = text.trim().chars().take(MAX_LICENCE_CHARS).collect();
    (!text.is_empty()).then_some(text)
}

/// The licence of the first licence file whose text is known; `other` if none is.
fn of_files(folder: &Path) -> Option<Licence> {
    let names = file_names(folder).ok()?;
    let is_licence = |name: &String| {
        let upper = name.to_ascii_uppercase();
        FILES.iter().any(|start| upper.starts_with(start))
    };
    let mut first = None;
    for file in names.into_iter().filter(is_licence) {
        let Some(text) = start_of(folder, &file, MAX_TEXT_BYTES) else {
            continue;
        };
        let known = by_text(&text);
        let licence = Licence {
            id: known.unwrap_or("other").to_owned(),
            name: None,
            link: None,
            file,
        };
        if known.is_some() {
            return Some(licence);
        }
        first = first.or(Some(licence));
    }
    first
}

/// The start of a file of the folder, if there is one.
fn start_of(folder: &Path, name: &str, most: u64) -> Option<String> {
    let path = file_in(folder, name).ok()??;
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(most).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::write;
    use super::*;

    fn stated(files: &[(&str, &str)]) -> Option<(String, String)> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            write(&folder.path().join(name), text.as_bytes());
        }
        let licence = Licence::of_folder(folder.path())?;
        Some((licence.label().to_owned(), licence.file))
    }

    #[test]
    fn the_card_is_asked_first_then_the_licence_files() {
        let apache = "\n                Apache License\n           Version 2.0, January 2004\n";
        let llama = "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\nLlama 3.1 Version Release Date";
        let check = |files: &[(&str, &str)], expected: Option<(&str, &str)>| {
            let found = stated(files);
            let found = found.as_ref().map(|(label, file)| (&**label, &**file));
            assert_eq!(found, expected, "{files:?}");
        };
        check(&[], None);
        check(&[("README.md", "# A model\nlicense: mit\n")], None);
        check(&[("README.md", "---\ntags: [x]\n---\n")], None);
        check(&[("README.md", "---\nlicense: mit\n")], None);
        let card = |fields: &str| format!("---\r\n{fields}\r\n---\r\n# A model\n");
        let with = |fields: &str, more: &[(&str, &str)], expected| {
            let card = card(fields);
            let files = [&[("README.md", card.as_str())], more].concat();
            check(&files, Some(expected));
        };
        let (of_card, other) = ("README.md", "license: other");
        with("license: mit", &[], ("mit", of_card));
        with("license: mit", &[("LICENSE", apache)], ("mit", of_card));
        with(
            "license: [mit, apache-2.0]",
            &[],
            ("mit, apache-2.0", of_card),
        );
        let named = "license: other\nlicense_name: qwen";
        with(named, &[], ("qwen", of_card));
        // A name is of `other` alone.
        with("license: mit\nlicense_name: x", &[], ("mit", of_card));
        with(
            other,
            &[("LICENSE.txt", llama)],
            ("llama3.1", "LICENSE.txt"),
        );
        with(other, &[("LICENSE", "Be good.")], ("other", of_card));
        with(
            "license: {a: [",
            &[("LICENSE", apache)],
            ("apache-2.0", "LICENSE"),
        );
        let two = [("LICENSE", "Be good."), ("LICENSE.txt", apache)];
        check(&two, Some(("apache-2.0", "LICENSE.txt")));
        check(&[("COPYING", "Be good.")], Some(("other", "COPYING")));
    }

    #[test]
    fn hostile_cards_say_nothing_or_something_short() {
        let long = format!("---\nlicense: {}\n---\n", "x".repeat(100_000));
        let (label, _) = stated(&[("README.md", &long)]).unwrap();
        assert_eq!(label.len(), MAX_LICENCE_CHARS);
        let deep = format!("---\nlicense: {}\n---\n", "[".repeat(100_000));
        assert_eq!(stated(&[("README.md", &deep)]), None);
        let bomb = "---\na: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\n\
                    c: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c]\n\
                    e: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e]\n\
                    g: [*f,*f,*f,*f,*f,*f,*f,*f]\nlicense: mit\n---\n";
        assert_eq!(stated(&[("README.md", bomb)]), None);
    }

    #[test]
    #[cfg(unix)]
    fn a_card_that_links_out_of_the_folder_is_not_read() {
        let around = tempfile::tempdir().unwrap();
        let folder = around.path().join("model");
        write(&around.path().join("card"), b"---\nlicense: mit\n---\n");
        std::fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink("../card", folder.join("README.md")).unwrap();
        assert_eq!(Licence::of_folder(&folder), None);
    }
}
