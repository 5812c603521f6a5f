//! Reading an index: search and explanation.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::path::Path;
use std::sync::Arc;

use gym::{EngineError, Hit, Passage, Retriever};
use tantivy::postings::Postings;
use tantivy::schema::{Field, IndexRecordOption, Value};
use tantivy::{DocAddress, DocSet, Index, ReloadPolicy, Searcher, SegmentReader, TERMINATED, TantivyDocument, Term};

use crate::analysis;
use crate::error::attempting;
use crate::index::{self, BODY_LENGTH, FORMAT, Fields, PASSAGE_IDX, TITLE_LENGTH};
use crate::scoring::{self, Bm25Parameters};
use crate::{RetrievalError, Word};

/// A BM25 index open for searching. Cheap to share; a search holds no lock.
pub struct Bm25Index {
    searcher: Searcher,
    fields: Fields,
    parameters: Bm25Parameters,
    segments: Vec<SegmentColumns>,
    body_average: f32,
    title_average: f32,
    n_passages: u64,
}

/// Per passage of one tantivy segment.
struct SegmentColumns {
    passage_idx: Vec<u64>,
    body_length: Vec<u32>,
    title_length: Vec<u32>,
}

/// Which score a term contributed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexedField {
    /// Title and text as one field.
    Body,
    /// The title alone, weighted by `title_boost`.
    Title,
}

/// Why a passage has its score.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// The score that a search gives the passage.
    pub score: f32,
    /// Their scores, added in order, are `score`.
    pub terms: Vec<TermScore>,
}

/// The share of one query term in a score.
#[derive(Clone, Debug, PartialEq)]
pub struct TermScore {
    /// As indexed: folded and stemmed.
    pub term: String,
    pub field: IndexedField,
    /// How often the query says it; multiplies the score.
    pub query_frequency: u32,
    pub idf: f32,
    pub term_frequency: u32,
    /// Indexed words of the field in this passage.
    pub field_length: u32,
    /// The same, averaged over the index.
    pub average_length: f32,
    pub score: f32,
}

/// A query term in a field where at least one passage has it.
struct WeightedTerm {
    text: String,
    term: Term,
    field: IndexedField,
    query_frequency: u32,
    idf: f32,
    /// `idf` with query frequency and boost.
    weight: f32,
}

impl Bm25Index {
    /// Opens the index that an [`crate::IndexBuilder`] left at `dir`.
    pub fn open(dir: &Path) -> Result<Bm25Index, RetrievalError> {
        if !dir.join("meta.json").is_file() {
            return Err(RetrievalError::Missing { path: dir.to_owned() });
        }
        let index = Index::open_in_dir(dir).map_err(attempting("open the index"))?;
        let meta = index.load_metas().map_err(attempting("read the index's description"))?;
        let found = meta.payload.unwrap_or_default();
        if found != FORMAT || index.schema() != index::schema().0 {
            return Err(RetrievalError::Format {
                path: dir.to_owned(),
                found,
                expected: FORMAT.to_owned(),
            });
        }
        Bm25Index::from_index(&index)
    }

    /// Indexes `passages` in memory.
    pub fn in_memory(passages: impl IntoIterator<Item = Passage>) -> Result<Bm25Index, RetrievalError> {
        Bm25Index::from_index(&index::build_in_memory(passages)?)
    }

    /// The same index with other parameters; they apply at once.
    pub fn with_parameters(self, parameters: Bm25Parameters) -> Result<Bm25Index, RetrievalError> {
        Ok(Bm25Index {
            parameters: parameters.checked()?,
            ..self
        })
    }

    pub fn parameters(&self) -> Bm25Parameters {
        self.parameters
    }

    /// The number of passages.
    pub fn len(&self) -> usize {
        self.n_passages as usize
    }

    pub fn is_empty(&self) -> bool {
        self.n_passages == 0
    }

    /// The best `k` passages; equal scores keep the order in which passages were added.
    pub fn search(&self, query: &str, k: usize) -> Result<Vec<Hit>, RetrievalError> {
        let terms = self.weighted_terms(query)?;
        if terms.is_empty() || k == 0 {
            return Ok(Vec::new());
        }
        let mut best = Best::new(k.min(self.len()));
        for (segment_ord, (reader, columns)) in self.searcher.segment_readers().iter().zip(&self.segments).enumerate() {
            let scores = self.segment_scores(reader, columns, &terms)?;
            for (doc, &score) in scores.iter().enumerate() {
                if score > 0.0 {
                    best.offer(
                        score,
                        columns.passage_idx[doc],
                        DocAddress::new(segment_ord as u32, doc as u32),
                    );
                }
            }
        }
        let hits = best.sorted().into_iter().zip(1..);
        hits.map(|(candidate, rank)| {
            let passage = Arc::new(self.passage(candidate.address, candidate.passage_idx)?);
            Ok(Hit {
                passage,
                score: candidate.score,
                rank,
            })
        })
        .collect()
    }

