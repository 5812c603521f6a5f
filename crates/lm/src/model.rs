//! A local model: one prompt computed once, many samples decoded together.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use gym::seed::SplitMix64;
use gym::{Cancel, EngineError, FinishReason, Generation, Grammar, LanguageModel, Prompt, Sample, TokenEvent, Usage};

use crate::LmError;
use crate::attention::{Prefix, Tail};
use crate::chat::ChatTemplate;
use crate::decoder::{Architecture, Config, Decoder};
use crate::gguf::Gguf;
use crate::grammar::{Automaton, Masks, State, Vocabulary};
use crate::sampler::draw;
use crate::stream::TextStream;
use crate::tokenizer::Tokenizer;

/// What a model file holds.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ModelInfo {
    pub architecture: String,
    pub parameters: u64,
    pub context_tokens: usize,
    pub quantization: String,
    pub file_bytes: u64,
    /// Whether the file brings its own chat template.
    pub chat_template: bool,
}

/// A model in memory. Calls from several threads wait for each other.
pub struct LocalModel {
    name: String,
    info: ModelInfo,
    tokenizer: Arc<Tokenizer>,
    template: Arc<ChatTemplate>,
    vocabulary: Arc<Vocabulary>,
    decoder: Decoder,
    kept: Mutex<Kept>,
}

/// What one call leaves for the next.
#[derive(Default)]
struct Kept {
    prompts: PrefixCache,
    /// Oldest first.
    grammars: Vec<(Grammar, Arc<Automaton>, Masks)>,
}

/// Prompts read before, oldest first.
#[derive(Default)]
struct PrefixCache(Vec<ReadPrompt>);

#[derive(Clone)]
struct ReadPrompt {
    tokens: Vec<u32>,
    prefix: Prefix,
    /// Of the last token.
    logits: Arc<Vec<f32>>,
}

/// Tokens of prompts kept, together; the last prompt is kept whatever its length.
const KEPT_TOKENS: usize = 8192;
const KEPT_GRAMMARS: usize = 8;
/// Prompt tokens computed at a time, counted from the prompt's beginning. Only whole blocks are taken from
/// the cache: so a token is computed in the same company whatever the cache holds, and a resumed run draws
/// bit for bit what an undisturbed one does.
const BLOCK: usize = 128;

impl LocalModel {
    pub fn open(path: &Path) -> Result<LocalModel, LmError> {
        let mut gguf = Gguf::open(path)?;
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        let source = gguf.string("tokenizer.chat_template").map(str::to_string);
        let template = ChatTemplate::new(source.as_deref(), &tokenizer)?;
        let config = Config::from_gguf(&gguf, tokenizer.vocabulary())?;
        let info = ModelInfo {
            architecture: match config.architecture {
                Architecture::Llama => "llama".into(),
                Architecture::Qwen2 => "qwen2".into(),
            },
            parameters: gguf.parameters(),
            context_tokens: config.context_tokens,
            quantization: gguf.quantization(),
            file_bytes: gguf.file_bytes,
            chat_template: source.is_some(),
        };
        let name = gguf
            .string("general.name")
            .map(str::to_string)
            .or_else(|| path.file_stem().map(|stem| stem.to_string_lossy().into_owned()))
            .unwrap_or_default();
        let decoder = Decoder::load(&mut gguf, config)?;
        Ok(LocalModel {
            name,
            info,
            vocabulary: Arc::new(Vocabulary::new(tokenizer.all_token_bytes())),
            tokenizer: Arc::new(tokenizer),
            template: Arc::new(template),
            decoder,
            kept: Mutex::default(),
        })
    }

