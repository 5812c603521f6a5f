import { api, errorOf, type ErrorView, type Progress } from "../ipc";
import { Meter, type Pace } from "./pace";

/** Work that goes on when its screen is left: a set-up, an import, a judging. */
export class Task {
  running = $state(false);
  progress = $state<Progress | null>(null);
  pace = $state<Pace | null>(null);
  error = $state<ErrorView | null>(null);
  /** What came of the last one, in words. */
  said = $state("");

  /** `key`: what the work is stopped by. */
  constructor(readonly key: string) {}

  /** Refuses a second one beside the first. `null` if it failed or was stopped. */
  async run<T>(work: (key: string, heard: (progress: Progress) => void) => Promise<T>, stopped = "Stopped."): Promise<T | null> {
    if (this.running) return null;
    this.running = true;
    this.progress = this.pace = this.error = null;
    this.said = "";
    const meter = new Meter();
    try {
      return await work(this.key, (progress) => {
        this.progress = progress;
        meter.take(performance.now(), progress.done ?? 0);
        this.pace = meter.pace(progress.total ?? 0);
      });
    } catch (thrown) {
      const error = errorOf(thrown);
      if (error.code === "cancelled") this.said = stopped;
      else this.error = error;
      return null;
    } finally {
      this.running = false;
    }
  }

  async stop() {
    await api.stop(this.key);
  }
}

const tasks = new Map<string, Task>();

/** The task of this key, whichever screen began it. */
export function taskOf(key: string): Task {
  const task = tasks.get(key) ?? new Task(key);
  tasks.set(key, task);
  return task;
}
