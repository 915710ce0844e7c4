//! Reads Python's pickles without executing anything: a machine with the opcodes and the few names that
//! PyTorch's files of tensors need (Python's `pickletools` has the opcodes, `torch/serialization.py` the
//! names). A pickle may call any function of Python; here, a name that is not in the list ends the reading.
//!
//! Values lie in one list and refer to each other by index, so that cycles and depth cost nothing, and an
//! opcode makes at most one of them: memory is bounded by the pickle's length.

use std::collections::HashMap;

use super::archive::Found;

/// The longest pickle that is read: a file of a hundred thousand tensors has 15 MB.
const LONGEST: usize = 64 << 20;
/// The most values in one.
const MOST: usize = 1 << 22;
/// The most items in all tuples, lists and dictionaries when they are made: calls can copy them.
const MOST_ITEMS: usize = 1 << 24;
/// The longest key of a storage: PyTorch's are decimal numbers. Every recall of one is a copy.
const LONGEST_KEY: usize = 64;
/// The most axes of a tensor.
const AXES: usize = 32;

/// A value's index.
pub(super) type Id = u32;

/// The types of elements that storages can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Kind {
    /// Bytes of an element.
    pub(super) fn size(self) -> usize {
        match self {
            Kind::F64 | Kind::I64 => 8,
            Kind::F32 | Kind::I32 => 4,
            Kind::F16 | Kind::BF16 | Kind::I16 => 2,
            Kind::I8 | Kind::U8 | Kind::Bool => 1,
        }
    }
}

/// What a name in a pickle may stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    OrderedDict,
    /// `_rebuild_tensor` and `_rebuild_tensor_v2`: storage, offset, sizes, strides, then what is of no use here.
    Tensor,
    /// A parameter's first argument is its tensor.
    Parameter,
    /// A tuple of sizes.
    Size,
    Storage(Kind),
}

fn name(module: &str, name: &str) -> Found<Name> {
    Ok(match (module, name) {
        ("collections", "OrderedDict") => Name::OrderedDict,
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Name::Tensor,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Name::Parameter,
        ("torch", "Size") => Name::Size,
        ("torch" | "torch.storage", storage) => Name::Storage(match storage {
            "DoubleStorage" => Kind::F64,
            "FloatStorage" => Kind::F32,
            "HalfStorage" => Kind::F16,
            "BFloat16Storage" => Kind::BF16,
            "LongStorage" => Kind::I64,
            "IntStorage" => Kind::I32,
            "ShortStorage" => Kind::I16,
            "CharStorage" => Kind::I8,
            "ByteStorage" => Kind::U8,
            "BoolStorage" => Kind::Bool,
            _ => return Err(refused(module, name)),
        }),
        _ => return Err(refused(module, name)),
    })
}

fn refused(module: &str, name: &str) -> String {
    let short = |text: &str| text.chars().take(80).collect::<String>();
    format!(
        "it asks for {}.{}, which is not executed: only tensors are read; save the weights alone, with \
         torch.save(model.state_dict(), FILE) or as safetensors",
        short(module),
        short(name)
    )
}

/// A value.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// Nothing that matters here: None, a number that is no index, bytes.
    Opaque,
    Int(i64),
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Name(Name),
    /// An index into [`Pickle::storages`].
    Storage(u32),
    /// An index into [`Pickle::tensors`].
    Tensor(u32),
}

/// A run of elements that tensors are views of.
#[derive(Debug, Clone)]
pub(super) struct Storage {
    pub(super) kind: Kind,
    /// Which of the file's runs of bytes it is.
    pub(super) key: String,
}

/// A view of a storage, in elements.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub(super) storage: u32,
    pub(super) offset: u64,
    pub(super) sizes: Vec<u64>,
    pub(super) strides: Vec<u64>,
}

/// What a pickle holds.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    pub(super) storages: Vec<Storage>,
    pub(super) tensors: Vec<Tensor>,
    /// The value of the whole.
    pub(super) root: Id,
    /// Bytes up to its end.
    pub(super) len: usize,
}

impl Pickle {
    /// Reads the pickle that `bytes` begin with.
    pub(super) fn read(bytes: &[u8]) -> Found<Self> {
        let end = bytes.len().min(LONGEST);
        Machine { bytes: &bytes[..end], ..Machine::default() }.run()
    }

