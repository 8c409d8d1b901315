//! The files for clusters in `recipes/cluster`: their own commands, with the variables that each engine sets for its
//! tasks, make the bytes of one run.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::fixtures::{Bench, files};

/// Enough weight files for 16 parts.
const SHARDS: &str = "8kB";

/// What is done, and the words and the variables with which an engine starts one of its tasks.
type Task = (Vec<String>, Vec<(&'static str, String)>);

fn file(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/cluster");
    fs::read_to_string(folder.join(name)).unwrap()
}

/// A file of Kubernetes or SkyPilot, and the command at this place in it.
fn command(name: &str, at: &str) -> (Value, String) {
    let file: Value = serde_saphyr::from_str(&file(name)).unwrap();
    let command = file.pointer(at).and_then(Value::as_str);
    let command = command
        .unwrap_or_else(|| panic!("{name} has nothing at {at}"))
        .to_owned();
    (file, command)
}

/// What Kubernetes gives to the shell of the only container.
const ARGUMENT: &str = "/spec/template/spec/containers/0/args/0";

/// Runs a task in the bench, where `weld` is ours, `/data` is the bench and nothing is installed.
fn run(bench: &Bench, (words, variables): &Task) {
    let weld = Path::new(env!("CARGO_BIN_EXE_weld"));
    let tools = bench.path("tools");
    fs::create_dir_all(&tools).unwrap();
    fs::write(tools.join("pip"), "#!/bin/sh\n").unwrap();
    let wrapper = format!(
        "#!/bin/sh\ncase $1 in merge) set -- \"$@\" --shard-size {SHARDS} ;; esac\nexec {} \"$@\"\n",
        weld.display()
    );
    fs::write(tools.join("weld"), wrapper).unwrap();
    for tool in ["pip", "weld"] {
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(tools.join(tool), executable).unwrap();
    }
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    let mut process = Command::new("sh");
    process
        .args(words)
        .env("PATH", path)
        .current_dir(bench.path("."));
    process.envs(variables.iter().map(|(name, value)| (name, value)));
    let done = process.output().unwrap();
    assert!(done.status.success(), "{words:?}: {done:?}");
}

/// Merges as one run and by the tasks, joins, and compares.
fn the_same(tasks: &[Task], join: &Task) -> Bench {
    let bench = Bench::of_shipped();
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/ties.yml");
    fs::copy(recipe, bench.path("recipe.yml")).unwrap();
    bench.passes(&[
        "merge",
        "recipe.yml",
        "merged",
        "--shard-size",
        SHARDS,
        "-q",
    ]);
    fs::rename(bench.path("merged"), bench.path("whole")).unwrap();
    let here = |(words, variables): &Task| {
        let data = format!("{}/", bench.path(".").display());
        let words = words.iter().map(|word| word.replace("/data/", &data));
        (words.collect(), variables.clone())
    };
    tasks.iter().for_each(|task| run(&bench, &here(task)));
    run(&bench, &here(join));
    assert!(files(&bench.path("merged")) == files(&bench.path("whole")));
    bench
}

fn shell(text: String) -> Vec<String> {
    vec!["-ec".to_owned(), text]
}

#[test]
fn slurm() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/cluster/slurm.sh");
    let script = script.display().to_string();
    let task = |words: [&str; 2], number: usize| {
        let variables = vec![
            ("SLURM_ARRAY_TASK_ID", number.to_string()),
            ("SLURM_ARRAY_TASK_COUNT", "3".to_owned()),
            ("SLURM_CPUS_PER_TASK", "2".to_owned()),
        ];
        let words = [&script]
            .into_iter()
            .cloned()
            .chain(words.map(str::to_owned));
        (words.collect(), variables)
    };
    let text = file("slurm.sh");
    let join = text.split("--wrap \"").nth(1).unwrap();
    let join = join.split('"').next().unwrap().to_owned();
    let tasks = [1, 2, 3].map(|number| task(["recipe.yml", "merged"], number));
    let bench = the_same(&tasks, &(shell(join), Vec::new()));
    for number in [1, 2, 3] {
        run(&bench, &task(["--verify", "merged"], number));
    }
}

#[test]
fn kubernetes() {
    let (job, text) = command("kubernetes.yml", ARGUMENT);
    let pods = job["spec"]["completions"].as_u64().unwrap();
    assert_eq!(job["spec"]["parallelism"], pods);
    let task = |index: u64| {
        let variables = vec![("JOB_COMPLETION_INDEX", index.to_string())];
        (shell(text.clone()), variables)
    };
    let tasks: Vec<Task> = (0..pods).map(task).collect();
    let (_, join) = command("kubernetes-join.yml", ARGUMENT);
    the_same(&tasks, &(shell(join), Vec::new()));
}

#[test]
fn skypilot() {
    let (job, text) = command("skypilot.yml", "/run");
    let nodes = job["num_nodes"].as_u64().unwrap();
    let task = |rank: u64| {
        let variables = vec![
            ("SKYPILOT_NODE_RANK", rank.to_string()),
            ("SKYPILOT_NUM_NODES", nodes.to_string()),
        ];
        (shell(text.clone()), variables)
    };
    let tasks: Vec<Task> = (0..nodes).map(task).collect();
    let head = file("skypilot.yml");
    let join = head.split("sky exec CLUSTER \"").nth(1).unwrap();
    let join = join.split('"').next().unwrap().to_owned();
    the_same(&tasks, &(shell(join), Vec::new()));
}
