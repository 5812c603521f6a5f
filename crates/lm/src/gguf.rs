//! Reads a GGUF file after checking every claim it makes against the bytes that are there.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::{GgmlDType, QTensor, ggml_file};
use candle_core::{Device, Tensor};

use crate::LmError;

/// An open model file whose tensors all lie inside it.
pub struct Gguf {
    content: Content,
    reader: BufReader<File>,
    pub file_bytes: u64,
}

/// Names a file's part in errors.
const FILE: &str = "model file";

impl Gguf {
    pub fn open(path: &Path) -> Result<Gguf, LmError> {
        let read_error = |source| LmError::Read {
            path: path.to_path_buf(),
            source,
        };
        let file = File::open(path).map_err(read_error)?;
        let file_bytes = file.metadata().map_err(read_error)?.len();
        let mut reader = BufReader::new(file);
        // candle bounds every length by the file's size, but divides by `general.alignment` and
        // multiplies dimensions unchecked: a crafted file can make it panic.
        let content = catch_unwind(AssertUnwindSafe(|| Content::read(&mut reader)))
            .map_err(|_| LmError::corrupt(FILE, "impossible header"))?
            .map_err(|error| LmError::corrupt(FILE, error))?;
        let gguf = Gguf {
            content,
            reader,
            file_bytes,
        };
        let mut bytes = 0;
        for name in gguf.content.tensor_infos.keys() {
            bytes += gguf.check_tensor(name)?;
        }
        // Each lies inside the file; so must all of them beside each other, or a small file asks for much memory.
        if bytes > file_bytes {
            return Err(LmError::corrupt(
                FILE,
                format!("tensors overlap: they have {bytes} bytes, the file {file_bytes}"),
            ));
        }
        Ok(gguf)
    }

    /// How many bytes a tensor has.
    fn check_tensor(&self, name: &str) -> Result<u64, LmError> {
        let damaged = |message: String| LmError::corrupt(FILE, format!("tensor `{name}` {message}"));
        let Some(info) = self.content.tensor_infos.get(name) else {
            return Err(damaged("is missing".into()));
        };
        let mut elements = 1u64;
        for &dim in info.shape.dims() {
            elements = elements
                .checked_mul(dim as u64)
                .filter(|&n| n > 0 && n <= 1 << 40)
                .ok_or_else(|| damaged("has impossible dimensions".into()))?;
        }
        let (block, block_bytes) = (info.ggml_dtype.block_size() as u64, info.ggml_dtype.type_size() as u64);
        let row = info.shape.dims().last().copied().unwrap_or(1) as u64;
        if !row.is_multiple_of(block) {
            return Err(damaged(format!("has rows of {row}, not a multiple of {block}")));
        }
        let bytes = elements / block * block_bytes;
        let end = bytes
            .checked_add(info.offset)
            .and_then(|end| end.checked_add(self.content.tensor_data_offset));
        match end {
            Some(end) if end <= self.file_bytes => Ok(bytes),
            _ => Err(damaged(format!(
                "reaches past the file's end ({} bytes)",
                self.file_bytes
            ))),
        }
    }

