//! What would run code, or lead out of the folder.

use crate::audit::{Finding, Place, Report};
use crate::checkpoint::{CheckpointError, Location, folder_risks};

checks! {
    DANGEROUS = "safety.dangerous-pickle", Error,
        "A pickle names a function that runs programs or code",
        "Whoever unpickles the file, which torch.load may do, executes it.",
        "delete the file, and distrust where it came from";
    PICKLE = "safety.pickle", Note,
        "The folder holds a pickle",
        "Loaders that prefer it unpickle it, and unpickling can run code; this one names none that is known to be harmful.",
        "remove it if nothing needs it";
    CODE = "safety.remote-code", Warning,
        "config.json names code to be loaded with the model",
        "Loading with trust_remote_code runs it.",
        "read the code before loading it, or remove `auto_map`";
    LINK = "safety.link-outside", Error,
        "A link leads out of the checkpoint's folder",
        "What is read through it is not of this checkpoint, and uploads would publish it.",
        "replace the link by the file that is meant";
}

/// Looks at the files of a folder.
pub(super) fn check_safety(
    location: &Location,
    report: &mut Report,
) -> Result<(), CheckpointError> {
    let risks = folder_risks(location)?;
    for (file, target) in risks.links_outside {
        let expected = "a file of the folder, or a blob of the Hub's cache";
        report
            .findings
            .push(Finding::new(&LINK, Place::file(file), expected, target));
    }
    for (file, globals) in risks.pickles {
        let bad: Vec<&str> = globals
            .iter()
            .map(String::as_str)
            .filter(|name| is_dangerous(name))
            .collect();
        let place = Place::file(file);
        report.findings.push(match bad.is_empty() {
            false => Finding::new(&DANGEROUS, place, "tensors alone", bad.join(", ")),
            true => Finding::new(
                &PICKLE,
                place,
                "safetensors alone",
                globals.into_iter().collect::<Vec<_>>().join(", "),
            ),
        });
    }
    for (file, class) in risks.code {
        report.findings.push(Finding::new(
            &CODE,
            Place::field(file, "auto_map"),
            "no code",
            class,
        ));
    }
    Ok(())
}

/// Modules of which no tensor needs anything.
const DANGEROUS_MODULES: [&str; 16] = [
    "os",
    "posix",
    "nt",
    "subprocess",
    "sys",
    "socket",
    "shutil",
    "runpy",
    "pty",
    "commands",
    "importlib",
    "webbrowser",
    "ctypes",
    "requests",
    "asyncio",
    "multiprocessing",
];

/// Functions of Python itself that run what they are given, or find what does.
const DANGEROUS_BUILTINS: [&str; 8] = [
    "eval",
    "exec",
    "compile",
    "open",
    "getattr",
    "__import__",
    "apply",
    "execfile",
];

fn is_dangerous(global: &str) -> bool {
    let Some((module, name)) = global.rsplit_once('.') else {
        return false;
    };
    let top = global.split('.').next().unwrap_or_default();
    DANGEROUS_MODULES.contains(&top)
        || (["builtins", "__builtin__"].contains(&module) && DANGEROUS_BUILTINS.contains(&name))
}
