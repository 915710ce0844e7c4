//! MNIST's file format: big-endian, a magic number (two zero bytes, the element type, the number of
//! dimensions), the dimensions, the values. Files may be compressed with gzip.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;

use crate::{Error, Memory, Result, Source, Split};

/// What the files of the two splits begin with.
const PREFIX: [&str; 2] = ["train", "t10k"];
/// The names of the classes, one a line; without it they are numbered.
pub(crate) const CLASSES: &str = "classes.txt";
/// Deflate cannot shrink by more than this: bounds what a damaged header makes us reserve.
const DEFLATE_MOST: u64 = 1032;

/// Opens one split of a directory with IDX files.
pub(crate) fn open(dir: &Path, split: Split) -> Result<Arc<dyn Source>> {
    let prefix = PREFIX[usize::from(split == Split::Test)];
    let images_path = must_find(dir, &format!("{prefix}-images-idx3-ubyte"), split)?;
    let labels_path = must_find(dir, &format!("{prefix}-labels-idx1-ubyte"), split)?;
    let ([n, h, w], images) = read::<3>(&images_path)?;
    let ([labels_n], labels) = read::<1>(&labels_path)?;
    if n != labels_n {
        let problem = format!("holds {labels_n} labels, but {} holds {n} images", images_path.display());
        return Err(Error::format(labels_path, problem));
    }
    if images.is_empty() {
        return Err(Error::format(images_path, format!("holds {n} images of {h} by {w}: nothing to read")));
    }
    let classes = match classes(dir)? {
        Some(classes) => classes,
        None => {
            // Both splits must agree on the number, so it is the training labels' even for the test split.
            let train = find(dir, &format!("{}-labels-idx1-ubyte", PREFIX[0]));
            let highest = match train.filter(|p| *p != labels_path) {
                Some(path) => read::<1>(&path)?.1.into_iter().max(),
                None => labels.iter().copied().max(),
            };
            (0..=highest.unwrap_or(0)).map(|c| c.to_string()).collect()
        }
    };
    let labels = labels.into_iter().map(i64::from).collect();
    let name = format!("{} ({})", dir.display(), split.name());
    Ok(Memory::classification(name, images, [h, w, 1], 255.0, labels, classes)?.shared())
}

fn classes(dir: &Path) -> Result<Option<Vec<String>>> {
    let path = dir.join(CLASSES);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.lines().map(str::to_owned).collect())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path)(e)),
    }
}

/// The names under which a file is looked for: as published, with a dot as some archives have it, and
/// each of them compressed.
pub(crate) fn names(stem: &str) -> [String; 4] {
    let dotted = stem.replace("-idx", ".idx");
    [stem.to_owned(), format!("{stem}.gz"), dotted.clone(), format!("{dotted}.gz")]
}

/// The first of the names that is there.
pub(crate) fn find(dir: &Path, stem: &str) -> Option<PathBuf> {
    names(stem).into_iter().map(|n| dir.join(n)).find(|p| p.is_file())
}

fn must_find(dir: &Path, stem: &str, split: Split) -> Result<PathBuf> {
    find(dir, stem).ok_or_else(|| {
        let (split, names) = (split.name(), names(stem).join(", "));
        Error::format(dir, format!("is no data set with a {split} split: none of {names} is there"))
    })
}

/// A file's content, unpacked if its name ends in `.gz`; and the most bytes that it can have.
pub(crate) fn reader(path: &Path) -> std::io::Result<(Box<dyn Read>, u64)> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let packed = path.extension().is_some_and(|e| e == "gz");
    if packed && len > 0 {
        return Ok((Box::new(MultiGzDecoder::new(file)), len.saturating_mul(DEFLATE_MOST)));
    }
    Ok((Box::new(file), len))
}

