"use strict";
// Sliders: a slider moves every frame of a film to one column of its sprite.
for (const film of document.querySelectorAll(".film")) {
  const input = film.querySelector("input[type=range]");
  if (!input) continue;
  const output = film.querySelector("output");
  const labels = JSON.parse(input.dataset.labels);
  const move = () => {
    film.style.setProperty("--column", input.value);
    output.textContent = labels[input.value];
    input.setAttribute("aria-valuetext", labels[input.value]);
  };
  input.addEventListener("input", move);
  move();
}

// Galleries: the tile that is pointed at, tapped or reached by arrow keys is shown large, with its numbers.
for (const gallery of document.querySelectorAll(".gallery")) {
  const tiles = [...gallery.querySelectorAll(".tile")];
  const inspector = gallery.querySelector(".inspector");
  const show = (tile) => {
    for (const other of tiles) {
      other.setAttribute("aria-checked", other === tile);
      other.tabIndex = other === tile ? 0 : -1;
    }
    const image = inspector.querySelector("img");
    const large = tile.querySelector("img");
    image.src = large.src;
    image.alt = large.alt;
    inspector.querySelector(".title").textContent = tile.dataset.title;
    const list = inspector.querySelector("dl");
    list.replaceChildren();
    for (const [name, value] of JSON.parse(tile.dataset.facts)) {
      const term = document.createElement("dt");
      const description = document.createElement("dd");
      term.textContent = name;
      description.textContent = value;
      list.append(term, description);
    }
  };
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  tiles.forEach((tile, place) => {
    tile.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && show(tile));
    tile.addEventListener("click", () => show(tile));
    tile.addEventListener("focus", () => show(tile));
    tile.addEventListener("keydown", (event) => {
      let to = place + (steps[event.key] ?? 0);
      if (event.key === "Home") to = 0;
      else if (event.key === "End") to = tiles.length - 1;
      else if (to === place) return;
      event.preventDefault();
      tiles[(to + tiles.length) % tiles.length].focus();
    });
  });
  if (tiles.length) show(tiles[0]);
}

// How to read the page is open on the first visit. A browser that keeps nothing leaves it open.
const how = document.getElementById("how-to-read");
try {
  if (localStorage.getItem("fmprobe-has-read")) how.open = false;
  localStorage.setItem("fmprobe-has-read", "yes");
} catch {
  // Storage may be switched off for local files.
}

// A link to a term opens the glossary.
const unfold = () => {
  const at = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const closed = at?.closest("details:not([open])");
  if (closed) {
    closed.open = true;
    at.scrollIntoView();
  }
};
addEventListener("hashchange", unfold);
unfold();

// In print, everything is open.
addEventListener("beforeprint", () => {
  for (const closed of document.querySelectorAll("details")) closed.open = true;
});
