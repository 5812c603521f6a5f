//! Documents whose figures tasks write.

use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Replaces what lies between two markers of a document.
pub fn replace(path: &Path, marker: &str, new: &str) -> Result<()> {
    let (text, place) = place(path, marker)?;
    let new = format!("{}{new}{}", &text[..place.start], &text[place.end..]);
    fs::write(path, new).with_context(|| format!("cannot write {}", path.display()))
}

/// Errors where [`replace`] would, so that a long task can ask before it starts.
pub fn ensure_place(path: &Path, marker: &str) -> Result<()> {
    place(path, marker).map(drop)
}

fn place(path: &Path, marker: &str) -> Result<(String, Range<usize>)> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (begin, end) = (format!("<!-- {marker}: begin -->\n"), format!("<!-- {marker}: end -->"));
    let (Some(first), Some(last)) = (text.find(&begin), text.find(&end)) else {
        bail!(
            "{} has no place for the figures: it needs {begin:?} and {end:?}",
            path.display()
        );
    };
    Ok((text, first + begin.len()..last))
}
