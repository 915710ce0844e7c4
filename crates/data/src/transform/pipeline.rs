//! From a stored field to the batch.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use phalanx_host::rng::{Key, Stream};
use phalanx_host::{DType, Pool};
use serde::{Deserialize, Serialize};

use super::geometry::Geometry;
use super::left::Left;
use super::ops::{self, NORMALISE};
use super::{Image, Make, Step, Transform};
use crate::picture::{Area, Files, Frame, Framer};
use crate::{Codec, Crops, Error, FieldSpec, LoaderConfig, Normalise, RecordField, Result, Role};

/// What images are delivered as.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pixels {
    /// f32, normalised.
    #[default]
    Floats,
    /// u8 with [`Field::normalise`](crate::Field::normalise) left to the device, where every row works on bytes; else as
    /// `Floats`. Where the last rows mirror left and right or shift, or nothing but crops, these are left to it, too
    /// ([`Field::crops`](crate::Field::crops)). The values are the same.
    Bytes,
}

/// Where a sample goes.
#[derive(Debug)]
pub enum Output<'a> {
    /// For a pipeline that delivers [`Pixels::Floats`].
    Floats(&'a mut [f32]),
    /// For one that delivers [`Pixels::Bytes`].
    Bytes(&'a mut [u8]),
}

/// All steps from a stored image to the batch.
pub struct Pipeline {
    spec: FieldSpec,
    /// The first rows: what of the stored image is seen.
    looks: Vec<(u64, Geometry)>,
    /// Then those on bytes.
    moves: Vec<(u64, Box<dyn Step>)>,
    /// Then those on floats.
    steps: Vec<(u64, Box<dyn Step>)>,
    /// When all of `steps` are pointwise: what becomes of each byte, channel by channel.
    table: Option<Vec<[f32; 256]>>,
    /// When bytes are delivered.
    normalise: Option<Arc<Normalise>>,
    /// What else is left to the device then.
    left: Left,
    output: [usize; 3],
    /// Whether image files may be decoded smaller than they are.
    shrinks: bool,
    files: Files,
    framer: Framer,
    bytes: Image<u8>,
    floats: Image<f32>,
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = self.looks.len() + self.moves.len() + self.steps.len();
        write!(f, "Pipeline({steps} steps, {:?})", self.output)
    }
}

/// The steps of the rows for `spec`, with their places in the list.
fn steps(transforms: &[Transform], spec: &FieldSpec, training: bool) -> Result<Vec<(u64, Box<dyn Step>)>> {
    let mut all = Vec::new();
    for (i, t) in transforms.iter().enumerate() {
        if matches!(t.row.make, Make::Batch) || t.field().is_some_and(|name| name != &*spec.name) {
            continue;
        }
        let build = match (t.row.make, spec.role) {
            (Make::Any(build), role) if role == Role::Image || t.field.is_some() => build,
            (Make::Image(build), Role::Image) | (Make::Signal(build), Role::Array) => build,
            _ if t.field.is_none() => continue,
            (make, _) => {
                let kind = if matches!(make, Make::Signal(_)) { "signals [T, C] of f32" } else { "images" };
                let problem = format!("is for {kind}, and field {:?} is none", spec.name);
                return Err(Error::usage(format!("transform {}", t.row.name), problem));
            }
        };
        // Also a row that is left out must be a good one.
        let step = build(&t.values, spec)?;
        let i = i as u64;
        if training || !t.row.random {
            all.push((i, step));
        } else if let Some(geometry) = step.geometry() {
            all.extend(geometry.in_evaluation().into_iter().map(|g| (i, ops::look(g))));
        }
    }
    Ok(all)
}

