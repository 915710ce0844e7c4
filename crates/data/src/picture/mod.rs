//! Image files: JPEG and PNG into pixels, in pure Rust.

mod encode;
mod files;
mod frame;
mod jpeg;
mod probe;
mod resize;
mod simd;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::Cursor;
use std::path::Path;

pub(crate) use files::Files;
pub use files::{Limits, decoder};
pub(crate) use frame::{Area, Frame, Framer};
use png::{BitDepth, ColorType, Transformations};
pub(crate) use probe::probe;
pub(crate) use resize::bilinear;
pub use resize::{Place, Resample, shorter_side};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::{Codec, Error, Result};

/// The most pixels of an image file that is decoded: what a few bytes can claim must not exhaust memory.
const MOST: usize = 1 << 27;
/// The longest side.
const LONGEST: usize = 1 << 20;

/// What files begin with.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
const JPEG: &[u8] = b"\xff\xd8\xff";

/// An image of bytes: grey, or red, green and blue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// 1 or 3.
    pub channels: usize,
    /// [height, width, channels], row-major.
    pub pixels: Vec<u8>,
}

impl Picture {
    /// Reads a JPEG or PNG file. As with Pillow's `convert("RGB")`: opacity is dropped, colours of a palette are
    /// looked up, CMYK is taken as Adobe's (inverted); of 16 bits the upper eight count. Grey stays grey.
    ///
    /// Fails with [`Error::Format`] on a file that is no such image, or is damaged, and with [`Error::Io`] where
    /// it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(Error::io("read", path))?;
        Picture::decode(&bytes).map_err(|problem| Error::format(path, problem))
    }

    /// As [`Picture::read`] for a file's contents. The error is what is wrong, without a name.
    pub fn decode(bytes: &[u8]) -> std::result::Result<Self, String> {
        match kind(bytes)? {
            Codec::Jpeg => jpeg(bytes),
            _ => png(bytes),
        }
    }

    /// With three channels: grey is repeated.
    pub fn into_rgb(self) -> Self {
        if self.channels == 3 {
            return self;
        }
        let pixels = self.pixels.iter().flat_map(|&x| [x; 3]).collect();
        Picture { channels: 3, pixels, ..self }
    }

    /// With one channel, as Pillow's `convert("L")`.
    pub fn into_grey(self) -> Self {
        if self.channels == 1 {
            return self;
        }
        let pixels = self.pixels.as_chunks().0.iter().map(luma).collect();
        Picture { channels: 1, pixels, ..self }
    }
}

/// The weights of ITU-R BT.601 in 16 bits, as Pillow's `convert("L")` has them.
pub(crate) fn luma(&[r, g, b]: &[u8; 3]) -> u8 {
    let [r, g, b] = [r, g, b].map(u32::from);
    ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16) as u8
}

/// Whether a file is a JPEG or a PNG image; else what is wrong with it.
fn kind(bytes: &[u8]) -> std::result::Result<Codec, String> {
    match bytes {
        b if b.starts_with(PNG) => Ok(Codec::Png),
        b if b.starts_with(JPEG) => Ok(Codec::Jpeg),
        [] => Err("it is empty, not an image".into()),
        b => Err(match other_format(b) {
            Some(name) => format!("it is a {name} image; JPEG and PNG are read"),
            None => "it is no JPEG or PNG image".into(),
        }),
    }
}

/// What else a file may be, from its first bytes.
fn other_format(bytes: &[u8]) -> Option<&'static str> {
    let riff = bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP");
    let starts: [(&[u8], &str); 5] = [
        (b"GIF8", "GIF"),
        (b"BM", "BMP"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"\0\0\0\x0cjP", "JPEG 2000"),
    ];
    let found = starts.iter().find(|(start, _)| bytes.starts_with(start)).map(|(_, name)| *name);
    found.or(riff.then_some("WebP"))
}

/// Gives a buffer back that one very large image has made: every loader thread has some, and keeps them for the next image.
pub(crate) fn let_go<T>(buffer: &mut Vec<T>) {
    const KEPT: usize = 64 << 20;
    if buffer.capacity() * size_of::<T>() > KEPT {
        *buffer = Vec::new();
    }
}

/// Checks the size that a header claims.
fn check_size(height: usize, width: usize) -> std::result::Result<(), String> {
    if height == 0 || width == 0 {
        return Err(format!("it is {width}x{height}: there is no pixel"));
    }
    match height.checked_mul(width) {
        Some(n) if n <= MOST && height.max(width) <= LONGEST => Ok(()),
        _ => Err(format!("it is {width}x{height}; images of at most {MOST} pixels are read")),
    }
}

