"use strict";
/* What the pages are made of: data from scripts, elements whose text is never markup, tiles of sheets. */

const zfscopeAtlas = (() => {
  const taken = new Map(), waiting = new Map();

  /* Data scripts call this. */
  function take(name, content) {
    taken.set(name, content);
  }

  /* A promise of the content of data/NAME.js, loaded once. */
  function load(name) {
    if (!waiting.has(name)) {
      waiting.set(name, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = `data/${name}.js`;
        script.onload = () => (taken.has(name) ? resolve(taken.get(name)) : reject(new Error(`data/${name}.js is damaged`)));
        script.onerror = () => reject(new Error(`data/${name}.js is missing; is the folder whole?`));
        document.head.append(script);
      }));
    }
    return waiting.get(name);
  }

  /* An element: names that begin with on are listeners, "text" is text, others are attributes; null ones are left out. */
  function element(tag, about, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(about || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "text") made.textContent = value;
      else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.flat(3).filter((child) => child !== null && child !== undefined));
    return made;
  }

  function svg(tag, about, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(about)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  /* A sheet is loaded when a tile of it comes near the screen. */
  const near = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      target.style.backgroundImage = `url("${target.dataset.sheet}")`;
      near.unobserve(target);
    }
  }, { rootMargin: "400px" });

  /* Pixels of the page for one of a tile, so that its longer side has about `side`; sharp ones a whole number. */
  function scaleOf(shape, side) {
    const scale = side / Math.max(shape.width, shape.height);
    return shape.sharp ? Math.max(1, Math.floor(1.13 * scale)) : scale;
  }

  /* Tile number `cell` of a sheet with `across` tiles in a row; without a label it is decoration beside a text. */
  function tile(sheet, cell, across, shape, side, label) {
    const made = element("span", {
      class: shape.sharp ? "tile sharp" : "tile",
      "data-sheet": sheet,
      role: label ? "img" : null,
      "aria-label": label,
      "aria-hidden": label ? null : "true",
    });
    const scale = scaleOf(shape, side), width = shape.width * scale, height = shape.height * scale;
    made.style.width = `${width}px`;
    made.style.height = `${height}px`;
    made.style.backgroundSize = `${across * width}px auto`;
    made.style.backgroundPosition = `${-(cell % across) * width}px ${-Math.floor(cell / across) * height}px`;
    near.observe(made);
    return made;
  }

  const bdi = (text) => element("bdi", { text });
  const counted = (count, one, more) => `${count.toLocaleString("en")} ${count === 1 ? one : more || `${one}s`}`;
  const number = (value) => (Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3))));
  const percent = (share) => `${(100 * share).toFixed(share > 0.0005 && share < 0.1 ? 1 : 0)} %`;
  const facts = (pairs) => element("dl", { class: "facts" }, pairs.filter(Boolean).map(([name, value]) =>
    element("div", {}, element("dt", { text: name }), element("dd", {}, value))));

  return { take, load, element, svg, tile, scaleOf, bdi, counted, number, percent, facts };
})();
