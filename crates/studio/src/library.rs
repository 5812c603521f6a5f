//! Corpora, question sets and models of a home: import, list, show, search, remove.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::view::{
    CorpusView, ImportView, ModelView, Overview, PassageView, Progress, QuestionPage, QuestionSetView, QuestionView,
    Rejected, SearchView, TermView,
};
use crate::{Cancel, Result, Studio, StudioError, clock, endpoints, machine, show};

impl Studio {
    /// The state of the program in one value.
    pub fn overview(&self) -> Result<Overview> {
        Ok(Overview {
            version: env!("CARGO_PKG_VERSION").into(),
            home: self.home().display().to_string(),
            ready: self.is_ready()?,
            threads: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
            memory_bytes: machine::memory_bytes(),
            corpora: self.corpora()?,
            question_sets: self.question_sets()?,
            models: self.models()?,
            default_model: crate::DEFAULT_MODEL.into(),
            runs: self.runs()?,
            sample_question: crate::setup::SAMPLE_QUESTION.into(),
        })
    }

    pub fn corpora(&self) -> Result<Vec<CorpusView>> {
        let corpora = self.store().corpora()?;
        Ok(corpora
            .into_iter()
            .map(|corpus| CorpusView {
                name: corpus.name,
                format: corpus.format,
                passages: corpus.passages as u32,
            })
            .collect())
    }

    pub fn question_sets(&self) -> Result<Vec<QuestionSetView>> {
        let sets = self.store().question_sets()?;
        Ok(sets
            .into_iter()
            .map(|set| QuestionSetView {
                name: set.name,
                corpus: set.corpus,
                format: set.format,
                questions: set.questions as u32,
            })
            .collect())
    }

    pub fn questions(&self, set: &str, offset: u32, limit: u32) -> Result<Vec<QuestionView>> {
        let questions = self.store().questions(set, Some(offset as usize + limit as usize))?;
        Ok(questions
            .into_iter()
            .skip(offset as usize)
            .map(|labelled| QuestionView {
                id: labelled.question.id.0,
                text: labelled.question.text,
                answer: labelled.gold.answers.first().cloned().unwrap_or_default(),
                kind: labelled.kind,
            })
            .collect())
    }

    /// The questions whose text or answer holds every one of the words, a page at a time.
    pub fn find_questions(&self, set: &str, words: &str, offset: u32, limit: u32) -> Result<QuestionPage> {
        let words: Vec<String> = words.split_whitespace().map(str::to_lowercase).collect();
        let mut matching = 0;
        let mut questions = Vec::new();
        for labelled in self.store().questions(set, None)? {
            let answer = labelled.gold.answers.first().cloned().unwrap_or_default();
            let text = format!("{} {answer}", labelled.question.text).to_lowercase();
            if words.iter().all(|word| text.contains(word)) {
                if matching >= offset && matching - offset < limit {
                    questions.push(QuestionView {
                        id: labelled.question.id.0,
                        text: labelled.question.text,
                        answer,
                        kind: labelled.kind,
                    });
                }
                matching += 1;
            }
        }
        Ok(QuestionPage { matching, questions })
    }

    /// Refused while a run refers to the set.
    pub fn remove_question_set(&self, name: &str) -> Result<()> {
        Ok(self.store().remove_question_set(name)?)
    }

    pub fn models(&self) -> Result<Vec<ModelView>> {
        self.store()
            .models()?
            .into_iter()
            .map(|model| Ok(model_view(model)))
            .collect()
    }

    pub fn model(&self, name: &str) -> Result<ModelView> {
        Ok(model_view(self.model_row(name)?))
    }

    pub(crate) fn model_row(&self, name: &str) -> Result<store::Model> {
        known(self.store().model(name))?.ok_or_else(|| StudioError::NotFound {
            kind: "model",
            name: name.into(),
            hint: "; `rag-gym models list` names those there are, `rag-gym setup` brings the built-in one".into(),
        })
    }

    /// Registers a GGUF file, or an encoder's folder in Hugging Face's layout, where it lies.
    pub fn add_model(&self, path: &Path, name: &str) -> Result<ModelView> {
        check_name(name)?;
        let path = path.canonicalize().map_err(StudioError::file("read", path))?;
        self.register_model(&path, name, None)?;
        self.model(name)
    }

