//! A thread's way of decoding one image file after the other: of each only the part that is wanted.

use std::io::Cursor;

use serde::{Deserialize, Serialize};

use super::{CUT_OFF, Picture, check_size, damaged_jpeg, general, jpeg, kind, luma};
use crate::Codec;

/// `loader.limits`: what an image file may cost. One beyond them is an error that names its sample, as a damaged one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The most pixels, height times width.
    pub max_pixels: u64,
    /// The most bytes of its file.
    pub max_bytes: u64,
    /// The most milliseconds that decoding may take; 0 for no limit. Beyond it the run ends, whatever `loader.bad_records`
    /// says: what a clock decides would not be the same on all ranks, or another time.
    pub decode_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { max_pixels: super::MOST as u64, max_bytes: 1 << 28, decode_ms: 0 }
    }
}

/// What decodes image files, with its version: files decode to the same pixels wherever it is the same.
pub fn decoder() -> String {
    // The first number rises with every change of what the decoder makes of a file.
    "phalanx-jpeg 1, zune-jpeg 0.5, png 0.18".to_owned()
}

/// What is wrong with a JPEG file that could not be opened.
pub(super) fn opening(e: jpeg::Damage) -> String {
    if e == jpeg::CUT_OFF { CUT_OFF.to_owned() } else { damaged_jpeg(e) }
}

/// Decodes files. Nothing is allocated for an image of a usual kind once there have been some.
#[derive(Debug, Default)]
pub(crate) struct Files {
    limits: Limits,
    jpeg: jpeg::Decoder,
    opened: Opened,
    pixels: Vec<u8>,
}

/// The file that was opened last.
#[derive(Debug, Default)]
struct Opened {
    size: [usize; 2],
    /// The components of a JPEG file of the usual kind.
    components: Option<usize>,
}

impl Files {
    pub(crate) fn new(limits: Limits) -> Self {
        Files { limits, ..Files::default() }
    }

    /// Reads the headers of a file: its height and width. The error is what is wrong, without a name.
    pub(crate) fn open(&mut self, bytes: &[u8]) -> Result<[usize; 2], String> {
        let Limits { max_bytes, max_pixels, .. } = self.limits;
        if bytes.len() as u64 > max_bytes {
            return Err(format!("it has {} bytes, and loader.limits.max_bytes is {max_bytes}", bytes.len()));
        }
        let (size, components) = match kind(bytes)? {
            Codec::Jpeg => match self.jpeg.open(bytes).map_err(opening)? {
                Some([height, width, components]) => ([height, width], Some(components)),
                None => (general(bytes)?.1, None),
            },
            _ => {
                let mut decoder = png::Decoder::new(Cursor::new(bytes));
                let header =
                    decoder.read_header_info().map_err(|e| format!("it is a damaged PNG image: {e}"))?;
                ([header.height as usize, header.width as usize], None)
            }
        };
        let [height, width] = size;
        check_size(height, width)?;
        if (height * width) as u64 > max_pixels {
            return Err(format!("it is {width}x{height}, and loader.limits.max_pixels is {max_pixels}"));
        }
        self.opened = Opened { size, components };
        Ok(size)
    }

    /// What decoding may cost.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How many times smaller than it is the opened file can be decoded, of at most `shrink` times, and its size then.
    pub(crate) fn smaller(&self, shrink: usize) -> (usize, [usize; 2]) {
        let shrink = if self.opened.components.is_some() { shrink } else { 1 };
        (shrink, self.opened.size.map(|side| side.div_ceil(shrink)))
    }

    /// Decodes the part `window` (top, left, height, width) of the opened file, in the pixels of [`Files::smaller`]: its
    /// rows of pixels of `channels` (1 or 3) bytes, and the bytes between their beginnings.
    /// Behind them there may be more.
    pub(crate) fn decode(
        &mut self,
        bytes: &[u8],
        channels: usize,
        shrink: usize,
        window: [usize; 4],
    ) -> Result<(&[u8], usize), String> {
        if !matches!(channels, 1 | 3) {
            return Err(format!("an image file has 1 or 3 channels, not {channels}"));
        }
        let [top, left, tall, wide] = window;
        let mut stride = wide * channels;
        let mut first = 0;
        let pixels = match self.opened.components {
            Some(components) => {
                let decoded = self.jpeg.decode(shrink, window).map_err(damaged_jpeg)?;
                if components == channels {
                    decoded
                } else {
                    convert(decoded, components, &mut self.pixels);
                    &self.pixels
                }
            }
            None => {
                // Decoded as a whole, which `shrink` is 1 for.
                let picture = Picture::decode(bytes)?;
                let picture = if channels == 1 { picture.into_grey() } else { picture.into_rgb() };
                stride = picture.width * channels;
                first = top * stride + left * channels;
                self.pixels = picture.pixels;
                &self.pixels
            }
        };
        let count = tall.saturating_sub(1) * stride + wide * channels;
        let pixels = pixels.get(first..).filter(|pixels| pixels.len() >= count);
        Ok((pixels.ok_or("it is smaller than its header says")?, stride))
    }
}

/// Pixels of 1 byte as those of 3, and of 3 bytes as those of 1.
fn convert(pixels: &[u8], from: usize, out: &mut Vec<u8>) {
    out.clear();
    match from {
        1 => out.extend(pixels.iter().flat_map(|&x| [x; 3])),
        _ => out.extend(pixels.as_chunks::<3>().0.iter().map(luma)),
    }
}
