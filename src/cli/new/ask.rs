//! The questions of `weld new` at a terminal.

use std::io::BufRead;

use super::models::Found;
use super::{DTYPES, dtype, method};
use crate::output::Failure;
use errors::Refusal;
use methods::{self, MethodInfo};

/// How often a question is asked again.
const MOST_TRIES: usize = 5;

/// What the questions found out.
pub(super) struct Answers {
    pub(super) found: Found,
    pub(super) method: Option<&'static MethodInfo>,
    pub(super) dtype: Option<&'static str>,
}

/// What was given on the command line, and is not asked: the base, the method, the dtype.
pub(super) type Given<'a> = (
    Option<&'a str>,
    Option<&'static MethodInfo>,
    Option<&'static str>,
);

/// Opens models by their names, with a base.
pub(super) type Open<'o> = &'o mut dyn FnMut(&[String], Option<&str>) -> Result<Found, Failure>;

/// What each kind of merge is done with, to begin with.
const GOALS: [(&str, &str); 5] = [
    ("something between two models", "slerp"),
    (
        "the skills of several fine-tunes of one base",
        "task_arithmetic",
    ),
    ("the same, where they pull against each other", "ties"),
    ("the mean of several runs or models", "linear"),
    (
        "one model as it is, or with its adapter applied",
        "passthrough",
    ),
];

/// Asks which models, which base, what for, and which dtype. An empty answer takes what stands in brackets.
pub(super) fn questions(
    input: &mut dyn BufRead,
    say: &mut dyn FnMut(&str),
    open: Open<'_>,
    given: Given<'_>,
) -> Result<Answers, Failure> {
    let (base, asked_method, asked_dtype) = given;
    let found = models(input, say, open, base)?;
    let method = match asked_method {
        Some(method) => Some(method),
        None => goal(input, say)?,
    };
    let dtype = match asked_dtype {
        Some(dtype) => Some(dtype),
        None => {
            let usual = found.dtype().unwrap_or(DTYPES[0]);
            let question = format!(
                "4. Which dtype should be written: {}? [{usual}]",
                DTYPES.join(", ")
            );
            Some(again(input, say, &question, |answer, say| match answer {
                "" => Some(usual),
                answer => told(dtype(answer), say),
            })?)
        }
    };
    Ok(Answers {
        found,
        method,
        dtype,
    })
}

/// The first two questions; both again if the models cannot be opened.
fn models(
    input: &mut dyn BufRead,
    say: &mut dyn FnMut(&str),
    open: Open<'_>,
    base: Option<&str>,
) -> Result<Found, Failure> {
    for _ in 0..MOST_TRIES {
        say(
            "1. Which models? Folders, files, Hub ids in the cache or adapters, with spaces between them:",
        );
        let names: Vec<String> = line(input)?.split_whitespace().map(str::to_owned).collect();
        if names.is_empty() {
            continue;
        }
        let answer = match base {
            Some(base) => base.to_owned(),
            None => {
                say(
                    "2. Which model were they fine-tuned from? [none, or found if three models or more show it]",
                );
                line(input)?
            }
        };
        match open(
            &names,
            Some(answer.as_str()).filter(|answer| !answer.is_empty()),
        ) {
            Ok(found) => return Ok(found),
            Err(failure) => match failure.refusal() {
                Some(refusal) => say(&errors::in_one_line(&refusal)),
                None => return Err(failure),
            },
        }
    }
    Err(no_answer())
}

/// The third question: a goal by its number, or a method by its name.
fn goal(
    input: &mut dyn BufRead,
    say: &mut dyn FnMut(&str),
) -> Result<Option<&'static MethodInfo>, Failure> {
    let mut question = String::from(
        "3. What should it become? A number, or a method by its name [what suits the models]\n",
    );
    for (number, (goal, method)) in GOALS.iter().enumerate() {
        question += &format!("   {}  {goal} ({method})\n", number + 1);
    }
    again(input, say, &question, |answer, say| {
        if answer.is_empty() {
            return Some(None);
        }
        let by_number = answer
            .parse::<usize>()
            .ok()
            .and_then(|number| number.checked_sub(1));
        let name = by_number
            .and_then(|at| GOALS.get(at))
            .map_or(answer, |(_, method)| method);
        told(method(name), say).map(Some)
    })
}

/// The answer, or says why it is none.
fn told<T>(answer: Result<T, String>, say: &mut dyn FnMut(&str)) -> Option<T> {
    answer.map_err(|why| say(&why)).ok()
}

