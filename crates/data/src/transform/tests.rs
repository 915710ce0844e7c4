use phalanx_host::DType;
use phalanx_host::rng::Key;

use super::ops::ROWS;
use super::*;
use crate::picture::bilinear;
use crate::{Codec, Place, RecordField};

fn transform(text: &str) -> std::result::Result<Transform, toml::de::Error> {
    #[derive(serde::Deserialize)]
    struct Table {
        row: Transform,
    }
    toml::from_str::<Table>(&format!("row = {text}")).map(|t| t.row)
}

fn key(sample: u64) -> Key {
    Key::new(1).derive(2, sample)
}

/// A record's field of raw elements.
fn raw(shape: &[usize], bytes: &[u8]) -> RecordField {
    RecordField { bytes: bytes.to_vec(), shape: shape.to_vec(), codec: Codec::Raw }
}

fn floats(rows: &[Transform], spec: &FieldSpec, training: bool) -> Result<Pipeline> {
    Pipeline::new(rows, spec, training, Pixels::Floats)
}

/// One image through these rows, in training or (without a key) in evaluation.
fn run(rows: &[&str], spec: &FieldSpec, pixels: &[u8], key: Option<Key>) -> Vec<f32> {
    let rows: Vec<_> = rows.iter().map(|r| transform(r).unwrap()).collect();
    let mut pipeline = floats(&rows, spec, key.is_some()).unwrap();
    let mut out = vec![f32::NAN; pipeline.output_shape().iter().product()];
    pipeline.run(&raw(&spec.shape, pixels), key, Output::Floats(&mut out)).unwrap();
    out
}

/// Keeps the stored units.
const AS_IS: &str = "{ name = \"normalise\", scale = 1.0 }";

fn step(text: &str, spec: &FieldSpec) -> Box<dyn Step> {
    let t = transform(text).unwrap();
    match t.row.make {
        Make::Image(build) | Make::Signal(build) | Make::Any(build) => build(&t.values, spec).unwrap(),
        Make::Batch => panic!("{text} is no step"),
    }
}

#[test]
fn normalisation_by_schema_and_by_hand() {
    let grey = FieldSpec::image([1, 3, 1], 16.0);
    assert_eq!(run(&[], &grey, &[0, 8, 16], None), [0.0, 0.5, 1.0]);
    let rows = ["{ name = \"normalise\", mean = 0.5, std = 0.25 }"];
    assert_eq!(run(&rows, &grey, &[0, 8, 16], None), [-2.0, 0.0, 2.0]);
    let rows = ["{ name = \"normalise\", scale = 2, mean = [1, 2], std = [1, 4] }"];
    assert_eq!(run(&rows, &FieldSpec::image([1, 2, 2], 255.0), &[1, 1, 3, 3], None), [1., 0., 5., 1.]);
    let floats = FieldSpec { dtype: DType::F32, ..FieldSpec::image([1, 1, 2], 4.0) };
    let mut out = [0.0; 2];
    let bytes = bytemuck::bytes_of(&[2f32, -1.0]).to_vec();
    let mut pipeline = Pipeline::new(&[], &floats, true, Pixels::Bytes).unwrap();
    assert_eq!(pipeline.pixels(), Pixels::Floats);
    pipeline.run(&raw(&[1, 1, 2], &bytes), Some(key(0)), Output::Floats(&mut out)).unwrap();
    assert_eq!(out, [0.5, -0.25]);
}

#[test]
fn flips_mirror_whole_pixels() {
    let rows = ["{ name = \"flip\", p = 1 }", AS_IS];
    let colour = FieldSpec::image([2, 3, 2], 255.0);
    let image = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
    assert_eq!(
        run(&rows, &colour, &image, Some(key(0))),
        [5., 6., 3., 4., 1., 2., 11., 12., 9., 10., 7., 8.]
    );
    let rows = ["{ name = \"flip\", p = 0.25 }", AS_IS];
    let two = FieldSpec::image([1, 2, 1], 255.0);
    let hits = (0..4000).filter(|&i| run(&rows, &two, &[1, 2], Some(key(i)))[0] == 2.0).count();
    assert!((900..1100).contains(&hits), "{hits}");
}

