//! From an image's draw to its pixels, row by row.

use super::look::Draw;
use super::noise::wave;
use crate::Picture;

/// Paints one image of three channels.
pub(super) fn paint(mut draw: Draw) -> Picture {
    let [height, width] = draw.size;
    let mut pixels = vec![0; height * width * 3];
    let [mut noise, mut coarse, mut grain, mut light] = [0; 4].map(|_| vec![0.0f32; width]);
    let mut bytes = vec![0u8; width];
    let mut planes = [0; 3].map(|_| vec![0.0f32; width]);
    for (y, row) in pixels.chunks_exact_mut(width * 3).enumerate() {
        noise.fill(0.0);
        coarse.fill(0.0);
        if let Some((first, _)) = draw.octaves.first_mut() {
            first.add(y, draw.bend, &mut coarse);
        }
        for (octave, amplitude) in &mut draw.octaves {
            octave.add(y, *amplitude, &mut noise);
        }
        ground(&draw, y, &noise, &coarse, &mut planes);
        for shape in &draw.shapes {
            shape.draw(y, &mut planes);
        }
        // The middle of the picture is as bright as the colours say.
        let below = (y as f32 - height as f32 * 0.5) * draw.gradient[0] + 1.0;
        for (x, light) in light.iter_mut().enumerate() {
            *light = below + (x as f32 - width as f32 * 0.5) * draw.gradient[1];
        }
        draw.bits.fill(&mut grain);
        for (plane, channel) in planes.iter().zip(0..) {
            let values = plane.iter().zip(&light).zip(&grain);
            for (byte, ((&value, &light), &grain)) in bytes.iter_mut().zip(values) {
                // What is beyond a byte's range becomes its end.
                *byte = (value * light + grain * draw.grain + 0.5) as u8;
            }
            for (pixel, &byte) in row.as_chunks_mut::<3>().0.iter_mut().zip(&bytes) {
                pixel[channel] = byte;
            }
        }
    }
    Picture { height, width, channels: 3, pixels }
}

/// The ground's colours in row `y`: waves, bent by the coarse noise, and noise.
fn ground(draw: &Draw, y: usize, noise: &[f32], coarse: &[f32], planes: &mut [Vec<f32>; 3]) {
    let start = draw.phase + y as f32 * draw.step[0];
    let (of_waves, of_noise) = (0.5 * draw.share, 0.5 * (1.0 - draw.share));
    let [first, second, third] = planes;
    let [from, to] = &draw.colours;
    let rows = first.iter_mut().zip(second).zip(third);
    for (x, (((red, green), blue), (&noise, &coarse))) in rows.zip(noise.iter().zip(coarse)).enumerate() {
        let stripes = wave(start + x as f32 * draw.step[1] + coarse) * draw.sharpness;
        let t = (0.5 + of_waves * stripes.clamp(-1.0, 1.0) + of_noise * noise).clamp(0.0, 1.0);
        *red = from[0] + t * (to[0] - from[0]);
        *green = from[1] + t * (to[1] - from[1]);
        *blue = from[2] + t * (to[2] - from[2]);
    }
}
