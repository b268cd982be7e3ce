/* The address: #/PAGE?name=value. Names that begin with ~ say how a page is looked at (a pinned node, what was typed) and are never sent. */
import { embedded } from "./embedded";

type Values = Record<string, string>;

const KEY = "assay-token";
const START = "overview";

class Route {
  page = $state(START);
  params: Values = $state({});
  view: Values = $state({});

  constructor() {
    this.takeToken();
    this.read();
    addEventListener("hashchange", () => { this.takeToken(); this.read(); });
  }

  /* The token comes in the address once and is taken out of it at once. */
  private takeToken() {
    const found = /^#token=([^&]+)(?:&next=(.*))?$/.exec(location.hash);
    if (!found) return;
    remember(decodeURIComponent(found[1]!));
    replace("#/" + (found[2] ? decodeURIComponent(found[2]).replace(/^[#/]+/, "") : START));
  }

  read() {
    const [path, query] = location.hash.replace(/^#\/?/, "").split("?", 2);
    if (embedded) return;
    const params: Values = {}, view: Values = {};
    for (const [name, value] of new URLSearchParams(query ?? "")) (name.startsWith("~") ? view : params)[name] = value;
    this.page = decodeURIComponent(path || "") || START;
    this.params = params;
    this.view = view;
  }

  /* The address of this page with other arguments; empty ones are left out. */
  href(change: Record<string, string | number | null | undefined>, page = this.page): string {
    const all = new URLSearchParams();
    for (const [name, value] of Object.entries({ ...this.params, ...change })) if (value !== null && value !== undefined && value !== "") all.set(name, String(value));
    return address(page, all);
  }

  /* Say how the page is looked at, without loading anything. */
  look(name: string, value: string | null) {
    const view = { ...this.view };
    if (value === null || value === "") delete view["~" + name];
    else view["~" + name] = value;
    this.view = view;
    if (!embedded) replace(address(this.page, new URLSearchParams({ ...this.params, ...view })));
  }

  seen(name: string): string | undefined { return this.view["~" + name]; }
}

function address(page: string, query: URLSearchParams): string {
  const text = query.toString();
  return `#/${encodeURIComponent(page)}${text ? "?" + text : ""}`;
}

function replace(hash: string) {
  try { history.replaceState(history.state, "", hash); } catch { /* a page inside a notebook has no address of its own */ }
}

let held = "";

function remember(token: string) {
  held = token;
  try { sessionStorage.setItem(KEY, token); } catch { /* kept as long as the page is open */ }
}

function token(): string {
  if (held) return held;
  try { held = sessionStorage.getItem(KEY) ?? ""; } catch { held = ""; }
  return held;
}

/* A tab without the token, as of a link that was opened in a new one, asks the others of this browser. It lasts no longer than they do. */
const WAIT = 400;
const tabs = embedded ? null : new BroadcastChannel(KEY);
let asked: Promise<string> | null = null;

tabs?.addEventListener("message", ({ data }: MessageEvent<{ ask?: boolean }>) => { if (data.ask && token()) tabs.postMessage({ token: token() }); });

export function findToken(): Promise<string> {
  if (token() || !tabs) return Promise.resolve(token());
  asked ??= new Promise<string>((done) => {
    const timer = setTimeout(() => { asked = null; done(token()); }, WAIT);
    tabs.addEventListener("message", ({ data }: MessageEvent<{ token?: string }>) => {
      if (!data.token || token()) return;
      clearTimeout(timer);
      remember(data.token);
      done(data.token);
    });
    tabs.postMessage({ ask: true });
  });
  return asked;
}

export const route = new Route();
