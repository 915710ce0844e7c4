//! What is in a shard set, for people.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use phalanx_host::DType;
use serde::Serialize;

use crate::files::hex;
use crate::{
    Codec, Error, FieldSpec, Picture, Place, Record, RecordField, Resample, Result, Role, ShardSet, Source,
};

/// The sizes of images that a report names one by one.
const COMMON: usize = 10;
/// Pixels between the images of a contact sheet.
const GAP: usize = 2;
/// What is between and around them.
const GROUND: u8 = 32;
/// An image that cannot be shown.
const BROKEN: [u8; 3] = [200, 0, 0];

/// What [`inspect`] found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InspectReport {
    /// The set's name.
    pub name: String,
    /// Its BLAKE3 root in hexadecimal.
    pub root: String,
    /// Its shards.
    pub shards: u64,
    /// Bytes of the files with the records.
    pub bytes: u64,
    /// Its records, without those in quarantine, as everything below.
    pub records: u64,
    /// Those in quarantine.
    pub quarantined: u64,
    /// What was noted when the set was made.
    pub meta: BTreeMap<String, String>,
    /// A line for each field.
    pub fields: Vec<String>,
    /// The classes, in order.
    pub classes: Vec<ClassCount>,
    /// Records by the codec of their first image; else of their first field.
    pub codecs: BTreeMap<&'static str, u64>,
    /// Bytes of a record.
    pub record_bytes: Option<Spread>,
    /// Of the first image of each record.
    pub sizes: Option<Sizes>,
}

/// A class and how much of it there is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassCount {
    /// Its name for people.
    pub name: String,
    /// Records of it.
    pub records: u64,
}

/// The range of a number.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The least.
    pub least: u64,
    /// The mean.
    pub mean: f64,
    /// The most.
    pub most: u64,
}

impl Spread {
    fn of(values: impl Iterator<Item = u64>) -> Option<Self> {
        let (mut least, mut most, mut sum, mut n) = (u64::MAX, 0, 0u128, 0u64);
        for v in values {
            (least, most, sum, n) = (least.min(v), most.max(v), sum + u128::from(v), n + 1);
        }
        (n > 0).then(|| Spread { least, mean: sum as f64 / n as f64, most })
    }
}

/// The sizes of images in pixels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sizes {
    /// Rows.
    pub height: Spread,
    /// Columns.
    pub width: Spread,
    /// Images whose shorter side is from `2^k` to `2^(k+1) - 1` pixels: `(2^k, images)`, without those that are empty.
    pub shorter_side: Vec<(u64, u64)>,
    /// The most frequent sizes, most frequent first.
    pub common: Vec<SizeCount>,
    /// How many sizes there are.
    pub different: u64,
}

/// A size and how many images have it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SizeCount {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Images of that size.
    pub images: u64,
}

/// Looks through a set's index; no record is read.
pub fn inspect(set: &ShardSet) -> Result<InspectReport> {
    let schema = set.schema();
    let mut classes: Vec<ClassCount> =
        schema.classes.iter().map(|name| ClassCount { name: name.clone(), records: 0 }).collect();
    let mut codecs = BTreeMap::new();
    let mut sizes: HashMap<(usize, usize), u64> = HashMap::new();
    let mut lengths = Vec::new();
    for id in 0..set.len() {
        let entry = set.entry(id)?;
        if let Some(class) = entry.label.and_then(|l| classes.get_mut(usize::try_from(l).ok()?)) {
            class.records += 1;
        }
        *codecs.entry(codec_name(entry.codec)).or_default() += 1;
        *sizes.entry((entry.height, entry.width)).or_default() += 1;
        lengths.push(u64::from(entry.length));
    }
    let line = |f: &FieldSpec| {
        let varies = match (f.variable, f.role) {
            (false, _) => "",
            (true, Role::Image) => ", at most: rows and columns vary",
            (true, _) => ", at most: the first dimension varies",
        };
        format!("{}: {:?}, {} {:?}{varies}", f.name, f.role, f.dtype, f.shape)
    };
    Ok(InspectReport {
        name: set.name().to_owned(),
        root: hex(&set.root()),
        shards: set.shards().len() as u64,
        bytes: set.shards().iter().map(|s| s.bytes).sum(),
        records: set.len(),
        quarantined: set.quarantined(),
        meta: set.meta().clone(),
        fields: schema.fields.iter().map(line).collect(),
        classes,
        codecs,
        record_bytes: Spread::of(lengths.into_iter()),
        sizes: schema.first(Role::Image).and_then(|_| Sizes::of(&sizes)),
    })
}

