//! A run as a file.

use std::io::Write;
use std::path::Path;

use crate::{Result, Studio, StudioError};

impl Studio {
    /// Every finished episode with its steps, one JSON value a line; returns how many. The file is
    /// written beside its place and moved there whole.
    pub fn export_to(&self, run: &str, path: &Path) -> Result<u32> {
        let failed = |source| StudioError::File {
            action: "write",
            path: path.into(),
            source,
        };
        let part = path.with_extension("part");
        let mut file = std::io::BufWriter::new(std::fs::File::create(&part).map_err(failed)?);
        let written = self.export_jsonl(run, &mut file)?;
        file.flush().map_err(failed)?;
        drop(file);
        std::fs::rename(&part, path).map_err(failed)?;
        Ok(written)
    }
}