    /// Why `passage_id` has its score for `query`; `None` for an unknown passage. A passage that shares
    /// no word with the query has score 0 and no terms.
    pub fn explain(&self, query: &str, passage_id: &str) -> Result<Option<Explanation>, RetrievalError> {
        let Some(address) = self.find(passage_id)? else {
            return Ok(None);
        };
        let reader = self.searcher.segment_reader(address.segment_ord);
        let columns = &self.segments[address.segment_ord as usize];
        let mut explanation = Explanation {
            score: 0.0,
            terms: Vec::new(),
        };
        for term in self.weighted_terms(query)? {
            let Some(mut postings) = postings(reader, &term.term)? else {
                continue;
            };
            if postings.doc() < address.doc_id {
                postings.seek(address.doc_id);
            }
            if postings.doc() != address.doc_id {
                continue;
            }
            let (lengths, average_length) = self.lengths(columns, term.field);
            let field_length = lengths[address.doc_id as usize];
            let term_frequency = postings.term_freq();
            let norm = self.parameters.norm(field_length, average_length);
            let score = scoring::term_score(term.weight, term_frequency, norm);
            explanation.score += score;
            explanation.terms.push(TermScore {
                term: term.text,
                field: term.field,
                query_frequency: term.query_frequency,
                idf: term.idf,
                term_frequency,
                field_length,
                average_length,
                score,
            });
        }
        Ok(Some(explanation))
    }

    fn from_index(index: &Index) -> Result<Bm25Index, RetrievalError> {
        let reader = index
            .reader_builder()
            .reload_policy(ReloadPolicy::Manual)
            .try_into()
            .map_err(attempting("open the index for reading"))?;
        let searcher = reader.searcher();
        let segments = searcher
            .segment_readers()
            .iter()
            .map(SegmentColumns::read)
            .collect::<Result<Vec<_>, _>>()?;
        let n_passages = searcher.num_docs();
        let average = |lengths: fn(&SegmentColumns) -> &[u32]| {
            let total: u64 = segments.iter().flat_map(lengths).map(|&length| u64::from(length)).sum();
            if n_passages == 0 {
                0.0
            } else {
                (total as f64 / n_passages as f64) as f32
            }
        };
        let body_average = average(|columns| &columns.body_length);
        let title_average = average(|columns| &columns.title_length);
        Ok(Bm25Index {
            searcher,
            fields: index::schema().1,
            parameters: Bm25Parameters::default(),
            segments,
            body_average,
            title_average,
            n_passages,
        })
    }

    /// The distinct terms of a query, in order of first mention, that some passage has.
    fn weighted_terms(&self, query: &str) -> Result<Vec<WeightedTerm>, RetrievalError> {
        let mut scored_fields = vec![(IndexedField::Body, self.fields.body, 1.0)];
        if self.parameters.title_boost > 0.0 {
            scored_fields.push((
                IndexedField::Title,
                self.fields.title_words,
                self.parameters.title_boost,
            ));
        }
        let mut terms = Vec::new();
        for (text, query_frequency) in distinct(analysis::words(query)) {
            for &(field, tantivy_field, boost) in &scored_fields {
                let term = Term::from_field_text(tantivy_field, &text);
                let df = self.searcher.doc_freq(&term).map_err(attempting("look up a word"))?;
                if df > 0 {
                    let idf = scoring::idf(self.n_passages, df);
                    let weight = idf * query_frequency as f32 * boost;
                    terms.push(WeightedTerm {
                        text: text.clone(),
                        term,
                        field,
                        query_frequency,
                        idf,
                        weight,
                    });
                }
            }
        }
        Ok(terms)
    }

    /// One score per passage of the segment; 0 where no term matches.
    fn segment_scores(
        &self,
        reader: &SegmentReader,
        columns: &SegmentColumns,
        terms: &[WeightedTerm],
    ) -> Result<Vec<f32>, RetrievalError> {
        let mut scores = vec![0.0; reader.max_doc() as usize];
        for term in terms {
            let Some(mut postings) = postings(reader, &term.term)? else {
                continue;
            };
            let (lengths, average_length) = self.lengths(columns, term.field);
            let mut doc = postings.doc();
            while doc != TERMINATED {
                let norm = self.parameters.norm(lengths[doc as usize], average_length);
                scores[doc as usize] += scoring::term_score(term.weight, postings.term_freq(), norm);
                doc = postings.advance();
            }
        }
        Ok(scores)
    }

