//! Every command and option, with the help that users read.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand};
use studio::bench::BenchOptions;
use studio::view::AgentSettings;
use studio::{AgentKind, Format, JudgeSpec, TrainRequest};

const FORMATS: [&str; 9] = [
    "auto",
    "jsonl",
    "csv",
    "text-folder",
    "beir",
    "medrag",
    "hotpotqa",
    "2wiki",
    "musique",
];

#[derive(Parser)]
#[command(name = "rag-gym", version, about = "Search agents, offline: ask, run, evaluate")]
pub struct Arguments {
    /// Home folder [default: RAG_GYM_HOME, else the platform's data folder]
    #[arg(long, global = true)]
    pub home: Option<PathBuf>,
    /// Print one JSON document on standard output, and nothing else
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Bring the built-in model and world into the home
    Setup,
    /// Passages to search
    #[command(subcommand)]
    Corpus(CorpusCommand),
    /// Question sets
    #[command(subcommand)]
    Questions(QuestionsCommand),
    /// Search a corpus
    Search {
        query: String,
        #[arg(long)]
        corpus: String,
        #[arg(long, default_value_t = 10)]
        k: u32,
        #[arg(long, default_value = "bm25", value_parser = ["bm25"])]
        retriever: String,
        /// Show each term's part of the score
        #[arg(long)]
        explain: bool,
    },
    /// Answer one question
    Ask {
        question: String,
        #[command(flatten)]
        agent: AgentOptions,
    },
    /// Run an agent over a question set
    Run {
        #[arg(long)]
        questions: String,
        #[command(flatten)]
        agent: AgentOptions,
        /// Only the first so many questions
        #[arg(long)]
        limit: Option<u32>,
        /// Leave out so many questions first
        #[arg(long, default_value_t = 0)]
        skip: u32,
        #[arg(long)]
        name: Option<String>,
        #[arg(long, default_value_t = 1)]
        workers: u32,
        /// Every n-th question from the i-th on, as `i/n`
        #[arg(long, value_parser = shard)]
        shard: Option<(u32, u32)>,
    },
    /// Go on with a stopped run
    Resume {
        run: String,
        #[arg(long, default_value_t = 1)]
        workers: u32,
    },
    /// List, show, export or remove runs
    #[command(subcommand)]
    Runs(RunsCommand),
    /// Scores of a run with 95 % intervals
    Evaluate {
        run: String,
        /// A run on the same questions, to pair with
        #[arg(long)]
        against: Option<String>,
        /// Only this score: em, f1, accuracy, evidence-recall or answer-supported
        #[arg(long, value_parser = ["em", "f1", "accuracy", "evidence-recall", "answer-supported"])]
        metric: Option<String>,
    },
    /// Judge a stored run's candidates once more, without sampling; goes on where it was stopped
    Annotate {
        run: String,
        /// evidence, llm:MODEL, rollout:M or rollout:M:em
        #[arg(long, value_parser = judge)]
        judge: String,
    },
    /// How far two judges of a run agree: pair accuracy, Kendall tau, Cohen kappa
    Agreement {
        run: String,
        /// Two judges as in `annotate`, or a reward model, with a comma between
        #[arg(long, value_parser = pair, value_name = "A,B")]
        judges: (String, String),
    },
    /// Train an adapter: a policy by sft or dpo, a reward model by prm, which may also be an encoder
    Train(TrainOptions),
    /// Model files
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Models behind a server
    #[command(subcommand)]
    Endpoint(EndpointCommand),
    /// Bring the runs of another home into this one
    Merge { home2: PathBuf },
    /// Time the program on this machine
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Versions, threads, memory, models, database integrity
    Doctor,
}

impl Command {
    /// Whether it ends in good order when it is asked to. The others are ended by the system: what they write, they
    /// write whole.
    pub fn heeds_cancel(&self) -> bool {
        !matches!(
            self,
            Command::Search { .. }
                | Command::Runs(_)
                | Command::Evaluate { .. }
                | Command::Agreement { .. }
                | Command::Models(_)
                | Command::Merge { .. }
                | Command::Doctor
        )
    }
}

