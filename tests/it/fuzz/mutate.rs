//! Changes to files that know their structure: JSON trees, safetensors headers, lines of text, pickles in archives.

use serde_json::{Value, json};

use super::random::Random;

/// Strings that readers trip over.
const STRINGS: &[&str] = &[
    "",
    " ",
    "null",
    "../x",
    "/etc/hostname",
    "a/b",
    "\u{0}",
    "\u{1b}[2J",
    "\n::error::x",
    "\u{202e}x",
    "\u{feff}x",
    "F32",
    "BF16",
    "F16",
    "F64",
    "F8_E4M3",
    "I64",
    "I32",
    "U8",
    "BOOL",
    "float32",
    "bfloat16",
    "auto",
    "union",
    "base",
    "llama",
    "gemma3",
    "qwen3_moe",
    "mixtral",
    "t2",
    "[UNK]",
    "model.safetensors",
    "model.norm.weight",
    "lm_head.weight",
];

/// Numbers that readers trip over.
fn number(random: &mut Random) -> Value {
    let all = [
        json!(0),
        json!(1),
        json!(-1),
        json!(2),
        json!(3),
        json!(7),
        json!(16),
        json!(255),
        json!(65_536),
        json!(i32::MAX),
        json!(u32::MAX),
        json!(1u64 << 40),
        json!(i64::MAX),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(0.5),
        json!(-0.0),
        json!(1e-300),
        json!(1e300),
        json!(1e18),
    ];
    all[random.below(all.len())].clone()
}

/// Any small value.
fn value(random: &mut Random) -> Value {
    match random.below(8) {
        0 => Value::Null,
        1 => json!(random.one_in(2)),
        2 | 3 => json!(random.pick(STRINGS)),
        4 => json!([]),
        5 => json!({}),
        6 => json!("x".repeat(1 << random.below(13))),
        _ => number(random),
    }
}

/// Changes a tree in one to three places.
pub(super) fn json(random: &mut Random, tree: &mut Value) {
    for _ in 0..=random.below(3) {
        let count = count(tree);
        let (at, other) = (random.below(count), random.below(count));
        let other = node(tree, other).clone();
        change(random, node(tree, at), other);
    }
}

/// The number of values in a tree, itself included.
fn count(tree: &Value) -> usize {
    1 + match tree {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

/// A value of a tree by its number, in the order of writing.
fn node(tree: &mut Value, at: usize) -> &mut Value {
    if at == 0 {
        return tree;
    }
    let mut at = at - 1;
    let children: Vec<&mut Value> = match tree {
        Value::Array(items) => items.iter_mut().collect(),
        Value::Object(fields) => fields.values_mut().collect(),
        _ => unreachable!("a leaf has no values"),
    };
    for child in children {
        let held = count(child);
        if at < held {
            return node(child, at);
        }
        at -= held;
    }
    unreachable!("the number is below the count")
}

/// Changes one value; `other` is another of its tree.
fn change(random: &mut Random, place: &mut Value, other: Value) {
    match random.below(6) {
        0 => *place = other,
        1 => {
            let mut deep = place.take();
            for _ in 0..1 << random.below(9) {
                deep = json!([deep]);
            }
            *place = deep;
        }
        _ => match place {
            Value::Object(fields) if !fields.is_empty() => change_field(random, fields, other),
            Value::Array(items) if !items.is_empty() => change_item(random, items, other),
            Value::Number(old) if random.one_in(2) => *place = near(random, old),
            Value::Bool(old) => *place = json!(!*old),
            _ => *place = value(random),
        },
    }
}

fn change_field(random: &mut Random, fields: &mut serde_json::Map<String, Value>, other: Value) {
    let names: Vec<String> = fields.keys().cloned().collect();
    let name = &names[random.below(names.len())];
    match random.below(4) {
        0 => {
            fields.shift_remove(name);
        }
        1 => {
            let held = fields.shift_remove(name).expect("a field");
            fields.insert(random.pick(STRINGS).to_owned(), held);
        }
        2 => {
            let held = fields[name].clone();
            fields.insert(
                format!("{name}{}", random.pick(&["", "2", ".weight", " "])),
                held,
            );
        }
        _ => {
            fields.insert(name.clone(), other);
        }
    }
}

fn change_item(random: &mut Random, items: &mut Vec<Value>, other: Value) {
    let at = random.below(items.len());
    match random.below(4) {
        0 => {
            items.remove(at);
        }
        1 => items.insert(at, items[at].clone()),
        2 => items.insert(at, other),
        _ => {
            let end = items.len() - 1;
            items.swap(at, end);
        }
    }
}

/// A number close to another.
fn near(random: &mut Random, old: &serde_json::Number) -> Value {
    match old.as_i64() {
        Some(old) => json!(match random.below(5) {
            0 => old.wrapping_add(1),
            1 => old.wrapping_sub(1),
            2 => old.wrapping_mul(2),
            3 => old / 2,
            _ => old.wrapping_neg(),
        }),
        None => number(random),
    }
}

/// A tree as text, which once in four is changed again as text.
pub(super) fn json_text(random: &mut Random, tree: &Value) -> Vec<u8> {
    let mut text = match random.one_in(2) {
        true => format!("{tree:#}"),
        false => tree.to_string(),
    };
    if random.one_in(4) {
        match random.below(5) {
            0 => text = text.replacen("true", random.pick(&["NaN", "Infinity", "-Infinity"]), 1),
            1 => text = text.replacen('{', "{\"model_type\": \"x\", ", 1),
            2 => text.insert(0, '\u{feff}'),
            3 => text.push_str(random.pick(&["}", ",", " {}", "\u{0}"])),
            _ => {
                let mut bytes = text.into_bytes();
                self::bytes(random, &mut bytes);
                return bytes;
            }
        }
    }
    text.into_bytes()
}

/// Changes a file of JSON.
pub(super) fn json_file(random: &mut Random, file: &[u8]) -> Vec<u8> {
    let mut tree: Value = serde_json::from_slice(file).expect("a good file");
    json(random, &mut tree);
    json_text(random, &tree)
}

/// Changes bytes in one to three places, wherever they are.
pub(super) fn bytes(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.byte()),
            2 if at < bytes.len() => {
                bytes.remove(at);
            }
            3 => {
                let end = bytes.len().min(at + random.below(64));
                let held = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, held);
            }
            _ if at < bytes.len() => bytes[at] = random.byte(),
            _ => {}
        }
    }
}

