/* What the server says of itself: its pages, its model, what it allows. */
import { get } from "./api";
import type { Entry } from "./types";

export type Role = "read" | "intervene" | "modify";
const ROLES: Role[] = ["read", "intervene", "modify"];
type Answer = { pages: (Entry & { listed?: boolean })[]; model?: string | null; role?: Role; atlas?: string };

class Info {
  pages: Entry[] = $state.raw([]);
  titles: Record<string, string> = $state.raw({});
  model: string | null = $state(null);
  atlas = $state("");
  role: Role = $state("read");

  async load() {
    const found = await get<Answer>("/api/pages");
    this.pages = found.pages.filter((page) => page.listed !== false);
    this.titles = Object.fromEntries(found.pages.map((page) => [page.page, page.title]));
    this.model = found.model ?? null;
    this.atlas = found.atlas ?? "";
    this.role = found.role ?? "read";
  }

  allows(role: string): boolean { return ROLES.indexOf(role as Role) <= ROLES.indexOf(this.role); }
}

export const info = new Info();
