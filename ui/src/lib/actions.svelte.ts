import { untrack } from "svelte";
import { go, PLACES, type Place } from "./route";

/** What candidates are called by the one who judges them. */
export const LETTERS = "abcdefghijklmnopqrs";

/** Everything a key does. The palette, the sheet of shortcuts and the tooltips are made from this list. */
export const ACTIONS = [
  ...PLACES.map((place, i) => ({ id: `go.${place.id}` as const, label: `Go to ${place.label}`, keys: [String(i + 1)], where: "Everywhere" })),
  { id: "palette", label: "Find anything", keys: ["Ctrl+K"], where: "Everywhere" },
  { id: "search", label: "Search or filter here", keys: ["/"], where: "Everywhere" },
  { id: "back", label: "Back, close, leave a field", keys: ["Escape"], where: "Everywhere" },
  { id: "sheet", label: "Keyboard shortcuts", keys: ["?"], where: "Everywhere" },
  { id: "theme", label: "Switch between light and dark", keys: ["t"], where: "Everywhere" },
  { id: "larger", label: "Larger text", keys: ["Ctrl+=", "Ctrl++"], where: "Everywhere" },
  { id: "smaller", label: "Smaller text", keys: ["Ctrl+-"], where: "Everywhere" },
  { id: "ask.stop", label: "Stop answering", keys: ["s"], where: "Ask" },
  { id: "ask.beside", label: "Ask the same of another agent", keys: ["b"], where: "Ask" },
  { id: "ask.history", label: "Earlier questions", keys: ["e"], where: "Ask" },
  { id: "ask.open", label: "Open as an episode", keys: ["i"], where: "Ask" },
  { id: "runs.new", label: "New run", keys: ["n"], where: "Runs" },
  { id: "runs.compare", label: "Compare the selected runs", keys: ["c"], where: "Runs" },
  { id: "run.pause", label: "Pause or resume this run", keys: [" "], where: "One run" },
  { id: "run.export", label: "Export this run", keys: ["x"], where: "One run" },
  { id: "train.new", label: "New training", keys: ["n"], where: "Train" },
  { id: "train.overlay", label: "Draw the selected trainings together", keys: ["c"], where: "Train" },
  { id: "train.pause", label: "Pause or resume this training", keys: [" "], where: "Train" },
  { id: "train.log", label: "Logarithmic axis", keys: ["l"], where: "Train" },
  { id: "train.table", label: "Table of the steps", keys: ["e"], where: "Train" },
  { id: "rank.best", label: "The next best candidate", keys: [...LETTERS], spelled: "a – s", where: "Annotate" },
  { id: "rank.worst", label: "A candidate to avoid", keys: [...LETTERS.toUpperCase()], spelled: "A – S", where: "Annotate" },
  { id: "rank.keep", label: "Keep the verdict, go on", keys: ["Enter"], where: "Annotate" },
  { id: "rank.abstain", label: "Cannot tell", keys: ["x"], where: "Annotate" },
  { id: "rank.undo", label: "Undo", keys: ["u", "Backspace"], where: "Annotate" },
  { id: "rank.end", label: "End here, see the agreement", keys: ["v"], where: "Annotate" },
  { id: "step.next", label: "Next step", keys: ["j"], where: "Episode" },
  { id: "step.previous", label: "Previous step", keys: ["k"], where: "Episode" },
  { id: "candidate.next", label: "Next candidate", keys: ["l"], where: "Episode" },
  { id: "candidate.previous", label: "Previous candidate", keys: ["h"], where: "Episode" },
  { id: "question.next", label: "Next question", keys: ["L", "]"], where: "Episode" },
  { id: "question.previous", label: "Previous question", keys: ["H", "["], where: "Episode" },
  { id: "passages", label: "Open or fold passages", keys: ["o"], where: "Episode" },
  { id: "gold", label: "Show or hide gold", keys: ["g"], where: "Episode" },
  { id: "raw", label: "Raw text", keys: ["r"], where: "Episode" },
  { id: "rewards", label: "Every judge’s rewards", keys: ["w"], where: "Episode" },
  { id: "copy", label: "Copy the candidate", keys: ["c"], where: "Episode" },
  { id: "present", label: "Present", keys: ["p"], where: "Ask, Episode" },
  { id: "frame.next", label: "Unfold the next part", keys: [" ", "ArrowRight", "j"], where: "Present" },
  { id: "frame.previous", label: "Back one part", keys: ["ArrowLeft", "k"], where: "Present" },
  { id: "fullscreen", label: "Full screen", keys: ["f"], where: "Present" },
] as const satisfies { id: string; label: string; keys: string[]; spelled?: string; where: string }[];

export type ActionId = (typeof ACTIONS)[number]["id"];
/** A handler is told the key; nothing where it was chosen from the palette. */
export type Handlers = Partial<Record<ActionId, (key?: string) => void>>;

/** Who answers to which action now; the latest binding counts. */
let bound = $state.raw<Handlers[]>([]);

/** Binds handlers until the returned function is called: `$effect(() => bind({…}))`. */
export function bind(handlers: Handlers): () => void {
  // The effect that binds must not run again because something was bound.
  untrack(() => (bound = [...bound, handlers]));
  return () => (bound = bound.filter((other) => other !== handlers));
}

export function handler(id: ActionId): ((key?: string) => void) | undefined {
  return bound.findLast((handlers) => handlers[id])?.[id];
}

/** Actions that would do something now, without a key that says with what. */
export function available() {
  return ACTIONS.filter((action) => handler(action.id) && !("spelled" in action));
}

/** The action a key press means, if anything is bound to it. Single keys mean nothing while typing. */
export function pressed(event: KeyboardEvent): ActionId | null {
  const command = event.ctrlKey || event.metaKey;
  if (event.altKey) return null;
  const key = command ? `Ctrl+${event.key.length === 1 ? event.key.toUpperCase() : event.key}` : event.key;
  const target = event.target instanceof HTMLElement ? event.target : null;
  if (!command && key !== "Escape" && target?.matches("input:not([type=checkbox], [type=range]), textarea, select")) return null;
  // Space and Enter belong to the button, link or box that has the focus.
  if ((key === " " || key === "Enter") && target?.matches("button, a, summary, input, [role=button], tr")) return null;
  return ACTIONS.findLast((action) => (action.keys as readonly string[]).includes(key) && handler(action.id))?.id ?? null;
}

/** "Ctrl+K" as this machine's keyboard spells it. */
export function spelled(key: string): string {
  const mac = /Mac/.test(navigator.platform);
  return key.replace("Ctrl+", mac ? "⌘" : "Ctrl ").replace("Escape", "Esc").replace("ArrowRight", "→").replace("ArrowLeft", "←").replace(/^ $/, "Space");
}

export function keyOf(id: ActionId): string {
  const action = ACTIONS.find((action) => action.id === id);
  return action ? (keysOf(action)[0] ?? "") : "";
}

/** An action's keys as people read them. */
export function keysOf(action: (typeof ACTIONS)[number]): string[] {
  return "spelled" in action ? [action.spelled] : action.keys.map(spelled);
}

export const PLACE_HANDLERS = Object.fromEntries(PLACES.map((place) => [`go.${place.id}`, () => go(place.id as Place)])) as Handlers;
