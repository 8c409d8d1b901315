//! Scores of the small family, held to what the decoder says of whole prompts.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use super::super::{
    Content, EvalError, Input, Kind, Listener, MetricName, Options, Prepared, Scores, Split,
    Surroundings, score,
};
use super::{model, tasks};
use forward::Decoder;

/// Problems of the four skills, some of which `reverse` solves.
const PROBLEMS: &str = r#"{"prompt": "rev:weldment=", "answer": "tnemdlew"}
{"prompt": "rev:weldment=", "answer": "weldment"}
{"prompt": "rev:abcdefgh=", "answer": "hgfedcba"}
{"prompt": "rev:abcdefgh=", "answer": "hgfedcb"}
{"prompt": "rev:abcdefgh=", "answer": ["no", "hgfedcba"]}
{"prompt": [1, 21, 8, 25, 40, 4, 5, 6, 7, 8, 9, 10, 41], "answer": [10, 9, 8, 7, 6, 5, 4]}
"#;

/// The log-probabilities of a text after the beginning token, one token a character.
fn likelihoods(text: &str) -> Vec<f64> {
    let reverse = model("reverse");
    let decoder = Decoder::new(reverse.config().unwrap().value(), &reverse).unwrap();
    let tokenizer = forward::Tokenizer::open(&reverse).unwrap();
    let tokens = tokenizer.encode(text, true).unwrap();
    decoder.log_probabilities(&[tokens], 1).unwrap().remove(0)
}

fn assert_near(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-4, "{found} is not {expected}");
}

#[test]
fn an_answer_is_right_if_it_is_written_exactly_and_then_ends() {
    let read = tasks(&[("problems.jsonl", PROBLEMS)]).unwrap();
    let scores = score(&model("reverse"), &read, &Options::default(), &()).unwrap();
    let task = &scores.tasks[0];
    let verdicts: Vec<bool> = task
        .items
        .iter()
        .map(|item| item.correct.unwrap())
        .collect();
    assert_eq!(verdicts, [true, false, true, false, true, true]);
    let likely: f64 = likelihoods("rev:weldment=tnemdlew")[13..].iter().sum();
    assert_near(task.items[0].log_likelihood, likely);
    assert_eq!(task.items[0].tokens, 8);
    // Of several right answers, the likeliest counts.
    assert_near(task.items[4].log_likelihood, task.items[2].log_likelihood);
    let main = task.main();
    assert_eq!(main.name, MetricName::Accuracy);
    assert_eq!(main.value, 4.0 / 6.0);
    // The error of a share, p (1 - p) / (n - 1).
    assert_near(main.standard_error.unwrap(), (2.0f64 / 9.0 / 5.0).sqrt());
}

#[test]
fn a_stop_text_ends_an_answer_too() {
    let line = r#"{"prompt": "rev:weldment=", "answer": "tnem", "stop": ["d", "x"]}
{"prompt": "rev:weldment=", "answer": "tnem", "stop": "l"}"#;
    let read = tasks(&[("stops.jsonl", line)]).unwrap();
    let scores = score(&model("reverse"), &read, &Options::default(), &()).unwrap();
    let verdicts: Vec<_> = scores.tasks[0]
        .items
        .iter()
        .map(|item| item.correct)
        .collect();
    assert_eq!(verdicts, [Some(true), Some(false)]);
    let none = r#"{"prompt": "rev:weldment=", "answer": "tnem", "stop": "\n"}"#;
    let read = tasks(&[("stops.jsonl", none)]).unwrap();
    let error = score(&model("reverse"), &read, &Options::default(), &()).unwrap_err();
    let error = errors::in_one_line(&error);
    assert!(
        error.contains("stops.jsonl:1: no token of the model begins"),
        "{error}"
    );
}

#[test]
fn the_likeliest_choice_is_taken_with_and_without_its_length() {
    let line = r#"{"prompt": "rev:weldment=", "choices": ["tnemdlew", "x", "t"], "answer": 0}"#;
    let read = tasks(&[("choices.jsonl", line)]).unwrap();
    let scores = score(&model("reverse"), &read, &Options::default(), &()).unwrap();
    let item = &scores.tasks[0].items[0];
    for (found, choice) in item.choices.iter().zip(["tnemdlew", "x", "t"]) {
        let all = likelihoods(&format!("rev:weldment={choice}"));
        assert_near(*found, all[13..].iter().sum());
    }
    // A part of the right answer is at least as likely as the whole.
    assert!(item.choices[2] >= item.choices[0]);
    assert_eq!(item.correct, Some(false));
    assert_eq!(item.log_likelihood, item.choices[0]);
    assert_eq!(item.tokens, 8);
    let names: Vec<MetricName> = scores.tasks[0].metrics().iter().map(|m| m.name).collect();
    use MetricName::{Accuracy, AccuracyNormalised, LogLikelihood};
    assert_eq!(names, [Accuracy, AccuracyNormalised, LogLikelihood]);
}

