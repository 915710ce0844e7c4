//! A table and the files that it names: a header with the columns `file` and, as far as there are, `label` (a number from 0, or
//! a class's name) or `labels` (any number of them, with `;` between), `target` (a number, or as many in each row) and `text`.
//! Quotes as in RFC 4180. Whole numbers from 0 are labels as they are; other names of classes are sorted: as numbers where all
//! are (-1 before 2 before 10; 0.5 and 0.50 are one class), else as text.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use phalanx_host::DType;

use super::listing::{Import, Layout, LeftOut, Listed, Listing, Missing, Part, Store, written_at};
use super::tar::safe_path;
use super::{Format, ImportRequest, class_names};
use crate::{Error, FieldSpec, Result};

/// The longest row, however many lines it has.
const LONGEST_ROW: usize = 1 << 24;
/// What labels may be without a list of the classes.
const MOST_CLASSES: usize = 1 << 20;

/// What a column is for, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    File,
    Label,
    Labels,
    Target,
    Text,
}

/// Between the labels, and the targets, of one cell.
const BETWEEN: char = ';';

fn column(name: &str) -> Option<Column> {
    match name.trim().to_ascii_lowercase().as_str() {
        "file" | "filename" | "path" | "image" => Some(Column::File),
        "label" | "class" => Some(Column::Label),
        "labels" => Some(Column::Labels),
        "target" | "targets" => Some(Column::Target),
        "text" | "caption" => Some(Column::Text),
        _ => None,
    }
}

pub(super) fn import(request: &ImportRequest) -> Result<Import> {
    let path = &request.source;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let root = request.root.clone().unwrap_or_else(|| folder.to_owned());
    let given = match &request.class_names {
        Some(_) => class_names(request, folder, &[])?,
        None => None,
    };
    let (listing, label_names) = Table::open(path)?.list(root, given)?;
    // Only a set whose samples have one class each has classes.
    let meta = label_names.map(|names| ("label_names".to_owned(), names.join("\n")));
    Ok(Import { format: Format::Csv, splits: vec![(None, listing)], meta: BTreeMap::from_iter(meta) })
}

struct Table {
    path: PathBuf,
    rows: Rows<BufReader<std::fs::File>>,
    /// What each column is.
    columns: Vec<Option<Column>>,
    left_out: LeftOut,
}

impl Table {
    fn open(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(Error::io("read", path))?;
        let mut rows = Rows::new(BufReader::new(file));
        let bad = |problem: String| Error::format(path, problem);
        let header = rows.next_row().map_err(|e| e.at(path))?.ok_or_else(|| bad("is empty".into()))?;
        let columns: Vec<Option<Column>> = header.iter().map(|name| column(name)).collect();
        let mut left_out = LeftOut::default();
        for (name, column) in header.iter().zip(&columns) {
            match column {
                None => left_out.add("columns of another name", name),
                Some(c) if columns.iter().flatten().filter(|o| *o == c).count() > 1 => {
                    return Err(bad(format!("line 1: two columns are the {c:?}, one of them {name:?}")));
                }
                Some(_) => {}
            }
        }
        if !columns.contains(&Some(Column::File)) {
            let problem =
                format!("line 1 must name the columns, one of them `file`; it is {}", header.join(","));
            return Err(bad(problem));
        }
        if columns.contains(&Some(Column::Label)) && columns.contains(&Some(Column::Labels)) {
            return Err(bad(
                "line 1: there is a column `label` and one `labels`; a sample has one class or several"
                    .into(),
            ));
        }
        Ok(Table { path: path.to_owned(), rows, columns, left_out })
    }

