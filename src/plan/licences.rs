//! The licences that the inputs state, and whether they may not go together.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::Plan;
use checkpoint::{Checkpoint, Licence, LicenceTerm, ModelRef};

/// The licence of a model or an adapter that a plan reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputLicence {
    /// The model as the recipe writes it; of an adapter with `+`, what follows it.
    pub model: String,
    /// What its files state; `None` if they say nothing.
    pub licence: Option<Licence>,
}

/// Looks up the licences of the inputs, and notes what needs a look by a person.
pub(super) fn look(plan: &mut Plan) {
    plan.licences = licences_of(&plan.stored_models());
    plan.notes.extend(licence_notes(&plan.licences));
}

/// The licences of models and their adapters, each once; empty if none states any.
pub fn licences_of(models: &[&Checkpoint]) -> Vec<InputLicence> {
    let mut inputs: Vec<InputLicence> = Vec::new();
    for model in models {
        for (model, licence) in of_model(model) {
            if !inputs.iter().any(|known| known.model == model) {
                inputs.push(InputLicence { model, licence });
            }
        }
    }
    match inputs.iter().any(|input| input.licence.is_some()) {
        true => inputs,
        false => Vec::new(),
    }
}

/// The licences of a model and of its adapters, by their names.
fn of_model(model: &Checkpoint) -> Vec<(String, Option<Licence>)> {
    let label = model.label();
    let named = ModelRef::parse(label).map(|model| model.parts());
    let named = named.unwrap_or_default();
    let adapters = &model.location().adapters;
    if adapters.is_empty() || named.len() != adapters.len() + 1 {
        return vec![(label.to_owned(), model.licence())];
    }
    let of_adapters = adapters.iter().map(|adapter| {
        let path = &adapter.location.path;
        path.is_dir().then(|| Licence::of_folder(path)).flatten()
    });
    let licences = std::iter::once(model.licence()).chain(of_adapters);
    let names = named.iter().map(|part| part.text().to_owned());
    names.zip(licences).collect()
}

/// The licence that all inputs state, if it is one and the same.
pub fn shared_licence(inputs: &[InputLicence]) -> Option<&Licence> {
    let first = inputs.first()?.licence.as_ref()?;
    let key = |licence: &Licence| (licence.id.clone(), licence.name.clone());
    let same = |input: &InputLicence| input.licence.as_ref().map(key) == Some(key(first));
    let is_named = first.terms().is_some();
    (is_named && inputs.iter().all(same)).then_some(first)
}

/// The inputs by what they state, in their order: `apache-2.0 (a, b)`, `not stated (c)`.
pub fn listed_licences(plan: &Plan) -> Vec<String> {
    by_licence(&plan.licences)
        .into_iter()
        .map(|(licence, models)| {
            let models: Vec<&str> = models.iter().map(|input| input.model.as_str()).collect();
            let label = licence.map_or("not stated", Licence::label);
            format!("{label} ({})", models.join(", "))
        })
        .collect()
}

type Group<'a> = (Option<&'a Licence>, Vec<&'a InputLicence>);

fn by_licence(inputs: &[InputLicence]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for input in inputs {
        let label = input.licence.as_ref().map(Licence::label);
        let same = |group: &&mut Group<'_>| group.0.map(Licence::label) == label;
        match groups.iter_mut().find(same) {
            Some((_, models)) => models.push(input),
            None => groups.push((input.licence.as_ref(), vec![input])),
        }
    }
    groups
}

/// Notes on what needs a look by a person.
pub fn licence_notes(inputs: &[InputLicence]) -> Vec<String> {
    let groups = by_licence(inputs);
    let together = together(&groups);
    let unknown = unknown(&groups);
    let each = groups.iter().filter_map(|group| Some((group.0?, group)));
    let each = each.flat_map(|(licence, group)| {
        let of_term = |term: &LicenceTerm| of_term(term, licence, group);
        let terms = licence.terms().unwrap_or_default();
        terms.iter().filter_map(of_term).collect::<Vec<_>>()
    });
    // Several versions of a licence may ask for the same name.
    let mut said = BTreeSet::new();
    let each = each.filter(|note| said.insert(note.clone()));
    together.into_iter().chain(each).chain(unknown).collect()
}