impl Pipeline {
    /// The rows that apply, then the default normalisation unless a row normalises. Random rows are left out in
    /// evaluation; one that gives images their size becomes what gives them the same size there: a random resized crop
    /// the middle of the resized image (256 pixels for 224), a random crop the middle.
    ///
    /// Fails when `spec` is no image [H, W, C], on parameters that do not fit it, on rows in an order that makes no
    /// sense, and when images vary in size and no row gives them one.
    pub fn new(transforms: &[Transform], spec: &FieldSpec, training: bool, pixels: Pixels) -> Result<Self> {
        let &[h, w, c] = &spec.shape[..] else {
            let problem = format!("an image has shape [H, W, C], not {:?}", spec.shape);
            return Err(Error::field(&spec.name, problem));
        };
        let mut all = transforms.to_vec();
        let mine = |t: &&Transform| t.field().is_none_or(|name| name == &*spec.name);
        match all.iter().filter(mine).filter(|t| t.row.name == NORMALISE).count() {
            0 => all.push(Transform::new(NORMALISE, &[])?),
            1 => {}
            _ => return Err(Error::usage("loader.transforms", "`normalise` is there twice")),
        }
        let mut behind = all.iter().filter(mine).skip_while(|t| t.row.name != NORMALISE);
        if let Some(t) = behind.find(|t| ops::BEFORE_NORMALISE.contains(&t.row.name)) {
            return Err(Error::usage(
                format!("transform {}", t.row.name),
                "it must stand before `normalise`",
            ));
        }
        let mut size = (!spec.variable).then_some([h, w]);
        let (mut looks, mut moves, mut floats) = (Vec::new(), Vec::new(), Vec::new());
        for (i, step) in steps(&all, spec, training)? {
            let geometry = step.geometry();
            if let Some(Geometry::Piece { size: None, .. }) = geometry
                && size.is_none()
            {
                let problem = "images vary in size: it needs `size`, such as size = 224";
                return Err(Error::usage("transform random-resized-crop", problem));
            }
            size = geometry.map_or(size, |g| g.size(size));
            match geometry {
                _ if spec.dtype != DType::U8 => floats.push((i, step)),
                Some(g) if moves.is_empty() && floats.is_empty() && g.follows(&looks) => {
                    looks.push((i, g.clone()))
                }
                _ if floats.is_empty() && step.on_bytes() => moves.push((i, step)),
                _ => floats.push((i, step)),
            }
        }
        let Some(size) = size else { return Err(no_size(spec, training)) };
        let table = if spec.dtype == DType::U8 { table(&floats, c) } else { None };
        let normalise = match (pixels, spec.dtype, &floats[..]) {
            (Pixels::Bytes, DType::U8, [(_, last)]) => last.normalise().cloned().map(Arc::new),
            _ => None,
        };
        let left = match normalise {
            Some(_) => Left::of(&mut looks, &mut moves, (!spec.variable).then_some([h, w]), size),
            None => Left::nothing(size),
        };
        Ok(Pipeline {
            spec: spec.clone(),
            looks,
            moves,
            steps: floats,
            table,
            normalise,
            left,
            output: [size[0], size[1], c],
            shrinks: training,
            files: Files::default(),
            framer: Framer::default(),
            bytes: Image::default(),
            floats: Image::default(),
        })
    }

    /// The pipeline that `[loader]` asks for: its rows and limits.
    pub fn of(config: &LoaderConfig, spec: &FieldSpec, training: bool, pixels: Pixels) -> Result<Self> {
        let rows = match &config.eval_transforms {
            Some(rows) if !training => rows,
            _ => &config.transforms,
        };
        let mut pipeline = Pipeline::new(rows, spec, training, pixels)?;
        pipeline.files = Files::new(config.limits);
        Ok(pipeline)
    }

    /// Height, width and channels of what a model sees.
    pub fn output_shape(&self) -> [usize; 3] {
        self.output
    }

    /// Height, width and channels of what is delivered: of larger or smaller images where the device crops them.
    pub fn carried_shape(&self) -> [usize; 3] {
        let [h, w] = self.left.carried;
        [h, w, self.output[2]]
    }

    /// Room for what the device is to see of so many images, where that is not all of them.
    pub(crate) fn crops(&self, pool: &Pool, images: usize) -> Result<Option<Crops>> {
        let [h, w, _] = self.output;
        (!self.left.is_empty()).then(|| Crops::new(pool, [h, w], images)).transpose()
    }