#[test]
fn shifts_fill_with_zeros_and_reach_every_place_equally() {
    let spec = FieldSpec::image([3, 3, 1], 255.0);
    let image: Vec<u8> = (1..=9).collect();
    for rows in
        [["{ name = \"translate\", pixels = 1 }", AS_IS], ["{ name = \"pad-and-crop\", padding = 1 }", AS_IS]]
    {
        let mut seen = std::collections::BTreeMap::new();
        for i in 0..1800 {
            let out = run(&rows, &spec, &image, Some(key(i)));
            let (y, x) = (0..9).map(|p| (p / 3, p % 3)).find(|&(y, x)| out[y * 3 + x] == 5.0).unwrap();
            for (p, &value) in out.iter().enumerate() {
                let (sy, sx) = (p / 3 + 1, p % 3 + 1);
                let inside = (y..y + 3).contains(&sy) && (x..x + 3).contains(&sx);
                let from = if inside { f32::from(image[(sy - y) * 3 + sx - x]) } else { 0.0 };
                assert_eq!(value, from, "shift to {y}, {x}: {out:?}");
            }
            *seen.entry((y, x)).or_insert(0) += 1;
        }
        assert!(seen.len() == 9 && seen.values().all(|c| (140..260).contains(c)), "{seen:?}");
    }
    // A shift by more than the image leaves nothing of it.
    let tiny = FieldSpec::image([1, 1, 1], 255.0);
    let rows = ["{ name = \"translate\", pixels = 1000 }", AS_IS];
    assert!((0..20).any(|i| run(&rows, &tiny, &[7], Some(key(i))) == [0.0]));
}

