// SPDX-License-Identifier: Apache-2.0
// The start, and the keys that work everywhere.

function typing(target) {
  return target.matches("input:not([type=range]):not([type=checkbox]), select, textarea");
}

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || $("help").open) return;
  if (event.key === "Escape") {
    if (event.target === $("search") && $("search").value) {
      $("search").value = "";
      $("search").dispatchEvent(new Event("input"));
    } else if ($("detail").contains(event.target) || event.target === $("search") || $("detail").classList.contains("open")) {
      closeDetail();
    } else return;
  } else if (typing(event.target)) return;
  else if (event.key === "/") {
    openTab("worklist");
    $("search").focus();
    $("search").select();
  } else if (event.key === "?") $("help").showModal();
  else if (event.key === "o") { state.heat = !state.heat; applyView(); }
  else if (event.key === "p") { state.peak = !state.peak; applyView(); }
  else if (event.key === "t") { $("threshold").open = true; $("slider").focus(); }
  else return;
  event.preventDefault();
});

$("search").addEventListener("keydown", (event) => {
  if (event.key !== "ArrowDown") return;
  event.preventDefault();
  $("list").focus();
});

$("help-button").addEventListener("click", () => $("help").showModal());
phone.addEventListener("change", () => cover(phone.matches && $("detail").classList.contains("open")));

// On paper: the first lines of the list, and the picture that is selected.
const PRINTED = 50;
window.addEventListener("beforeprint", () => {
  $("threshold").open = true;
  worklist.print(PRINTED);
});
window.addEventListener("afterprint", () => worklist.print(0));

startList();
startTabs();
notices();
if (phone.matches) $("threshold").open = false;
startChart();
if (order.length && !phone.matches) state.row = order[0];
worklist.set(order.length, order.indexOf(state.row));
setThreshold(state.threshold);
requestAnimationFrame(() => setTimeout(() => {
  loadPictures();
  worklist.renew();
  fillDetail();
  document.documentElement.dataset.ready = "yes";
}));
