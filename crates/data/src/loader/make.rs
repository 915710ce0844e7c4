//! One work item into one batch; what every loader thread runs.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use phalanx_host::rng::Key;
use phalanx_host::{DType, Pool};

use super::{Loaded, Mode};
use crate::transform::Pipeline;
use crate::{
    Batch, Error, Field, FieldSpec, LoaderConfig, Order, Record, RecordField, Result, Role, Source, WorkItem,
};

/// Separates the transforms' random streams from every other one of the same seed.
const STREAM: u64 = 0x6175_676D_656E;

/// Makes batches; every thread has its own.
pub(super) struct Maker {
    source: Arc<dyn Source>,
    mode: Mode,
    pool: Pool,
    columns: Vec<Filler>,
    record: Record,
    order: Option<(u64, Order)>,
    /// The sample in work, for the message should it panic.
    current: Option<u64>,
}

/// How one field of the schema gets into a batch.
struct Filler {
    spec: FieldSpec,
    dtype: DType,
    /// Elements of one sample of fixed size.
    sample: usize,
    /// For images.
    pipeline: Option<Pipeline>,
    /// For samples whose size varies: collected here until the longest is known.
    collected: Vec<u8>,
    lengths: Vec<u32>,
}

impl Maker {
    pub(super) fn new(
        source: Arc<dyn Source>,
        config: &LoaderConfig,
        mode: Mode,
        pool: Pool,
    ) -> Result<Self> {
        let columns = source.schema().fields.iter().map(|spec| {
            let pipeline = match spec.role {
                Role::Image => {
                    Some(Pipeline::new(&config.transforms, spec, matches!(mode, Mode::Train { .. }))?)
                }
                _ => None,
            };
            let dtype = if pipeline.is_some() { DType::F32 } else { spec.dtype };
            let sample = spec.shape.iter().product();
            let (collected, lengths) = (Vec::new(), Vec::new());
            Ok(Filler { spec: spec.clone(), dtype, sample, pipeline, collected, lengths })
        });
        let columns = columns.collect::<Result<_>>()?;
        Ok(Maker { source, mode, pool, columns, record: Record::default(), order: None, current: None })
    }

    /// Makes the batch of `item`; a panic on the way is an error like any other. Gives up early, with
    /// `None`, once `stop` is set.
    pub(super) fn make(&mut self, item: WorkItem, stop: &AtomicBool) -> Option<Result<Loaded>> {
        self.current = None;
        let result = catch_unwind(AssertUnwindSafe(|| self.batch(&item, stop)))
            .unwrap_or_else(|payload| Err(Error::Panic { message: message(&*payload) }));
        match result {
            Ok(batch) => batch.map(|batch| Ok(Loaded { item, batch })),
            // These name the sample themselves.
            Err(e @ (Error::NoSample { .. } | Error::Label { .. })) => Some(Err(e)),
            Err(e) => Some(Err(match self.current {
                Some(sample) => {
                    Error::Sample { set: self.source.name().to_owned(), sample, cause: Box::new(e) }
                }
                None => e,
            })),
        }
    }

    fn batch(&mut self, item: &WorkItem, stop: &AtomicBool) -> Result<Option<Batch>> {
        let ids = self.ids(item);
        let mut fields = Vec::with_capacity(self.columns.len());
        for c in &mut self.columns {
            c.collected.clear();
            c.lengths.clear();
            let rows = if c.spec.variable { 0 } else { ids.len() };
            let shape: Vec<usize> = std::iter::once(rows).chain(c.spec.shape.iter().copied()).collect();
            fields.push(Field::new(&self.pool, c.spec.name.clone(), c.dtype, &shape)?);
        }
        for (row, &id) in ids.iter().enumerate() {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            self.current = Some(id);
            self.source.read(id, &mut self.record)?;
            if self.record.fields.len() != self.columns.len() {
                let problem = format!(
                    "the record has {} fields, the schema {}",
                    self.record.fields.len(),
                    self.columns.len()
                );
                return Err(Error::field("record", problem));
            }
            let key = match self.mode {
                Mode::Train { seed } => Some(Key::new(seed).derive(STREAM, item.epoch).derive(id, 0)),
                Mode::Eval => None,
            };
            for ((c, from), field) in self.columns.iter_mut().zip(&self.record.fields).zip(&mut fields) {
                c.put(from, field, row, key)?;
            }
            self.check_label(id, &fields, row)?;
        }
        self.current = None;
        for (c, field) in self.columns.iter().zip(&mut fields).filter(|(c, _)| c.spec.variable) {
            *field = c.pad(&self.pool)?;
        }
        Batch::new(fields, ids).map(Some)
    }

    /// The samples at the item's positions: shuffled for training, as they come for evaluation.
    fn ids(&mut self, item: &WorkItem) -> Vec<u64> {
        let Mode::Train { seed } = self.mode else { return item.positions.clone().collect() };
        let n = self.source.len();
        let order = match self.order.take() {
            Some((epoch, order)) if epoch == item.epoch => order,
            _ => Order::new(seed, item.epoch, n),
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
    /// Puts one sample into row `row` of its field.
    fn put(&mut self, from: &RecordField, to: &mut Field, row: usize, key: Option<Key>) -> Result<()> {
        let spec = &self.spec;
        let fits = if spec.variable {
            from.shape.get(1..) == spec.shape.get(1..) && from.shape.first() <= spec.shape.first()
        } else {
            from.shape == spec.shape
        };
        if !fits || from.bytes.len() != from.shape.iter().product::<usize>() * spec.dtype.size() {
            let problem = format!(
                "has {} bytes of shape {:?} where the schema has {} {:?}",
                from.bytes.len(),
                from.shape,
                spec.dtype,
                spec.shape
            );
            return Err(Error::field(&spec.name, problem));
        }
        if let Some(pipeline) = &mut self.pipeline {
            let out = &mut to.as_mut_slice::<f32>()?[row * self.sample..][..self.sample];
            pipeline.run(&from.bytes, key, out);
        } else if spec.variable {
            self.collected.extend_from_slice(&from.bytes);
            self.lengths.push(from.shape[0] as u32);
        } else {
            let size = self.sample * self.dtype.size();
            to.bytes.bytes_mut()[row * size..][..size].copy_from_slice(&from.bytes);
        }
        Ok(())
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
