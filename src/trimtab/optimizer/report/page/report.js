"use strict";
// The page is whole without this: it adds pointing, copying, sorting, filtering and the download.

const NEAR = 22; // pixels from the pointer to a mark that it means
const tip = document.getElementById("tip");
const said = new Map(); // what a mark says; taken from its title, so that it is not said twice
let near = null;

for (const title of document.querySelectorAll("svg.plot .mark > title")) {
  said.set(title.parentNode, title.textContent);
  title.remove();
}
for (const mark of document.querySelectorAll("svg.plot .mark.chosen, svg.plot .mark.default")) {
  if (!said.has(mark)) continue;
  mark.setAttribute("tabindex", "0");
  mark.setAttribute("role", "img");
  mark.setAttribute("aria-label", said.get(mark));
  mark.addEventListener("focus", () => show(mark));
  mark.addEventListener("blur", hide);
}

function show(mark) {
  if (near !== mark) {
    hide();
    near = mark;
    mark.classList.add("near");
    tip.textContent = said.get(mark);
    tip.hidden = false;
  }
  const at = mark.getBoundingClientRect();
  const box = tip.getBoundingClientRect();
  const width = document.documentElement.clientWidth;
  const left = Math.min(Math.max(8, at.left + at.width / 2 + 14), width - box.width - 8);
  const below = at.bottom + 10;
  const top = below + box.height < window.innerHeight ? below : at.top - box.height - 10;
  tip.style.translate = `${Math.max(8, left)}px ${Math.max(8, top)}px`;
}

function hide() {
  near?.classList.remove("near");
  near = null;
  tip.hidden = true;
}

for (const plot of document.querySelectorAll("svg.plot")) {
  const marks = [...plot.querySelectorAll(".mark")].filter((mark) => said.has(mark));
  const point = (event) => {
    let best = null;
    let least = NEAR;
    for (const mark of marks) {
      const box = mark.getBoundingClientRect();
      const x = box.left + box.width / 2 - event.clientX;
      const y = box.top + box.height / 2 - event.clientY;
      const distance = Math.hypot(x, y);
      // Of two at the same place the later one lies on top.
      if (distance <= least) [best, least] = [mark, distance];
    }
    if (best) show(best);
    else hide();
  };
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("pointerleave", hide);
}
addEventListener("keydown", (event) => event.key === "Escape" && hide());
addEventListener("scroll", hide, { passive: true });

async function copy(node) {
  try {
    await navigator.clipboard.writeText(node.textContent);
    return true;
  } catch {
    // No clipboard for a file: in some browsers; then it is selected, to be copied by hand.
    getSelection().selectAllChildren(node);
    return document.execCommand("copy");
  }
}
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const done = await copy(document.getElementById(button.dataset.copy));
    button.textContent = done ? "Copied" : "Selected";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

const table = document.getElementById("candidates");
if (table) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => {
    const cell = row.cells[column];
    if (!heads[column].classList.contains("number")) return cell.textContent.trim().toLowerCase();
    return cell.dataset.key === undefined ? null : Number(cell.dataset.key);
  };
  const sort = (column) => {
    const head = heads[column];
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    rows.sort((one, two) => {
      const [a, b] = [key(one, column), key(two, column)];
      if (a === null || b === null) return (a === null) - (b === null);
      return (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1);
    });
    body.append(...rows);
  };
  heads.forEach((head, column) => {
    if (!head.classList.contains("sortable")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column));
    head.append(button);
  });
  const find = document.getElementById("find");
  const stage = document.getElementById("stage");
  const filter = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const text = `${row.textContent} ${row.className}`.toLowerCase();
      const fits = words.every((word) => text.includes(word));
      row.hidden = !fits || (stage.value !== "" && row.dataset.stage !== stage.value);
      count += !row.hidden;
    }
    document.getElementById("count").textContent = `${count} of ${rows.length}`;
  };
  find.addEventListener("input", filter);
  stage.addEventListener("change", filter);
  document.querySelector(".filters").hidden = false;
}

const download = document.getElementById("download");
download.hidden = false;
download.addEventListener("click", () => {
  const data = document.getElementById("data").textContent;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([data], { type: "application/json" }));
  link.download = "results.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
});
