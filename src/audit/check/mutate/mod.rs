//! `weld check --mutate`: plants every defect that `check` knows in a copy of a checkpoint. Each must be found under
//! its own id, and nothing else may be reported.

mod draft;
mod files;
mod tensors;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use bytesize::ByteSize;
use serde_json::json;

use super::{CheckError, check};
use crate::{CheckInfo, Command, Finding, Place, Report, Severity, Skipped, Table};
use checkpoint::{CheckpointError, Location, Survey};
use draft::{Draft, Original};
use engine::Observer;
use errors::Hint;

checks! {
    MISSED = "mutate.missed", Error,
        "A planted defect was not found",
        "A checkpoint with such a defect would pass.",
        "report it, with the config.json of the model: it is a defect of weld";
    SURPLUS = "mutate.surplus", Error,
        "A planted defect was found as something else too",
        "Whoever reads such a report looks for what is not there.",
        "report it, with the config.json of the model: it is a defect of weld";
}

/// The size limit of a checkpoint, including files other than weights: it is copied once for each defect.
const MAX_MUTATED_BYTES: u64 = 64 << 20;

/// A defect that can be planted in a checkpoint.
pub struct Defect {
    /// A short description of the defect.
    pub title: &'static str,
    /// The check that must find it.
    pub check: &'static CheckInfo,
    /// Checks that it also sets off.
    pub also: &'static [&'static CheckInfo],
    plant: Plant,
}

/// Plants a defect and returns its place, or why it cannot be planted.
type Plant = fn(&Draft<'_>) -> Result<String, Obstacle>;

impl Defect {
    const fn new(title: &'static str, check: &'static CheckInfo, plant: Plant) -> Defect {
        Defect {
            title,
            check,
            also: &[],
            plant,
        }
    }

    const fn with(self, also: &'static [&'static CheckInfo]) -> Defect {
        Defect { also, ..self }
    }
}

/// Why a defect was not planted.
enum Obstacle {
    /// The model has no place for the defect.
    Model(String),
    /// The copy could not be written.
    System(io::Error),
}

impl Obstacle {
    fn model(why: &str) -> Obstacle {
        Obstacle::Model(why.to_owned())
    }
}

impl From<io::Error> for Obstacle {
    fn from(error: io::Error) -> Obstacle {
        Obstacle::System(error)
    }
}

/// All defects.
pub fn defects() -> impl Iterator<Item = &'static Defect> {
    files::DEFECTS.iter().chain(tensors::DEFECTS)
}

/// Why no defect could be planted.
#[derive(Debug, thiserror::Error)]
pub enum MutateError {
    /// The model is not a folder.
    #[error("{label} is no folder of a whole model")]
    NotAFolder {
        /// The model's name.
        label: String,
    },
    /// The model is too large to be copied so often.
    #[error(
        "{label} is larger than {}, too large to be copied once for each defect",
        ByteSize(*limit).display().iec()
    )]
    TooLarge {
        /// The model's name.
        label: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The model has findings of its own, which could be mistaken for planted defects.
    #[error("{label} is wrong already ({})", found.join(", "))]
    Wrong {
        /// The model's name.
        label: String,
        /// The ids of its findings.
        found: Vec<&'static str>,
    },
    /// The bytes of a tensor are not contiguous.
    #[error("the tensor {tensor} is a view into a pickle")]
    Scattered {
        /// The tensor's name.
        tensor: String,
    },
    /// A file could not be read, or the copy could not be laid out.
    #[error(transparent)]
    Unreadable(CheckpointError),
    /// The copy could not be written.
    #[error("cannot write the copy: {0}")]
    Copy(#[from] io::Error),
    /// The copy could not be checked.
    #[error(transparent)]
    Check(#[from] CheckError),
}

impl Hint for MutateError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let hint = match self {
            Self::Unreadable(source) => return source.hint(),
            Self::Check(source) => return source.hint(),
            Self::Wrong { label, .. } => {
                let hint = format!("`weld check {label}` says how, plant defects in a sound model");
                return Some(Cow::Owned(hint));
            }
            Self::NotAFolder { .. } => "name the folder that has its config.json",
            Self::TooLarge { .. } => {
                "use a small model of the same family, such as transformers makes from a config with few layers"
            }
            Self::Scattered { .. } => "use the safetensors of the same model",
            Self::Copy(_) => "TMPDIR says where it goes",
        };
        Some(Cow::Borrowed(hint))
    }
}

/// What happened to a planted defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Missed,
    Surplus,
    NotPlanted,
    Found,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Outcome::Missed => "missed",
            Outcome::Surplus => "surplus",
            Outcome::NotPlanted => "not planted",
            Outcome::Found => "found",
        }
    }
}

/// A defect that was tried.
struct Tried {
    defect: &'static Defect,
    outcome: Outcome,
    /// The place of the defect, or why it was not planted.
    place: String,
    /// The ids of the findings.
    found: BTreeSet<&'static str>,
}

