//! Licences as data: the ids that the Hub gives them, what they ask for, and how to tell them by their texts.
//!
//! This is a coarse reading, to say where people should look. It is no legal advice.

/// What a licence asks of those who make something from a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LicenceTerm {
    /// Use is limited to research, or to what is not commercial.
    NonCommercial,
    /// Changed versions may not be published.
    NoDerivatives,
    /// What is made from it is published under the same licence.
    ShareAlike,
    /// It has conditions of its own, which go along with what is made from it.
    OwnConditions,
    /// The name of what is made from it begins with this.
    Name(&'static str),
}

use LicenceTerm::{Name, NoDerivatives, NonCommercial, OwnConditions, ShareAlike};

/// A licence, or several that ask for the same.
struct Known {
    /// The id, or the name that cards give besides `license: other`. A `*` at an end stands for anything.
    id: &'static str,
    terms: &'static [LicenceTerm],
    /// What stands near the start of its text, in small letters; empty if its text is not recognised.
    text: &'static [&'static str],
}

const fn known(
    id: &'static str,
    terms: &'static [LicenceTerm],
    text: &'static [&'static str],
) -> Known {
    Known { id, terms, text }
}

/// The first that fits counts.
#[rustfmt::skip]
static KNOWN: &[Known] = &[
    known("apache-2.0", &[], &["apache license", "version 2.0"]),
    known("modified-mit", &[OwnConditions], &["modified mit license"]),
    known("bsl-1.0", &[], &["boost software license - version 1.0"]),
    known("mit", &[], &["permission is hereby granted, free of charge"]),
    known("bsd-3-clause", &[], &["redistribution and use in source and binary forms", "neither the name"]),
    known("bsd-2-clause", &[], &["redistribution and use in source and binary forms"]),
    known("bsd*", &[], &[]),
    known("cc0*", &[], &["cc0 1.0 universal"]),
    known("cc-by-nc-nd-4.0", &[NonCommercial, NoDerivatives], &["attribution-noncommercial-noderivatives 4.0"]),
    known("cc-by-nc-nd*", &[NonCommercial, NoDerivatives], &[]),
    known("cc-by-nc-sa-4.0", &[NonCommercial, ShareAlike], &["attribution-noncommercial-sharealike 4.0"]),
    known("cc-by-nc-sa*", &[NonCommercial, ShareAlike], &[]),
    known("cc-by-nc-4.0", &[NonCommercial], &["attribution-noncommercial 4.0"]),
    known("cc-by-nc*", &[NonCommercial], &[]),
    known("cc-by-nd*", &[NoDerivatives], &[]),
    known("cc-by-sa-4.0", &[ShareAlike], &["attribution-sharealike 4.0"]),
    known("cc-by-sa*", &[ShareAlike], &[]),
    known("cc-by-4.0", &[], &["attribution 4.0 international"]),
    known("cc-by*", &[], &[]),
    known("agpl-3.0", &[ShareAlike], &["gnu affero general public license"]),
    known("agpl*", &[ShareAlike], &[]),
    known("lgpl-3.0", &[ShareAlike], &["gnu lesser general public license", "version 3"]),
    known("lgpl-2.1", &[ShareAlike], &["gnu lesser general public license", "version 2.1"]),
    known("lgpl*", &[ShareAlike], &[]),
    known("gpl-3.0", &[ShareAlike], &["gnu general public license", "version 3"]),
    known("gpl-2.0", &[ShareAlike], &["gnu general public license", "version 2"]),
    known("gpl*", &[ShareAlike], &[]),
    known("mpl-2.0", &[ShareAlike], &["mozilla public license version 2.0"]),
    known("eupl*", &[ShareAlike], &[]),
    known("epl*", &[ShareAlike], &[]),
    known("osl-3.0", &[ShareAlike], &[]),
    known("odbl", &[ShareAlike], &[]),
    known("gfdl", &[ShareAlike], &[]),
    known("cdla-sharing*", &[ShareAlike], &[]),
    known("llama2", &[OwnConditions], &["llama 2 community license agreement"]),
    known("llama3", &[OwnConditions, Name("Llama 3")], &["llama 3 community license agreement"]),
    known("llama3.1", &[OwnConditions, Name("Llama")], &["llama 3.1 community license agreement"]),
    known("llama3.2", &[OwnConditions, Name("Llama")], &["llama 3.2 community license agreement"]),
    known("llama3.3", &[OwnConditions, Name("Llama")], &["llama 3.3 community license agreement"]),
    known("llama4", &[OwnConditions, Name("Llama")], &["llama 4 community license agreement"]),
    known("gemma", &[OwnConditions], &["gemma terms of use"]),
    known("qwen-research*", &[NonCommercial, OwnConditions], &["qwen research license agreement"]),
    known("qwen", &[OwnConditions], &["qwen license agreement"]),
    known("tongyi-qianwen-research*", &[NonCommercial, OwnConditions], &["tongyi qianwen research license agreement"]),
    known("tongyi-qianwen", &[OwnConditions], &["tongyi qianwen license agreement"]),
    known("mnpl*", &[NonCommercial, OwnConditions], &["mistral ai non-production license"]),
    known("mrl*", &[NonCommercial, OwnConditions], &["mistral ai research license"]),
    known("deepseek", &[OwnConditions], &["deepseek license agreement"]),
    known("deepseek*", &[OwnConditions], &[]),
    known("falcon*", &[OwnConditions], &[]),
    known("exaone*", &[NonCommercial, OwnConditions], &["exaone ai model license agreement"]),
    known("apple-amlr", &[NonCommercial, OwnConditions], &[]),
    known("apple-ascl", &[OwnConditions], &[]),
    known("intel-research", &[NonCommercial, OwnConditions], &[]),
    known("h-research", &[NonCommercial, OwnConditions], &[]),
    known("deepfloyd-if-license", &[NonCommercial, OwnConditions], &[]),
    known("nvidia-open-model-license*", &[OwnConditions], &["nvidia open model license"]),
    known("c-uda", &[OwnConditions], &[]),
    known("*openrail*", &[OwnConditions], &[]),
    known("*rail-1.0*", &[OwnConditions], &[]),
    known("*non-commercial*", &[NonCommercial, OwnConditions], &[]),
    known("*noncommercial*", &[NonCommercial, OwnConditions], &[]),
    known("*community*", &[OwnConditions], &[]),
    known("*research*", &[NonCommercial, OwnConditions], &[]),
    known("isc", &[], &[]),
    known("zlib", &[], &[]),
    known("unlicense", &[], &["this is free and unencumbered software"]),
    known("wtfpl", &[], &[]),
    known("postgresql", &[], &[]),
    known("ncsa", &[], &[]),
    known("afl-3.0", &[], &[]),
    known("artistic-2.0", &[], &[]),
    known("ecl-2.0", &[], &[]),
    known("cdla-permissive*", &[], &[]),
    known("odc-by", &[], &[]),
    known("pddl", &[], &[]),
    known("etalab-2.0", &[], &[]),
    known("openmdw*", &[], &[]),
];

