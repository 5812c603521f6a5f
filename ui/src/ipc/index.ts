/** The only way from the page to the program. Tests put `fake.ts` in its place. */
import { Channel } from "@tauri-apps/api/core";
import { getCurrentWebview } from "@tauri-apps/api/webview";
import { getCurrentWindow } from "@tauri-apps/api/window";
import { open, save } from "@tauri-apps/plugin-dialog";
import { commands } from "./bindings";
import type {
  AgreementView,
  AskEvent,
  AskRequest,
  Check,
  Comparison,
  EpisodeRow,
  EpisodeView,
  ErrorView,
  HumanState,
  HumanView,
  ImportView,
  JobView,
  MachineReport,
  ModelView,
  Overview,
  PreviewView,
  Progress,
  QuestionPage,
  RunRequest,
  RunView,
  SearchView,
  TermView,
  TrainingView,
  TrainRequest,
  TrainStep,
  VerdictView,
} from "./bindings";

export type * from "./bindings";

export type ImportRequest = {
  kind: "corpus" | "questions";
  path: string;
  name: string;
  corpus: string | null;
  format: string | null;
};

export type EndpointRequest = { name: string; url: string; model: string; keyEnv: string | null; context: number | null; grammar: boolean };

/** A state's place in its run. */
export type StatePlace = { run: string; question: string; step: number };

export interface Api {
  overview(): Promise<Overview>;
  setUp(key: string, progress: (progress: Progress) => void): Promise<void>;
  stop(key: string): Promise<void>;
  ask(key: string, request: AskRequest, events: (events: AskEvent[]) => void): Promise<EpisodeView>;
  startRun(request: RunRequest): Promise<string>;
  resumeRun(run: string): Promise<void>;
  cancelRun(run: string): Promise<void>;
  removeRun(run: string): Promise<void>;
  jobs(): Promise<JobView[]>;
  runs(): Promise<RunView[]>;
  run(run: string): Promise<RunView>;
  episodes(run: string): Promise<EpisodeRow[]>;
  episode(run: string, question: string): Promise<EpisodeView>;
  importData(key: string, request: ImportRequest, progress: (progress: Progress) => void): Promise<ImportView>;
  removeCorpus(name: string): Promise<void>;
  preview(path: string, format: string | null): Promise<PreviewView>;
  removeQuestions(name: string): Promise<void>;
  questions(set: string, words: string, offset: number, limit: number): Promise<QuestionPage>;
  compare(runs: string[]): Promise<Comparison>;
  /** `format`: as `runs export --as` names it. Returns how many records were written. */
  exportRun(run: string, path: string, format: string): Promise<number>;
  /** `base`: the model that an adapter belongs to. */
  addModel(path: string, name: string, base: string | null): Promise<ModelView>;
  /** Returns what may keep it from working. */
  addEndpoint(request: EndpointRequest): Promise<string[]>;
  removeModel(name: string): Promise<void>;
  startTraining(request: TrainRequest): Promise<void>;
  resumeTraining(name: string): Promise<void>;
  pauseTraining(name: string): Promise<void>;
  keepTraining(name: string): Promise<void>;
  removeTraining(name: string): Promise<void>;
  trainings(): Promise<TrainingView[]>;
  training(name: string): Promise<TrainingView>;
  trainingSteps(name: string, after: number): Promise<TrainStep[]>;
  verdicts(run: string, question: string): Promise<VerdictView[]>;
  annotate(key: string, run: string, judge: string, progress: (progress: Progress) => void): Promise<number>;
  agreement(run: string, a: string, b: string): Promise<AgreementView>;
  humanStates(run: string): Promise<HumanState[]>;
  humanState(state: StatePlace): Promise<HumanView>;
  judgeByHand(state: StatePlace, best: number[], worst: number[], tookMs: number): Promise<void>;
  unjudge(state: StatePlace): Promise<void>;
  doctor(): Promise<Check[]>;
  /** Measures the machine where no figures are kept, or `again`. */
  machine(again: boolean): Promise<MachineReport>;
  search(corpus: string, query: string, k: number): Promise<SearchView>;
  explain(corpus: string, query: string, passage: string): Promise<TermView[]>;
  pickFile(folder?: boolean): Promise<string | null>;
  pickTarget(name: string): Promise<string | null>;
  fullscreen(on: boolean): Promise<void>;
  /** Calls back with the paths of files dropped on the window; returns how to stop listening. */
  onDrop(dropped: (paths: string[]) => void, over: (over: boolean) => void): Promise<() => void>;
}