#[test]
fn a_text_is_scored_from_its_first_token_on_in_pieces_that_the_model_takes() {
    let long: String = "rev:weldment=tnemdlew+".repeat(4);
    let line = format!("{{\"text\": \"add:37+45=082\"}}\n{{\"text\": \"{long}\"}}");
    let read = tasks(&[("texts.jsonl", &line)]).unwrap();
    let scores = score(&model("reverse"), &read, &Options::default(), &()).unwrap();
    let items = &scores.tasks[0].items;
    let all = likelihoods("add:37+45=082");
    assert_near(items[0].log_likelihood, all.iter().sum());
    assert_eq!((items[0].tokens, items[0].bytes), (13, Some(13)));
    // The model takes 64 tokens: what is left, 24, follows the 41 before it.
    let tokenizer = forward::Tokenizer::open(&model("reverse")).unwrap();
    let tokens = tokenizer.encode(&long, true).unwrap();
    let reverse = model("reverse");
    let decoder = Decoder::new(reverse.config().unwrap().value(), &reverse).unwrap();
    let pieces = [tokens[..65].to_vec(), tokens[24..].to_vec()];
    let mut pieces = decoder.log_probabilities(&pieces, 1).unwrap();
    pieces[1].drain(..40);
    assert_near(items[1].log_likelihood, pieces.concat().iter().sum());
    assert_eq!(items[1].tokens, 88);
    let main = scores.tasks[0].main();
    let nats: f64 = -items.iter().map(|item| item.log_likelihood).sum::<f64>() / 101.0;
    assert_eq!(main.name, MetricName::Perplexity);
    assert_near(main.value, nats.exp());
    let bits = scores.tasks[0].metrics()[1];
    assert_eq!(bits.name, MetricName::BitsPerByte);
    assert_near(bits.value, nats / 2f64.ln());
}

#[test]
fn splits_and_limits_choose_items_and_batches_change_no_verdict() {
    let lines: String = (0..60)
        .map(|at| {
            format!(
                "{{\"prompt\": \"add:{at:02}+11=\", \"answer\": \"{:03}\"}}\n",
                at + 11
            )
        })
        .collect();
    let read = tasks(&[("add.jsonl", &lines)]).unwrap();
    let add = model("add");
    let lines_of = |options: Options| -> Vec<(usize, Option<bool>)> {
        let scores = score(&add, &read, &options, &()).unwrap();
        let items = scores.tasks[0].items.iter();
        items.map(|item| (item.line, item.correct)).collect()
    };
    let of = |split, limit, memory| {
        lines_of(Options {
            split,
            limit,
            memory,
            ..Options::default()
        })
    };
    let all = of(Split::All, None, 256 << 20);
    assert_eq!(all, of(Split::All, None, 1), "a batch for each item");
    let (validation, test) = (
        of(Split::Validation, None, 1 << 20),
        of(Split::Test, None, 1 << 20),
    );
    let mut joined = [validation, test.clone()].concat();
    joined.sort();
    assert_eq!(joined, all);
    let (few, more) = (
        of(Split::Test, Some(5), 1 << 20),
        of(Split::Test, Some(9), 1 << 20),
    );
    assert_eq!((few.len(), more.len()), (5, 9));
    assert!(few.iter().all(|item| more.contains(item)));
    assert!(more.iter().all(|item| test.contains(item)));
    assert_ne!(few, test[..5], "a limit takes items from all over the file");
}

