//! The named models.

use phalanx_tensor::Shape;

use super::{ModelConfig, Row, Stack};
use crate::layer::{Activation, Layer};
use crate::{Builder, Error, Init, Result};

/// A name with the options that it understands.
pub(super) struct Entry {
    pub(super) name: &'static str,
    pub(super) options: &'static [&'static str],
}

/// All named models.
pub(super) const NAMES: [Entry; 4] = [
    Entry { name: "perceptron", options: &[] },
    Entry { name: "mlp", options: &["hidden", "activation", "dropout"] },
    Entry { name: "lenet5", options: &["activation"] },
    Entry { name: "digits-cnn", options: &["dropout"] },
];

fn linear(out: Option<usize>) -> Row {
    Row::Linear { out, bias: true, init: Init::Uniform }
}

fn conv(out: usize, kernel: usize, padding: usize, init: Init, bias: bool) -> Row {
    Row::Conv { out, kernel, stride: 1, padding, bias, init }
}

fn pool() -> Row {
    Row::MaxPool { kernel: 2.into(), stride: None, padding: 0.into(), ceil: false }
}

fn act(a: Activation) -> Row {
    match a {
        Activation::Relu => Row::Relu {},
        Activation::Sigmoid => Row::Sigmoid {},
        Activation::Tanh => Row::Tanh {},
    }
}

pub(super) fn build(
    name: &str,
    config: &ModelConfig,
    input: Shape,
    classes: usize,
    b: &mut Builder,
) -> Result<Box<dyn Layer>> {
    let activation = config.activation.unwrap_or_default();
    let rows: Vec<(String, Row)> = match name {
        "perceptron" => vec![("flatten".into(), Row::Flatten {}), ("fc1".into(), linear(None))],
        "mlp" => mlp(config, activation),
        "lenet5" => lenet5(activation, input)?,
        "digits-cnn" => digits_cnn(config.dropout.unwrap_or(0.25)),
        other => return Err(Error::config("model", format!("there is no model {other:?}"))),
    };
    let mut stack = Stack::new(b, input);
    for (name, row) in &rows {
        stack.row(name, row, classes)?;
    }
    Ok(stack.finish())
}

fn mlp(config: &ModelConfig, activation: Activation) -> Vec<(String, Row)> {
    let hidden = config.hidden.clone().unwrap_or_else(|| vec![512]);
    let mut rows = vec![("flatten".to_owned(), Row::Flatten {})];
    for (i, &out) in hidden.iter().enumerate() {
        rows.push((format!("fc{}", i + 1), linear(Some(out))));
        rows.push((format!("act{}", i + 1), act(activation)));
    }
    if let Some(p) = config.dropout {
        rows.push(("dropout".into(), Row::Dropout { p }));
    }
    rows.push((format!("fc{}", hidden.len() + 1), linear(None)));
    rows
}

/// LeNet-5 (LeCun et al., 1998) as it is taught today: max pooling, full connections, 28×28 padded to
/// 32×32.
fn lenet5(activation: Activation, input: Shape) -> Result<Vec<(String, Row)>> {
    let smallest = 12;
    if input[0] < smallest || input[1] < smallest {
        let why = format!("its two convolutions and poolings need at least {smallest} by {smallest} pixels");
        return Err(Error::Layer { layer: "lenet5".into(), input, why });
    }
    let rows = [
        ("conv1", conv(6, 5, 2, Init::Uniform, true)),
        ("act1", act(activation)),
        ("pool1", pool()),
        ("conv2", conv(16, 5, 0, Init::Uniform, true)),
        ("act2", act(activation)),
        ("pool2", pool()),
        ("flatten", Row::Flatten {}),
        ("fc1", linear(Some(120))),
        ("act3", act(activation)),
        ("fc2", linear(Some(84))),
        ("act4", act(activation)),
        ("fc3", linear(None)),
    ];
    Ok(rows.into_iter().map(|(n, r)| (n.to_owned(), r)).collect())
}

/// Two convolutions, pooling, one more, for images of 8×8.
fn digits_cnn(dropout: f64) -> Vec<(String, Row)> {
    let mut rows = Vec::new();
    for (i, out) in [(1, 16), (2, 32), (3, 64)] {
        rows.push((format!("conv{i}"), conv(out, 3, 1, Init::HeNormal, false)));
        rows.push((format!("bn{i}"), Row::BatchNorm {}));
        rows.push((format!("act{i}"), Row::Relu {}));
        if i > 1 {
            rows.push((format!("pool{i}"), pool()));
        }
    }
    rows.push(("flatten".into(), Row::Flatten {}));
    rows.push(("dropout".into(), Row::Dropout { p: dropout }));
    rows.push(("fc".into(), linear(None)));
    rows
}
