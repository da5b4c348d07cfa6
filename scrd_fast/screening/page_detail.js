// SPDX-License-Identifier: Apache-2.0
// The selected picture: its heat map as a layer of its own, scores, place of the peak, what is known of it.

const FLAGS = {
  "constant": "all pixels have one value",
  "all-zero": "all pixels are zero",
  "unusual-colour": "in colour where the calibration images are gray, or the reverse",
  "unusual-size": "height or width is far from those of the calibration images",
  "unusual-range": "pixel values are far from those of the calibration images",
  "j2k-precision": "JPEG 2000 whose precision contradicts the header",
  "no-modality": "the header does not say the modality",
  "no-body-part": "the header does not say the body part",
  "no-view": "the header does not say the view",
  "foreign-calibration": "the calibration is of another model or site: decision and percentile may be wrong",
  "map-not-written": "its map could not be written",
  "overlay-not-written": "its overlay could not be written",
  "dicom-not-written": "a result in DICOM is missing; the next flag says why",
  "dicom-header-mended": "its results in DICOM leave out what the standard forbids in the header",
};

const phone = window.matchMedia("(max-width: 60rem)");

function showDetail(row, how) {
  state.row = row;
  fillDetail();
  if (phone.matches ? how !== "reach" : how === "enter") openDetail();
}

// On a small screen it covers the page, which then takes neither focus nor touch.
function cover(covered) {
  document.body.classList.toggle("covered", covered);
  $("detail").setAttribute("role", covered ? "dialog" : "region");
  for (const part of document.querySelectorAll("header, #notices, #threshold, [role=tablist], #filters, .panes > :first-child")) {
    part.inert = covered;
  }
}

function openDetail() {
  $("detail").classList.add("open");
  cover(phone.matches);
  $("detail").focus();
  $("detail").scrollTop = 0;
}

function closeDetail() {
  $("detail").classList.remove("open");
  cover(false);
  $("list").focus();
}

function step(by) {
  const to = worklist.current + by;
  if (to < 0 || to >= worklist.count) return;
  const label = document.activeElement.getAttribute("aria-label");
  worklist.select(to, "reach");
  $("detail").querySelector(`.bar [aria-label="${label}"]`)?.focus(); // the button is a new one
}

function fillDetail() {
  const detail = $("detail");
  const row = state.row;
  if (row === null) {
    detail.replaceChildren(make("p", { className: "quiet empty" }, "Select a picture in the list."));
    return;
  }
  const [folder, name] = split(word("path", row));
  const button = (text, label, act) => {
    const made = make("button", { type: "button", "aria-label": label }, text);
    made.addEventListener("click", act);
    return made;
  };
  detail.replaceChildren(
    make("div", { className: "row bar" },
      button("‹", "The picture before", () => step(-1)),
      button("›", "The next picture", () => step(1)),
      make("span", { className: "quiet grow" },
        worklist.current < 0 ? "" : `${whole.format(worklist.current + 1)} of ${whole.format(worklist.count)}`),
      badge(row),
      make("span", { className: "close" }, button("✕", "Back to the list", closeDetail))),
    make("h2", { dir: "ltr" }, name, isOne(row) ? null : make("span", { className: "quiet" }, ` frame ${columns.frame[row]}`)),
    folder ? make("p", { className: "quiet path", dir: "ltr" }, folder) : null,
    ...errorsOf(row),
    ...viewOf(row),
    ...verdictOf(row),
    ...tablesOf(row),
  );
  applyView();
}

function errorsOf(row) {
  const error = word("error", row);
  const flags = flagsOf(row);
  return [
    error && make("p", { className: "notice bad" }, make("b", {}, `${word("status", row)}: `), visible(error)),
    flags.length ? make("ul", { className: "flags", "aria-label": "Flags" },
      ...flags.map((flag) => make("li", {}, make("b", {}, visible(flag)), FLAGS[flag] ? ` ${FLAGS[flag]}` : ""))) : null,
  ].filter(Boolean);
}

function viewOf(row) {
  const layers = pictures && pictures.layers[row];
  const small = smallPicture(row);
  if (!layers && !small) {
    return columns.score[row] === null ? [] : [make("p", { className: "quiet" }, noPicture())];
  }
  const ratio = columns.height[row] && columns.width[row] ? `${columns.width[row]} / ${columns.height[row]}` : "1";
  const view = make("div", { className: layers ? "view" : "view small", id: "view" });
  view.style.aspectRatio = ratio;
  view.style.setProperty("--ratio", columns.width[row] && columns.height[row] ? columns.width[row] / columns.height[row] : 1);
  view.append(make("img", { src: layers ? `data:image/webp;base64,${layers[0]}` : small, alt: "The picture", draggable: false }));
  if (layers) {
    view.append(make("img", { id: "heat", src: `data:image/png;base64,${layers[1]}`, alt: "Its anomaly map", draggable: false }));
  }
  if (columns.peak_row[row] !== null && columns.height[row]) {
    const mark = view.appendChild(make("span", { id: "peak", "aria-hidden": "true" }));
    mark.style.top = `${(100 * (columns.peak_row[row] + 0.5)) / columns.height[row]}%`;
    mark.style.left = `${(100 * (columns.peak_column[row] + 0.5)) / columns.width[row]}%`;
  }
  const peak = columns.peak_row[row] === null ? null : toggle("peak", "peak");
  if (!layers) return [view, make("p", { className: "row quiet" }, peak, make("span", {}, noPicture()))];
  const slider = make("input", { type: "range", id: "opacity", min: 0, max: 100, value: state.opacity, "aria-label": "Opacity of the heat map" });
  slider.addEventListener("input", () => { state.opacity = Number(slider.value); state.heat = true; applyView(); });
  const controls = make("div", { className: "row overlay" }, toggle("heat", "heat map"), slider, make("output", { id: "opacity-told" }), peak);
  return [view, controls, colourScale()];
}

