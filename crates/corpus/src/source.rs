//! Reads files as a stream of records, each with the line it starts on.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::ImportError;
use crate::format::{extension, read_error};

/// A longer line or record is rejected, so that one bad file cannot take all memory.
pub(crate) const MAX_RECORD_BYTES: usize = 16 << 20;

/// Whether to go on reading.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Continue,
    Stop,
}

/// Where a record was found.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub line: u64,
    /// Bytes of this file consumed so far.
    pub bytes: u64,
}

pub(crate) type OnRecord<'a> = dyn FnMut(Place, Result<Value, String>) -> Result<Next, ImportError> + 'a;

/// Streams a JSON array element by element, or else a file of one object a line.
pub(crate) fn json_records(path: &Path, on_record: &mut OnRecord<'_>) -> Result<(), ImportError> {
    let mut reader = open(path)?;
    let mut line = 1;
    let mut bytes = 0;
    // Leading blank lines decide nothing.
    loop {
        let buffer = reader.fill_buf().map_err(|source| read_error(path, source))?;
        match buffer.first() {
            None => return Ok(()),
            Some(b) if b.is_ascii_whitespace() => {
                line += u64::from(*b == b'\n');
                bytes += 1;
                reader.consume(1);
            }
            Some(b'[') => return array_records(path, reader, line, bytes, on_record),
            Some(_) => return line_records(path, reader, line, bytes, on_record),
        }
    }
}

fn line_records(
    path: &Path,
    mut reader: BufReader<File>,
    mut line: u64,
    mut bytes: u64,
    on_record: &mut OnRecord<'_>,
) -> Result<(), ImportError> {
    let mut content = Vec::new();
    loop {
        content.clear();
        let taken = bounded_line(&mut reader, &mut content).map_err(|e| read_error(path, e))?;
        if taken == 0 {
            return Ok(());
        }
        bytes += taken as u64;
        let blank = content.iter().all(u8::is_ascii_whitespace);
        if !blank {
            let record = if taken > MAX_RECORD_BYTES + 1 {
                Err(format!(
                    "the line has {taken} bytes, more than {MAX_RECORD_BYTES}: split it"
                ))
            } else {
                parse_object(&content)
            };
            if on_record(Place { line, bytes }, record)? == Next::Stop {
                return Ok(());
            }
        }
        line += 1;
    }
}

/// Appends at most `MAX_RECORD_BYTES` of the line; returns how many bytes it has in the file.
fn bounded_line(reader: &mut impl BufRead, content: &mut Vec<u8>) -> io::Result<usize> {
    let mut taken = 0;
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(taken);
        }
        let end = buffer.iter().position(|b| *b == b'\n');
        let part = end.map_or(buffer.len(), |at| at + 1);
        let room = MAX_RECORD_BYTES.saturating_sub(content.len());
        content.extend_from_slice(&buffer[..part.min(room)]);
        reader.consume(part);
        taken += part;
        if end.is_some() {
            return Ok(taken);
        }
    }
}

fn parse_object(content: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(content)
        .map_err(|e| format!("not UTF-8 at byte {}: save the file as UTF-8", e.valid_up_to() + 1))?;
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err("not a JSON object: write one {…} a line".to_owned()),
        Err(e) => Err(format!(
            "not valid JSON ({}) at column {}: write one object a line",
            message(&e),
            e.column()
        )),
    }
}

/// serde_json's message without its own line and column, which count from the record.
fn message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().to_owned()
}

struct Counting {
    inner: BufReader<File>,
    line: Rc<Cell<u64>>,
    bytes: Rc<Cell<u64>>,
}

impl Read for Counting {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        let newlines = out[..n].iter().filter(|b| **b == b'\n').count();
        self.line.set(self.line.get() + newlines as u64);
        self.bytes.set(self.bytes.get() + n as u64);
        Ok(n)
    }
}

struct Elements<'a, 'b> {
    line: Rc<Cell<u64>>,
    bytes: Rc<Cell<u64>>,
    on_record: &'a mut OnRecord<'b>,
    /// Set when the callback ended the reading.
    ended: &'a mut Option<Result<(), ImportError>>,
}

struct Element<'a> {
    line: &'a Cell<u64>,
}

impl<'de> DeserializeSeed<'de> for Element<'_> {
    type Value = (u64, Value);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(u64, Value), D::Error> {
        // serde_json has just peeked at the element's first byte.
        let line = self.line.get();
        serde::Deserialize::deserialize(deserializer).map(|value| (line, value))
    }
}

impl<'de> Visitor<'de> for Elements<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        use serde::de::Error;
        while let Some((line, value)) = seq.next_element_seed(Element { line: &self.line })? {
            let record = if value.is_object() {
                Ok(value)
            } else {
                Err("the element is not a JSON object".to_owned())
            };
            let place = Place {
                line,
                bytes: self.bytes.get(),
            };
            match (self.on_record)(place, record) {
                Ok(Next::Continue) => {}
                Ok(Next::Stop) => {
                    *self.ended = Some(Ok(()));
                    return Err(A::Error::custom("stopped"));
                }
                Err(error) => {
                    *self.ended = Some(Err(error));
                    return Err(A::Error::custom("stopped"));
                }
            }
        }
        Ok(())
    }
}