/// A file of bytes in `D` dimensions.
fn read<const D: usize>(path: &Path) -> Result<([usize; D], Vec<u8>)> {
    let bad = |problem: String| Error::format(path, problem);
    let (mut input, most) = reader(path).map_err(Error::io("read", path))?;
    let mut take = |limit: u64, into: &mut Vec<u8>| match input.by_ref().take(limit).read_to_end(into) {
        Ok(_) => Ok(()),
        // What gzip says of damaged and cut streams.
        Err(e)
            if matches!(
                e.kind(),
                ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::UnexpectedEof
            ) =>
        {
            Err(bad(format!("the gzip stream is damaged or cut short ({e})")))
        }
        Err(e) => Err(Error::io("read", path)(e)),
    };
    let header_len = 4 + 4 * D;
    let mut header = Vec::with_capacity(header_len);
    take(header_len as u64, &mut header)?;
    if header.is_empty() {
        return Err(bad("is empty".into()));
    }
    let expected = [0, 0, 8, D as u8];
    if header.len() >= 4 && header[..4] != expected {
        return Err(bad(format!(
            "begins with the bytes {:02x?}; an IDX file of bytes in {D} dimensions begins with {expected:02x?}",
            &header[..4]
        )));
    }
    if header.len() < header_len {
        return Err(bad(format!("ends at byte {} of its {header_len}-byte header", header.len())));
    }
    let words = header[4..].as_chunks::<4>().0;
    let dims: [usize; D] = std::array::from_fn(|i| u32::from_be_bytes(words[i]) as usize);
    let size = dims.iter().try_fold(1u64, |a, &d| a.checked_mul(d as u64)).filter(|&s| s < u64::MAX / 2);
    let size = size.ok_or_else(|| bad(format!("byte 4: the dimensions {dims:?} cannot be")))?;
    let mut values = Vec::with_capacity(size.min(most) as usize);
    take(size + 1, &mut values)?;
    match (values.len() as u64).cmp(&size) {
        std::cmp::Ordering::Equal => Ok((dims, values)),
        std::cmp::Ordering::Less => Err(bad(format!(
            "is truncated: it ends at byte {}, its header {dims:?} promises {} bytes",
            header_len + values.len(),
            header_len as u64 + size
        ))),
        std::cmp::Ordering::Greater => Err(bad(format!(
            "has more data after byte {}, where its header {dims:?} says that it ends",
            header_len as u64 + size
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::{Record, open as open_spec};

    fn idx(dims: &[u32], values: &[u8]) -> Vec<u8> {
        let mut out = vec![0, 0, 8, dims.len() as u8];
        dims.iter().for_each(|d| out.extend(d.to_be_bytes()));
        out.extend(values);
        out
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        e.write_all(bytes).unwrap();
        e.finish().unwrap()
    }

    /// 3 training and 2 test images of 2 by 2.
    fn set() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        put("train-images-idx3-ubyte", &idx(&[3, 2, 2], &(0..12).collect::<Vec<_>>()));
        put("train-labels-idx1-ubyte", &idx(&[3], &[1, 0, 2]));
        put("t10k-images.idx3-ubyte.gz", &gz(&idx(&[2, 2, 2], &[9; 8])));
        put("t10k-labels-idx1-ubyte.gz", &gz(&idx(&[2], &[2, 0])));
        dir
    }

    fn open_dir(dir: &tempfile::TempDir, split: Split) -> Result<Arc<dyn Source>> {
        open_spec(dir.path().to_str().unwrap(), split)
    }

    #[test]
    fn plain_packed_and_dotted_files_open() {
        let dir = set();
        let (train, test) = (open_dir(&dir, Split::Train).unwrap(), open_dir(&dir, Split::Test).unwrap());
        assert_eq!((train.len(), test.len()), (3, 2));
        // The test labels have no 1, and yet the splits agree on three classes.
        assert_eq!(test.schema(), train.schema());
        assert_eq!(train.schema().classes, ["0", "1", "2"]);
        let mut r = Record::default();
        train.read(1, &mut r).unwrap();
        assert_eq!((&r.fields[0].bytes[..], train.label(1).unwrap()), (&[4u8, 5, 6, 7][..], Some(0)));

        std::fs::write(dir.path().join(CLASSES), "coat\nbag\nboot\nhat\n").unwrap();
        assert_eq!(open_dir(&dir, Split::Train).unwrap().schema().classes[3], "hat");
        std::fs::write(dir.path().join(CLASSES), "coat\nbag\n").unwrap();
        assert!(matches!(open_dir(&dir, Split::Train), Err(Error::Label { label: 2, classes: 2, .. })));
    }

    #[test]
    fn every_damage_is_named_with_its_file_and_place() {
        let good = idx(&[3, 2, 2], &[0; 12]);
        let (images, labels) = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte");
        let cut_gz = gz(&good)[..20].to_vec();
        let mut bent_gz = gz(&idx(&[3, 2, 2], &(0..12).collect::<Vec<_>>()));
        let last = bent_gz.len() - 6;
        bent_gz[last] ^= 0xFF;
        let table: Vec<(&str, Vec<u8>, &str)> = vec![
            (images, vec![], "is empty"),
            (images, good[..3].to_vec(), "ends at byte 3 of its 16-byte header"),
            (images, good[..10].to_vec(), "ends at byte 10 of its 16-byte header"),
            (images, good[..27].to_vec(), "ends at byte 27, its header [3, 2, 2] promises 28"),
            (images, [&good[..], &[1]].concat(), "has more data after byte 28"),
            (images, idx(&[12], &[0; 12]), "begins with the bytes [00, 00, 08, 01]"),
            (images, b"<html>404".to_vec(), "in 3 dimensions begins with [00, 00, 08, 03]"),
            (images, idx(&[u32::MAX; 3], &[0; 12]), "cannot be"),
            (images, idx(&[u32::MAX, 1, 1], &[0; 12]), "promises 4294967311 bytes"),
            (images, idx(&[3, 0, 2], &[]), "nothing to read"),
            (labels, idx(&[4], &[0; 4]), "holds 4 labels, but"),
            (labels, idx(&[3], &[0; 2]), "ends at byte 10"),
            ("train-images-idx3-ubyte.gz", cut_gz, "damaged or cut short"),
            ("train-images-idx3-ubyte.gz", bent_gz, "damaged or cut short"),
            ("train-images-idx3-ubyte.gz", vec![], "is empty"),
            ("train-images-idx3-ubyte.gz", good.clone(), "damaged or cut short"),
        ];
        for (name, bytes, expected) in table {
            let dir = set();
            if name.ends_with(".gz") {
                std::fs::remove_file(dir.path().join(images)).unwrap();
            }
            std::fs::write(dir.path().join(name), bytes).unwrap();
            let error = open_dir(&dir, Split::Train).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(expected) && text.contains(name), "{text:?} lacks {expected:?}");
            assert_eq!(error.kind(), crate::Kind::Data);
        }
        let dir = set();
        std::fs::remove_file(dir.path().join("t10k-labels-idx1-ubyte.gz")).unwrap();
        let text = open_dir(&dir, Split::Test).unwrap_err().to_string();
        assert!(text.contains("t10k-labels.idx1-ubyte.gz") && text.contains("test split"), "{text}");
    }

    #[test]
    fn unknown_names_say_what_there_is() {
        let text = |spec| open_spec(spec, Split::Train).unwrap_err().to_string();
        assert!(text("digit").contains("did you mean \"digits\"?"));
        assert!(text("mnist").contains("data fetch mnist"));
        let nowhere = open_spec("/no/such/place", Split::Train).unwrap_err();
        assert!(nowhere.to_string().contains("(digits)") && nowhere.kind() == crate::Kind::Usage);
    }
}
