//! One thread per model: batches whatever the callers are waiting for, token by token.
//!
//! Each step reads one token of every sample and a stretch of the prompts that are being read, whoever
//! asked. A request that comes meanwhile joins at the next step. What a request gets does not depend on
//! its company: see [`crate::decoder`].

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};

use gym::seed::SplitMix64;
use gym::{Cancel, FinishReason, Grammar, Sample, Sampling, Seed, TokenEvent, Usage};

use crate::LmError;
use crate::cache::{PrefixCache, Sequence};
use crate::decoder::{Decoder, Scratch};
use crate::grammar::{Automaton, Masks, State, Vocabulary};
use crate::kernels::attention::{Block, Span};
use crate::kernels::{exponential_sum, greatest};
use crate::sampler::{Draw, Room, draw};
use crate::stream::TextStream;
use crate::tokenizer::Tokenizer;

/// What a caller asks for.
pub struct Job {
    /// Not empty.
    pub prompt: Vec<u32>,
    pub work: Work,
    pub cancel: Cancel,
    pub replies: Sender<Reply>,
}

pub enum Work {
    /// One sample per seed, of at most `most` tokens.
    Generate {
        seeds: Vec<Seed>,
        sampling: Sampling,
        grammar: Option<Grammar>,
        most: usize,
    },
    /// What the model makes of each continuation, none of them empty.
    Score {
        continuations: Vec<Vec<u32>>,
        wanted: Wanted,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The last token's normalised result of the last layer.
    Hidden,
    /// Each token's log-probability after what comes before it.
    LogProbs,
}

pub enum Reply {
    Text(TokenEvent),
    Samples(Vec<Sample>, Usage),
    Scores(Vec<Vec<f32>>),
    Cancelled,
    Failed(LmError),
}

/// Tokens of one step: enough that reading weights is a small part of the work.
const STEP_TOKENS: usize = 512;
/// Rows whose logits are in memory at once.
const STEP_LOGITS: usize = 32;
const KEPT_GRAMMARS: usize = 8;

/// The thread's belongings.
pub struct Scheduler {
    decoder: Decoder,
    tokenizer: Arc<Tokenizer>,
    vocabulary: Arc<Vocabulary>,
    cache: PrefixCache,
    scratch: Scratch,
    /// Oldest first.
    grammars: Vec<Arc<Compiled>>,
    /// The first has waited longest for its prompt to be read.
    requests: VecDeque<Request>,
}

/// A grammar, and the tokens it admits in the states met so far.
struct Compiled {
    grammar: Grammar,
    automaton: Automaton,
    masks: Mutex<Masks>,
}

struct Request {
    prompt: Vec<u32>,
    work: Work,
    cancel: Cancel,
    replies: Sender<Reply>,
    usage: Usage,
    /// Of the prompt, as far as it is read.
    read: Sequence,
    grammar: Option<Arc<Compiled>>,
    /// Samples or continuations, once the prompt is read.
    branches: Vec<Branch>,
}

/// A sequence that goes on from the prompt.
struct Branch {
    idx: usize,
    sequence: Sequence,
    /// Tokens still to be read.
    pending: VecDeque<u32>,
    /// The row of this step's batch whose logits say what follows.
    row: Option<usize>,
    scores: Vec<f32>,
    sample: Option<Running>,
}

/// One sample being decoded.
struct Running {
    rng: SplitMix64,
    stream: TextStream,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    state: Option<State>,
    finish: Option<FinishReason>,
    room: Room,
}

/// What one sequence adds to a batch. The branch is `None` while the prompt is read.
struct Entry {
    request: usize,
    branch: Option<usize>,
    blocks: Vec<Arc<Block>>,
    base: usize,
    tokens: usize,
    first_row: usize,
}

impl Scheduler {
    pub fn new(decoder: Decoder, tokenizer: Arc<Tokenizer>, vocabulary: Arc<Vocabulary>, cache: PrefixCache) -> Self {
        Scheduler {
            decoder,
            tokenizer,
            vocabulary,
            cache,
            scratch: Scratch::default(),
            grammars: Vec::new(),
            requests: VecDeque::new(),
        }
    }