    fn lengths<'a>(&self, columns: &'a SegmentColumns, field: IndexedField) -> (&'a [u32], f32) {
        match field {
            IndexedField::Body => (&columns.body_length, self.body_average),
            IndexedField::Title => (&columns.title_length, self.title_average),
        }
    }

    /// The first passage added with this id.
    fn find(&self, passage_id: &str) -> Result<Option<DocAddress>, RetrievalError> {
        let term = Term::from_field_text(self.fields.id, passage_id);
        let mut found: Option<(u64, DocAddress)> = None;
        for (segment_ord, (reader, columns)) in self.searcher.segment_readers().iter().zip(&self.segments).enumerate() {
            let Some(mut postings) = postings(reader, &term)? else {
                continue;
            };
            while postings.doc() != TERMINATED {
                let doc = postings.doc();
                let passage_idx = columns.passage_idx[doc as usize];
                if found.is_none_or(|(first, _)| passage_idx < first) {
                    found = Some((passage_idx, DocAddress::new(segment_ord as u32, doc)));
                }
                postings.advance();
            }
        }
        Ok(found.map(|(_, address)| address))
    }

    fn passage(&self, address: DocAddress, passage_idx: u64) -> Result<Passage, RetrievalError> {
        let document: TantivyDocument = self.searcher.doc(address).map_err(attempting("read a passage"))?;
        let text = |field: Field, name: &'static str| match document.get_first(field).and_then(|v| v.as_str()) {
            Some(text) => Ok(text.to_owned()),
            None => Err(RetrievalError::Damaged {
                passage_idx,
                field: name,
            }),
        };
        Ok(Passage {
            id: text(self.fields.id, "id")?,
            title: text(self.fields.title, "title")?,
            text: text(self.fields.text, "text")?,
        })
    }
}

impl Retriever for Bm25Index {
    fn search(&self, query: &str, k: usize) -> Result<Vec<Hit>, EngineError> {
        Bm25Index::search(self, query, k).map_err(|error| EngineError::Failed {
            engine: "bm25".to_owned(),
            message: error.to_string(),
        })
    }
}

impl SegmentColumns {
    fn read(reader: &SegmentReader) -> Result<SegmentColumns, RetrievalError> {
        let column = |name: &'static str| {
            let column = reader
                .fast_fields()
                .u64(name)
                .map_err(attempting("read passage lengths"))?;
            (0..reader.max_doc())
                .map(|doc| {
                    column.first(doc).ok_or(RetrievalError::Damaged {
                        passage_idx: u64::from(doc),
                        field: name,
                    })
                })
                .collect::<Result<Vec<u64>, RetrievalError>>()
        };
        let lengths = |name| {
            Ok(column(name)?
                .into_iter()
                .map(|length| u32::try_from(length).unwrap_or(u32::MAX))
                .collect())
        };
        Ok(SegmentColumns {
            passage_idx: column(PASSAGE_IDX)?,
            body_length: lengths(BODY_LENGTH)?,
            title_length: lengths(TITLE_LENGTH)?,
        })
    }
}

fn postings(reader: &SegmentReader, term: &Term) -> Result<Option<impl Postings>, RetrievalError> {
    let inverted = reader
        .inverted_index(term.field())
        .map_err(attempting("read the word list"))?;
    inverted
        .read_postings(term, IndexRecordOption::WithFreqs)
        .map_err(attempting("read the passages of a word"))
}

/// Terms with their counts, in order of first mention.
fn distinct(words: Vec<Word>) -> Vec<(String, u32)> {
    let mut terms: Vec<(String, u32)> = Vec::new();
    let mut position: HashMap<String, usize> = HashMap::new();
    for word in words {
        match position.get(&word.term) {
            Some(&at) => terms[at].1 += 1,
            None => {
                position.insert(word.term.clone(), terms.len());
                terms.push((word.term, 1));
            }
        }
    }
    terms
}

/// The `k` best candidates seen so far.
struct Best {
    k: usize,
    heap: BinaryHeap<Reverse<Candidate>>,
}

struct Candidate {
    score: f32,
    passage_idx: u64,
    address: DocAddress,
}

impl Best {
    fn new(k: usize) -> Best {
        Best {
            k,
            heap: BinaryHeap::with_capacity(k + 1),
        }
    }

    fn offer(&mut self, score: f32, passage_idx: u64, address: DocAddress) {
        let full = self.heap.len() >= self.k;
        if full && self.heap.peek().is_some_and(|Reverse(worst)| score < worst.score) {
            return;
        }
        self.heap.push(Reverse(Candidate {
            score,
            passage_idx,
            address,
        }));
        if full {
            self.heap.pop();
        }
    }

    fn sorted(self) -> Vec<Candidate> {
        self.heap
            .into_sorted_vec()
            .into_iter()
            .map(|Reverse(candidate)| candidate)
            .collect()
    }
}

/// Greater is better: by score, then the earlier passage.
impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score
            .total_cmp(&other.score)
            .then(other.passage_idx.cmp(&self.passage_idx))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate {}
