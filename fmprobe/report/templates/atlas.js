"use strict";
// A click on a head sorts by its column, a second one the other way round. What is not known stays last.
const body = document.querySelector(".atlas tbody");
const rows = [...body.rows];
const heads = [...document.querySelectorAll(".atlas thead th")];
const valueOf = (row, key) => row.querySelector(`[data-key="${key}"]`)?.dataset.sort ?? "";
for (const head of heads) {
  const { key, kind } = head.dataset;
  head.querySelector("button").addEventListener("click", () => {
    const [first, second] = kind === "number" ? ["descending", "ascending"] : ["ascending", "descending"];
    const order = head.getAttribute("aria-sort") === first ? second : first;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const compare = (a, b) => (kind === "number" ? a - b : a.localeCompare(b));
    rows.sort((one, other) => {
      const [a, b] = [valueOf(one, key), valueOf(other, key)];
      return a === "" || b === "" ? (a === "") - (b === "") : sign * compare(a, b);
    });
    body.append(...rows);
  });
}

// The families that are shown, and how many rows these are.
const family = document.querySelector("#family");
const show = () => {
  for (const row of rows) row.hidden = family.value !== "" && row.dataset.family !== family.value;
  const shown = rows.filter((row) => !row.hidden).length;
  document.querySelector("#count").textContent = `${shown} of ${rows.length} shown`;
};
family.addEventListener("change", show);
show();

// In print, everything is open.
addEventListener("beforeprint", () => {
  for (const closed of document.querySelectorAll("details")) closed.open = true;
});
