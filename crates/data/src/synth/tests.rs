use std::collections::HashSet;

use super::*;

fn config() -> SynthConfig {
    SynthConfig {
        classes: 5,
        images: 43,
        val: 12,
        size: [48, 64],
        vary: 0.1,
        codec: SynthCodec::Jpeg(90),
        seed: 3,
    }
}

fn images(set: &Synth) -> Vec<Vec<u8>> {
    (0..set.len()).map(|id| set.picture(id).unwrap().pixels).collect()
}

#[test]
fn no_two_images_are_the_same_in_or_between_splits() {
    let config = SynthConfig { vary: 0.0, ..config() };
    let (train, val) = (Synth::new(&config, false).unwrap(), Synth::new(&config, true).unwrap());
    let all: Vec<Vec<u8>> = images(&train).into_iter().chain(images(&val)).collect();
    let different: HashSet<&Vec<u8>> = all.iter().collect();
    assert_eq!((all.len(), different.len()), (55, 55));
    // Not even nearly: the same draw under another key would be.
    for (i, a) in all.iter().enumerate() {
        for b in &all[..i] {
            let off: u64 = a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
            assert!(off / a.len() as u64 > 8, "two images differ by {off} in {} bytes", a.len());
        }
    }
}

#[test]
fn an_image_depends_on_seed_split_class_and_index_alone() {
    let small = Synth::new(&config(), false).unwrap();
    let large = Synth::new(&SynthConfig { images: 1_281_167, val: 50_000, ..config() }, false).unwrap();
    assert_eq!(small.picture(17).unwrap(), large.picture(17).unwrap());
    assert_eq!(large.picture(1_281_166).unwrap(), large.picture(1_281_166).unwrap());
    let other = Synth::new(&SynthConfig { seed: 4, ..config() }, false).unwrap();
    assert_ne!(small.picture(17).unwrap(), other.picture(17).unwrap());
}

/// Whoever changes a pixel changes sets that are measured against each other: count [`VERSION`] up then.
#[test]
fn pixels_are_those_of_this_version() {
    let hash = |size: [usize; 2]| {
        let config = SynthConfig { size, vary: 0.0, ..config() };
        let set = Synth::new(&config, false).unwrap();
        let mut hash = blake3::Hasher::new();
        for id in 0..10 {
            hash.update(&set.picture(id).unwrap().pixels);
        }
        hash.finalize().to_hex()[..16].to_owned()
    };
    assert_eq!((VERSION, hash([32, 32]), hash([75, 100])), (1, "0d51119f995801c2".into(), "85cdd5c1652c6ab2".into()));
}

#[test]
fn records_are_what_the_schema_says() {
    let mut record = Record::default();
    for codec in [SynthCodec::Jpeg(85), SynthCodec::Raw] {
        let vary = if codec == SynthCodec::Raw { 0.0 } else { 0.2 };
        let set = Synth::new(&SynthConfig { codec, vary, ..config() }, true).unwrap();
        assert_eq!((set.len(), set.schema().classes.len()), (12, 5));
        let mut counts = [0; 5];
        for id in 0..set.len() {
            set.read(id, &mut record).unwrap();
            let [image, label] = &record.fields[..] else { panic!("{record:?}") };
            let class = i64::from_le_bytes(label.bytes[..].try_into().unwrap());
            assert_eq!(set.label(id).unwrap(), Some(class));
            counts[class as usize] += 1;
            let most = &set.schema().fields[0].shape;
            assert!(image.shape.iter().zip(most).all(|(a, b)| a <= b), "{:?} {most:?}", image.shape);
            match codec {
                SynthCodec::Raw => assert_eq!((&image.shape, image.bytes.len()), (most, 48 * 64 * 3)),
                SynthCodec::Jpeg(_) => {
                    let picture = Picture::decode(&image.bytes).unwrap();
                    assert_eq!(vec![picture.height, picture.width, picture.channels], image.shape);
                }
            }
        }
        assert_eq!(counts, [3, 3, 2, 2, 2]);
        assert!(matches!(set.read(12, &mut record), Err(Error::NoSample { sample: 12, len: 12, .. })));
        assert!(set.label(12).is_err());
    }
}

#[test]
fn what_is_no_set_is_refused() {
    let refused = |config: SynthConfig, what: &str| {
        let e = Synth::new(&config, false).unwrap_err();
        assert!(e.kind() == crate::Kind::Usage && e.to_string().starts_with(what), "{e}");
    };
    refused(SynthConfig { classes: 0, ..config() }, "--classes");
    refused(SynthConfig { classes: 100_001, ..config() }, "--classes");
    refused(SynthConfig { images: 0, ..config() }, "--images");
    refused(SynthConfig { size: [7, 64], ..config() }, "--size");
    refused(SynthConfig { size: [64, 8193], ..config() }, "--size");
    refused(SynthConfig { vary: f32::NAN, ..config() }, "--vary");
    refused(SynthConfig { vary: 0.6, ..config() }, "--vary");
    refused(SynthConfig { codec: SynthCodec::Jpeg(0), ..config() }, "--quality");
    refused(SynthConfig { codec: SynthCodec::Raw, ..config() }, "--vary");
}