impl Sizes {
    fn of(sizes: &HashMap<(usize, usize), u64>) -> Option<Self> {
        let mut common: Vec<SizeCount> =
            sizes.iter().map(|(&(height, width), &images)| SizeCount { height, width, images }).collect();
        common.sort_by_key(|s| (std::cmp::Reverse(s.images), s.height, s.width));
        let spread = |of: fn(&SizeCount) -> usize| {
            let images: u64 = common.iter().map(|s| s.images).sum();
            let range = Spread::of(common.iter().map(|s| of(s) as u64))?;
            let sum: u128 = common.iter().map(|s| of(s) as u128 * u128::from(s.images)).sum();
            Some(Spread { mean: sum as f64 / images as f64, ..range })
        };
        let (height, width) = (spread(|s| s.height)?, spread(|s| s.width)?);
        let mut shorter_side = BTreeMap::new();
        for s in &common {
            let from = 1u64 << s.height.min(s.width).max(1).ilog2();
            *shorter_side.entry(from).or_insert(0) += s.images;
        }
        let different = common.len() as u64;
        common.truncate(COMMON);
        Some(Sizes { height, width, shorter_side: shorter_side.into_iter().collect(), common, different })
    }
}

/// The name of a codec in reports.
fn codec_name(codec: Codec) -> &'static str {
    match codec {
        Codec::Raw => "raw",
        Codec::Jpeg => "jpeg",
        Codec::Png => "png",
    }
}

/// `images` of a set, evenly spread over it, in rows of `columns`; each fills a square of `side` pixels as far as its
/// proportions allow. One that cannot be read is red.
///
/// Fails with [`Error::Field`] when the set has no images, and with [`Error::Usage`] on a sheet without a pixel or of
/// more than 2^28.
pub fn contact_sheet(set: &dyn Source, images: u64, columns: usize, side: usize) -> Result<Picture> {
    let fields = &set.schema().fields;
    let Some(at) = fields.iter().position(|f| f.role == Role::Image) else {
        return Err(Error::field("image", format!("{} has none", set.name())));
    };
    let images = images.min(set.len());
    let columns = columns.min(images as usize);
    let size = |n: usize| (side.checked_add(GAP)?).checked_mul(n)?.checked_add(GAP);
    let rows = (images as usize).div_ceil(columns.max(1));
    let size = size(rows).zip(size(columns)).filter(|&(h, w)| h.checked_mul(w).is_some_and(|n| n <= 1 << 28));
    let Some((height, width)) = size.filter(|_| side > 0 && columns > 0) else {
        let problem = format!("{images} images of {side} pixels in {columns} columns make no sheet");
        return Err(Error::usage("contact sheet", problem));
    };
    let mut sheet = Picture { height, width, channels: 3, pixels: vec![GROUND; height * width * 3] };
    let mut record = Record::default();
    for k in 0..images {
        let id = (u128::from(k) * u128::from(set.len()) / u128::from(images)) as u64;
        let shown = set.read(id, &mut record).and_then(|()| thumbnail(&fields[at], &record.fields[at], side));
        let (height, width, pixels) = shown.unwrap_or_else(|_| (side, side, BROKEN.repeat(side * side)));
        let corner = |n: usize, used: usize| GAP + n * (side + GAP) + (side - used) / 2;
        let (top, left) = (corner(k as usize / columns, height), corner(k as usize % columns, width));
        for (y, row) in pixels.chunks_exact(width * 3).enumerate() {
            let from = ((top + y) * sheet.width + left) * 3;
            sheet.pixels[from..from + row.len()].copy_from_slice(row);
        }
    }
    Ok(sheet)
}

/// An image as red, green and blue, no side longer than `side`: its height, width and pixels.
fn thumbnail(spec: &FieldSpec, field: &RecordField, side: usize) -> Result<(usize, usize, Vec<u8>)> {
    let ([height, width, channels], bytes) = pixels(spec, field)?;
    let bytes = match spec.dtype {
        DType::F32 => {
            let values = bytemuck::pod_collect_to_vec::<u8, f32>(&bytes);
            Cow::Owned(values.iter().map(|v| (v / spec.max * 255.0).round() as u8).collect())
        }
        _ if spec.max == 255.0 => bytes,
        _ => Cow::Owned(bytes.iter().map(|&v| (f32::from(v) / spec.max * 255.0).round() as u8).collect()),
    };
    let longer = height.max(width);
    let fit = |n: usize| ((n * side + longer / 2) / longer).clamp(1, side);
    let size = [fit(height), fit(width)];
    let small = u8::resize(&bytes, [height, width, channels], Place::whole(size));
    let rgb = small.chunks_exact(channels).flat_map(|p| match *p {
        [r, g, b, ..] => [r, g, b],
        _ => [p[0]; 3],
    });
    Ok((size[0], size[1], rgb.collect()))
}

