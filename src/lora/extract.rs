//! The way from two models to an adapter: what happens to each tensor, then one after the other.

use std::path::PathBuf;

use architecture::{WeightOrder, is_input_embedding};
use checkpoint::{Reclaim, TensorEntry};
use engine::{EngineError, Observer};
use errors::{About, Refusal};
use matrix::MatrixError;
use numeric::{BLOCK, Elements, FloatType, NoMemory, filled};
use plan::{licence_notes, licences_of};
use rayon::ThreadPool;
use run::destination::{Destination, Layout};
use run::{AdapterFiles, AdapterOrigin, RunError};

use super::difference::{Pair, Sums};
use super::error::ExtractError;
use super::factors::{self, Factors};
use super::files::{Options, Weights};
use super::modules::{Selection, Tensor, Treatment, select};
use super::patterns::module_of;
use super::report::{Fit, LeftOut, Made, Report};
use super::request::{Rank, Request};

/// What transformers calls the head of decoders, where it is the embedding.
const HEAD: &str = "lm_head.weight";

/// An adapter before it is computed.
pub struct Extraction<'a> {
    request: Request<'a>,
    selection: Selection,
}

impl<'a> Extraction<'a> {
    /// Decides from the headers what happens to each tensor.
    ///
    /// # Errors
    /// If the models do not fit together, or a pattern matches nothing.
    pub fn plan(request: Request<'a>) -> Result<Self, Refusal> {
        for model in [request.base, request.tuned] {
            if !model.parts().is_empty() {
                let why = format!("{} is a model of several parts", model.label());
                let why = Refusal::new(why).about(About::default().model(model.label()));
                return Err(why.with_hint("name the folder of one of its parts"));
            }
        }
        let selection = select(&request)?;
        Ok(Self { request, selection })
    }

    /// Bytes that are held at the most for one matrix, the largest.
    pub fn memory(&self) -> u64 {
        let adapted = self.adapted();
        let bytes = adapted.map(|[rows, columns]| factors::bytes(self.request.rank, rows, columns));
        bytes.max().unwrap_or(0)
    }

    /// The shapes of the adapted weights.
    fn adapted(&self) -> impl Iterator<Item = [usize; 2]> {
        let tensors = self.selection.tensors.iter();
        tensors.filter_map(|tensor| match tensor.treatment {
            Treatment::Adapt(_) => self.entry(tensor).shape.as_slice().try_into().ok(),
            _ => None,
        })
    }

