CREATE TABLE corpus (
  corpus_key INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  format TEXT NOT NULL,
  passages INTEGER NOT NULL,
  content_hash TEXT NOT NULL,
  created_at TEXT NOT NULL
) STRICT;

CREATE TABLE passage (
  passage_key INTEGER PRIMARY KEY,
  corpus_key INTEGER NOT NULL REFERENCES corpus(corpus_key) ON DELETE CASCADE,
  id TEXT NOT NULL,
  title TEXT NOT NULL,
  text TEXT NOT NULL,
  UNIQUE (corpus_key, id)
) STRICT;

CREATE TABLE question_set (
  name TEXT PRIMARY KEY,
  corpus TEXT REFERENCES corpus(name) ON DELETE SET NULL,
  format TEXT NOT NULL,
  questions INTEGER NOT NULL,
  content_hash TEXT NOT NULL,
  created_at TEXT NOT NULL
) STRICT;
CREATE INDEX question_set_corpus ON question_set(corpus);

CREATE TABLE question (
  question_set TEXT NOT NULL REFERENCES question_set(name) ON DELETE CASCADE,
  position INTEGER NOT NULL,
  id TEXT NOT NULL,
  labelled TEXT NOT NULL,
  PRIMARY KEY (question_set, position),
  UNIQUE (question_set, id)
) STRICT;

CREATE TABLE model (
  name TEXT PRIMARY KEY,
  kind TEXT NOT NULL,
  path TEXT NOT NULL,
  sha256 TEXT NOT NULL,
  architecture TEXT NOT NULL,
  parameters INTEGER NOT NULL,
  adapter_of TEXT REFERENCES model(name)
) STRICT;

CREATE TABLE run (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('running', 'finished', 'stopped', 'failed')),
  question_set TEXT REFERENCES question_set(name),
  corpus TEXT REFERENCES corpus(name),
  config TEXT NOT NULL,
  config_hash TEXT NOT NULL,
  code_version TEXT NOT NULL,
  shard TEXT,
  error TEXT,
  created_at TEXT NOT NULL,
  took_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX run_question_set ON run(question_set);
CREATE INDEX run_corpus ON run(corpus);

CREATE TABLE episode (
  run_id TEXT NOT NULL REFERENCES run(id) ON DELETE CASCADE,
  question_id TEXT NOT NULL,
  position INTEGER NOT NULL,
  -- Only where the run has no question set to hold it.
  question_json TEXT,
  status TEXT NOT NULL CHECK (status IN ('pending', 'finished', 'failed')),
  answer TEXT,
  termination TEXT,
  em REAL,
  f1 REAL,
  accuracy REAL,
  evidence_recall REAL,
  searches INTEGER NOT NULL DEFAULT 0,
  malformed_steps INTEGER NOT NULL DEFAULT 0,
  usage_prompt INTEGER NOT NULL DEFAULT 0,
  usage_cached INTEGER NOT NULL DEFAULT 0,
  usage_generated INTEGER NOT NULL DEFAULT 0,
  took_ms INTEGER NOT NULL DEFAULT 0,
  error TEXT,
  PRIMARY KEY (run_id, question_id)
) STRICT;

CREATE TABLE step (
  step_key INTEGER PRIMARY KEY,
  run_id TEXT NOT NULL,
  question_id TEXT NOT NULL,
  step_idx INTEGER NOT NULL,
  truncated INTEGER NOT NULL,
  prompt TEXT,
  dropped TEXT NOT NULL,
  chosen INTEGER NOT NULL,
  finding TEXT,
  usage_prompt INTEGER NOT NULL,
  usage_cached INTEGER NOT NULL,
  usage_generated INTEGER NOT NULL,
  took_ms INTEGER NOT NULL,
  UNIQUE (run_id, question_id, step_idx),
  FOREIGN KEY (run_id, question_id) REFERENCES episode(run_id, question_id) ON DELETE CASCADE
) STRICT;

CREATE TABLE candidate (
  step_key INTEGER NOT NULL REFERENCES step(step_key) ON DELETE CASCADE,
  candidate_idx INTEGER NOT NULL,
  text TEXT NOT NULL,
  reasoning TEXT,
  action TEXT NOT NULL,
  -- Little-endian u32 and f32, one per token.
  token_ids BLOB NOT NULL,
  token_logprobs BLOB NOT NULL,
  multiplicity INTEGER NOT NULL,
  redundant INTEGER NOT NULL,
  reward REAL,
  PRIMARY KEY (step_key, candidate_idx)
) STRICT;

CREATE TABLE step_passage (
  step_key INTEGER NOT NULL REFERENCES step(step_key) ON DELETE CASCADE,
  position INTEGER NOT NULL,
  passage_key INTEGER NOT NULL REFERENCES passage(passage_key),
  score REAL NOT NULL,
  rank INTEGER NOT NULL,
  PRIMARY KEY (step_key, position)
) STRICT;
CREATE INDEX step_passage_passage ON step_passage(passage_key);

CREATE TABLE verdict (
  run_id TEXT NOT NULL,
  question_id TEXT NOT NULL,
  step_idx INTEGER NOT NULL,
  -- 'run' for the verdict that chose the step's candidate.
  judge_id TEXT NOT NULL,
  rewards TEXT,
  rationale TEXT,
  latency_ms INTEGER NOT NULL,
  PRIMARY KEY (run_id, question_id, step_idx, judge_id),
  FOREIGN KEY (run_id, question_id, step_idx) REFERENCES step(run_id, question_id, step_idx) ON DELETE CASCADE
) STRICT;

CREATE TABLE finding (
  key TEXT PRIMARY KEY,
  finding TEXT NOT NULL
) STRICT;