    /// For the sample of that key, as in [`Pipeline::run`], what the device is to see of its image: see
    /// [`Crops::places`](crate::Crops::places). None where that is all of every image.
    pub fn place(&self, key: Option<Key>) -> Option<[i64; 3]> {
        self.left.place(streams(key))
    }

    /// What is delivered.
    pub fn pixels(&self) -> Pixels {
        if self.normalise.is_some() { Pixels::Bytes } else { Pixels::Floats }
    }

    /// What is left to the device when bytes are delivered.
    pub fn normalise(&self) -> Option<&Arc<Normalise>> {
        self.normalise.as_ref()
    }

    /// Whether raw images are delivered as they are stored: there is nothing to do but to put them in their place.
    pub(crate) fn only_copies(&self) -> bool {
        self.normalise.is_some()
            && self.looks.is_empty()
            && self.moves.is_empty()
            && !self.spec.variable
            && self.carried_shape()[..] == self.spec.shape[..]
    }

    /// Takes one image from its record to `out`, which has the size of [`Pipeline::carried_shape`] and the type of
    /// [`Pipeline::pixels`]. `key` names the sample's random stream in this epoch; `None` in evaluation.
    ///
    /// Fails on a record that is not what the schema says, and on an image file that cannot be decoded or is beyond the
    /// limits.
    pub fn run(&mut self, field: &RecordField, key: Option<Key>, out: Output<'_>) -> Result<()> {
        let carried = self.carried_shape();
        let length: usize = carried.iter().product();
        let given = match &out {
            Output::Floats(out) => (out.len(), Pixels::Floats),
            Output::Bytes(out) => (out.len(), Pixels::Bytes),
        };
        if given != (length, self.pixels()) {
            let problem = format!("{} {:?} are no room for {length} {:?}", given.0, given.1, self.pixels());
            return Err(Error::field(&self.spec.name, problem));
        }
        self.bytes.let_go();
        self.floats.let_go();
        let stream = streams(key);
        if self.spec.dtype != DType::U8 {
            self.floats.shape = check_raw(&self.spec, field)?;
            fill(&mut self.floats.pixels, &field.bytes);
            return self.finish(stream, out);
        }
        if let Output::Bytes(out) = out {
            if self.moves.is_empty() {
                return self.look(field, stream, carried, out);
            }
            self.moved(field, stream)?;
            return deliver(&self.bytes, carried, &self.spec, out);
        }
        self.moved(field, stream)?;
        match (&self.table, out) {
            (Some(table), Output::Floats(out)) => {
                if self.bytes.shape != self.output {
                    return Err(wrong_size(&self.spec, self.bytes.shape, self.output));
                }
                look_up(table, &self.bytes.pixels, out);
                Ok(())
            }
            (_, out) => {
                self.floats.shape = self.bytes.shape;
                self.floats.pixels.clear();
                self.floats.pixels.extend(self.bytes.pixels.iter().map(|&x| f32::from(x)));
                self.finish(stream, out)
            }
        }
    }

    /// The image after its first rows and those on bytes, in `self.bytes`.
    fn moved(&mut self, field: &RecordField, stream: impl Fn(&u64) -> Stream + Copy) -> Result<()> {
        let mut pixels = std::mem::take(&mut self.bytes.pixels);
        let shape = self.seen(field)?;
        self.check_room(shape)?;
        pixels.resize(shape.iter().product(), 0);
        let seen = self.look(field, stream, shape, &mut pixels);
        self.bytes.pixels = pixels;
        self.bytes.shape = shape;
        seen?;
        for (i, step) in &self.moves {
            self.check_after(&**step, self.bytes.shape)?;
            step.apply_bytes(&mut self.bytes, &mut stream(i));
        }
        Ok(())
    }

    /// Fails where an image would become larger on its way than a stored one may be: one pixel high and resized to 256, it is
    /// 256 times as wide.
    fn check_room(&self, [h, w, _]: [usize; 3]) -> Result<()> {
        let most = self.files.limits().max_pixels;
        if (h as u64).saturating_mul(w as u64) <= most {
            return Ok(());
        }
        let problem = format!("it becomes {w}x{h} on the way, and loader.limits.max_pixels is {most}");
        Err(Error::field(&self.spec.name, problem))
    }

