//! CIFAR-10 and CIFAR-100, the binary version: records of one label (CIFAR-100: a coarse and a fine one) and
//! 3,072 bytes of pixels, a plane for each of red, green and blue. Source: Krizhevsky, "The CIFAR-10 dataset",
//! section "Binary version".

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use phalanx_host::DType;

use super::listing::{Import, Layout, Listed, Listing, Part, Store};
use super::{Format, ImportRequest, TRAIN, VAL, lines_of};
use crate::{Error, FieldSpec, Result};

const SIDE: usize = 32;
const PIXELS: u64 = 3 * (SIDE * SIDE) as u64;

/// One of the two sets.
struct Kind {
    /// The folder that the distributed archive unpacks to.
    folder: &'static str,
    train: &'static [&'static str],
    test: &'static str,
    names: &'static str,
    classes: usize,
    coarse: bool,
}

const KINDS: [Kind; 2] = [
    Kind {
        folder: "cifar-10-batches-bin",
        train: &[
            "data_batch_1.bin",
            "data_batch_2.bin",
            "data_batch_3.bin",
            "data_batch_4.bin",
            "data_batch_5.bin",
        ],
        test: "test_batch.bin",
        names: "batches.meta.txt",
        classes: 10,
        coarse: false,
    },
    Kind {
        folder: "cifar-100-binary",
        train: &["train.bin"],
        test: "test.bin",
        names: "fine_label_names.txt",
        classes: 100,
        coarse: true,
    },
];

/// The folder with the files: the given one, or the one that the archive unpacked to in it.
pub(super) fn root(source: &Path) -> Option<PathBuf> {
    find(source).map(|(dir, _)| dir)
}

fn find(source: &Path) -> Option<(PathBuf, &'static Kind)> {
    KINDS.iter().find_map(|kind| {
        let dirs = [source.to_owned(), source.join(kind.folder)];
        dirs.into_iter().find(|d| d.join(kind.train[0]).is_file()).map(|dir| (dir, kind))
    })
}

pub(super) fn import(request: &ImportRequest) -> Result<Import> {
    let Some((dir, kind)) = find(&request.source) else {
        let problem =
            "holds neither data_batch_1.bin (CIFAR-10) nor train.bin (CIFAR-100) of the binary version";
        return Err(Error::format(&request.source, problem));
    };
    let classes = match super::class_names(request, &dir, &[])? {
        Some(names) => names,
        None => lines_of(&dir.join(kind.names))?
            .unwrap_or_else(|| (0..kind.classes).map(|c| c.to_string()).collect()),
    };
    let list = |files: &[&str]| list(&dir, kind, files, &classes);
    let splits = vec![(Some(TRAIN), list(kind.train)?), (Some(VAL), list(&[kind.test])?)];
    Ok(Import { format: Format::Cifar, splits, meta: BTreeMap::new() })
}

fn list(dir: &Path, kind: &Kind, files: &[&str], classes: &[String]) -> Result<Listing> {
    let image = FieldSpec::image([SIDE, SIDE, 3], 255.0);
    let mut fields = vec![Listed { spec: image, layout: Layout::Planes }];
    if kind.coarse {
        let spec = FieldSpec::array("coarse", DType::I64, &[], false);
        fields.push(Listed { spec, layout: Layout::Number });
    }
    let mut listing = Listing::new(dir, fields);
    listing.classes = classes.to_vec();
    let record = PIXELS + 1 + u64::from(kind.coarse);
    for name in files {
        let path = dir.join(name);
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        if bytes.is_empty() || !(bytes.len() as u64).is_multiple_of(record) {
            let problem = format!("has {} bytes, which are no whole records of {record}", bytes.len());
            return Err(Error::format(path, problem));
        }
        let store = listing.store(Store::File(path));
        let stem = name.trim_end_matches(".bin");
        for (i, sample) in bytes.chunks_exact(record as usize).enumerate() {
            let at = i as u64 * record;
            let label = sample[usize::from(kind.coarse)];
            let pixels = Part { offset: at + record - PIXELS, length: PIXELS, store };
            let coarse = Part { offset: at, length: 1, store };
            let parts = [pixels, coarse];
            listing.add(
                &format!("{stem}/{i:05}"),
                Some(i64::from(label)),
                &parts[..1 + usize::from(kind.coarse)],
            )?;
        }
    }
    listing.finish()
}