    /// Serves until nobody can ask any more.
    pub fn serve(mut self, jobs: &Receiver<Job>) {
        loop {
            if self.requests.is_empty() {
                match jobs.recv() {
                    Ok(job) => self.admit(job),
                    Err(_) => return,
                }
            }
            loop {
                match jobs.try_recv() {
                    Ok(job) => self.admit(job),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            if let Err(error) = self.step() {
                // Nothing tells whose part of the batch it was.
                let message = gym::chain(&error);
                for request in self.requests.drain(..) {
                    let error = candle_core::Error::Msg(message.clone());
                    request.reply(Reply::Failed(LmError::Compute(error)));
                }
            }
        }
    }

    fn admit(&mut self, job: Job) {
        let Job {
            prompt,
            work,
            cancel,
            replies,
        } = job;
        let grammar = match &work {
            Work::Generate {
                grammar: Some(grammar), ..
            } => Some(grammar),
            _ => None,
        };
        let grammar = match grammar.map(|grammar| compiled(&mut self.grammars, grammar)).transpose() {
            Ok(grammar) => grammar,
            Err(error) => {
                let _ = replies.send(Reply::Failed(error));
                return;
            }
        };
        let read = self.cache.longest(&prompt);
        let usage = Usage {
            prompt: prompt.len() as u32,
            cached: read.tokens as u32,
            generated: 0,
        };
        self.requests.push_back(Request {
            prompt,
            work,
            cancel,
            replies,
            usage,
            read,
            grammar,
            branches: Vec::new(),
        });
    }

    /// One batch: reads, draws, and answers those who are done.
    fn step(&mut self) -> Result<(), LmError> {
        self.dismiss(|request| request.cancel.is_cancelled().then_some(Reply::Cancelled));
        let (mut entries, tokens) = self.batch();
        if !tokens.is_empty() {
            let mut spans: Vec<Span> = entries
                .iter_mut()
                .map(|entry| Span {
                    blocks: &mut entry.blocks,
                    base: entry.base,
                    tokens: entry.tokens,
                })
                .collect();
            self.decoder.forward(&mut self.scratch, &mut spans, &tokens)?;
        }
        let mut scored = Vec::new();
        for entry in entries {
            self.file(entry, &tokens, &mut scored)?;
        }
        self.score(&scored)?;
        self.draw()?;
        self.dismiss(Request::outcome);
        // Whoever read a stretch of its prompt lets the next one go first.
        self.requests.rotate_left(usize::from(self.requests.len() > 1));
        Ok(())
    }

    /// Chooses what is read in this step: every branch's next tokens, then prompts.
    fn batch(&mut self) -> (Vec<Entry>, Vec<u32>) {
        let (mut entries, mut tokens) = (Vec::new(), Vec::new());
        let mut add = |request, branch: Option<usize>, sequence: &mut Sequence, new: &mut dyn Iterator<Item = u32>| {
            let first_row = tokens.len();
            // A sample's next token always finds a place, so that no sample waits for a prompt.
            let room = STEP_TOKENS.saturating_sub(first_row).max(usize::from(branch.is_some()));
            tokens.extend(new.take(room));
            let n = tokens.len() - first_row;
            if n > 0 {
                self.cache.grow(sequence, n);
                entries.push(Entry {
                    request,
                    branch,
                    blocks: std::mem::take(&mut sequence.blocks),
                    base: sequence.tokens,
                    tokens: n,
                    first_row,
                });
            }
        };
        for (at, request) in self.requests.iter_mut().enumerate() {
            for (idx, branch) in request.branches.iter_mut().enumerate() {
                add(at, Some(idx), &mut branch.sequence, &mut branch.pending.iter().copied());
            }
        }
        for (at, request) in self.requests.iter_mut().enumerate() {
            if request.branches.is_empty() {
                let left = &request.prompt[request.read.tokens..];
                add(at, None, &mut request.read, &mut left.iter().copied());
            }
        }
        (entries, tokens)
    }

    /// Books a sequence's read tokens, and notes whose logits are needed.
    fn file(
        &mut self,
        entry: Entry,
        tokens: &[u32],
        scored: &mut Vec<(usize, usize, usize, u32)>,
    ) -> Result<(), LmError> {
        let Entry {
            request: at,
            branch,
            blocks,
            tokens: n,
            first_row,
            ..
        } = entry;
        let last_row = first_row + n - 1;
        let request = &mut self.requests[at];
        let Some(idx) = branch else {
            request.read.blocks = blocks;
            request.read.tokens += n;
            if request.read.tokens == request.prompt.len() {
                self.cache.keep(&request.prompt, &mut request.read);
                request.branch_out(&mut self.cache, last_row);
                if let Work::Score {
                    continuations,
                    wanted: Wanted::LogProbs,
                } = &request.work
                {
                    scored.extend(
                        continuations
                            .iter()
                            .enumerate()
                            .map(|(idx, c)| (last_row, at, idx, c[0])),
                    );
                }
            }
            return Ok(());
        };
        let branch = &mut request.branches[idx];
        branch.sequence.blocks = blocks;
        branch.sequence.tokens += n;
        branch.pending.drain(..n);
        match &request.work {
            Work::Generate { .. } => branch.row = Some(last_row),
            Work::Score {
                wanted: Wanted::LogProbs,
                ..
            } => {
                // Each row tells of the token after it.
                let after = tokens[first_row + 1..=last_row]
                    .iter()
                    .copied()
                    .chain(branch.pending.front().copied());
                scored.extend(after.enumerate().map(|(i, next)| (first_row + i, at, idx, next)));
            }
            Work::Score {
                wanted: Wanted::Hidden, ..
            } => {
                if branch.pending.is_empty() {
                    branch.scores = self.decoder.hidden(&mut self.scratch, &[last_row])?.to_vec();
                }
            }
        }
        Ok(())
    }

    /// Adds log-probabilities: (row, request, branch, token), a branch's in order.
    fn score(&mut self, scored: &[(usize, usize, usize, u32)]) -> Result<(), LmError> {
        let level = self.decoder.machine.level;
        for part in scored.chunks(STEP_LOGITS) {
            let mut rows: Vec<usize> = part.iter().map(|(row, ..)| *row).collect();
            rows.dedup();
            let vocabulary = self.decoder.config.vocabulary;
            let logits = self.decoder.logits(&mut self.scratch, &rows)?;
            let mut sums: Vec<f32> = vec![0.0; rows.len()];
            self.decoder.machine.pool.parts(&mut sums, 1, |at, sum| {
                let logits = &logits[at * vocabulary..][..vocabulary];
                let most = greatest(level, logits);
                sum[0] = most + exponential_sum(level, logits, most).ln() as f32;
            });
            let mut at = 0;
            for &(row, request, branch, token) in part {
                at += usize::from(rows[at] != row);
                let logprob = logits[at * vocabulary + token as usize] - sums[at];
                self.requests[request].branches[branch].scores.push(logprob);
            }
        }
        Ok(())
    }

    /// Draws a token for every sample whose logits are ready.
    fn draw(&mut self) -> Result<(), LmError> {
        struct Turn<'a> {
            row: usize,
            allowed: Option<Arc<Vec<bool>>>,
            sampling: &'a Sampling,
            sample: &'a mut Running,
            drawn: Option<Draw>,
        }
        let waiting = self
            .requests
            .iter()
            .flat_map(|request| &request.branches)
            .filter_map(|branch| branch.row);
        let mut rows: Vec<usize> = waiting.collect();
        rows.dedup();
        let level = self.decoder.machine.level;
        let vocabulary = self.decoder.config.vocabulary;
        for part in rows.chunks(STEP_LOGITS) {
            let logits = self.decoder.logits(&mut self.scratch, part)?;
            for request in &mut self.requests {
                let Work::Generate { sampling, most, .. } = &request.work else {
                    continue;
                };
                let grammar = request.grammar.as_deref();
                // Masks only ever gain whole entries: a panic leaves none half written.
                let mut masks = grammar.map(|grammar| grammar.masks.lock().unwrap_or_else(PoisonError::into_inner));
                let mut turns = Vec::new();
                let mut drawing = Vec::new();
                for branch in &mut request.branches {
                    let Some(at) = branch.row.and_then(|row| part.iter().position(|&known| known == row)) else {
                        continue;
                    };
                    branch.row = None;
                    let Some(sample) = &mut branch.sample else { continue };
                    let allowed = match (grammar, &mut masks, &sample.state) {
                        (Some(grammar), Some(masks), Some(state)) => Some(masks.admitted(
                            &grammar.automaton,
                            state,
                            &self.vocabulary,
                            self.tokenizer.all_token_bytes(),
                            &self.tokenizer.end,
                            &self.decoder.machine.pool,
                        )),
                        _ => None,
                    };
                    turns.push(Turn {
                        row: at,
                        allowed,
                        sampling,
                        sample,
                        drawn: None,
                    });
                    drawing.push((branch.idx, &mut branch.pending));
                }
                self.decoder.machine.pool.parts(&mut turns, 1, |_, turn| {
                    for turn in turn {
                        let logits = &logits[turn.row * vocabulary..][..vocabulary];
                        let allowed = turn.allowed.as_ref().map(|mask| &mask[..]);
                        let Running { tokens, rng, room, .. } = &mut *turn.sample;
                        turn.drawn = draw(level, logits, allowed, turn.sampling, tokens, rng, room);
                    }
                });
                for (turn, (idx, pending)) in turns.into_iter().zip(drawing) {
                    let Some(drawn) = turn.drawn else {
                        turn.sample.finish = None;
                        let message = "the model has no token that continues the text".to_string();
                        let _ = request.replies.send(Reply::Failed(LmError::Grammar(message)));
                        request.cancel.cancel();
                        continue;
                    };
                    let automaton = grammar.map(|grammar| &grammar.automaton);
                    let text = turn.sample.extend(drawn, &self.tokenizer, automaton, *most);
                    if turn.sample.finish.is_none() {
                        pending.push_back(drawn.token);
                    }
                    if !text.is_empty()
                        && request
                            .replies
                            .send(Reply::Text(TokenEvent { sample_idx: idx, text }))
                            .is_err()
                    {
                        request.cancel.cancel();
                    }
                }
            }
        }
        Ok(())
    }

    /// Answers requests for which there is something to say at last, and takes their blocks back.
    fn dismiss(&mut self, last: impl Fn(&mut Request) -> Option<Reply>) {
        for _ in 0..self.requests.len() {
            let Some(mut request) = self.requests.pop_front() else {
                return;
            };
            match last(&mut request) {
                None => self.requests.push_back(request),
                Some(reply) => {
                    for branch in request.branches.drain(..) {
                        self.cache.release(branch.sequence);
                    }
                    self.cache.release(std::mem::take(&mut request.read));
                    request.reply(reply);
                }
            }
        }
    }
}

impl Request {
    /// Says the last word. Nobody listens any more if the caller is gone.
    fn reply(self, reply: Reply) {
        let _ = self.replies.send(reply);
    }