/// Changes text by lines and words; `words` are some that mean something there.
pub(super) fn text(random: &mut Random, text: &str, words: &[&str]) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for _ in 0..=random.below(3) {
        if lines.is_empty() {
            lines.push(String::new());
        }
        let at = random.below(lines.len());
        match random.below(8) {
            0 => {
                lines.remove(at);
            }
            1 => lines.insert(at, lines[at].clone()),
            2 => lines[at].insert_str(0, random.pick(&[" ", "  ", "- ", "\t", "#"])),
            3 => lines[at] = lines[at].trim_start().to_owned(),
            4 => {
                let other = random.below(lines.len());
                lines.swap(at, other);
            }
            5 => lines[at].push_str(random.pick(words)),
            _ => change_word(random, &mut lines[at], words),
        }
    }
    lines.join("\n")
}

/// Replaces a word of a line.
fn change_word(random: &mut Random, line: &mut String, words: &[&str]) {
    let ends = |c: char| !(c.is_alphanumeric() || c == '_' || c == '.' || c == '-');
    let starts: Vec<usize> = line
        .split(ends)
        .map(|word| word.as_ptr() as usize - line.as_ptr() as usize)
        .collect();
    let start = starts[random.below(starts.len())];
    let end = line[start..]
        .find(ends)
        .map_or(line.len(), |len| start + len);
    line.replace_range(start..end, random.pick(words));
}

/// Changes the header of a safetensors file, and once in six the length before it or the bytes behind it.
pub(super) fn header(random: &mut Random, file: &[u8]) -> Vec<u8> {
    let (length, rest) = file.split_at(8);
    let length = u64::from_le_bytes(length.try_into().expect("eight bytes")) as usize;
    let (header, data) = rest.split_at(length);
    let mut tree: Value = serde_json::from_slice(header).expect("a good header");
    match random.below(3) {
        0 => json(random, &mut tree),
        _ => change_entry(random, &mut tree),
    }
    let text = json_text(random, &tree);
    let mut data = data.to_vec();
    let mut length = text.len() as u64;
    match random.below(12) {
        0 => length = length.wrapping_add(1 << random.below(64)),
        1 => bytes(random, &mut data),
        _ => {}
    }
    [&length.to_le_bytes()[..], &text, &data].concat()
}