    /// `sha256`: of its weights, where it is known already.
    pub(crate) fn register_model(&self, path: &Path, name: &str, sha256: Option<&str>) -> Result<()> {
        let (kind, architecture, parameters) = if path.is_dir() {
            let bert = training::cross_encoder::CrossEncoder::open(path)?.bert;
            let kind = if bert.scored { "reward" } else { "encoder" };
            (kind, ENCODER.to_owned(), bert.parameters() as u64)
        } else {
            let info = lm::LocalModel::open(path)?.info().clone();
            ("language", info.architecture, info.parameters)
        };
        let mut model = store::Model {
            name: name.into(),
            kind: kind.into(),
            sha256: String::new(),
            path: path.display().to_string(),
            architecture,
            parameters,
            adapter_of: None,
        };
        model.sha256 = match sha256 {
            Some(known) => known.into(),
            None => crate::setup::sha256(&weights_of(&model))?,
        };
        self.store().put_model(&model)?;
        self.forget_loaded(name)
    }

    /// Forgets a model. Its file or folder goes too if it lies in the home, where set-up or training wrote it, and no
    /// other model is there.
    pub fn remove_model(&self, name: &str) -> Result<()> {
        let path = PathBuf::from(self.model_row(name)?.path);
        self.store().remove_model(name)?;
        self.forget_loaded(name)?;
        let models = self.store().models()?;
        let shared = models.iter().any(|model| Path::new(&model.path) == path);
        if path.starts_with(self.home().join("models")) && !shared {
            let removed = match path.is_dir() {
                true => std::fs::remove_dir_all(&path),
                false => std::fs::remove_file(&path),
            };
            match removed {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(StudioError::File {
                        action: "remove",
                        path,
                        source,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub fn import_corpus(
        &self,
        path: &Path,
        name: &str,
        format: Option<&str>,
        on_progress: &mut dyn FnMut(Progress),
        cancel: &Cancel,
    ) -> Result<ImportView> {
        check_name(name)?;
        let format = match parse_format(format)? {
            Some(format) => format,
            None => corpus::detect(path)?,
        };
        let mut index = self.new_index(name, cancel)?;
        let mut read = |doing: &str, on_record: &mut dyn FnMut(gym::Passage) -> std::result::Result<(), _>| {
            let report = corpus::import_passages(
                path,
                Some(format),
                on_record,
                &mut |progress| on_progress(import_progress(&format!("{doing} {name}"), &progress)),
                &|| cancel.is_cancelled(),
            );
            if cancel.is_cancelled() {
                return Err(StudioError::Cancelled);
            }
            Ok(report?)
        };
        let report = read("indexing", &mut |passage| Ok(index.add(&passage)?))?;
        index.commit()?;
        // Read again rather than held in memory, and indexed first so that the database is kept waiting
        // for the writing only.
        let stored = self
            .store()
            .fill_corpus(name, &format.to_string(), &clock::now(), |add| {
                read("storing", &mut |passage| Ok(add(passage)?)).map(|_| ())
            });
        self.keep_index_if(name, stored)?;
        Ok(import_view(name, report))
    }

    /// Stores passages and their index. The index is built first, so that a corpus that the store lists can
    /// always be searched.
    pub(crate) fn add_corpus(
        &self,
        name: &str,
        format: &str,
        passages: &[gym::Passage],
        cancel: &Cancel,
    ) -> Result<()> {
        let mut index = self.new_index(name, cancel)?;
        for passage in passages {
            index.add(passage)?;
        }
        index.commit()?;
        let records = passages.iter().cloned().map(Ok::<_, std::convert::Infallible>);
        let stored = self.store().create_corpus(name, format, &clock::now(), records);
        self.keep_index_if(name, stored.map_err(StudioError::from))
    }

    /// The index of a corpus that is yet to be stored.
    fn new_index(&self, name: &str, cancel: &Cancel) -> Result<retrieval::IndexBuilder> {
        if known(self.store().corpus(name))?.is_some() {
            return Err(StudioError::Invalid(format!(
                "there is a corpus `{name}` already: choose another name, or remove it first"
            )));
        }
        // Left by a process that ended between index and row.
        self.remove_index(name)?;
        Ok(retrieval::IndexBuilder::create(&self.index_dir(name), cancel)?)
    }

    /// Drops the index of a corpus that could not be stored.
    fn keep_index_if(&self, name: &str, stored: Result<store::Corpus>) -> Result<()> {
        if stored.is_err() {
            self.remove_index(name)?;
        }
        stored.map(|_| ())
    }

    fn remove_index(&self, name: &str) -> Result<()> {
        let path = self.index_dir(name);
        match std::fs::remove_dir_all(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(StudioError::File {
                action: "remove",
                path,
                source,
            }),
            _ => Ok(()),
        }
    }

    /// `split` keeps the questions that their publisher puts into that part.
    #[expect(clippy::too_many_arguments, reason = "an import's options; hosts pass them through")]
    pub fn import_questions(
        &self,
        path: &Path,
        name: &str,
        corpus: Option<&str>,
        format: Option<&str>,
        split: Option<&str>,
        on_progress: &mut dyn FnMut(Progress),
        cancel: &Cancel,
    ) -> Result<ImportView> {
        check_name(name)?;
        if let Some(corpus) = corpus {
            self.corpus_row(corpus)?;
        }
        let format = parse_format(format)?;
        let mut questions = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        let mut report = corpus::import_questions(
            path,
            format,
            &mut |question| {
                seen.extend(question.split.clone());
                if split.is_none() || question.split.as_deref() == split {
                    questions.push(question);
                }
                Ok(())
            },
            &mut |progress| on_progress(import_progress(&format!("importing {name}"), &progress)),
            &|| cancel.is_cancelled(),
        )?;
        if cancel.is_cancelled() {
            return Err(StudioError::Cancelled);
        }
        if questions.is_empty() {
            let found = if seen.is_empty() {
                "its questions name none".into()
            } else {
                format!("it has {}", seen.into_iter().collect::<Vec<_>>().join(", "))
            };
            return Err(StudioError::Invalid(format!(
                "{} has no split `{}`: {found}",
                path.display(),
                split.unwrap_or_default()
            )));
        }
        report.kept = questions.len() as u64;
        if known(self.store().question_set(name))?.is_some() {
            return Err(StudioError::Invalid(format!(
                "there is a question set `{name}` already: choose another name"
            )));
        }
        self.store()
            .create_question_set(name, corpus, &report.format.to_string(), &clock::now(), &questions)?;
        Ok(import_view(name, report))
    }

    pub fn remove_corpus(&self, name: &str) -> Result<()> {
        self.corpus_row(name)?;
        self.store().remove_corpus(name)?;
        self.inner.indexes.forget(name);
        self.remove_index(name)
    }

    pub(crate) fn corpus_row(&self, name: &str) -> Result<store::Corpus> {
        known(self.store().corpus(name))?.ok_or_else(|| StudioError::NotFound {
            kind: "corpus",
            name: name.into(),
            hint: "; `rag-gym corpus list` names those there are".into(),
        })
    }

    fn index_dir(&self, name: &str) -> PathBuf {
        self.home().join("indexes").join(name)
    }

    /// A corpus's index, opened once; rebuilt from the store if its folder is gone or broken.
    pub(crate) fn index(&self, name: &str) -> Result<Arc<retrieval::Bm25Index>> {
        let hash = self.corpus_row(name)?.content_hash;
        if let Some(index) = self.inner.indexes.get(name, &hash) {
            return Ok(index);
        }
        let dir = self.index_dir(name);
        let index = match retrieval::Bm25Index::open(&dir) {
            Ok(index) => index,
            Err(_) => {
                let _ = std::fs::remove_dir_all(&dir);
                let mut builder = retrieval::IndexBuilder::create(&dir, &Cancel::default())?;
                let mut failed = None;
                self.store().for_each_passage(name, |passage| {
                    if failed.is_none() {
                        failed = builder.add(&passage).err();
                    }
                })?;
                if let Some(error) = failed {
                    return Err(error.into());
                }
                builder.commit()?;
                retrieval::Bm25Index::open(&dir)?
            }
        };
        Ok(self.inner.indexes.keep(name, &hash, index))
    }

    pub fn search(&self, corpus: &str, query: &str, k: u32) -> Result<SearchView> {
        let index = self.index(corpus)?;
        let started = Instant::now();
        let hits = index.search(query, k as usize)?;
        let took_ms = started.elapsed().as_secs_f64() * 1000.0;
        let hits: Vec<PassageView> = hits
            .iter()
            .map(|hit| show::passage(hit, query, &gym::Gold::default()))
            .collect();
        Ok(SearchView { hits, took_ms })
    }

    /// Why a passage scores what it scores, term by term.
    pub fn explain(&self, corpus: &str, query: &str, passage_id: &str) -> Result<Vec<TermView>> {
        let index = self.index(corpus)?;
        let Some(explanation) = index.explain(query, passage_id)? else {
            return Ok(Vec::new());
        };
        Ok(explanation.terms.into_iter().map(show::term).collect())
    }
}

/// The architecture of encoders, and of reward models that are one.
pub(crate) const ENCODER: &str = "bert";

/// The file that a model's hash is of; adapters and encoders are folders.
pub(crate) fn weights_of(model: &store::Model) -> PathBuf {
    let path = PathBuf::from(&model.path);
    match model.adapter_of {
        Some(_) => path.join("adapter_model.safetensors"),
        None if model.architecture == ENCODER => path.join("model.safetensors"),
        None => path,
    }
}

fn model_view(mut model: store::Model) -> ModelView {
    if let Ok(Some(settings)) = endpoints::settings(&model) {
        model.path = settings.url;
    }
    let file_bytes = std::fs::metadata(weights_of(&model)).map_or(0.0, |meta| meta.len() as f64);
    ModelView {
        name: model.name,
        kind: model.kind,
        path: model.path,
        sha256: model.sha256,
        architecture: model.architecture,
        parameters: model.parameters as f64,
        file_bytes,
        adapter_of: model.adapter_of,
    }
}

pub(crate) fn parse_format(format: Option<&str>) -> Result<Option<corpus::Format>> {
    match format {
        None | Some("auto") => Ok(None),
        Some(name) => name
            .parse()
            .map(Some)
            .map_err(|error| StudioError::Invalid(format!("{error}"))),
    }
}

/// Names become folder names and command-line words, so they are kept plain.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 80 || name.starts_with('.') || !name.chars().all(plain) {
        return Err(StudioError::Invalid(format!(
            "`{name}` is no name: use 1 to 80 letters, digits, `-`, `_` or `.`"
        )));
    }
    Ok(())
}

fn import_progress(label: &str, progress: &corpus::Progress) -> Progress {
    Progress {
        label: label.into(),
        done: progress.bytes_read as f64,
        total: progress.bytes_total as f64,
    }
}

fn import_view(name: &str, report: corpus::ImportReport) -> ImportView {
    ImportView {
        name: name.into(),
        format: report.format.to_string(),
        read: report.read as u32,
        kept: report.kept as u32,
        rejected_count: report.rejected_count as u32,
        rejected: report
            .rejected
            .into_iter()
            .map(|rejection| Rejected {
                file: rejection.file.display().to_string(),
                line: rejection.line as u32,
                reason: rejection.reason,
            })
            .collect(),
    }
}

/// `None` for what the store does not have.
pub(crate) fn known<T>(found: store::Result<T>) -> Result<Option<T>> {
    match found {
        Ok(value) => Ok(Some(value)),
        Err(store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    /// Between the two times that it is read, the file goes.
    #[test]
    fn an_import_that_cannot_be_stored_leaves_no_index() {
        let (dir, studio) = testing::judged_run();
        let file = dir.path().join("notes.jsonl");
        std::fs::write(&file, r#"{"id":"a","title":"A","text":"Ada was first."}"#).unwrap();
        let mut gone = |_: Progress| drop(std::fs::remove_file(&file));
        let failed = studio.import_corpus(&file, "notes", None, &mut gone, &Cancel::default());
        let message = failed.unwrap_err().chain();
        assert!(message.contains("notes.jsonl"), "{message}");
        assert!(studio.corpora().unwrap().iter().all(|corpus| corpus.name != "notes"));
        assert!(!studio.index_dir("notes").exists());
    }
}
