//! Writing an index.

use std::fs;
use std::path::{Path, PathBuf};

use gym::{Cancel, Passage};
use tantivy::indexer::NoMergePolicy;
use tantivy::schema::{FAST, Field, IndexRecordOption, STORED, STRING, Schema, TextFieldIndexing, TextOptions};
use tantivy::{Index, IndexWriter, TantivyDocument};

use crate::RetrievalError;
use crate::analysis::Analyzer;
use crate::error::attempting;

/// Names the schema and the analysis; an index of another format is refused.
pub(crate) const FORMAT: &str = "rag-gym-bm25-1";
const MEMORY_BYTES: usize = 200 << 20;
const SMALL_MEMORY_BYTES: usize = 32 << 20;

/// The fields of the schema. `body` indexes title and text together, `title_words` the title alone;
/// both hold analysed terms, not text.
#[derive(Clone, Copy)]
pub(crate) struct Fields {
    pub id: Field,
    pub title: Field,
    pub text: Field,
    pub body: Field,
    pub title_words: Field,
    pub passage_idx: Field,
    pub body_length: Field,
    pub title_length: Field,
}

pub(crate) const PASSAGE_IDX: &str = "passage_idx";
pub(crate) const BODY_LENGTH: &str = "body_length";
pub(crate) const TITLE_LENGTH: &str = "title_length";

pub(crate) fn schema() -> (Schema, Fields) {
    let terms = TextOptions::default().set_indexing_options(
        TextFieldIndexing::default()
            .set_tokenizer("whitespace")
            .set_fieldnorms(false)
            .set_index_option(IndexRecordOption::WithFreqs),
    );
    let mut schema = Schema::builder();
    let fields = Fields {
        id: schema.add_text_field("id", STRING | STORED),
        title: schema.add_text_field("title", STORED),
        text: schema.add_text_field("text", STORED),
        body: schema.add_text_field("body", terms.clone()),
        title_words: schema.add_text_field("title_words", terms),
        passage_idx: schema.add_u64_field(PASSAGE_IDX, FAST),
        body_length: schema.add_u64_field(BODY_LENGTH, FAST),
        title_length: schema.add_u64_field(TITLE_LENGTH, FAST),
    };
    (schema.build(), fields)
}

/// Builds an index beside its final folder and moves it there whole, on [`IndexBuilder::commit`].
///
/// Dropped before that, it leaves nothing; killed, it leaves a `.NAME.building` folder that the next
/// build of the same index clears. One build of a folder at a time.
pub struct IndexBuilder {
    /// `None` once closed, so that no file is open when the folder moves.
    writer: Option<PassageWriter>,
    dir: PathBuf,
    building: PathBuf,
    cancel: Cancel,
}

impl IndexBuilder {
    /// Starts the index that will be at `dir`. Errors if something is there already.
    pub fn create(dir: &Path, cancel: &Cancel) -> Result<IndexBuilder, RetrievalError> {
        let name = dir
            .file_name()
            .ok_or_else(|| RetrievalError::NoName { path: dir.to_owned() })?;
        if dir.exists() {
            return Err(RetrievalError::Exists { path: dir.to_owned() });
        }
        let building = dir.with_file_name(format!(".{}.building", name.to_string_lossy()));
        if building.exists() {
            fs::remove_dir_all(&building).map_err(file("clear", &building))?;
        }
        fs::create_dir_all(&building).map_err(file("create", &building))?;
        let mut builder = IndexBuilder {
            writer: None,
            dir: dir.to_owned(),
            building: building.clone(),
            cancel: cancel.clone(),
        };
        let (schema, fields) = schema();
        let index = Index::create_in_dir(&building, schema).map_err(attempting("create an index"))?;
        builder.writer = Some(PassageWriter::new(&index, fields, MEMORY_BYTES)?);
        Ok(builder)
    }

    /// Adds one passage. Errors with `Cancelled` once the flag is set.
    pub fn add(&mut self, passage: &Passage) -> Result<(), RetrievalError> {
        self.check_cancel()?;
        let writer = self.writer.as_mut().ok_or(RetrievalError::Cancelled)?;
        writer.add(passage)
    }