    fn entry(&self, tensor: &Tensor) -> &'a TensorEntry {
        &self.request.base.tensors()[tensor.base]
    }

    /// Bytes that are written to the disk, with those that are kept meanwhile, as far as they are known: ranks that
    /// follow from the values are not.
    fn bytes_written(&self) -> u64 {
        let rank = self.request.rank;
        let factors = self.adapted().map(|[rows, columns]| match rank {
            Rank::Fixed(_) => {
                let elements = (rows as u64).saturating_add(columns as u64);
                let most = factors::most(rank, rows, columns) as u64;
                elements.saturating_mul(most * self.request.format.size() as u64)
            }
            Rank::Energy { .. } => 0,
        });
        let saved = self.selection.tensors.iter();
        let saved = saved.filter(|tensor| tensor.treatment == Treatment::Save);
        let saved = saved.map(|tensor| self.request.tuned.tensors()[tensor.tuned].len);
        factors
            .chain(saved)
            .fold(0, u64::saturating_add)
            .saturating_mul(2)
    }

    /// Notes on the licences of the two models.
    pub fn notes(&self) -> Vec<String> {
        licence_notes(&licences_of(&[self.request.base, self.request.tuned]))
    }

    /// Computes the adapter and writes it, with a lock and a card that say what it is made from.
    ///
    /// # Errors
    /// If the models do not differ, hold NaN or infinity, or if something cannot be read, computed or written. The
    /// destination is unchanged.
    pub fn run(
        &self,
        origin: AdapterOrigin<'_>,
        destination: &dyn Destination,
        observer: &dyn Observer,
    ) -> Result<Made, ExtractError> {
        let request = &self.request;
        let threads = request.threads;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|source| EngineError::Threads { threads, source })?;
        let staged = destination.begin(&Layout {
            shards: &[],
            side_bytes: self.bytes_written(),
            reads: self.reads(),
        })?;
        let mut files = AdapterFiles::new(staged, observer);
        for model in [request.base, request.tuned] {
            let prepared = model.prepare(threads, &|| observer.cancelled());
            prepared.map_err(RunError::NotPrepared)?;
            model.read_ahead();
        }
        let mut work = Work {
            extraction: self,
            options: self.options(),
            pool,
            weights: Weights::new(&files)?,
            report: Report {
                left_out: self.selection.left_out.clone(),
                memory: self.memory(),
                ..Report::default()
            },
        };
        for tensor in &self.selection.tensors {
            if observer.cancelled() {
                return Err(RunError::Cancelled.into());
            }
            work.tensor(tensor)?;
            observer.advance(self.read(tensor));
        }
        let Work {
            options,
            weights,
            mut report,
            ..
        } = work;
        if report.fits.is_empty() {
            return Err(self.nothing(&report).into());
        }
        report.bytes = weights.finish(&mut files)?;
        report.rank = options.write(&mut files, &report.fits)?;
        let recorded = files.commit(origin, destination.path())?;
        Ok(Made { report, recorded })
    }

    /// What the adapter must not replace.
    fn reads(&self) -> Vec<PathBuf> {
        let models = [self.request.base, self.request.tuned];
        let files = models.iter().flat_map(|model| model.shards());
        let files = files.map(|shard| shard.path.clone());
        let folders = models.iter().flat_map(|model| model.location().paths());
        let others = self.request.also_reads.iter().cloned();
        files
            .chain(folders.map(ToOwned::to_owned))
            .chain(others)
            .collect()
    }

    /// Says that a tensor of both models is not needed again; returns how many bytes were read.
    fn read(&self, tensor: &Tensor) -> u64 {
        let places = [
            (self.request.base, tensor.base),
            (self.request.tuned, tensor.tuned),
        ];
        let read = places.map(|(model, at)| {
            let len = model.stored(at).map_or(0, |bytes| bytes.len() as u64);
            model.release(at, 0..len, Reclaim::Map);
            model.bytes_read(at)
        });
        read.iter().sum()
    }

    fn options(&self) -> Options<'_> {
        let saved = self.selection.tensors.iter();
        let saved = saved.filter(|tensor| tensor.treatment == Treatment::Save);
        let names: Vec<&str> = saved
            .map(|tensor| self.entry(tensor).name.as_str())
            .collect();
        let prefix = self.selection.prefix;
        let mut modules: Vec<String> = Vec::new();
        for name in &names {
            let module = format!("{prefix}{}", module_of(name));
            if !modules.contains(&module) {
                modules.push(module);
            }
        }
        let mut adapted =
            self.selection
                .tensors
                .iter()
                .filter_map(|tensor| match tensor.treatment {
                    Treatment::Adapt(order) => Some(order),
                    _ => None,
                });
        Options {
            base: self.request.base,
            base_name: self.request.base_name,
            saved: modules,
            ties: self.selection.is_tied && names.iter().any(|name| is_input_embedding(name)),
            fan_in_fan_out: adapted.all(|order| order == WeightOrder::InOut),
            prefix,
        }
    }

    /// That there is nothing that factors could hold.
    fn nothing(&self, report: &Report) -> Refusal {
        let tuned = self.request.tuned.label();
        let base = self.request.base.label();
        let others = report.left_out.len() + report.saved.len();
        match (others, self.adapted().next()) {
            (_, None) => Refusal::new(format!("{base} has no linear layer that would be adapted"))
                .with_hint("adapt more with --module, or exclude less"),
            (0, Some(_)) => Refusal::new(format!("{tuned} has the values of {base}: there is nothing to extract"))
                .with_hint("name the base first, then the fine-tune"),
            (_, Some(_)) => Refusal::new(format!(
                "no linear layer that would be adapted differs between {base} and {tuned}, and an adapter needs one"
            ))
            .with_hint("`weld diff BASE FINETUNE` shows what differs"),
        }
    }
}

/// An adapter while it is computed.
struct Work<'a> {
    extraction: &'a Extraction<'a>,
    options: Options<'a>,
    pool: ThreadPool,
    weights: Weights,
    report: Report,
}

