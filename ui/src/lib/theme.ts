export type Theme = "system" | "light" | "dark";

const dark = () => window.matchMedia("(prefers-color-scheme: dark)");

export function storedTheme(): Theme {
  const theme = localStorage.getItem("theme");
  return theme === "light" || theme === "dark" ? theme : "system";
}

export function applyTheme(theme: Theme) {
  localStorage.setItem("theme", theme);
  const shown = theme === "system" ? (dark().matches ? "dark" : "light") : theme;
  document.documentElement.dataset["theme"] = shown;
}

export function toggleTheme() {
  applyTheme(document.documentElement.dataset["theme"] === "dark" ? "light" : "dark");
}

dark().addEventListener("change", () => applyTheme(storedTheme()));

/** Text size in percent. */
export function storedScale(): number {
  return clamped(Number(localStorage.getItem("scale") ?? "100"));
}

export function applyScale(scale: number): number {
  const size = clamped(scale);
  localStorage.setItem("scale", String(size));
  document.documentElement.style.fontSize = `${(16 * size) / 100}px`;
  return size;
}

const clamped = (scale: number) => Math.min(180, Math.max(80, Math.round(scale / 10) * 10 || 100));
