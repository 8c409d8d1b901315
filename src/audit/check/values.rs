//! Checks the values of a checkpoint: NaN, zeros, copies, and sizes that are out of line with other layers.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::json;

use crate::{
    Finding, HeatMap, Histogram, Place, Report, Severity, Statistics, TensorStatistics,
    exponent_of, statistics,
};
use architecture::{
    LayerStack, StackIndex, is_derived_buffer, is_input_embedding, is_output_head,
    is_shared_expert, layer_stacks, may_be_infinite, may_hold_zeros, module_index,
};
use checkpoint::Checkpoint;
use engine::Observer;
use numeric::{FloatType, all_zero};
use run::{Digest, RunError};

checks! {
    NAN = "values.nan", Error,
        "A tensor holds NaN",
        "One NaN spreads to every output that its layer computes.",
        "merge or train again from sound inputs; `weld merge` refuses inputs with NaN";
    INFINITE = "values.infinite", Error,
        "A tensor holds infinite values",
        "They come of an overflow, mostly of float16, and become NaN in the next layer. In bounds and masks they are meant, and only noted.",
        "write the checkpoint in bfloat16 or float32 again";
    ALL_ZERO = "values.all-zero", Error,
        "A weight is all zeros",
        "What goes through it is lost: it was never filled, or a merge cancelled it.",
        "copy the tensor from a sound checkpoint, or merge again";
    CONSTANT = "values.constant", Warning,
        "All elements of a matrix are equal",
        "It was never trained, or something filled it.",
        "copy the tensor from a sound checkpoint";
    SUBNORMAL = "values.subnormal", Warning,
        "Most values of a tensor are too small for their dtype",
        "Below the smallest normal number precision is lost, down to none.",
        "write the checkpoint in bfloat16 or float32 again";
    NORM_COLLAPSED = "values.norm-collapsed", Warning,
        "A norm's weights are far below those of the other layers",
        "Its layer hardly adds to the result any more.",
        "compare the tensor with that of an input by `weld diff`";
    DEAD_ROWS = "values.dead-rows", Note,
        "Rows of an embedding are all zeros",
        "Tokens of such rows look alike to the model; rows for padding are harmless.",
        "check which tokens they belong to";
    OUT_OF_LINE = "values.out-of-line", Warning,
        "A tensor is far larger or smaller than the same in other layers",
        "Layers of one model have weights of about one size; a wrong scale or a broken merge shows so.",
        "compare the tensor with that of an input by `weld diff`";
    HOLE = "values.hole", Error,
        "A weight has a run of zeros",
        "Bytes that never arrived read as zeros: a download or a copy left a part out, and what goes through it is lost.",
        "copy or download the file again";
    OUTLIER = "values.outlier", Error,
        "A value is far outside of the range of its tensor",
        "One flipped bit of an exponent, or a damaged page, ruins all that its row computes.",
        "copy or download the file again, and compare the tensor with that of an input by `weld diff`";
    IDENTICAL_LAYERS = "values.identical-layers", Warning,
        "Two layers are equal, byte for byte",
        "Layers are copied on purpose when models are stacked; else one overwrote the other.",
        "check the slices of the recipe";
    IDENTICAL_EXPERTS = "values.identical-experts", Warning,
        "Two experts of a layer are equal, byte for byte",
        "The router then chooses between one and the same.",
        "check the sources of the experts";
    ZERO_ROUTER = "values.zero-router", Error,
        "A router is all zeros",
        "Every token goes to the same experts.",
        "assemble the experts again, with prompts or a random router";
    ZERO_ROUTER_ROW = "values.zero-router-row", Warning,
        "A row of a router is all zeros",
        "Its expert gets the same score for every token, whatever is in it.",
        "give the expert a prompt, or leave it out";
    ROUTER_ROWS = "values.identical-router-rows", Warning,
        "Two rows of a router are equal",
        "The two experts always get the same score.",
        "give their experts other prompts";
}

/// A tensor is reported if more than this share of its nonzero values is subnormal.
const FLOOD: f64 = 0.5;

/// A tensor is out of line if it is off the median of its role by more than this many powers of two.
const OUT_OF_LINE_BITS: f64 = 5.0;

/// It must also be off by more than this many median deviations.
const DEVIATIONS: f64 = 10.0;

/// Layers that a role needs before one of them can be out of line.
const LEAST_LAYERS: usize = 4;

