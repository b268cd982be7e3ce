/* A verb that runs: asked for, followed while it runs, stopped, gone on with. */
import { events, faultOf, get, post } from "./api";
import type { Block, Fault, Result } from "./types";

export type State = "idle" | "asked" | "queued" | "running" | "done" | "failed" | "cancelled" | "interrupted";
export type JobRecord = { id: string; verb: string; arguments?: Record<string, unknown>; state: State; done?: number; total?: number; message?: string; made?: string; error?: Fault; result?: Result };
export const OPEN: State[] = ["asked", "queued", "running"];
export const AGAIN: State[] = ["cancelled", "interrupted", "failed"];

export class Run {
  state: State = $state("idle");
  id = $state("");
  done = $state(0);
  total = $state(0);
  message = $state("");
  blocks: Block[] = $state.raw([]);
  record: unknown = $state.raw(undefined);
  fault: Fault | null = $state(null);
  pieces: { side: string; text: string }[] = $state([]);
  private stop = new AbortController();

  get open(): boolean { return OPEN.includes(this.state); }

  get again(): boolean { return this.id !== "" && AGAIN.includes(this.state); }

  async start(verb: string, body: Record<string, unknown>) {
    this.clear();
    this.state = "asked";
    try {
      const answer = await post<Result & { job?: string | { id: string } }>(`/api/verbs/${encodeURIComponent(verb)}`, body);
      if (!answer.job) return this.finish(answer);
      this.id = typeof answer.job === "string" ? answer.job : answer.job.id;
      await this.follow();
    } catch (error) { this.fail(error); }
  }

  async follow(id = this.id) {
    this.id = id;
    if (this.state !== "running") this.state = "queued";
    const path = `/api/jobs/${encodeURIComponent(id)}`;
    try {
      for await (const { event, data } of events(`${path}/events`, this.stop.signal)) this.take(event, data);
      if (this.open) this.settle(await get<JobRecord>(path));
    } catch (error) { this.fail(error); }
  }

  async cancel() { await this.say("cancel"); }

  async resume() {
    if (!(await this.say("resume"))) return;
    this.fault = null;
    this.state = "queued";
    await this.follow();
  }

  /* Nobody looks any more; the job itself goes on. */
  leave() { this.stop.abort(); }

  private async say(what: string): Promise<boolean> {
    try { await post(`/api/jobs/${encodeURIComponent(this.id)}/${what}`, {}); return true; } catch (error) { this.fault = faultOf(error); return false; }
  }

  private take(event: string, data: Record<string, unknown>) {
    if (event === "piece") return this.piece(String(data.side ?? ""), String(data.text ?? ""));
    if (event === "blocks") { this.blocks = data.blocks as Block[]; return; }
    if (event === "done") return this.finish((data.result ?? data) as Result);
    if (event === "failed") { this.state = "failed"; this.fault = (data.error as Fault) ?? { message: "The job failed." }; return; }
    if (event === "cancelled" || event === "interrupted") { this.state = event; return; }
    if (typeof data.state === "string") this.settle(data as unknown as JobRecord);
    else if (event === "progress") this.state = "running";
    this.progress(data);
  }

  private progress(data: Record<string, unknown>) {
    if (typeof data.done === "number") this.done = data.done;
    const total = data.total ?? data.of;
    if (typeof total === "number") this.total = total;
    const message = data.message ?? data.label;
    if (typeof message === "string") this.message = message;
  }

  private piece(side: string, text: string) {
    const found = this.pieces.find((each) => each.side === side);
    if (found) found.text += text;
    else this.pieces.push({ side, text });
  }

  private settle(record: JobRecord) {
    if (record.result) return this.finish(record.result);
    this.state = record.state;
    if (record.error) this.fault = record.error;
  }

  private finish(result: Result) {
    this.state = "done";
    this.blocks = result.blocks ?? [];
    this.record = result.record;
    this.pieces = [];
  }

  private fail(error: unknown) {
    if (error instanceof DOMException && error.name === "AbortError") return;
    this.state = "failed";
    this.fault = faultOf(error);
  }

  private clear() {
    this.stop.abort();
    this.stop = new AbortController();
    Object.assign(this, { id: "", done: 0, total: 0, message: "", blocks: [], record: undefined, fault: null, pieces: [] });
  }
}