    /// The same of what a step makes of an image.
    fn check_after(&self, step: &dyn Step, [h, w, c]: [usize; 3]) -> Result<()> {
        let [h, w] = step.geometry().and_then(|g| g.size(Some([h, w]))).unwrap_or([h, w]);
        self.check_room([h, w, c])
    }

    /// The size of the image after its first rows.
    fn seen(&mut self, field: &RecordField) -> Result<[usize; 3]> {
        let through = |looks: &[(u64, Geometry)], size| looks.iter().fold(size, |size, (_, g)| g.size(size));
        let stored = (!self.spec.variable).then(|| [self.spec.shape[0], self.spec.shape[1]]);
        let [h, w] = match through(&self.looks, stored) {
            Some(size) => size,
            None => {
                let own = self.size_of(field)?;
                through(&self.looks, Some(own)).unwrap_or(own)
            }
        };
        Ok([h, w, self.spec.shape[2]])
    }

    /// Height and width of the stored image.
    fn size_of(&mut self, field: &RecordField) -> Result<[usize; 2]> {
        match field.codec {
            Codec::Raw => check_raw(&self.spec, field).map(|[h, w, _]| [h, w]),
            _ => self.files.open(&field.bytes).map_err(|e| Error::field(&self.spec.name, e)),
        }
    }

    /// Reads what the first rows see of the image into `out`, which is of that shape.
    fn look(
        &mut self,
        field: &RecordField,
        stream: impl Fn(&u64) -> Stream,
        shape: [usize; 3],
        out: &mut [u8],
    ) -> Result<()> {
        let size = self.size_of(field)?;
        let channels = self.spec.shape[2];
        let mut frame = Frame::whole(size);
        for (i, geometry) in &self.looks {
            geometry.narrow(&mut frame, &mut stream(i));
        }
        let [h, w] = frame.canvas;
        if [h, w, channels] != shape {
            return Err(wrong_size(&self.spec, [h, w, channels], shape));
        }
        if field.codec == Codec::Raw {
            let [top, left, tall, wide] = self.framer.plan(&frame, &Area::of(&frame, 1, size));
            let stride = size[1] * channels;
            let first = (top * size[1] + left) * channels;
            self.framer.run(&frame, &field.bytes[first..], ([tall, wide], stride, channels), out);
            return Ok(());
        }
        let shrink = if self.shrinks { frame.shrink() } else { 1 };
        let (shrink, size) = self.files.smaller(shrink);
        let window = self.framer.plan(&frame, &Area::of(&frame, shrink, size));
        let (begun, most) = (Instant::now(), self.files.limits().decode_ms);
        let decoded = self.files.decode(&field.bytes, channels, shrink, window);
        let took = begun.elapsed().as_millis() as u64;
        if most > 0 && took > most {
            return Err(Error::Slow { took, most });
        }
        let (pixels, stride) = decoded.map_err(|e| Error::field(&self.spec.name, e))?;
        self.framer.run(&frame, pixels, ([window[2], window[3]], stride, channels), out);
        Ok(())
    }

    /// The steps on floats, from `self.floats` on.
    fn finish(&mut self, stream: impl Fn(&u64) -> Stream, out: Output<'_>) -> Result<()> {
        for (i, step) in &self.steps {
            self.check_after(&**step, self.floats.shape)?;
            step.apply(&mut self.floats, &mut stream(i));
        }
        match out {
            Output::Floats(out) => deliver(&self.floats, self.output, &self.spec, out),
            Output::Bytes(_) => Err(Error::field(&self.spec.name, "floats are no bytes")),
        }
    }
}

/// The random stream of each row for a sample.
fn streams(key: Option<Key>) -> impl Fn(&u64) -> Stream + Copy {
    let key = key.unwrap_or(Key::new(0));
    move |i| key.derive(*i, 0).stream()
}