    /// Starts the samples or continuations from the prompt that has been read, whose last token is `row`.
    fn branch_out(&mut self, cache: &mut PrefixCache, row: usize) {
        let n = match &self.work {
            Work::Generate { seeds, .. } => seeds.len(),
            Work::Score { continuations, .. } => continuations.len(),
        };
        for idx in 0..n {
            let (mut pending, mut sample, mut wanted) = (VecDeque::new(), None, None);
            match &self.work {
                Work::Score { continuations, .. } => pending.extend(&continuations[idx]),
                Work::Generate {
                    seeds, sampling, most, ..
                } => {
                    let state = self.grammar.as_ref().map(|grammar| grammar.automaton.start());
                    let complete = |g: &Arc<Compiled>| g.automaton.is_complete(&g.automaton.start());
                    let finish = if self.grammar.as_ref().is_some_and(complete) {
                        Some(FinishReason::Stop)
                    } else {
                        (*most == 0).then_some(FinishReason::Length)
                    };
                    wanted = finish.is_none().then_some(row);
                    sample = Some(Running {
                        rng: seeds[idx].rng(),
                        stream: TextStream::new(&sampling.stop),
                        tokens: Vec::new(),
                        logprobs: Vec::new(),
                        state,
                        finish,
                        room: Room::default(),
                    });
                }
            }
            self.branches.push(Branch {
                idx,
                sequence: cache.fork(&self.read),
                pending,
                row: wanted,
                scores: Vec::new(),
                sample,
            });
        }
    }

