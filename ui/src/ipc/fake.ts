/** A program that is not there: what the page's tests talk to. Every call not given fails. */
import type { Api } from "./index";

export function fake(given: Partial<Api>): Api {
  return new Proxy(given, {
    get(target, name) {
      const call = Reflect.get(target, name) as unknown;
      if (call) return call;
      return () => Promise.reject({ code: "fake", message: `the test gave no \`${String(name)}\`` });
    },
  }) as Api;
}
