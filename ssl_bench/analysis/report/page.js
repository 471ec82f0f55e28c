"use strict";
const root = document.documentElement;
const button = document.querySelector(".theme");
const isDark = () => root.dataset.theme
  ? root.dataset.theme === "dark"
  : matchMedia("(prefers-color-scheme: dark)").matches;
const label = () => { button.textContent = isDark() ? "Light" : "Dark"; };
button.hidden = false;
button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  label();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
label();

// Cells hold what they are sorted by; what is missing stands last in both directions.
const compare = (a, b, isNumeric) => isNumeric
  ? a - b
  : a.localeCompare(b, undefined, { numeric: true, sensitivity: "base" });
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, place) => {
    const isNumeric = head.classList.contains("n");
    const sorted = document.createElement("button");
    sorted.type = "button";
    sorted.append(...head.childNodes);
    head.append(sorted);
    head.setAttribute("aria-sort", "none");
    sorted.addEventListener("click", () => {
      const first = isNumeric ? "descending" : "ascending";
      const second = isNumeric ? "ascending" : "descending";
      const way = head.getAttribute("aria-sort") === first ? second : first;
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", way);
      const sign = way === "ascending" ? 1 : -1;
      const key = (row) => row.cells[place].dataset.sort;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
        return sign * compare(x, y, isNumeric);
      });
      body.append(...rows);
    });
  });
}

// A figure can be saved as it stands on the page, without being in it twice.
for (const link of document.querySelectorAll("a[data-image]")) {
  link.href = document.getElementById(link.dataset.image).src;
}

const named = () => {
  try {
    return document.getElementById(decodeURIComponent(location.hash.slice(1)));
  } catch {
    return null; // somebody typed an address that is none
  }
};
const open = () => {
  const target = location.hash && named();
  if (!target) return;
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  target.scrollIntoView();
};
addEventListener("hashchange", open);
// An address that is there already changes nothing, but its block may have been closed.
addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (link && link.hash === location.hash) open();
});
open();
addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("details")) each.open = true;
});
