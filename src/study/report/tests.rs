use serde_json::{Map, json};

use super::*;
use crate::folder::{Folder, Settings, TaskSettings};
use crate::inputs::Input;
use crate::trial::{Objective, Reference, Status, TaskResult, Tested, Trial, score};

fn task(name: &str, verdicts: &str) -> TaskResult {
    let right = verdicts.bytes().filter(|&byte| byte == b'1').count();
    let (n, share) = (verdicts.len() as f64, right as f64 / verdicts.len() as f64);
    TaskResult {
        task: name.into(),
        items: verdicts.len(),
        score: share,
        standard_error: Some((share * (1.0 - share) / (n - 1.0)).sqrt()),
        verdicts: verdicts.into(),
        values: Vec::new(),
    }
}

fn tasks(a: &str, b: &str) -> Vec<TaskResult> {
    vec![task("add", a), task("sort", b)]
}

fn key(search: &str, number: usize) -> String {
    blake3::hash(format!("{search} {number}").as_bytes()).to_string()
}

fn trial(search: &str, number: usize, tasks: Vec<TaskResult>, weight: f64) -> Trial {
    let all = score(&tasks);
    Trial {
        search: search.into(),
        number,
        status: Status::Complete,
        score: Some(all.value),
        standard_error: all.error,
        values: Map::from_iter([("parameters.weight".to_owned(), json!(weight))]),
        point: vec![weight],
        rungs: Vec::new(),
        tasks,
        key: key(search, number),
        same_as: None,
        error: None,
        seconds: 0.5,
    }
}

/// A study of two searches, of which everything is known by hand.
fn report() -> Report {
    let study = "
searches:
- {recipe: ties.yml, space: {parameters.weight: {uniform: [0, 1]}}}
- {name: '=lin<b>', recipe: linear.yml, space: {parameters.weight: {uniform: [0, 1]}}}
tasks: [t.jsonl]
trials: 3
";
    let study = crate::parse("study.yml", study).unwrap();
    let recipes = ["a: 1\n", "b: 1\n"].map(|text| (text.to_owned(), text.to_owned()));
    let names = ["add", "sort"].map(|name| TaskSettings {
        name: name.to_owned(),
        digest: String::new(),
        validation: 8,
        test: 8,
        repeated: usize::from(name == "sort"),
        file: "t.jsonl".into(),
    });
    let models = ["one", "two"].map(|model| Input {
        model: model.to_owned(),
        part: "tensors".to_owned(),
        digest: String::new(),
        state: None,
    });
    let settings = Settings::new(&study, &recipes, names.to_vec(), models.to_vec());
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open_for(&dir.path().join("study"), &settings).unwrap();
    let mut record = folder.record().unwrap();
    {
        let locked = folder.lock().unwrap();
        let mut failed = trial("ties", 2, Vec::new(), 0.9);
        (failed.status, failed.score, failed.error) = (Status::Failed, None, Some("NaN".into()));
        let repeated = Trial {
            same_as: Some(("ties".into(), 1)),
            key: key("ties", 1),
            ..trial("ties", 3, tasks("11110000", "11111111"), 0.4)
        };
        for trial in [
            trial("ties", 0, tasks("11110000", "11110000"), 0.2),
            trial("ties", 1, tasks("11110000", "11111111"), 0.4),
            failed,
            repeated,
            trial("=lin<b>", 0, tasks("11111110", "11000000"), 0.3),
        ] {
            locked.add_trial(&mut record, &trial).unwrap();
        }
        for (model, a) in [("one", "11111111"), ("two", "00000000")] {
            let reference = Reference {
                model: model.into(),
                validation: tasks(a, "11110000"),
                test: tasks(a, "11110000"),
            };
            locked.add_reference(&mut record, &reference).unwrap();
        }
        let test = tasks("11110000", "11111100");
        let tested = Tested {
            search: "ties".into(),
            number: 1,
            key: key("ties", 1),
            score: 0.625,
            standard_error: score(&test).error,
            tasks: test,
        };
        locked.add_tested(&mut record, &tested).unwrap();
    }
    Report::new(&folder).unwrap()
}

#[test]
fn rows_are_compared_item_by_item() {
    let report = report();
    assert_eq!(report.objective, Objective::Accuracy);
    let [best, second] = &report.leaderboard[..] else {
        panic!("{:?}", report.leaderboard)
    };
    assert_eq!((best.name.as_str(), best.number), ("ties", Some(1)));
    assert_eq!(best.validation.value, 0.75);
    // `one` has every item of `add` and half of `sort`: four items are lost, four won.
    assert_eq!(best.to_parent.unwrap().value, 0.0);
    assert_eq!(second.to_best.unwrap().value, 9.0 / 16.0 - 0.75);
    // Half of what `one` does of `add`, and twice what both do of `sort`.
    assert_eq!(best.normalised, Some((0.5 + 2.0) / 2.0));
    assert_eq!(best.skills[0].forgotten, Some(0.5));
    assert_eq!(best.test.unwrap().value, 0.625);
    assert_eq!(best.test_to_parent.unwrap().value, -0.125);
    assert_eq!(second.test, None);
    assert_eq!(report.looks_at_test, 1);
    let front: Vec<(&str, Option<usize>)> = report
        .pareto
        .iter()
        .map(|row| (row.name.as_str(), row.number))
        .collect();
    assert_eq!(front, [("ties", Some(1)), ("=lin<b>", Some(0))]);
    assert_eq!(
        (report.searches[0].failed, report.searches[0].repeated),
        (1, 1)
    );
}

