// The blocks of a session as a row that can be walked through by keyboard: who made each, its score, what it shows.

const LETTERS = { target: "T", accepted: "A", repaired: "R", given: "G" };

export class Strip {
  constructor(place, chosen, choose) {
    this.place = place;
    this.chosen = chosen;
    this.choose = choose;
    this.blocks = [];
    this.selected = -1;
    place.addEventListener("keydown", (event) => this.key(event));
  }

  clear() {
    this.cut(0);
  }

  cut(block) {
    this.blocks.length = Math.min(this.blocks.length, block);
    while (this.place.children.length > block) this.place.lastChild.remove();
    if (this.selected >= block) this.select(-1);
  }

  set(told) {
    const known = this.place.children[told.block];
    const item = known ?? document.createElement("div");
    const before = this.blocks[told.block - 1];
    this.blocks[told.block] = told;
    item.className = told.decision;
    item.classList.toggle("changed", Boolean(before && before.prompt !== told.prompt));
    item.setAttribute("role", "option");
    item.id = `block-${told.block}`;
    item.setAttribute("aria-selected", String(told.block === this.selected));
    item.setAttribute("aria-label", this.describe(told));
    item.title = this.describe(told);
    const letter = document.createElement("b");
    letter.textContent = LETTERS[told.decision] ?? "?";
    item.replaceChildren(letter, told.score === null ? String(told.block) : told.score.toFixed(2));
    item.onclick = () => this.select(told.block);
    item.ondblclick = () => this.choose("rewind");
    if (!known) {
      const atEnd = this.place.scrollLeft + this.place.clientWidth > this.place.scrollWidth - 60;
      this.place.append(item);
      if (atEnd) this.place.scrollLeft = this.place.scrollWidth;
    }
  }

  describe(told) {
    const score = told.score === null ? "" : `, score ${told.score.toFixed(3)}`;
    return `Block ${told.block} at ${told.second.toFixed(1)} s, ${told.decision}${score}: ${told.prompt}`;
  }

  select(block) {
    this.selected = block;
    for (const [number, item] of [...this.place.children].entries()) {
      item.setAttribute("aria-selected", String(number === block));
    }
    if (block >= 0) {
      this.place.setAttribute("aria-activedescendant", `block-${block}`);
      this.place.children[block].scrollIntoView({ block: "nearest", inline: "nearest" });
    }
    this.chosen(block < 0 ? null : this.blocks[block], block < 0 ? "" : this.describe(this.blocks[block]));
  }

  shown(second) {
    for (const [number, item] of [...this.place.children].entries()) {
      const told = this.blocks[number];
      item.classList.toggle("shown", told.second <= second && second < told.second + told.seconds);
    }
  }

  key(event) {
    const last = this.blocks.length - 1;
    const moves = { ArrowLeft: this.selected - 1, ArrowRight: this.selected + 1, Home: 0, End: last };
    if (event.key in moves) {
      if (last >= 0) this.select(Math.max(0, Math.min(last, moves[event.key])));
    } else if (event.key === "Enter") {
      this.choose("rewind");
    } else if (event.key === "b" || event.key === "B") {
      this.choose("branch");
    } else {
      return;
    }
    event.preventDefault();
  }
}
