//! Against Pillow and torchvision (tests/golden/pictures.py), and against files that are no images.

use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/pictures").join(name)
}

fn numbers() -> Value {
    serde_json::from_slice(&fs::read(golden("pictures.json")).unwrap()).unwrap()
}

fn hex(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap().as_bytes();
    text.as_chunks::<2>()
        .0
        .iter()
        .map(|c| u8::from_str_radix(str::from_utf8(c).unwrap(), 16).unwrap())
        .collect()
}

fn pair(value: &Value) -> [usize; 2] {
    [0, 1].map(|i| value[i].as_u64().unwrap() as usize)
}

fn furthest(a: &[u8], b: &[u8]) -> u8 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

#[test]
fn files_of_every_kind_are_what_pillow_makes_of_them() {
    let numbers = numbers();
    let files = numbers["files"].as_object().unwrap();
    assert_eq!(files.len(), 23);
    for (name, wanted) in files {
        let picture = Picture::read(&golden(name)).unwrap();
        assert_eq!([picture.height, picture.width], pair(&wanted["size"]), "{name}");
        let grey = name.starts_with("grey") || name == "bits.png";
        assert_eq!(picture.channels, if grey { 1 } else { 3 }, "{name}");
        // JPEG leaves the rounding of its transforms open; that of the usual files is libjpeg's.
        let general = ["progressive.jpg", "cmyk.jpg"].contains(&&name[..]);
        let off = furthest(&picture.into_rgb().pixels, &hex(&wanted["rgb"]));
        assert!(off <= if general { 3 } else { 0 }, "{name} is off by {off}");
    }
}

/// Decodes a part of a file at a part of its size: its pixels.
fn window(files: &mut Files, file: &[u8], channels: usize, shrink: usize, window: [usize; 4]) -> Vec<u8> {
    files.open(file).unwrap();
    assert_eq!(files.smaller(shrink).0, shrink);
    let (pixels, stride) = files.decode(file, channels, shrink, window).unwrap();
    let [_, _, tall, wide] = window;
    (0..tall).flat_map(|y| pixels[y * stride..][..wide * channels].to_vec()).collect()
}

#[test]
fn files_decoded_smaller_are_what_libjpeg_makes_of_them() {
    let mut files = Files::default();
    for case in numbers()["smaller"].as_array().unwrap() {
        let (name, times) = (case["file"].as_str().unwrap(), case["times"].as_u64().unwrap() as usize);
        let file = fs::read(golden(&format!("{name}.jpg"))).unwrap();
        let [height, width] = pair(&case["size"]);
        files.open(&file).unwrap();
        assert_eq!(files.smaller(times), (times, [height, width]));
        let ours = window(&mut files, &file, 3, times, [0, 0, height, width]);
        let wanted = hex(&case["rgb"]);
        // libjpeg's smaller transforms round otherwise, and it repeats colours where here they are interpolated.
        let mean =
            ours.iter().zip(&wanted).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / ours.len() as f64;
        println!("{name} {times} {mean} {}", furthest(&ours, &wanted));
        assert!(mean < 1.0, "{name} at 1/{times} is off by {mean} in the mean");
    }
}

#[test]
fn a_window_of_a_file_is_that_part_of_the_whole() {
    let mut files = Files::default();
    for name in
        ["ycc444", "ycc422", "ycc420", "restarts", "red-green-blue", "grey-odd", "progressive", "tiny"]
    {
        let file = fs::read(golden(&format!("{name}.jpg"))).unwrap();
        let [height, width] = files.open(&file).unwrap();
        let most = files.smaller(8).0;
        for shrink in [1, 2, 4, 8].into_iter().filter(|s| *s <= most) {
            for channels in [1, 3] {
                let [h, w] = [height, width].map(|side| side.div_ceil(shrink));
                let whole = window(&mut files, &file, channels, shrink, [0, 0, h, w]);
                for place in [
                    [0, 0, 1, 1],
                    [h - 1, w - 1, 1, 1],
                    [h / 3, w / 2, h - h / 3, w.div_ceil(3)],
                    [h / 2, 0, 1, w],
                ] {
                    let [top, left, tall, wide] = place;
                    let part = window(&mut files, &file, channels, shrink, place);
                    let rows = whole.chunks_exact(w * channels).skip(top).take(tall);
                    let cut: Vec<u8> =
                        rows.flat_map(|r| r[left * channels..(left + wide) * channels].to_vec()).collect();
                    assert!(part == cut, "{name} at 1/{shrink}: {place:?} of {h}x{w}x{channels}");
                }
            }
        }
    }
}

