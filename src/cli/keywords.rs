//! Options in messages, as the keywords of a function: `--memory 2GB` is `memory="2GB"`.

use super::call::OptionInfo;

/// A text in which options of a command are keywords. What stands between backticks and is a command line stays.
pub(super) fn as_keywords(text: &str, options: &[OptionInfo]) -> String {
    let parts = text.split('`').enumerate().map(|(number, part)| {
        let is_code = number % 2 == 1;
        match is_code && !part.starts_with("--") {
            true => part.to_owned(),
            false => rewritten(part, options),
        }
    });
    parts.collect::<Vec<String>>().join("`")
}

fn rewritten(text: &str, options: &[OptionInfo]) -> String {
    let mut done = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("--") {
        let (before, flag) = rest.split_at(at);
        done.push_str(before);
        let end = flag[2..].find(|c: char| !c.is_ascii_lowercase() && c != '-');
        let (name, after) = flag[2..].split_at(end.unwrap_or(flag.len() - 2));
        let stands_alone = !done.ends_with(|c: char| c.is_alphanumeric() || "-/_.".contains(c));
        let option = options
            .iter()
            .find(|option| option.name == name && !option.positional);
        rest = match option.filter(|_| stands_alone) {
            Some(option) => keyword(option, after, &mut done),
            None => {
                done.push_str("--");
                &flag[2..]
            }
        };
    }
    done + rest
}

/// Writes an option as a keyword, with the value after it if one is given there. Returns what is left.
fn keyword<'t>(option: &OptionInfo, after: &'t str, done: &mut String) -> &'t str {
    let name = match option.name.as_str() {
        "for" => "for_".to_owned(),
        name => name.replace('-', "_"),
    };
    done.push_str(&name);
    if !option.takes_value {
        done.push_str("=True");
        return after;
    }
    done.push('=');
    let Some(given) = after.strip_prefix([' ', '=']) else {
        return after;
    };
    // In its messages, clap writes what stands for a value between angle brackets.
    if let Some((_, left)) = given
        .strip_prefix('<')
        .and_then(|rest| rest.split_once('>'))
    {
        return left;
    }
    let word = given
        .split(|c: char| c.is_whitespace() || "'`()".contains(c))
        .next();
    let word = word
        .unwrap_or_default()
        .trim_end_matches([',', '.', ';', ':']);
    let is_name = |text: &str| text.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    match word.split_once('=') {
        Some((key, value)) if is_name(key) => {
            done.push_str(&format!("{{\"{key}\": \"{value}\"}}"));
        }
        _ if word.starts_with(|c: char| c.is_ascii_digit()) => {
            done.push_str(&format!("\"{word}\""));
        }
        _ if !word.is_empty() && is_name(word) => done.push_str(&format!("\"{word}\"")),
        _ => return after,
    }
    &given[word.len()..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_in_messages_are_keywords() {
        let option = |(name, takes_value): (&str, bool)| OptionInfo {
            name: name.to_owned(),
            help: String::new(),
            positional: false,
            takes_value,
            repeats: false,
        };
        let options = [
            ("memory", true),
            ("inputs", true),
            ("hash-inputs", false),
            ("for", true),
        ];
        let options = options.map(option);
        for (text, expected) in [
            (
                "ask for less with --memory or wait",
                "ask for less with memory= or wait",
            ),
            (
                "give at least --memory 512MB.",
                "give at least memory=\"512MB\".",
            ),
            (
                "leave out --hash-inputs or --saturate",
                "leave out hash_inputs=True or --saturate",
            ),
            (
                "with --inputs NAME=PATH, or",
                "with inputs={\"NAME\": \"PATH\"}, or",
            ),
            (
                "value 'x' for '--memory <SIZE>': bad",
                "value 'x' for 'memory=': bad",
            ),
            ("`--for`", "`for_=`"),
            (
                "run `weld merge --memory 1GB`",
                "run `weld merge --memory 1GB`",
            ),
            (
                "a/--memory, ---\n, --memory-limit",
                "a/--memory, ---\n, --memory-limit",
            ),
            ("--", "--"),
        ] {
            assert_eq!(as_keywords(text, &options), expected);
        }
    }
}