    /// Writes everything and moves the index to its folder; returns the number of passages.
    pub fn commit(mut self) -> Result<u64, RetrievalError> {
        self.check_cancel()?;
        let writer = self.writer.take().ok_or(RetrievalError::Cancelled)?;
        let n_passages = writer.finish()?;
        self.check_cancel()?;
        if self.dir.exists() {
            return Err(RetrievalError::Exists { path: self.dir.clone() });
        }
        fs::rename(&self.building, &self.dir).map_err(file("move the index to", &self.dir))?;
        Ok(n_passages)
    }

    fn check_cancel(&self) -> Result<(), RetrievalError> {
        if self.cancel.is_cancelled() {
            Err(RetrievalError::Cancelled)
        } else {
            Ok(())
        }
    }
}

impl Drop for IndexBuilder {
    fn drop(&mut self) {
        self.writer = None;
        // After a commit the folder has moved; if it cannot be removed, the next build tries again.
        let _ = fs::remove_dir_all(&self.building);
    }
}

fn file(attempted: &'static str, path: &Path) -> impl Fn(std::io::Error) -> RetrievalError {
    let path = path.to_owned();
    move |source| RetrievalError::File {
        attempted,
        path: path.clone(),
        source,
    }
}

/// Analyses passages and hands them to tantivy in order.
pub(crate) struct PassageWriter {
    writer: IndexWriter,
    fields: Fields,
    analyzer: Analyzer,
    n_passages: u64,
}

impl PassageWriter {
    pub(crate) fn new(index: &Index, fields: Fields, memory_bytes: usize) -> Result<PassageWriter, RetrievalError> {
        let writer = index
            .writer_with_num_threads(1, memory_bytes)
            .map_err(attempting("open an index for writing"))?;
        // A merge would gain little here and could still be running when the folder moves.
        writer.set_merge_policy(Box::new(NoMergePolicy));
        Ok(PassageWriter {
            writer,
            fields,
            analyzer: Analyzer::new(),
            n_passages: 0,
        })
    }

    pub(crate) fn add(&mut self, passage: &Passage) -> Result<(), RetrievalError> {
        let (title, n_title) = self.terms(&passage.title);
        let (text, n_text) = self.terms(&passage.text);
        let fields = self.fields;
        let mut document = TantivyDocument::new();
        document.add_text(fields.id, &passage.id);
        document.add_text(fields.title, &passage.title);
        document.add_text(fields.text, &passage.text);
        document.add_text(fields.body, format!("{title} {text}"));
        document.add_text(fields.title_words, title);
        document.add_u64(fields.passage_idx, self.n_passages);
        document.add_u64(fields.body_length, n_title + n_text);
        document.add_u64(fields.title_length, n_title);
        self.writer
            .add_document(document)
            .map_err(attempting("add a passage"))?;
        self.n_passages += 1;
        Ok(())
    }

    /// Commits; returns the number of passages.
    pub(crate) fn finish(mut self) -> Result<u64, RetrievalError> {
        let mut commit = self.writer.prepare_commit().map_err(attempting("write the index"))?;
        commit.set_payload(FORMAT);
        commit.commit().map_err(attempting("write the index"))?;
        self.writer
            .wait_merging_threads()
            .map_err(attempting("close the index"))?;
        Ok(self.n_passages)
    }

    /// The terms joined by spaces, for the white-space tokenizer, and their number.
    fn terms(&mut self, text: &str) -> (String, u64) {
        let words = self.analyzer.words(text);
        let terms: Vec<&str> = words.iter().map(|word| word.term.as_str()).collect();
        (terms.join(" "), words.len() as u64)
    }
}

/// An index that lives in memory.
pub(crate) fn build_in_memory(passages: impl IntoIterator<Item = Passage>) -> Result<Index, RetrievalError> {
    let (schema, fields) = schema();
    let index = Index::create_in_ram(schema);
    let mut writer = PassageWriter::new(&index, fields, SMALL_MEMORY_BYTES)?;
    for passage in passages {
        writer.add(&passage)?;
    }
    writer.finish()?;
    Ok(index)
}
