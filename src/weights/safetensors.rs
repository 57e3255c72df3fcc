//! The weights of a directory in the safetensors format.
//!
//! A file is 8 bytes that tell the length of its header, the header, and the tensors without any
//! gap: <https://huggingface.co/docs/safetensors>. So the sum of its tensors is what is left.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use serde::Deserialize;

const INDEX: &str = "model.safetensors.index.json";

/// Which file has which tensor. A directory may hold other copies of the weights besides.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Bytes of all tensors of the model in `dir`.
pub(super) fn bytes(dir: &Path) -> io::Result<u64> {
    let files = files(dir)?;
    if files.is_empty() {
        let message = "there is no .safetensors file";
        return Err(io::Error::new(io::ErrorKind::NotFound, message));
    }
    files.iter().map(|file| tensors(&dir.join(file))).sum()
}

fn files(dir: &Path) -> io::Result<BTreeSet<String>> {
    match fs::read(dir.join(INDEX)) {
        Ok(text) => {
            let index: Index = serde_json::from_slice(&text)?;
            return Ok(index.weight_map.into_values().collect());
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let names = fs::read_dir(dir)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut files: BTreeSet<String> = names
        .filter(|name| name.ends_with(".safetensors"))
        .collect();
    if let Some(whole) = files.take("model.safetensors") {
        files = [whole].into();
    }
    Ok(files)
}

fn tensors(path: &Path) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let header = u64::from_le_bytes(length).saturating_add(8);
    file.metadata()?.len().checked_sub(header).ok_or_else(|| {
        let message = format!("{} is cut off", path.display());
        io::Error::new(io::ErrorKind::UnexpectedEof, message)
    })
}