impl Work<'_> {
    fn tensor(&mut self, tensor: &Tensor) -> Result<(), ExtractError> {
        let request = &self.extraction.request;
        let entry = self.extraction.entry(tensor);
        let elements =
            (request.base.elements(tensor.base)).zip(request.tuned.elements(tensor.tuned));
        let Some((base, tuned)) = elements else {
            return self.copied(tensor);
        };
        let pair = Pair { base, tuned };
        match tensor.treatment {
            Treatment::Adapt(order) => self.adapt(entry, order, &pair),
            Treatment::Save => {
                let sums = self.sums(entry, &pair)?;
                self.report.saved_change += sums.change;
                self.save(entry, tensor)
            }
            Treatment::Leave(why) => {
                let sums = self.sums(entry, &pair)?;
                if sums.change > 0.0 {
                    self.report.left_out.push(LeftOut {
                        tensor: entry.name.clone(),
                        why: why.to_owned(),
                        sums: Some((sums.change, sums.base)),
                    });
                }
                Ok(())
            }
        }
    }

    /// A tensor without values: of integers, or in a format that is not read.
    fn copied(&mut self, tensor: &Tensor) -> Result<(), ExtractError> {
        let request = &self.extraction.request;
        let entry = self.extraction.entry(tensor);
        if tensor.treatment == Treatment::Save {
            return self.save(entry, tensor);
        }
        if request.base.bytes(tensor.base) != request.tuned.bytes(tensor.tuned) {
            let why = "no floats".to_owned();
            self.report
                .left_out
                .push(LeftOut::unmeasured(&entry.name, why));
        }
        Ok(())
    }

    fn sums(&self, entry: &TensorEntry, pair: &Pair<'_>) -> Result<Sums, ExtractError> {
        let sums = self.pool.install(|| pair.sums(entry.elements()));
        let sums = sums.map_err(EngineError::from)?;
        self.check_finite(entry, sums)
    }

    fn check_finite(&self, entry: &TensorEntry, sums: Sums) -> Result<Sums, ExtractError> {
        let request = &self.extraction.request;
        let model = match sums.non_finite {
            [true, _] => request.base,
            [false, true] => request.tuned,
            [false, false] => return Ok(sums),
        };
        let why = format!(
            "`{}` of {} holds NaN or infinity",
            entry.name,
            model.label()
        );
        let about = About::default().tensor(&entry.name).model(model.label());
        let hint = format!(
            "leave it out with --exclude {}, if it is of no use",
            module_of(&entry.name)
        );
        match request.except.matches(module_of(&entry.name)) {
            true => Ok(sums),
            false => Err(Refusal::new(why).with_hint(hint).about(about).into()),
        }
    }

    fn adapt(
        &mut self,
        entry: &TensorEntry,
        order: WeightOrder,
        pair: &Pair<'_>,
    ) -> Result<(), ExtractError> {
        let request = &self.extraction.request;
        let (rows, columns) = (entry.shape[0], entry.shape[1]);
        let read = self.pool.install(|| pair.matrix(rows, columns));
        let (matrix, sums) = read.map_err(EngineError::from)?;
        self.check_finite(entry, sums)?;
        if sums.change == 0.0 {
            return Ok(());
        }
        let found = self.pool.install(|| {
            factors::factors(
                &matrix,
                sums.change,
                request.rank,
                &entry.name,
                request.format,
            )
        });
        let Factors {
            left,
            right,
            left_out,
        } = found.map_err(|error| failed(&entry.name, error))?;
        drop(matrix);
        let (a, b) = match order {
            WeightOrder::OutIn => (right, left),
            WeightOrder::InOut => (left, right),
        };
        let module = self.options.named(module_of(&entry.name));
        let rank = a.columns();
        let a = a.transposed().map_err(EngineError::from)?;
        self.weights.factor(&module, "lora_A", a, request.format)?;
        self.weights.factor(&module, "lora_B", b, request.format)?;
        self.report.fits.push(Fit {
            tensor: entry.name.clone(),
            module,
            rank,
            base: sums.base,
            change: sums.change,
            left_out,
        });
        Ok(())
    }

    /// Writes a tensor of the fine-tune as it is; an embedding that is the head too, under both names, as PEFT reads it.
    fn save(&mut self, entry: &TensorEntry, tensor: &Tensor) -> Result<(), ExtractError> {
        self.report.saved.push(entry.name.clone());
        self.whole(&self.options.named(&entry.name), tensor)?;
        match self.options.ties && is_input_embedding(&entry.name) {
            true => self.whole(HEAD, tensor),
            false => Ok(()),
        }
    }

    fn whole(&mut self, name: &str, tensor: &Tensor) -> Result<(), ExtractError> {
        let tuned = self.extraction.request.tuned;
        let entry = &tuned.tensors()[tensor.tuned];
        let key = format!("base_model.model.{name}");
        self.weights.begin(key, entry.dtype, entry.shape.clone());
        if let Some(bytes) = tuned.bytes(tensor.tuned) {
            return Ok(self.weights.push(bytes)?);
        }
        let format = FloatType::from_dtype(entry.dtype);
        let Some((values, format)) = tuned.elements(tensor.tuned).zip(format) else {
            let why = format!(
                "`{}` of {} cannot be saved: its values are not stored",
                entry.name,
                tuned.label()
            );
            return Err(Refusal::new(why).with_hint("save fewer modules").into());
        };
        self.encode(values.as_ref(), format, entry.elements())
    }

    fn encode(
        &mut self,
        values: &dyn Elements,
        format: FloatType,
        elements: u64,
    ) -> Result<(), ExtractError> {
        let no_memory = |error: NoMemory| EngineError::from(error);
        let mut block = filled(BLOCK, 0.0f64).map_err(no_memory)?;
        let mut bytes = vec![0; BLOCK * format.size()];
        for first in (0..elements).step_by(BLOCK) {
            let count = (elements - first).min(BLOCK as u64) as usize;
            let (block, bytes) = (&mut block[..count], &mut bytes[..count * format.size()]);
            values.fill(first, block).map_err(no_memory)?;
            format.encode(block, true, bytes);
            self.weights.push(bytes)?;
        }
        Ok(())
    }
}

pub(super) fn failed(tensor: &str, error: MatrixError) -> ExtractError {
    match error {
        MatrixError::Memory(error) => EngineError::from(error).into(),
        error => {
            let why = format!("the change of `{tensor}` has no singular values: {error}");
            let hint = format!("leave it out with --exclude {}", module_of(tensor));
            let about = About::default().tensor(tensor);
            Refusal::new(why).with_hint(hint).about(about).into()
        }
    }
}