/// Bytes of a run of zeros that no trained matrix has by chance.
const HOLE_BYTES: u64 = 4096;

/// So many rows of zeros, with so many elements, are a hole as well.
const HOLE_ROWS: u64 = 4;
const HOLE_ELEMENTS: u64 = 32;

/// In a sparse tensor, runs are as long as chance makes them; a hole is longer by this factor.
const HOLE_OVER_CHANCE: f64 = 4.0;

/// A value is an outlier if it is this many times the largest of the same tensor in other layers: in a matrix perhaps,
/// in a matrix surely, and in a vector, whose sizes differ more.
const OUTLIER_PERHAPS: f64 = 4096.0;
const OUTLIER_SURELY: f64 = 1048576.0;
const OUTLIER_OF_VECTOR: f64 = 16777216.0;

/// How far the largest value of a tensor must be above its root mean square to be an outlier of it.
const OUTLIER_OVER_RMS: f64 = 8.0;

/// The most stacks of layers that are checked.
const MOST_STACKS: usize = 64;

/// The most experts whose router rows are compared; no real model has as many.
const MOST_EXPERTS: usize = 1 << 16;

/// Bytes at the beginning of an expert that are compared first.
const BEGINNING: usize = 256;

/// Weights outside of the layers that are initialized with zeros.
const ZERO_AT_FIRST: [&str; 1] = ["mm_input_projection_weight"];

/// Reads all values and adds the findings to the report.
pub(super) fn check_values(
    model: &Checkpoint,
    threads: usize,
    observer: &dyn Observer,
    report: &mut Report,
) -> Result<Vec<Digest>, RunError> {
    let Statistics {
        tensors: found,
        exponents,
    } = statistics(model, threads, observer)?;
    let names = || model.tensors().iter().map(|tensor| tensor.name.as_str());
    // A model has a few stacks, but a header may name any number.
    let mut stacks = layer_stacks(names());
    stacks.truncate(MOST_STACKS);
    let index = StackIndex::new(&stacks);
    let mut roles: Roles<'_> = BTreeMap::new();
    for (at, name) in names().enumerate() {
        if let Some((stack, layer, role)) = index.split(name) {
            let role = roles.entry((&stack.prefix, role)).or_default();
            role.push((layer, at));
        }
    }
    let values = Values {
        model,
        found: &found,
        stacks: &stacks,
    };
    let zeros = Zeros::find(&values, &roles);
    for at in 0..found.len() {
        report.extend(values.tensor(at, &zeros));
    }
    report.extend(values.holes(&roles));
    let outliers = values.outliers(&roles);
    for tensors in roles.values() {
        report.extend(values.role(tensors, &outliers));
    }
    report.extend(outliers.into_values());
    let order = values.in_name_order();
    report.extend(values.identical_layers(&order));
    report.extend(values.identical_experts(&order));
    report.extend(values.fused_experts(&order));
    values.show(&exponents, report);
    Ok(found.iter().map(|tensor| tensor.digest).collect())
}

/// The tensors of each role: pairs of a layer and the tensor's index in the checkpoint.
type Roles<'a> = BTreeMap<(&'a str, &'a str), Vec<(usize, usize)>>;

/// Tensors that consist of zeros, by what the other layers have.
struct Zeros {
    /// Other layers have weights in that role.
    odd: HashSet<usize>,
    /// Every layer has zeros in that role, so they are deliberate and no damage.
    habit: HashSet<usize>,
}

impl Zeros {
    fn find(values: &Values<'_>, roles: &Roles<'_>) -> Zeros {
        let (mut odd, mut habit) = (HashSet::new(), HashSet::new());
        for tensors in roles.values() {
            let is_zero = |at: usize| values.found[at].zeros == values.found[at].elements;
            let zeros = || tensors.iter().map(|&(_, at)| at).filter(|&at| is_zero(at));
            let count = zeros().count();
            let few = tensors.len() >= LEAST_LAYERS && 4 * count <= tensors.len();
            let weights = |at: &usize| {
                let weight = few || values.name(*at).ends_with(".weight");
                weight && !values.is_beside_weight(*at)
            };
            // A shared expert of zeros is there because a class wants one.
            let deliberate = |at: &usize| count > 1 || is_shared_expert(values.name(*at));
            if count < tensors.len() {
                odd.extend(zeros().filter(weights));
            } else {
                habit.extend(zeros().filter(deliberate));
            }
        }
        Zeros { odd, habit }
    }
}