/// Plants all defects one by one, each in a copy of its own below `scratch`, an empty folder.
///
/// The report fails if a defect was not found, and is inconclusive if one could not be planted.
///
/// # Errors
/// The model is too large or has findings of its own, or the copies could not be written and read.
pub fn mutate(
    label: &str,
    survey: &Survey,
    scratch: &Path,
    threads: usize,
    observer: &dyn Observer,
) -> Result<Report, MutateError> {
    mutate_by(label, survey, scratch, threads, observer, &mut defects())
}

fn mutate_by(
    label: &str,
    survey: &Survey,
    scratch: &Path,
    threads: usize,
    observer: &dyn Observer,
    defects: &mut dyn Iterator<Item = &'static Defect>,
) -> Result<Report, MutateError> {
    let label_of = || label.to_owned();
    let model = survey
        .checkpoint
        .as_ref()
        .filter(|_| survey.problems.is_empty());
    let model = model.ok_or_else(|| MutateError::Wrong {
        label: label_of(),
        found: vec!["its files"],
    })?;
    let model = model.alone().filter(|model| !model.is_single_file());
    let model = model.ok_or_else(|| MutateError::NotAFolder { label: label_of() })?;
    let original = Original::read(model)?;
    let looked = |folder: &Path| -> Result<Report, MutateError> {
        let location = Location::local(folder);
        let survey = Survey::open(label, &location).map_err(CheckError::Unreadable)?;
        Ok(check(
            label,
            &location,
            survey,
            threads,
            &Unmoved(observer),
        )?)
    };
    let folder = scratch.join("copy");
    Draft::new(&original, &folder)?;
    let before = looked(&folder)?;
    fs::remove_dir_all(&folder)?;
    let wrong = before
        .findings
        .iter()
        .filter(|found| found.severity == Severity::Error);
    let wrong: BTreeSet<&str> = wrong.map(|found| found.check.id).collect();
    if !wrong.is_empty() {
        return Err(MutateError::Wrong {
            label: label_of(),
            found: wrong.into_iter().collect(),
        });
    }
    let mut tried = Vec::new();
    let count = self::defects().count() as u64;
    let bytes: u64 = model.tensors().iter().map(|tensor| tensor.len).sum();
    for defect in defects {
        tried.push(attempt(defect, &original, &before, &folder, &looked)?);
        fs::remove_dir_all(&folder)?;
        observer.advance(bytes / count);
    }
    Ok(report(label, tried))
}

/// Plants one defect and checks the copy.
fn attempt(
    defect: &'static Defect,
    original: &Original,
    before: &Report,
    folder: &Path,
    looked: &dyn Fn(&Path) -> Result<Report, MutateError>,
) -> Result<Tried, MutateError> {
    let draft = Draft::new(original, folder)?;
    let not_planted = |place: String| Tried {
        defect,
        outcome: Outcome::NotPlanted,
        place,
        found: BTreeSet::new(),
    };
    let not_made = before
        .skipped
        .iter()
        .find(|skipped| skipped.needed && skipped.check.id == defect.check.id);
    if let Some(not_made) = not_made {
        return Ok(not_planted(not_made.why.clone()));
    }
    let place = match (defect.plant)(&draft) {
        Ok(place) => place,
        Err(Obstacle::Model(why)) => return Ok(not_planted(why)),
        Err(Obstacle::System(error)) => return Err(error.into()),
    };
    let after = looked(folder)?;
    let is_new = |found: &&Finding| {
        // A tensor may now be in another shard.
        let tensor = found.place.tensor.as_ref();
        let here = |old: &Finding| match tensor {
            Some(_) => old.place.tensor.as_ref() == tensor,
            None => old.place == found.place,
        };
        let same = |old: &Finding| old.check.id == found.check.id && here(old);
        !before.findings.iter().any(same)
    };
    let new = after.findings.iter().filter(is_new);
    let found: BTreeSet<&str> = new.map(|found| found.check.id).collect();
    let mut expected: BTreeSet<&str> = defect.also.iter().map(|check| check.id).collect();
    expected.insert(defect.check.id);
    let outcome = match (expected.is_subset(&found), found.is_subset(&expected)) {
        (true, true) => Outcome::Found,
        (true, false) => Outcome::Surplus,
        (false, _) => Outcome::Missed,
    };
    Ok(Tried {
        defect,
        outcome,
        place,
        found,
    })
}

