// The list of sounds, sorted and filtered. The page holds only the rows that are visible.

const ROW_HEIGHT = 36; // As --row in the style.
const ROWS_BEYOND = 8;

class SoundList {
  constructor(index, select) {
    this.names = index.names;
    this.values = index.values;
    this.metrics = index.metrics;
    this.select = select;
    this.selected = -1;
    this.sorting = null; // {column, descending}; column -1 is the name. null is the order of the data.
    this.decimals = index.metrics.map((_, column) => decimalsOf(index.values.map((row) => row[column])));
    this.order = index.names.map((_, number) => number);
    this.scroller = byId("list");
    this.body = byId("sound-rows");
    byId("sounds").style.setProperty("--metrics", index.metrics.length);
    byId("sounds").style.setProperty("--sounds", index.names.length);
    this.showHead();
    this.scroller.addEventListener("scroll", () => this.showRows(), { passive: true });
    new ResizeObserver(() => this.showRows(true)).observe(this.scroller);
    byId("filter").addEventListener("input", () => this.update());
    this.body.addEventListener("click", (event) => {
      const row = event.target.closest("tr[data-number]");
      if (row) this.select(Number(row.dataset.number));
    });
    this.update();
  }

  showHead() {
    const columns = [{ label: "Name" }, ...this.metrics];
    this.heads = columns.map((column, place) => {
      const button = element("button", { type: "button", title: place ? metricTitle(column) : null }, column.label);
      button.addEventListener("click", () => this.sortBy(place - 1));
      return element("th", { scope: "col", class: place ? "number" : "name", "aria-sort": "none" }, button);
    });
    byId("sound-head").append(element("tr", { "aria-rowindex": 1 }, ...this.heads));
  }

  // The first click sorts the best sounds to the top, the second click the worst.
  sortBy(column) {
    const first = column >= 0 && this.metrics[column].higher;
    const again = this.sorting !== null && this.sorting.column === column;
    this.sorting = { column, descending: again ? !this.sorting.descending : first };
    this.heads.forEach((head, place) => {
      const direction = this.sorting.descending ? "descending" : "ascending";
      head.setAttribute("aria-sort", place - 1 === column ? direction : "none");
    });
    this.update();
  }

  update() {
    const wanted = byId("filter").value.trim().toLowerCase();
    const all = this.names.map((_, number) => number);
    this.order = wanted ? all.filter((number) => this.names[number].toLowerCase().includes(wanted)) : all;
    if (this.sorting) this.order.sort(this.comparison());
    const total = countText(this.names.length, "sound");
    byId("count").textContent = wanted ? `${this.order.length.toLocaleString("en")} of ${total}` : total;
    byId("sound-table").setAttribute("aria-rowcount", this.order.length + 1);
    this.scroller.scrollTop = 0;
    this.showRows(true);
  }

  comparison() {
    const { column, descending } = this.sorting;
    const sign = descending ? -1 : 1;
    if (column < 0) {
      const collator = new Intl.Collator(undefined, { numeric: true });
      return (a, b) => sign * collator.compare(this.names[a], this.names[b]) || a - b;
    }
    return (a, b) => {
      const [left, right] = [this.values[a][column], this.values[b][column]];
      if (left === null || right === null) return (left === null) - (right === null) || a - b; // Missing ones last.
      return sign * (left - right) || a - b;
    };
  }

  showRows(anew = false) {
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / ROW_HEIGHT) - ROWS_BEYOND);
    const seen = Math.ceil(this.scroller.clientHeight / ROW_HEIGHT) + 2 * ROWS_BEYOND;
    const last = Math.min(this.order.length, first + seen);
    if (!anew && first === this.first && last === this.last) return;
    [this.first, this.last] = [first, last];
    const focused = this.body.contains(document.activeElement) ? document.activeElement.closest("tr").dataset.number : null;
    const rows = this.order.slice(first, last).map((number, place) => this.row(number, first + place));
    this.body.replaceChildren(spacer(first), ...rows, spacer(this.order.length - last));
    if (!this.order.length) this.body.append(this.emptyRow());
    if (focused !== null) this.body.querySelector(`tr[data-number="${focused}"] button`)?.focus({ preventScroll: true });
  }

  row(number, place) {
    const name = this.names[number];
    const chosen = number === this.selected;
    const button = element("button", { type: "button", "aria-current": chosen ? "true" : null, title: name }, name || "unnamed");
    const cells = this.values[number].map((value, column) =>
      element("td", { class: "number" }, numberText(value, this.decimals[column])),
    );
    const attributes = { "data-number": number, "aria-rowindex": place + 2, class: chosen ? "selected" : null };
    return element("tr", attributes, element("td", { class: "name" }, button), ...cells);
  }

  emptyRow() {
    return element("tr", {}, element("td", { class: "empty", colspan: this.metrics.length + 1 }, "No name contains this text."));
  }

  // Selects a sound and brings its row into view.
  mark(number) {
    this.selected = number;
    const top = this.order.indexOf(number) * ROW_HEIGHT;
    if (top >= 0) {
      const room = this.scroller.clientHeight - byId("sound-head").offsetHeight - ROW_HEIGHT;
      if (top < this.scroller.scrollTop) this.scroller.scrollTop = top;
      else if (top > this.scroller.scrollTop + room) this.scroller.scrollTop = top - room;
    }
    this.showRows(true);
  }

  // Scrolls the page if the selected row lies below the window.
  reveal() {
    const row = this.body.querySelector("tr.selected");
    const below = row ? row.getBoundingClientRect().bottom - window.innerHeight : 0;
    if (below > 0) window.scrollBy(0, below + ROW_HEIGHT);
  }

  // The sound this many places further down the list; null beyond its ends.
  neighbour(step) {
    const place = this.order.indexOf(this.selected);
    const next = place < 0 ? (this.order.length ? 0 : -1) : place + step;
    return next >= 0 && next < this.order.length ? this.order[next] : null;
  }
}

function spacer(rows) {
  return element("tr", { class: "spacer", "aria-hidden": "true", style: `height: ${rows * ROW_HEIGHT}px` });
}
