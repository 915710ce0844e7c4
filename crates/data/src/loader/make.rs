//! One work item into one batch; what every loader thread runs.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use phalanx_host::rng::Key;
use phalanx_host::{DType, Pool};

use super::bad::is_of_record;
use super::stats::{Counters, Spent};
use super::{BadRecords, BadSample, Loaded, Mode, substitutes};
use crate::transform::check_fields;
use crate::{
    Batch, Codec, Error, Field, FieldSpec, LoaderConfig, Mixing, Order, OrderKind, Output, Pipeline, Pixels,
    Record, RecordField, Result, Role, Signal, Source, WorkItem,
};

/// Separates the transforms' random streams from every other one of the same seed.
const STREAM: u64 = 0x6175_676D_656E;

/// Makes batches; every thread has its own.
pub(super) struct Maker {
    source: Arc<dyn Source>,
    mode: Mode,
    pool: Pool,
    columns: Vec<Filler>,
    /// The image that is read straight into the batch, where that is possible.
    straight: Option<usize>,
    mixing: Option<Mixing>,
    record: Record,
    kind: OrderKind,
    order: Option<(u64, Order)>,
    policy: BadRecords,
    counters: Arc<Counters>,
    spent: Spent,
    /// When the sample in work was begun.
    begun: Instant,
    /// The sample in work, for the message should it panic.
    current: Option<u64>,
}

/// What becomes of a work item; the parts of [`Loaded`].
struct Made {
    ids: Vec<u64>,
    batch: Batch,
    bad: Vec<BadSample>,
}

/// How one field of the schema gets into a batch.
struct Filler {
    spec: FieldSpec,
    dtype: DType,
    /// The dimensions of one sample as it is delivered; of varying size where `padded`.
    shape: Vec<usize>,
    padded: bool,
    /// For images.
    pipeline: Option<Pipeline>,
    /// For signals.
    signal: Option<Signal>,
    /// For samples whose size varies: collected here until the longest is known.
    collected: Vec<u8>,
    lengths: Vec<u32>,
}

impl Maker {
    pub(super) fn new(
        source: Arc<dyn Source>,
        config: &LoaderConfig,
        mode: Mode,
        pixels: Pixels,
        pool: Pool,
        counters: Arc<Counters>,
    ) -> Result<Self> {
        config.check()?;
        let fields = &source.schema().fields;
        check_fields(config, fields)?;
        let training = matches!(mode, Mode::Train { .. });
        let columns: Vec<_> =
            fields.iter().map(|spec| Filler::new(config, spec, training, pixels)).collect::<Result<_>>()?;
        let image = columns.iter().find_map(|c| c.pipeline.as_ref()).map(Pipeline::output_shape);
        let mixing = match image {
            Some([h, w, _]) if training => Mixing::of(&config.transforms, [h, w])?,
            _ => None,
        };
        let straight = columns.iter().position(|c| c.pipeline.as_ref().is_some_and(Pipeline::only_copies));
        Ok(Maker {
            source,
            mode,
            pool,
            columns,
            straight,
            mixing,
            record: Record::default(),
            kind: config.order,
            order: None,
            policy: config.bad_records,
            counters,
            spent: Spent::default(),
            begun: Instant::now(),
            current: None,
        })
    }

    /// Makes the batch of `item`; a panic on the way is an error like any other. Gives up early, with
    /// `None`, once `stop` is set.
    pub(super) fn make(&mut self, item: WorkItem, stop: &AtomicBool) -> Option<Result<Loaded>> {
        self.current = None;
        let result = catch_unwind(AssertUnwindSafe(|| self.batch(&item, stop)))
            .unwrap_or_else(|payload| Err(Error::Panic { message: message(&*payload) }));
        self.counters.add(&std::mem::take(&mut self.spent));
        match result {
            Ok(made) => made.map(|made| Ok(Loaded { item, ids: made.ids, batch: made.batch, bad: made.bad })),
            Err(e) => Some(Err(match self.current {
                Some(sample) => self.name(sample, e),
                None => e,
            })),
        }
    }

    /// An error with the sample that it is of.
    fn name(&self, sample: u64, e: Error) -> Error {
        match e {
            // These name it themselves.
            Error::NoSample { .. } | Error::Label { .. } => e,
            e => Error::Sample { set: self.source.name().to_owned(), sample, cause: Box::new(e) },
        }
    }