/// Whether a JPEG file has its end: the decoder fills up with grey what is cut off, which nobody means. Segments are
/// skipped by their lengths, since a thumbnail in one has an end of its own; what follows the end may be anything.
fn is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[first, kind]) = bytes.get(at..at + 2) {
        at += match (first, kind) {
            (0xff, 0xd9) => return true,
            // Fill before a marker.
            (0xff, 0xff) => 1,
            // A byte of a scan's data, or a marker without a segment.
            (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => 2,
            (0xff, _) => match bytes.get(at + 2..at + 4) {
                Some(&[high, low]) => 2 + usize::from(u16::from_be_bytes([high, low])),
                _ => return false,
            },
            _ => 1,
        };
    }
    false
}

fn jpeg(bytes: &[u8]) -> std::result::Result<Picture, String> {
    if !is_whole(bytes) {
        return Err(CUT_OFF.into());
    }
    let mut decoder = jpeg::Decoder::default();
    if let Some([height, width, channels]) = decoder.open(bytes).map_err(files::opening)? {
        check_size(height, width)?;
        let pixels = decoder.decode(1, [0, 0, height, width]).map_err(damaged_jpeg)?;
        let pixels = pixels[..height * width * channels].to_vec();
        return checked(Picture { height, width, channels, pixels });
    }
    let (mut decoder, [height, width], channels) = general(bytes)?;
    let pixels = decoder.decode().map_err(damaged_jpeg)?;
    checked(Picture { height, width, channels, pixels })
}

const CUT_OFF: &str = "it is a JPEG image that is cut off";

fn damaged_jpeg(e: impl std::fmt::Display) -> String {
    format!("it is a damaged JPEG image: {e}")
}

/// The decoder of all kinds of JPEG files with the headers read: height and width, and 1 or 3 channels.
#[allow(clippy::type_complexity)]
fn general(bytes: &[u8]) -> std::result::Result<(JpegDecoder<Cursor<&[u8]>>, [usize; 2], usize), String> {
    let options = DecoderOptions::default()
        // Else what is damaged comes out as grey.
        .set_strict_mode(true)
        .set_max_width(LONGEST)
        .set_max_height(LONGEST)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(Cursor::new(bytes), options);
    decoder.decode_headers().map_err(damaged_jpeg)?;
    let info = decoder.info().ok_or("it is a JPEG image without a header")?;
    let (height, width) = (usize::from(info.height), usize::from(info.width));
    check_size(height, width)?;
    let channels = if decoder.input_colorspace() == Some(ColorSpace::Luma) { 1 } else { 3 };
    if channels == 1 {
        decoder.set_options(options.jpeg_set_out_colorspace(ColorSpace::Luma));
    }
    Ok((decoder, [height, width], channels))
}

fn png(bytes: &[u8]) -> std::result::Result<Picture, String> {
    let damaged = |e: png::DecodingError| format!("it is a damaged PNG image: {e}");
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    // They are not looked at, and may be packed so that a small file fills memory.
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_ignore_text_chunk(true);
    let header = decoder.read_header_info().map_err(damaged)?;
    let (height, width) = (header.height as usize, header.width as usize);
    check_size(height, width)?;
    // Four channels of 16 bits, and something for the rest.
    decoder.set_limits(png::Limits { bytes: 8 * height * width + (16 << 20) });
    let mut reader = decoder.read_info().map_err(damaged)?;
    // The decoder takes for granted that a palette is made of whole colours.
    if reader.info().palette.as_ref().is_some_and(|p| p.is_empty() || p.len() % 3 != 0 || p.len() > 3 * 256) {
        return Err("it is a damaged PNG image: its palette is no list of colours".into());
    }
    let (colour, depth) = reader.output_color_type();
    if depth != BitDepth::Eight {
        return Err(format!("it is a PNG image of {depth:?} bits, which cannot be converted"));
    }
    let mut pixels = vec![0; reader.output_buffer_size().ok_or("it is larger than memory")?];
    reader.next_frame(&mut pixels).map_err(damaged)?;
    let (channels, stored) = match colour {
        ColorType::Grayscale => (1, 1),
        ColorType::GrayscaleAlpha => (1, 2),
        ColorType::Rgb => (3, 3),
        ColorType::Rgba => (3, 4),
        ColorType::Indexed => return Err("it is a PNG image without its palette".into()),
    };
    if stored != channels {
        pixels = pixels.chunks_exact(stored).flat_map(|p| p[..channels].iter().copied()).collect();
    }
    checked(Picture { height, width, channels, pixels })
}

/// What a decoder gives must be as large as it says.
fn checked(picture: Picture) -> std::result::Result<Picture, String> {
    let Picture { height, width, channels, .. } = picture;
    match picture.pixels.len() == height * width * channels {
        true => Ok(picture),
        false => Err(format!("{} bytes came of an image of {width}x{height}", picture.pixels.len())),
    }
}
