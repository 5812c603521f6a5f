import type { ModelView, Overview, TrainRequest } from "../ipc";
import { spelled } from "./command";

export const METHODS = [
  { id: "sft", label: "SFT", hint: "imitates good actions", rate: 5e-4 },
  { id: "dpo", label: "DPO", hint: "prefers chosen actions to rejected ones", rate: 1e-4 },
  { id: "prm", label: "Reward model", hint: "learns to score candidates, and guides any agent", rate: 3e-4 },
] as const;

/** Encoders, and reward models that are one: trained as a whole. */
export function isEncoder(model: ModelView | undefined): boolean {
  return model?.architecture === "bert";
}

/** The usual learning rate of an encoder. */
export const ENCODER_RATE = 5e-5;

/** Models that can be trained: files and adapters of files; as reward models also encoders and reward models. */
export function trainable(overview: Overview, method: string) {
  return overview.models.filter((model) => (model.kind === "language" || (method === "prm" && (isEncoder(model) || model.kind === "reward"))));
}

/** What a test measures must not be learnt; the program refuses it in any case. */
export function teaching(overview: Overview) {
  return overview.question_sets.filter((set) => !/test/i.test(set.name));
}

export function nextName(method: string, taken: string[]): string {
  let n = 1;
  while (taken.includes(`${method}-${n}`)) n += 1;
  return `${method}-${n}`;
}

export function defaultTraining(overview: Overview, taken: string[]): TrainRequest {
  const sets = teaching(overview);
  const set = sets.find((set) => /train/i.test(set.name)) ?? sets[0];
  return {
    method: "sft",
    runs: [],
    judge: null,
    any_outcome: false,
    files: [],
    expert: set ? [set.name] : [],
    agents: ["search-o1"],
    corpus: null,
    limit: null,
    readings: null,
    counterfactuals: 0,
    clozes: 0,
    k: 3,
    base: trainable(overview, "sft")[0]?.name ?? "",
    out: nextName("sft", taken),
    rank: 16,
    alpha: 32,
    targets: ["q", "k", "v"],
    learning_rate: null,
    schedule: "linear",
    warm_up: 0.05,
    epochs: 1,
    batch: 8,
    beta: 0.1,
    centre: 0.01,
    dropout: 0,
    max_length: 1024,
    eval_ratio: 0.1,
    eval_every: 0,
    patience: 0,
    seed: 0,
  };
}

/** What keeps the training from starting, if anything. */
export function missing(request: TrainRequest): string | null {
  if (!request.runs.length && !request.files.length && !request.expert.length) return "Choose something to learn from.";
  if (request.expert.length && !request.agents.length) return "Choose the agents that the gold evidence is shown to.";
  const { counterfactuals, clozes, rank, alpha, epochs, batch, k, seed, warm_up, dropout, max_length, eval_ratio, eval_every, patience, beta, centre } = request;
  if ([counterfactuals, clozes, rank, alpha, epochs, batch, k, seed, warm_up, dropout, max_length, eval_ratio, eval_every, patience, beta, centre].some((value) => value == null)) return "A number is missing.";
  if (!request.base) return "Choose a model to train.";
  if (!/^[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}$/.test(request.out)) return "The name has letters, digits, “-”, “_” or “.” only.";
  return null;
}

/** The request without what its method does not use. */
export function settled(request: TrainRequest): TrainRequest {
  const sft = request.method === "sft";
  const judged = !sft && request.runs.length > 0;
  return { ...request, readings: sft ? request.readings : null, clozes: sft ? request.clozes : 0, judge: judged ? request.judge : null, any_outcome: judged && request.any_outcome, out: request.out.trim() };
}

/** The command that does the same as the form. */
export function trainCommand(draft: TrainRequest): string {
  const request = settled(draft);
  const gold = request.expert.length > 0;
  return spelled(`rag-gym train ${request.method}`, [
    ["from", request.runs.join()],
    ["judge", request.judge],
    ["any-outcome", request.any_outcome],
    ["data", request.files.join()],
    ["expert", gold ? request.expert.join() : null],
    ["agents", gold ? request.agents.join() : null],
    ["corpus", gold ? request.corpus : null],
    ["limit", gold ? request.limit : null],
    ["readings", gold ? request.readings : null],
    ["counterfactuals", gold ? request.counterfactuals || null : null],
    ["clozes", gold ? request.clozes || null : null],
    ["k", gold ? request.k : null],
    ["base", request.base],
    ["out", request.out],
    ["rank", request.rank],
    ["alpha", request.alpha],
    ["targets", request.targets.join()],
    ["lr", request.learning_rate],
    ["schedule", request.schedule],
    ["warm-up", request.warm_up],
    ["epochs", request.epochs],
    ["batch", request.batch],
    ["beta", request.method === "dpo" ? request.beta : null],
    ["centre", request.method === "prm" ? request.centre : null],
    ["dropout", request.dropout],
    ["max-length", request.max_length],
    ["eval-ratio", request.eval_ratio],
    ["eval-every", request.eval_every],
    ["patience", request.patience],
    ["seed", request.seed],
  ]);
}