    /// Name, type and dimensions (rows first) of every tensor.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, GgmlDType, &[usize])> {
        let infos = self.content.tensor_infos.iter();
        infos.map(|(name, info)| (name.as_str(), info.ggml_dtype, info.shape.dims()))
    }

    pub fn has_tensor(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    /// Loads a tensor, which must have exactly these dimensions (rows first).
    pub fn tensor(&mut self, name: &str, dims: &[usize]) -> Result<QTensor, LmError> {
        self.check_tensor(name)?;
        let found = self.content.tensor_infos[name].shape.dims();
        if found != dims {
            return Err(LmError::corrupt(
                FILE,
                format!("tensor `{name}` has dimensions {found:?}, expected {dims:?}"),
            ));
        }
        self.content
            .tensor(&mut self.reader, name, &Device::Cpu)
            .map_err(|error| LmError::corrupt(FILE, error))
    }

    /// Loads a small one-dimensional tensor as numbers.
    pub fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, LmError> {
        Ok(self.tensor(name, &[len])?.dequantize(&Device::Cpu)?.to_vec1()?)
    }

    /// Weights in the file.
    pub fn parameters(&self) -> u64 {
        self.content
            .tensor_infos
            .values()
            .map(|info| info.shape.elem_count() as u64)
            .sum()
    }

    /// The type that most weights are stored in, for display.
    pub fn quantization(&self) -> String {
        let mut totals: Vec<(String, usize)> = Vec::new();
        for (name, info) in &self.content.tensor_infos {
            if !name.starts_with("blk.") {
                continue;
            }
            let dtype = format!("{:?}", info.ggml_dtype).replace('K', "_K").to_uppercase();
            let dtype = match dtype.strip_prefix('Q') {
                Some(rest) if !rest.contains('_') && rest.len() == 2 => {
                    format!("Q{}_{}", &rest[..1], &rest[1..])
                }
                _ => dtype,
            };
            match totals.iter_mut().find(|(known, _)| *known == dtype) {
                Some((_, n)) => *n += info.shape.elem_count(),
                None => totals.push((dtype, info.shape.elem_count())),
            }
        }
        totals
            .into_iter()
            .max_by_key(|(_, n)| *n)
            .map_or_else(String::new, |(dtype, _)| dtype)
    }

    pub fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    pub fn string(&self, key: &str) -> Option<&str> {
        match self.value(key)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    pub fn array(&self, key: &str) -> Option<&[Value]> {
        match self.value(key)? {
            Value::Array(values) => Some(values),
            _ => None,
        }
    }

    /// A non-negative integer of any width.
    pub fn integer(&self, key: &str) -> Option<u64> {
        as_integer(self.value(key)?)
    }

    pub fn float(&self, key: &str) -> Option<f32> {
        match self.value(key)? {
            Value::F32(x) => Some(*x),
            Value::F64(x) => Some(*x as f32),
            _ => None,
        }
    }

    /// A required size between 1 and `most`.
    pub fn size(&self, key: &str, most: u64) -> Result<usize, LmError> {
        match self.integer(key) {
            Some(n) if (1..=most).contains(&n) => Ok(n as usize),
            Some(n) => Err(LmError::corrupt(FILE, format!("`{key}` is {n}, expected 1 to {most}"))),
            None => Err(LmError::corrupt(FILE, format!("`{key}` is missing"))),
        }
    }
}

pub(crate) fn as_integer(value: &Value) -> Option<u64> {
    match *value {
        Value::U8(n) => Some(n.into()),
        Value::U16(n) => Some(n.into()),
        Value::U32(n) => Some(n.into()),
        Value::U64(n) => Some(n),
        Value::I8(n) => n.try_into().ok(),
        Value::I16(n) => n.try_into().ok(),
        Value::I32(n) => n.try_into().ok(),
        Value::I64(n) => n.try_into().ok(),
        _ => None,
    }
}

/// Some rows of a matrix, stored as they were.
pub fn some_rows(matrix: QTensor, rows: Range<usize>) -> Result<QTensor, LmError> {
    let (n_rows, width) = matrix.shape().dims2()?;
    if rows == (0..n_rows) {
        return Ok(matrix);
    }
    let bytes = matrix.data()?;
    let row_bytes = bytes.len() / n_rows;
    let part = &bytes[rows.start * row_bytes..rows.end * row_bytes];
    let dims = vec![rows.len(), width];
    Ok(ggml_file::qtensor_from_ggml(matrix.dtype(), part, dims, &Device::Cpu)?)
}

/// Dequantises chosen rows of a matrix without touching the others. Returns `rows.len() * width` numbers.
pub fn rows(matrix: &QTensor, rows: &[u32]) -> Result<Vec<f32>, LmError> {
    let (n_rows, width) = matrix.shape().dims2()?;
    let bytes = matrix.data()?;
    let row_bytes = bytes.len() / n_rows;
    let mut picked = Vec::with_capacity(rows.len() * row_bytes);
    for &row in rows {
        let start = row as usize * row_bytes;
        let Some(row) = bytes.get(start..start + row_bytes) else {
            return Err(LmError::Tokenizer(format!("token {row} is not in the vocabulary")));
        };
        picked.extend_from_slice(row);
    }
    let few = ggml_file::qtensor_from_ggml(matrix.dtype(), &picked, vec![rows.len(), width], &Device::Cpu)?;
    let few: Tensor = few.dequantize(&Device::Cpu)?;
    Ok(few.flatten_all()?.to_vec1()?)
}

/// Whether a reader holds a GGUF file, by its first four bytes.
pub fn is_gguf(reader: &mut (impl Read + Seek)) -> bool {
    let mut magic = [0u8; 4];
    reader.read_exact(&mut magic).is_ok() && &magic == b"GGUF" && reader.rewind().is_ok()
}
