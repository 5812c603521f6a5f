import type { AgentSettings, RunRequest } from "../ipc";

export const AGENTS = [
  { id: "direct", label: "Direct", hint: "answers from memory" },
  { id: "cot", label: "Chain of thought", hint: "reasons, then answers" },
  { id: "rag", label: "RAG", hint: "one search, then answers" },
  { id: "react", label: "ReAct", hint: "reasons and searches by turns" },
  { id: "search-o1", label: "Search-o1", hint: "reads what it finds before going on" },
  { id: "research", label: "Re²Search", hint: "reasons, finds unverified claims, searches for them" },
] as const;

export function defaultSettings(corpus: string, model: string): AgentSettings {
  return {
    corpus,
    agent: "search-o1",
    model,
    reader: null,
    prompt: null,
    k: 3,
    max_steps: 5,
    candidates: 3,
    temperature: 1,
    max_tokens: 192,
    seed: 0,
    judge: null,
    reward_model: null,
    select: null,
  };
}

/** The command that does the same as the form. */
export function commandLine(request: RunRequest): string {
  const { settings } = request;
  const options: [string, string | number | null | undefined][] = [
    ["questions", request.questions],
    ["corpus", settings.corpus],
    ["agent", settings.agent],
    ["model", settings.model],
    ["reader", settings.reader],
    ["prompt", settings.prompt],
    ["k", settings.k],
    ["max-steps", settings.max_steps],
    ["candidates", settings.candidates],
    ["temperature", settings.temperature],
    ["max-tokens", settings.max_tokens],
    ["seed", settings.seed],
    ["judge", settings.judge],
    ["reward-model", settings.reward_model],
    ["select", settings.select],
    ["limit", request.limit],
    ["name", request.name || null],
  ];
  return spelled("rag-gym run", options);
}

/** A command with those of its options that have a value, and its flags that are set. */
export function spelled(command: string, options: [string, string | number | boolean | null | undefined][]): string {
  const given = options.filter(([, value]) => value != null && value !== "" && value !== false);
  return [command, ...given.map(([name, value]) => (value === true ? `--${name}` : `--${name} ${quoted(String(value))}`))].join(" ");
}

function quoted(value: string): string {
  return /^[\w./:=+,-]+$/.test(value) ? value : `'${value.replaceAll("'", `'\\''`)}'`;
}
