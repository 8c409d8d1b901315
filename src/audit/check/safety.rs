//! Checks for code that would run, and for paths that lead out of the folder.

use std::collections::BTreeSet;

use crate::{Finding, Place, Report, Severity};
use checkpoint::{CheckpointError, Location, PickleImports, folder_risks};
use errors::some_of;

checks! {
    DANGEROUS = "safety.dangerous-pickle", Error,
        "A pickle imports what neither weights nor trainers' files need",
        "Whoever unpickles the file, which torch.load may do, runs what it imports; of these names nothing says that they are harmless.",
        "delete the file, and distrust where it came from unless you know what wrote it";
    UNREAD = "safety.unread-pickle", Warning,
        "A file that is named like a pickle could not be followed to its end",
        "What it would import is not known: it is compressed, broken off, or no pickle at all.",
        "remove it if nothing needs it, and do not load it before you know what it is";
    PICKLE = "safety.pickle", Note,
        "The folder holds a pickle",
        "Loaders that prefer it unpickle it, and unpickling can run code; all that this one imports is what weights and trainers' files need.",
        "remove it if nothing needs it";
    LEFT_OUT = "safety.left-out", Warning,
        "A subfolder was not looked into",
        "It is deeper, or the checkpoint has more files, than any real one; pickles can hide there.",
        "remove the folder if nothing needs it";
    CODE = "safety.remote-code", Warning,
        "A config names code to be loaded with the model or its tokenizer",
        "Loading with trust_remote_code runs it.",
        "read the code before loading it, or remove `auto_map`";
    LINK = "safety.link-outside", Error,
        "A link leads out of the checkpoint's folder",
        "What is read through it is not of this checkpoint, and uploads would publish it.",
        "replace the link by the file that is meant";
}

/// Checks the files of a folder.
pub(super) fn check_safety(
    location: &Location,
    report: &mut Report,
) -> Result<(), CheckpointError> {
    let risks = folder_risks(location)?;
    for (file, target) in risks.links_outside {
        let expected = "a file of the folder, or a blob of the Hub's cache";
        report.add(Finding::new(&LINK, Place::file(file), expected, target));
    }
    for (file, imports) in risks.pickles {
        report.extend(pickle(location, file, imports));
    }
    for folder in risks.left_out {
        let place = Place::file(folder);
        let expected = "a folder that can be looked into";
        let finding = Finding::new(&LEFT_OUT, place, expected, "one that was left out");
        report.add(finding);
    }
    for (file, class) in risks.code {
        report.add(Finding::new(
            &CODE,
            Place::field(file, "auto_map"),
            "no code",
            class,
        ));
    }
    Ok(())
}

/// The most names that are shown for one file.
const NAMES_SHOWN: usize = 12;

/// The findings about the imports of one pickle.
fn pickle(location: &Location, file: String, imports: PickleImports) -> Vec<Finding> {
    let list = |names: &BTreeSet<String>| some_of(names, NAMES_SHOWN);
    let mut findings = Vec::new();
    let place = || Place::file(file.clone());
    if !imports.others.is_empty() {
        let found = list(&imports.others);
        findings.push(Finding::new(&DANGEROUS, place(), "tensors alone", found));
    }
    if let Some(why) = imports.unread {
        let unread = Finding::new(&UNREAD, place(), "a pickle to its end", why);
        // OpenVINO stores plain weights under a name that pickles use too, next to an XML description.
        let described = location.path.join(&file).with_extension("xml").is_file();
        findings.push(match described {
            true => unread.with_severity(Severity::Note),
            false => unread,
        });
    }
    if findings.is_empty() {
        let found = match imports.harmless.is_empty() {
            true => "one that imports nothing".to_owned(),
            false => list(&imports.harmless),
        };
        findings.push(Finding::new(&PICKLE, place(), "safetensors alone", found));
    }
    findings
}
