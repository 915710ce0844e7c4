//! A folder for each class, as torchvision's `ImageFolder` reads them: a class is a folder of the first level, in
//! the order of the names' bytes; images may lie at any depth below it.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::imagenet::synset_line;
use super::listing::{Import, LeftOut, Listed, Listing, Part, Store, written_at};
use super::{
    Format, ImportRequest, Splits, class_names, extension, is_image, is_litter, names_in, places,
    split_folders,
};
use crate::{Error, Result};

/// Folders in folders; more is a mistake.
const DEEPEST: usize = 64;

pub(super) fn import(request: &ImportRequest) -> Result<Import> {
    let Splits { folders: parts, mut warnings } = split_folders(&request.source)?;
    let mut known = class_names(request, &request.source, &parts)?.map(|lines| Classes::from_lines(&lines));
    let mut splits = Vec::new();
    for (split, dir) in parts {
        let (mut listing, classes) = list(&dir, known.take())?;
        listing.warnings.append(&mut warnings);
        // The other split's labels mean the same classes.
        known = Some(classes);
        splits.push((split, listing));
    }
    Ok(Import { format: Format::Folder, splits, meta: BTreeMap::new() })
}

/// The classes in the order of their labels.
struct Classes {
    folders: Vec<String>,
    names: Vec<String>,
}

impl Classes {
    /// Of a list of folders, or of WordNet's ids (which are the folders) with their words.
    fn from_lines(lines: &[String]) -> Self {
        let mut synsets: Vec<(&str, &str)> = lines.iter().filter_map(|l| synset_line(l)).collect();
        if synsets.len() < lines.len() {
            return Classes { folders: lines.to_vec(), names: lines.to_vec() };
        }
        synsets.sort_unstable();
        let names = synsets.iter().map(|(id, words)| if words.is_empty() { id } else { words });
        let names = names.map(|name| (*name).to_owned()).collect();
        Classes { folders: synsets.into_iter().map(|(id, _)| id.to_owned()).collect(), names }
    }
}

/// Lists one split. With `known` its folders must be among those classes.
fn list(dir: &Path, known: Option<Classes>) -> Result<(Listing, Classes)> {
    let mut listing = Listing::new(dir, vec![Listed::images()]);
    let store = listing.store(Store::Folder(dir.to_owned()));
    let mut left_out = LeftOut::default();
    let mut folders = Vec::new();
    for (name, is_dir) in names_in(dir)? {
        match () {
            () if is_litter(&name) => left_out.add("hidden names", &name),
            () if is_dir => folders.push(name),
            () if name == crate::idx::CLASSES => {}
            () => left_out.add("files that lie in no class folder", &name),
        }
    }
    if folders.is_empty() {
        let problem = "holds no class folders; a class is a folder with its images in it, and --format says what else it is";
        return Err(Error::format(dir, problem));
    }
    let classes = known.unwrap_or_else(|| Classes { folders: folders.clone(), names: folders.clone() });
    listing.classes.clone_from(&classes.names);
    let mut walk = Walk { listing, store, left_out, ancestors: Vec::new() };
    let mut empty = Vec::new();
    let places = places(dir, &classes.folders)?;
    for folder in &folders {
        let Some(&label) = places.get(folder.as_str()) else {
            let problem = format!("the folder {folder:?} is none of the {} classes", classes.folders.len());
            return Err(Error::format(dir, problem));
        };
        let before = walk.listing.len();
        walk.folder(&dir.join(folder), folder, label as i64)?;
        if walk.listing.len() == before {
            empty.push(folder.as_str());
        }
    }
    let Walk { mut listing, left_out, .. } = walk;
    if !empty.is_empty() {
        let shown = empty.iter().take(10).map(|n| format!("{n:?}")).collect::<Vec<_>>().join(", ");
        let more = if empty.len() > 10 { ", …" } else { "" };
        listing
            .warnings
            .push(format!("{} classes have no image and keep their label: {shown}{more}", empty.len()));
    }
    listing.warnings.extend(left_out.warnings());
    Ok((listing.finish()?, classes))
}

struct Walk {
    listing: Listing,
    store: u32,
    left_out: LeftOut,
    /// The folders that the current one lies in, by device and number.
    ancestors: Vec<(u64, u64)>,
}

impl Walk {
    /// Lists the images in `dir`, which is `key` from the source on.
    fn folder(&mut self, dir: &Path, key: &str, label: i64) -> Result<()> {
        let meta = std::fs::metadata(dir).map_err(Error::io("read", dir))?;
        let id = (meta.dev(), meta.ino());
        if self.ancestors.contains(&id) || self.ancestors.len() == DEEPEST {
            return Err(Error::format(dir, "is a link to a folder that it lies in, or lies too deep"));
        }
        self.ancestors.push(id);
        for (name, is_dir) in names_in(dir)? {
            let (path, key) = (dir.join(&name), format!("{key}/{name}"));
            if is_litter(&name) {
                self.left_out.add("hidden names", &key);
            } else if is_dir {
                self.folder(&path, &key, label)?;
            } else if is_image(&name) {
                let meta = std::fs::metadata(&path).map_err(Error::io("read", &path))?;
                if !meta.is_file() {
                    return Err(Error::format(path, "is no regular file"));
                }
                self.listing.add(
                    &key,
                    Some(label),
                    &[Part { offset: 0, length: meta.len(), store: self.store }],
                )?;
                self.listing.written(written_at(&meta));
            } else {
                self.left_out.add(&format!("files that end in {:?}", extension(&name)), &key);
            }
        }
        self.ancestors.pop();
        Ok(())
    }
}
