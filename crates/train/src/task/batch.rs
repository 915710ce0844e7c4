//! A shard's samples on the device.

use std::collections::BTreeMap;
use std::sync::Arc;

use phalanx_data::Mix;
use phalanx_nn::Forward;
use phalanx_tensor::{Crops, DType, Device, Landing, Normalisation, Shape, Tensor};

use crate::{Error, Result};

/// The samples of one virtual shard in one step, on the device.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Named tensors; the first axis counts samples.
    pub fields: BTreeMap<Arc<str>, Tensor>,
    /// Which samples these are. Empty for a batch that a task made itself.
    pub ids: Vec<u64>,
    /// A weight for each sample; none means 1 each.
    pub weights: Option<Vec<f32>>,
    /// Samples of it whose records could not be used.
    pub bad: u64,
    /// What is still to be done to the bytes of these fields; see [`Batch::pixels`].
    undone: BTreeMap<Arc<str>, Undone>,
    mix: Option<Mixed>,
}

/// What is still to be done to images of bytes.
#[derive(Debug, Clone)]
struct Undone {
    how: Normalisation,
    /// Height and width of the part that is taken of each, and where they lie ([`Crops`]); all of it without.
    crops: Option<([usize; 2], Tensor)>,
}

/// How samples are mixed: on the host and on the device.
#[derive(Debug, Clone)]
struct Mixed {
    plan: Arc<Mix>,
    partner: Tensor,
    lambda: Tensor,
    boxes: Tensor,
}

/// A loaded batch on its way to the device.
#[derive(Debug)]
pub struct Ahead {
    batch: Batch,
    landings: Vec<Landing>,
}

impl Ahead {
    /// Begins to move a loaded batch onto the device, beside whatever that does. On the CPU the buffers change hands without
    /// a copy.
    pub fn send(batch: phalanx_data::Batch, device: &Device) -> Result<Self> {
        let uniform = batch.weights.iter().all(|&w| w == 1.0);
        let weights = (!uniform).then_some(batch.weights);
        let mut out = Batch { ids: batch.ids, weights, ..Batch::default() };
        let mut landings = Vec::new();
        let mut send = |bytes, dtype, shape: &[usize]| -> Result<Tensor> {
            let (tensor, landing) = Tensor::send(bytes, dtype, Shape::new(shape), device)?;
            landings.extend(landing);
            Ok(tensor)
        };
        for f in batch.fields {
            let tensor = send(f.bytes, f.dtype, &f.shape)?;
            if let Some(n) = f.normalise {
                let how = Normalisation { scale: n.scale, mean: n.mean.clone(), std: n.std.clone() };
                let crops = match f.crops {
                    Some(c) => Some((c.size, send(c.places, DType::I64, &[f.shape[0], 3])?)),
                    None => None,
                };
                out.undone.insert(f.name.clone(), Undone { how, crops });
            }
            out.fields.insert(f.name, tensor);
        }
        if let Some(plan) = batch.mix {
            out.set_mix(plan, device)?;
        }
        Ok(Ahead { batch: out, landings })
    }

    /// The batch, for what the device is asked from now on.
    pub fn land(self) -> Result<Batch> {
        for landing in &self.landings {
            landing.wait()?;
        }
        Ok(self.batch)
    }
}

impl Batch {
    /// Moves a loaded batch onto the device. On the CPU the buffers change hands without a copy.
    pub fn from_data(batch: phalanx_data::Batch, device: &Device) -> Result<Self> {
        Ahead::send(batch, device)?.land()
    }

    /// A batch that a task made itself.
    pub fn of<const N: usize>(fields: [(&str, Tensor); N]) -> Self {
        Batch { fields: fields.into_iter().map(|(n, t)| (n.into(), t)).collect(), ..Batch::default() }
    }

    /// The same with a weight for each sample.
    pub fn weighted(self, weights: Vec<f32>) -> Self {
        Batch { weights: Some(weights), ..self }
    }