/// What a term means for any result.
fn of_term(term: &LicenceTerm, licence: &Licence, group: &Group<'_>) -> Option<String> {
    let who = who(licence, group);
    match term {
        LicenceTerm::NoDerivatives => Some(format!(
            "licence of {who}: changed versions may not be published; check before you publish the result"
        )),
        LicenceTerm::Name(start) => Some(format!(
            "licence of {who}: it asks for a name that begins with `{start}` for what is published; check the terms"
        )),
        LicenceTerm::NonCommercial | LicenceTerm::ShareAlike | LicenceTerm::OwnConditions => None,
    }
}

/// A note if licences that are known may not go together.
fn together(groups: &[Group<'_>]) -> Option<String> {
    let known: Vec<(&Licence, &[LicenceTerm], &Group<'_>)> = groups
        .iter()
        .filter_map(|group| Some((group.0?, group.0?.terms()?, group)))
        .collect();
    let mut pairs = known.iter().enumerate();
    let conflicts = pairs.any(|(at, (_, one, _))| {
        known[at + 1..]
            .iter()
            .any(|(_, other, _)| conflict(one, other))
    });
    let says = |(licence, terms, group): &(&Licence, &[LicenceTerm], &Group<'_>)| {
        let who = who(licence, group);
        match asks(terms) {
            asks if asks.is_empty() => who,
            asks => format!("{who} {}", asks.join(" and ")),
        }
    };
    let parts: Vec<String> = known.iter().map(says).collect();
    conflicts.then(|| {
        format!(
            "the licences of the inputs may not go together: {}; check before you use or publish the result",
            parts.join("; ")
        )
    })
}

/// Whether two different licences with these terms need a look.
fn conflict(one: &[LicenceTerm], other: &[LicenceTerm]) -> bool {
    use LicenceTerm::{NonCommercial, OwnConditions, ShareAlike};
    let either = |term| one.contains(&term) || other.contains(&term);
    let both = |term| one.contains(&term) && other.contains(&term);
    let one_alone = |term| either(term) && !both(term);
    // What asks only to be named goes together with what is shared alike.
    either(OwnConditions) || one_alone(NonCommercial) || both(ShareAlike)
}

/// What the terms ask for, as verbs of a sentence about models.
fn asks(terms: &[LicenceTerm]) -> Vec<&'static str> {
    let ask = |term: &LicenceTerm| match term {
        LicenceTerm::NonCommercial => Some("limits commercial use"),
        LicenceTerm::ShareAlike => Some("asks for the same licence on what is made from it"),
        LicenceTerm::OwnConditions => Some("has conditions of its own for what is made from it"),
        LicenceTerm::NoDerivatives | LicenceTerm::Name(_) => None,
    };
    terms.iter().filter_map(ask).collect()
}

/// A note on inputs whose licence is not stated or not known, where others state one.
fn unknown(groups: &[Group<'_>]) -> Option<String> {
    let mut parts = Vec::new();
    for group in groups {
        match group.0 {
            None => parts.push(format!("{} states none", models(group))),
            Some(licence) if licence.terms().is_none() => {
                parts.push(format!(
                    "{} is not one that weld knows",
                    who(licence, group)
                ));
            }
            Some(_) => {}
        }
    }
    (!parts.is_empty()).then(|| {
        format!(
            "licences: {}; check before you use or publish the result",
            parts.join("; ")
        )
    })
}

/// `a`, `b` (apache-2.0, README.md).
fn who(licence: &Licence, group: &Group<'_>) -> String {
    let files: BTreeSet<&str> = (group.1.iter())
        .filter_map(|input| Some(input.licence.as_ref()?.file.as_str()))
        .collect();
    let files: Vec<&str> = files.into_iter().collect();
    format!(
        "{} ({}, {})",
        models(group),
        licence.label(),
        files.join(", ")
    )
}

fn models(group: &Group<'_>) -> String {
    let models: Vec<String> = (group.1.iter())
        .map(|input| format!("`{}`", input.model))
        .collect();
    models.join(", ")
}

/// For programs, with the Hub's keys.
pub(super) fn as_json(inputs: &[InputLicence]) -> Value {
    let input = |input: &InputLicence| {
        let licence = input.licence.as_ref();
        json!({
            "model": input.model,
            "license": licence.map(|licence| &licence.id),
            "license_name": licence.and_then(|licence| licence.name.as_ref()),
            "license_link": licence.and_then(|licence| licence.link.as_ref()),
            "file": licence.map(|licence| &licence.file),
        })
    };
    inputs.iter().map(input).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(stated: &[(&str, &str)]) -> Vec<InputLicence> {
        let licence = |id: &str| Licence {
            id: id.to_owned(),
            name: None,
            link: None,
            file: "README.md".to_owned(),
        };
        stated
            .iter()
            .map(|(model, id)| InputLicence {
                model: (*model).to_owned(),
                licence: (!id.is_empty()).then(|| licence(id)),
            })
            .collect()
    }

    #[test]
    fn licences_that_go_together_need_no_note() {
        for stated in [
            &[("a", "apache-2.0"), ("b", "mit"), ("c", "cc-by-4.0")] as &[_],
            &[("a", "apache-2.0"), ("b", "gpl-3.0")],
            &[("a", "cc-by-nc-4.0"), ("b", "cc-by-nc-4.0")],
            &[("a", "cc-by-nc-4.0"), ("b", "cc-by-nc-sa-4.0")],
            &[("a", "gemma")],
            &[],
        ] {
            assert_eq!(
                licence_notes(&inputs(stated)),
                Vec::<String>::new(),
                "{stated:?}"
            );
        }
    }

    #[test]
    fn licences_that_may_not_go_together_are_named_with_their_files() {
        for (stated, part) in [
            (
                [("a", "apache-2.0"), ("b", "cc-by-nc-4.0")],
                "`a` (apache-2.0, README.md); `b` (cc-by-nc-4.0, README.md) limits commercial use; check",
            ),
            (
                [("a", "gpl-3.0"), ("b", "cc-by-sa-4.0")],
                "`a` (gpl-3.0, README.md) asks for the same licence",
            ),
            (
                [("a", "gpl-3.0"), ("b", "llama2")],
                "`b` (llama2, README.md) has conditions of its own",
            ),
            (
                [("a", "gemma"), ("b", "mit")],
                "`b` (mit, README.md); check",
            ),
            (
                [("a", "gpl-3.0"), ("b", "cc-by-nc-4.0")],
                "limits commercial use",
            ),
        ] {
            let notes = licence_notes(&inputs(&stated));
            assert_eq!(notes.len(), 1, "{notes:?}");
            assert!(notes[0].contains("may not go together"), "{notes:?}");
            assert!(notes[0].contains(part), "{notes:?}");
        }
    }

    #[test]
    fn names_derivatives_and_what_is_not_known_are_noted() {
        let check = |stated: &[(&str, &str)], parts: &[&str]| {
            let notes = licence_notes(&inputs(stated));
            assert_eq!(notes.len(), parts.len(), "{notes:?}");
            for (note, part) in notes.iter().zip(parts) {
                assert!(note.contains(part), "{note}");
            }
        };
        check(
            &[("a", "llama3.1"), ("b", "llama3.1")],
            &[
                "licence of `a`, `b` (llama3.1, README.md): it asks for a name that begins with `Llama`",
            ],
        );
        check(
            &[("a", "cc-by-nd-4.0")],
            &["changed versions may not be published"],
        );
        check(
            &[("a", "mit"), ("b", ""), ("c", "my-own")],
            &["`b` states none; `c` (my-own, README.md) is not one that weld knows"],
        );
    }

    #[test]
    fn one_licence_of_all_is_the_shared_one() {
        let label = |stated: &[(&str, &str)]| {
            let inputs = inputs(stated);
            shared_licence(&inputs).map(|licence| licence.label().to_owned())
        };
        assert_eq!(label(&[("a", "mit"), ("b", "mit")]).as_deref(), Some("mit"));
        for stated in [
            &[("a", "mit"), ("b", "apache-2.0")] as &[_],
            &[("a", "mit"), ("b", "")],
            &[("a", "other"), ("b", "other")],
            &[],
        ] {
            assert_eq!(label(stated), None, "{stated:?}");
        }
    }
}