#[test]
fn limits_name_what_they_are() {
    let file = fs::read(golden("ycc420.jpg")).unwrap();
    let open = |limits: Limits| Files::new(limits).open(&file);
    let e = open(Limits { max_pixels: 67 * 45 - 1, ..Limits::default() }).unwrap_err();
    assert!(e.contains("45x67") && e.contains("loader.limits.max_pixels is 3014"), "{e}");
    let e = open(Limits { max_bytes: 100, ..Limits::default() }).unwrap_err();
    assert!(e.contains("bytes, and loader.limits.max_bytes is 100"), "{e}");
    assert_eq!(open(Limits { max_pixels: 67 * 45, ..Limits::default() }), Ok([67, 45]));
}

/// The script's pattern.
fn pattern(height: usize, width: usize) -> Vec<u8> {
    let at = |i: usize| {
        let (y, x, c) = (i / 3 / width, i / 3 % width, i % 3);
        let wave = (x * (c + 2) * 7 + y * (3 - c) * 5) % 256;
        (if x + y > width { 255 - wave } else { wave }) as u8
    };
    (0..height * width * 3).map(at).collect()
}

#[test]
fn resizing_and_cropping_is_torchvisions() {
    for case in numbers()["resized"].as_array().unwrap() {
        let [height, width] = pair(&case["size"]);
        let number = |key: &str| case[key].as_u64().unwrap() as usize;
        let place = Place::middle(height, width, number("shorter"), number("crop"));
        let (pixels, wanted) = (pattern(height, width), hex(&case["rgb"]));
        let ours = u8::resize(&pixels, [height, width, 3], place);
        assert_eq!(furthest(&ours, &wanted), 0, "{height}x{width} {place:?}");
        let floats: Vec<f32> = pixels.iter().map(|&p| f32::from(p)).collect();
        let ours = f32::resize(&floats, [height, width, 3], place);
        // Pillow rounds between the passes, here nothing is.
        let off = ours.iter().zip(&wanted).map(|(a, b)| (a - f32::from(*b)).abs()).fold(0.0, f32::max);
        assert!(off <= 1.01, "{height}x{width} {place:?}: {off}");
    }
}

proptest! {
    #[test]
    fn frames_are_resized_as_images_are(
        size in [1usize..40, 1usize..40], to in [1usize..40, 1usize..40], channels in prop::sample::select(&[1usize, 3, 4][..]),
        part in [0.0f64..1.0, 0.0..1.0, 0.0..1.0, 0.0..1.0], mirrored: [bool; 2], seed: u32,
    ) {
        let [h, w] = size;
        let pixels: Vec<u8> = (0..h * w * channels).map(|i| (i as u32).wrapping_mul(seed | 1).to_le_bytes()[2]).collect();
        let from = [0, 1].map(|a| (part[a] * to[a] as f64) as usize);
        let take = [0, 1].map(|a| 1 + (part[2 + a] * (to[a] - from[a] - 1) as f64) as usize);
        let place = Place { size: to, from, take };
        let mut frame = Frame { place, canvas: take, antialias: true, mirrored, ..Frame::whole(size) };
        let mut framer = Framer::default();
        let [top, left, tall, wide] = framer.plan(&frame, &Area::of(&frame, 1, size));
        let mut out = vec![0; take[0] * take[1] * channels];
        let first = (top * w + left) * channels;
        framer.run(&frame, &pixels[first..], ([tall, wide], w * channels, channels), &mut out);
        let mut wanted = u8::resize(&pixels, [h, w, channels], place);
        if mirrored[0] {
            wanted = wanted.chunks_exact(take[1] * channels).rev().flatten().copied().collect();
        }
        if mirrored[1] {
            let row = |r: &[u8]| r.chunks_exact(channels).rev().flatten().copied().collect::<Vec<u8>>();
            wanted = wanted.chunks_exact(take[1] * channels).flat_map(row).collect();
        }
        prop_assert_eq!(&out, &wanted);
        // Without vectors the same.
        frame.canvas = take;
        let mut plain = Framer::portable();
        plain.plan(&frame, &Area::of(&frame, 1, size));
        plain.run(&frame, &pixels[first..], ([tall, wide], w * channels, channels), &mut out);
        prop_assert_eq!(&out, &wanted);
    }
}

