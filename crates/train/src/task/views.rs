//! Evaluation on several views of each image, whose shares after softmax are averaged.

use std::fmt;
use std::sync::Arc;

use phalanx_data::{Place, Resample, shorter_side};
use phalanx_host::Cpu;
use phalanx_nn::{Layer, OptimizerConfig, Params};
use phalanx_tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::classify::{EVALUATIONS, errors};
use super::{Batch, Loss, Phase, PhaseId, ShardCx, Task};
use crate::predict::softmax;
use crate::{Error, Result};

/// Which views of an image are evaluated.
///
/// The ten crops are those of Krizhevsky et al. (2012, section 4.1): the corners and the middle, and their mirror
/// images. Whole images at several scales, shares averaged, are how Simonyan and Zisserman (2014, section 3.2) and He
/// et al. (2015, section 4.1: shorter sides 224, 256, 384, 480, 640) evaluate fully convolutional networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Views {
    /// Shorter sides to which images are resized; their own when there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scales: Vec<usize>,
    /// 1 for the whole image, or for the middle when there is a `crop`; 10.
    pub crops: usize,
    /// The side of a crop; the smaller side of the model's samples for ten crops, when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop: Option<usize>,
}

impl Default for Views {
    fn default() -> Self {
        Views { scales: Vec::new(), crops: 1, crop: None }
    }
}

impl fmt::Display for Views {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.crops, if self.crops == 1 { "crop" } else { "crops" })?;
        self.crop.map_or(Ok(()), |side| write!(f, " of {side}x{side}"))?;
        match &self.scales[..] {
            [] => Ok(()),
            scales => write!(f, " at {}", scales.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
        }
    }
}

/// A view: a part of the resized image, perhaps mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct View {
    place: Place,
    mirrored: bool,
}

impl Views {
    /// Whether it is the image as it is, and nothing else.
    pub fn is_plain(&self) -> bool {
        *self == Views::default()
    }

    /// The views of an image of that size, scale by scale.
    fn of(&self, height: usize, width: usize) -> Result<Vec<View>> {
        let wrong = |problem: String| Error::config("--crops, --scales", problem);
        let sizes: Vec<[usize; 2]> = match self.scales.is_empty() {
            true => vec![[height, width]],
            false => self.scales.iter().map(|&s| shorter_side(height, width, s)).collect(),
        };
        let mut views = Vec::new();
        for size in sizes {
            let side = match (self.crop, self.crops) {
                (Some(side), _) => [side, side],
                (None, 1) => size,
                (None, _) => [height.min(width); 2],
            };
            if side[0] == 0 || side[0] > size[0] || side[1] > size[1] {
                return Err(wrong(format!(
                    "a crop of {}x{} does not lie in an image of {}x{}: give a smaller --crop or larger --scales",
                    side[0], side[1], size[0], size[1]
                )));
            }
            let [y, x] = [size[0] - side[0], size[1] - side[1]];
            let middle = Place::middle_of(size, side);
            let mut add = |place: Place| views.push(View { place, mirrored: false });
            match self.crops {
                1 => add(middle),
                10 => {
                    for from in [[0, 0], [0, x], [y, 0], [y, x]] {
                        add(Place { from, ..middle });
                    }
                    add(middle);
                    let mirrored: Vec<View> =
                        views[views.len() - 5..].iter().map(|v| View { mirrored: true, ..*v }).collect();
                    views.extend(mirrored);
                }
                n => return Err(wrong(format!("there are 1 or 10 crops, not {n}"))),
            }
        }
        Ok(views)
    }
}

/// Makes the layers for samples of a size.
pub type LayersFor<'a> = dyn Fn([usize; 3]) -> Result<Box<dyn Layer>> + 'a;

/// A classification that is evaluated on views of images; it is not for training.
#[derive(Debug)]
pub struct ViewedClassification {
    views: Vec<View>,
    /// The layers for each size of view, in the views' order.
    layers: Vec<([usize; 2], Box<dyn Layer>)>,
    phases: [Phase; 1],
    image: String,
    label: String,
    /// The label whose samples count nothing.
    ignore: Option<i64>,
    /// What views are cut by.
    cpu: Arc<Cpu>,
}

impl ViewedClassification {
    /// Evaluates images of `input`; `layers` makes the model for the sizes of their views;
    /// samples labelled `ignore` count nothing.
    pub fn new(
        views: &Views,
        [height, width, channels]: [usize; 3],
        layers: &LayersFor<'_>,
        params: &Params,
        [image, label]: [&str; 2],
        ignore: Option<i64>,
        cpu: &Arc<Cpu>,
    ) -> Result<Self> {
        let views = views.of(height, width)?;
        let mut made: Vec<([usize; 2], Box<dyn Layer>)> = Vec::new();
        for take in views.iter().map(|v| v.place.take) {
            if made.iter().all(|(size, _)| *size != take) {
                made.push((take, layers([take[0], take[1], channels])?));
            }
        }
        // Never used: an engine has one for each phase.
        let optimizer = OptimizerConfig::sgd(1.0, 0.0, 0.0);
        let phase = Phase { name: "evaluation".into(), params: 0..params.len() as u32, optimizer };
        Ok(ViewedClassification {
            views,
            layers: made,
            phases: [phase],
            image: image.to_owned(),
            label: label.to_owned(),
            ignore,
            cpu: cpu.clone(),
        })
    }

