//! All parameters of a model in one flat arena.

use std::collections::HashMap;
use std::ops::Range;

use phalanx_host::rng::Key;
use phalanx_host::{ALIGN, Arena, ArenaMut, ArenaRef, DType};
use phalanx_tensor::{Device, Shape, Tensor};

use crate::{Error, Init, Result};

/// A parameter's index, in order of registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub u32);

/// How a checkpoint's layout differs from ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// Not at all.
    Plain,
    /// A convolution's weight: ours is [O, KH, KW, I], stored as [O, I, KH, KW]; over any number of axes.
    Conv,
    /// Laid out like a sample: ours is [.., C], stored as [C, ..].
    Sample,
}

/// A stored array: its shape and its elements, row-major.
pub type Values<T> = (Vec<usize>, Vec<T>);

/// Finds a stored array by its name.
pub type Find<'a, T> = dyn FnMut(&str) -> Option<Values<T>> + 'a;

/// What a parameter is.
#[derive(Debug, Clone)]
pub struct ParamSpec {
    /// Its name, as torchvision would call it.
    pub name: String,
    /// Our shape.
    pub shape: Shape,
    /// How a checkpoint lays it out.
    pub stored: Stored,
    /// Whether weight decay applies: not to norms and biases.
    pub decay: bool,
    /// How it begins.
    pub init: Init,
    /// Inputs and outputs of one unit, for the initialisation.
    pub fans: [usize; 2],
}

impl ParamSpec {
    /// The shape in which a checkpoint stores the parameter, and anything laid out like it.
    pub fn stored_shape(&self) -> Shape {
        match (self.stored, &self.shape[..]) {
            (Stored::Conv, &[o, ref kernel @ .., i]) => Shape::new(&[&[o, i], kernel].concat()),
            (Stored::Sample, [rest @ .., c]) => Shape::new(&[&[*c], rest].concat()),
            _ => self.shape,
        }
    }
}

/// Separates the initialisation's random streams from other uses of the seed.
const STREAM: u64 = 0x1a17;

/// A model's parameters: f32, in order of registration, each on a 64-byte boundary of one arena. The
/// gaps between them stay zero.
#[derive(Debug)]
pub struct Params {
    specs: Vec<ParamSpec>,
    starts: Vec<usize>,
    by_name: HashMap<String, ParamId>,
    elements: usize,
    arena: Arena,
    /// The device whose memory the arena is, where that is not the host's.
    home: Option<Device>,
}

impl Params {
    /// Lays the parameters out and takes an arena of as many bytes of the host's memory as they need from `alloc`.
    pub fn new(
        specs: Vec<ParamSpec>,
        alloc: &mut dyn FnMut(usize) -> phalanx_host::Result<Arena>,
    ) -> Result<Self> {
        const STEP: usize = ALIGN / size_of::<f32>();
        let (mut starts, mut by_name, mut elements) = (Vec::new(), HashMap::new(), 0usize);
        for (spec, id) in specs.iter().zip(0..) {
            starts.push(elements);
            elements += spec.shape.numel().next_multiple_of(STEP);
            if by_name.insert(spec.name.clone(), ParamId(id)).is_some() {
                return Err(Error::Duplicate { name: spec.name.clone() });
            }
        }
        let arena = alloc(elements * size_of::<f32>())?;
        Ok(Params { specs, starts, by_name, elements, arena, home: None })
    }

    /// The same parameters with the same values in the memory of `device`. This is the one place that decides where
    /// parameters live: optimizers, averages and gradients follow them.
    pub fn on(self, device: &Device) -> Result<Self> {
        let there = match &self.home {
            Some(home) => home.same(device),
            None => device.gpu().is_none(),
        };
        if there {
            return Ok(self);
        }
        let all = 0..self.elements * size_of::<f32>();
        let arena = device.arena(all.len())?;
        {
            let (from, mut to) = (self.arena.read(all.clone())?, arena.write(all)?);
            device.write_arena(&mut to, &self.home.as_ref().unwrap_or(device).read_arena(&from)?)?;
        }
        Ok(Params { arena, home: device.gpu().is_some().then(|| device.clone()), ..self })
    }

    /// The device in whose memory they are, where that is not the host's.
    pub fn home(&self) -> Option<&Device> {
        self.home.as_ref()
    }

    /// Calls `f` with the values of `elements` of the arena, which are copied to the host where they are not there.
    pub fn read<R>(&self, elements: Range<usize>, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
        let held = self.arena.read(bytes(&elements))?;
        match &self.home {
            None => Ok(f(held.as_slice()?)),
            Some(device) => Ok(f(&bytemuck::pod_collect_to_vec::<u8, f32>(&device.read_arena(&held)?))),
        }
    }

    /// Sets the values of as many neighbouring elements of the arena, from `start` on.
    pub fn write(&self, start: usize, values: &[f32]) -> Result<()> {
        let mut place = self.arena.write(bytes(&(start..start + values.len())))?;
        match &self.home {
            None => place.as_mut_slice()?.copy_from_slice(values),
            Some(device) => device.write_arena(&mut place, bytemuck::cast_slice(values))?,
        }
        Ok(())
    }

