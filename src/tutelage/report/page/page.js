"use strict";
(() => {
  const table = document.getElementById("numbers");
  const lines = [...table.querySelectorAll(":scope > tbody")];
  const heads = [...table.querySelectorAll(":scope > thead th")];
  const order = new Intl.Collator("en", { numeric: true });
  const valueOf = (line, column) => {
    const cell = line.rows[0].cells[column];
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    return heads[column].classList.contains("words") ? cell.textContent : null;
  };

  // Numbers begin with the largest. What has no value comes last either way; ties keep the order of the study.
  const sort = (head) => {
    const column = heads.indexOf(head);
    const number = head.classList.contains("number");
    const now = head.getAttribute("aria-sort");
    const next = now === "none" ? (number ? "descending" : "ascending") : now === "ascending" ? "descending" : "ascending";
    const sign = next === "ascending" ? 1 : -1;
    heads.forEach((other) => other.setAttribute("aria-sort", other === head ? next : "none"));
    const keyed = lines.map((line, place) => ({ line, place, value: valueOf(line, column) }));
    keyed.sort((a, b) => {
      if (a.value === null || b.value === null) return (a.value === null) - (b.value === null) || a.place - b.place;
      return sign * (number ? a.value - b.value : order.compare(a.value, b.value)) || a.place - b.place;
    });
    table.append(...keyed.map((one) => one.line));
  };
  heads.forEach((head) => head.querySelector("button").addEventListener("click", () => sort(head)));

  const search = document.getElementById("search");
  const choices = [...document.querySelectorAll("[data-filter]")];
  const count = document.getElementById("count");
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const line of lines) {
      const text = line.rows[0].textContent.toLowerCase();
      const fits = words.every((word) => text.includes(word)) &&
        choices.every((choice) => !choice.value || line.dataset[choice.dataset.filter] === choice.value);
      line.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${lines.length} lines`;
  };
  search.addEventListener("input", filter);
  choices.forEach((choice) => choice.addEventListener("change", filter));
  filter();

  table.addEventListener("click", (event) => {
    const button = event.target.closest(".open");
    if (!button) return;
    const behind = document.getElementById(button.getAttribute("aria-controls"));
    behind.hidden = !behind.hidden;
    button.setAttribute("aria-expanded", String(!behind.hidden));
  });

  document.addEventListener("click", async (event) => {
    const button = event.target.closest(".copy");
    if (!button) return;
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    } catch {
      getSelection().selectAllChildren(code);
    }
  });

  // On paper every picture is open.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details.block:not([open])")];
    closed.forEach((block) => { block.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((block) => { block.open = false; }));
})();
