//! Whole networks.

use phalanx_host::Isa;
use phalanx_tensor::{Conv, DType, Tensor};

use super::{cases, floats, ints};
use crate::row::{Array, close, device, doubles, gradients, real, value, weight};

fn mlp(x: &Tensor, p: &[Tensor]) -> Tensor {
    let x = x.reshape(&[x.shape()[0], 784]).unwrap();
    x.linear(&p[0], Some(&p[1])).unwrap().relu().unwrap().linear(&p[2], Some(&p[3])).unwrap()
}

fn lenet5(x: &Tensor, p: &[Tensor]) -> Tensor {
    let stage = |x: &Tensor, i: usize, padding: usize| {
        // torchvision's [O,I,KH,KW] as [O,KH,KW,I].
        let w = p[i].permute(&[0, 2, 3, 1]).unwrap();
        let y = x.conv2d(&w, Some(&p[i + 1]), &Conv::new().padding(&[padding])).unwrap().relu().unwrap();
        y.max_pool2d([2, 2], [2, 2], [0, 0]).unwrap()
    };
    let x = stage(&stage(x, 0, 2), 2, 0);
    // The weights expect channels first.
    let x = x.permute(&[0, 3, 1, 2]).unwrap().reshape(&[x.shape()[0], 400]).unwrap();
    let x = x.linear(&p[4], Some(&p[5])).unwrap().relu().unwrap();
    let x = x.linear(&p[6], Some(&p[7])).unwrap().relu().unwrap();
    x.linear(&p[8], Some(&p[9])).unwrap()
}

#[test]
fn whole_networks_have_the_logits_losses_and_gradients_of_pytorch() {
    let device = device(Isa::detect(), 1);
    for case in cases("network") {
        let (name, p) = (case["op"].as_str().unwrap(), &case["params"]);
        let shapes: Vec<Vec<usize>> = case["inputs"].as_array().unwrap().iter().map(ints).collect();
        let scales = floats(&p["scales"]);
        let input = |(k, s): (usize, &Vec<usize>)| {
            let scaled = |i| if k == 0 { value(0, i) } else { (value(k, i) - 0.1) * scales[k - 1] };
            real(&Array::new(s, scaled), DType::F64, &device).leaf()
        };
        let x: Vec<Tensor> = shapes.iter().enumerate().map(input).collect();
        let net = if name == "mlp" { mlp } else { lenet5 };
        let logits = net(&x[0], &x[1..]);
        let labels: Vec<i64> = ints(&p["labels"]);
        let labels = Tensor::from_slice(&labels, [labels.len()], &device).unwrap();
        let loss = logits.cross_entropy(&labels, None).unwrap();
        close(name, &doubles(&logits), &floats(&case["outputs"][0]), 1e-11);
        close(
            name,
            &doubles(&loss),
            &[case["outputs"][1].as_f64().unwrap_or_else(|| floats(&case["outputs"][1])[0])],
            1e-11,
        );
        for (k, g) in gradients(&loss, &x).into_iter().enumerate() {
            let g = g.unwrap();
            let projected: f64 = g.iter().enumerate().map(|(i, g)| weight(i) * g).sum();
            let norm = g.iter().map(|g| g * g).sum::<f64>().sqrt();
            let got = [projected, g.iter().sum(), norm];
            close(&format!("{name}: gradient {k}"), &got, &floats(&case["gradients"][k]), 1e-10);
        }
    }
}
