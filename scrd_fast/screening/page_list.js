// SPDX-License-Identifier: Apache-2.0
// The worklist: what is filtered and in which order; a list that keeps only what is seen.

const HEIGHT = 64; // of a line, in pixels, as in page.css
const BEYOND = 6; // lines above and below what is seen

class VirtualList {
  // `build(position)` makes a line; `chosen(position, how)` hears of a line that is clicked, reached or entered.
  constructor(box, build, chosen) {
    Object.assign(this, { box, build, chosen, count: 0, current: -1, printed: 0, lines: new Map() });
    this.room = box.appendChild(make("div", { className: "room", role: "presentation" }));
    this.empty = box.appendChild(make("p", { className: "quiet empty", hidden: true, "aria-hidden": "true" }, "Nothing fits these filters."));
    box.addEventListener("scroll", () => this.show(), { passive: true });
    box.addEventListener("keydown", (event) => this.key(event));
    this.room.addEventListener("click", (event) => {
      const line = event.target.closest("[role=option]");
      if (line) this.select(Number(line.dataset.position), "click");
    });
    new ResizeObserver(() => this.show()).observe(box);
  }

  set(count, current) {
    this.count = count;
    this.current = current;
    this.room.style.height = `${count * HEIGHT}px`;
    this.empty.hidden = count > 0;
    this.renew();
  }

  renew() {
    for (const line of this.lines.values()) line.remove();
    this.lines.clear();
    this.show();
  }

  // On paper so many lines, from the first, in their order; 0: on a screen again.
  print(count) {
    this.printed = count;
    this.renew();
  }

  show() {
    const from = this.printed ? 0 : Math.max(Math.floor(this.box.scrollTop / HEIGHT) - BEYOND, 0);
    const to = this.printed || Math.ceil((this.box.scrollTop + this.box.clientHeight) / HEIGHT) + BEYOND;
    for (const [position, line] of this.lines) {
      if (position >= from && position < to) continue;
      line.remove();
      this.lines.delete(position);
    }
    for (let position = from; position < Math.min(to, this.count); position += 1) {
      if (this.lines.has(position)) continue;
      const line = this.build(position);
      line.id = `${this.box.id}-${position}`;
      line.dataset.position = position;
      line.style.top = `${position * HEIGHT}px`;
      line.setAttribute("role", "option");
      line.setAttribute("aria-setsize", this.count);
      line.setAttribute("aria-posinset", position + 1);
      line.setAttribute("aria-selected", position === this.current);
      this.lines.set(position, line);
      this.room.append(line);
    }
    const active = this.lines.get(this.current);
    if (active) this.box.setAttribute("aria-activedescendant", active.id);
    else this.box.removeAttribute("aria-activedescendant");
  }

  select(position, how) {
    this.lines.get(this.current)?.setAttribute("aria-selected", false);
    this.current = position;
    const top = position * HEIGHT;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    const bottom = top + HEIGHT - this.box.clientHeight;
    if (bottom > this.box.scrollTop) this.box.scrollTop = bottom;
    this.show();
    this.lines.get(position)?.setAttribute("aria-selected", true);
    this.chosen(position, how);
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || !this.count) return;
    const page = Math.max(Math.floor(this.box.clientHeight / HEIGHT) - 1, 1);
    const to = {
      ArrowDown: this.current + 1,
      ArrowUp: this.current - 1,
      PageDown: this.current + page,
      PageUp: this.current - page,
      Home: 0,
      End: this.count - 1,
    }[event.key];
    if (to !== undefined) this.select(Math.min(Math.max(to, 0), this.count - 1), "reach");
    else if (event.key === "Enter" || event.key === " ") this.select(Math.max(this.current, 0), "enter");
    else return;
    event.preventDefault();
  }
}

const filter = { words: [], decision: "", status: "", flag: "", group: null };
const sorting = { by: "score", down: true };
let order = []; // rows that are listed
let worklist = null;

const haystacks = new Map(); // of rows, made when they are searched

function haystack(row) {
  if (!haystacks.has(row)) {
    const parts = ["path", "sample_id", "study", "series", "modality", "body_part", "view", "error"].map((n) => word(n, row));
    haystacks.set(row, [...parts, ...flagsOf(row)].filter(Boolean).join("\n").toLowerCase());
  }
  return haystacks.get(row);
}

function fits(row) {
  if (filter.status && word("status", row) !== filter.status) return false;
  if (filter.decision && (decisionOf(row) ?? "none") !== filter.decision) return false;
  if (filter.flag && !flagsOf(row).includes(filter.flag)) return false;
  if (filter.group && word(filter.group.column, row) !== filter.group.value) return false;
  return filter.words.every((part) => haystack(row).includes(part));
}

const collator = new Intl.Collator("en", { numeric: true });

function sorted(rows) {
  if (sorting.by === "score") {
    // They come with the greatest score first, and those without at the end, where they stay.
    if (sorting.down) return rows;
    const cut = rows.findIndex((row) => columns.score[row] === null);
    const scored = cut < 0 ? rows : rows.slice(0, cut);
    return [...scored.slice().reverse(), ...(cut < 0 ? [] : rows.slice(cut))];
  }
  const key = sorting.by === "name" ? (row) => word("path", row) : (row) => decisionOf(row) ?? `~${word("status", row)}`;
  const keys = new Map(rows.map((row) => [row, key(row)]));
  const turn = sorting.down ? -1 : 1;
  return rows.slice().sort((a, b) => turn * collator.compare(keys.get(a), keys.get(b)) || a - b);
}

