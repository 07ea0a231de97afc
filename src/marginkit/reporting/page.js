"use strict";
// The page is whole without this: it adds a switch for the colours, sorting of tables and the search.
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const kept = (() => { try { return localStorage.getItem("marginkit-theme"); } catch { return null; } })();
  if (kept === "light" || kept === "dark") root.dataset.theme = kept;
  button.hidden = false;
  button.addEventListener("click", () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    try { localStorage.setItem("marginkit-theme", root.dataset.theme); } catch { /* a page opened from a file may not keep it */ }
  });

  const worth = (cell) => {
    const text = cell.dataset.v !== undefined ? cell.dataset.v : cell.textContent;
    const number = parseFloat(text.replace(/,/g, ""));
    return Number.isNaN(number) ? text.trim().toLowerCase() : number;
  };
  for (const table of document.querySelectorAll("table")) {
    const body = table.tBodies[0];
    if (!body || body.rows.length < 3) continue;
    for (const head of table.tHead.rows[0].cells) {
      if (!head.textContent.trim()) continue;
      const sort = document.createElement("button");
      sort.type = "button";
      sort.className = "sort";
      sort.append(...head.childNodes);
      head.append(sort);
      sort.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const at = head.cellIndex;
        const order = (a, b) => {
          const x = worth(a.cells[at]), y = worth(b.cells[at]);
          if (typeof x === typeof y) return x < y ? -1 : x > y ? 1 : 0;
          return typeof x === "number" ? -1 : 1;
        };
        const rows = [...body.rows].sort(order);
        body.append(...(up ? rows : rows.reverse()));
      });
    }
  }

  for (const part of document.querySelectorAll(".pairs")) {
    const search = part.querySelector(".search");
    if (!search) continue;
    search.hidden = false;
    const found = search.querySelector(".found");
    const pairs = [...part.querySelectorAll(".pair")].map((pair) => [pair, pair.textContent.toLowerCase()]);
    const more = part.querySelector("details.more");
    let waiting = 0;
    search.querySelector("input").addEventListener("input", (event) => {
      clearTimeout(waiting);
      const words = event.target.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
      waiting = setTimeout(() => {
        if (more && words.length) more.open = true;
        let count = 0;
        for (const [pair, text] of pairs) {
          pair.hidden = !words.every((word) => text.includes(word));
          if (!pair.hidden) count += 1;
        }
        found.textContent = words.length ? `${count} of ${pairs.length} shown pairs match` : found.dataset.all;
      }, 120);
    });
  }

  const opened = [];
  addEventListener("beforeprint", () => {
    for (const fold of document.querySelectorAll("details:not([open]):not(.numbers)")) { fold.open = true; opened.push(fold); }
  });
  addEventListener("afterprint", () => { for (const fold of opened.splice(0)) fold.open = false; });
})();