/// Changes one tensor's entry to what a writer might have meant.
fn change_entry(random: &mut Random, header: &mut Value) {
    let entries = header.as_object_mut().expect("a header");
    let names = entries.keys().filter(|name| *name != "__metadata__");
    let names: Vec<String> = names.cloned().collect();
    let name = names[random.below(names.len())].clone();
    let other = names[random.below(names.len())].clone();
    let held = entries[&other]["data_offsets"].clone();
    let Some(entry) = entries[&name].as_object_mut() else {
        return;
    };
    match random.below(7) {
        0 => {
            entry["dtype"] = json!(random.pick(&[
                "I32", "U32", "F32", "BF16", "I16", "F64", "F8_E5M2", "BOOL", "F4"
            ]))
        }
        1 => {
            let shape = entry["shape"].as_array().expect("a shape");
            entry["shape"] = shape.iter().rev().cloned().collect();
        }
        2 => {
            let shape = entry["shape"].as_array().expect("a shape");
            let elements: u64 = shape.iter().filter_map(Value::as_u64).product();
            entry["shape"] = json!([elements]);
        }
        3 => {
            let shape = entry["shape"].as_array_mut().expect("a shape");
            shape.insert(random.below(shape.len() + 1), json!(random.below(3)));
        }
        4 => entry["data_offsets"] = held,
        5 => {
            let held = entries.shift_remove(&name).expect("an entry");
            entries.insert(
                other + random.pick(&["", "_scale_inv", ".lora_A.weight", "x"]),
                held,
            );
        }
        _ => entry["shape"] = json!([1u64 << 33, 1u64 << 33]),
    }
}

/// Opcodes of pickles and bytes that some of them are followed by.
const OPCODES: &[u8] =
    b"(.012JKMGNQRUVX]abceghijpqrstu}\x80\x81\x85\x86\x87\x88\x89\x8a\x8c\x8e\x94\x95\x00\xff";

/// Changes a pickle's opcodes in place.
fn opcodes(random: &mut Random, pickle: &mut [u8]) {
    for _ in 0..=random.below(4) {
        let at = random.below(pickle.len());
        pickle[at] = match random.below(3) {
            0 => random.byte(),
            1 => pickle[random.below(pickle.len())],
            _ => OPCODES[random.below(OPCODES.len())],
        };
    }
}

/// Changes a file of torch.save: the pickle in an archive, whose checksum is made right again; or any bytes.
pub(super) fn pickle(random: &mut Random, file: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    match stored(&file, b"/data.pkl") {
        Some(entry) if !random.one_in(6) => {
            opcodes(random, &mut file[entry.data.clone()]);
            let sum = crc32(&file[entry.data]).to_le_bytes();
            for place in entry.sums {
                file[place..place + 4].copy_from_slice(&sum);
            }
        }
        None if !random.one_in(6) => {
            let end = file.len().min(600);
            opcodes(random, &mut file[..end]);
        }
        _ => bytes(random, &mut file),
    }
    file
}

/// An entry of a zip archive that is stored as it is.
struct Entry {
    data: std::ops::Range<usize>,
    /// Where its checksum stands.
    sums: Vec<usize>,
}

/// Finds an entry by the end of its name.
fn stored(file: &[u8], name: &[u8]) -> Option<Entry> {
    let u16_at = |at: usize| u16::from_le_bytes([file[at], file[at + 1]]) as usize;
    let u32_at = |at: usize| u16_at(at) | u16_at(at + 2) << 16;
    let central = (0..file.len().saturating_sub(46)).find(|&at| {
        let named = || file.get(at + 46..at + 46 + u16_at(at + 28));
        file[at..].starts_with(b"PK\x01\x02") && named().is_some_and(|found| found.ends_with(name))
    })?;
    let local = u32_at(central + 42);
    let start = local + 30 + u16_at(local + 26) + u16_at(local + 28);
    let end = start + u32_at(central + 20);
    let mut sums = vec![central + 16];
    match u32_at(local + 14) {
        // The checksum stands behind the data.
        0 if file[end..].starts_with(b"PK\x07\x08") => sums.push(end + 4),
        _ => sums.push(local + 14),
    }
    Some(Entry {
        data: start..end,
        sums,
    })
}

/// The checksum of zip archives.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| {
            (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg())
        })
    })
}
