//! The weights and the shape of a model in llama.cpp's format, GGUF
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>): numbers are little-endian, the
//! header is a list of named values, and what is unknown must be read to get past it.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufReader, Read},
    path::Path,
};

use super::{Weights, shape::Shape};

/// A vocabulary of a million tokens, merges and scores take half of this.
const MAX_HEADER: u64 = 128 << 20;

/// The model in `path`, and in the files beside it if it was split.
pub(super) fn read(path: &Path) -> io::Result<Weights> {
    let header = Header::read(&mut BufReader::new(File::open(path)?).take(MAX_HEADER))?;
    Ok(Weights {
        bytes: bytes(path)?,
        shape: header.shape(),
    })
}

/// `NAME-00001-of-00003.gguf` is the first of three files.
fn bytes(path: &Path) -> io::Result<u64> {
    let own = || fs::metadata(path).map(|file| file.len());
    let name = path.file_name().and_then(|name| name.to_str());
    let parts = name.and_then(|name| {
        let (front, of) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (front, _) = front.rsplit_once('-')?;
        Some((front, of, of.parse::<u32>().ok()?))
    });
    let Some((front, of, count)) = parts else {
        return own();
    };
    let part = |number| path.with_file_name(format!("{front}-{number:05}-of-{of}.gguf"));
    (1..=count)
        .map(|number| fs::metadata(part(number)).map(|file| file.len()))
        .sum()
}

/// The numbers and texts of a header; of lists the sum, which is all that is asked of them.
#[derive(Debug, Default)]
struct Header {
    numbers: HashMap<String, u64>,
    sums: HashMap<String, u64>,
    texts: HashMap<String, String>,
}

impl Header {
    fn read(file: &mut impl Read) -> io::Result<Self> {
        let magic: [u8; 4] = bytes_of(file)?;
        let version = u32::from_le_bytes(bytes_of(file)?);
        if magic != *b"GGUF" || version < 2 {
            return Err(invalid("not a GGUF file of version 2 or later"));
        }
        let _tensors = u64::from_le_bytes(bytes_of(file)?);
        let values = u64::from_le_bytes(bytes_of(file)?);
        let mut header = Self::default();
        for _ in 0..values {
            let name = text(file)?;
            match u32::from_le_bytes(bytes_of(file)?) {
                STRING => drop(header.texts.insert(name, text(file)?)),
                kind => {
                    let numbers = match kind {
                        LIST => &mut header.sums,
                        _ => &mut header.numbers,
                    };
                    numbers.extend(value(file, kind)?.map(|number| (name, number)));
                }
            }
        }
        Ok(header)
    }

    fn shape(&self) -> Option<Shape> {
        let family = self.texts.get("general.architecture")?;
        let find =
            |numbers: &HashMap<_, _>, key: &str| numbers.get(&format!("{family}.{key}")).copied();
        let get = |key| find(&self.numbers, key);
        let (layers, heads) = (get("block_count")?, get("attention.head_count")?);
        let per_head = || get("embedding_length")?.checked_div(heads);
        let key = get("attention.key_length").or_else(per_head)?;
        let value = get("attention.value_length").or_else(per_head)?;
        // Layers that differ from each other have one number each.
        let kv_heads = match find(&self.sums, "attention.head_count_kv") {
            Some(sum) => sum,
            None => layers.checked_mul(get("attention.head_count_kv").unwrap_or(heads))?,
        };
        Some(Shape::new(
            kv_heads,
            key,
            value,
            get("context_length").unwrap_or(0),
        ))
    }
}

const STRING: u32 = 8;
const LIST: u32 = 9;

/// A value's number, if it is one.
fn value(file: &mut impl Read, kind: u32) -> io::Result<Option<u64>> {
    Ok(match kind {
        0 | 1 | 7 => Some(u8::from_le_bytes(bytes_of(file)?).into()),
        2 | 3 => Some(u16::from_le_bytes(bytes_of(file)?).into()),
        4 | 5 => Some(u32::from_le_bytes(bytes_of(file)?).into()),
        10 | 11 => Some(u64::from_le_bytes(bytes_of(file)?)),
        6 => skip(file, 4)?,
        12 => skip(file, 8)?,
        STRING => {
            let length = u64::from_le_bytes(bytes_of(file)?);
            skip(file, length)?
        }
        LIST => {
            let kind = u32::from_le_bytes(bytes_of(file)?);
            let length = u64::from_le_bytes(bytes_of(file)?);
            if kind == LIST {
                return Err(invalid("a list of lists"));
            }
            let mut sum = None;
            for _ in 0..length {
                sum = value(file, kind)?.map(|number| number.saturating_add(sum.unwrap_or(0)));
            }
            sum
        }
        _ => return Err(invalid("a value of an unknown type")),
    })
}

fn skip(file: &mut impl Read, length: u64) -> io::Result<Option<u64>> {
    let skipped = io::copy(&mut file.take(length), &mut io::sink())?;
    if skipped < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(None)
}

fn text(file: &mut impl Read) -> io::Result<String> {
    let length = u64::from_le_bytes(bytes_of(file)?);
    let mut text = Vec::new();
    file.take(length).read_to_end(&mut text)?;
    if (text.len() as u64) < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn bytes_of<const N: usize>(file: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