/// The most characters of a text that are searched: a licence names itself in its first lines, and others further on.
const MAX_SEARCHED: usize = 1_500;

/// What the licence of this id or name asks for; `None` if it is not known.
pub(super) fn terms_of(label: &str) -> Option<&'static [LicenceTerm]> {
    let id = as_id(label);
    let known = KNOWN.iter().find(|known| fits(known.id, &id));
    known.map(|known| known.terms)
}

/// The id of the licence whose text begins so, if it is known.
pub(super) fn by_text(text: &str) -> Option<&'static str> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let start: String = words.join(" ").chars().take(MAX_SEARCHED).collect();
    let start = start.to_lowercase();
    let stands = |known: &&Known| {
        !known.text.is_empty() && known.text.iter().all(|part| start.contains(part))
    };
    // Of a family of versions, the text names no single one.
    let known = KNOWN.iter().find(stands)?;
    Some(known.id.trim_end_matches('*'))
}

/// A name in the spelling of ids: small letters, digits and dots, joined by hyphens.
fn as_id(label: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '+';
    let label = label.to_lowercase();
    let words: Vec<&str> = label
        .split(|c| !plain(c))
        .filter(|word| !word.is_empty())
        .collect();
    words.join("-")
}

fn fits(pattern: &str, id: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(_), Some(_)) => id.contains(pattern.trim_matches('*')),
        (None, Some(start)) => id.starts_with(start),
        (Some(end), None) => id.ends_with(end),
        (None, None) => id == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_reached_and_every_text_is_told() {
        for known in KNOWN {
            let id = known.id.trim_matches('*');
            let terms = terms_of(id).unwrap();
            assert_eq!(terms, known.terms, "{id}");
            if !known.text.is_empty() {
                let text = known.text.join("\n  ").to_uppercase();
                assert_eq!(by_text(&text), Some(id.trim_end_matches('*')), "{id}");
            }
        }
        assert_eq!(terms_of("my-licence"), None);
        assert_eq!(terms_of("other"), None);
        assert_eq!(by_text("You may do what is good."), None);
        assert_eq!(by_text(""), None);
    }

    #[test]
    fn names_are_read_as_people_write_them() {
        let check = |label: &str, terms: &[LicenceTerm]| {
            assert_eq!(terms_of(label), Some(terms), "{label}");
        };
        check("Apache-2.0", &[]);
        check("CC BY-NC 4.0", &[NonCommercial]);
        check(
            "FLUX-1-dev-Non-Commercial-License",
            &[NonCommercial, OwnConditions],
        );
        check("bigcode-openrail-m", &[OwnConditions]);
        check("bigscience-bloom-rail-1.0", &[OwnConditions]);
        check("openrail++", &[OwnConditions]);
        check(
            "fair-noncommercial-research-license",
            &[NonCommercial, OwnConditions],
        );
    }

    /// The texts of some licences name others, after their own titles.
    #[test]
    fn a_licence_is_told_by_its_title() {
        let gpl = format!(
            "GNU GENERAL PUBLIC LICENSE\nVersion 3, 29 June 2007\n{}GNU Lesser General Public License",
            "words ".repeat(400)
        );
        assert_eq!(by_text(&gpl), Some("gpl-3.0"));
        let lgpl = "GNU LESSER GENERAL PUBLIC LICENSE\nVersion 3, 29 June 2007\n\
                    the terms of version 3 of the GNU General Public License";
        assert_eq!(by_text(lgpl), Some("lgpl-3.0"));
        let grant = "Permission is hereby granted, free of charge, to any person";
        let modified = format!("Modified MIT License\nCopyright (c) 2025\n{grant}");
        assert_eq!(by_text(&modified), Some("modified-mit"));
        let mit = format!("MIT License\nCopyright (c) 2025\n{grant}");
        assert_eq!(by_text(&mit), Some("mit"));
        let llama3 = "META LLAMA 3 COMMUNITY LICENSE AGREEMENT\nMeta Llama 3 Version Release Date";
        assert_eq!(by_text(llama3), Some("llama3"));
    }
}
