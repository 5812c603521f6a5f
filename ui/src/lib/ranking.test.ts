import { expect, test } from "vitest";
import { isEmpty, label, name, none } from "./ranking";

test("candidates are named in the order of the keys, and a second press takes a name back", () => {
  const ranking = [2, 0].reduce((ranking, candidate) => name(ranking, candidate, "best"), name(none, 1, "worst"));
  expect([0, 1, 2, 3].map((candidate) => label(ranking, candidate))).toEqual(["2nd", "avoid", "best", null]);
  expect(name(ranking, 2, "best")).toEqual({ best: [0], worst: [1] });
  expect(name(ranking, 2, "worst")).toEqual({ best: [0], worst: [1, 2] });
  expect([isEmpty(none), isEmpty(ranking), isEmpty(name(name(none, 4, "worst"), 4, "worst"))]).toEqual([true, false, true]);
});
