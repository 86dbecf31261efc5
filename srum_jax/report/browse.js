"use strict";
// Filters of the report by kind and words, and how many items they leave. What a model got right or
// wrong is filtered by the style sheet, which works without this script.
for (const browse of document.querySelectorAll(".browse")) {
  const items = [...browse.querySelectorAll(".item")];
  const rows = browse.querySelectorAll("tr.item");
  const kind = browse.querySelector("select.kind");
  const words = browse.querySelector("input.words");
  const count = browse.querySelector("output");
  const every = browse.querySelector("details.every");
  for (const one of browse.querySelectorAll(".scripted")) one.hidden = false;

  const visible = (item) => getComputedStyle(item).display !== "none";
  const update = () => {
    const wanted = words.value.trim().toLowerCase();
    for (const item of items) {
      const other = kind && kind.value && item.dataset.category !== kind.value;
      const silent = wanted && !item.textContent.toLowerCase().includes(wanted);
      item.classList.toggle("left-out", Boolean(other || silent));
    }
    for (const group of browse.querySelectorAll(".group")) {
      group.hidden = false;
      group.hidden = ![...group.querySelectorAll(".item")].some(visible);
    }
    const counted = rows.length ? [...rows] : items;
    count.textContent = `${counted.filter(visible).length} of ${counted.length} listed`;
  };
  browse.querySelector("fieldset").addEventListener("input", () => {
    if (every) every.open = true;
    update();
  });
  update();
}

// A link to a kind's items opens the list that holds them.
const reveal = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  const list = target && target.closest("details");
  if (!list || list.open) return;
  list.open = true;
  target.scrollIntoView();
};
addEventListener("hashchange", reveal);
reveal();
