import { mount } from "svelte";
import App from "./App.svelte";
import "./app.css";
import { applyTheme, storedTheme } from "./lib/theme";

applyTheme(storedTheme());
document.documentElement.style.fontSize = `${(16 * Number(localStorage.getItem("scale") ?? "100")) / 100}px`;
const target = document.getElementById("app");
if (target) mount(App, { target });