    /// The number of parameters (arrays, not elements).
    pub fn len(&self) -> usize {
        self.specs.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.specs.is_empty()
    }

    /// The number of trainable elements.
    pub fn count(&self) -> usize {
        self.specs.iter().map(|s| s.shape.numel()).sum()
    }

    /// All parameters, in order of registration.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = ParamId> + use<> {
        (0..self.specs.len() as u32).map(ParamId)
    }

    /// What a parameter is.
    pub fn spec(&self, id: ParamId) -> &ParamSpec {
        &self.specs[id.0 as usize]
    }

    /// A parameter's elements in the arena.
    pub fn range(&self, id: ParamId) -> Range<usize> {
        let start = self.starts[id.0 as usize];
        start..start + self.spec(id).shape.numel()
    }

    /// The arena's length in elements.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// The arena.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// The parameter of that name.
    pub fn find(&self, name: &str) -> Option<ParamId> {
        self.by_name.get(name).copied()
    }

    /// A parameter's values as they are now, outside the graph: it reads the arena.
    pub fn tensor(&self, id: ParamId, device: &Device) -> Tensor {
        let start = self.starts[id.0 as usize];
        Tensor::from_arena(&self.arena, start, DType::F32, self.spec(id).shape, device)
    }

    /// Gives every parameter its first values. Each has a random stream of its own, keyed by `seed` and
    /// its name, so adding a layer changes no other layer's values.
    pub fn initialise(&self, seed: u64) -> Result<()> {
        for id in self.ids() {
            let spec = self.spec(id);
            // FNV-1a: names are few and need no more than to differ.
            let hash = spec.name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
                (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
            });
            let mut stream = Key::new(seed).derive(STREAM, hash).stream();
            let range = self.range(id);
            if self.home.is_none() {
                let mut place = self.arena.write(bytes(&range))?;
                spec.init.fill(&mut stream, spec.fans, place.as_mut_slice()?);
            } else {
                let mut values = vec![0.0; range.len()];
                spec.init.fill(&mut stream, spec.fans, &mut values);
                self.write(range.start, &values)?;
            }
        }
        Ok(())
    }

    /// [`ParamSpec::stored_shape`] of a parameter.
    pub fn stored_shape(&self, id: ParamId) -> Shape {
        self.spec(id).stored_shape()
    }

    /// Values in our layout, as a checkpoint stores them.
    pub fn to_stored(&self, id: ParamId, ours: &[f32]) -> Vec<f32> {
        let spec = self.spec(id);
        match (spec.stored, &spec.shape[..]) {
            (Stored::Conv, &[o, ref kernel @ .., i]) => swap(ours, o, kernel.iter().product(), i),
            (Stored::Sample, [rest @ .., c]) => swap(ours, 1, rest.iter().product(), *c),
            _ => ours.to_vec(),
        }
    }

    /// Stored values in our layout. Fails when `shape` is not the stored shape.
    pub fn from_stored(&self, id: ParamId, name: &str, shape: &[usize], stored: &[f32]) -> Result<Vec<f32>> {
        let (want, got) = (self.stored_shape(id), Shape::new(shape));
        if want != got || stored.len() != want.numel() {
            return Err(Error::Mismatch { name: name.to_owned(), want, got });
        }
        let spec = self.spec(id);
        Ok(match (spec.stored, &spec.shape[..]) {
            (Stored::Conv, &[o, ref kernel @ .., i]) => swap(stored, o, i, kernel.iter().product()),
            (Stored::Sample, [rest @ .., c]) => swap(stored, 1, *c, rest.iter().product()),
            _ => stored.to_vec(),
        })
    }

    /// A parameter's stored shape and values.
    pub fn export(&self, id: ParamId) -> Result<Values<f32>> {
        let values = self.read(self.range(id), |ours| self.to_stored(id, ours))?;
        Ok((self.stored_shape(id).to_vec(), values))
    }

    /// Sets a parameter from its stored shape and values.
    pub fn import(&self, id: ParamId, shape: &[usize], values: &[f32]) -> Result<()> {
        let ours = self.from_stored(id, &self.spec(id).name, shape, values)?;
        self.write(self.range(id).start, &ours)
    }

    /// The same parameters with the same values in an arena of their own, in the same memory.
    pub fn twin(&self) -> Result<Params> {
        let all = 0..self.elements * size_of::<f32>();
        let arena = match &self.home {
            None => Arena::zeroed(all.len())?,
            Some(device) => device.arena(all.len())?,
        };
        let twin = Params {
            specs: self.specs.clone(),
            starts: self.starts.clone(),
            by_name: self.by_name.clone(),
            elements: self.elements,
            arena,
            home: self.home.clone(),
        };
        self.copy_bytes(&self.arena.read(all.clone())?, &mut twin.arena.write(all)?)?;
        Ok(twin)
    }

    fn copy_bytes(&self, from: &ArenaRef, to: &mut ArenaMut) -> Result<()> {
        match &self.home {
            None => to.bytes_mut().copy_from_slice(from.bytes()),
            Some(device) => device.copy_arena(from, to)?,
        }
        Ok(())
    }

    /// Copies the values of parameters onto as many others of the same shapes, pair by pair: a target
    /// network. Fails before anything is copied when there are not as many.
    pub fn copy(&self, from: Range<u32>, to: Range<u32>) -> Result<()> {
        if from.len() != to.len() {
            let problem = format!("{from:?} cannot be copied onto {to:?}: there are not as many");
            return Err(Error::config("parameters", problem));
        }
        for (a, b) in from.map(ParamId).zip(to.map(ParamId)) {
            let (want, got) = (self.spec(b).shape, self.spec(a).shape);
            if want != got {
                return Err(Error::Mismatch { name: self.spec(b).name.clone(), want, got });
            }
            let source = self.arena.read(bytes(&self.range(a)))?;
            self.copy_bytes(&source, &mut self.arena.write(bytes(&self.range(b)))?)?;
        }
        Ok(())
    }
}

