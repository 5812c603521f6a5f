import { api, errorOf, type AgentSettings, type ErrorView, type JobView, type Overview } from "../ipc";
import { defaultSettings } from "./command";
import { idle, take, type Live } from "./live";

/** What every place shares: the overview, the jobs, and the question being answered. */
class Shared {
  overview = $state<Overview | null>(null);
  error = $state<ErrorView | null>(null);
  jobs = $state<JobView[]>([]);
  question = $state("");
  asked = $state("");
  live = $state<Live>(idle());
  settings = $state<AgentSettings | null>(null);
  #key = "";

  async refresh() {
    try {
      const overview = await api.overview();
      this.overview = overview;
      this.error = null;
      if (!this.question && !this.asked) this.question = overview.sample_question;
      if (!this.settings) this.settings = restored(overview);
    } catch (thrown) {
      this.error = errorOf(thrown);
    }
  }

  async refreshJobs() {
    const before = this.jobs.length;
    try {
      this.jobs = await api.jobs();
    } catch {
      return;
    }
    if (this.jobs.length !== before) await this.refresh();
  }

  get busy() {
    return this.live.phase === "loading" || this.live.phase === "running";
  }

  async ask() {
    const question = this.question.trim();
    if (!question || !this.settings || this.busy) return;
    const key = crypto.randomUUID();
    this.#key = key;
    this.asked = question;
    this.live = { ...idle(), phase: "loading", model: this.settings.model };
    const settings = $state.snapshot(this.settings);
    localStorage.setItem("settings", JSON.stringify(settings));
    try {
      const episode = await api.ask(key, { question, settings }, (events) => {
        if (this.#key === key) for (const event of events) take(this.live, event);
      });
      if (this.#key === key && this.live.phase !== "finished") {
        take(this.live, { kind: "finished", episode });
      }
    } catch (thrown) {
      const error = errorOf(thrown);
      if (this.#key !== key) return;
      take(this.live, error.code === "cancelled" ? { kind: "cancelled" } : { kind: "failed", error });
    }
  }

  async stop() {
    await api.stop(this.#key);
  }
}

function restored(overview: Overview): AgentSettings {
  const models = overview.models.filter((model) => model.kind === "language" || model.kind === "endpoint");
  const settings = defaultSettings(overview.corpora[0]?.name ?? "factbook", models[0]?.name ?? "smollm2-135m");
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
  settings.judge = null;
  return settings;
}

export const shared = new Shared();