    /// All that a step reads of it on the device, mixing aside: its fields, and where their parts lie.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&Arc<str>, &Tensor)> {
        let places = self.undone.iter().filter_map(|(name, u)| Some((name, &u.crops.as_ref()?.1)));
        self.fields.iter().chain(places)
    }

    /// A batch with what `make` gives for each of [`Batch::tensors`], in that order, of which the same is to become.
    pub(crate) fn like(&self, mut make: impl FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let mut own = Batch { undone: self.undone.clone(), ..Batch::default() };
        for (name, t) in &self.fields {
            own.fields.insert(name.clone(), make(t)?);
        }
        for (_, places) in own.undone.values_mut().filter_map(|u| u.crops.as_mut()) {
            *places = make(places)?;
        }
        Ok(own)
    }

    /// Takes note that samples are to be mixed. Fails for a plan of another number of samples.
    pub fn set_mix(&mut self, plan: Mix, device: &Device) -> Result<()> {
        plan.check(self.len())?;
        let n = plan.partner.len();
        let partner: Vec<i64> = plan.partner.iter().map(|&p| i64::from(p)).collect();
        let corners =
            |&[top, left, tall, wide]: &[u32; 4]| [top, left, top + tall, left + wide].map(i64::from);
        let boxes: Vec<i64> = plan.boxes.iter().flat_map(corners).collect();
        self.mix = Some(Mixed {
            partner: Tensor::from_slice(&partner, [n], device)?,
            lambda: Tensor::from_slice(&plan.lambda, [n], device)?,
            boxes: Tensor::from_slice(&boxes, [n, 4], device)?,
            plan: Arc::new(plan),
        });
        Ok(())
    }

    /// Whether samples are to be mixed.
    pub fn is_mixed(&self) -> bool {
        self.mix.is_some()
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.fields.values().next().map_or(self.ids.len(), |t| t.shape().first().copied().unwrap_or(0))
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sum of the samples' weights.
    pub fn weight(&self) -> f64 {
        self.weights.as_ref().map_or(self.len() as f64, |w| w.iter().map(|&w| f64::from(w)).sum())
    }

    /// The weight of sample `i`.
    pub fn weight_of(&self, i: usize) -> f64 {
        self.weights.as_ref().map_or(1.0, |w| f64::from(w[i]))
    }

    /// The sum of the weights of the samples that are marked.
    pub fn weigh(&self, marked: &[bool]) -> f64 {
        marked.iter().enumerate().filter(|(_, m)| **m).map(|(i, _)| self.weight_of(i)).sum()
    }

    /// The field `name`, as it is. Fails for images whose bytes are still to be normalised, which [`Batch::pixels`] and
    /// [`Batch::input`] do.
    pub fn field(&self, name: &str) -> Result<&Tensor> {
        let fail = |problem| Err(Error::Task { task: "batch", problem });
        if self.undone.contains_key(name) {
            return fail(format!("its field {name:?} holds bytes that are to be normalised"));
        }
        match self.fields.get(name) {
            Some(field) => Ok(field),
            None => {
                let names: Vec<_> = self.fields.keys().collect();
                fail(format!("it has no field {name:?}; it has {names:?}"))
            }
        }
    }

    /// The field `name`; bytes that are to be normalised, or the parts of them that are to be seen, become floats of type
    /// `dtype`.
    pub fn pixels(&self, name: &str, dtype: DType) -> Result<Tensor> {
        match (self.fields.get(name), self.undone.get(name)) {
            (Some(bytes), Some(Undone { how, crops })) => {
                let crops = crops.as_ref().map(|(size, places)| Crops { size: *size, places });
                Ok(bytes.normalise_bytes(how, crops.as_ref(), dtype)?)
            }
            _ => self.field(name).cloned(),
        }
    }

    /// The field `name` as a network is to get it: normalised, mixed, of the type of its activations.
    pub fn input(&self, name: &str, forward: &Forward) -> Result<Tensor> {
        let x = self.pixels(name, forward.activations().unwrap_or(DType::F32))?;
        let x = match &self.mix {
            Some(m) if x.dtype() == DType::F64 => x.mix(&m.partner, &m.lambda.to(DType::F64)?, &m.boxes)?,
            Some(m) => x.mix(&m.partner, &m.lambda, &m.boxes)?,
            None => x,
        };
        Ok(forward.enter(&x)?)
    }

    /// The targets that samples have after mixing, each with its weight a sample where these are not all 1: one without a
    /// mix, else their own and their partners'.
    pub fn targets(&self, targets: &Tensor) -> Result<Vec<(Tensor, Option<Vec<f32>>)>> {
        let Some(m) = &self.mix else { return Ok(vec![(targets.clone(), self.weights.clone())]) };
        let weights = |share: fn(f32) -> f32| -> Vec<f32> {
            let of = |(i, l): (usize, &f32)| share(*l) * self.weights.as_ref().map_or(1.0, |w| w[i]);
            m.plan.lambda.iter().enumerate().map(of).collect()
        };
        let partners = targets.index_select(0, &m.partner)?;
        Ok(vec![(targets.clone(), Some(weights(|l| l))), (partners, Some(weights(|l| 1.0 - l)))])
    }

    /// The target that counts most for each sample: after mixing, its own where λ is at least a half.
    pub fn main_targets(&self, targets: &Tensor) -> Result<Tensor> {
        let Some(m) = &self.mix else { return Ok(targets.clone()) };
        let of = |((i, l), p): ((usize, &f32), &u32)| if *l >= 0.5 { i as i64 } else { i64::from(*p) };
        let main: Vec<i64> = m.plan.lambda.iter().enumerate().zip(&m.plan.partner).map(of).collect();
        Ok(targets.index_select(0, &Tensor::from_slice(&main, [main.len()], targets.device())?)?)
    }

    /// The weights as a tensor, when they are not all 1.
    pub fn weights_on(&self, device: &Device) -> Result<Option<Tensor>> {
        let to = |w: &Vec<f32>| Tensor::from_slice(w, [w.len()], device);
        Ok(self.weights.as_ref().map(to).transpose()?)
    }
}

