//! Tars in which the files of a sample share their name up to the first dot, and lie side by side as a rule: `key.jpg`, `key.cls`
//! (the label in digits), `key.txt`, `key.json`. Source: Aizman, Maltby and Breuel, "High Performance I/O for Large
//! Scale Deep Learning", 2019.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::listing::{Import, LeftOut, Listed, Listing, Part, Store};
use super::tar::{Member, Walker, open};
use super::{Format, ImportRequest, Splits, class_names, is_litter, names_in, split_folders};
use crate::{Error, Result};

/// The longest label in digits.
const LONGEST_LABEL: usize = 32;
/// What labels may be without a list of the classes.
const MOST_CLASSES: i64 = 1 << 20;
const TEXTS: [&str; 2] = ["txt", "json"];

pub(super) fn import(request: &ImportRequest) -> Result<Import> {
    let source = &request.source;
    let (folder, Splits { folders: parts, mut warnings }) = match source.is_dir() {
        true => (source.clone(), split_folders(source)?),
        false => {
            let folder = source.parent().unwrap_or(Path::new("."));
            (folder.to_owned(), Splits { folders: vec![(None, source.clone())], warnings: Vec::new() })
        }
    };
    let names = class_names(request, &folder, &parts)?;
    let mut splits = Vec::new();
    for (split, path) in parts {
        splits.push((split, list(&path)?));
    }
    // All splits have the same classes, however few of them one shows.
    let highest = splits.iter().map(|(_, found)| found.highest).max().unwrap_or(-1);
    let classes = names.unwrap_or_else(|| (0..=highest).map(|c| c.to_string()).collect());
    let splits = splits.into_iter().map(|(split, found)| {
        let mut listing = found.listing;
        listing.warnings.append(&mut warnings);
        listing.classes = if found.highest < 0 { Vec::new() } else { classes.clone() };
        Ok((split, listing.finish()?))
    });
    Ok(Import { format: Format::Webdataset, splits: splits.collect::<Result<_>>()?, meta: BTreeMap::new() })
}

struct Found {
    listing: Listing,
    /// The highest label; -1 where there is none.
    highest: i64,
}

/// The files of one sample.
#[derive(Default)]
struct Group {
    image: Option<Part>,
    label: Option<i64>,
    texts: [Option<Part>; 2],
}

fn tars(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    if !path.is_dir() {
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or("tar");
        return Ok(vec![(stem.to_owned(), path.to_owned())]);
    }
    let names = names_in(path)?.into_iter().filter(|(name, is_dir)| !is_dir && !is_litter(name));
    let tars = names.filter_map(|(n, _)| n.strip_suffix(".tar").map(|stem| (stem.to_owned(), path.join(&n))));
    Ok(tars.collect())
}

fn list(path: &Path) -> Result<Found> {
    let tars = tars(path)?;
    let mut alone = None;
    let mut texts: Option<[bool; 2]> = None;
    let mut found = Found { listing: Listing::new(path, Vec::new()), highest: -1 };
    let mut left_out = LeftOut::default();
    for (stem, path) in tars {
        let (file, length) = open(&path)?;
        let store = found.listing.store(Store::File(path.clone()));
        let mut walker = Walker::new(&file, &path, length)?;
        // Whole tars at a time: their files may have been packed in any order.
        let mut groups: BTreeMap<String, Group> = BTreeMap::new();
        while let Some(member) = walker.next()? {
            let parts = if is_litter(&member.name) { None } else { key_and_end(&member.name) };
            let Some((key, end)) = parts else {
                left_out.add("files without an ending, or hidden", &member.name);
                continue;
            };
            let group = match groups.get_mut(key) {
                Some(group) => group,
                None => groups.entry(key.to_owned()).or_default(),
            };
            let part = Part { offset: member.offset, length: member.length, store };
            let end = end.to_ascii_lowercase();
            let repeated = match end.as_str() {
                "jpg" | "jpeg" | "png" => group.image.replace(part).is_some(),
                "cls" => {
                    let text = walker.content(&member, LONGEST_LABEL)?;
                    group.label.replace(label(&path, &member, &text)?).is_some()
                }
                "txt" => group.texts[0].replace(part).is_some(),
                "json" => group.texts[1].replace(part).is_some(),
                _ => {
                    left_out.add(&format!("files that end in {end:?}"), &member.name);
                    false
                }
            };
            if repeated {
                let problem = format!("byte {}: sample {key:?} has two files of one kind", member.offset);
                return Err(Error::format(path, problem));
            }
        }
        for (key, group) in groups {
            if group.image.is_none() && group.label.is_some() && alone.is_none() {
                alone = Some((path.clone(), key.clone()));
            }
            put(&mut found, &key, group, &stem, &path, &mut texts, &mut left_out)?;
        }
    }
    // A set whose labels are all of no image has them under other keys, and would be one without labels.
    if let Some((path, key)) = alone.filter(|_| found.highest < 0 && !found.listing.is_empty()) {
        let problem = format!(
            "sample {key:?} has a label and no image, and no image has a label: the files of a sample share their \
             name up to its first dot, with the folders before it"
        );
        return Err(Error::format(path, problem));
    }
    found.listing.warnings.extend(left_out.warnings());
    Ok(found)
}

/// A sample's key and the file's ending, split at the first dot of the last part of the path.
fn key_and_end(name: &str) -> Option<(&str, &str)> {
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base + name[base..].find('.')?;
    (dot > base && dot + 1 < name.len()).then(|| (&name[..dot], &name[dot + 1..]))
}

fn label(path: &Path, member: &Member, text: &[u8]) -> Result<i64> {
    let number = std::str::from_utf8(text).ok().and_then(|t| t.trim().parse().ok());
    number.filter(|n| (0..MOST_CLASSES).contains(n)).ok_or_else(|| {
        let shown = String::from_utf8_lossy(text);
        let problem = format!("entry {:?}, byte {}: {shown:?} is no label", member.name, member.offset);
        Error::format(path, problem)
    })
}

/// Adds a sample; the first one says which fields all have.
fn put(
    found: &mut Found,
    key: &str,
    group: Group,
    stem: &str,
    path: &Path,
    texts: &mut Option<[bool; 2]>,
    left_out: &mut LeftOut,
) -> Result<()> {
    let Some(image) = group.image else {
        left_out.add("samples without an image", key);
        return Ok(());
    };
    let has = [0, 1].map(|i| group.texts[i].is_some());
    let first = texts.is_none();
    let wanted = *texts.get_or_insert(has);
    if first {
        found.listing.fields.push(Listed::images());
        let extra = TEXTS.iter().zip(has).filter(|(_, has)| *has);
        found
            .listing
            .fields
            .extend(extra.map(|(end, _)| Listed::text(if *end == "txt" { "text" } else { end })));
    }
    if wanted != has {
        let differs = if wanted[0] == has[0] { TEXTS[1] } else { TEXTS[0] };
        let problem = format!("sample {key:?} and the first one differ in having a .{differs} file");
        return Err(Error::format(path, problem));
    }
    let parts: Vec<Part> = [Some(image), group.texts[0], group.texts[1]].into_iter().flatten().collect();
    found.highest = found.highest.max(group.label.unwrap_or(-1));
    found.listing.add(&format!("{stem}/{key}"), group.label, &parts)
}
