// Puts a search field above each long table of the page of models, which shows the rows that hold the words.
document.addEventListener("DOMContentLoaded", () => {
  if (document.querySelector("h1")?.textContent.trim().startsWith("Supported models") !== true) return;
  for (const table of document.querySelectorAll("article table")) {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < 20) continue;
    const field = document.createElement("input");
    field.type = "search";
    field.placeholder = "Search: llama, vision, latent ...";
    field.setAttribute("aria-label", "Search the model types");
    field.className = "search-models";
    const found = document.createElement("output");
    found.className = "search-models-found";
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      found.textContent = words.length ? `${shown} of ${rows.length}` : "";
    });
    table.before(field, found);
  }
});