struct Values<'a> {
    model: &'a Checkpoint,
    found: &'a [TensorStatistics],
    stacks: &'a [LayerStack],
}

impl Values<'_> {
    fn name(&self, at: usize) -> &str {
        &self.model.tensors()[at].name
    }

    fn place(&self, at: usize) -> Place {
        Place::entry(self.model, &self.model.tensors()[at])
    }

    /// Rows and columns; `None` for a vector, even one with several dimensions.
    fn matrix(&self, at: usize) -> Option<(usize, usize)> {
        let shape = &self.model.tensors()[at].shape;
        let wide = shape.iter().filter(|&&dim| dim > 1).count();
        let rows = *shape.first()?;
        (wide > 1 && rows > 0).then(|| (rows, shape[1..].iter().product()))
    }

    /// Whether the tensor is a matrix other than a bias or a norm, which may be initialized with zeros or ones.
    fn is_weight(&self, at: usize) -> bool {
        let name = self.name(at);
        let last = name.rsplit('.').next().unwrap_or(name);
        let starts_so = ZERO_AT_FIRST.contains(&last) || last.contains("bias") || is_norm(name);
        self.matrix(at).is_some() && !starts_so && !self.is_beside_weight(at)
    }

    /// Whether the tensor is a buffer that its module keeps beside a weight of the same shape, such as the integers of a
    /// weight: it is computed, and may be zeros until then.
    fn is_beside_weight(&self, at: usize) -> bool {
        let Some((module, last)) = self.name(at).rsplit_once('.') else {
            return false;
        };
        let weight = self.model.find(&format!("{module}.weight"));
        let same_shape = |weight: usize| {
            let tensors = self.model.tensors();
            tensors[weight].shape == tensors[at].shape
        };
        last.starts_with("weight_") && weight.is_some_and(same_shape)
    }

    /// Whether the tensor is a bias, a gate or the like, of so few elements that they may be zeros by chance: these begin
    /// with zeros, and methods that drop updates may drop all of theirs.
    fn is_few(&self, at: usize) -> bool {
        let few = self.found[at].elements < HOLE_ELEMENTS;
        few && self.matrix(at).is_none() && !self.name(at).ends_with(".weight")
    }

    fn is_router(&self, at: usize) -> bool {
        architecture::is_router(self.name(at))
    }

    /// The rows of a matrix as bytes.
    fn rows(&self, at: usize) -> impl Iterator<Item = &[u8]> {
        let rows = self.matrix(at).and_then(|(rows, _)| {
            let bytes = self.model.stored(at)?;
            let len = bytes.len() / rows;
            (len > 0).then(|| bytes.chunks_exact(len))
        });
        rows.into_iter().flatten()
    }

    /// The findings about one tensor by itself.
    fn tensor(&self, at: usize, zeros: &Zeros) -> Vec<Finding> {
        let (entry, found) = (&self.model.tensors()[at], &self.found[at]);
        if FloatType::from_dtype(entry.dtype).is_none()
            || found.elements == 0
            || is_derived_buffer(&entry.name)
        {
            return Vec::new();
        }
        let mut findings = Vec::new();
        let finding = |check, expected: &str, text: String| {
            Finding::new(check, self.place(at), expected, text)
        };
        let of = |count: u64| format!("{count} of {} elements", found.elements);
        if found.nan > 0 {
            findings.push(finding(&NAN, "numbers", of(found.nan)));
        }
        if found.infinite > 0 {
            let infinite = finding(&INFINITE, "finite values", of(found.infinite));
            findings.push(match may_be_infinite(&entry.name) {
                // There is no bound, or nothing was seen yet.
                true => infinite.with_severity(Severity::Note),
                false => infinite,
            });
        }
        let numbers = found.elements - found.zeros;
        if found.zeros == found.elements {
            let text = "zeros".to_owned();
            if self.is_router(at) {
                findings.push(finding(&ZERO_ROUTER, "a row for each expert", text));
            } else if self.is_weight(at) || zeros.odd.contains(&at) {
                let zero = finding(&ALL_ZERO, "weights", text);
                findings.push(match zeros.habit.contains(&at) || self.is_few(at) {
                    true => zero.with_severity(Severity::Note),
                    false => zero,
                });
            }
            return findings;
        }
        if found.subnormal as f64 > FLOOD * numbers as f64 {
            let subnormal = finding(&SUBNORMAL, "normal numbers", of(found.subnormal));
            // Some biases are initialized as noise of about 1e-6, which is subnormal in float16.
            findings.push(match entry.name.ends_with("bias") {
                true => subnormal.with_severity(Severity::Note),
                false => subnormal,
            });
        } else if self.is_weight(at) && self.is_constant(at) {
            let text = format!("{:e} everywhere", found.largest);
            findings.push(finding(&CONSTANT, "weights", text));
        }
        if is_input_embedding(&entry.name) || is_output_head(&entry.name) {
            let rows = self.rows(at).count();
            let size = (entry.dtype.bitsize() / 8).max(1);
            let dead = self.rows(at).filter(|row| all_zero(row, size)).count();
            if dead > 0 {
                let text = format!("{dead} of {rows} rows are zeros");
                let dead_rows = finding(&DEAD_ROWS, "a vector for each token", text);
                findings.push(match 2 * dead > rows {
                    true => dead_rows.with_severity(Severity::Warning),
                    false => dead_rows,
                });
            }
        }
        if self.is_router(at) {
            findings.extend(self.router_rows(at));
        }
        findings
    }

    fn is_constant(&self, at: usize) -> bool {
        let size = self.model.tensors()[at].dtype.bitsize() / 8;
        let bytes = self.model.stored(at).unwrap_or_default();
        // Compared with itself shifted by one element; the comparison ends at the first difference.
        size > 0 && bytes.len() > size && bytes[size..] == bytes[..bytes.len() - size]
    }

    fn router_rows(&self, at: usize) -> Option<Finding> {
        if self.matrix(at)?.0 > MOST_EXPERTS {
            return None;
        }
        let size = (self.model.tensors()[at].dtype.bitsize() / 8).max(1);
        let mut first: HashMap<&[u8], usize> = HashMap::new();
        for (row, bytes) in self.rows(at).enumerate() {
            if all_zero(bytes, size) {
                let found = format!("row {row} is zeros");
                let place = self.place(at);
                return Some(Finding::new(
                    &ZERO_ROUTER_ROW,
                    place,
                    "a row for each expert",
                    found,
                ));
            }
            if let Some(other) = first.insert(bytes, row) {
                let found = format!("rows {other} and {row} are equal");
                return Some(Finding::new(
                    &ROUTER_ROWS,
                    self.place(at),
                    "a row for each expert",
                    found,
                ));
            }
        }
        None
    }

    /// The runs of zeros in matrices that are neither a habit of the model nor a matter of chance.
    fn holes(&self, roles: &Roles<'_>) -> Vec<Finding> {
        let mut holes: BTreeMap<usize, Severity> = (0..self.found.len())
            .filter(|&at| self.is_hole(at))
            .map(|at| (at, self.severity_of_hole(at)))
            .collect();
        for tensors in roles.values() {
            let count = tensors.iter().filter(|(_, at)| holes.contains_key(at));
            // Most layers have one: they are padded or pruned so.
            if tensors.len() > 1 && 2 * count.count() > tensors.len() {
                for (_, at) in tensors {
                    holes
                        .entry(*at)
                        .and_modify(|severity| *severity = Severity::Note);
                }
            }
        }
        let finding = |(at, severity): (usize, Severity)| {
            let run = &self.found[at].zero_run;
            let found = format!(
                "{} zeros in a row, from element {} on, of {} elements",
                run.end - run.start,
                run.start,
                self.found[at].elements
            );
            Finding::new(&HOLE, self.place(at), "weights", found).with_severity(severity)
        };
        holes.into_iter().map(finding).collect()
    }

    fn is_hole(&self, at: usize) -> bool {
        let (entry, found) = (&self.model.tensors()[at], &self.found[at]);
        let Some((_, columns)) = self.matrix(at) else {
            return false;
        };
        let columns = columns.max(1) as u64;
        let run = &found.zero_run;
        let length = run.end - run.start;
        let expected_zeros = is_derived_buffer(&entry.name) || may_hold_zeros(&entry.name);
        // Experts and routers of zeros are findings of their own.
        let other = self.is_router(at) || fused(&entry.name, &entry.shape).is_some();
        if length == found.elements || expected_zeros || other || !self.is_weight(at) {
            return false;
        }
        let whole_rows = (run.end / columns).saturating_sub(run.start.div_ceil(columns));
        let bytes = length * (entry.dtype.bitsize() / 8) as u64;
        let long = bytes >= HOLE_BYTES || (whole_rows >= HOLE_ROWS && length >= HOLE_ELEMENTS);
        // Rows of tokens that were never trained are whole.
        let tokens = is_input_embedding(&entry.name) || is_output_head(&entry.name);
        let of_rows = run.start % columns == 0 && run.end % columns == 0;
        let zeros = (found.zeros - length.min(found.zeros)) as f64;
        let share = zeros / (found.elements - length).max(1) as f64;
        let by_chance = match share > 0.0 {
            true => (found.elements as f64).ln() / -share.min(1.0).ln(),
            false => 0.0,
        };
        long && !(tokens && of_rows) && length as f64 > HOLE_OVER_CHANCE * by_chance
    }

    /// Filters of a convolution die one by one, and rows of zeros may be pruned where no other layer tells.
    fn severity_of_hole(&self, at: usize) -> Severity {
        let entry = &self.model.tensors()[at];
        let index = StackIndex::new(self.stacks);
        match entry.shape.len() == 2 && index.split(&entry.name).is_some() {
            true => Severity::Error,
            false => Severity::Warning,
        }
    }

    /// Values that no weight has, and those far beyond the same tensor's in other layers.
    fn outliers(&self, roles: &Roles<'_>) -> BTreeMap<usize, Finding> {
        let mut outliers = BTreeMap::new();
        // A tensor that is too large as a whole is out of line with other layers.
        let alone = |at: usize| {
            let found = &self.found[at];
            // One value alone is above by the root of the number of elements.
            let least = OUTLIER_OVER_RMS.min((found.elements as f64).sqrt() / 2.0);
            found.largest > 0.0 && found.largest >= least * found.rms()
        };
        for at in (0..self.found.len()).filter(|&at| self.is_weight(at) && alone(at)) {
            let entry = &self.model.tensors()[at];
            let Some(format) = FloatType::from_dtype(entry.dtype) else {
                continue;
            };
            let buffer = is_derived_buffer(&entry.name) || may_hold_zeros(&entry.name);
            if self.found[at].largest >= format.absurd() && !buffer {
                let expected = format!("magnitudes below {:e}", format.absurd());
                outliers.insert(at, self.outlier(at, expected));
            }
        }
        for tensors in roles
            .values()
            .filter(|tensors| tensors.len() >= LEAST_LAYERS)
        {
            let usual = median(tensors.iter().map(|&(_, at)| self.found[at].largest));
            for &(_, at) in tensors {
                let beyond = self.found[at].largest / usual;
                let matrix = self.is_weight(at);
                let surely = if matrix {
                    OUTLIER_SURELY
                } else {
                    OUTLIER_OF_VECTOR
                };
                let severity = match () {
                    () if usual == 0.0 || !alone(at) || is_derived_buffer(self.name(at)) => {
                        continue;
                    }
                    () if beyond > surely => Severity::Error,
                    () if matrix && beyond > OUTLIER_PERHAPS => Severity::Warning,
                    () => continue,
                };
                let expected = format!("magnitudes up to about {usual:.1e}, as in other layers");
                let finding = || self.outlier(at, expected).with_severity(severity);
                outliers.entry(at).or_insert_with(finding);
            }
        }
        outliers
    }

    fn outlier(&self, at: usize, expected: String) -> Finding {
        let found = format!("{:.1e}", self.found[at].largest);
        Finding::new(&OUTLIER, self.place(at), expected, found)
    }

    /// The tensors of a role whose size is far from the others'. Those with outliers have been reported.
    fn role(
        &self,
        tensors: &[(usize, usize)],
        outliers: &BTreeMap<usize, Finding>,
    ) -> Vec<Finding> {
        let sized: Vec<(usize, f64)> = tensors
            .iter()
            .map(|&(_, at)| (at, self.found[at].rms()))
            .filter(|&(at, rms)| rms > 0.0 && !is_derived_buffer(self.name(at)))
            .filter(|&(at, _)| self.is_weight(at) || is_norm(self.name(at)))
            .map(|(at, rms)| (at, rms.log2()))
            .collect();
        // Each expert has roles of its own, over many layers. A role in only a few layers has nothing to compare with.
        if sized.len() < LEAST_LAYERS {
            return Vec::new();
        }
        let middle = median(sized.iter().map(|(_, size)| *size));
        let spread = median(sized.iter().map(|(_, size)| (size - middle).abs()));
        let far = OUT_OF_LINE_BITS.max(DEVIATIONS * spread);
        sized
            .iter()
            .filter(|(at, size)| (size - middle).abs() > far && !outliers.contains_key(at))
            .map(|&(at, size)| {
                let norm = is_norm(self.name(at));
                let check = match norm && size < middle {
                    true => &NORM_COLLAPSED,
                    false => &OUT_OF_LINE,
                };
                let expected = format!("an RMS of about {:.1e}, as in other layers", middle.exp2());
                Finding::new(
                    check,
                    self.place(at),
                    expected,
                    format!("{:.1e}", size.exp2()),
                )
            })
            .collect()
    }

    /// Digests of runs of tensors with the same `key`, each with that key. In name order, the tensors of a layer or
    /// expert are contiguous, so a single digest is open at a time.
    fn digests<'s, K: PartialEq>(
        &'s self,
        order: &[usize],
        key: impl Fn(&'s str) -> Option<(K, &'s str)>,
    ) -> Vec<(K, blake3::Hash)> {
        let mut digests = Vec::new();
        let mut open: Option<(K, blake3::Hasher, bool)> = None;
        let mut close = |run: Option<(K, blake3::Hasher, bool)>| {
            if let Some((key, hasher, true)) = run {
                digests.push((key, hasher.finalize()));
            }
        };
        for &at in order {
            let (Some((key, role)), Some(digest)) = (key(self.name(at)), self.found[at].values)
            else {
                continue;
            };
            if open.as_ref().is_none_or(|(before, ..)| *before != key) {
                close(open.take());
            }
            let (_, hasher, matrices) =
                open.get_or_insert_with(|| (key, blake3::Hasher::new(), false));
            hasher.update(role.as_bytes()).update(digest.as_bytes());
            *matrices |= self.matrix(at).is_some();
        }
        close(open);
        digests
    }

    /// Layers without a matrix are left out.
    fn identical_layers(&self, order: &[usize]) -> Vec<Finding> {
        let index = StackIndex::new(self.stacks);
        let layers = self.digests(order, |name| {
            let (stack, layer, role) = index.split(name)?;
            Some(((stack.prefix.as_str(), layer), role))
        });
        let equal = equal(layers).into_iter();
        let finding = equal.map(|(prefix, layer, other)| {
            let place = Place::tensor(format!("{prefix}{layer}"), None);
            let found = format!("equal to layer {other}");
            Finding::new(&IDENTICAL_LAYERS, place, "a layer of its own", found)
        });
        finding.collect()
    }

    fn in_name_order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.found.len()).collect();
        order.sort_by_key(|&at| self.name(at));
        order
    }

    fn identical_experts(&self, order: &[usize]) -> Vec<Finding> {
        let experts = self.digests(order, |name| {
            let (before, rest) = name.split_once("experts.")?;
            let (number, role) = rest.split_once('.')?;
            Some(((before, module_index(number)?), role))
        });
        let equal = equal(experts).into_iter();
        let finding = equal.map(|(before, number, other)| {
            let place = Place::tensor(format!("{before}experts.{number}"), None);
            let found = format!("equal to expert {other}");
            Finding::new(&IDENTICAL_EXPERTS, place, "an expert of its own", found)
        });
        finding.collect()
    }

    /// Experts stored as slices of a layer's tensors: reports those that are zeros or equal to another.
    fn fused_experts(&self, order: &[usize]) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut layers: BTreeMap<(&str, usize), Vec<usize>> = BTreeMap::new();
        for &at in order {
            if let Some(key) = fused(self.name(at), &self.model.tensors()[at].shape) {
                layers.entry(key).or_default().push(at);
            }
        }
        for ((_, count), tensors) in layers {
            let slice = |at: usize, expert: usize| {
                let bytes = self.model.stored(at).unwrap_or_default();
                let len = bytes.len() / count;
                &bytes[expert * len..][..len]
            };
            for &at in &tensors {
                let zeros = self.found[at].zeros;
                let size = (self.model.tensors()[at].dtype.bitsize() / 8).max(1);
                let of_one = self.found[at].elements / count as u64;
                // With fewer zeros than one expert has elements, no expert can consist of zeros.
                if zeros < of_one || zeros == self.found[at].elements {
                    continue;
                }
                let zero = |&expert: &usize| {
                    let bytes = slice(at, expert);
                    !bytes.is_empty() && all_zero(bytes, size)
                };
                if let Some(expert) = (0..count).find(zero) {
                    let found = format!("expert {expert} of {count} is zeros");
                    findings.push(Finding::new(&ALL_ZERO, self.place(at), "weights", found));
                }
            }
            // Different experts differ in their first bytes, so these are compared first.
            let begin = |expert: usize| -> Vec<&[u8]> {
                let begins = tensors.iter().map(|&at| {
                    let bytes = slice(at, expert);
                    &bytes[..bytes.len().min(BEGINNING)]
                });
                begins.collect()
            };
            let mut first: HashMap<Vec<&[u8]>, usize> = HashMap::new();
            for expert in 0..count {
                let Some(other) = first.insert(begin(expert), expert) else {
                    continue;
                };
                let same = |&at: &usize| slice(at, expert) == slice(at, other);
                if tensors.iter().all(same)
                    && !tensors.iter().all(|&at| slice(at, expert).is_empty())
                {
                    let found = format!("expert {expert} is equal to expert {other}");
                    let place = self.place(tensors[0]);
                    findings.push(Finding::new(
                        &IDENTICAL_EXPERTS,
                        place,
                        "an expert of its own",
                        found,
                    ));
                    break;
                }
            }
        }
        findings
    }

    fn show(&self, exponents: &[u64], report: &mut Report) {
        let sizes = self.found.iter().enumerate().map(|(at, found)| {
            let size = (found.rms() > 0.0).then(|| found.rms().log2());
            (self.name(at), size)
        });
        report
            .heat_maps
            .extend(self.stacks.first().and_then(|stack| {
                let title = "Size of the weights by layer and role";
                HeatMap::new(title, "log2 of the RMS", stack, sizes)
            }));
        let counted: Vec<(f64, f64, u64)> = exponents
            .iter()
            .enumerate()
            .map(|(bar, &count)| {
                let exponent = exponent_of(bar);
                (f64::from(exponent), f64::from(exponent + 1), count)
            })
            .skip_while(|(.., count)| *count == 0)
            .collect();
        let end = counted
            .iter()
            .rposition(|(.., count)| *count > 0)
            .map_or(0, |last| last + 1);
        if end > 0 {
            report.histograms.push(Histogram {
                title: "Magnitudes of a sample of the elements".to_owned(),
                unit: "log2 of the magnitude".to_owned(),
                bars: counted[..end].to_vec(),
            });
        }
        let tensors = (self.model.tensors().iter().zip(self.found)).map(|(tensor, found)| {
            json!({
                "name": tensor.name,
                "dtype": format!("{:?}", tensor.dtype),
                "shape": tensor.shape,
                "rms": found.rms(),
                "largest": found.largest,
                "zeros": found.zeros,
                "nan": found.nan,
                "infinite": found.infinite,
                "subnormal": found.subnormal,
                "blake3": found.digest.map(|digest| digest.to_string()),
            })
        });
        report.detail(tensors);
    }
}