    /// One view of all images of a batch [N, H, W, C].
    fn view(&self, view: &View, images: &[f32], [h, w, c]: [usize; 3], cpu: &Cpu) -> Vec<f32> {
        let (sample, [rows, columns]) = (h * w * c, view.place.take);
        let mut out = vec![0.0; images.len() / sample.max(1) * rows * columns * c];
        cpu.workers.chunks(&mut out, rows * columns * c, |i, to| {
            let part = f32::resize(&images[i * sample..][..sample], [h, w, c], view.place);
            for (to, from) in to.chunks_exact_mut(columns * c).zip(part.chunks_exact(columns * c)) {
                if view.mirrored {
                    let pixels = to.chunks_exact_mut(c).zip(from.chunks_exact(c).rev());
                    pixels.for_each(|(to, from)| to.copy_from_slice(from));
                } else {
                    to.copy_from_slice(from);
                }
            }
        });
        out
    }

    /// Each image's mean share of each class, [N, K].
    fn shares(&self, batch: &Batch, cx: &ShardCx) -> Result<Tensor> {
        let images = batch.pixels(&self.image, DType::F32)?;
        let &[n, h, w, c] = &images.shape()[..] else {
            let problem = format!("it takes images [N,H,W,C], not {}", images.shape());
            return Err(Error::Task { task: self.name(), problem });
        };
        let pixels = images.to_vec::<f32>()?;
        let (mut sums, mut classes) = (Vec::new(), 0);
        for view in &self.views {
            let [rows, columns] = view.place.take;
            let part = self.view(view, &pixels, [h, w, c], &self.cpu);
            let part = Tensor::from_slice(&part, [n, rows, columns, c], cx.device)?;
            let layers = self.layers.iter().find(|(size, _)| *size == view.place.take);
            let Some((_, layers)) = layers else { continue };
            let logits = layers.forward(cx, &cx.enter(&part)?)?.to(DType::F32)?;
            classes = logits.shape().last().copied().unwrap_or(0);
            sums.resize(n * classes, 0.0);
            for (sums, logits) in
                sums.chunks_mut(classes.max(1)).zip(logits.to_vec::<f32>()?.chunks(classes.max(1)))
            {
                sums.iter_mut().zip(softmax(logits)).for_each(|(sum, share)| *sum += share);
            }
        }
        let count = self.views.len() as f64;
        sums.iter_mut().for_each(|sum| *sum /= count);
        Ok(Tensor::from_slice(&sums, [n, classes], cx.device)?)
    }
}

impl Task for ViewedClassification {
    fn name(&self) -> &'static str {
        "evaluation of views"
    }

    fn phases(&self) -> &[Phase] {
        &self.phases
    }

    fn loss(&self, _: PhaseId, _: &Batch, _: &ShardCx) -> Result<Loss> {
        Err(Error::Task { task: self.name(), problem: "it is not for training".into() })
    }

    fn evaluations(&self) -> &[&'static str] {
        EVALUATIONS
    }

    fn evaluate(&self, batch: &Batch, cx: &ShardCx) -> Result<Vec<[f64; 2]>> {
        let (shares, labels) = (self.shares(batch, cx)?, batch.field(&self.label)?);
        let of = shares.to_vec::<f64>()?;
        let classes = of.len() / batch.len().max(1);
        // First, since it refuses labels that are no class.
        let [top1, top5] = errors(&shares, batch, labels, self.ignore)?;
        // Cross-entropy of the mean shares, whatever loss the logits of one view were trained by.
        let mut loss = 0.0;
        for (i, (shares, label)) in of.chunks(classes.max(1)).zip(labels.to_vec::<i64>()?).enumerate() {
            if Some(label) != self.ignore {
                loss -= batch.weight_of(i) * shares[label as usize].ln();
            }
        }
        Ok(vec![[loss, top1[1]], top1, top5])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn views(scales: &[usize], crops: usize, crop: Option<usize>) -> Views {
        Views { scales: scales.to_vec(), crops, crop }
    }

    #[test]
    fn ten_crops_are_the_corners_and_the_middle_twice() {
        let ten = views(&[], 10, Some(224)).of(256, 341).unwrap();
        let from: Vec<[usize; 2]> = ten.iter().map(|v| v.place.from).collect();
        let five = [[0, 0], [0, 117], [32, 0], [32, 117], [16, 58]];
        assert_eq!(from, [five, five].concat());
        assert_eq!(ten.iter().map(|v| v.mirrored).collect::<Vec<_>>(), [[false; 5], [true; 5]].concat());
        assert!(ten.iter().all(|v| v.place.take == [224, 224] && v.place.size == [256, 341]));
    }

    #[test]
    fn scales_are_shorter_sides() {
        let sizes = |v: Views| v.of(30, 40).unwrap().iter().map(|v| v.place.take).collect::<Vec<_>>();
        assert_eq!(sizes(views(&[], 1, None)), [[30, 40]]);
        assert_eq!(sizes(views(&[24, 60], 1, None)), [[24, 32], [60, 80]]);
        assert_eq!(sizes(views(&[24, 60], 1, Some(20))), [[20, 20]; 2]);
        assert_eq!(sizes(views(&[36], 10, None)), [[30, 30]; 10]);
        for (wrong, say) in [
            (views(&[24], 10, None), "a crop of 30x30 does not lie in an image of 24x32"),
            (views(&[], 1, Some(31)), "31x31"),
            (views(&[0], 1, None), "0x0"),
            (views(&[], 5, None), "1 or 10 crops, not 5"),
        ] {
            let e = wrong.of(30, 40).unwrap_err();
            assert!(e.to_string().contains(say) && e.exit_code() == 2, "{e}");
        }
    }
}
