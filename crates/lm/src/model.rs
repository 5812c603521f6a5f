//! A local model: one prompt computed once, many samples decoded together, for several callers at once.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use candle_core::Device;
use gym::{Cancel, EngineError, Generation, LanguageModel, Prompt, Sample, TokenEvent, Usage};

use crate::LmError;
use crate::accelerator;
use crate::chat::ChatTemplate;
use crate::config::Config;
use crate::decoder::Decoder;
use crate::gguf::Gguf;
use crate::grammar::Vocabulary;
use crate::kernels::Machine;
use crate::scheduler::{Job, Reply, Scheduler, Wanted, Work};
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

/// A model in memory. Calls from several threads share its batches.
pub struct LocalModel {
    name: String,
    info: ModelInfo,
    tokenizer: Arc<Tokenizer>,
    template: Arc<ChatTemplate>,
    vocabulary: Arc<Vocabulary>,
    decoder: Decoder,
    /// A reward adapter's: `hidden` numbers.
    head: Option<Vec<f32>>,
    jobs: Sender<Job>,
}

/// Tokens that a model keeps, unless it is told otherwise.
pub const KEPT_TOKENS: usize = 8192;

/// How a model is run.
#[derive(Clone)]
pub struct Options {
    pub machine: Machine,
    /// Tokens whose keys and values are kept for whoever reads the same beginning again.
    pub kept_tokens: usize,
    /// Computes in the machine's place, if there is one.
    pub device: Option<Device>,
    /// Takes end tokens for any other: every text gets as long as it may, as engines are timed.
    pub endless: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            machine: Machine::shared(),
            kept_tokens: KEPT_TOKENS,
            device: accelerator::found(),
            endless: false,
        }
    }
}

impl LocalModel {
    pub fn open(path: &Path) -> Result<LocalModel, LmError> {
        LocalModel::open_with(path, Options::default())
    }

