//! What `--help` shows: commands and options in groups, examples, the page to read on.

use std::fmt::Write;

use clap::builder::{StyledStr, Styles};
use clap::{Command, CommandFactory};

use super::{Cli, fit};

/// The commands, in groups.
const COMMANDS: [(&str, &[&str]); 5] = [
    (
        "Make a model",
        &[
            "new",
            "plan",
            "merge",
            "moe",
            "join",
            "extract-lora",
            "transplant",
            "export",
            #[cfg(feature = "hub")]
            "push",
        ],
    ),
    ("Find a better recipe", &["study"]),
    (
        "Look at models",
        &["inspect", "check", "diff", "analyse", "eval", "stats"],
    ),
    (
        "Prove what a model is made of",
        &["verify", "attest", "sign"],
    ),
    (
        "Find out more",
        &["methods", "explain", "completions", "help"],
    ),
];

/// The options of all commands by their group; the others come first, under `Options`.
const OPTIONS: [(&str, &[&str]); 9] = [
    (
        "Output",
        &[
            "force",
            "shard_size",
            "tokenizer_from",
            "hash_inputs",
            "no_check",
            "part",
            "resume",
        ],
    ),
    (
        "What is computed",
        &[
            "recipe",
            "set",
            "inputs",
            "ignore",
            "seed",
            "merge_seed",
            "full",
            "samples",
            "sample_seed",
            "allow",
            "numerics",
            "allow_nonfinite",
            "saturate",
        ],
    ),
    (
        "Tasks",
        &["tasks", "split", "limit", "generate", "max_tokens"],
    ),
    ("Comparison", &["baseline", "max_drop"]),
    (
        "Signatures",
        &["signature", "attestation", "key", "recompute"],
    ),
    ("Report", &["outputs", "policy", "strict"]),
    (
        "Mixtures of experts",
        &["inexact", "fused", "per_expert", "check"],
    ),
    ("GGUF file", &["gguf", "gguf_type", "pre_tokenizer"]),
    ("Resources", &["threads", "memory"]),
];

/// Examples of a command, and the page about it.
struct Examples {
    command: &'static str,
    lines: &'static [&'static str],
    page: &'static str,
}

const EXAMPLES: &[Examples] = &[
    Examples {
        command: "new",
        lines: &[
            "weld new",
            "weld new a b --base base --method ties",
            "weld new base+lora --out recipe.yml",
        ],
        page: "docs/recipes.md",
    },
    Examples {
        command: "plan",
        lines: &[
            "weld plan recipe.yml",
            "weld plan recipe.yml --all",
            "weld plan recipe.yml --format html > plan.html",
        ],
        page: "docs/recipes.md",
    },
    Examples {
        command: "merge",
        lines: &[
            "weld merge recipe.yml merged",
            "weld merge recipe.yml merged --set parameters.density=0.3",
            "weld merge recipe.yml merged --force --memory 1GiB",
            "weld merge recipe.yml merged --gguf merged.gguf",
        ],
        page: "docs/recipes.md",
    },
    Examples {
        command: "moe",
        lines: &[
            "weld moe recipe.yml mixture",
            "weld moe recipe.yml mixture --check",
        ],
        page: "docs/moe.md",
    },
    Examples {
        command: "join",
        lines: &[
            "weld merge recipe.yml merged --part 1/2",
            "weld merge recipe.yml merged --part 2/2",
            "weld join merged",
        ],
        page: "docs/parts.md",
    },
    Examples {
        command: "export",
        lines: &["weld export gguf merged merged.gguf --type q8_0"],
        page: "docs/export.md",
    },
    #[cfg(feature = "hub")]
    Examples {
        command: "push",
        lines: &[
            "weld push merged org/name --dry-run",
            "weld push merged org/name",
        ],
        page: "docs/hub.md",
    },
    Examples {
        command: "transplant",
        lines: &[
            "weld transplant model donor out",
            "weld transplant model donor out --method subword",
        ],
        page: "docs/transplant.md",
    },
    Examples {
        command: "extract-lora",
        lines: &[
            "weld extract-lora base finetune adapter --rank 32",
            "weld extract-lora base finetune adapter --energy 0.99 --max-rank 128 --save embed_tokens",
        ],
        page: "docs/lora.md",
    },
    Examples {
        command: "stats",
        lines: &[
            "weld stats tuned --data texts.jsonl --keep gram --out tuned-gram.safetensors",
            "weld stats base --data texts.jsonl --keep magnitude --out base-magnitude.safetensors",
            "weld stats regmean.yml --data a.jsonl b.jsonl",
        ],
        page: "docs/statistics.md",
    },
    Examples {
        command: "study",
        lines: &[
            "weld study study.yml found",
            "weld study report found --format html > report.html",
            "weld study best found merged",
        ],
        page: "docs/study.md",
    },
    Examples {
        command: "inspect",
        lines: &["weld inspect merged", "weld inspect org/name@main --all"],
        page: "docs/commands.md",
    },
    Examples {
        command: "check",
        lines: &[
            "weld check merged",
            "weld check merged --for vllm,llama.cpp",
            "weld check merged --format html=report.html",
            "weld explain container.truncated",
        ],
        page: "docs/checks.md, docs/ci.md",
    },
    Examples {
        command: "diff",
        lines: &["weld diff a b", "weld diff a b --base base"],
        page: "docs/ci.md",
    },
    Examples {
        command: "analyse",
        lines: &[
            "weld analyse a b c --base base",
            "weld analyse a b c --base base --format html=analysis.html",
        ],
        page: "docs/choosing.md",
    },
    Examples {
        command: "verify",
        lines: &[
            "weld verify merged",
            "weld verify merged --inputs models --full",
            "weld verify merged --key pub.pem",
        ],
        page: "docs/verification.md",
    },
    Examples {
        command: "eval",
        lines: &[
            "weld eval merged --tasks problems.jsonl",
            "weld eval recipe.yml --tasks a.jsonl b.jsonl --split validation",
            "weld eval merged --tasks a.jsonl --baseline before.json --max-drop 0.01",
        ],
        page: "docs/eval.md",
    },
    Examples {
        command: "attest",
        lines: &["weld attest merged --key key.pem --output merged.intoto.json"],
        page: "docs/verification.md",
    },
    Examples {
        command: "sign",
        lines: &["weld sign merged --key key.pem"],
        page: "docs/verification.md",
    },
    Examples {
        command: "methods",
        lines: &["weld methods", "weld methods ties"],
        page: "docs/methods.md, docs/choosing.md",
    },
    Examples {
        command: "explain",
        lines: &[
            "weld explain verify.tensor",
            "weld explain container",
            "weld explain slerp",
        ],
        page: "docs/checks.md, docs/methods.md",
    },
];