/// Asks until there is an answer.
fn again<T>(
    input: &mut dyn BufRead,
    say: &mut dyn FnMut(&str),
    question: &str,
    mut parse: impl FnMut(&str, &mut dyn FnMut(&str)) -> Option<T>,
) -> Result<T, Failure> {
    for _ in 0..MOST_TRIES {
        say(question);
        let answer = line(input)?;
        if let Some(parsed) = parse(&answer, say) {
            return Ok(parsed);
        }
    }
    Err(no_answer())
}

/// A line without spaces around it.
fn line(input: &mut dyn BufRead) -> Result<String, Failure> {
    let mut line = String::new();
    match input.read_line(&mut line) {
        Ok(0) => Err(Failure::Stopped(
            "stopped; no recipe was written".to_owned(),
        )),
        Ok(_) => Ok(line.trim().to_owned()),
        Err(error) => Err(Failure::tool(format!("cannot read the answer: {error}"))),
    }
}

fn no_answer() -> Failure {
    Failure::input(
        Refusal::new("there was no answer that helps")
            .with_hint("name the models: weld new MODEL MODEL --base MODEL"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the questions made of these answers: the names and the base that were opened, the method, the dtype, and
    /// what was said.
    fn asked(answers: &str, given: Given<'_>) -> Result<(String, Answers, String), Failure> {
        let mut said = String::new();
        let mut opened = String::new();
        let answers = questions(
            &mut answers.as_bytes(),
            &mut |text| {
                said += text;
                said.push('\n');
            },
            &mut |models, base| {
                if models.iter().any(|model| model == "gone") {
                    return Err(Failure::input("model `gone` not found"));
                }
                opened = format!("{} on {}", models.join(" "), base.unwrap_or("none"));
                Ok(Found {
                    members: Vec::new(),
                    base: None,
                    why_base: None,
                    remarks: Vec::new(),
                })
            },
            given,
        )?;
        Ok((opened, answers, said))
    }

    #[test]
    fn four_answers_are_enough_and_empty_ones_take_what_is_offered() {
        let nothing = (None, None, None);
        let (opened, answers, said) = asked("a  b\nc\n3\nfloat16\n", nothing).unwrap();
        assert_eq!(opened, "a b on c");
        assert_eq!(answers.method.unwrap().name, "ties");
        assert_eq!(answers.dtype, Some("float16"));
        for number in ["1. ", "2. ", "3. ", "4. "] {
            assert_eq!(
                said.matches(&format!("\n{number}")).count()
                    + usize::from(said.starts_with(number)),
                1
            );
        }
        let (opened, answers, _) = asked("a b\n\n\n\n", nothing).unwrap();
        assert_eq!(opened, "a b on none");
        assert!(answers.method.is_none());
        assert_eq!(answers.dtype, Some("bfloat16"));
        let (_, answers, _) = asked("a b\n\nslerp\n\n", nothing).unwrap();
        assert_eq!(answers.method.unwrap().name, "slerp");
    }

    #[test]
    fn what_was_given_is_not_asked() {
        let linear = methods::find("linear").unwrap().info();
        let given = (Some("base"), Some(linear), Some("float32"));
        let (opened, answers, said) = asked("a\n", given).unwrap();
        assert_eq!(opened, "a on base");
        assert_eq!(answers.method.unwrap().name, "linear");
        assert_eq!(answers.dtype, Some("float32"));
        assert!(!said.contains("2. ") && !said.contains("3. ") && !said.contains("4. "));
    }

    #[test]
    fn wrong_answers_are_told_and_asked_again() {
        let nothing = (None, None, None);
        let answers = "\ngone\n\na\n\n9\ntise\n2\nint4\nfloat32\n";
        let (opened, answers, said) = asked(answers, nothing).unwrap();
        assert_eq!(opened, "a on none");
        assert_eq!(answers.method.unwrap().name, "task_arithmetic");
        assert_eq!(answers.dtype, Some("float32"));
        for part in [
            "`gone` not found",
            "did you mean `ties`?",
            "expected one of",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    #[test]
    fn an_end_of_the_answers_stops() {
        let nothing = (None, None, None);
        for answers in ["", "a\n", "a\nb\n", "a\nb\n1\n"] {
            let stopped = asked(answers, nothing);
            assert!(matches!(stopped, Err(Failure::Stopped(_))), "{answers:?}");
        }
        assert!(matches!(
            asked(&"\n".repeat(50), nothing),
            Err(Failure::Input(_))
        ));
    }

    #[test]
    fn every_goal_is_a_method() {
        for (_, name) in GOALS {
            assert!(methods::find(name).is_some(), "{name}");
        }
    }
}
