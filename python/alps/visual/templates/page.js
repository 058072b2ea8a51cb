"use strict";

for (const map of document.querySelectorAll(".map")) {
  const data = JSON.parse(map.querySelector("script").textContent);
  const numbers = data.numbers.map((row) => row.split(" "));
  const selected = data.selected && data.selected.map((heads) => new Set(heads));
  const cells = map.querySelector(".cells");
  const readout = map.closest("section").querySelector(".readout");
  const drawing = cells.querySelector("svg");
  const cursor = document.createElementNS(drawing.namespaceURI, "rect");
  let place = null;

  const says = (row, head) => {
    const marked = selected && selected[row].has(head);
    const group = data.groups[row] > 1 ? `, key/value group ${Math.floor(head / data.groups[row])}` : "";
    const value = numbers.length
      ? `${data.name} ${numbers[row][head]}${data.unit}${marked ? ", selected" : ""}`
      : marked ? "selected" : "not selected";
    return `layer ${data.layers[row]}, head ${head}${group}: ${value}`;
  };
  const show = (row, head) => {
    place = [row, head];
    for (const [name, value] of Object.entries({ x: head, y: row, width: 1, height: 1, class: "cursor" }))
      cursor.setAttribute(name, value);
    drawing.append(cursor);
    readout.textContent = (map.dataset.task ? `${map.dataset.task}, ` : "") + says(row, head);
  };
  const inside = (value, count) => Math.max(0, Math.min(count - 1, value));
  const point = (event) => {
    const box = drawing.getBoundingClientRect();
    const row = inside(Math.floor(((event.clientY - box.top) / box.height) * data.layers.length), data.layers.length);
    const columns = Math.max(...data.heads);
    const head = inside(Math.floor(((event.clientX - box.left) / box.width) * columns), columns);
    if (head < data.heads[row]) show(row, head);
  };
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

  drawing.querySelector(".spots").remove();
  cells.tabIndex = 0;
  cells.setAttribute("role", "application");
  cells.setAttribute("aria-label", `${drawing.getAttribute("aria-label")}; the arrow keys go from head to head`);
  cells.addEventListener("pointermove", point);
  cells.addEventListener("pointerdown", point);
  cells.addEventListener("focus", () => {
    if (cells.matches(":focus-visible")) show(...(place || [0, 0]));
  });
  cells.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    if (!step || !place) return;
    event.preventDefault();
    const row = inside(place[0] + step[0], data.layers.length);
    show(row, inside(place[1] + step[1], data.heads[row]));
  });
  readout.textContent = "Point at a head or tap it, or go from head to head with the arrow keys.";
}

const key = (text) => {
  if (text === "inf" || text === "-inf") return text === "inf" ? Infinity : -Infinity;
  return text === "" ? NaN : Number(text.replaceAll(",", ""));
};

for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const order = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...table.tBodies[0].rows].map((row) => {
        const text = row.cells[column].textContent.trim();
        return { row, text, number: key(text) };
      });
      const words = rows.every(({ text, number }) => Number.isNaN(number) && text !== "nan");
      rows.sort((one, other) => {
        if (words) return sign * one.text.localeCompare(other.text);
        const blank = Number.isNaN(one.number) - Number.isNaN(other.number); // the last in either order
        return blank || (one.number === other.number ? 0 : sign * (one.number < other.number ? -1 : 1)) || 0;
      });
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", order);
      table.tBodies[0].append(...rows.map(({ row }) => row));
    });
  });
}

let opened = []; // on paper, all is open but long tables
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open], .further)")];
  for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});
