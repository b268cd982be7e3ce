/* The one box that explains a word or a token, beside whatever asked for it. */
const WIDTH = 320, EDGE = 12;

class Tip {
  word = $state("");
  meaning = $state("");
  left = $state(0);
  top = $state(0);
  shown = $state(false);
  above = $state(false);

  show(beside: HTMLElement, word: string, meaning: string) {
    const box = beside.getBoundingClientRect();
    this.word = word;
    this.meaning = meaning;
    this.left = Math.max(EDGE, Math.min(box.left, innerWidth - Math.min(WIDTH, innerWidth - 2 * EDGE) - EDGE));
    this.above = box.bottom > innerHeight * 0.65;
    this.top = this.above ? box.top - 6 : box.bottom + 6;
    this.shown = true;
  }

  hide() { this.shown = false; }
}

export const tip = new Tip();