/// Numbers whose digest equals that of an earlier number under the same name: the name, the number, the earlier number.
fn equal(mut digests: Vec<((&str, usize), blake3::Hash)>) -> Vec<(&str, usize, usize)> {
    digests.sort_unstable_by_key(|(key, _)| *key);
    let mut last: HashMap<(&str, blake3::Hash), usize> = HashMap::new();
    let found = digests.into_iter().filter_map(|((name, number), digest)| {
        let other = last.insert((name, digest), number)?;
        Some((name, number, other))
    });
    found.collect()
}

/// For a tensor that holds a matrix of each expert: the part of the name before the experts, and the number of experts.
pub(super) fn fused<'n>(name: &'n str, shape: &[usize]) -> Option<(&'n str, usize)> {
    let &[count, _, _] = shape else {
        return None;
    };
    if !(2..=MOST_EXPERTS).contains(&count) {
        return None;
    }
    let granite = ["input_linear.weight", "output_linear.weight"];
    let before = match name.split_once("experts.") {
        Some((_, rest)) if rest.starts_with(|c: char| c.is_ascii_digit()) => return None,
        Some((before, _)) => before,
        None => granite.iter().find_map(|end| name.strip_suffix(end))?,
    };
    Some((before, count))
}

/// Whether a tensor belongs to a norm by its name.
pub(super) fn is_norm(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let module = name.rsplit_once('.').map_or("", |(module, _)| module);
    let last = module.rsplit('.').next().unwrap_or(module);
    last.contains("norm") || last.starts_with("ln")
}

/// The median of at least one number.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
