/* What is asked of the server. Every failure is a Refused with words for people. */
import { findToken } from "./route.svelte";
import type { Fault } from "./types";

export class Refused extends Error {
  readonly status: number;
  readonly fault: Fault;

  constructor(status: number, fault: Fault) {
    super(fault.message);
    this.status = status;
    this.fault = fault;
  }
}

const AWAY: Fault = { message: "The server does not answer.", hint: "Is `assay app` still running? Start it again and open the address that it prints." };

type Asked = { method?: string; headers?: Record<string, string>; body?: string; signal?: AbortSignal | null };

async function fault(answer: Response): Promise<Fault> {
  try {
    const found = (await answer.json()) as { error?: Fault };
    if (found.error?.message) return found.error;
  } catch { /* not JSON: said below */ }
  return { message: `The server answered ${answer.status} ${answer.statusText}.` };
}

export async function ask(path: string, options: Asked = {}): Promise<Response> {
  const token = await findToken();
  const headers = token ? { Authorization: `Bearer ${token}`, ...options.headers } : options.headers ?? {};
  let answer: Response;
  try {
    answer = await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Refused(0, AWAY);
  }
  if (!answer.ok) throw new Refused(answer.status, await fault(answer));
  return answer;
}

export async function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  return (await (await ask(path, { signal: signal ?? null })).json()) as T;
}

export async function post<T>(path: string, body: unknown): Promise<T> {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  return (await (await ask(path, options)).json()) as T;
}

export type Message = { event: string; data: Record<string, unknown> };

/* Server-sent events, read by hand because the browser's own reader cannot send a token. */
export async function* events(path: string, signal: AbortSignal): AsyncGenerator<Message> {
  const answer = await ask(path, { headers: { Accept: "text/event-stream" }, signal });
  const reader = answer.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest = (rest + value).replaceAll("\r\n", "\n");
    for (let end = rest.indexOf("\n\n"); end >= 0; end = rest.indexOf("\n\n")) {
      const found = message(rest.slice(0, end));
      rest = rest.slice(end + 2);
      if (found) yield found;
    }
  }
}

function message(text: string): Message | null {
  let event = "message";
  const data: string[] = [];
  for (const line of text.split("\n")) {
    if (line.startsWith("event:")) event = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
  }
  return data.length ? { event, data: JSON.parse(data.join("\n")) as Record<string, unknown> } : null;
}

export function faultOf(error: unknown): Fault {
  return error instanceof Refused ? error.fault : { message: error instanceof Error ? error.message : String(error) };
}
