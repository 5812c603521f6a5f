import { mount } from "svelte";
import App from "./App.svelte";
import "./app.css";
import { errorOf } from "./ipc";
import { shared } from "./lib/state.svelte";
import { applyScale, applyTheme, storedScale, storedTheme } from "./lib/theme";

applyTheme(storedTheme());
applyScale(storedScale());
// What no screen expected is shown, not swallowed.
window.addEventListener("unhandledrejection", (event) => (shared.fault = errorOf(event.reason)));
window.addEventListener("error", (event) => {
  // A resize observer that needs another frame says so as an error; it is none.
  if (!event.message.startsWith("ResizeObserver")) shared.fault = errorOf(event.error ?? new Error(event.message));
});
const target = document.getElementById("app");
if (target) mount(App, { target });