    fn batch(&mut self, item: &WorkItem, stop: &AtomicBool) -> Result<Option<Made>> {
        let ids = self.ids(item);
        let mut fields = Vec::with_capacity(self.columns.len());
        for c in &mut self.columns {
            c.collected.clear();
            c.lengths.clear();
            let rows = if c.padded { 0 } else { ids.len() };
            let shape: Vec<usize> = std::iter::once(rows).chain(c.shape.iter().copied()).collect();
            let mut field = Field::new(&self.pool, c.spec.name.clone(), c.dtype, &shape)?;
            if let Some(pipeline) = &c.pipeline {
                field.normalise = pipeline.normalise().cloned();
                field.crops = pipeline.crops(&self.pool, rows)?;
            }
            fields.push(field);
        }
        let (mut bad, mut rows) = (Vec::new(), Vec::with_capacity(ids.len()));
        self.begun = Instant::now();
        for &id in &ids {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let key = match self.mode {
                Mode::Train { seed } => Some(Key::new(seed).derive(STREAM, item.epoch).derive(id, 0)),
                Mode::Eval => None,
            };
            let row = rows.len();
            match self.sample(id, key, &mut fields, row) {
                Err(e) if self.policy != BadRecords::Fail && is_of_record(&e) => {
                    let reason = self.name(id, e).to_string();
                    let substitute = self.make_up_for(id, item.epoch, key, &mut fields, row, &reason)?;
                    rows.extend(substitute.map(|_| id));
                    bad.push(BadSample { id, substitute, reason });
                }
                done => {
                    done?;
                    rows.push(id);
                }
            }
        }
        self.current = None;
        for (c, field) in self.columns.iter().zip(&mut fields) {
            match c.padded {
                true => *field = c.pad(&self.pool)?,
                // Nothing of a sample that counts nothing gets into the statistics of norms, or into others by mixing.
                false => field.truncate(rows.len()),
            }
        }
        let mut batch = Batch::new(fields, rows)?;
        if let (Some(mixing), Mode::Train { seed }) = (&self.mixing, self.mode) {
            batch.mix = Some(mixing.plan(seed, item.epoch, item.step, item.shard, batch.len()));
        }
        Ok(Some(Made { ids, batch, bad }))
    }

    /// Reads a sample and puts it into a row. A panic of a decoder is an error like any other.
    fn sample(&mut self, id: u64, key: Option<Key>, fields: &mut [Field], row: usize) -> Result<()> {
        self.current = Some(id);
        let result = catch_unwind(AssertUnwindSafe(|| self.try_sample(id, key, fields, row)))
            .unwrap_or_else(|payload| Err(Error::Panic { message: message(&*payload) }));
        let now = Instant::now();
        self.spent.make += now - std::mem::replace(&mut self.begun, now);
        self.spent.samples += 1;
        result
    }

    fn try_sample(&mut self, id: u64, key: Option<Key>, fields: &mut [Field], row: usize) -> Result<()> {
        let straight = self.read_straight(id, fields, row);
        let read = match straight {
            Ok(None) => self.source.read(id, &mut self.record),
            _ => Ok(()),
        };
        let now = Instant::now();
        self.spent.read += now - std::mem::replace(&mut self.begun, now);
        let straight = straight?;
        read?;
        let of = |(i, f): (usize, &RecordField)| if straight == Some(i) { 0 } else { f.bytes.len() as u64 };
        self.spent.bytes += self.record.fields.iter().enumerate().map(of).sum::<u64>();
        self.spent.bytes += straight.map_or(0, |i| self.columns[i].shape.iter().product::<usize>() as u64);
        if self.record.fields.len() != self.columns.len() {
            let problem = format!(
                "the record has {} fields, the schema {}",
                self.record.fields.len(),
                self.columns.len()
            );
            return Err(Error::field("record", problem));
        }
        let columns = self.columns.iter_mut().zip(&mut self.record.fields).zip(&mut *fields).enumerate();
        for (i, ((c, from), field)) in columns {
            if straight != Some(i) {
                c.put(from, field, row, key)?;
            }
            let place = c.pipeline.as_ref().and_then(|p| p.place(key));
            if let (Some(place), Some(crops)) = (place, &mut field.crops) {
                crops.places_mut()[row] = place;
            }
        }
        self.check_label(id, fields, row)
    }

    /// Reads the image of a sample into its row and the rest into the record, where that is possible; returns which
    /// field is done then.
    fn read_straight(&mut self, id: u64, fields: &mut [Field], row: usize) -> Result<Option<usize>> {
        let Some(i) = self.straight else { return Ok(None) };
        let size = self.columns[i].shape.iter().product::<usize>();
        let into = &mut fields[i].bytes.bytes_mut()[row * size..][..size];
        Ok(self.source.read_into(id, i, &mut self.record, into)?.then_some(i))
    }

    /// Fills the row of a bad sample with another, which it returns, or leaves it to the next sample.
    fn make_up_for(
        &mut self,
        id: u64,
        epoch: u64,
        key: Option<Key>,
        fields: &mut [Field],
        row: usize,
        reason: &str,
    ) -> Result<Option<u64>> {
        self.columns.iter_mut().for_each(|c| c.take_back(row));
        let seed = match (self.mode, self.policy) {
            (Mode::Train { seed }, BadRecords::Substitute) => seed,
            _ => return Ok(None),
        };
        for other in substitutes(seed, epoch, id, self.source.len()) {
            match self.sample(other, key, fields, row) {
                Err(e) if is_of_record(&e) => self.columns.iter_mut().for_each(|c| c.take_back(row)),
                done => return done.map(|()| Some(other)),
            }
        }
        self.current = Some(id);
        Err(Error::field("record", format!("there is no other that could take its place: {reason}")))
    }

