//! What a file of tasks may hold, and which part an item is of.

use super::super::{Content, Input, Kind, Split, Tasks};
use super::tasks;

fn text(text: &str) -> Input {
    Input::Text(text.into())
}

fn only(line: &str) -> Result<Content, String> {
    let mut read = tasks(&[("t.jsonl", line)])?;
    Ok(read.tasks.remove(0).items.remove(0).content)
}

#[test]
fn items_of_each_kind_are_read() {
    let lines = "{\"prompt\": \"a\", \"answer\": \"b\"}\n\n  \n{\"prompt\": [1, 2], \"answer\": [3], \
                 \"id\": 7, \"meta\": {\"x\": []}}\r\n";
    let read = tasks(&[
        ("first.jsonl", lines),
        ("second.jsonl", "{\"text\": \"a b\"}"),
    ])
    .unwrap();
    let names: Vec<&str> = read.tasks.iter().map(|task| task.name.as_str()).collect();
    assert_eq!(names, ["first", "second"]);
    let kinds: Vec<Kind> = read.tasks.iter().map(|task| task.kind).collect();
    assert_eq!(kinds, [Kind::Answer, Kind::Text]);
    let items = &read.tasks[0].items;
    assert_eq!(
        items.iter().map(|item| item.line).collect::<Vec<_>>(),
        [1, 4]
    );
    assert_eq!(
        items[1].content,
        Content::Answer {
            prompt: Input::Tokens(vec![1, 2]),
            answers: vec![Input::Tokens(vec![3])],
            stop: vec![]
        }
    );
    assert_eq!(
        only(r#"{"prompt": "a", "answer": ["b", [4], "c"], "stop": "\n"}"#).unwrap(),
        Content::Answer {
            prompt: text("a"),
            answers: vec![text("b"), Input::Tokens(vec![4]), text("c")],
            stop: vec!["\n".into()]
        }
    );
    let choices = |answer: &str| {
        only(&format!(
            r#"{{"prompt": "a", "choices": ["b", "c", [4]], "answer": {answer}}}"#
        ))
    };
    for (answer, right) in [("1", 1), ("\"c\"", 1), ("[4]", 2), ("0", 0)] {
        let expected = Content::Choices {
            prompt: text("a"),
            choices: vec![text("b"), text("c"), Input::Tokens(vec![4])],
            right,
        };
        assert_eq!(choices(answer).unwrap(), expected);
    }
}

#[test]
fn what_is_no_item_is_refused_with_its_line() {
    for (line, expected) in [
        (
            "{",
            "expected a JSON object, but it ends too early at column 1",
        ),
        ("[1]", "expected a JSON object, found another value"),
        (r#"{"prompt": "a"}"#, r#"expected {"prompt", "answer"}"#),
        (
            r#"{"prompt": "a", "anwser": "b"}"#,
            "`anwser` is no name of an item; hint: write `answer`",
        ),
        (r#"{"text": ""}"#, "`text` is empty"),
        (
            r#"{"text": "a", "prompt": "b"}"#,
            r#"expected {"prompt", "answer"}"#,
        ),
        (
            r#"{"text": "a", "stop": "b"}"#,
            r#"expected {"prompt", "answer"}"#,
        ),
        (
            r#"{"prompt": 3, "answer": "b"}"#,
            "`prompt`: expected a text, or a list of tokens",
        ),
        (
            r#"{"prompt": [-1], "answer": "b"}"#,
            "`prompt`: expected a text, or a list of tokens",
        ),
        (
            r#"{"prompt": [4294967296], "answer": "b"}"#,
            "`prompt`: expected a text",
        ),
        (r#"{"prompt": "a", "answer": ""}"#, "`answer` is empty"),
        (r#"{"prompt": "a", "answer": []}"#, "`answer` is empty"),
        (
            r#"{"prompt": "a", "answer": ["b", ""]}"#,
            "`answer` is empty",
        ),
        (
            r#"{"prompt": "a", "answer": "b", "stop": []}"#,
            "`stop`: expected a text",
        ),
        (
            r#"{"prompt": "a", "answer": ["c", "b\nc"], "stop": ["d", "\n"]}"#,
            "the `answer` holds the `stop`",
        ),
        (
            r#"{"prompt": "a", "answer": "b", "stop": ""}"#,
            "`stop`: expected a text",
        ),
        (
            r#"{"prompt": "a", "choices": ["b"], "answer": 0}"#,
            "`choices`: expected a list of 2",
        ),
        (
            r#"{"prompt": "a", "choices": ["b", ""], "answer": 0}"#,
            "`choices`: one is empty",
        ),
        (
            r#"{"prompt": "a", "choices": ["b", "c"], "answer": 2}"#,
            "`answer`: expected the number of a choice, 0 to 1",
        ),
        (
            r#"{"prompt": "a", "choices": ["b", "b"], "answer": "b"}"#,
            "`answer`: expected the number",
        ),
        (
            r#"{"prompt": "a", "answer": "b", "answer": "c"}"#,
            "`answer` stands twice",
        ),
        (
            r#"{"text": "a", "meta": 1, "meta": 2}"#,
            "`meta` stands twice",
        ),
        (
            r#"{"prompt": "a", "answer": 82}"#,
            "`answer`: expected a text, or a list of tokens, found 82; hint: put it in quotes: \"82\"",
        ),
        (
            r#"{"prompt": "a", "answer": ["b", true]}"#,
            "`answer`: expected a text, or a list of tokens, found true; hint: put it in quotes",
        ),
        ("{\"prompt\": \"a\", \"ans\\u001b[31m\": \"b\"}", "`ans"),
    ] {
        let lines = format!("{{\"prompt\": \"a\", \"answer\": \"b\"}}\n{line}");
        let error = tasks(&[("t.jsonl", &lines)]).map(|_| ()).unwrap_err();
        assert!(
            error.starts_with(&format!("t.jsonl:2: {expected}")),
            "{error}"
        );
        assert!(error.contains("; hint: "), "{error}");
        assert!(!error.contains('\u{1b}'), "{error:?}");
    }
    let mixed = "{\"prompt\": \"a\", \"answer\": \"b\"}\n{\"text\": \"a\"}";
    let error = tasks(&[("t.jsonl", mixed)]).map(|_| ()).unwrap_err();
    assert!(
        error.contains("`answer`, as line 1 is, found one of the kind `text`"),
        "{error}"
    );
    let error = tasks(&[("t.jsonl", "\n")]).map(|_| ()).unwrap_err();
    assert!(error.starts_with("t.jsonl: there are no items"), "{error}");
    assert!(Tasks::read::<&str>(&[]).is_err());
}

#[test]
fn the_same_prompt_is_on_one_side_whatever_else_differs() {
    let items = |answer: &str| -> String {
        let lines =
            (0..400).map(|at| format!("{{\"prompt\": \"p{at}\", \"answer\": \"{answer}\"}}\n"));
        lines.collect()
    };
    let (a, b) = (items("x"), items("y"));
    let read = tasks(&[("a.jsonl", &a), ("b.jsonl", &b)]).unwrap();
    for seed in [0, 1] {
        let mut validation = 0;
        for (one, other) in read.tasks[0].items.iter().zip(&read.tasks[1].items) {
            assert_ne!(one.digest, other.digest);
            let sides = |item: &super::super::Item| {
                [Split::Validation, Split::Test].map(|split| split.has(item.shown, seed))
            };
            assert_eq!(sides(one), sides(other));
            assert_eq!(sides(one).iter().filter(|is| **is).count(), 1);
            assert!(Split::All.has(one.shown, seed));
            validation += usize::from(sides(one)[0]);
        }
        // Four standard deviations of 400 fair coins.
        assert!((160..=240).contains(&validation), "{validation}");
    }
    let moved = |item: &super::super::Item| {
        Split::Test.has(item.shown, 0) != Split::Test.has(item.shown, 1)
    };
    assert!(
        read.tasks[0].items.iter().any(moved),
        "the seed changes nothing"
    );
}

/// Editors of Windows begin a file with a mark.
#[test]
fn a_mark_at_the_beginning_is_no_text() {
    let marked = "\u{feff}{\"text\": \"a b\"}\n";
    assert_eq!(only(marked).unwrap(), Content::Text(text("a b")));
    let twice = format!("{{\"text\": \"a b\"}}\n{marked}");
    let error = tasks(&[("t.jsonl", &twice)]).map(|_| ()).unwrap_err();
    assert!(error.starts_with("t.jsonl:2: "), "{error}");
}

/// A file is one task, by whatever names it is given.
#[test]
fn a_file_is_given_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("t.jsonl"), "{\"text\": \"a b\"}").unwrap();
    std::fs::copy(path("t.jsonl"), path("copy.jsonl")).unwrap();
    std::os::unix::fs::symlink("t.jsonl", path("link.jsonl")).unwrap();
    std::fs::hard_link(path("t.jsonl"), path("hard.jsonl")).unwrap();
    for other in ["t.jsonl", "./t.jsonl", "link.jsonl", "hard.jsonl"] {
        let error = Tasks::read(&[path("t.jsonl"), path(other)]).unwrap_err();
        let text = errors::in_one_line(&error);
        assert!(
            text.contains("same file") || text.contains("given twice"),
            "{other}: {text}"
        );
    }
    assert!(Tasks::read(&[path("t.jsonl"), path("copy.jsonl")]).is_ok());
    std::os::unix::fs::symlink("loop.jsonl", path("loop.jsonl")).unwrap();
    for (name, hint) in [
        ("loop.jsonl", "links lead in a circle"),
        ("nowhere.jsonl", "look whether the path is right"),
    ] {
        let error = Tasks::read(&[path(name)]).unwrap_err();
        let text = errors::in_one_line(&error);
        assert!(text.contains(name) && text.contains(hint), "{text}");
    }
}