const AFTER: &str = "Examples:
  weld new                      write a recipe, asking
  weld plan recipe.yml          see what it would do
  weld merge recipe.yml merged  do it
  weld check merged             find defects
  weld verify merged            recompute it, and compare

Exit codes: 0 done or passed, 1 wrong input or failed check,
2 weld could not run, 3 inconclusive, 130 stopped.
`weld COMMAND --help` says more. Docs: docs/commands.md";

/// The command line with its help.
pub(super) fn command() -> Command {
    let mut command = Cli::command().after_help(AFTER);
    command.build();
    let template = template(&command);
    let names: Vec<String> = command
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect();
    for name in names {
        command = command.mut_subcommand(name, with_groups);
    }
    for Examples {
        command: name,
        lines,
        page,
    } in EXAMPLES
    {
        let text = format!("Examples:\n  {}\n\nDocs: {page}", lines.join("\n  "));
        command = command.mut_subcommand(name, |command| command.after_help(text));
    }
    command.help_template(template)
}

/// A command whose options are in groups, with those of its own commands.
fn with_groups(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        let named = |group: &&(&str, &[&str])| group.1.contains(&arg.get_id().as_str());
        match OPTIONS.iter().find(named) {
            Some((heading, _)) if !arg.is_positional() => arg.help_heading(*heading),
            _ => arg,
        }
    });
    command.mut_subcommands(with_groups)
}

/// The help of `weld` itself: clap lists commands in one group only.
fn template(command: &Command) -> StyledStr {
    let styles = Styles::default();
    let (header, literal) = (styles.get_header(), styles.get_literal());
    let mut text = String::from("{about-with-newline}\n{usage-heading} {usage}\n");
    let names = COMMANDS.iter().flat_map(|(_, names)| *names);
    let longest = names.map(|name| name.len()).max().unwrap_or(0);
    for (group, names) in COMMANDS {
        let _ = write!(text, "\n{header}{group}:{header:#}\n");
        for name in names {
            let about = command.find_subcommand(name).and_then(Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            let line = fit::to_help(&format!("  {name:<longest$}  {about}"));
            let styled = format!("{literal}{name}{literal:#}");
            text.push_str(&line.replacen(name, &styled, 1));
            text.push('\n');
        }
    }
    let _ = write!(
        text,
        "\n{header}Options:{header:#}\n{{options}}{{after-help}}"
    );
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_one_group_and_has_examples() {
        let command = command();
        let listed: Vec<&str> = COMMANDS
            .iter()
            .flat_map(|(_, names)| *names)
            .copied()
            .collect();
        let shown = command
            .get_subcommands()
            .filter(|command| !command.is_hide_set());
        let mut count = 0;
        for shown in shown {
            let name = shown.get_name();
            assert_eq!(
                listed.iter().filter(|listed| **listed == name).count(),
                1,
                "{name}"
            );
            let has_examples = EXAMPLES.iter().any(|examples| examples.command == name);
            assert!(
                has_examples || ["completions", "help"].contains(&name),
                "{name}"
            );
            count += 1;
        }
        assert_eq!(count, listed.len());
    }

    #[test]
    fn the_examples_are_commands_that_weld_takes() {
        let of_root = AFTER
            .lines()
            .filter_map(|line| line.strip_prefix("  weld "));
        let of_root =
            of_root.map(|line| format!("weld {}", line.split("  ").next().unwrap_or_default()));
        let lines = EXAMPLES
            .iter()
            .flat_map(|examples| examples.lines.iter().copied());
        for line in of_root.chain(lines.map(str::to_owned)) {
            let words = line.split(" > ").next().unwrap_or_default().split(' ');
            let parsed = command().try_get_matches_from(words);
            assert!(parsed.is_ok(), "{line}: {:?}", parsed.err());
        }
    }

    #[test]
    fn every_group_of_options_is_used() {
        let mut command = command();
        command.build();
        for (heading, ids) in OPTIONS {
            for id in ids {
                let of = |command: &Command| {
                    command
                        .get_arguments()
                        .any(|arg| arg.get_id() == *id && arg.get_help_heading() == Some(heading))
                };
                let of_any = command
                    .get_subcommands()
                    .any(|command| of(command) || command.get_subcommands().any(of));
                assert!(of_any, "{heading}: {id}");
            }
        }
    }

    #[test]
    fn the_pages_exist() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for Examples { command, page, .. } in EXAMPLES {
            for page in page.split(", ") {
                assert!(root.join(page).is_file(), "{command}: {page}");
            }
        }
    }
}
