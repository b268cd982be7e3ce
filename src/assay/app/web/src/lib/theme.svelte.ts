/* Light, dark, or as the system has it. `turn` counts changes: canvases draw anew when it moves. */
const KEY = "assay-theme";
export type Choice = "auto" | "light" | "dark";

class Theme {
  choice: Choice = $state("auto");
  turn = $state(0);

  constructor() {
    try { this.set((localStorage.getItem(KEY) as Choice) ?? "auto"); } catch { /* not kept */ }
    for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", () => { this.turn += 1; });
  }

  set(choice: Choice) {
    this.choice = choice;
    if (choice === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = choice;
    try { localStorage.setItem(KEY, choice); } catch { /* not kept */ }
    this.turn += 1;
  }
}

export const theme = new Theme();
