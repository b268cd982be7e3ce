/* What words mean: from the glossary page, or from the export itself. */
import { get } from "./api";
import { embedded } from "./embedded";
import type { Page } from "./types";

class Terms {
  private meanings: Record<string, string> = $state({});

  constructor() { for (const [word, meaning] of Object.entries(embedded?.terms ?? {})) this.meanings[word.toLowerCase()] = meaning; }

  async load() {
    const page = await get<Page>("/api/pages/glossary");
    const found: Record<string, string> = {};
    for (const block of page.blocks) if (block.type === "terms") for (const item of block.items) found[item.word.toLowerCase()] = item.meaning;
    this.meanings = found;
  }

  of(word: string): string | undefined {
    const key = word.toLowerCase();
    return this.meanings[key] ?? this.meanings[key.replace(/s$/, "")];
  }
}

export const terms = new Terms();
