//! Documents whose figures tasks write.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Replaces what lies between two markers of a document.
pub fn replace(path: &Path, marker: &str, new: &str) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (begin, end) = (format!("<!-- {marker}: begin -->\n"), format!("<!-- {marker}: end -->"));
    let (Some(first), Some(last)) = (text.find(&begin), text.find(&end)) else {
        bail!(
            "{} has no place for the figures: it needs {begin:?} and {end:?}",
            path.display()
        );
    };
    let new = format!("{}{new}{}", &text[..first + begin.len()], &text[last..]);
    fs::write(path, new).with_context(|| format!("cannot write {}", path.display()))
}