#[cfg(test)]
mod tests {
    use phalanx_data::{
        Column, Field, FieldSpec, Loader, LoaderConfig, Memory, Mode, Normalise, Pixels, Plan,
    };
    use phalanx_host::{Cpu, Isa};

    use super::*;

    /// Four images of two bytes, a label each.
    fn loaded(device: &Device, mix: Option<Mix>) -> phalanx_data::Batch {
        let pool = device.host_pool();
        let bytes: Vec<u8> = (0..8).map(|i| i * 30).collect();
        let mut images = Field::from_slice(&pool, "image", &[4, 1, 2, 1], &bytes).unwrap();
        let how = Normalise { scale: 1.0 / 255.0, mean: vec![0.5], std: vec![0.25] };
        images.normalise = Some(Arc::new(how));
        let labels = Field::from_slice(&pool, "label", &[4], &[3i64, 0, 1, 2]).unwrap();
        let mut batch = phalanx_data::Batch::new(vec![images, labels], vec![9, 8, 7, 6]).unwrap();
        batch.mix = mix;
        batch
    }

    fn plan() -> Mix {
        let boxes = vec![[0; 4], [0, 1, 1, 1], [0; 4], [0; 4]];
        Mix { partner: vec![1, 2, 3, 0], lambda: vec![1.0, 0.5, 0.25, 0.75], boxes }
    }

    fn check(device: &Device) {
        let float = |x: u8| (f32::from(x) * (1.0 / 255.0) - 0.5) / 0.25;
        let (params, norms) = phalanx_nn::Builder::new().finish(&mut phalanx_host::Arena::zeroed).unwrap();
        let key = phalanx_host::rng::Key::new(0);
        let forward = Forward::new(&params, &norms, device, true, 0..0, key);
        let plain = Batch::from_data(loaded(device, None), device).unwrap();
        let said = plain.field("image").unwrap_err().to_string();
        assert!(said.contains("holds bytes"), "{said}");
        let image = plain.input("image", &forward).unwrap();
        let want: Vec<f32> = (0..8).map(|i| float(i * 30)).collect();
        assert_eq!(image.to_vec::<f32>().unwrap(), want);
        assert_eq!(plain.pixels("image", DType::BF16).unwrap().dtype(), DType::BF16);
        let labels = plain.field("label").unwrap();
        assert_eq!(plain.targets(labels).unwrap().len(), 1);

        let ahead = Ahead::send(loaded(device, Some(plan())), device).unwrap();
        let mut mixed = ahead.land().unwrap();
        mixed.weights = Some(vec![1.0, 2.0, 4.0, 8.0]);
        let got = mixed.input("image", &forward).unwrap().to_vec::<f32>().unwrap();
        let both = |l: f32, a: usize, b: usize| l * want[a] + (1.0 - l) * want[b];
        let by_hand = [
            want[0],
            want[1],
            want[2],
            want[5],
            both(0.25, 4, 6),
            both(0.25, 5, 7),
            both(0.75, 6, 0),
            both(0.75, 7, 1),
        ];
        assert_eq!(got, by_hand);
        let targets = mixed.targets(mixed.field("label").unwrap()).unwrap();
        assert_eq!(targets[0].1.as_ref().unwrap(), &[1.0, 1.0, 1.0, 6.0]);
        assert_eq!(targets[1].0.to_vec::<i64>().unwrap(), [0, 1, 2, 3]);
        assert_eq!(targets[1].1.as_ref().unwrap(), &[0.0, 1.0, 3.0, 2.0]);
        let main = mixed.main_targets(mixed.field("label").unwrap()).unwrap();
        assert_eq!(main.to_vec::<i64>().unwrap(), [3, 0, 2, 2]);

        let short = Mix { lambda: vec![0.5], ..plan() };
        assert!(Batch::from_data(loaded(device, Some(short)), device).is_err());
    }