/// Where elements are in an arena.
pub(crate) fn bytes(elements: &Range<usize>) -> Range<usize> {
    elements.start * size_of::<f32>()..elements.end * size_of::<f32>()
}

/// Swaps the two inner axes of [n, a, b].
fn swap(x: &[f32], n: usize, a: usize, b: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for block in 0..n {
        for j in 0..b {
            out.extend((0..a).map(|i| x[(block * a + i) * b + j]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, shape: &[usize], stored: Stored) -> ParamSpec {
        let (name, shape) = (name.to_owned(), Shape::new(shape));
        ParamSpec { name, shape, stored, decay: true, init: Init::Uniform, fans: [4, 4] }
    }

    #[test]
    fn parameters_lie_aligned_and_travel_in_stored_layout() {
        let specs = vec![spec("a", &[3], Stored::Plain), spec("c.weight", &[2, 1, 2, 3], Stored::Conv)];
        let params = Params::new(specs.clone(), &mut Arena::zeroed).unwrap();
        assert_eq!((params.range(ParamId(1)), params.elements(), params.count()), (16..28, 32, 15));
        let stored: Vec<f32> = (0..12).map(|i| i as f32).collect();
        params.import(ParamId(1), &[2, 3, 1, 2], &stored).unwrap();
        assert_eq!(params.export(ParamId(1)).unwrap(), (vec![2, 3, 1, 2], stored.clone()));
        let held = params.arena().read(64..112).unwrap();
        // Ours is [O, KH, KW, I]: the channels of one pixel are neighbours.
        assert_eq!(held.as_slice::<f32>().unwrap()[..6], [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
        let e = params.import(ParamId(1), &[2, 1, 2, 3], &stored).unwrap_err();
        assert!(e.to_string().contains("c.weight has shape [2,3,1,2], but [2,1,2,3]"), "{e}");
        let twice = vec![specs[0].clone(), specs[0].clone()];
        assert!(matches!(Params::new(twice, &mut Arena::zeroed), Err(Error::Duplicate { .. })));
    }

    #[test]
    fn values_are_copied_onto_as_many_of_the_same_shapes_only() {
        let specs = vec![
            spec("a", &[3], Stored::Plain),
            spec("b", &[3], Stored::Plain),
            spec("c", &[2], Stored::Plain),
        ];
        let params = Params::new(specs, &mut Arena::zeroed).unwrap();
        params.initialise(9).unwrap();
        let values = || params.ids().map(|id| params.export(id).unwrap().1).collect::<Vec<_>>();
        let before = values();
        let e = params.copy(0..2, 1..2).unwrap_err();
        assert!(e.to_string().contains("0..2 cannot be copied onto 1..2"), "{e}");
        assert!(matches!(params.copy(0..1, 2..3), Err(Error::Mismatch { name, .. }) if name == "c"));
        assert_eq!(values(), before);
        params.copy(0..1, 1..2).unwrap();
        assert_eq!(values(), [before[0].clone(), before[0].clone(), before[2].clone()]);
    }

    #[test]
    fn first_values_depend_on_the_name_and_not_on_the_order() {
        let (a, b) = (spec("a", &[5], Stored::Plain), spec("b", &[5], Stored::Plain));
        let get = |specs: Vec<ParamSpec>, name: &str| {
            let params = Params::new(specs, &mut Arena::zeroed).unwrap();
            params.initialise(9).unwrap();
            params.export(params.find(name).unwrap()).unwrap().1
        };
        assert_eq!(get(vec![a.clone(), b.clone()], "b"), get(vec![b.clone(), a.clone()], "b"));
        assert_ne!(get(vec![a.clone(), b.clone()], "a"), get(vec![a, b], "b"));
    }
}