    /// The samples at the item's positions: shuffled for training, as they come for evaluation.
    fn ids(&mut self, item: &WorkItem) -> Vec<u64> {
        let Mode::Train { seed } = self.mode else { return item.positions.clone().collect() };
        let n = self.source.len();
        let order = match self.order.take() {
            Some((epoch, order)) if epoch == item.epoch => order,
            _ => Order::of(self.kind, seed, item.epoch, n),
        };
        let ids = item.positions.clone().map(|p| order.at(p)).collect();
        self.order = Some((item.epoch, order));
        ids
    }

    fn check_label(&self, id: u64, fields: &[Field], row: usize) -> Result<()> {
        let classes = self.source.schema().classes.len();
        for (_, field) in self.columns.iter().zip(fields).filter(|(c, _)| c.spec.role == Role::Label) {
            let label = field.as_slice::<i64>()?[row];
            if usize::try_from(label).map_or(true, |l| l >= classes) {
                return Err(Error::Label { set: self.source.name().to_owned(), sample: id, label, classes });
            }
        }
        Ok(())
    }
}

impl Filler {
    fn new(config: &LoaderConfig, spec: &FieldSpec, training: bool, pixels: Pixels) -> Result<Self> {
        let mut filler = Filler {
            spec: spec.clone(),
            dtype: spec.dtype,
            shape: spec.shape.clone(),
            padded: spec.variable,
            pipeline: None,
            signal: Signal::of(config, spec, training)?,
            collected: Vec::new(),
            lengths: Vec::new(),
        };
        if spec.role == Role::Image {
            let pipeline = Pipeline::of(config, spec, training, pixels)?;
            filler.shape = pipeline.carried_shape().to_vec();
            filler.padded = false;
            filler.dtype = if pipeline.pixels() == Pixels::Bytes { DType::U8 } else { DType::F32 };
            filler.pipeline = Some(pipeline);
        }
        Ok(filler)
    }

    /// Puts one sample into row `row` of its field.
    fn put(&mut self, from: &mut RecordField, to: &mut Field, row: usize, key: Option<Key>) -> Result<()> {
        let spec = &self.spec;
        let sample: usize = self.shape.iter().product();
        if let Some(pipeline) = &mut self.pipeline {
            let range = row * sample..(row + 1) * sample;
            let out = match pipeline.pixels() {
                Pixels::Floats => Output::Floats(&mut to.as_mut_slice()?[range]),
                Pixels::Bytes => Output::Bytes(&mut to.as_mut_slice()?[range]),
            };
            return pipeline.run(from, key, out);
        }
        let fits = if spec.variable {
            from.shape.get(1..) == spec.shape.get(1..) && from.shape.first() <= spec.shape.first()
        } else {
            from.shape == spec.shape
        };
        let bytes = from.shape.iter().product::<usize>() * spec.dtype.size();
        if !fits || from.bytes.len() != bytes || from.codec != Codec::Raw {
            let problem = format!(
                "has {} bytes of shape {:?} where the schema has {} {:?}",
                from.bytes.len(),
                from.shape,
                spec.dtype,
                spec.shape
            );
            return Err(Error::field(&spec.name, problem));
        }
        if let Some(signal) = &mut self.signal {
            signal.run(&mut from.bytes, &from.shape, key)?;
        }
        if spec.variable {
            self.collected.extend_from_slice(&from.bytes);
            self.lengths.push(from.shape[0] as u32);
        } else {
            let size = sample * self.dtype.size();
            to.bytes.bytes_mut()[row * size..][..size].copy_from_slice(&from.bytes);
        }
        Ok(())
    }

    /// Takes back what rows from `row` on have put behind the others.
    fn take_back(&mut self, row: usize) {
        if self.padded {
            self.lengths.truncate(row);
            let each = self.dtype.size() * self.spec.shape[1..].iter().product::<usize>();
            self.collected.truncate(self.lengths.iter().map(|&l| l as usize).sum::<usize>() * each);
        }
    }

    /// The samples of varying size, padded with zeros to the longest of them.
    fn pad(&self, pool: &Pool) -> Result<Field> {
        let longest = self.lengths.iter().copied().max().unwrap_or(0) as usize;
        let mut shape = vec![self.lengths.len(), longest];
        shape.extend_from_slice(&self.spec.shape[1..]);
        let mut field = Field::new(pool, self.spec.name.clone(), self.dtype, &shape)?;
        let row = self.dtype.size() * self.spec.shape[1..].iter().product::<usize>();
        let mut rest = &self.collected[..];
        for (out, &length) in
            field.bytes.bytes_mut().chunks_exact_mut((longest * row).max(1)).zip(&self.lengths)
        {
            let (own, after) = rest.split_at(length as usize * row);
            out[..own.len()].copy_from_slice(own);
            out[own.len()..].fill(0);
            rest = after;
        }
        field.lengths = Some(self.lengths.clone());
        Ok(field)
    }
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}