    /// What the device makes of bytes is what a loader delivers as floats.
    fn check_crops(device: &Device) {
        let (n, spec) = (13, FieldSpec::image([9, 11, 3], 255.0));
        let pixels = (0..n * 9 * 11 * 3).map(|i| (i * 73 + i * i % 31) as u8).collect();
        let columns = vec![Column::fixed(spec, pixels).unwrap()];
        let set = Memory::new("noise", columns, vec![]).unwrap().shared();
        let rows = |texts: &[&str]| -> LoaderConfig {
            toml::from_str(&format!("threads = 0\ntransforms = [{}]", texts.join(", "))).unwrap()
        };
        let (pad, flip) = ("{ name = \"pad-and-crop\", padding = 3 }", "{ name = \"flip\" }");
        let (cut, wide) =
            ("{ name = \"random-crop\", size = 8 }", "{ name = \"random-crop\", size = [14, 7] }");
        let mean = "{ name = \"normalise\", mean = [0.4, 0.5, 0.6], std = [0.2, 0.3, 0.1] }";
        let piece = "{ name = \"random-resized-crop\", size = [6, 5] }";
        for texts in [
            &[flip, mean][..],
            &[pad],
            &[pad, flip, mean],
            &[flip, cut],
            &[cut, flip],
            &[wide, flip],
            &[piece, flip],
            &[piece, pad, flip],
        ] {
            for mode in [Mode::Train { seed: 3 }, Mode::Eval] {
                let all = |pixels| -> Vec<u32> {
                    let config = LoaderConfig { pixels, ..rows(texts) };
                    let plan = Plan::new(n as u64, 7, 1, 0..1, 2).unwrap();
                    let loader = Loader::new(set.clone(), &config, mode, plan, &device.host_pool()).unwrap();
                    let of = |loaded: phalanx_data::Result<phalanx_data::Loaded>| {
                        let batch = Batch::from_data(loaded.unwrap().batch, device).unwrap();
                        batch.pixels("image", DType::F32).unwrap().to_vec::<f32>().unwrap()
                    };
                    loader.flat_map(of).map(f32::to_bits).collect()
                };
                assert!(all(Pixels::Bytes) == all(Pixels::Floats), "{texts:?}, {mode:?}");
            }
        }
    }

    #[test]
    fn images_that_the_device_crops_and_mirrors_are_those_of_the_loader() {
        check_crops(&Device::cpu(Cpu::new(Isa::detect(), 2).unwrap()));
    }

    #[test]
    #[ignore = "needs a GPU or its stand-in"]
    fn images_that_a_gpu_crops_and_mirrors_are_those_of_the_loader() {
        check_crops(&Device::cuda(0).unwrap());
    }

    #[test]
    fn bytes_are_normalised_and_samples_mixed_with_their_targets() {
        check(&Device::cpu(Cpu::new(Isa::detect(), 1).unwrap()));
    }

    #[test]
    #[ignore = "needs a GPU or its stand-in"]
    fn bytes_are_normalised_and_samples_mixed_on_a_gpu() {
        check(&Device::cuda(0).unwrap());
    }
}