    /// The samples, and the classes' names where a sample has several.
    fn list(mut self, root: PathBuf, given: Option<Vec<String>>) -> Result<(Listing, Option<Vec<String>>)> {
        let has = |c: Column| self.columns.contains(&Some(c));
        let (labelled, several, targeted) = (has(Column::Label), has(Column::Labels), has(Column::Target));
        let mut fields = vec![Listed::images()];
        if several {
            fields.push(Listed::labels("labels"));
        }
        let target = fields.len();
        if targeted {
            let spec = FieldSpec::array("target", DType::F32, &[], false);
            fields.push(Listed { spec, layout: Layout::Elements });
        }
        if has(Column::Text) {
            fields.push(Listed::text("text"));
        }
        let mut listing = Listing::new(&self.path, fields);
        let files = listing.store(Store::Folder(root.clone()));
        let beside = listing.store(Store::Memory(Vec::new()));
        let mut memory = Vec::new();
        // Labels become numbers when all are known.
        let mut kept: Vec<(String, u32, Vec<Part>, u64)> = Vec::new();
        let (mut names, mut targets) = (Names::default(), None);
        loop {
            let row = self.rows.next_row().map_err(|e| e.at(&self.path))?;
            let Some(row) = row else { break };
            let line = self.rows.row_line;
            let bad = |problem: String| Error::format(&self.path, format!("line {line}: {problem}"));
            if row.len() != self.columns.len() {
                let problem = format!("has {} columns, and the header has {}", row.len(), self.columns.len());
                return Err(bad(problem));
            }
            let cell = |c: Column| self.columns.iter().position(|o| *o == Some(c)).map(|i| row[i].as_str());
            let file = cell(Column::File).unwrap_or_default();
            let key = safe_path(file.as_bytes()).map_err(|problem| {
                bad(format!("{file:?}: {problem}; files are named from {}, or from --root", root.display()))
            })?;
            let label = if labelled { names.number(cell(Column::Label).unwrap_or_default()) } else { 0 };
            // Also those of files that are gone: the classes are the table's.
            let several_of = cell(Column::Labels)
                .map(|cell| split(cell).map(|name| names.number(name)).collect::<Vec<u32>>());
            let mut parts = Vec::with_capacity(listing.fields.len());
            let written = match std::fs::metadata(root.join(&key)) {
                Ok(meta) if meta.is_file() && !key.is_empty() => {
                    parts.push(Part { offset: 0, length: meta.len(), store: files });
                    written_at(&meta)
                }
                Ok(_) => return Err(bad(format!("{file:?} is no regular file"))),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    let problem = format!("{} line {line}: there is no such file", self.path.display());
                    listing.missing.push(Missing { key, problem });
                    continue;
                }
                Err(e) => return Err(Error::io("read", root.join(&key))(e)),
            };
            let mut keep = |bytes: &dyn Fn(&mut Vec<u8>)| {
                let offset = memory.len() as u64;
                bytes(&mut memory);
                parts.push(Part { offset, length: memory.len() as u64 - offset, store: beside });
            };
            if let Some(labels) = several_of {
                // As many bytes as the numbers will take that come in their place.
                keep(&|m| m.extend(labels.iter().flat_map(|&l| i64::from(l).to_le_bytes())));
            }
            if let Some(cell) = cell(Column::Target) {
                let number = |text: &str| {
                    let x = text.parse().ok().filter(|x: &f32| x.is_finite());
                    x.ok_or_else(|| bad(format!("the target {text:?} is no number")))
                };
                let numbers = split(cell).map(number).collect::<Result<Vec<f32>>>()?;
                let wanted = *targets.get_or_insert(numbers.len());
                if numbers.is_empty() || numbers.len() != wanted {
                    let problem = format!("has {} targets, and the first row has {wanted}", numbers.len());
                    return Err(bad(problem));
                }
                keep(&|m| m.extend(numbers.iter().flat_map(|n| n.to_le_bytes())));
            }
            if let Some(text) = cell(Column::Text) {
                keep(&|m| m.extend(text.as_bytes()));
            }
            kept.push((key, label, parts, written));
        }
        if let Some(several) = targets.filter(|&n| n > 1) {
            listing.fields[target].spec.shape = vec![several];
        }
        let (mut classes, mut numbers) = (Vec::new(), Vec::new());
        if labelled || several {
            numbers = names.classes(&self.path, given, &mut classes)?;
        }
        let number = |label: u32| numbers.get(label as usize).copied();
        if several {
            for part in kept.iter().map(|(_, _, parts, _)| parts[1]) {
                let range = part.offset as usize..(part.offset + part.length) as usize;
                for cell in memory[range].as_chunks_mut::<8>().0 {
                    *cell = number(i64::from_le_bytes(*cell) as u32).unwrap_or_default().to_le_bytes();
                }
            }
        }
        listing.stores[beside as usize] = Store::Memory(memory);
        for (key, label, parts, written) in kept {
            listing.add(&key, number(label).filter(|_| labelled), &parts)?;
            listing.written(written);
        }
        listing.warnings.extend(self.left_out.warnings());
        let label_names = several.then(|| classes.clone());
        if labelled {
            listing.classes = classes;
        }
        Ok((listing.finish()?, label_names))
    }
}

