import { api, errorOf, type AgentSettings, type ErrorView, type JobView, type Overview, type TrainingView, type TrainRequest } from "../ipc";
import { defaultSettings } from "./command";
import { idle, take, told, type Live } from "./live";

/** One question being answered, or one that was. */
export class Asking {
  question = $state("");
  settings = $state<AgentSettings | null>(null);
  live = $state<Live>(idle());
  #key = "";

  get busy() {
    return this.live.phase === "loading" || this.live.phase === "running";
  }

  /** Answers the question; events of an earlier one are not heard any more. */
  async ask(question: string, settings: AgentSettings): Promise<void> {
    const key = crypto.randomUUID();
    this.#key = key;
    this.question = question;
    this.settings = settings;
    this.live = { ...idle(), phase: "loading", model: settings.model };
    try {
      const episode = await api.ask(key, { question, settings }, (events) => {
        if (this.#key === key) for (const event of events) take(this.live, event);
      });
      if (this.#key === key && this.live.phase !== "finished") take(this.live, { kind: "finished", episode });
    } catch (thrown) {
      const error = errorOf(thrown);
      if (this.#key === key) take(this.live, error.code === "cancelled" ? { kind: "cancelled" } : { kind: "failed", error });
    }
  }

  /** Shows a question that was asked before, from the store. */
  async recall(run: string): Promise<void> {
    this.#key = run;
    const [view, [row]] = await Promise.all([api.run(run), api.episodes(run)]);
    if (!row) throw { code: "not_found", message: "This question left no trace: it was stopped before its first step." };
    const episode = await api.episode(run, row.question_id);
    if (this.#key !== run) return;
    this.question = episode.question;
    this.settings = view.settings;
    this.live = told(episode);
  }

  async stop() {
    await api.stop(this.#key);
  }
}

/** What every place shares: the overview, the jobs, and the question on the Ask screen. */
class Shared {
  overview = $state<Overview | null>(null);
  error = $state<ErrorView | null>(null);
  /** Something that no screen expected. */
  fault = $state<ErrorView | null>(null);
  jobs = $state<JobView[]>([]);
  /** Newest first. */
  trainings = $state.raw<TrainingView[]>([]);
  /** What the form of the next training begins with. */
  draft = $state<TrainRequest | null>(null);
  question = $state("");
  settings = $state<AgentSettings | null>(null);
  asking = new Asking();
  beside = $state<Asking | null>(null);
  /** Counts the changes to the list of runs. */
  runsChanged = $state(0);
  #typed = false;

  async refresh() {
    try {
      const [overview, trainings] = await Promise.all([api.overview(), api.trainings()]);
      this.overview = overview;
      this.trainings = trainings;
      this.error = null;
      if (!this.#typed && !this.question) this.question = overview.sample_question;
      this.#typed = true;
      this.settings ??= restored(overview);
      this.runsChanged += 1;
    } catch (thrown) {
      this.error = errorOf(thrown);
    }
  }

  /** Hears how far the jobs are; when one began or ended, the lists are read again. */
  async refreshJobs() {
    const which = () => this.jobs.map((job) => job.kind + job.run).join();
    const before = which();
    try {
      const jobs = (await api.jobs()).toSorted((a, b) => a.run.localeCompare(b.run));
      if (jobs.length || this.jobs.length) this.jobs = jobs;
    } catch {
      return;
    }
    if (which() !== before) await this.refresh();
  }

  get busy() {
    return this.asking.busy || (this.beside?.busy ?? false);
  }

  async ask(question = this.question) {
    const text = question.trim();
    if (!text || !this.settings || this.busy) return;
    this.question = text;
    this.beside = null;
    const settings = $state.snapshot(this.settings);
    localStorage.setItem("settings", JSON.stringify(settings));
    await this.asking.ask(text, settings);
    await this.refresh();
  }

  /** Asks the question on screen of another agent, whose steps are shown beside the first's. */
  async askBeside(agent: string) {
    const { question, settings } = this.asking;
    if (!question || !settings || this.busy) return;
    this.beside = new Asking();
    await this.beside.ask(question, { ...$state.snapshot(settings), agent });
    await this.refresh();
  }

  async stop() {
    await Promise.all([this.asking.busy && this.asking.stop(), this.beside?.busy && this.beside.stop()]);
  }
}

function restored(overview: Overview): AgentSettings {
  const models = answering(overview);
  const model = models.find((model) => model.name === overview.default_model) ?? models[0];
  const settings = defaultSettings(overview.corpora[0]?.name ?? "factbook", model?.name ?? overview.default_model);
  // One question is asked to see how ranking works, so it is ranked wherever its gold is known.
  settings.judge = "evidence";
  try {
    const kept: unknown = JSON.parse(localStorage.getItem("settings") ?? "null");
    if (typeof kept === "object" && kept !== null) Object.assign(settings, kept);
  } catch {
    // Settings of an older version: the defaults serve.
  }
  if (overview.corpora.length && !overview.corpora.some((corpus) => corpus.name === settings.corpus)) {
    settings.corpus = overview.corpora[0]?.name ?? settings.corpus;
  }
  if (models.length && !models.some((model) => model.name === settings.model)) {
    settings.model = models[0]?.name ?? settings.model;
  }
  if (!overview.models.some((model) => model.name === settings.reward_model)) settings.reward_model = null;
  if (!models.some((model) => model.name === settings.reader)) settings.reader = null;
  return settings;
}

/** Models that can answer: local ones and endpoints. */
export function answering(overview: Overview) {
  return overview.models.filter((model) => model.kind === "language" || model.kind === "endpoint");
}

export const shared = new Shared();