/// What becomes of each byte through steps that are all pointwise.
fn table(steps: &[(u64, Box<dyn Step>)], channels: usize) -> Option<Vec<[f32; 256]>> {
    let through = |x: u8, c: usize| steps.iter().try_fold(f32::from(x), |x, (_, step)| step.pointwise(x, c));
    let channel = |c: usize| {
        let mut table = [0.0; 256];
        for (x, to) in (0..=u8::MAX).zip(&mut table) {
            *to = through(x, c)?;
        }
        Some(table)
    };
    (0..channels).map(channel).collect()
}

fn look_up(table: &[[f32; 256]], bytes: &[u8], out: &mut [f32]) {
    match table {
        [table] => out.iter_mut().zip(bytes).for_each(|(to, &x)| *to = table[usize::from(x)]),
        [r, g, b] => {
            for (to, from) in out.as_chunks_mut::<3>().0.iter_mut().zip(bytes.as_chunks::<3>().0) {
                *to = [r[usize::from(from[0])], g[usize::from(from[1])], b[usize::from(from[2])]];
            }
        }
        _ => {
            for (to, from) in out.chunks_exact_mut(table.len()).zip(bytes.chunks_exact(table.len())) {
                to.iter_mut().zip(from).zip(table).for_each(|((to, &x), t)| *to = t[usize::from(x)]);
            }
        }
    }
}

/// Hands a finished image over.
fn deliver<T: Copy>(image: &Image<T>, shape: [usize; 3], spec: &FieldSpec, out: &mut [T]) -> Result<()> {
    if image.shape != shape || image.pixels.len() != out.len() {
        return Err(wrong_size(spec, image.shape, shape));
    }
    out.copy_from_slice(&image.pixels);
    Ok(())
}

fn wrong_size(spec: &FieldSpec, is: [usize; 3], wanted: [usize; 3]) -> Error {
    Error::field(&spec.name, format!("came out as {is:?} where {wanted:?} is delivered"))
}

fn no_size(spec: &FieldSpec, training: bool) -> Error {
    let what = match training {
        true => "a row must give them one, such as { name = \"random-resized-crop\", size = 224 }",
        false => {
            "a row must give them one: { name = \"resize\", size = 256 } and { name = \"centre-crop\", size = 224 }, in \
             loader.eval_transforms where training has others"
        }
    };
    let name = if training { "loader.transforms" } else { "loader.eval_transforms" };
    Error::usage(name, format!("images of field {:?} vary in size; {what}", spec.name))
}

/// Fails unless a record of raw elements is what the schema says; gives its shape.
fn check_raw(spec: &FieldSpec, field: &RecordField) -> Result<[usize; 3]> {
    let fits = match (spec.role, spec.variable) {
        (Role::Image, true) => field.shape.get(2..) == spec.shape.get(2..),
        (_, true) => field.shape.get(1..) == spec.shape.get(1..) && field.shape.first() <= spec.shape.first(),
        (_, false) => field.shape == spec.shape,
    };
    let bytes = field.shape.iter().try_fold(spec.dtype.size(), |bytes, &d| bytes.checked_mul(d));
    let raw = field.codec == Codec::Raw && fits && bytes == Some(field.bytes.len());
    match (raw, &field.shape[..]) {
        (true, &[h, w, c]) => Ok([h, w, c]),
        (true, &[t, c]) => Ok([t, 1, c]),
        (true, &[t]) => Ok([t, 1, 1]),
        _ => {
            let problem = format!(
                "has {} bytes of shape {:?} ({:?}) where the schema has {} {:?}",
                field.bytes.len(),
                field.shape,
                field.codec,
                spec.dtype,
                spec.shape
            );
            Err(Error::field(&spec.name, problem))
        }
    }
}

fn fill(pixels: &mut Vec<f32>, bytes: &[u8]) {
    pixels.clear();
    pixels.extend(bytes.as_chunks::<4>().0.iter().map(|&x| f32::from_ne_bytes(x)));
}

