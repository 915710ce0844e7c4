//! Pixels into image files: JPEG for records, PNG for pictures that people look at.

use jpeg_encoder::{ColorType as JpegColour, Encoder, SamplingFactor};
use png::{BitDepth, ColorType, Compression};

use super::Picture;

/// The longest side of a JPEG file.
const LONGEST_JPEG: usize = 65_535;

impl Picture {
    /// Writes a baseline JPEG file into `out`, which it replaces: grey with one channel, else YCbCr with the colours at
    /// half resolution (4:2:0), as photographs are usually stored. `quality` is libjpeg's scale, 1..=100.
    ///
    /// The bytes are a function of pixels and quality alone: all arithmetic is that of whole numbers.
    ///
    /// The error is what is wrong, without a name.
    pub fn to_jpeg(&self, quality: u8, out: &mut Vec<u8>) -> Result<(), String> {
        if !(1..=100).contains(&quality) {
            return Err(format!("a JPEG file's quality is 1..=100, not {quality}"));
        }
        self.check()?;
        let side = |n: usize| {
            let Picture { height, width, .. } = self;
            let refused =
                format!("it is {width}x{height}; a JPEG file has at most {LONGEST_JPEG} pixels a side");
            u16::try_from(n).map_err(|_| refused)
        };
        let (width, height) = (side(self.width)?, side(self.height)?);
        out.clear();
        let mut encoder = Encoder::new(&mut *out, quality);
        encoder.set_sampling_factor(SamplingFactor::F_2_2);
        let colour = if self.channels == 1 { JpegColour::Luma } else { JpegColour::Rgb };
        encoder
            .encode(&self.pixels, width, height, colour)
            .map_err(|e| format!("it cannot become a JPEG file: {e}"))
    }

    /// As a PNG file, without loss.
    ///
    /// The error is what is wrong, without a name.
    pub fn to_png(&self) -> Result<Vec<u8>, String> {
        self.check()?;
        let side =
            |n: usize| u32::try_from(n).map_err(|_| format!("{n} pixels are too many for a PNG file's side"));
        let failed = |e: png::EncodingError| format!("it cannot become a PNG file: {e}");
        let mut out = Vec::new();
        let mut encoder = png::Encoder::new(&mut out, side(self.width)?, side(self.height)?);
        encoder.set_color(if self.channels == 1 { ColorType::Grayscale } else { ColorType::Rgb });
        encoder.set_depth(BitDepth::Eight);
        encoder.set_compression(Compression::Fast);
        let mut writer = encoder.write_header().map_err(failed)?;
        writer.write_image_data(&self.pixels).map_err(failed)?;
        writer.finish().map_err(failed)?;
        Ok(out)
    }

    /// The fields are anybody's to fill in: they must fit each other.
    fn check(&self) -> Result<(), String> {
        let Picture { height, width, channels, pixels } = self;
        if *height == 0 || *width == 0 {
            return Err(format!("it is {width}x{height}: there is no pixel"));
        }
        if !matches!(channels, 1 | 3) {
            return Err(format!("it has {channels} channels; images have 1 or 3"));
        }
        let wanted = height.checked_mul(*width).and_then(|n| n.checked_mul(*channels));
        if wanted != Some(pixels.len()) {
            return Err(format!(
                "{} bytes are no image of {width}x{height} with {channels} channels",
                pixels.len()
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Soft waves, as JPEG likes them.
    fn smooth(height: usize, width: usize, channels: usize) -> Picture {
        let at = |i: usize| {
            let (y, x, c) = (i / channels / width, i / channels % width, i % channels);
            let wave = (x as f32 * 0.05 + c as f32).sin() + (y as f32 * 0.04).cos();
            (127.0 + 60.0 * wave) as u8
        };
        let pixels = (0..height * width * channels).map(at).collect();
        Picture { height, width, channels, pixels }
    }

    fn mean_difference(a: &Picture, b: &Picture) -> f64 {
        let sum: u64 = a.pixels.iter().zip(&b.pixels).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        sum as f64 / a.pixels.len() as f64
    }

    #[test]
    fn jpeg_files_are_nearly_what_was_written() {
        let mut file = b"what was there before".to_vec();
        for channels in [1, 3] {
            for (height, width) in [(1, 1), (8, 8), (17, 33), (64, 48), (3, 500)] {
                let picture = smooth(height, width, channels);
                let mut before = usize::MAX;
                for (quality, most) in [(95, 1.5), (75, 2.5), (25, 6.0)] {
                    picture.to_jpeg(quality, &mut file).unwrap();
                    let again = Picture::decode(&file).unwrap();
                    assert_eq!((again.height, again.width, again.channels), (height, width, channels));
                    let off = mean_difference(&picture, &again);
                    assert!(off <= most, "{height}x{width}x{channels} at {quality} is off by {off}");
                    assert!(file.len() <= before, "less quality takes more bytes");
                    before = file.len();
                }
            }
        }
    }

    #[test]
    fn colours_of_jpeg_files_have_half_the_resolution() {
        let mut file = Vec::new();
        smooth(32, 32, 3).to_jpeg(95, &mut file).unwrap();
        // The frame header: marker, length, bits, height, width, 3 components, then the first one's factors.
        let at = file.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
        assert_eq!((file[at + 9], file[at + 11]), (3, 0x22));
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        let mut out = Vec::new();
        let say = |p: &Picture, q: u8, out: &mut Vec<u8>| p.to_jpeg(q, out).unwrap_err();
        let good = smooth(4, 4, 3);
        assert!(say(&good, 0, &mut out).contains("1..=100"));
        assert!(say(&good, 101, &mut out).contains("1..=100"));
        let empty = Picture { height: 0, width: 4, channels: 3, pixels: Vec::new() };
        assert!(say(&empty, 90, &mut out).contains("no pixel"));
        assert!(empty.to_png().unwrap_err().contains("no pixel"));
        let short = Picture { pixels: vec![0; 47], ..good.clone() };
        assert!(say(&short, 90, &mut out).contains("47 bytes are no image of 4x4"));
        assert!(short.to_png().is_err());
        let four = Picture { height: 2, width: 2, channels: 4, pixels: vec![0; 16] };
        assert!(say(&four, 90, &mut out).contains("4 channels"));
        let long = Picture { height: 1, width: 70_000, channels: 1, pixels: vec![0; 70_000] };
        assert!(say(&long, 90, &mut out).contains("at most 65535 pixels a side"));
        assert_eq!(Picture::decode(&long.to_png().unwrap()).unwrap(), long);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn png_files_are_what_was_written(
            (height, width, channels) in (1..40usize, 1..40usize, prop::sample::select(&[1usize, 3][..])),
            seed in any::<u64>(),
        ) {
            let byte = |i: usize| (seed.wrapping_add(i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
            let pixels = (0..height * width * channels).map(byte).collect();
            let picture = Picture { height, width, channels, pixels };
            prop_assert_eq!(&Picture::decode(&picture.to_png().unwrap()).unwrap(), &picture);
            // Noise is the worst case of a JPEG encoder's buffers.
            let mut file = Vec::new();
            picture.to_jpeg(100, &mut file).unwrap();
            prop_assert_eq!(Picture::decode(&file).unwrap().pixels.len(), picture.pixels.len());
        }
    }
}