#[derive(Subcommand)]
pub enum BenchCommand {
    /// Indexing, queries and recall [default: the built-in world and its dev questions]
    Retrieve {
        /// A passage file
        #[arg(long, requires = "questions")]
        corpus: Option<PathBuf>,
        /// Its question file
        #[arg(long)]
        questions: Option<PathBuf>,
    },
    /// Reading prompts, decoding, ten candidates from one prompt: tokens a second
    Generate {
        #[command(flatten)]
        options: BenchModel,
    },
    /// Whole ReSearch episodes of the built-in world: ten candidates, five steps that a script says
    Episode {
        /// A registered model or endpoint
        #[arg(long, default_value = studio::DEFAULT_MODEL)]
        model: String,
        #[arg(long, default_value_t = 4)]
        episodes: u32,
        /// Episodes at once
        #[arg(long, default_value_t = 1)]
        workers: u32,
    },
    /// Optimiser steps over random tokens: sft tokens and preference pairs per second
    Train {
        /// A model's name, or a GGUF file
        #[arg(long, default_value = "smollm2-135m")]
        model: String,
        /// Of a prompt and one completion
        #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(65..=65_536))]
        tokens: u32,
        #[arg(long, default_value_t = 4)]
        steps: u32,
    },
    /// Log-probability of each token of a text file, to compare with other programs
    Logprobs {
        text: PathBuf,
        #[command(flatten)]
        options: BenchModel,
        /// Tokens that are read together
        #[arg(long, default_value_t = 512)]
        window: usize,
    },
}

#[derive(Args)]
pub struct BenchModel {
    /// A model's name, or a GGUF file
    #[arg(long, default_value = "smollm2-135m")]
    model: String,
    /// A LoRA adapter's folder, laid over the model
    #[arg(long)]
    adapter: Option<String>,
    /// 0 for all processors
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// portable, avx2, avx-vnni, avx512-vnni, avx512-bf16 or neon [default: the best there is]
    #[arg(long)]
    instructions: Option<String>,
}

impl BenchModel {
    pub fn options(self) -> BenchOptions {
        BenchOptions {
            model: self.model,
            adapter: self.adapter,
            threads: self.threads,
            instructions: self.instructions,
        }
    }
}

#[derive(Subcommand)]
pub enum CorpusCommand {
    Import {
        path: PathBuf,
        #[arg(long)]
        name: String,
        #[arg(long, default_value = "auto", value_parser = FORMATS)]
        format: String,
    },
    List,
    Show {
        name: String,
    },
    Remove {
        name: String,
    },
}

#[derive(Subcommand)]
pub enum QuestionsCommand {
    Import {
        path: PathBuf,
        #[arg(long)]
        name: String,
        /// The corpus these questions are asked of
        #[arg(long)]
        corpus: Option<String>,
        #[arg(long, default_value = "auto", value_parser = FORMATS)]
        format: String,
        /// Only the questions that their publisher puts into this part, such as dev
        #[arg(long)]
        split: Option<String>,
    },
    List,
}

#[derive(Subcommand)]
pub enum RunsCommand {
    List,
    Show {
        run: String,
    },
    Export {
        run: String,
        /// A file, or a folder for a file named after the run
        #[arg(long)]
        to: PathBuf,
        /// jsonl, csv, parquet, trl-sft, trl-preference, trl-stepwise or inspect
        #[arg(long = "as", default_value = "jsonl")]
        format: Format,
        /// Whose rewards trl-preference and trl-stepwise go by, as in `agreement` [default: the run's own]
        #[arg(long)]
        judge: Option<String>,
    },
    /// A score of several runs against their number of candidates
    Curve {
        #[arg(value_delimiter = ',', required = true)]
        runs: Vec<String>,
        #[arg(long, default_value = "f1", value_parser = ["em", "f1", "accuracy", "evidence-recall", "answer-supported"])]
        metric: String,
    },
    /// Print every row of a run but its times: equal for equal work
    Dump {
        run: String,
    },
    Remove {
        run: String,
    },
}

#[derive(Subcommand)]
pub enum ModelsCommand {
    List,
    /// Register a GGUF file, or the folder of a PEFT adapter or an encoder, where it lies
    Add {
        path: PathBuf,
        #[arg(long)]
        name: String,
        /// The model that an adapter belongs to
        #[arg(long)]
        base: Option<String>,
    },
    /// The mean of adapters of one base, as a new model
    Average {
        #[arg(required = true, num_args = 2..)]
        adapters: Vec<String>,
        #[arg(long)]
        name: String,
    },
    /// Copy an adapter into a new folder in PEFT's layout, or an encoder
    Export {
        name: String,
        #[arg(long)]
        to: PathBuf,
        /// As 16-bit floats
        #[arg(long)]
        half: bool,
    },
    Show {
        name: String,
    },
    /// Forget a model; a file that was added stays, one that training or set-up made here goes
    Remove {
        name: String,
    },
}