function channel<T>(onmessage: (message: T) => void): Channel<T> {
  const channel = new Channel<T>();
  channel.onmessage = onmessage;
  return channel;
}

const tauri: Api = {
  overview: () => commands.overview(),
  setUp: async (key, progress) => void (await commands.setUp(key, channel(progress))),
  stop: async (key) => void (await commands.stopTask(key)),
  ask: (key, request, events) => commands.ask(key, request, channel(events)),
  startRun: (request) => commands.startRun(request),
  resumeRun: async (run) => void (await commands.resumeRun(run)),
  cancelRun: async (run) => void (await commands.cancelRun(run)),
  removeRun: async (run) => void (await commands.removeRun(run)),
  jobs: () => commands.jobs(),
  runs: () => commands.runs(),
  run: (run) => commands.runView(run),
  episodes: (run) => commands.episodes(run),
  episode: (run, question) => commands.episode(run, question),
  importData: (key, { kind, path, name, corpus, format }, progress) =>
    kind === "corpus"
      ? commands.importCorpus(key, path, name, format, channel(progress))
      : commands.importQuestions(key, path, name, corpus, format, channel(progress)),
  removeCorpus: async (name) => void (await commands.removeCorpus(name)),
  preview: (path, format) => commands.preview(path, format),
  removeQuestions: async (name) => void (await commands.removeQuestionSet(name)),
  questions: (set, words, offset, limit) => commands.questions(set, words, offset, limit),
  compare: (runs) => commands.compare(runs),
  exportRun: (run, path, format) => commands.exportRun(run, path, format),
  addModel: (path, name, base) => commands.addModel(path, name, base),
  addEndpoint: ({ name, url, model, keyEnv, context, grammar }) => commands.addEndpoint(name, url, model, keyEnv, context, grammar),
  removeModel: async (name) => void (await commands.removeModel(name)),
  startTraining: async (request) => void (await commands.startTraining(request)),
  resumeTraining: async (name) => void (await commands.resumeTraining(name)),
  pauseTraining: async (name) => void (await commands.pauseTraining(name)),
  keepTraining: async (name) => void (await commands.keepTraining(name)),
  removeTraining: async (name) => void (await commands.removeTraining(name)),
  trainings: () => commands.trainings(),
  training: (name) => commands.training(name),
  trainingSteps: (name, after) => commands.trainingSteps(name, after),
  verdicts: (run, question) => commands.verdicts(run, question),
  annotate: (key, run, judge, progress) => commands.annotate(key, run, judge, channel(progress)),
  agreement: (run, a, b) => commands.agreement(run, a, b),
  humanStates: (run) => commands.humanStates(run),
  humanState: ({ run, question, step }) => commands.humanState(run, question, step),
  judgeByHand: async ({ run, question, step }, best, worst, tookMs) => void (await commands.judgeByHand(run, question, step, best, worst, tookMs)),
  unjudge: async ({ run, question, step }) => void (await commands.unjudge(run, question, step)),
  doctor: () => commands.doctor(),
  machine: (again) => commands.machine(again),
  search: (corpus, query, k) => commands.search(corpus, query, k),
  explain: (corpus, query, passage) => commands.explain(corpus, query, passage),
  pickFile: async (folder = false) => {
    const picked = await open({ multiple: false, directory: folder });
    return typeof picked === "string" ? picked : null;
  },
  pickTarget: (name) => save({ defaultPath: name }),
  fullscreen: (on) => getCurrentWindow().setFullscreen(on),
  onDrop: (dropped, over) =>
    getCurrentWebview().onDragDropEvent(({ payload }) => {
      over(payload.type === "enter" || payload.type === "over");
      if (payload.type === "drop") dropped(payload.paths);
    }),
};

export let api: Api = tauri;

export function useApi(other: Api) {
  api = other;
}

/** What a failed command threw, as something that can be shown. */
export function errorOf(thrown: unknown): ErrorView {
  if (typeof thrown === "object" && thrown !== null && "code" in thrown && "message" in thrown) {
    return { code: String(thrown.code), message: String(thrown.message) };
  }
  return { code: "internal", message: thrown instanceof Error ? thrown.message : String(thrown) };
}