/// The values of a cell that may hold several.
fn split(cell: &str) -> impl Iterator<Item = &str> {
    cell.split(BETWEEN).map(str::trim).filter(|part| !part.is_empty())
}

/// What a label says that is a number of a class, also where a program has written it as `3.0`.
fn class_number(label: &str) -> Option<usize> {
    let label = label.trim();
    let of_float = || label.parse::<f64>().ok().filter(|x| x.fract() == 0.0 && (0.0..1e9).contains(x));
    label.parse().ok().or_else(|| of_float().map(|x| x as usize))
}

/// The distinct labels of a table in the order of their first appearance.
#[derive(Default)]
struct Names {
    known: HashMap<String, u32>,
    list: Vec<String>,
}

impl Names {
    fn number(&mut self, name: &str) -> u32 {
        if let Some(&number) = self.known.get(name) {
            return number;
        }
        let number = self.list.len() as u32;
        self.list.push(name.to_owned());
        self.known.insert(name.to_owned(), number);
        number
    }

    /// The label that each distinct name stands for: its number if all are whole numbers from 0, else its place among the
    /// given classes, or among all names sorted: by their values if all are numbers, such as -1 and 1.
    fn classes(
        &self,
        path: &Path,
        given: Option<Vec<String>>,
        classes: &mut Vec<String>,
    ) -> Result<Vec<i64>> {
        let bad = |name: &str, problem: String| Error::format(path, format!("label {name:?}: {problem}"));
        let outside = |name: &str, n: usize| bad(name, format!("is none of the {n} classes"));
        let numbers: Option<Vec<usize>> = self.list.iter().map(|n| class_number(n)).collect();
        if let Some(numbers) = numbers {
            let highest = numbers.iter().copied().max().unwrap_or(0);
            if highest >= MOST_CLASSES {
                return Err(bad(&highest.to_string(), format!("labels are below {MOST_CLASSES}")));
            }
            *classes = given.unwrap_or_else(|| (0..=highest).map(|c| c.to_string()).collect());
            if highest >= classes.len() {
                return Err(outside(&highest.to_string(), classes.len()));
            }
            return Ok(numbers.into_iter().map(|n| n as i64).collect());
        }
        if let Some(empty) = self.list.iter().find(|n| n.trim().is_empty()) {
            return Err(bad(empty, "a row has none".into()));
        }
        let value = |name: &String| name.trim().parse().ok().filter(|x: &f64| x.is_finite());
        *classes = match (given, self.list.iter().map(value).collect::<Option<Vec<f64>>>()) {
            (Some(given), _) => given,
            (None, Some(values)) => {
                let (names, labels) = self.by_value(&values);
                *classes = names;
                return Ok(labels);
            }
            (None, None) => {
                let mut sorted = self.list.clone();
                sorted.sort_unstable();
                sorted
            }
        };
        let place = super::places(path, classes)?;
        let label = |n: &String| place.get(n.as_str()).map(|&p| p as i64);
        self.list.iter().map(|n| label(n).ok_or_else(|| outside(n, classes.len()))).collect()
    }

