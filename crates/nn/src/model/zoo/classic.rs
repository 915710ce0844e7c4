//! Small models for small images, as rows of layers.

use crate::layer::{ConvConfig, Padding, Sizes};
use crate::model::stack::Stack;
use crate::model::{ModelConfig, Row};
use crate::{Init, Result};

fn linear(out: Option<usize>) -> Row {
    Row::Linear { out, bias: true, init: Init::Uniform }
}

fn conv(out: usize, kernel: usize, padding: usize, init: Init, bias: bool) -> Row {
    let padding = Padding::Both(Sizes::All(padding));
    Row::Conv(ConvConfig { padding, bias, init, ..ConvConfig::new(out, kernel) })
}

fn pool() -> Row {
    Row::MaxPool { kernel: 2.into(), stride: None, padding: 0.into(), ceil: false }
}

/// The model's function between layers, `relu` unless it is given.
fn act(config: &ModelConfig) -> Result<Row> {
    Row::of_function(config.activation.as_deref().unwrap_or("relu"))
}

/// Rows under their names.
fn rows(s: &mut Stack<'_>, classes: usize, rows: impl IntoIterator<Item = (String, Row)>) -> Result<()> {
    rows.into_iter().try_for_each(|(name, row)| s.row(&name, &row, classes))
}

/// One linear layer.
pub(super) fn perceptron(s: &mut Stack<'_>, _: &ModelConfig, classes: usize) -> Result<()> {
    rows(s, classes, [("flatten".to_owned(), Row::Flatten {}), ("fc1".to_owned(), linear(None))])
}

/// Linear layers with a function between them.
pub(super) fn mlp(s: &mut Stack<'_>, config: &ModelConfig, classes: usize) -> Result<()> {
    let activation = act(config)?;
    let hidden = config.hidden.clone().unwrap_or_else(|| vec![512]);
    let mut made = vec![("flatten".to_owned(), Row::Flatten {})];
    for (i, &out) in hidden.iter().enumerate() {
        made.push((format!("fc{}", i + 1), linear(Some(out))));
        made.push((format!("act{}", i + 1), activation.clone()));
    }
    if let Some(p) = config.dropout {
        made.push(("dropout".into(), Row::Dropout { p }));
    }
    made.push((format!("fc{}", hidden.len() + 1), linear(None)));
    rows(s, classes, made)
}

/// LeNet-5 (LeCun et al., 1998) as it is taught today: max pooling, full connections, 28×28 padded to
/// 32×32.
pub(super) fn lenet5(s: &mut Stack<'_>, config: &ModelConfig, classes: usize) -> Result<()> {
    let activation = act(config)?;
    let (smallest, input) = (12, s.shape);
    if input[0] < smallest || input[1] < smallest {
        let why = format!("its two convolutions and poolings need at least {smallest} by {smallest} pixels");
        return Err(crate::Error::Layer { layer: "lenet5".into(), input, why });
    }
    let made = [
        ("conv1", conv(6, 5, 2, Init::Uniform, true)),
        ("act1", activation.clone()),
        ("pool1", pool()),
        ("conv2", conv(16, 5, 0, Init::Uniform, true)),
        ("act2", activation.clone()),
        ("pool2", pool()),
        ("flatten", Row::Flatten {}),
        ("fc1", linear(Some(120))),
        ("act3", activation.clone()),
        ("fc2", linear(Some(84))),
        ("act4", activation.clone()),
        ("fc3", linear(None)),
    ];
    rows(s, classes, made.map(|(name, row)| (name.to_owned(), row)))
}

/// Two convolutions, pooling, one more, for images of 8×8.
pub(super) fn digits_cnn(s: &mut Stack<'_>, config: &ModelConfig, classes: usize) -> Result<()> {
    let mut made = Vec::new();
    for (i, out) in [(1, 16), (2, 32), (3, 64)] {
        made.push((format!("conv{i}"), conv(out, 3, 1, Init::HeNormal, false)));
        made.push((format!("bn{i}"), Row::batch_norm()));
        made.push((format!("act{i}"), Row::Relu {}));
        if i > 1 {
            made.push((format!("pool{i}"), pool()));
        }
    }
    made.push(("flatten".into(), Row::Flatten {}));
    made.push(("dropout".into(), Row::Dropout { p: config.dropout.unwrap_or(0.25) }));
    made.push(("fc".into(), linear(None)));
    rows(s, classes, made)
}
