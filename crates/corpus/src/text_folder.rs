//! Cuts plain text files into passages of about 120 words at paragraph ends.

use gym::Passage;

const PASSAGE_WORDS: usize = 120;

/// Passages of one file: `{name}#{n}`, titled by its Markdown heading or else its name.
pub(crate) fn passages(name: &str, text: &str) -> Vec<Passage> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let stem = name.rsplit('/').next().unwrap_or(name);
    let stem = stem.rsplit_once('.').map_or(stem, |(stem, _)| stem);
    let heading = text.lines().find(|line| !line.trim().is_empty());
    let heading = heading.and_then(|line| line.trim().strip_prefix("# "));
    let title = heading.map_or(stem, str::trim).to_owned();

    let mut chunks: Vec<String> = Vec::new();
    let mut current = String::new();
    let mut words = 0;
    let text = text.replace("\r\n", "\n");
    for paragraph in text.split("\n\n") {
        for piece in pieces(paragraph) {
            let n = piece.split_whitespace().count();
            if words > 0 && words + n > PASSAGE_WORDS {
                chunks.push(std::mem::take(&mut current));
                words = 0;
            }
            if !current.is_empty() {
                current.push('\n');
            }
            current.push_str(&piece);
            words += n;
        }
    }
    if !current.is_empty() {
        chunks.push(current);
    }
    let passage = |(n, text)| Passage {
        id: format!("{name}#{n}"),
        title: title.clone(),
        text,
    };
    chunks.into_iter().enumerate().map(passage).collect()
}

/// A paragraph whole, or in runs of `PASSAGE_WORDS` words where it is longer.
fn pieces(paragraph: &str) -> Vec<String> {
    let words: Vec<&str> = paragraph.split_whitespace().collect();
    words.chunks(PASSAGE_WORDS).map(|run| run.join(" ")).collect()
}