    /// The classes in the order of these values of theirs, and the label of each name. Names of one value, such as -1 and -1.0,
    /// are one class, which is called by the shortest of them.
    fn by_value(&self, values: &[f64]) -> (Vec<String>, Vec<i64>) {
        let mut order: Vec<(f64, usize, &String, usize)> =
            values.iter().zip(&self.list).enumerate().map(|(i, (&x, n))| (x, n.len(), n, i)).collect();
        order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then_with(|| (a.1, a.2).cmp(&(b.1, b.2))));
        let (mut classes, mut labels, mut last) = (Vec::new(), vec![0; values.len()], None);
        for (x, _, name, i) in order {
            if last != Some(x) {
                classes.push(name.clone());
                last = Some(x);
            }
            labels[i] = classes.len() as i64 - 1;
        }
        (classes, labels)
    }
}

/// Reads a table row by row.
struct Rows<R> {
    input: R,
    /// Lines read so far.
    line: u64,
    /// The line on which the last row began.
    row_line: u64,
}

enum RowError {
    Io(std::io::Error),
    Row(u64, &'static str),
}

impl RowError {
    fn at(self, path: &Path) -> Error {
        match self {
            RowError::Io(e) => Error::io("read", path)(e),
            RowError::Row(line, problem) => Error::format(path, format!("line {line}: {problem}")),
        }
    }
}

impl<R: BufRead> Rows<R> {
    fn new(input: R) -> Self {
        Rows { input, line: 0, row_line: 0 }
    }

    /// The next line's bytes, appended to `row`; false at the end.
    fn line(&mut self, row: &mut Vec<u8>) -> std::result::Result<bool, RowError> {
        let room = (LONGEST_ROW + 1).saturating_sub(row.len()) as u64;
        let read = std::io::Read::take(&mut self.input, room).read_until(b'\n', row).map_err(RowError::Io)?;
        self.line += 1;
        if row.len() > LONGEST_ROW {
            return Err(RowError::Row(self.row_line, "the row is longer than 16 MB; a quote may be missing"));
        }
        Ok(read > 0)
    }

    /// The cells of the next row; None after the last. Empty lines are no rows.
    fn next_row(&mut self) -> std::result::Result<Option<Vec<String>>, RowError> {
        let mut row = Vec::new();
        loop {
            row.clear();
            self.row_line = self.line + 1;
            if !self.line(&mut row)? {
                return Ok(None);
            }
            if self.row_line == 1 && row.starts_with(b"\xef\xbb\xbf") {
                row.drain(..3);
            }
            if row.iter().any(|b| !b.is_ascii_whitespace()) {
                break;
            }
        }
        // A quoted cell may go on over lines: as long as the number of quotes is odd, one is open.
        let mut quotes = row.iter().filter(|&&b| b == b'"').count();
        while quotes % 2 == 1 {
            let before = row.len();
            if !self.line(&mut row)? {
                return Err(RowError::Row(self.row_line, "a quote is not closed"));
            }
            quotes += row[before..].iter().filter(|&&b| b == b'"').count();
        }
        let problem = |problem| RowError::Row(self.row_line, problem);
        let text = std::str::from_utf8(&row).map_err(|_| problem("is not UTF-8 text"))?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        cells(text.strip_suffix('\r').unwrap_or(text)).map(Some).map_err(problem)
    }
}

/// Splits a row at the commas that are not quoted.
fn cells(row: &str) -> std::result::Result<Vec<String>, &'static str> {
    let mut cells = Vec::new();
    let mut rest = row;
    loop {
        let mut cell = String::new();
        let after = match rest.strip_prefix('"') {
            Some(mut quoted) => loop {
                let end = quoted.find('"').ok_or("a quote is not closed")?;
                cell.push_str(&quoted[..end]);
                quoted = &quoted[end + 1..];
                // Two quotes in a quoted cell are one of its text.
                match quoted.strip_prefix('"') {
                    Some(more) => {
                        cell.push('"');
                        quoted = more;
                    }
                    None => break quoted,
                }
            },
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                if rest[..end].contains('"') {
                    return Err("a quote stands inside a cell that is not quoted");
                }
                cell.push_str(&rest[..end]);
                &rest[end..]
            }
        };
        cells.push(cell);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(cells),
            None => return Err("something follows a closed quote"),
        }
    }
}
