export type Theme = "system" | "light" | "dark";

const KEY = "theme";
const dark = () => window.matchMedia("(prefers-color-scheme: dark)");

export function storedTheme(): Theme {
  const theme = localStorage.getItem(KEY);
  return theme === "light" || theme === "dark" ? theme : "system";
}

export function applyTheme(theme: Theme) {
  localStorage.setItem(KEY, theme);
  const shown = theme === "system" ? (dark().matches ? "dark" : "light") : theme;
  document.documentElement.dataset["theme"] = shown;
}

dark().addEventListener("change", () => applyTheme(storedTheme()));