    pub fn open_with(path: &Path, options: Options) -> Result<LocalModel, LmError> {
        let mut gguf = Gguf::open(path)?;
        let mut tokenizer = Tokenizer::from_gguf(&gguf)?;
        let source = gguf.string("tokenizer.chat_template").map(str::to_string);
        let template = ChatTemplate::new(source.as_deref(), &tokenizer)?;
        let config = Config::from_gguf(&mut gguf, tokenizer.vocabulary())?;
        if options.endless {
            tokenizer.end.clear();
        }
        let info = ModelInfo {
            architecture: config.architecture.name().into(),
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
        let decoder = Decoder::load(&mut gguf, config, options.machine.clone())?;
        let decoder = match &options.device {
            Some(device) => decoder.on(device)?,
            None => decoder,
        };
        let (jobs, _) = channel();
        let model = LocalModel {
            name,
            info,
            vocabulary: Arc::new(Vocabulary::new(tokenizer.all_token_bytes())),
            tokenizer: Arc::new(tokenizer),
            template: Arc::new(template),
            decoder,
            head: None,
            jobs,
        };
        model.started(options.kept_tokens)
    }

    /// This model with a PEFT LoRA adapter on top. Shares the base's weights; keeps its own prompts.
    pub fn with_adapter(&self, dir: &Path) -> Result<LocalModel, LmError> {
        let (decoder, head) = crate::lora::with_adapter(&self.decoder, dir)?;
        let model = LocalModel {
            name: self.name.clone(),
            info: self.info.clone(),
            tokenizer: self.tokenizer.clone(),
            template: self.template.clone(),
            vocabulary: self.vocabulary.clone(),
            decoder,
            head,
            jobs: self.jobs.clone(),
        };
        model.started(KEPT_TOKENS)
    }

    /// Starts the thread that this model's calls are answered by; it ends with the model.
    fn started(self, kept_tokens: usize) -> Result<LocalModel, LmError> {
        let (jobs, incoming) = channel();
        let cache = self.decoder.cache(kept_tokens);
        let scheduler = Scheduler::new(
            self.decoder.clone(),
            self.tokenizer.clone(),
            self.vocabulary.clone(),
            cache,
        );
        std::thread::Builder::new()
            .name("lm-model".into())
            .spawn(move || scheduler.serve(&incoming))
            .map_err(LmError::Thread)?;
        Ok(LocalModel { jobs, ..self })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    pub fn template(&self) -> &Arc<ChatTemplate> {
        &self.template
    }

    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Tokens of a prompt, up to the start of the assistant's turn.
    pub fn prompt_tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, LmError> {
        self.tokenizer.encode_template(&self.template.render(prompt)?)
    }

    /// Whether it is a reward model: an adapter with a head.
    pub fn is_reward_model(&self) -> bool {
        self.head.is_some()
    }

    /// What the adapter's head makes of each continuation: one reward each, without unit. The prompt is read once,
    /// or taken from the cache.
    ///
    /// Errors if there is no head, the prompt or a continuation is empty, or together they exceed the context.
    pub fn rewards(
        &self,
        prompt: &[u32],
        continuations: &[Vec<u32>],
        cancel: &Cancel,
    ) -> Result<Vec<f32>, EngineError> {
        let Some(head) = &self.head else {
            return Err(self.failed(LmError::Unsupported("rewards of a model without a reward head".into())));
        };
        let states = self.hidden_states(prompt, continuations, cancel)?;
        Ok(states
            .iter()
            .map(|state| state.iter().zip(head).map(|(x, w)| x * w).sum())
            .collect())
    }

    /// What the last layer makes of each continuation's last token, normalised: one vector of `hidden` numbers each.
    /// The prompt is read once, or taken from the cache.
    ///
    /// Errors if the prompt or a continuation is empty, or together they exceed the context.
    pub fn hidden_states(
        &self,
        prompt: &[u32],
        continuations: &[Vec<u32>],
        cancel: &Cancel,
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        self.score(prompt, continuations, Wanted::Hidden, cancel)
    }

    /// Natural log-probability of each token of each continuation, after the prompt and the tokens before it, at
    /// temperature 1: as many numbers as tokens. The prompt is read once, or taken from the cache.
    ///
    /// Errors if the prompt or a continuation is empty, or together they exceed the context.
    pub fn token_logprobs(
        &self,
        prompt: &[u32],
        continuations: &[Vec<u32>],
        cancel: &Cancel,
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        self.score(prompt, continuations, Wanted::LogProbs, cancel)
    }

    fn score(
        &self,
        prompt: &[u32],
        continuations: &[Vec<u32>],
        wanted: Wanted,
        cancel: &Cancel,
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        let longest = continuations.iter().map(Vec::len).max().unwrap_or(0);
        self.check(prompt, longest)?;
        if continuations.iter().any(Vec::is_empty) {
            return Err(self.failed(LmError::Tokenizer("a continuation is empty".into())));
        }
        for &token in continuations.iter().flatten() {
            self.check_token(token)?;
        }
        let work = Work::Score {
            continuations: continuations.to_vec(),
            wanted,
        };
        match self.answer(&self.ask(prompt.to_vec(), work, cancel), cancel, &mut |_| {})? {
            Reply::Scores(scores) => Ok(scores),
            _ => Err(self.stopped()),
        }
    }

    /// Refuses prompts that cannot be read with `more` tokens after them.
    fn check(&self, prompt: &[u32], more: usize) -> Result<(), EngineError> {
        let limit = self.info.context_tokens;
        if prompt.is_empty() {
            return Err(self.failed(LmError::Tokenizer("the prompt is empty".into())));
        }
        if prompt.len() + more > limit {
            return Err(EngineError::PromptTooLong {
                model: self.name.clone(),
                tokens: prompt.len() + more,
                limit,
            });
        }
        prompt.iter().try_for_each(|&token| self.check_token(token))
    }

    fn check_token(&self, token: u32) -> Result<(), EngineError> {
        if (token as usize) < self.decoder.config.vocabulary {
            return Ok(());
        }
        let message = format!("token {token} is not in the vocabulary");
        Err(self.failed(LmError::Tokenizer(message)))
    }

    /// Hands a job to the model's thread.
    fn ask(&self, prompt: Vec<u32>, work: Work, cancel: &Cancel) -> Receiver<Reply> {
        let (replies, answers) = channel();
        // If the thread is gone, so is `replies`, and waiting for the answer says so.
        let _ = self.jobs.send(Job {
            prompt,
            work,
            cancel: cancel.clone(),
            replies,
        });
        answers
    }

    /// Passes texts on until the last word comes.
    fn answer(
        &self,
        answers: &Receiver<Reply>,
        cancel: &Cancel,
        on_token: &mut dyn FnMut(TokenEvent),
    ) -> Result<Reply, EngineError> {
        loop {
            match answers.recv() {
                Ok(Reply::Text(event)) => {
                    on_token(event);
                    cancel.check()?;
                }
                Ok(Reply::Cancelled) => return Err(EngineError::Cancelled),
                Ok(Reply::Failed(error)) => return Err(self.failed(error)),
                Ok(last) => return Ok(last),
                Err(_) => return Err(self.stopped()),
            }
        }
    }

    fn stopped(&self) -> EngineError {
        EngineError::Failed {
            engine: self.name.clone(),
            message: "the model's thread has stopped".into(),
        }
    }

    fn failed(&self, error: LmError) -> EngineError {
        EngineError::Failed {
            engine: self.name.clone(),
            message: gym::chain(&error),
        }
    }
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
        let prompt = self.prompt_tokens(&request.prompt).map_err(|e| self.failed(e))?;
        self.check(&prompt, 1)?;
        self.generate_from(prompt, request, cancel, on_token)
    }
}

impl LocalModel {
    /// [`LanguageModel::generate`] from tokens; the request's own prompt is passed over.
    pub fn generate_tokens(
        &self,
        prompt: &[u32],
        request: &Generation,
        cancel: &Cancel,
        on_token: &mut dyn FnMut(TokenEvent),
    ) -> Result<(Vec<Sample>, Usage), EngineError> {
        self.check(prompt, 1)?;
        self.generate_from(prompt.to_vec(), request, cancel, on_token)
    }

    fn generate_from(
        &self,
        prompt: Vec<u32>,
        request: &Generation,
        cancel: &Cancel,
        on_token: &mut dyn FnMut(TokenEvent),
    ) -> Result<(Vec<Sample>, Usage), EngineError> {
        cancel.check()?;
        let work = Work::Generate {
            seeds: request.seeds.clone(),
            sampling: request.sampling.clone(),
            grammar: request.grammar.clone(),
            most: request.sampling.max_tokens.min(self.info.context_tokens - prompt.len()),
        };
        match self.answer(&self.ask(prompt, work, cancel), cancel, on_token)? {
            Reply::Samples(samples, usage) => Ok((samples, usage)),
            _ => Err(self.stopped()),
        }
    }
}