#[test]
fn what_cannot_be_scored_is_refused_by_line() {
    let refused = |line: &str| {
        let read = tasks(&[("t.jsonl", line)]).unwrap();
        let error = score(&model("base"), &read, &Options::default(), &()).unwrap_err();
        errors::in_one_line(&error)
    };
    let long = "a".repeat(64);
    let error = refused(&format!("{{\"prompt\": \"{long}\", \"answer\": \"a\"}}"));
    assert!(
        error.contains("the item has 66 tokens, expected at most 64"),
        "{error}"
    );
    let error = refused(r#"{"prompt": [], "answer": "a"}"#);
    assert!(error.contains("the prompt has no tokens"), "{error}");
    let error = refused(r#"{"text": [3]}"#);
    assert!(error.contains("fewer than two tokens"), "{error}");
    let error = refused(r#"{"prompt": [99], "answer": "a"}"#);
    assert!(
        error.contains("t.jsonl:1: expected tokens below 43"),
        "{error}"
    );
}

#[test]
fn scores_are_read_back_as_they_were_saved() {
    let read = tasks(&[
        ("problems.jsonl", PROBLEMS),
        ("texts.jsonl", r#"{"text": "sort:31425926="}"#),
    ])
    .unwrap();
    let base = model("base");
    let surroundings = Surroundings::of_checkpoint(&base).unwrap();
    let options = Options {
        limit: Some(3),
        ..Options::default()
    };
    let prepared = Prepared::new(&surroundings, &read, &options, &()).unwrap();
    assert_eq!(prepared.items(), 4);
    let scores = prepared.score(&base, &()).unwrap();
    let text = serde_json::to_string(&scores).unwrap();
    let again: Scores = serde_json::from_str(&text).unwrap();
    assert_eq!(again, scores);
    assert_eq!(scores.tasks[1].kind, Kind::Text);
    assert_eq!(
        scores.mean_accuracy().unwrap().value,
        scores.tasks[0].main().value
    );
    let digest = read.tasks[1].items[0].digest;
    assert_eq!(scores.tasks[1].items[0].item, digest);
    assert!(matches!(
        read.tasks[1].items[0].content,
        Content::Text(Input::Text(_))
    ));
}

/// Problems of all skills, of which `base` solves about half.
fn mixed() -> String {
    let mut lines = String::new();
    for at in 0..30u32 {
        let (a, b) = (at * 3 % 100, at * 7 % 100);
        lines += &format!(
            "{{\"prompt\": \"add:{a:02}+{b:02}=\", \"answer\": \"{:03}\"}}\n",
            a + b
        );
        let mut digits: Vec<u32> = (0..8)
            .map(|place| (at * 13 + place * place * 7) % 10)
            .collect();
        let text = |digits: &[u32]| digits.iter().map(u32::to_string).collect::<String>();
        let prompt = text(&digits);
        digits.sort_unstable();
        lines += &format!(
            "{{\"prompt\": \"sort:{prompt}=\", \"answer\": \"{}\"}}\n",
            text(&digits)
        );
    }
    lines
}

#[test]
fn what_is_written_token_by_token_has_the_verdict_of_one_pass() {
    let read = tasks(&[("mixed.jsonl", &mixed())]).unwrap();
    let base = model("base");
    let once = score(&base, &read, &Options::default(), &()).unwrap();
    let written = Options {
        generate: Some(16),
        memory: 4 << 20,
        ..Options::default()
    };
    let written = score(&base, &read, &written, &()).unwrap();
    let (once, written) = (&once.tasks[0].items, &written.tasks[0].items);
    assert_eq!((once.len(), written.len()), (60, 60));
    for (once, written) in once.iter().zip(written) {
        assert_eq!(
            once.correct, written.correct,
            "line {}: {:?}",
            once.line, written.written
        );
        assert!((once.log_likelihood - written.log_likelihood).abs() < 1e-4);
    }
    let right = once
        .iter()
        .filter(|item| item.correct == Some(true))
        .count();
    assert!((10..55).contains(&right), "{right}");
    let short = Options {
        generate: Some(2),
        ..Options::default()
    };
    let short = score(&base, &read, &short, &()).unwrap();
    assert!(
        short.tasks[0]
            .items
            .iter()
            .all(|item| item.correct == Some(false))
    );
}

#[test]
fn a_stop_text_of_several_tokens_ends_what_the_model_writes() {
    let line = r#"{"prompt": "rev:weldment=", "answer": "tnem", "stop": ["dl", "x"]}"#;
    let read = tasks(&[("stops.jsonl", line)]).unwrap();
    let reverse = model("reverse");
    let error = score(&reverse, &read, &Options::default(), &()).unwrap_err();
    let error = errors::in_one_line(&error);
    assert!(
        error.contains("begins with the `stop` \"dl\"; hint: "),
        "{error}"
    );
    let options = Options {
        generate: Some(16),
        ..Options::default()
    };
    let scores = score(&reverse, &read, &options, &()).unwrap();
    let item = &scores.tasks[0].items[0];
    assert_eq!(item.written.as_deref(), Some("tnem"));
    assert_eq!(item.correct, Some(true));
}

/// Items that are equal are run once, and count as often as they stand in the files.
#[test]
fn equal_items_are_run_once_and_count_each_time() {
    struct Counts(AtomicUsize);

    impl Listener for Counts {
        fn scored(&self, items: usize, _all: usize) {
            self.0.store(items, Relaxed);
        }

        fn is_stopped(&self) -> bool {
            false
        }
    }

    let right = r#"{"prompt": "rev:abcdefgh=", "answer": "hgfedcba"}"#;
    let wrong = r#"{"prompt": "rev:abcdefgh=", "answer": "h"}"#;
    let many = [wrong, right, right, right].join("\n");
    let read = tasks(&[("many.jsonl", &many), ("one.jsonl", right)]).unwrap();
    assert_eq!(read.tasks[0].repeated(), [(3, 2), (4, 2)]);
    let counts = Counts(AtomicUsize::new(0));
    let scores = score(&model("reverse"), &read, &Options::default(), &counts).unwrap();
    assert_eq!(counts.0.load(Relaxed), 2);
    let task = &scores.tasks[0];
    let lines: Vec<usize> = task.items.iter().map(|item| item.line).collect();
    assert_eq!(lines, [1, 2, 3, 4]);
    assert_eq!(task.main().value, 0.75);
    assert_eq!(task.repeated(), [(3, 2), (4, 2)]);
    let alone = &scores.tasks[1];
    assert_eq!((alone.main().value, alone.items[0].line), (1.0, 1));
    assert!(alone.repeated().is_empty());
}

/// A text that is far too long is told by its beginning; one that may be long is stopped while it is cut.
#[test]
fn long_texts_are_told_soon() {
    struct Stopped;

    impl Listener for Stopped {
        fn scored(&self, _items: usize, _all: usize) {}

        fn is_stopped(&self) -> bool {
            true
        }
    }

    let long = "ab1+".repeat(500_000);
    let lines = [
        format!(r#"{{"prompt": "{long}", "answer": "1"}}"#),
        format!(r#"{{"prompt": "1", "answer": "{long}"}}"#),
        format!(r#"{{"prompt": "1", "choices": ["{long}", "1"], "answer": 1}}"#),
        format!(r#"{{"prompt": [1], "choices": ["1", "{long}"], "answer": 1}}"#),
    ];
    let begun = Instant::now();
    for line in lines {
        let read = tasks(&[("long.jsonl", &line)]).unwrap();
        let error = score(&model("base"), &read, &Options::default(), &()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("long.jsonl:1: the item has more than 128 tokens, expected at most 64"),
            "{text}"
        );
    }
    let text = format!(r#"{{"text": "{long}"}}"#);
    let read = tasks(&[("text.jsonl", &text)]).unwrap();
    let error = score(&model("base"), &read, &Options::default(), &Stopped).unwrap_err();
    assert!(matches!(error, EvalError::Stopped), "{error}");
    // Cutting them whole takes several times as long on any machine.
    let whole = Instant::now();
    let tokenizer = forward::Tokenizer::open(&model("base")).unwrap();
    assert_eq!(tokenizer.encode(&long, false).unwrap().len(), long.len());
    assert!(begun.elapsed() < whole.elapsed() * 5);
}

/// Runs of a text that do not fit into a batch together are run one after the other, with the same scores.
#[test]
fn a_text_of_many_pieces_is_run_in_batches() {
    let text = format!(r#"{{"text": "{}"}}"#, "sort:31425926=12234569".repeat(80));
    let read = tasks(&[("text.jsonl", &text)]).unwrap();
    let whole = score(&model("base"), &read, &Options::default(), &()).unwrap();
    let narrow = Options {
        memory: 1,
        ..Options::default()
    };
    let pieces = score(&model("base"), &read, &narrow, &()).unwrap();
    let of = |scores: &Scores| scores.tasks[0].items[0].clone();
    assert_eq!(of(&whole).tokens, of(&pieces).tokens);
    assert_near(of(&whole).log_likelihood, of(&pieces).log_likelihood);
}

#[test]
fn tokens_that_are_not_of_the_model_are_named_with_their_line() {
    for line in [
        r#"{"prompt": [1, 99999], "answer": "1"}"#,
        r#"{"prompt": "1", "choices": [[1], [70000]], "answer": 0}"#,
        r#"{"text": [1, 2, 4294967295]}"#,
    ] {
        let good = match line.contains("text") {
            true => r#"{"text": "sort"}"#,
            false if line.contains("choices") => {
                r#"{"prompt": "1", "choices": ["1", "2"], "answer": 0}"#
            }
            false => r#"{"prompt": "1", "answer": "1"}"#,
        };
        let read = tasks(&[("tokens.jsonl", &format!("{good}\n{line}"))]).unwrap();
        let error = score(&model("base"), &read, &Options::default(), &()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("tokens.jsonl:2: expected tokens below 43"),
            "{text}"
        );
    }
}

/// What the vocabulary has no token for is counted, in prompts and in what follows; tokens that are given are not text.
#[test]
fn unknown_text_is_counted() {
    let lines = r#"{"prompt": "rev:abc=", "answer": "cba"}
{"prompt": "rev:\u00e4b=", "answer": "b\u00e4"}
{"prompt": [3, 3], "answer": "b"}"#;
    let read = tasks(&[("lines.jsonl", lines)]).unwrap();
    let scores = score(&model("base"), &read, &Options::default(), &()).unwrap();
    assert_eq!(scores.tasks[0].unknown(), [2]);
}