    /// This model with a PEFT LoRA adapter on top. Shares the base's weights.
    pub fn with_adapter(&self, dir: &Path) -> Result<LocalModel, LmError> {
        Ok(LocalModel {
            name: self.name.clone(),
            info: self.info.clone(),
            tokenizer: self.tokenizer.clone(),
            template: self.template.clone(),
            vocabulary: self.vocabulary.clone(),
            decoder: crate::lora::with_adapter(&self.decoder, dir)?,
            kept: Mutex::default(),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Tokens of a prompt, up to the start of the assistant's turn.
    pub fn prompt_tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, LmError> {
        self.tokenizer.encode_template(&self.template.render(prompt)?)
    }

    fn failed(&self, error: LmError) -> EngineError {
        let mut message = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            message = format!("{message}: {inner}");
            source = inner.source();
        }
        EngineError::Failed {
            engine: self.name.clone(),
            message,
        }
    }

    /// Reads the prompt, starting from the longest beginning that is kept. Returns also how many tokens that was.
    fn read(
        &self,
        cache: &mut PrefixCache,
        tokens: &[u32],
        cancel: &Cancel,
    ) -> Result<(ReadPrompt, usize), EngineError> {
        let failed = |e: LmError| self.failed(e);
        let common = |read: &ReadPrompt| read.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let best = cache
            .0
            .iter()
            .enumerate()
            .max_by_key(|(_, read)| (common(read), usize::MAX - read.tokens.len()));
        let best = best.map(|(at, read)| (at, common(read)));
        let (mut prefix, cached) = match best {
            Some((at, shared)) if shared == tokens.len() && cache.0[at].tokens.len() == shared => {
                let read = cache.0.remove(at);
                cache.0.push(read.clone());
                return Ok((read, shared));
            }
            // The last token is read again: its logits were not kept.
            Some((at, shared)) if shared.min(tokens.len().saturating_sub(1)) >= BLOCK => {
                let shared = shared.min(tokens.len().saturating_sub(1)) / BLOCK * BLOCK;
                (cache.0[at].prefix.truncated(shared).map_err(&failed)?, shared)
            }
            _ => (self.decoder.empty_prefix().map_err(&failed)?, 0),
        };
        let mut logits = Vec::new();
        while prefix.tokens < tokens.len() && !cancel.is_cancelled() {
            let left = &tokens[prefix.tokens..];
            let chunk = BLOCK.min(left.len());
            (prefix, logits) = self.decoder.prefill(&prefix, &left[..chunk]).map_err(&failed)?;
        }
        if !logits.is_empty() {
            let tokens = tokens[..prefix.tokens].to_vec();
            cache.keep(ReadPrompt {
                tokens,
                prefix,
                logits: Arc::new(logits),
            });
        }
        cancel.check()?;
        let read = cache.0.last().cloned();
        read.map(|read| (read, cached))
            .ok_or_else(|| failed(LmError::Tokenizer("the prompt is empty".into())))
    }
}

impl PrefixCache {
    fn keep(&mut self, read: ReadPrompt) {
        self.0.retain(|old| !read.tokens.starts_with(&old.tokens));
        self.0.push(read);
        while self.0.len() > 1 && self.0.iter().map(|read| read.tokens.len()).sum::<usize>() > KEPT_TOKENS {
            self.0.remove(0);
        }
    }
}

/// One sample being decoded.
struct Running {
    idx: usize,
    rng: SplitMix64,
    tail: Tail,
    stream: TextStream,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    state: Option<State>,
    finish: Option<FinishReason>,
}

impl LanguageModel for LocalModel {
    fn context_tokens(&self) -> usize {
        self.info.context_tokens
    }

    fn count_tokens(&self, prompt: &Prompt) -> Result<usize, EngineError> {
        Ok(self.prompt_tokens(prompt).map_err(|e| self.failed(e))?.len())
    }

    /// `token_ids` hold every token drawn except the end token; under a grammar the last one may bring
    /// the line feed that closes the last line and is not part of the text.
    fn generate(
        &self,
        request: &Generation,
        cancel: &Cancel,
        on_token: &mut dyn FnMut(TokenEvent),
    ) -> Result<(Vec<Sample>, Usage), EngineError> {
        let failed = |e: LmError| self.failed(e);
        let prompt = self.prompt_tokens(&request.prompt).map_err(failed)?;
        let limit = self.info.context_tokens;
        if prompt.len() >= limit {
            return Err(EngineError::PromptTooLong {
                model: self.name.clone(),
                tokens: prompt.len(),
                limit,
            });
        }
        if prompt.is_empty() {
            return Err(failed(LmError::Tokenizer("the prompt is empty".into())));
        }
        let mut usage = Usage {
            prompt: prompt.len() as u32,
            ..Usage::default()
        };
        // A panic in another call cannot have left the caches half written in a way that matters: they
        // only ever gain whole entries.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Kept { prompts, grammars } = &mut *kept;
        cancel.check()?;
        let (read, cached) = self.read(prompts, &prompt, cancel)?;
        usage.cached = cached as u32;
        let mut grammar = match &request.grammar {
            Some(grammar) => Some(compiled(grammars, grammar).map_err(failed)?),
            None => None,
        };

        let most = request.sampling.max_tokens.min(limit - prompt.len());
        let mut running: Vec<Running> = request
            .seeds
            .iter()
            .enumerate()
            .map(|(idx, seed)| Running {
                idx,
                rng: seed.rng(),
                tail: Tail::new(self.decoder.config.layers),
                stream: TextStream::new(&request.sampling.stop),
                tokens: Vec::new(),
                logprobs: Vec::new(),
                state: grammar.as_ref().map(|(automaton, _)| automaton.start()),
                finish: (most == 0).then_some(FinishReason::Length),
            })
            .collect();
        if grammar
            .as_ref()
            .is_some_and(|(automaton, _)| automaton.is_complete(&automaton.start()))
        {
            running
                .iter_mut()
                .for_each(|sample| sample.finish = Some(FinishReason::Stop));
        }

        let mut logits: Vec<f32> = Vec::new();
        let mut rows: Vec<usize> = vec![usize::MAX; running.len()];
        loop {
            cancel.check()?;
            for sample in running.iter_mut().filter(|sample| sample.finish.is_none()) {
                let row = match rows[sample.idx] {
                    usize::MAX => &read.logits[..],
                    row => &logits[row * self.decoder.config.vocabulary..][..self.decoder.config.vocabulary],
                };
                let text = self.extend(
                    sample,
                    row,
                    request,
                    grammar.as_mut().map(|(a, m)| (&**a, &mut **m)),
                    most,
                )?;
                if !text.is_empty() {
                    on_token(TokenEvent {
                        sample_idx: sample.idx,
                        text,
                    });
                }
            }
            let mut active: Vec<&mut Running> = running.iter_mut().filter(|s| s.finish.is_none()).collect();
            if active.is_empty() {
                break;
            }
            let last: Vec<u32> = active.iter().filter_map(|s| s.tokens.last().copied()).collect();
            for (row, sample) in active.iter().enumerate() {
                rows[sample.idx] = row;
            }
            let mut tails: Vec<&mut Tail> = active.iter_mut().map(|s| &mut s.tail).collect();
            logits = self.decoder.decode(&read.prefix, &mut tails, &last).map_err(failed)?;
        }

        usage.generated = running.iter().map(|s| s.tokens.len() as u32).sum();
        let samples = running
            .into_iter()
            .map(|s| Sample {
                text: s.stream.text,
                token_ids: s.tokens,
                token_logprobs: s.logprobs,
                finish: s.finish.unwrap_or(FinishReason::Length),
            })
            .collect();
        Ok((samples, usage))
    }
}

impl LocalModel {
    /// Draws one token of one sample; returns the text that became certain.
    fn extend(
        &self,
        sample: &mut Running,
        logits: &[f32],
        request: &Generation,
        grammar: Option<(&Automaton, &mut Masks)>,
        most: usize,
    ) -> Result<String, EngineError> {
        let end = &self.tokenizer.end;
        let mut automaton = None;
        let mut mask = None;
        if let (Some((a, masks)), Some(state)) = (grammar, &sample.state) {
            mask = Some(masks.admitted(a, state, &self.vocabulary, self.tokenizer.all_token_bytes(), end));
            automaton = Some(a);
        }
        let allowed = mask.as_ref().map(|mask| &mask[..]);
        let drawn = draw(logits, allowed, &request.sampling, &sample.tokens, &mut sample.rng).ok_or_else(|| {
            self.failed(LmError::Grammar(
                "the model has no token that continues the text".into(),
            ))
        })?;
        if end.contains(&drawn.token) {
            sample.finish = Some(FinishReason::Stop);
            return Ok(sample.stream.finish());
        }
        sample.tokens.push(drawn.token);
        sample.logprobs.push(drawn.logprob);
        let mut bytes = self.tokenizer.token_bytes(drawn.token);
        if let (Some(automaton), Some(state)) = (automaton, &mut sample.state) {
            *state = automaton.advance(state, bytes);
            if automaton.is_complete(state) {
                sample.finish = Some(FinishReason::Stop);
            }
            if automaton.ended_by_line_feed(state) {
                bytes = &bytes[..bytes.len().saturating_sub(1)];
            }
        }
        let mut text = sample.stream.push(bytes);
        if sample.stream.stopped {
            sample.finish = Some(FinishReason::Stop);
        } else if sample.finish.is_none() && sample.tokens.len() >= most {
            sample.finish = Some(FinishReason::Length);
        }
        if sample.finish.is_some() {
            text += &sample.stream.finish();
        }
        Ok(text)
    }
}

/// The grammar's automaton and masks, kept from an earlier call if there was one.
fn compiled<'a>(
    kept: &'a mut Vec<(Grammar, Arc<Automaton>, Masks)>,
    grammar: &Grammar,
) -> Result<(Arc<Automaton>, &'a mut Masks), LmError> {
    let entry = match kept.iter().position(|(known, ..)| known == grammar) {
        Some(at) => kept.remove(at),
        None => (grammar.clone(), Arc::new(Automaton::new(grammar)?), Masks::default()),
    };
    if kept.len() >= KEPT_GRAMMARS {
        kept.remove(0);
    }
    kept.push(entry);
    let (_, automaton, masks) = kept.last_mut().expect("just pushed");
    Ok((automaton.clone(), masks))
}