#[derive(Subcommand)]
pub enum EndpointCommand {
    /// Register a model behind an OpenAI-compatible server; `models` lists, shows and removes it
    Add {
        name: String,
        /// Up to the version, such as http://localhost:8000/v1
        #[arg(long)]
        url: String,
        /// The model's name on the server
        #[arg(long)]
        model: String,
        /// The environment variable that holds the key; the key itself is never stored
        #[arg(long, value_name = "VAR")]
        key_env: Option<String>,
        /// Tokens of prompt and completion together [default: asked from the server]
        #[arg(long, value_name = "TOKENS")]
        context: Option<usize>,
        /// Let the server apply the chat template; the default
        #[arg(long, conflicts_with = "completions")]
        chat: bool,
        /// Send plain text, for base models
        #[arg(long)]
        completions: bool,
        /// Constrain compact prompts with llama.cpp's `grammar` field
        #[arg(long)]
        grammar: bool,
    },
}

#[derive(Args)]
pub struct TrainOptions {
    #[arg(value_parser = ["sft", "dpo", "prm"])]
    method: String,
    /// Runs whose judged episodes teach
    #[arg(long, value_delimiter = ',')]
    from: Vec<String>,
    /// Whose rewards of those runs dpo and prm learn from, as in `agreement` [default: each run's own]
    #[arg(long, requires = "from")]
    judge: Option<String>,
    /// Episodes of those runs teach dpo and prm whatever they came to: without it, those with a good outcome only, whose
    /// every step before was a right one
    #[arg(long, requires = "from")]
    any_outcome: bool,
    /// Files of TRL's JSON lines: messages; prompt and completion; prompt, chosen and rejected; or prompt, completions
    /// and labels
    #[arg(long, value_delimiter = ',')]
    data: Vec<PathBuf>,
    /// Question sets whose gold evidence teaches: dpo and prm learn from what a careless agent would do instead
    #[arg(long, value_delimiter = ',')]
    expert: Vec<String>,
    /// Only the first so many questions of each of these sets
    #[arg(long, requires = "expert")]
    limit: Option<u32>,
    /// At most so many lessons for the reader from each of these sets, an equal share of each topic (sft)
    #[arg(long, requires = "expert")]
    readings: Option<u32>,
    /// Conclusions with drawn numbers or years, so many from each of these sets' questions that compares some: whoever
    /// remembers the true ones is wrong (search-o1, research)
    #[arg(long, requires = "expert", default_value_t = 0)]
    counterfactuals: u32,
    /// Lessons in reading, at most so many from each of these sets' questions: sentences of its gold passages with a
    /// name, number or date left out (sft; search-o1, research)
    #[arg(long, requires = "expert", default_value_t = 0)]
    clozes: u32,
    /// Agents that the gold evidence is shown to
    #[arg(long, value_delimiter = ',', default_value = "search-o1", value_parser = agents())]
    agents: Vec<String>,
    /// Where the expert searches [default: the question set's]
    #[arg(long)]
    corpus: Option<String>,
    /// Passages per search of the expert
    #[arg(long, default_value_t = 3)]
    k: u32,
    /// A model, an adapter to go on from, or for prm an encoder, which is trained as a whole
    #[arg(long, default_value = "smollm2-135m")]
    base: String,
    /// Name of the new model
    #[arg(long)]
    out: String,
    /// Of a new adapter; one to go on from keeps its rank, alpha and targets
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    rank: u32,
    /// The change is scaled by alpha / rank [default: twice the rank]
    #[arg(long)]
    alpha: Option<f32>,
    /// Projections to train: q, k, v, o, gate, up, down, or all
    #[arg(long, value_delimiter = ',', default_value = "q,k,v")]
    targets: Vec<String>,
    /// Peak learning rate [default: 5e-4 sft, 1e-4 dpo, 3e-4 prm, 5e-5 for an encoder]
    #[arg(long)]
    lr: Option<f32>,
    #[arg(long, default_value = "linear", value_parser = ["constant", "linear", "cosine"])]
    schedule: String,
    /// Share of the steps over which the learning rate rises
    #[arg(long, default_value_t = 0.05)]
    warm_up: f32,
    #[arg(long, default_value_t = 1)]
    epochs: u32,
    /// Examples per optimiser step
    #[arg(long, default_value_t = 8)]
    batch: u32,
    /// Strength of dpo's tie to its reference
    #[arg(long, default_value_t = 0.1)]
    beta: f32,
    /// Weight of prm's pull of rewards towards 0
    #[arg(long, default_value_t = 0.01)]
    centre: f32,
    #[arg(long, default_value_t = 0.0)]
    dropout: f32,
    /// Tokens of prompt and completion; longer prompts lose their beginning. An encoder reads 256 at most
    #[arg(long, default_value_t = 1024)]
    max_length: u32,
    /// Share of the questions that are held out
    #[arg(long, default_value_t = 0.1)]
    eval_ratio: f64,
    /// Steps between evaluations [default: each epoch]
    #[arg(long, default_value_t = 0)]
    eval_every: u32,
    /// Evaluations without improvement before the end; 0 goes on to the end
    #[arg(long, default_value_t = 0)]
    patience: u32,
    #[arg(long, default_value_t = 0)]
    seed: u32,
}

