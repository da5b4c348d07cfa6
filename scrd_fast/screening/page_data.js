// SPDX-License-Identifier: Apache-2.0
// What the page knows: columns of its rows, counts of all rows, and helpers to show them.

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const { columns } = data;

function word(name, row) {
  const { words, codes } = columns[name];
  return codes[row] === null ? null : words[codes[row]];
}

function flagsOf(row) {
  return columns.flags.codes[row].map((code) => columns.flags.words[code]);
}

// An element. Content is text or elements: nothing is ever read as HTML.
function make(tag, properties = {}, ...content) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && !name.startsWith("aria")) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...content.filter((part) => part !== null && part !== undefined));
  return element;
}

function draw(parent, tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

// Letters that cannot be seen, or that turn the order of others, are shown by their codes.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

function visible(text) {
  return text.replace(UNSEEN, (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

// Folder and last part of a path.
function split(path) {
  const cut = path.lastIndexOf("/") + 1;
  return [visible(path.slice(0, cut)), visible(path.slice(cut) || path)];
}

const whole = new Intl.NumberFormat("en");

function short(value) {
  if (value === null || value === undefined) return "–";
  return Number.isInteger(value) && Math.abs(value) < 1e6 ? String(value) : String(Number(value.toPrecision(4)));
}

function percent(share) {
  const value = 100 * share;
  return `${value === 0 || value === 100 ? value : value < 10 ? value.toPrecision(2) : value.toFixed(1)} %`;
}

function counted(count, one, many) {
  return `${whole.format(count)} ${count === 1 ? one : many}`;
}

// Thresholds of the slider, the same numbers as where the counts were made.
const edge = (k) => ((data.grid.first + k) * data.grid.step) / data.grid.divisor;

function nearestEdge(value) {
  const k = Math.round((value * data.grid.divisor) / data.grid.step - data.grid.first);
  return Math.min(Math.max(k, 0), data.grid.steps);
}

// How many scores of a group lie above a threshold. `exact`: the scores, or the greatest of them; `above`: counts at the edges.
class Scores {
  constructor({ count, exact, above }) {
    this.count = count;
    this.exact = exact ?? [];
    this.bins = above;
  }

  above(threshold) {
    if (this.exact.length === this.count || threshold >= this.exact[0]) {
      let low = 0;
      let high = this.exact.length;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (this.exact[middle] > threshold) high = middle;
        else low = middle + 1;
      }
      return { count: this.exact.length - low, sure: true };
    }
    let k = nearestEdge(threshold);
    while (k > 0 && edge(k - 1) >= threshold) k -= 1;
    while (k < data.grid.steps && edge(k) < threshold) k += 1;
    if (edge(k) === threshold) return { count: this.bins[k], sure: true };
    const before = edge(k) < threshold ? 0 : k === 0 ? this.count : this.bins[k - 1];
    return { count: k === 0 ? this.count : this.bins[k], sure: k === 0 || this.bins[k] === before };
  }

  // Of equal bars of `per` steps: counts.
  bars(per) {
    const counts = [];
    for (let k = 0, rest = this.count; k < data.grid.steps; k += per) {
      const above = k + per < data.grid.steps ? this.above(edge(k + per)).count : 0;
      counts.push(rest - above);
      rest = above;
    }
    return counts;
  }
}

const listedScores = columns.score.slice(0, data.listed).reverse();
const runScores = new Scores({ ...data.scores, exact: data.scores.exact ?? listedScores });
const normalScores = data.normals && new Scores(data.normals);

// What the user has chosen.
const state = {
  threshold: data.decision ? data.decision.threshold : null,
  opacity: 60,
  heat: true,
  peak: true,
  row: null,
};

function decisionOf(row) {
  const score = columns.score[row];
  if (state.threshold === null || score === null) return null;
  return score > state.threshold ? "abnormal" : "normal";
}

// Pictures are parsed after the list is on the screen.
let pictures = null;

function loadPictures() {
  pictures = JSON.parse($("pictures").textContent);
  $("pictures").remove();
}

function smallPicture(row) {
  const content = pictures && pictures.small[row];
  return content ? `data:image/webp;base64,${content}` : null;
}