/// The report on all attempts, the worst first.
fn report(label: &str, mut tried: Vec<Tried>) -> Report {
    tried.sort_by_key(|tried| tried.outcome);
    let mut report = Report::new(Command::Check, label);
    report.checked = CHECKS.to_vec();
    let of = |outcome: Outcome| {
        tried
            .iter()
            .filter(|tried| tried.outcome == outcome)
            .count()
    };
    let planted = tried.len() - of(Outcome::NotPlanted);
    let found = of(Outcome::Found);
    report.say("planted", format!("{planted} of {} defects", tried.len()));
    report.say(
        "found",
        format!("{found} of {planted}, each by its own id and as nothing else"),
    );
    let ids = |tried: &Tried| {
        let ids: Vec<&str> = tried.found.iter().copied().collect();
        if ids.is_empty() {
            "nothing".to_owned()
        } else {
            ids.join(", ")
        }
    };
    for tried in &tried {
        let check = match tried.outcome {
            Outcome::Found => continue,
            Outcome::Missed => &MISSED,
            Outcome::Surplus => &SURPLUS,
            Outcome::NotPlanted => {
                report.skipped.push(Skipped {
                    check: tried.defect.check,
                    why: format!(
                        "\"{}\" cannot be planted: {}",
                        tried.defect.title, tried.place
                    ),
                    needed: true,
                });
                continue;
            }
        };
        let place = Place {
            field: Some(format!("{} ({})", tried.defect.title, tried.place)),
            ..Place::default()
        };
        report.add(Finding::new(
            check,
            place,
            tried.defect.check.id,
            ids(tried),
        ));
    }
    report.tables.push(Table {
        title: "planted defects".to_owned(),
        columns: ["defect", "where", "found as"].map(str::to_owned).to_vec(),
        rows: tried
            .iter()
            .map(|tried| {
                let (place, found) = match tried.outcome {
                    Outcome::NotPlanted => {
                        (format!("not planted: {}", tried.place), "-".to_owned())
                    }
                    Outcome::Missed => (tried.place.clone(), format!("MISSED: {}", ids(tried))),
                    Outcome::Surplus | Outcome::Found => (tried.place.clone(), ids(tried)),
                };
                vec![tried.defect.title.to_owned(), place, found]
            })
            .collect(),
    });
    let defects = tried.iter().map(|tried| {
        json!({
            "defect": tried.defect.title,
            "check": tried.defect.check.id,
            "outcome": tried.outcome.name(),
            "where": tried.place,
            "found": tried.found,
        })
    });
    report.details = json!({"defects": defects.collect::<Vec<_>>()});
    report
}

/// Passes cancellation on, but no progress: each copy is read again and would move the bar.
struct Unmoved<'a>(&'a dyn Observer);

impl Observer for Unmoved<'_> {
    fn advance(&self, _bytes: u64) {}

    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}

#[cfg(test)]
#[path = "../../../checkpoint/fixtures.rs"]
mod fixtures;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{CHECKED, container, safety};
    use super::fixtures::{safetensors, write};
    use super::*;

    /// Every check has a defect that is planted, and every defect a check.
    #[test]
    fn every_check_has_a_defect_and_every_defect_a_check() {
        let known: BTreeSet<&str> = CHECKED
            .iter()
            .copied()
            .flatten()
            .map(|check| check.id)
            .collect();
        let planted: BTreeSet<&str> = defects().map(|defect| defect.check.id).collect();
        assert_eq!(known, planted);
        let mut titles: BTreeMap<&str, usize> = BTreeMap::new();
        for defect in defects() {
            *titles.entry(defect.title).or_default() += 1;
            let also = defect.also.iter().all(|check| known.contains(check.id));
            assert!(
                also && !defect.also.contains(&defect.check),
                "{}",
                defect.title
            );
        }
        assert!(titles.values().all(|count| *count == 1), "{titles:?}");
    }

    struct Watcher;

    impl Observer for Watcher {
        fn advance(&self, _bytes: u64) {}

        fn cancelled(&self) -> bool {
            false
        }
    }

    #[test]
    fn what_is_missed_or_found_as_more_fails() {
        static WRONG: &[Defect] = &[
            Defect::new("nothing", &container::TRUNCATED, |_| {
                Ok("nowhere".to_owned())
            }),
            Defect::new("a link and a pickle", &safety::PICKLE, |draft| {
                draft.put("sub/model.joblib", b"x")?;
                draft.put("a.pkl", b"\x80\x02ccollections\nOrderedDict\n)R.")?;
                Ok("a.pkl".to_owned())
            }),
            Defect::new("what cannot be", &safety::CODE, |_| {
                Err(Obstacle::model("it is so"))
            }),
        ];
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("m");
        let tensors = safetensors(&[("a", "F32", &[2, 2]), ("b", "F32", &[4, 2])]);
        write(&model.join("model.safetensors"), &tensors);
        write(&model.join("config.json"), b"{}");
        let survey = Survey::open("m", &Location::local(&model)).unwrap();
        let report = |defects: &'static [Defect]| {
            let scratch = tempfile::tempdir().unwrap();
            mutate_by(
                "m",
                &survey,
                scratch.path(),
                1,
                &Watcher,
                &mut defects.iter(),
            )
            .unwrap()
        };
        let all = report(WRONG);
        let found: Vec<(&str, &str, &str)> = all
            .findings
            .iter()
            .map(|found| {
                (
                    found.check.id,
                    found.expected.as_str(),
                    found.found.as_str(),
                )
            })
            .collect();
        let expected = [
            ("mutate.missed", "container.truncated", "nothing"),
            (
                "mutate.surplus",
                "safety.pickle",
                "safety.pickle, safety.unread-pickle",
            ),
        ];
        assert_eq!(found, expected);
        assert_eq!(all.verdict().exit_code(), 1);
        assert_eq!(all.tables[0].rows.len(), 3);
        assert_eq!(report(&WRONG[2..]).verdict().exit_code(), 3);
    }
}
