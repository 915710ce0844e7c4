//! Tars in which the files of a sample lie side by side and share their name up to the first dot: `key.jpg`, `key.cls`
//! (the label in digits), `key.txt`, `key.json`. Source: Aizman, Maltby and Breuel, "High Performance I/O for Large
//! Scale Deep Learning", 2019.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::listing::{Import, LeftOut, Listed, Listing, Part, Store};
use super::tar::{Member, Walker, open};
use super::{Format, ImportRequest, class_names, names_in, split_folders};
use crate::{Error, Result};

/// The longest label in digits.
const LONGEST_LABEL: usize = 32;
/// What labels may be without a list of the classes.
const MOST_CLASSES: i64 = 1 << 20;
const TEXTS: [&str; 2] = ["txt", "json"];

pub(super) fn import(request: &ImportRequest) -> Result<Import> {
    let source = &request.source;
    let (folder, parts) = match source.is_dir() {
        true => (source.clone(), split_folders(source)?),
        false => (source.parent().unwrap_or(Path::new(".")).to_owned(), vec![(None, source.clone())]),
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
    key: String,
    image: Option<Member>,
    label: Option<i64>,
    texts: [Option<Member>; 2],
}

fn tars(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    if !path.is_dir() {
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or("tar");
        return Ok(vec![(stem.to_owned(), path.to_owned())]);
    }
    let names = names_in(path)?.into_iter().filter(|(_, is_dir)| !is_dir);
    let tars = names.filter_map(|(n, _)| n.strip_suffix(".tar").map(|stem| (stem.to_owned(), path.join(&n))));
    Ok(tars.collect())
}

fn list(path: &Path) -> Result<Found> {
    let tars = tars(path)?;
    let mut texts: Option<[bool; 2]> = None;
    let mut found = Found { listing: Listing::new(path, Vec::new()), highest: -1 };
    let mut left_out = LeftOut::default();
    for (stem, path) in tars {
        let (file, length) = open(&path)?;
        let store = found.listing.store(Store::File(path.clone()));
        let mut walker = Walker::new(&file, &path, length)?;
        let mut group = Group::default();
        loop {
            let member = walker.next()?;
            let split = member.as_ref().map(|m| key_and_end(&m.name));
            let same = matches!(split, Some(Some((key, _))) if key == group.key);
            if !same && !group.key.is_empty() {
                put(&mut found, std::mem::take(&mut group), &stem, &path, store, &mut texts, &mut left_out)?;
            }
            let Some(member) = member else { break };
            let Some((key, end)) = key_and_end(&member.name) else {
                left_out.add("files without an ending, or hidden", &member.name);
                continue;
            };
            group.key = key.to_owned();
            let end = end.to_ascii_lowercase();
            let repeated = match end.as_str() {
                "jpg" | "jpeg" | "png" => group.image.replace(member.clone()).is_some(),
                "cls" => {
                    let text = walker.content(&member, LONGEST_LABEL)?;
                    group.label.replace(label(&path, &member, &text)?).is_some()
                }
                "txt" => group.texts[0].replace(member.clone()).is_some(),
                "json" => group.texts[1].replace(member.clone()).is_some(),
                _ => {
                    left_out.add(&format!("files that end in {end:?}"), &member.name);
                    false
                }
            };
            if repeated {
                let problem =
                    format!("byte {}: sample {:?} has two files of one kind", member.offset, group.key);
                return Err(Error::format(path, problem));
            }
        }
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
    group: Group,
    stem: &str,
    path: &Path,
    store: u32,
    texts: &mut Option<[bool; 2]>,
    left_out: &mut LeftOut,
) -> Result<()> {
    let Some(image) = group.image else {
        left_out.add("samples without an image", &group.key);
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
        let problem = format!("sample {:?} and the first one differ in having a .{differs} file", group.key);
        return Err(Error::format(path, problem));
    }
    let all = [Some(image), group.texts[0].clone(), group.texts[1].clone()];
    let part = |m: Member| Part { offset: m.offset, length: m.length, store };
    let parts: Vec<Part> = all.into_iter().flatten().map(part).collect();
    found.highest = found.highest.max(group.label.unwrap_or(-1));
    found.listing.add(&format!("{stem}/{}", group.key), group.label, &parts)
}
