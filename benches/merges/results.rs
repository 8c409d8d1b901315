//! Tables of what was measured, and where they are kept.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;

use bytesize::ByteSize;

use crate::Arguments;
use crate::methods::Method;
use crate::models::Shape;
use crate::process::Usage;

/// What weld's own memory shall stay under.
const MEMORY: u64 = 256 << 20;

/// One merge by weld.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    pub(crate) usage: Usage,
    /// What it says of its own memory at the peak.
    pub(crate) own_memory: u64,
    /// Bytes read, those of every pass counted.
    pub(crate) read: u64,
    /// The most that its cgroup held, if it ran in one.
    pub(crate) limited_peak: Option<u64>,
}

/// What was measured of a method at a shape.
pub(crate) struct Row {
    pub(crate) method: Method,
    pub(crate) shape: Shape,
    /// Models that are read.
    pub(crate) inputs: usize,
    /// Medians in seconds; the second only under a limit.
    pub(crate) copy_floor: f64,
    pub(crate) read_floor: f64,
    pub(crate) timings: Vec<Timing>,
    pub(crate) peer: Option<Usage>,
}

impl Row {
    fn wall(&self) -> f64 {
        let timings = self.timings.iter();
        median(timings.map(|timing| timing.usage.wall.as_secs_f64()))
    }

    fn processor(&self) -> f64 {
        let timings = self.timings.iter();
        median(timings.map(|timing| timing.usage.processor.as_secs_f64()))
    }

    fn own_memory(&self) -> u64 {
        let timings = self.timings.iter();
        timings.map(|timing| timing.own_memory).max().unwrap_or(0)
    }

    fn limited_peak(&self) -> u64 {
        let timings = self.timings.iter();
        let peaks = timings.filter_map(|timing| timing.limited_peak);
        peaks.max().unwrap_or(0)
    }
}

/// A row for each method, with the figures that are wanted.
pub(crate) fn by_method(arguments: &Arguments, rows: &[Row]) -> String {
    let mut table = heading(arguments, &format!("shape {}", arguments.shape));
    table += &head(&[
        "method",
        "inputs",
        "copy floor",
        "weld",
        "of the floor",
        "wanted",
        "met",
        "mergekit",
        "times faster",
        "wanted",
        "met",
        "processor",
        "own memory",
    ]);
    for row in rows {
        let wall = row.wall();
        let of_floor = wall / row.copy_floor;
        let [theirs, faster, faster_met] = row.peer.map_or_else(Default::default, |usage| {
            let seconds = usage.wall.as_secs_f64();
            let resident = usage.resident as f64 / 1e9;
            [
                format!("{seconds:.1} s, {resident:.1} GB"),
                format!("{:.1}", seconds / wall),
                met(seconds / wall >= row.method.faster),
            ]
        });
        table += &line(&[
            row.method.name.to_owned(),
            row.inputs.to_string(),
            format!("{:.2} s", row.copy_floor),
            format!("{wall:.2} s"),
            format!("{of_floor:.2}"),
            row.method.of_floor.to_string(),
            met(of_floor <= row.method.of_floor),
            theirs,
            faster,
            row.method.faster.to_string(),
            faster_met,
            format!("{:.2} s", row.processor()),
            mebibytes(row.own_memory()),
        ]);
    }
    table + &memory(rows)
}

/// A row for each method and size.
pub(crate) fn at_scale(arguments: &Arguments, rows: &[Row]) -> String {
    let mut table = heading(arguments, "three sizes");
    table += &head(&[
        "method",
        "an input",
        "inputs",
        "copy floor",
        "weld",
        "of the floor",
        "s a GB of input",
        "processor",
        "own memory",
    ]);
    let mut rows: Vec<&Row> = rows.iter().collect();
    // The sizes of a method beside each other; they were measured one after the other.
    rows.sort_by_key(|row| row.method.place());
    for row in rows {
        let bytes = row.shape.bytes() * row.inputs as u64;
        table += &line(&[
            row.method.name.to_owned(),
            gigabytes(row.shape.bytes()),
            row.inputs.to_string(),
            format!("{:.2} s", row.copy_floor),
            format!("{:.2} s", row.wall()),
            format!("{:.2}", row.wall() / row.copy_floor),
            format!("{:.2}", row.wall() / (bytes as f64 / 1e9)),
            format!("{:.2} s", row.processor()),
            mebibytes(row.own_memory()),
        ]);
    }
    table
}