#[test]
fn fractions_are_of_height_and_width() {
    let spec = FieldSpec::image([1, 10, 1], 255.0);
    let place = |i| {
        let rows = ["{ name = \"translate\", fraction = 0.3 }", AS_IS];
        let out = run(&rows, &spec, &[0, 0, 0, 0, 9, 0, 0, 0, 0, 0], Some(key(i)));
        out.iter().position(|&x| x == 9.0).unwrap()
    };
    let seen: std::collections::BTreeSet<_> = (0..200).map(place).collect();
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn rotations_by_hand() {
    let image = |pixels: &[f32], shape| Image { shape, pixels: pixels.to_vec(), scratch: Vec::new() };
    // A quarter turn counter-clockwise: the right column becomes the top row.
    let mut square = image(&[1., 2., 3., 4., 5., 6., 7., 8., 9.], [3, 3, 1]);
    warp::rotate(&mut square, 1.0, 0.0);
    assert_eq!(square.pixels, [3., 6., 9., 2., 5., 8., 1., 4., 7.]);
    // Half a turn, two channels.
    let mut two = image(&[1., 2., 3., 4., 5., 6., 7., 8.], [2, 2, 2]);
    warp::rotate(&mut two, 0.0, -1.0);
    assert_eq!(two.pixels, [7., 8., 5., 6., 3., 4., 1., 2.]);
    // An eighth of a turn of a 1 by 3 line: its ends come from above and below, half a pixel's diagonal
    // away: (±√½, ∓√½) has the weight (1 − √½) of the line's row and √½ of its outer pixel.
    let (s, mut line) = (0.5f32.sqrt(), image(&[8., 4., 8.], [1, 3, 1]));
    warp::rotate(&mut line, s, s);
    let end = (4.0 * (1.0 - s) + 8.0 * s) * (1.0 - s);
    for (got, want) in line.pixels.iter().zip([end, 4.0, end]) {
        assert!((got - want).abs() < 1e-5, "{:?}", line.pixels);
    }
}

#[test]
fn no_strength_is_no_change() {
    let spec = FieldSpec::image([5, 4, 3], 255.0);
    let pixels: Vec<u8> = (0..60).map(|i| i * 4).collect();
    let plain = run(&[], &spec, &pixels, None);
    let idle = [
        "{ name = \"flip\", p = 0 }",
        "{ name = \"rotate\", degrees = 0 }",
        "{ name = \"translate\", pixels = 0 }",
        "{ name = \"pad-and-crop\", padding = 0 }",
        "{ name = \"lighting\", deviation = 0 }",
    ];
    // By the table of bytes and by the long way: the same bits.
    assert_eq!(run(&idle, &spec, &pixels, Some(key(3))), plain);
    let strong = ["{ name = \"rotate\", degrees = 90 }", "{ name = \"flip\", p = 1 }"];
    assert_eq!(run(&strong, &spec, &pixels, None), plain, "evaluation draws nothing");
}

#[test]
fn random_numbers_belong_to_the_sample() {
    let spec = FieldSpec::image([8, 8, 1], 255.0);
    let pixels: Vec<u8> = (0..64).map(|i| i * 3).collect();
    let texts = ["{ name = \"rotate\" }", "{ name = \"translate\" }", "{ name = \"flip\" }"];
    let rows: Vec<_> = texts.iter().map(|r| transform(r).unwrap()).collect();
    let mut pipeline = floats(&rows, &spec, true).unwrap();
    let record = raw(&spec.shape, &pixels);
    let mut all = |ids: &[u64]| -> Vec<Vec<f32>> {
        let one = |&i: &u64| {
            let mut out = vec![0.0; 64];
            pipeline.run(&record, Some(key(i)), Output::Floats(&mut out)).unwrap();
            out
        };
        ids.iter().map(one).collect()
    };
    let (forward, mut backward) = (all(&[1, 2, 3]), all(&[3, 2, 1]));
    backward.reverse();
    assert_eq!(forward, backward);
    assert!(forward[0] != forward[1] && forward[1] != forward[2]);
    // Two rows of one kind draw differently: the second does not undo or repeat the first.
    let twice = [texts[1], texts[1], AS_IS];
    let (once, twice) = ([texts[1], AS_IS], twice);
    assert!((0..20).any(|i| {
        let one = run(&once, &spec, &pixels, Some(key(i)));
        one != run(&twice, &spec, &pixels, Some(key(i)))
    }));
}

#[test]
fn rows_are_checked_and_misspellings_corrected() {
    for (text, expected) in [
        ("{ name = \"flop\" }", "unknown transform \"flop\"; did you mean \"flip\"?"),
        (
            "{ name = \"zzz\" }",
            "there are normalise, random-resized-crop, resize, centre-crop, random-crop, pad-and-crop, flip",
        ),
        ("{ name = \"rotate\", degree = 3 }", "unknown parameter \"degree\"; did you mean \"degrees\"?"),
        ("{ name = \"flip\", p = 1.5 }", "transform flip, p: is 1.5, and must be in [0, 1]"),
        ("{ name = \"flip\", p = nan }", "must be in [0, 1]"),
        ("{ name = \"flip\", p = \"often\" }", "is \"often\", and must be a number"),
        ("{ name = \"flip\", p = [0.5] }", "must be one number"),
        ("{ name = \"pad-and-crop\", padding = 1.5 }", "must be a whole number"),
        ("{ name = \"normalise\", std = 0 }", "must be in (0, ∞)"),
        ("{ p = 0.5 }", "a transform needs a name"),
        ("{ name = 3 }", "a transform needs a name"),
        ("\"flip\"", "invalid type"),
    ] {
        let error = transform(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let spec = FieldSpec::image([4, 4, 3], 255.0);
    let refused = |rows: &[&str]| {
        let rows: Vec<_> = rows.iter().map(|r| transform(r).unwrap()).collect();
        let error = floats(&rows, &spec, true).err().unwrap();
        assert_eq!(error.kind(), crate::Kind::Usage);
        error.to_string()
    };
    assert!(refused(&["{ name = \"normalise\", mean = [1, 2] }"]).contains("2 numbers for images of 3"));
    assert!(refused(&["{ name = \"translate\", pixels = 1, fraction = 0.1 }"]).contains("not both"));
    assert!(refused(&[AS_IS, AS_IS]).contains("twice"));
    let crop = "{ name = \"random-resized-crop\", scale_min = 0.5, scale_max = 0.4 }";
    assert!(refused(&[crop]).contains("scale_min 0.5 is above scale_max 0.4"));
    for name in ["lighting", "color-jitter"] {
        let row = format!("{{ name = \"{name}\" }}");
        let e = refused(&[AS_IS, "{ name = \"flip\" }", &row]);
        assert_eq!(e, format!("transform {name}: it must stand before `normalise`"));
        let rows = [&row, AS_IS].map(|r| transform(r).unwrap());
        assert!(floats(&rows, &spec, true).is_ok());
        let grey = FieldSpec::image([4, 4, 1], 255.0);
        let rows = [transform(&format!("{{ name = \"{name}\" }}")).unwrap()];
        let error = floats(&rows, &grey, true).err().unwrap().to_string();
        assert!(error.contains("red, green and blue, not [4, 4, 1]"), "{error}");
    }
}

/// Those rows have no default size.
fn size_for(row: &Row) -> Vec<(&'static str, Value)> {
    match row.name {
        "resize" | "centre-crop" | "random-crop" => vec![("size", Value::List(vec![4.0, 6.0]))],
        _ => Vec::new(),
    }
}

#[test]
fn every_row_has_working_defaults_and_survives_a_round_trip() {
    let spec = FieldSpec::image([4, 6, 3], 255.0);
    for row in ROWS {
        let t = Transform::new(row.name, &size_for(row)).unwrap().on("image");
        let text = toml::to_string(&t).unwrap();
        assert_eq!(toml::from_str::<Transform>(&text).unwrap(), t, "{text}");
        let (Make::Image(build) | Make::Signal(build) | Make::Any(build)) = row.make else { continue };
        let mut image = Image { shape: [4, 6, 3], pixels: vec![1.0; 72], scratch: Vec::new() };
        build(&t.values, &spec).unwrap().apply(&mut image, &mut key(1).stream());
        assert!(image.pixels.len() == 72 && image.pixels.iter().all(|x| x.is_finite()), "{}", row.name);
    }
    let given = Transform::new("normalise", &[("mean", Value::List(vec![0.5, 0.25]))]).unwrap();
    assert_eq!(toml::from_str::<Transform>(&toml::to_string(&given).unwrap()).unwrap(), given);
    assert_eq!(given.value("std"), Some(&Value::Auto));
}

/// Scales a piece to the image's size.
fn enlarge(image: &mut Image<f32>, piece: [usize; 4]) {
    let [h, w, _] = image.shape;
    bilinear(&image.pixels, image.shape, piece, Place::whole([h, w]), &mut image.scratch);
    std::mem::swap(&mut image.pixels, &mut image.scratch);
}

#[test]
fn pieces_are_scaled_as_areas() {
    // PyTorch's interpolate(mode = "bilinear") of the piece: a pixel's middle is at half of it.
    let mut line = Image { shape: [1, 4, 1], pixels: vec![9.0, 2.0, 6.0, 9.0], scratch: Vec::new() };
    enlarge(&mut line, [0, 1, 1, 2]);
    assert_eq!(line.pixels, [2.0, 3.0, 5.0, 6.0]);
    let mut square = Image { shape: [3, 3, 2], pixels: vec![0.0; 18], scratch: Vec::new() };
    square.pixels.iter_mut().enumerate().for_each(|(i, x)| *x = i as f32);
    enlarge(&mut square, [1, 0, 2, 2]);
    // Of the rows [6, 7, 8, 9] and [12, 13, 14, 15].
    let want = [6., 7., 7., 8., 8., 9., 9., 10., 10., 11., 11., 12., 12., 13., 13., 14., 14., 15.];
    for (got, want) in square.pixels.iter().zip(want) {
        assert!((got - want).abs() < 1e-5, "{:?}", square.pixels);
    }
}

#[test]
fn pieces_keep_to_their_bounds_and_reach_the_rims() {
    // Each pixel tells its row and its column.
    let spec = FieldSpec { dtype: DType::F32, ..FieldSpec::image([40, 60, 2], 1.0) };
    let pixels: Vec<f32> = (0..2400).flat_map(|i| [(i / 60) as f32, (i % 60) as f32]).collect();
    let rows = ["{ name = \"random-resized-crop\", scale_min = 0.2, scale_max = 0.5, ratio = 1.5 }", AS_IS];
    let rows: Vec<_> = rows.iter().map(|r| transform(r).unwrap()).collect();
    let mut pipeline = floats(&rows, &spec, true).unwrap();
    let (mut out, mut rims) = (vec![0.0; 4800], [false; 4]);
    for i in 0..300 {
        let record = raw(&spec.shape, bytemuck::cast_slice(&pixels));
        pipeline.run(&record, Some(key(i)), Output::Floats(&mut out)).unwrap();
        let ([top, left], [bottom, right]) = ([out[0], out[1]], [out[4798], out[4799]]);
        let (tall, wide) = (bottom - top + 1.0, right - left + 1.0);
        let (area, ratio) = (tall * wide / 2400.0, wide / tall);
        assert!((0.18..=0.53).contains(&area) && (0.62..=1.6).contains(&ratio), "{tall} by {wide}");
        let at = [top == 0.0, left == 0.0, bottom == 39.0, right == 59.0];
        rims.iter_mut().zip(at).for_each(|(seen, at)| *seen |= at);
    }
    assert_eq!(rims, [true; 4]);
}

#[test]
fn colours_change_by_hand() {
    let spec = FieldSpec::image([1, 2, 3], 255.0);
    let image =
        || Image { shape: [1, 2, 3], pixels: vec![10., 20., 30., 200., 100., 50.], scratch: Vec::new() };
    // Lighting adds one number a channel to every pixel: a mix of the three components.
    let mut lit = image();
    step("{ name = \"lighting\", deviation = 0.5 }", &spec).apply(&mut lit, &mut key(1).stream());
    let mut stream = key(1).stream();
    let draws: Vec<f64> = (0..3).map(|_| 0.5 * 255.0 * stream.normal()).collect();
    let red = 0.2175 * draws[0] * -0.5675 + 0.0188 * draws[1] * 0.7192 + 0.0045 * draws[2] * 0.4009;
    assert!((f64::from(lit.pixels[0]) - 10.0 - red).abs() < 1e-4, "{:?}", lit.pixels);
    assert!((lit.pixels[3] - lit.pixels[0] - 190.0).abs() < 1e-3 && red.abs() > 1e-3);
    // With one of the three at work its factor can be told, and the rest follows from it.
    for (what, fixed) in [("brightness", 0.0), ("contrast", 71.175)] {
        let off = ["brightness", "contrast", "saturation"].iter().filter(|w| **w != what);
        let off: String = off.map(|w| format!(", {w} = 0")).collect();
        let mut changed = image();
        step(&format!("{{ name = \"color-jitter\"{off} }}"), &spec).apply(&mut changed, &mut key(5).stream());
        let factor = (changed.pixels[5] - fixed) / (50.0 - fixed);
        assert!((0.6..=1.4).contains(&factor) && (factor - 1.0).abs() > 1e-3, "{what}: {factor}");
        for (x, from) in changed.pixels.iter().zip(image().pixels) {
            let want = (fixed + (from - fixed) * factor).clamp(0.0, 255.0);
            assert!((x - want).abs() < 1e-3, "{what}: {:?}", changed.pixels);
        }
    }
    // Saturation leaves each pixel as bright as it was.
    let mut faded = image();
    let row = "{ name = \"color-jitter\", brightness = 0, contrast = 0, saturation = 0.4 }";
    step(row, &spec).apply(&mut faded, &mut key(5).stream());
    let bright = |p: &[f32]| 0.299 * p[0] + 0.587 * p[1] + 0.114 * p[2];
    for (x, from) in faded.pixels.chunks(3).zip(image().pixels.chunks(3)) {
        assert!((bright(x) - bright(from)).abs() < 1e-3 && (x[0] - from[0]).abs() > 1e-3, "{x:?}");
    }
}