/// The elements of an image, decoded if need be: [rows, columns, channels] and the bytes of the schema's type.
pub(crate) fn pixels<'a>(spec: &FieldSpec, field: &'a RecordField) -> Result<([usize; 3], Cow<'a, [u8]>)> {
    let bad = |problem: String| Error::field(&spec.name, problem);
    if field.codec != Codec::Raw {
        let picture = Picture::decode(&field.bytes).map_err(bad)?;
        let picture = match spec.shape.get(2) {
            Some(1) => picture.into_grey(),
            Some(3) => picture.into_rgb(),
            _ => {
                return Err(bad(format!("has the shape {:?}; image files have 1 or 3 channels", spec.shape)));
            }
        };
        return Ok(([picture.height, picture.width, picture.channels], Cow::Owned(picture.pixels)));
    }
    let shape: [usize; 3] =
        field.shape.as_slice().try_into().map_err(|_| bad(format!("has the shape {:?}", field.shape)))?;
    let bytes = shape.iter().product::<usize>() * spec.dtype.size();
    match field.bytes.len() == bytes && bytes > 0 {
        true => Ok((shape, Cow::Borrowed(&field.bytes))),
        false => Err(bad(format!("has {} bytes of shape {shape:?}", field.bytes.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shards::tests::captioned_set;
    use crate::{Column, Memory, stats};

    #[test]
    fn a_set_is_described_from_its_index() {
        let dir = tempfile::tempdir().unwrap();
        let root = captioned_set(dir.path(), &[4, 3]);
        let set = ShardSet::open(dir.path()).unwrap();
        let report = inspect(&set).unwrap();
        assert_eq!((report.name.as_str(), report.root.as_str()), ("captioned", &hex(&root)[..]));
        assert_eq!((report.records, report.shards, report.quarantined), (7, 2, 0));
        let counts: Vec<(&str, u64)> = report.classes.iter().map(|c| (&c.name[..], c.records)).collect();
        assert_eq!(counts, [("Käfer", 3), ("鳥", 2), ("crane", 2)]);
        assert_eq!(report.codecs, BTreeMap::from([("png", 7)]));
        assert!(report.fields[0].contains("[4, 4, 3], at most"), "{:?}", report.fields);
        let sizes = report.sizes.unwrap();
        // Ids 0..7 have 2 + id % 3 rows and 3 + id % 2 columns.
        assert_eq!(sizes.height, Spread { least: 2, mean: 20.0 / 7.0, most: 4 });
        assert_eq!(sizes.width, Spread { least: 3, mean: 24.0 / 7.0, most: 4 });
        assert_eq!(sizes.shorter_side, [(2, 6), (4, 1)]);
        assert_eq!((sizes.different, sizes.common.len()), (6, 6));
        assert_eq!(sizes.common[0], SizeCount { height: 2, width: 3, images: 2 });
        let lengths = report.record_bytes.unwrap();
        assert!(lengths.least < lengths.most && lengths.most < 200, "{lengths:?}");
        assert!(
            serde_json::to_string(&inspect(&set).unwrap())
                .unwrap()
                .contains("\"shorter_side\":[[2,6],[4,1]]")
        );
    }

    #[test]
    fn an_empty_set_is_described() {
        let dir = tempfile::tempdir().unwrap();
        captioned_set(dir.path(), &[]);
        let set = ShardSet::open(dir.path()).unwrap();
        let report = inspect(&set).unwrap();
        assert_eq!((report.records, report.sizes, report.record_bytes), (0, None, None));
        assert!(contact_sheet(&set, 4, 2, 8).is_err());
        assert_eq!(stats::block_stats(&set, 0..1, 1, &|_| {}).unwrap(), []);
    }

    #[test]
    fn a_contact_sheet_shows_images_where_they_belong() {
        let spec = FieldSpec::image([2, 4, 1], 100.0);
        let values = (0..6u8).flat_map(|id| [id * 20; 8]).collect();
        let set = Memory::new("s", vec![Column::fixed(spec, values).unwrap()], vec![]).unwrap();
        let sheet = contact_sheet(&set, 5, 3, 8).unwrap();
        assert_eq!((sheet.height, sheet.width), (2 + 2 * 10, 2 + 3 * 10));
        let at = |y: usize, x: usize| sheet.pixels[(y * sheet.width + x) * 3..][..3].to_vec();
        for (k, id) in [0u8, 1, 2, 3, 4].into_iter().enumerate() {
            let (top, left) = (2 + k / 3 * 10, 2 + k % 3 * 10);
            // Twice as wide as high: two rows above and below stay empty.
            for (y, wanted) in [(1, GROUND), (2, id * 51), (5, id * 51), (6, GROUND)] {
                assert_eq!(at(top + y, left + 7), [wanted; 3], "image {k}, row {y}");
            }
        }
        assert_eq!(at(15, 25), [GROUND; 3]);
        for (images, columns, side) in [(0, 1, 1), (1, 0, 1), (1, 1, 0), (6, 6, usize::MAX), (6, 6, 1 << 20)]
        {
            assert!(contact_sheet(&set, images, columns, side).is_err());
        }
    }

    #[test]
    fn a_contact_sheet_marks_what_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        captioned_set(dir.path(), &[3]);
        let set = ShardSet::open(dir.path()).unwrap();
        let path = dir.path().join("shard-00000.dat");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[set.entry(1).unwrap().offset as usize + 40] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let sheet = contact_sheet(&set, 3, 3, 4).unwrap();
        let middle = |k: usize| sheet.pixels[(4 * sheet.width + 4 + k * 6) * 3..][..3].to_vec();
        assert_eq!(middle(1), BROKEN);
        assert!(middle(0) != BROKEN && middle(2) != BROKEN);
    }
}
