import { expect, test } from "vitest";
import { useApi, type AskEvent, type EpisodeView } from "../ipc";
import { fake } from "../ipc/fake";
import { defaultSettings } from "./command";
import { Asking } from "./state.svelte";

const settings = defaultSettings("factbook", "small");
const episode = { run: "r", question_id: "q", question: "?", steps: [] } as unknown as EpisodeView;

test("events of an earlier question are not heard any more", async () => {
  const heard: ((events: AskEvent[]) => void)[] = [];
  const ends: ((episode: EpisodeView) => void)[] = [];
  useApi(fake({ ask: (_key, _request, events) => { heard.push(events); return new Promise((end) => ends.push(end)); } }));
  const asking = new Asking();
  const first = asking.ask("one?", settings);
  const second = asking.ask("two?", settings);
  heard[0]?.([{ kind: "step_started", step_idx: 0, prompt: [], dropped: [], candidates: 1 }]);
  ends[0]?.(episode);
  await first;
  expect([asking.question, asking.live.steps.length, asking.busy]).toEqual(["two?", 0, true]);
  ends[1]?.(episode);
  await second;
  expect([asking.live.phase, asking.busy]).toEqual(["finished", false]);
});

test("a stopped question is no failure, a broken one is", async () => {
  const asking = new Asking();
  useApi(fake({ ask: () => Promise.reject({ code: "cancelled", message: "" }) }));
  await asking.ask("?", settings);
  expect(asking.live.phase).toBe("cancelled");
  useApi(fake({ ask: () => Promise.reject({ code: "model", message: "no file" }) }));
  await asking.ask("?", settings);
  expect(asking.live).toMatchObject({ phase: "failed", error: { code: "model", message: "no file" } });
});