    /// The answer, if everything is done.
    fn outcome(&mut self) -> Option<Reply> {
        if self.read.tokens < self.prompt.len() {
            return None;
        }
        let done = |branch: &Branch| match &branch.sample {
            Some(sample) => sample.finish.is_some(),
            None => branch.pending.is_empty(),
        };
        if !self.branches.iter().all(done) {
            return None;
        }
        if let Work::Score { .. } = self.work {
            return Some(Reply::Scores(
                self.branches
                    .iter_mut()
                    .map(|b| std::mem::take(&mut b.scores))
                    .collect(),
            ));
        }
        let samples: Vec<Sample> = self
            .branches
            .iter_mut()
            .filter_map(|branch| branch.sample.take())
            .map(|sample| Sample {
                text: sample.stream.text,
                token_ids: sample.tokens,
                token_logprobs: sample.logprobs,
                finish: sample.finish.unwrap_or(FinishReason::Length),
            })
            .collect();
        self.usage.generated = samples.iter().map(|sample| sample.token_ids.len() as u32).sum();
        Some(Reply::Samples(samples, self.usage))
    }
}

impl Running {
    /// Takes the drawn token; returns the text that became certain.
    fn extend(&mut self, drawn: Draw, tokenizer: &Tokenizer, automaton: Option<&Automaton>, most: usize) -> String {
        if tokenizer.end.contains(&drawn.token) {
            self.finish = Some(FinishReason::Stop);
            return self.stream.finish();
        }
        self.tokens.push(drawn.token);
        self.logprobs.push(drawn.logprob);
        let mut bytes = tokenizer.token_bytes(drawn.token);
        if let (Some(automaton), Some(state)) = (automaton, &mut self.state) {
            *state = automaton.advance(state, bytes);
            if automaton.is_complete(state) {
                self.finish = Some(FinishReason::Stop);
            }
            if automaton.ended_by_line_feed(state) {
                bytes = &bytes[..bytes.len().saturating_sub(1)];
            }
        }
        let mut text = self.stream.push(bytes);
        if self.stream.stopped {
            self.finish = Some(FinishReason::Stop);
        } else if self.finish.is_none() && self.tokens.len() >= most {
            self.finish = Some(FinishReason::Length);
        }
        if self.finish.is_some() {
            text += &self.stream.finish();
        }
        text
    }
}

/// The grammar, kept compiled from an earlier request if there was one.
fn compiled(kept: &mut Vec<Arc<Compiled>>, grammar: &Grammar) -> Result<Arc<Compiled>, LmError> {
    let entry = match kept.iter().position(|known| known.grammar == *grammar) {
        Some(at) => kept.remove(at),
        None => Arc::new(Compiled {
            grammar: grammar.clone(),
            automaton: Automaton::new(grammar)?,
            masks: Mutex::default(),
        }),
    };
    if kept.len() >= KEPT_GRAMMARS {
        kept.remove(0);
    }
    kept.push(entry.clone());
    Ok(entry)
}
