//! Our side of `bench/peers/parity.py`: what a network makes of given weights and a given batch.
//!
//!     parity REQUEST.json IN.safetensors OUT.safetensors
//!
//! The request has `model`, as the `[model]` table, and `classes`; `optimizers`, of each of which one step is taken; and
//! `training`, an `optimizer` with the number of `steps` to take. The input has the network's tensors under their
//! names, `image` [N,H,W,C] and `label` [N].
//!
//! The output has `eval.logits`; `logits`, `aux.K` (logits of auxiliary heads) and `loss` (a sum) in training mode;
//! `gradient.NAME` and `buffer.NAME`, the running statistics after the batch; `step.K.NAME`, the parameters after
//! the one step of optimizer K; `losses`, the summed loss of each step.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use phalanx_comm::{Communicator, Wire};
use phalanx_host::rng::Key;
use phalanx_host::{Arena, Cpu, Isa};
use phalanx_nn::{Builder, Forward, Layer, ModelConfig, NormValues, Norms, OptimizerConfig, Params, build};
use phalanx_tensor::{Device, LeafId, Tensor};
use phalanx_train::config::Precision;
use phalanx_train::faults::Faults;
use phalanx_train::task::{Array, Arrays, Batch, Classification, Criterion, LossConfig};
use phalanx_train::{Clip, CudaGraph, Engine, EngineOptions, Machine, Result, Snapshot};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    model: ModelConfig,
    classes: usize,
    #[serde(default)]
    optimizers: Vec<OptimizerConfig>,
    training: Option<Training>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Training {
    optimizer: OptimizerConfig,
    steps: u64,
}

/// A network without values, and the batch.
struct Case {
    request: Request,
    model: Arrays,
    image: Array,
    label: Array,
    machine: Machine,
    device: Device,
}

impl Case {
    fn read(request: &str, input: &str) -> Case {
        let request = serde_json::from_str(&std::fs::read_to_string(request).unwrap()).unwrap();
        let bytes = std::fs::read(input).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let arrays = file.iter().map(|(name, view)| {
            let values = |x: &TensorView| bytemuck::pod_collect_to_vec::<u8, f32>(x.data());
            let array = match view.dtype() {
                Dtype::F32 => Array::new(view.shape(), &values(&view)),
                Dtype::I64 => Array::new(view.shape(), &bytemuck::pod_collect_to_vec::<u8, i64>(view.data())),
                other => panic!("{name} has the type {other:?}"),
            };
            (name.to_owned(), array)
        });
        let mut model: Arrays = arrays.collect();
        let (image, label) = (model.remove("image").unwrap(), model.remove("label").unwrap());
        let machine = Machine::cpu(Cpu::new(Isa::detect(), 1).unwrap());
        let device = machine.device.clone();
        Case { request, model, image, label, machine, device }
    }

    fn build(&self) -> (Box<dyn Layer>, Params, Norms) {
        let (mut b, s) = (Builder::new(), &self.image.shape);
        let layers = build(&self.request.model, [s[1], s[2], s[3]], self.request.classes, &mut b).unwrap();
        let (params, norms) = b.finish(&mut Arena::zeroed).unwrap();
        (layers, params, norms)
    }

    fn batch(&self) -> [Tensor; 2] {
        let image = self.image.to_vec::<f32>().unwrap();
        let label = self.label.to_vec::<i64>().unwrap();
        [
            Tensor::from_slice(&image, &self.image.shape[..], &self.device).unwrap(),
            Tensor::from_slice(&label, &self.label.shape[..], &self.device).unwrap(),
        ]
    }

    /// An engine of one rank and one shard that begins with the case's weights.
    fn engine(&self, comm: &Arc<dyn Communicator>, optimizer: &OptimizerConfig) -> Result<Engine> {
        let (layers, params, norms) = self.build();
        let criterion = Criterion::new(&LossConfig::default(), self.request.classes)?;
        let task = Classification::new(layers, criterion, &params, optimizer.clone(), ["image", "label"]);
        let options = EngineOptions {
            seed: 0,
            shards: 1,
            bucket_bytes: 25 << 20,
            wire: Wire::F32,
            deadline: Duration::from_secs(3600),
            clip: Clip::default(),
            ema: None,
            evaluate_ema: false,
            precision: Precision::F32,
            samples: 1,
            cuda_graph: CudaGraph::Auto,
            faults: Faults::default(),
        };
        let mut engine = Engine::new(comm.clone(), &self.machine, Box::new(task), params, norms, options)?;
        engine.restore(&Snapshot { model: self.model.clone(), ..Snapshot::default() })?;
        Ok(engine)
    }

