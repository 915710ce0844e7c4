//! The set that is part of the program, so that the first run needs no download.

use std::io::Read;
use std::sync::Arc;

use crate::{Error, Memory, Result, Source, Split, Subset};

/// UCI handwritten digits, 8 by 8 pixels of 0..=16: see LICENSE-digits.md beside this file.
pub(crate) const DIGITS: &str = "digits";

const PACKED: &[u8] = include_bytes!("digits.bin");
const SAMPLES: usize = 1797;
const PIXELS: usize = 64;
/// Of each class, in the file's order, every fifth sample is held out for the test split.
const HELD_OUT: usize = 5;

/// One split of the digits.
pub(crate) fn digits(split: Split) -> Result<Arc<dyn Source>> {
    let (labels, images) = unpack()?;
    let mut seen = [0usize; 10];
    let mut ids = Vec::new();
    for (id, &label) in labels.iter().enumerate() {
        // A label that is none is refused below, by name.
        let Some(count) = seen.get_mut(usize::from(label)) else { continue };
        *count += 1;
        if (*count % HELD_OUT == 0) == (split == Split::Test) {
            ids.push(id as u64);
        }
    }
    let labels = labels.into_iter().map(i64::from).collect();
    let classes = (0..10).map(|c| c.to_string()).collect();
    let all = Memory::classification(DIGITS, images, [8, 8, 1], 16.0, labels, classes)?;
    Ok(Arc::new(Subset::new(format!("{DIGITS} ({})", split.name()), all.shared(), ids)?))
}

/// The labels and the images [1797, 8, 8], in the file's order. Packed are the labels and then a plane
/// of 1797 values for every place in the image.
fn unpack() -> Result<(Vec<u8>, Vec<u8>)> {
    let mut labels = Vec::with_capacity(SAMPLES * (PIXELS + 1));
    let read = flate2::read::ZlibDecoder::new(PACKED).read_to_end(&mut labels);
    if read.ok() != Some(SAMPLES * (PIXELS + 1)) {
        return Err(Error::format("digits.bin", "the embedded copy is damaged; build the program again"));
    }
    let planes = labels.split_off(SAMPLES);
    let mut images = vec![0; planes.len()];
    for (place, plane) in planes.chunks_exact(SAMPLES).enumerate() {
        for (image, &x) in images.chunks_exact_mut(PIXELS).zip(plane) {
            image[place] = x;
        }
    }
    Ok((labels, images))
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::Record;

    #[test]
    fn the_content_is_scikit_learns() {
        let (labels, images) = unpack().unwrap();
        let hash = Sha256::new().chain_update(&labels).chain_update(&images).finalize();
        // As printed by make_digits.py from scikit-learn's arrays.
        let expected = "e1d88a0854e29e01d16358d2cd026aa8fc20dfc4cdb3fce004300857ea82aa70";
        assert_eq!(crate::files::hex(&hash), expected);
    }

    #[test]
    fn splits_are_stratified_and_complete() {
        let count = |split| {
            let set = digits(split).unwrap();
            let mut counts = [0; 10];
            (0..set.len()).for_each(|i| counts[set.label(i).unwrap().unwrap() as usize] += 1);
            counts
        };
        let (train, test) = (count(Split::Train), count(Split::Test));
        assert_eq!(test, [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]);
        assert_eq!(train, [143, 146, 142, 147, 145, 146, 145, 144, 140, 144]);
        assert_eq!(train.iter().chain(&test).sum::<i32>(), 1797);
    }

    #[test]
    fn the_first_images_are_where_they_belong() {
        // Samples 0 to 9 of the file show 0 to 9, so all are in training; the row is from the publication.
        let set = digits(Split::Train).unwrap();
        let mut record = Record::default();
        set.read(0, &mut record).unwrap();
        assert_eq!(record.fields[0].bytes[..16], [0, 0, 5, 13, 9, 1, 0, 0, 0, 0, 13, 15, 10, 15, 5, 0]);
        assert_eq!(record.fields[0].shape, [8, 8, 1]);
        assert!((0..10).all(|i| set.label(i).unwrap() == Some(i as i64)));
    }
}