/// The height, width and channels that a model sees of a set's images: the same in training and in evaluation.
///
/// Fails as [`Pipeline::new`] does, and where the two differ.
pub fn delivered(config: &LoaderConfig, spec: &FieldSpec) -> Result<[usize; 3]> {
    let shape = |training| Pipeline::of(config, spec, training, Pixels::Floats).map(|p| p.output_shape());
    let (train, eval) = (shape(true)?, shape(false)?);
    if train == eval {
        return Ok(train);
    }
    let ([h, w, _], [eh, ew, _]) = (train, eval);
    let problem = format!(
        "training delivers {h}x{w} pixels, evaluation {eh}x{ew}; let loader.eval_transforms end with \
         {{ name = \"centre-crop\", size = [{h}, {w}] }}"
    );
    Err(Error::usage("loader.transforms", problem))
}

/// Whether rows for signals apply to a field.
fn is_signal(spec: &FieldSpec) -> bool {
    spec.role == Role::Array && spec.dtype == DType::F32 && (1..=2).contains(&spec.shape.len())
}

/// The rows for a field that is no image: an array [T, C] or [T] of f32.
pub struct Signal {
    spec: FieldSpec,
    steps: Vec<(u64, Box<dyn Step>)>,
    image: Image<f32>,
}

impl Signal {
    /// The rows that apply; `None` where there are none. Rows for signals apply to every array of f32 with one or two
    /// dimensions unless they name a field; those for images and signals only where they name it.
    pub fn of(config: &LoaderConfig, spec: &FieldSpec, training: bool) -> Result<Option<Self>> {
        let rows = match &config.eval_transforms {
            Some(rows) if !training => rows,
            _ => &config.transforms,
        };
        if !is_signal(spec) {
            return match rows.iter().find(|t| spec.role != Role::Image && t.field() == Some(&*spec.name)) {
                Some(t) => {
                    let problem =
                        format!("field {:?} is neither an image nor a signal [T, C] of f32", spec.name);
                    Err(Error::usage(format!("transform {}", t.row.name), problem))
                }
                None => Ok(None),
            };
        }
        let [t, c] = [spec.shape[0], spec.shape.get(1).copied().unwrap_or(1)];
        let spec = FieldSpec { shape: vec![t, 1, c], ..spec.clone() };
        let steps = steps(rows, &spec, training)?;
        let signal = Signal { spec, steps, image: Image::default() };
        Ok((!signal.steps.is_empty()).then_some(signal))
    }

    /// Changes the signal within its record. `key` as in [`Pipeline::run`].
    pub fn run(&mut self, bytes: &mut [u8], shape: &[usize], key: Option<Key>) -> Result<()> {
        self.image.shape = match *shape {
            [t] => [t, 1, 1],
            [t, c] => [t, 1, c],
            _ => [0; 3],
        };
        fill(&mut self.image.pixels, bytes);
        if self.image.shape.iter().product::<usize>() * 4 != bytes.len() {
            let problem = format!("{} bytes are no signal of shape {shape:?}", bytes.len());
            return Err(Error::field(&self.spec.name, problem));
        }
        let stream = streams(key);
        for (i, step) in &self.steps {
            step.apply(&mut self.image, &mut stream(i));
        }
        for (to, x) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(&self.image.pixels) {
            *to = x.to_ne_bytes();
        }
        Ok(())
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signal({:?}, {} steps)", self.spec.name, self.steps.len())
    }
}

/// Fails where a row names a field that the set does not have, or is for signals where it has none.
pub fn check_fields(config: &LoaderConfig, fields: &[FieldSpec]) -> Result<()> {
    let all = config.transforms.iter().chain(config.eval_transforms.iter().flatten());
    for t in all {
        let Some(name) = t.field() else {
            if matches!(t.row.make, Make::Signal(_)) && !fields.iter().any(is_signal) {
                let problem = "is for signals [T, C] of f32, and the set has none";
                return Err(Error::usage(format!("transform {}", t.row.name), problem));
            }
            continue;
        };
        if !fields.iter().any(|f| &*f.name == name) {
            let names: Vec<_> = fields.iter().map(|f| &*f.name).collect();
            let problem = format!("there is no field {name:?}; the set has {}", names.join(", "));
            return Err(Error::usage(format!("transform {}", t.row.name), problem));
        }
    }
    Ok(())
}
