//! Reports in words.

use std::fmt::{Display, Formatter, Result};

use crate::{BadRecord, ChannelStats, InspectReport, Repaired, Sizes, VerifyReport};

/// Lines of a list that are shown; JSON has all.
const SHOWN: usize = 20;

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// A line for each of the first few, and how many more there are.
fn list<T: Display>(f: &mut Formatter<'_>, all: &[T]) -> Result {
    for line in all.iter().take(SHOWN) {
        write!(f, "\n  {line}")?;
    }
    match all.len().saturating_sub(SHOWN) {
        0 => Ok(()),
        more => write!(f, "\n  … and {more} more; --json tells all"),
    }
}

impl Display for BadRecord {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let BadRecord { id, key_hash, shard, offset, reason } = self;
        write!(f, "record {id} (key {key_hash}, shard {shard} from byte {offset}): {reason}")
    }
}

impl Display for VerifyReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let state = match () {
            () if self.is_sound() => "sound",
            () if !self.incomplete.is_empty() => "incomplete",
            () => "damaged",
        };
        write!(f, "{state}: {} records, {} in {} shards", self.records, megabytes(self.bytes), self.shards)?;
        if let Some(root) = &self.root {
            write!(f, ", root {root}")?;
        }
        list(f, &self.incomplete)?;
        list(
            f,
            &self.files.iter().map(|file| format!("{}: {}", file.file, file.problem)).collect::<Vec<_>>(),
        )?;
        list(f, &self.bad)?;
        match self.quarantined.len() {
            0 => Ok(()),
            n => write!(f, "\n  {n} records are in quarantine and left out"),
        }
    }
}

impl Display for Repaired {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Repaired { quarantined, added, released, left, rewritten } = self;
        let all = quarantined.len();
        write!(f, "{left} records are left; {all} in quarantine, {added} of them new, {released} released")?;
        for file in rewritten {
            write!(f, "\n  {file} was written anew")?;
        }
        list(f, quarantined)
    }
}

impl Display for ChannelStats {
    /// As options of the transform `normalise`.
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let row = |values: &[f64]| {
            let values: Vec<String> = values.iter().map(|v| format!("{v:.6}")).collect();
            format!("[{}]", values.join(", "))
        };
        write!(
            f,
            "{} images, {} pixels\nmean = {}, std = {}",
            self.images,
            self.pixels,
            row(&self.mean),
            row(&self.std)
        )
    }
}

impl Display for InspectReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(
            f,
            "{}: {} records, {} in {} shards",
            self.name,
            self.records,
            megabytes(self.bytes),
            self.shards
        )?;
        write!(f, "  root         {}", self.root)?;
        if self.quarantined > 0 {
            write!(f, "\n  quarantine   {} records, which are left out", self.quarantined)?;
        }
        for field in &self.fields {
            write!(f, "\n  field        {field}")?;
        }
        for (codec, records) in &self.codecs {
            write!(f, "\n  {codec:<12} {records} records")?;
        }
        if let Some(bytes) = self.record_bytes {
            write!(
                f,
                "\n  record       {} to {} bytes, {:.0} on average",
                bytes.least, bytes.most, bytes.mean
            )?;
        }
        if let Some(sizes) = &self.sizes {
            write!(f, "{sizes}")?;
        }
        for (key, value) in &self.meta {
            let short: String = value.chars().take(60).collect();
            let dots = if short.len() < value.len() { "…" } else { "" };
            write!(f, "\n  {key:<12} {short}{dots}")?;
        }
        let counts = self.classes.iter().map(|c| c.records);
        if let (Some(least), Some(most)) = (counts.clone().min(), counts.max()) {
            write!(f, "\n  classes      {}, of {least} to {most} records", self.classes.len())?;
            list(
                f,
                &self.classes.iter().map(|c| format!("  {:>8}  {}", c.records, c.name)).collect::<Vec<_>>(),
            )?;
        }
        Ok(())
    }
}

impl Display for Sizes {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let (h, w) = (&self.height, &self.width);
        let (mean_h, mean_w) = (h.mean, w.mean);
        write!(f, "\n  width        {} to {} pixels, {mean_w:.1} on average", w.least, w.most)?;
        write!(f, "\n  height       {} to {} pixels, {mean_h:.1} on average", h.least, h.most)?;
        let common = self.common.iter().take(5).map(|s| format!("{}x{} ({})", s.width, s.height, s.images));
        let common = common.collect::<Vec<_>>().join(", ");
        write!(f, "\n  sizes        {}; most frequent {common}", self.different)
    }
}