#[test]
fn a_report_is_text_markdown_and_csv() {
    let report = report();
    insta::assert_snapshot!(text(&report), @r#"
    5 trials in 2 searches by tpe, 2.5 s of merging and scoring. Chosen by 16 validation items.
    One merge was scored on the test split, once, on 16 items.
    1 failed.
    Note: items of the task `sort` repeat others (1): each counts, so intervals are too narrow.
    ± is half of a 95 % interval over the items; differences are item by item, on the same items.

    Leaderboard (percent of items that are right, mean over tasks)

    model             validation   to the best        to one  normalised         test  to one, test
    ties trial 1     75.0 ± 18.5                  0.0 ± 26.2       1.250  62.5 ± 24.5  -12.5 ± 24.5
    =lin<b> trial 0  56.2 ± 20.2  -18.8 ± 24.1  -18.8 ± 20.2       0.688
    one              75.0 ± 18.5    0.0 ± 26.2                     1.000  75.0 ± 18.5
    two              25.0 ± 18.5  -50.0 ± 26.2   -50.0 ± 0.0       0.500  25.0 ± 18.5   -50.0 ± 0.0

    By task, on the validation items

    model              add   sort  lost at most
    ties trial 1      50.0  100.0          50.0
    =lin<b> trial 0   87.5   25.0          25.0
    one              100.0   50.0           0.0
    two                0.0   50.0         100.0

    Pareto front: no trial is better in one task and at least as good in all

    model            mean   add   sort
    ties trial 1     75.0  50.0  100.0
    =lin<b> trial 0  56.2  87.5   25.0

    The values of ties trial 1:

      parameters.weight=0.4
    "#);
    insta::assert_snapshot!(markdown(&report), @r#"
    5 trials in 2 searches by tpe, 2.5 s of merging and scoring. Chosen by 16 validation items.

    One merge was scored on the test split, once, on 16 items.

    1 failed.

    Note: items of the task `sort` repeat others (1): each counts, so intervals are too narrow.

    ± is half of a 95 % interval over the items; differences are item by item, on the same items.

    ## Leaderboard

    Scores: percent of items that are right, mean over tasks.

    | model | validation | to the best | to one | normalised | test | to one, test |
    | --- | ---: | ---: | ---: | ---: | ---: | ---: |
    | `ties` trial 1 | 75.0 ± 18.5 |  | 0.0 ± 26.2 | 1.250 | 62.5 ± 24.5 | -12.5 ± 24.5 |
    | `=lin<b>` trial 0 | 56.2 ± 20.2 | -18.8 ± 24.1 | -18.8 ± 20.2 | 0.688 |  |  |
    | `one` | 75.0 ± 18.5 | 0.0 ± 26.2 |  | 1.000 | 75.0 ± 18.5 |  |
    | `two` | 25.0 ± 18.5 | -50.0 ± 26.2 | -50.0 ± 0.0 | 0.500 | 25.0 ± 18.5 | -50.0 ± 0.0 |

    ## By task

    On the validation items.

    | model | add | sort | lost at most |
    | --- | ---: | ---: | ---: |
    | `ties` trial 1 | 50.0 | 100.0 | 50.0 |
    | `=lin<b>` trial 0 | 87.5 | 25.0 | 25.0 |
    | `one` | 100.0 | 50.0 | 0.0 |
    | `two` | 0.0 | 50.0 | 100.0 |

    ## Pareto front

    The trials than which no other is better in one task and at least as good in all.

    | model | mean | add | sort |
    | --- | ---: | ---: | ---: |
    | `ties` trial 1 | 75.0 | 50.0 | 100.0 |
    | `=lin<b>` trial 0 | 56.2 | 87.5 | 25.0 |

    ## The values

    | model | values |
    | --- | --- |
    | `ties` trial 1 | `parameters.weight=0.4` |
    | `=lin<b>` trial 0 | `parameters.weight=0.3` |
    "#);
    insta::assert_snapshot!(csv(&report).replace("\r\n", "\n"), @r#"
    search,number,status,score,standard_error,items,seconds,same_as,error,task:add,task:sort,value:parameters.weight
    ties,0,complete,0.5,0.13363062095621217,16,0.5,,,0.5,0.5,0.2
    ties,1,complete,0.75,0.0944911182523068,16,0.5,,,0.5,1,0.4
    ties,2,failed,,,0,0.5,,NaN,,,0.9
    ties,3,complete,0.75,0.0944911182523068,16,0.5,ties 1,,0.5,1,0.4
    '=lin<b>,0,complete,0.5625,0.10296930888098925,16,0.5,,,0.875,0.25,0.3
    "#);
}

#[test]
fn a_page_holds_no_markup_of_names() {
    let page = html(&report()).unwrap();
    assert!(
        page.contains("=lin&lt;b&gt;") && !page.contains("<b>"),
        "{page}"
    );
    assert!(page.contains("items of the task `sort` repeat others"));
    assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
}