function noPicture() {
  if (!pictures) return data.run.finished ? "This page has no pictures." : "Pictures are added when the run is finished.";
  return `Picture and heat map are in this page for the ${counted(Object.keys(pictures.layers).length, "most suspicious picture", "most suspicious pictures")}.`;
}

function toggle(name, text) {
  const box = make("input", { type: "checkbox", id: `show-${name}` });
  box.addEventListener("change", () => { state[name] = box.checked; applyView(); });
  return make("label", {}, box, ` ${text}`);
}

function applyView() {
  if ($("heat")) {
    $("heat").style.opacity = state.heat ? state.opacity / 100 : 0;
    $("opacity").value = state.opacity;
    $("opacity-told").textContent = `${state.heat ? state.opacity : 0} %`;
    $("show-heat").checked = state.heat;
  }
  if ($("peak")) $("peak").hidden = !state.peak;
  if ($("show-peak")) $("show-peak").checked = state.peak;
}

function colourScale() {
  if (!pictures.scale) return null;
  const [low, high] = pictures.scale;
  const about = data.calibration ? "half of the calibration normals stay below the left end" : "the scale of the most suspicious picture";
  return make("p", { className: "scale quiet" },
    make("span", {}, short(low)), make("span", { className: "colours", role: "img", "aria-label": "Colours of the heat map" }),
    make("span", {}, short(high)), make("span", { className: "about" }, `One scale for all pictures: ${about}. The picture is shown as the model is given it.`));
}

function verdictOf(row) {
  const score = columns.score[row];
  if (score === null) return [];
  const percentile = columns.percentile[row];
  const lines = [make("p", { className: "verdict" },
    make("b", { className: "big" }, short(score)),
    make("span", { className: "quiet" }, ` score${data.run.score ? ` (${data.run.score})` : ""}`),
    state.threshold === null ? null : make("span", { className: "quiet" }, `, threshold ${short(state.threshold)}`))];
  if (percentile !== null) {
    const those = percentile === 1 ? "all" : percentile === 0 ? "none" : percent(percentile);
    lines.push(make("p", { className: "row" }, bar(percentile),
      make("span", { className: "grow" }, `as high as or higher than ${those} of the calibration's normal images`)));
  }
  const label = columns.label ? columns.label[row] : null;
  if (columns.label) lines.push(make("p", {}, "Label: ", make("b", {}, label === null ? "none" : label ? "abnormal" : "normal")));
  return lines;
}

function table(head, rows) {
  return make("table", {},
    make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text)))),
    make("tbody", {}, ...rows.map(([first, ...rest]) =>
      make("tr", {}, make("th", { scope: "row" }, first), ...rest.map((cell) => make("td", {}, cell))))));
}

function bar(share) {
  const made = make("span", { className: "share" });
  made.style.setProperty("--share", `${100 * Math.min(Math.max(share, 0), 1)}%`);
  return made;
}

function tablesOf(row) {
  const parts = [];
  const at = (name) => columns[name][row];
  const distances = [1, 2, 3].map((k) => at(`scale_${k}`));
  if (distances.some((x) => x !== null)) {
    const most = Math.max(...distances.map((x) => x ?? 0), 1e-12);
    const rows = [1, 2, 3].filter((k) => at(`scale_${k}`) !== null).map((k) => {
      const distance = make("span", { className: "measure" }, bar(at(`scale_${k}`) / most), short(at(`scale_${k}`)));
      const weight = at(`weight_${k}`) === null ? "–" : make("span", { className: "measure" }, bar(at(`weight_${k}`)), short(at(`weight_${k}`)));
      return [["1 (finest)", "2", "3 (coarsest)"][k - 1], distance, weight];
    });
    parts.push(table(["Scale", "mean distance", "weight"], rows));
  }
  const scores = ["mean", "max", "top1", "top5"].filter((name) => columns[`score_${name}`] && at(`score_${name}`) !== null);
  if (scores.length) parts.push(table(["Scores of the map", ""], scores.map((name) => [name, short(at(`score_${name}`))])));
  parts.push(table(["About the picture", ""], factsOf(row)));
  return parts;
}

function factsOf(row) {
  const at = (name) => columns[name][row];
  const facts = [["status", word("status", row)]];
  if (at("height") !== null) facts.push(["size", `${at("height")} × ${at("width")} pixels (height × width)`]);
  if (at("peak_row") !== null) facts.push(["peak of the map", `row ${at("peak_row")}, column ${at("peak_column")}`]);
  const names = { shown_by: "shown by", geometry: "axes", burned_in: "burned-in text", modality: "modality", body_part: "body part", view: "view", manufacturer: "manufacturer", device_model: "device" };
  for (const [column, name] of Object.entries(names)) {
    if (word(column, row) !== null) facts.push([name, visible(word(column, row))]);
  }
  for (const column of ["study", "series"]) {
    const value = word(column, row);
    if (!value) continue;
    const link = make("button", { type: "button", className: "link" }, visible(value));
    link.addEventListener("click", () => { closeDetail(); filterBy(column, column, value); });
    facts.push([column, link]);
  }
  facts.push(["sample_id", make("code", {}, visible(word("sample_id", row)))]);
  return facts;
}