#[test]
fn a_part_is_the_part_of_the_whole() {
    let (size, pixels) = ([19, 23, 3], pattern(19, 23));
    for to in [[19, 23], [19, 40], [7, 23], [40, 11]] {
        let whole = u8::resize(&pixels, size, Place::whole(to));
        let (from, take) = ([3, 2], [4, 9]);
        let part = u8::resize(&pixels, size, Place { size: to, from, take });
        let cut = (3..7).flat_map(|y| whole[(y * to[1] + 2) * 3..(y * to[1] + 11) * 3].to_vec());
        assert_eq!(part, cut.collect::<Vec<_>>(), "{to:?}");
    }
    assert_eq!(u8::resize(&pixels, size, Place::whole([19, 23])), pixels);
    // One line becomes 25,600 rows, of which the middle ones are made.
    let line = u8::resize(&[7; 300], [100, 1, 3], Place::middle(100, 1, 256, 224));
    assert_eq!(line, vec![7; 224 * 224 * 3]);
    assert_eq!(shorter_side(375, 500, 256), [256, 341]);
}

#[test]
fn what_is_no_image_is_named() {
    let say = |bytes: &[u8]| Picture::decode(bytes).unwrap_err();
    assert!(say(b"").contains("empty"));
    assert!(say(b"hello, this is text").contains("no JPEG or PNG"));
    assert!(say(b"GIF89a....").contains("a GIF image; JPEG and PNG are read"));
    assert!(say(b"RIFF\0\0\0\0WEBPVP8 ").contains("a WebP image"));
    let png = fs::read(golden("rgb.png")).unwrap();
    assert!(say(&png[..png.len() / 2]).contains("damaged PNG"));
    // A header that claims 4 billion pixels, with its checksum.
    let mut huge = png.clone();
    huge[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    assert!(say(&huge).contains("PNG"), "{}", say(&huge));
    let jpeg = fs::read(golden("rgb.jpg")).unwrap();
    for cut in [40, jpeg.len() / 2, jpeg.len() - 2] {
        assert!(say(&jpeg[..cut]).contains("a JPEG image that is cut off"), "{}", say(&jpeg[..cut]));
    }
    // What follows the end is nobody's business, be it the beginning of a scan.
    let whole = Picture::decode(&jpeg).unwrap();
    for rest in [&[0, 7][..], &[0xff, 0xda, 0]] {
        assert_eq!(Picture::decode(&[&jpeg[..], rest].concat()).unwrap(), whole);
    }
    // The end of a thumbnail within a segment is not the image's.
    let thumbnail = [&jpeg[..2], &[0xff, 0xfe, 0, 6, 0xff, 0xd8, 0xff, 0xd9], &jpeg[2..]].concat();
    assert_eq!(Picture::decode(&thumbnail).unwrap(), whole);
    assert!(say(&thumbnail[..thumbnail.len() - 2]).contains("cut off"));
    let e = Picture::read(Path::new("/none.png")).unwrap_err();
    assert!(e.to_string().contains("/none.png") && e.kind() == crate::Kind::Data, "{e}");
}

/// Of what another decoder would make grey of, nothing is made.
#[test]
fn damage_within_a_jpeg_file_is_never_filled_up() {
    let read = |name: &str| fs::read(golden(name)).unwrap();
    let say = |bytes: &[u8]| {
        let e = Picture::decode(bytes).map(|p| [p.height, p.width]).unwrap_err();
        assert!(e.contains("damaged JPEG") || e.contains("cut off"), "{e}");
        let mut files = Files::new(Limits::default());
        let opened = files.open(bytes).map(|[h, w]| files.decode(bytes, 3, 1, [0, 0, h, w]).map(|_| ()));
        assert!(!matches!(opened, Ok(Ok(()))), "{e}");
        e
    };
    let segment = |bytes: &[u8], kind: u8| bytes.windows(2).position(|w| w == [0xff, kind]).unwrap();
    // A byte of the data looks like a marker.
    let mut baseline = read("ycc420.jpg");
    let scan = segment(&baseline, 0xda);
    let stuffed = scan + baseline[scan..].windows(2).position(|w| w == [0xff, 0]).unwrap();
    baseline[stuffed + 1] = 2;
    say(&baseline);
    // Ones without end, in a scan of a progressive file, are no code.
    let mut progressive = read("progressive.jpg");
    let scan = segment(&progressive, 0xda);
    progressive[scan + 16..scan + 32].copy_from_slice(&[0xff, 0].repeat(8));
    say(&progressive);
    // A table of quantisers has another segment's name.
    let mut quantisers = read("ycc420.jpg");
    let at = segment(&quantisers, 0xdb);
    quantisers[at + 1] = 0xeb;
    assert!(say(&quantisers).contains("a table of quantisers is missing"));
    // Restarts are numbered, and each has its own data.
    let restarts = read("restarts.jpg");
    let places: Vec<usize> = (segment(&restarts, 0xda)..restarts.len() - 1)
        .filter(|&at| restarts[at] == 0xff && matches!(restarts[at + 1], 0xd0..=0xd7))
        .collect();
    let [first, second] = [places[0], places[1]];
    let without = [&restarts[..first], &restarts[second..]].concat();
    assert!(say(&without).contains("restarts are not in order"));
    let shorter = [&restarts[..first + 2], &restarts[second - 2..]].concat();
    assert!(say(&shorter).contains("too early"));
    let more = [&restarts[..first], &restarts[first..first + 2].repeat(9), &restarts[first..]].concat();
    assert!(say(&more).contains("restarts are not in order"));
    // A difference of more bits than there are.
    let mut codes = read("ycc420.jpg");
    let table = segment(&codes, 0xc4);
    codes[table + 5 + 16] = 0x21;
    assert!(say(&codes).contains("a table of differences has an impossible one"));
    // Much is claimed of a little: it ends with the data.
    let mut claims = read("ycc420.jpg");
    let frame = segment(&claims, 0xc0);
    claims[frame + 5..frame + 9].copy_from_slice(&[0x2d, 0x40, 0x2d, 0x40]);
    assert!(say(&claims).contains("its data end too early"));
}

/// The decoder of PNG files panics on such palettes (found by `tests/fuzz.rs`).
#[test]
fn a_palette_that_is_no_list_of_colours_is_damage() {
    let whole = fs::read(golden("palette-clear.png")).unwrap();
    let at = whole.windows(4).position(|w| w == b"PLTE").unwrap();
    let length = u32::from_be_bytes(whole[at - 4..at].try_into().unwrap()) as usize;
    for new in [0, 1, 4, 3 * 257] {
        let mut palette = b"PLTE".to_vec();
        palette.resize(4 + new, 7);
        let mut crc = flate2::Crc::new();
        crc.update(&palette);
        let (length_of, sum) = ((new as u32).to_be_bytes(), crc.sum().to_be_bytes());
        let file = [&whole[..at - 4], &length_of, &palette, &sum, &whole[at + 8 + length..]].concat();
        assert!(Picture::decode(&file).unwrap_err().contains("PNG"), "{new} bytes");
    }
    assert!(Picture::decode(&whole).is_ok());
}

#[test]
fn colours_become_grey_as_pillows() {
    let p = Picture { height: 1, width: 2, channels: 3, pixels: vec![255, 0, 10, 9, 200, 77] };
    assert_eq!(p.into_grey().pixels, [77, 129]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn damaged_images_never_panic(
        name in prop::sample::select(&["rgb.png", "palette.png", "grey16.png", "rgb.jpg", "progressive.jpg", "cmyk.jpg", "ycc422.jpg", "ycc420.jpg", "restarts.jpg", "own-codes.jpg"][..]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = fs::read(golden(name)).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(p) = Picture::decode(&bytes) {
            prop_assert_eq!(p.pixels.len(), p.height * p.width * p.channels);
        }
        let mut files = Files::new(Limits { max_pixels: 1 << 22, ..Limits::default() });
        if let Ok(size) = files.open(&bytes) {
            let (times, [h, w]) = files.smaller(2);
            prop_assert!(times == 2 || [h, w] == size);
            let place = [h / 2, w / 2, h.div_ceil(2), w.div_ceil(2)];
            if let Ok((pixels, stride)) = files.decode(&bytes, 3, times, place) {
                prop_assert!(pixels.len() >= (place[2] - 1) * stride + place[3] * 3);
            }
        }
    }
}