fn array_records(
    path: &Path,
    inner: BufReader<File>,
    line: u64,
    bytes: u64,
    on_record: &mut OnRecord<'_>,
) -> Result<(), ImportError> {
    let line = Rc::new(Cell::new(line));
    let bytes = Rc::new(Cell::new(bytes));
    let counting = Counting {
        inner,
        line: Rc::clone(&line),
        bytes: Rc::clone(&bytes),
    };
    let mut deserializer = serde_json::Deserializer::from_reader(counting);
    let mut ended = None;
    let visitor = Elements {
        line: Rc::clone(&line),
        bytes,
        on_record,
        ended: &mut ended,
    };
    let outcome = deserializer.deserialize_seq(visitor).and_then(|()| deserializer.end());
    match (ended, outcome) {
        (Some(ended), _) => ended,
        (None, Ok(())) => Ok(()),
        (None, Err(e)) => {
            let reason = format!("not valid JSON ({})", message(&e));
            Err(ImportError::Broken {
                path: path.to_owned(),
                line: line.get(),
                reason,
            })
        }
    }
}

/// Streams the rows of a CSV or TSV file as objects of strings; empty cells are left out.
///
/// `check` sees the header. Cells under an empty header, or under one that holds a canary, are
/// never read into a record.
pub(crate) fn csv_records(
    path: &Path,
    check: &mut dyn FnMut(&[String]) -> Result<(), ImportError>,
    on_record: &mut OnRecord<'_>,
) -> Result<(), ImportError> {
    let tabs = extension(path).is_some_and(|e| e == "tsv");
    let breaks = LineBreaks::default();
    let reader = NotingBreaks {
        inner: open(path)?,
        at: 0,
        breaks: Rc::clone(&breaks),
    };
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(if tabs { b'\t' } else { b',' })
        .flexible(true)
        .from_reader(reader);
    let broken = |line: u64, e: csv::Error| ImportError::Broken {
        path: path.to_owned(),
        line,
        reason: format!("not valid CSV ({e})"),
    };
    let headers = reader.byte_headers().map_err(|e| broken(1, e))?.clone();
    if headers.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = headers.iter().map(column_name).collect();
    check(&names)?;
    let mut row = csv::ByteRecord::new();
    let mut line = 1;
    loop {
        match reader.read_byte_record(&mut row) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(e) => return Err(broken(reader.position().line(), e)),
        }
        let start = row.position().map_or(0, csv::Position::byte);
        line += newlines_before_row(&mut breaks.borrow_mut(), start);
        let record = if row.as_slice().len() > MAX_RECORD_BYTES {
            Err(format!(
                "the row has more than {MAX_RECORD_BYTES} bytes: look for an unclosed quote"
            ))
        } else if row.len() > names.len() {
            Err(format!(
                "the row has {} cells under {} columns: quote cells that hold the separator",
                row.len(),
                names.len()
            ))
        } else {
            row_object(&names, &row)
        };
        let place = Place {
            line,
            bytes: reader.position().byte(),
        };
        if on_record(place, record)? == Next::Stop {
            return Ok(());
        }
    }
}

/// Offsets of the line feeds (`true`) and carriage returns not yet passed.
type LineBreaks = Rc<RefCell<VecDeque<(u64, bool)>>>;

/// The csv crate's own line counts are one short where lines end in CR LF or are blank.
struct NotingBreaks {
    inner: BufReader<File>,
    at: u64,
    breaks: LineBreaks,
}

impl Read for NotingBreaks {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        let mut breaks = self.breaks.borrow_mut();
        for (offset, byte) in (self.at..).zip(&out[..n]) {
            if matches!(byte, b'\n' | b'\r') {
                breaks.push_back((offset, *byte == b'\n'));
            }
        }
        self.at += n as u64;
        Ok(n)
    }
}

/// Line feeds up to the row's first cell: `start` may lie before line breaks that csv skips.
fn newlines_before_row(breaks: &mut VecDeque<(u64, bool)>, start: u64) -> u64 {
    let mut count = 0;
    let mut start = start;
    while let Some((offset, feed)) = breaks.front().copied().filter(|(at, _)| *at <= start) {
        breaks.pop_front();
        count += u64::from(feed);
        start = start.max(offset + 1);
    }
    count
}

fn column_name(cell: &[u8]) -> String {
    let name = String::from_utf8_lossy(cell).trim().to_lowercase();
    if name.contains("canary") { String::new() } else { name }
}

fn row_object(names: &[String], row: &csv::ByteRecord) -> Result<Value, String> {
    let mut object = Map::new();
    for (name, cell) in names.iter().zip(row) {
        if name.is_empty() {
            continue;
        }
        let text =
            std::str::from_utf8(cell).map_err(|_| format!("column `{name}` is not UTF-8: save the file as UTF-8"))?;
        if !text.trim().is_empty() {
            object.insert(name.clone(), Value::String(text.to_owned()));
        }
    }
    Ok(Value::Object(object))
}

/// Opens a file past its UTF-8 byte order mark; refuses UTF-16.
fn open(path: &Path) -> Result<BufReader<File>, ImportError> {
    let file = File::open(path).map_err(|source| read_error(path, source))?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let start = reader.fill_buf().map_err(|source| read_error(path, source))?;
    if start.starts_with(b"\xff\xfe") || start.starts_with(b"\xfe\xff") {
        return Err(ImportError::Unrecognised {
            path: path.to_owned(),
            reason: "it is UTF-16 text; save it as UTF-8".to_owned(),
        });
    }
    if start.starts_with(b"\xef\xbb\xbf") {
        reader.consume(3);
    }
    Ok(reader)
}
