// SPDX-License-Identifier: Apache-2.0
// The threshold: histogram of the run's scores and of the calibration normals', live counts, ROC curve.

const MARGIN = 10; // pixels: half of a slider's thumb, as in page.css
const BARS = [16, 72]; // least and most
const TALL = 132;

function drawHistogram() {
  const svg = $("histogram");
  const width = svg.clientWidth;
  if (!width) return;
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${TALL + 20}`);
  const steps = data.grid.steps;
  const fewest = Math.min(...[runScores, normalScores].filter((scores) => scores && scores.count).map((scores) => scores.count), 1e6);
  const bars = Math.min(Math.max(Math.round(3 * Math.sqrt(fewest)), BARS[0]), BARS[1]); // few scores in narrow bars tell nothing
  const per = Math.max(Math.ceil(steps / bars), 1);
  const x = (k) => MARGIN + (Math.min(k, steps) / steps) * (width - 2 * MARGIN);
  const own = shares(runScores, per);
  const normals = normalScores ? shares(normalScores, per) : [];
  const most = Math.max(...own, ...normals, 1e-9);
  const y = (share) => (share > 0 ? Math.max((share / most) * (TALL - 8), 2) : 0); // a single picture is seen too
  for (const [side, className] of [["left", "normal"], ["right", "abnormal"]]) {
    const clip = draw(draw(svg, "clipPath", { id: `clip-${side}` }), "rect", { id: `clip-${side}-area`, y: 0, height: TALL });
    clip.setAttribute("x", 0);
    clip.setAttribute("width", width);
    const group = draw(svg, "g", { class: `bars ${className}`, "clip-path": `url(#clip-${side})` });
    own.forEach((share, i) => {
      if (!share) return;
      const wide = x((i + 1) * per) - x(i * per);
      draw(group, "rect", { x: x(i * per) + 0.5, width: Math.max(wide - 1, 1), y: TALL - y(share), height: y(share) });
    });
  }
  if (normalScores) {
    const path = normals.map((share, i) => `L${x(i * per)},${TALL - y(share)}H${x((i + 1) * per)}`).join("");
    draw(svg, "path", { class: "normals", d: `M${x(0)},${TALL}${path}V${TALL}` });
  }
  draw(svg, "line", { class: "axis", x1: MARGIN, x2: width - MARGIN, y1: TALL, y2: TALL });
  const ticks = width < 500 ? 3 : 6;
  for (let i = 0; i <= ticks; i += 1) {
    const k = Math.round((i / ticks) * steps);
    const anchor = i === 0 ? "start" : i === ticks ? "end" : "middle";
    draw(svg, "text", { x: x(k), y: TALL + 15, "text-anchor": anchor }, short(edge(k)));
  }
  draw(svg, "line", { id: "mark", y1: 0, y2: TALL });
  placeMark();
}

function shares(scores, per) {
  return scores.bars(per).map((count) => count / Math.max(scores.count, 1));
}

function placeMark() {
  const svg = $("histogram");
  if (!$("mark")) return;
  const width = svg.clientWidth;
  const room = width - 2 * MARGIN;
  const known = state.threshold !== null;
  const place = ((state.threshold * data.grid.divisor) / data.grid.step - data.grid.first) / data.grid.steps;
  const x = known ? MARGIN + Math.min(Math.max(place, -0.01), 1.01) * room : width;
  $("mark").setAttribute("x1", x);
  $("mark").setAttribute("x2", x);
  $("mark").classList.toggle("none", !known);
  $("clip-left-area").setAttribute("width", Math.max(x, 0));
  $("clip-right-area").setAttribute("x", x);
  $("clip-right-area").setAttribute("width", Math.max(width - x, 0));
}

function about({ count, sure }) {
  return `${sure ? "" : "≈ "}${whole.format(count)}`;
}

function tellCounts() {
  const t = state.threshold;
  const parts = [];
  const alarms = [];
  if (t === null) {
    parts.push(make("span", {}, "no threshold"), make("span", {}, counted(runScores.count, "scored picture", "scored pictures")));
  } else {
    const above = runScores.above(t);
    const normal = { count: runScores.count - above.count, sure: above.sure };
    parts.push(
      make("span", { className: "badge abnormal" }, make("b", { id: "count-abnormal" }, about(above)), " abnormal"),
      make("span", { className: "badge normal" }, make("b", { id: "count-normal" }, about(normal)), " normal"),
    );
    if (normalScores) {
      const hits = normalScores.above(t);
      parts.push(make("span", {}, make("b", { id: "rate" }, `${hits.sure ? "" : "≈ "}${percent(hits.count / normalScores.count)}`), " of calibration normals above"));
      alarms.push(`Expected false alarms: ${about(hits)} of ${counted(normalScores.count, "calibration normal", "calibration normals")} are above`);
    }
  }
  const unscored = data.counts.rows - data.counts.scored;
  if (unscored) parts.push(make("span", { className: "quiet" }, `${whole.format(unscored)} without a score`));
  $("counts").replaceChildren(...parts);
  const own = data.decision;
  const moved = own ? t !== own.threshold : t !== null;
  if (own && !moved && own.expected_fpr !== null) {
    alarms.push(`of new normals ${percent(own.expected_fpr)}, 95 % interval ${percent(own.fpr_low)} to ${percent(own.fpr_high)}`);
  }
  $("alarms").textContent = alarms.length ? `${alarms.join("; ")}.` : "";
  $("reset").hidden = !moved;
  $("reset").textContent = own ? `Back to ${short(own.threshold)}` : "None";
  $("command").replaceChildren(...(moved && t !== null
    ? ["Changed on this page alone. To decide the run so: ", make("code", {}, `scrd-fast report DIR --threshold ${t}`)] : []));
  tellPoint();
}