impl TrainOptions {
    pub fn request(self) -> TrainRequest {
        TrainRequest {
            method: self.method,
            runs: self.from,
            judge: self.judge,
            any_outcome: self.any_outcome,
            files: self.data,
            expert: self.expert,
            limit: self.limit,
            readings: self.readings,
            counterfactuals: self.counterfactuals,
            clozes: self.clozes,
            agents: self.agents,
            corpus: self.corpus,
            k: self.k,
            base: self.base,
            out: self.out,
            rank: self.rank,
            alpha: self.alpha.unwrap_or(2.0 * self.rank as f32),
            targets: self.targets,
            learning_rate: self.lr,
            schedule: self.schedule,
            warm_up: self.warm_up,
            epochs: self.epochs,
            batch: self.batch,
            beta: self.beta,
            centre: self.centre,
            dropout: self.dropout,
            max_length: self.max_length,
            eval_ratio: self.eval_ratio,
            eval_every: self.eval_every,
            patience: self.patience,
            seed: self.seed,
        }
    }
}

#[derive(Args)]
pub struct AgentOptions {
    #[arg(long)]
    corpus: String,
    #[arg(long, value_parser = agents())]
    agent: String,
    #[arg(long, default_value = studio::DEFAULT_MODEL)]
    model: String,
    /// Who condenses passages for search-o1 and research [default: the model]
    #[arg(long, value_name = "MODEL")]
    reader: Option<String>,
    /// [default: by the model's size]
    #[arg(long, value_parser = ["full", "compact"])]
    prompt: Option<String>,
    #[arg(long, default_value = "bm25", value_parser = ["bm25"])]
    retriever: String,
    /// Passages per search
    #[arg(long, default_value_t = 3)]
    k: u32,
    #[arg(long, default_value_t = 5)]
    max_steps: u32,
    #[arg(long, default_value_t = 1)]
    candidates: u32,
    /// 0 is greedy; several candidates are sampled at 1.0 unless said otherwise
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Tokens per action [default: 128 compact, 512 full]
    #[arg(long, default_value_t = 0)]
    max_tokens: u32,
    #[arg(long, default_value_t = 0)]
    seed: u32,
    /// Who judges the candidates: evidence (by gold passages), llm:MODEL (ranks them), rollout:M (mean F1 of
    /// M continuations each; rollout:M:em for exact match)
    #[arg(long, value_parser = judge)]
    judge: Option<String>,
    /// A model of kind `reward`, which gives the rewards in the judge's place
    #[arg(long, value_name = "MODEL")]
    reward_model: Option<String>,
    /// How a candidate is taken: by reward, by most samples, by most samples that count e^reward each, at
    /// random, or the first
    /// [default: reward with a judge or reward model, else majority]
    #[arg(long, value_parser = ["reward", "majority", "weighted", "prior", "random", "first"])]
    select: Option<String>,
}

impl AgentOptions {
    pub fn settings(self) -> AgentSettings {
        AgentSettings {
            corpus: self.corpus,
            agent: self.agent,
            model: self.model,
            reader: self.reader,
            prompt: self.prompt,
            k: self.k,
            max_steps: self.max_steps,
            candidates: self.candidates,
            temperature: self.temperature,
            max_tokens: self.max_tokens,
            seed: self.seed,
            judge: self.judge,
            reward_model: self.reward_model,
            select: self.select,
        }
    }
}

fn agents() -> PossibleValuesParser {
    AgentKind::ALL.map(AgentKind::name).into()
}

fn judge(text: &str) -> Result<String, studio::StudioError> {
    text.parse::<JudgeSpec>().map(|spec| spec.to_string())
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once(',') {
        Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains(',') => Ok((a.into(), b.into())),
        _ => Err("write two judges with a comma between, such as evidence,llm:MODEL".into()),
    }
}

fn shard(text: &str) -> Result<(u32, u32), String> {
    let parts = text
        .split_once('/')
        .and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    match parts {
        Some((i, n)) if i >= 1 && i <= n => Ok((i, n)),
        _ => Err("write it as i/n with i from 1 to n, such as 2/8".into()),
    }
}