    /// Logits, gradients and statistics.
    fn passes(&self, out: &mut Arrays) {
        let (layers, params, mut norms) = self.build();
        for id in params.ids() {
            let name = &params.spec(id).name;
            let array = self.model.get(name).unwrap_or_else(|| panic!("the input has no {name}"));
            params.import(id, &array.shape, &array.to_vec().unwrap()).unwrap();
        }
        norms
            .import(&mut |name| {
                let a = self.model.get(name)?;
                Some((a.shape.clone(), a.to_vec::<f32>().ok()?.into_iter().map(f64::from).collect()))
            })
            .unwrap();
        let [image, label] = self.batch();
        let mut put = |name: String, t: &Tensor| {
            out.insert(name, Array::new(&t.shape(), &t.to_vec::<f32>().unwrap()));
        };

        let cx = Forward::new(&params, &norms, &self.device, false, 0..0, Key::new(0));
        put("eval.logits".into(), &layers.forward(&cx, &image).unwrap());
        let all = 0..params.len() as u32;
        let cx = Forward::new(&params, &norms, &self.device, true, all, Key::new(0));
        let logits = layers.forward(&cx, &image).unwrap();
        put("logits".into(), &logits);
        let mut loss = logits.cross_entropy(&label, None).unwrap();
        for (k, (weight, logits)) in cx.take_auxiliary().into_iter().enumerate() {
            put(format!("aux.{k}"), &logits);
            let part = logits.cross_entropy(&label, None).unwrap().scale(weight).unwrap();
            loss = loss.add(&part).unwrap();
        }
        put("loss".into(), &loss);
        let mut sums = vec![0.0; norms.statistics_len()];
        norms.contribution(&cx.take_statistics(), &mut sums).unwrap();
        drop(cx);
        let gradients = loss.gradients().unwrap();
        for id in params.ids() {
            let leaf = params.tensor(id, &self.device).leaf_named(LeafId(u64::from(id.0)));
            let gradient = gradients.get(&leaf).expect("every parameter has a gradient");
            let values = params.to_stored(id, &gradient.to_vec::<f32>().unwrap());
            let array = Array::new(&params.stored_shape(id), &values);
            out.insert(format!("gradient.{}", params.spec(id).name), array);
        }
        norms.fold(&sums).unwrap();
        for (name, shape, values) in norms.export() {
            if let NormValues::Float(values) = values {
                out.insert(format!("buffer.{name}"), Array::new(&shape, &values));
            }
        }
    }

    /// One step of each optimizer, and the losses of several of one.
    fn steps(&self, comm: &Arc<dyn Communicator>) -> Result<Arrays> {
        let mut out = Arrays::new();
        let [image, label] = self.batch();
        let batch = || Batch::of([("image", image.clone()), ("label", label.clone())]);
        for (k, optimizer) in self.request.optimizers.iter().enumerate() {
            let mut engine = self.engine(comm, optimizer)?;
            engine.step(0, vec![batch()], 1.0, false)?;
            let params = engine.params();
            for id in params.ids() {
                let (shape, values) = params.export(id)?;
                out.insert(format!("step.{k}.{}", params.spec(id).name), Array::new(&shape, &values));
            }
        }
        if let Some(Training { optimizer, steps }) = &self.request.training {
            let mut engine = self.engine(comm, optimizer)?;
            let one = |step| Ok(engine.step(step, vec![batch()], 1.0, false)?.phases[0].loss_sum);
            let losses = (0..*steps).map(one).collect::<Result<Vec<f64>>>()?;
            out.insert("losses".into(), Array::new(&[losses.len()], &losses));
        }
        Ok(out)
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [request, input, output] = &arguments[..] else {
        eprintln!("usage: parity REQUEST.json IN.safetensors OUT.safetensors");
        std::process::exit(2);
    };
    let case = Case::read(request, input);
    let mut out = Arrays::new();
    case.passes(&mut out);
    let deadline = Duration::from_secs(3600);
    let made = phalanx_train::ranks::run_threads(1, deadline, Isa::detect(), |comm| case.steps(&comm));
    out.extend(made.unwrap_or_else(|e| panic!("{e}")).into_iter().flatten());
    let views: BTreeMap<&str, TensorView> = out
        .iter()
        .map(|(name, a)| {
            let dtype = if name == "losses" { Dtype::F64 } else { Dtype::F32 };
            (name.as_str(), TensorView::new(dtype, a.shape.clone(), &a.bytes).unwrap())
        })
        .collect();
    safetensors::serialize_to_file(views, None, output.as_ref()).unwrap();
}