function setThreshold(value, from) {
  state.threshold = value;
  if (from !== "slider") $("slider").value = value === null ? data.grid.steps : nearestEdge(value);
  if (from !== "value") $("value").value = value === null ? "" : String(value);
  $("slider").setAttribute("aria-valuetext", value === null ? "no threshold" : short(value));
  placeMark();
  tellCounts();
  if (filter.decision || sorting.by === "status") updateList();
  else worklist.renew();
  fillDetail();
}

function startChart() {
  const slider = $("slider");
  Object.assign(slider, { min: 0, max: data.grid.steps, step: 1 });
  slider.addEventListener("input", () => setThreshold(edge(Number(slider.value)), "slider"));
  $("value").addEventListener("input", () => {
    const typed = $("value").valueAsNumber;
    if (Number.isFinite(typed)) setThreshold(typed, "value");
  });
  $("reset").addEventListener("click", () => { setThreshold(data.decision ? data.decision.threshold : null); slider.focus(); });
  $("normals-key").hidden = !normalScores;
  const pick = (event) => {
    if (event.buttons !== 1) return;
    const box = $("histogram").getBoundingClientRect();
    const share = (event.clientX - box.left - MARGIN) / (box.width - 2 * MARGIN);
    setThreshold(edge(Math.min(Math.max(Math.round(share * data.grid.steps), 0), data.grid.steps)));
  };
  $("histogram").addEventListener("pointerdown", pick);
  $("histogram").addEventListener("pointermove", pick);
  new ResizeObserver(drawHistogram).observe($("histogram"));
  startCurve();
}

const SIDE = 180; // of the curve's square

function startCurve() {
  const found = data.labels;
  if (!found || !found.auroc) return;
  const { value, low, high } = found.auroc;
  $("roc").hidden = false;
  $("auroc").replaceChildren("AUROC ", make("b", { id: "auroc-value" }, value.toFixed(3)),
    low === null ? "" : ` (${low.toFixed(3)} to ${high.toFixed(3)})`,
    make("span", { className: "quiet" }, `, ${counted(found.scored, "labelled input", "labelled inputs")}`));
  const svg = $("curve");
  svg.setAttribute("viewBox", `-26 -6 ${SIDE + 32} ${SIDE + 32}`);
  svg.setAttribute("aria-label", `ROC curve, AUROC ${value.toFixed(3)}`);
  draw(svg, "rect", { class: "frame", x: 0, y: 0, width: SIDE, height: SIDE });
  draw(svg, "line", { class: "chance", x1: 0, y1: SIDE, x2: SIDE, y2: 0 });
  const [fpr, tpr] = found.curve;
  draw(svg, "path", { class: "roc", d: `M0,${SIDE}${fpr.map((x, i) => `L${x * SIDE},${SIDE - tpr[i] * SIDE}`).join("")}` });
  draw(svg, "circle", { id: "operating", r: 5 });
  draw(svg, "text", { x: SIDE / 2, y: SIDE + 20, "text-anchor": "middle" }, "false-positive rate");
  draw(svg, "text", { transform: `translate(-10 ${SIDE / 2}) rotate(-90)`, "text-anchor": "middle" }, "sensitivity");
}

const labelled = data.labels && data.labels.auroc
  ? { normal: new Scores(data.labels.normal), abnormal: new Scores(data.labels.abnormal) } : null;

function tellPoint() {
  if (!labelled) return;
  const known = state.threshold !== null;
  $("operating").setAttribute("visibility", known ? "visible" : "hidden");
  if (!known) return;
  const hits = labelled.abnormal.above(state.threshold);
  const alarms = labelled.normal.above(state.threshold);
  const [tpr, fpr] = [hits.count / labelled.abnormal.count, alarms.count / labelled.normal.count];
  $("operating").setAttribute("cx", fpr * SIDE);
  $("operating").setAttribute("cy", SIDE - tpr * SIDE);
  const sign = hits.sure && alarms.sure ? "" : "≈ ";
  $("point").textContent = `At this threshold: sensitivity ${sign}${percent(tpr)}, specificity ${sign}${percent(1 - fpr)}.`;
}
