/** uPlot asks for the number format of the machine's language as it is loaded. A machine that is set to none,
 * as by LANG=C, names one that no browser knows; without this the whole page would stay empty there. */
try {
  new Intl.NumberFormat(navigator.language);
} catch {
  Object.defineProperty(navigator, "language", { value: "en" });
}