function updateList() {
  const all = Array.from({ length: data.rows }, (_, row) => row);
  order = sorted(all.filter(fits));
  worklist.box.scrollTop = 0;
  worklist.set(order.length, order.indexOf(state.row));
  $("shown").textContent = order.length === data.rows ? counted(data.rows, "picture", "pictures")
    : `${whole.format(order.length)} of ${counted(data.rows, "picture", "pictures")}`;
  $("clear").hidden = !(filter.words.length || filter.decision || filter.status || filter.flag || filter.group);
  $("by-group").hidden = !filter.group;
  if (filter.group) $("by-group").textContent = `${filter.group.name} ${visible(filter.group.value)} ×`;
  for (const head of document.querySelectorAll("[data-sort]")) {
    const active = head.dataset.sort === sorting.by;
    head.setAttribute("aria-pressed", active);
    head.dataset.direction = active ? (sorting.down ? "down" : "up") : "";
  }
}

const perFile = new Map(); // rows by the number of their path
for (const code of columns.path.codes) perFile.set(code, (perFile.get(code) ?? 0) + 1);

// Whether a row is all that is listed of its file; else frames tell them apart, counted from 0 as in the table.
function isOne(row) {
  return columns.frame[row] === null || (columns.frame[row] === 0 && perFile.get(columns.path.codes[row]) === 1);
}

function badge(row) {
  const decision = decisionOf(row);
  if (decision) return make("span", { className: `badge ${decision}` }, decision);
  return make("span", { className: "badge" }, columns.score[row] === null ? word("status", row) : "no decision");
}

function thumbnailOf(row) {
  const source = smallPicture(row);
  if (source) return make("img", { className: "thumb", src: source, alt: "" });
  return make("span", { className: "thumb none", "aria-hidden": "true" }, columns.score[row] === null ? "!" : "");
}

function lineOf(position) {
  const row = order[position];
  const [folder, name] = split(word("path", row));
  const frame = columns.frame[row];
  const below = word("error", row) ?? [...flagsOf(row), folder].join(" · ");
  const percentile = columns.percentile[row];
  return make("div", { className: "line" },
    thumbnailOf(row),
    make("span", { className: "names" },
      make("b", { dir: "ltr" }, name, isOne(row) ? null : make("span", { className: "quiet" }, ` frame ${frame}`)),
      make("span", { className: "quiet", dir: "ltr" }, visible(below))),
    make("span", { className: "score" },
      make("b", {}, short(columns.score[row])),
      make("span", { className: "quiet" }, percentile === null ? "" : `percentile ${short(100 * percentile)}`)),
    badge(row));
}

function fillSelect(select, name, words) {
  select.append(make("option", { value: "" }, name));
  for (const [value, text] of words) select.append(make("option", { value }, text));
  select.hidden = words.length < (select.id === "by-status" ? 2 : 1);
}

function startList() {
  worklist = new VirtualList($("list"), lineOf, (position, how) => showDetail(order[position], how));
  fillSelect($("by-decision"), "Any decision", [["abnormal", "abnormal"], ["normal", "normal"], ["none", "no decision"]]);
  const present = [...new Set(Array.from({ length: data.rows }, (_, row) => word("status", row)))].sort();
  fillSelect($("by-status"), "Any status", present.map((status) => [status, status]));
  fillSelect($("by-flag"), "Any flags", columns.flags.words.map((flag) => [flag, visible(flag)]));
  for (const [id, name] of [["by-decision", "decision"], ["by-status", "status"], ["by-flag", "flag"]]) {
    $(id).addEventListener("change", () => { filter[name] = $(id).value; updateList(); });
  }
  $("search").addEventListener("input", () => {
    filter.words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    updateList();
  });
  $("filters").addEventListener("submit", (event) => { event.preventDefault(); $("list").focus(); });
  $("by-group").addEventListener("click", () => { filter.group = null; updateList(); $("list").focus(); });
  $("clear").addEventListener("click", () => {
    Object.assign(filter, { words: [], decision: "", status: "", flag: "", group: null });
    for (const id of ["search", "by-decision", "by-status", "by-flag"]) $(id).value = "";
    updateList();
    $("search").focus();
  });
  for (const head of document.querySelectorAll("[data-sort]")) {
    head.addEventListener("click", () => {
      const by = head.dataset.sort;
      sorting.down = sorting.by === by ? !sorting.down : by === "score";
      sorting.by = by;
      updateList();
    });
  }
  $("list").addEventListener("focus", () => { if (worklist.current < 0 && worklist.count) worklist.select(0, "reach"); });
  updateList();
}

function filterBy(column, name, value) {
  Object.assign(filter, { words: [], decision: "", status: "", flag: "", group: { column, name, value } });
  for (const id of ["search", "by-decision", "by-status", "by-flag"]) $(id).value = "";
  openTab("worklist");
  updateList();
  if (order.length) worklist.select(0, "reach");
  $("list").focus();
}