/// A row for each method, all that it shares its memory with counted.
pub(crate) fn under_limit(arguments: &Arguments, limit: ByteSize, rows: &[Row]) -> String {
    let what = format!(
        "shape {}, {} of memory with the page cache",
        arguments.shape,
        limit.display().iec()
    );
    let mut table = heading(arguments, &what);
    table += &head(&[
        "method",
        "inputs",
        "together",
        "reading them",
        "copy floor",
        "weld",
        "read by passes",
        "of reading",
        "of the copy floor",
        "processor",
        "own memory",
        "most memory",
    ]);
    for row in rows {
        let read = row.timings.first().map_or(0, |timing| timing.read);
        table += &line(&[
            row.method.name.to_owned(),
            row.inputs.to_string(),
            gigabytes(row.shape.bytes() * row.inputs as u64),
            format!("{:.2} s", row.read_floor),
            format!("{:.2} s", row.copy_floor),
            format!("{:.2} s", row.wall()),
            gigabytes(read),
            format!("{:.2}", row.wall() / row.read_floor),
            format!("{:.2}", row.wall() / row.copy_floor),
            format!("{:.2} s", row.processor()),
            mebibytes(row.own_memory()),
            mebibytes(row.limited_peak()),
        ]);
    }
    table
}

/// Keeps a table by processor and date; gives the place.
pub(crate) fn store(kind: &str, arguments: &Arguments, table: &str) -> io::Result<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/results");
    fs::create_dir_all(&folder)?;
    let processor: String = processor()
        .to_lowercase()
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("-");
    let kind = match kind {
        "scale" => kind.to_owned(),
        kind if arguments.cold => format!("{kind}-{}-cold", arguments.shape),
        kind => format!("{kind}-{}", arguments.shape),
    };
    let path = folder.join(format!("{processor}-{}-{kind}.md", today()?));
    fs::write(&path, table)?;
    Ok(path)
}

/// The middle value; the higher of two.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What was measured, on what.
fn heading(arguments: &Arguments, what: &str) -> String {
    let commit = told_by("git", &["rev-parse", "--short", "HEAD"]).unwrap_or_default();
    format!(
        "{}{}, {} threads, {what}, {} cache, medians of {} rounds, {}{}\n\n",
        processor(),
        vectors(),
        arguments.threads,
        if arguments.is_cold() { "cold" } else { "warm" },
        arguments.rounds,
        today().unwrap_or_default(),
        if commit.is_empty() {
            commit
        } else {
            format!(", commit {commit}")
        },
    )
}

fn processor() -> String {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = processors
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or("unknown processor", |(_, name)| name)
        .to_owned()
}

/// The widest instructions that kernels are compiled for.
fn vectors() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512bw") {
            return " (AVX-512)";
        }
        if std::is_x86_feature_detected!("avx2") {
            return " (AVX2)";
        }
    }
    ""
}

fn today() -> io::Result<String> {
    told_by("date", &["+%F"]).ok_or_else(|| io::Error::other("`date` does not tell the date"))
}

/// What a program prints.
fn told_by(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let told = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| told.trim().to_owned())
}

fn head(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let rule: Vec<&str> = names
        .iter()
        .map(|name| match name.as_str() {
            "method" | "met" => "---",
            _ => "---:",
        })
        .collect();
    format!("{}|{}|\n", line(&names), rule.join("|"))
}

fn line(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

fn met(met: bool) -> String {
    if met { "yes" } else { "no" }.to_owned()
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / 1_048_576.0)
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// Whether all stayed under what is wanted of own memory.
fn memory(rows: &[Row]) -> String {
    let most = rows.iter().map(Row::own_memory).max().unwrap_or(0);
    format!(
        "\nOwn memory: at most {}, wanted under {}: {}.\n",
        mebibytes(most),
        mebibytes(MEMORY),
        if most < MEMORY { "met" } else { "not met" }
    )
}