    /// A value.
    pub(super) fn get(&self, id: Id) -> &Value {
        self.values.get(id as usize).unwrap_or(&Value::Opaque)
    }

    /// The entries of a dictionary whose keys are texts; none for anything else.
    pub(super) fn entries(&self, id: Id) -> impl Iterator<Item = (&str, Id)> {
        let pairs = match self.get(id) {
            Value::Dict(pairs) => pairs.as_slice(),
            _ => &[],
        };
        pairs.iter().filter_map(|&(key, value)| match self.get(key) {
            Value::Text(text) => Some((text.as_str(), value)),
            _ => None,
        })
    }
}

#[derive(Debug, Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    storages: Vec<Storage>,
    tensors: Vec<Tensor>,
    items: usize,
    stack: Vec<Id>,
    /// Heights of the stack where marks are.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    fn run(mut self) -> Found<Pickle> {
        loop {
            let opcode = self.take(1)?[0];
            if opcode == b'.' {
                let root = self.pop()?;
                let Machine { values, storages, tensors, at, .. } = self;
                return Ok(Pickle { values, storages, tensors, root, len: at });
            }
            self.step(opcode)?;
        }
    }

    fn step(&mut self, opcode: u8) -> Found<()> {
        match opcode {
            // The protocol's number, and the length of a frame: nothing to do.
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.since_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' | 0x88 | 0x89 => self.push(Value::Opaque)?,
            b'G' => {
                self.take(8)?;
                self.push(Value::Opaque)?;
            }
            b'K' | b'M' | b'J' => {
                let len = [1, 2, 4][usize::from(opcode != b'K') + usize::from(opcode == b'J')];
                let n = self.number(len)?;
                // The one of four bytes has a sign.
                let n = if opcode == b'J' { i64::from(n as u32 as i32) } else { n as i64 };
                self.push(Value::Int(n))?;
            }
            0x8a => {
                let len = self.len(1)?;
                self.long(len)?;
            }
            0x8b => {
                let len = self.len(4)?;
                self.long(len)?;
            }
            b'X' => self.text(4)?,
            0x8c => self.text(1)?,
            0x8d => self.text(8)?,
            // Texts of Python 2, in which attribute names are ASCII.
            b'T' => self.text(4)?,
            b'U' => self.text(1)?,
            b'B' => self.skip(4)?,
            b'C' => self.skip(1)?,
            0x8e => self.skip(8)?,
            b')' => self.push(Value::Tuple(Vec::new()))?,
            0x85..=0x87 => {
                let from = self.stack.len().checked_sub(usize::from(opcode - 0x84)).ok_or_else(empty)?;
                self.check_marks(from)?;
                let items = self.stack.split_off(from);
                self.push(Value::Tuple(items))?;
            }
            b't' => {
                let items = self.since_mark()?;
                self.push(Value::Tuple(items))?;
            }
            b']' => self.push(Value::List(Vec::new()))?,
            b'l' => {
                let items = self.since_mark()?;
                self.push(Value::List(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])?;
            }
            b'e' => {
                let items = self.since_mark()?;
                self.extend(items)?;
            }
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b'd' => {
                let items = self.since_mark()?;
                let pairs = pairs(&items)?;
                self.push(Value::Dict(pairs))?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.insert(&[key, value])?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.insert(&items)?;
            }
            b'c' => {
                let (module, text) = (self.line()?, self.line()?);
                self.push(Value::Name(name(module, text)?))?;
            }
            0x93 => {
                let (text, module) = (self.pop()?, self.pop()?);
                let (Value::Text(module), Value::Text(text)) = (self.get(module), self.get(text)) else {
                    return Err("a name in its pickle is no text".into());
                };
                let found = name(module, text)?;
                self.push(Value::Name(found))?;
            }
            b'R' => self.call()?,
            b'b' => {
                // Attributes of a dictionary: a state_dict's `_metadata`.
                self.pop()?;
                if !matches!(self.get(self.top()?), Value::Dict(_)) {
                    return Err("its pickle sets the state of an object that is no dictionary".into());
                }
            }
            b'q' | b'r' => {
                let place = self.number(if opcode == b'q' { 1 } else { 4 })? as u32;
                self.memo.insert(place, self.top()?);
            }
            0x94 => {
                let place = self.memo.len() as u32;
                self.memo.insert(place, self.top()?);
            }
            b'h' | b'j' => {
                let place = self.number(if opcode == b'h' { 1 } else { 4 })? as u32;
                let id = self.memo.get(&place).ok_or("its pickle recalls what it has not kept")?;
                self.stack.push(*id);
            }
            b'Q' => self.persistent()?,
            other => {
                let at = self.at - 1;
                return Err(format!(
                    "its pickle has the opcode {other:#04x} at byte {at}, which no file of tensors needs"
                ));
            }
        }
        Ok(())
    }

    fn take(&mut self, n: usize) -> Found<&'a [u8]> {
        let taken = self.at.checked_add(n).and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or("its pickle is cut off, or longer than 64 MiB")?;
        self.at += n;
        Ok(taken)
    }

    /// A number of so many bytes, the lowest first.
    fn number(&mut self, bytes: usize) -> Found<u64> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    }

    fn len(&mut self, bytes: usize) -> Found<usize> {
        usize::try_from(self.number(bytes)?).map_err(|e| e.to_string())
    }

    /// A number in two's complement of any length; one that fits no i64 can be no index.
    fn long(&mut self, len: usize) -> Found<()> {
        let bytes = self.take(len)?;
        let value = match bytes.last() {
            _ if len > 8 => Value::Opaque,
            None => Value::Int(0),
            Some(last) => {
                let sign = if last & 0x80 != 0 { -1 } else { 0 };
                Value::Int(bytes.iter().rev().fold(sign, |n, &b| n << 8 | i64::from(b)))
            }
        };
        self.push(value)
    }

    fn text(&mut self, len: usize) -> Found<()> {
        let len = self.len(len)?;
        let text = std::str::from_utf8(self.take(len)?).map_err(|_| "a text in its pickle is not UTF-8")?;
        self.push(Value::Text(text.to_owned()))
    }

    fn skip(&mut self, len: usize) -> Found<()> {
        let len = self.len(len)?;
        self.take(len)?;
        self.push(Value::Opaque)
    }

    fn line(&mut self) -> Found<&'a str> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|&b| b == b'\n').ok_or("a name in its pickle is cut off")?;
        let line = &self.take(len + 1)?[..len];
        std::str::from_utf8(line).map_err(|_| "a name in its pickle is not UTF-8".to_owned())
    }

    fn push(&mut self, value: Value) -> Found<()> {
        self.items += match &value {
            Value::Tuple(items) | Value::List(items) => items.len(),
            Value::Dict(pairs) => pairs.len(),
            _ => 0,
        };
        if self.values.len() >= MOST || self.items > MOST_ITEMS {
            return Err(format!("its pickle has more than {MOST} values"));
        }
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
        Ok(())
    }

    fn get(&self, id: Id) -> &Value {
        &self.values[id as usize]
    }

    fn top(&self) -> Found<Id> {
        self.stack.last().copied().ok_or_else(empty)
    }

    fn pop(&mut self) -> Found<Id> {
        let id = self.stack.pop().ok_or_else(empty)?;
        self.check_marks(self.stack.len())?;
        Ok(id)
    }

    /// A mark must not be above the stack's top.
    fn check_marks(&self, height: usize) -> Found<()> {
        if self.marks.last().is_some_and(|&m| m > height) { Err(empty()) } else { Ok(()) }
    }

    fn since_mark(&mut self) -> Found<Vec<Id>> {
        let mark = self.marks.pop().filter(|&m| m <= self.stack.len()).ok_or_else(empty)?;
        Ok(self.stack.split_off(mark))
    }

    fn extend(&mut self, items: Vec<Id>) -> Found<()> {
        let list = self.top()? as usize;
        match &mut self.values[list] {
            Value::List(list) => list.extend(items),
            _ => return Err("its pickle appends to what is no list".into()),
        }
        Ok(())
    }

    fn insert(&mut self, items: &[Id]) -> Found<()> {
        let (dict, new) = (self.top()? as usize, pairs(items)?);
        match &mut self.values[dict] {
            Value::Dict(pairs) => pairs.extend(new),
            _ => return Err("its pickle sets an item of what is no dictionary".into()),
        }
        Ok(())
    }

    fn items(&self, id: Id) -> Found<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) | Value::List(items) => Ok(items),
            _ => Err("its pickle has another value where a tuple belongs".into()),
        }
    }

    fn index(&self, id: Id) -> Found<u64> {
        match self.get(id) {
            Value::Int(n) if *n >= 0 => Ok(*n as u64),
            _ => Err("an offset, size or stride in its pickle is no number from 0 on".into()),
        }
    }

    fn indices(&self, id: Id) -> Found<Vec<u64>> {
        let items = self.items(id)?;
        if items.len() > AXES {
            return Err(format!("a tensor in its pickle has {} axes", items.len()));
        }
        items.iter().map(|&i| self.index(i)).collect()
    }

    /// Applies one of the known names to its arguments.
    fn call(&mut self) -> Found<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Value::Name(function) = *self.get(function) else {
            return Err("its pickle calls what is no function".into());
        };
        let arguments = self.items(arguments)?;
        let arguments = arguments[..arguments.len().min(AXES)].to_vec();
        let value = match (function, &arguments[..]) {
            (Name::OrderedDict, []) => Value::Dict(Vec::new()),
            (Name::OrderedDict, &[list]) => {
                let pair = |&id: &Id| match self.items(id)? {
                    &[key, value] => Ok((key, value)),
                    _ => Err("an item of a dictionary in its pickle is no pair".to_owned()),
                };
                Value::Dict(self.items(list)?.iter().map(pair).collect::<Found<_>>()?)
            }
            (Name::Tensor, &[storage, offset, sizes, strides, ..]) => {
                let Value::Storage(storage) = *self.get(storage) else {
                    return Err("a tensor in its pickle has no storage".into());
                };
                let (sizes, strides) = (self.indices(sizes)?, self.indices(strides)?);
                if sizes.len() != strides.len() {
                    return Err("a tensor in its pickle has not as many strides as sizes".into());
                }
                let offset = self.index(offset)?;
                self.tensors.push(Tensor { storage, offset, sizes, strides });
                Value::Tensor(self.tensors.len() as u32 - 1)
            }
            (Name::Parameter, &[tensor, ..]) => match *self.get(tensor) {
                Value::Tensor(tensor) => Value::Tensor(tensor),
                _ => return Err("a parameter in its pickle has no tensor".into()),
            },
            (Name::Size, &[sizes]) => Value::Tuple(self.items(sizes)?.to_vec()),
            _ => return Err("its pickle calls a function with arguments that it does not take".into()),
        };
        self.push(value)
    }

    /// ("storage", type, key, location, elements), with None or nothing after it.
    fn persistent(&mut self) -> Found<()> {
        let id = self.pop()?;
        let (kind, key) = match self.items(id)? {
            &[word, kind, key, _, _, ref rest @ ..] => {
                if !matches!(self.get(word), Value::Text(w) if w == "storage") {
                    return Err("its pickle refers to something outside that is no storage".into());
                }
                if rest.iter().any(|&r| !matches!(self.get(r), Value::Opaque)) {
                    return Err(
                        "a storage in it is a view of another, as PyTorch 0.3 had them: save it anew".into(),
                    );
                }
                match (self.get(kind), self.get(key)) {
                    (_, Value::Text(key)) if key.len() > LONGEST_KEY => {
                        return Err("a storage's key in its pickle is longer than any of PyTorch's".into());
                    }
                    (Value::Name(Name::Storage(kind)), Value::Text(key)) => (*kind, key.clone()),
                    _ => return Err("a storage in its pickle has no known type".into()),
                }
            }
            _ => return Err("its pickle refers to something outside that is no storage".into()),
        };
        self.storages.push(Storage { kind, key });
        self.push(Value::Storage(self.storages.len() as u32 - 1))
    }
}

fn empty() -> String {
    "its pickle takes from an empty stack".into()
}

/// Keys and values in turn.
fn pairs(items: &[Id]) -> Found<Vec<(Id, Id)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    match rest {
        [] => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => Err("a dictionary in its pickle has a key without a value".into()),
    }
}
