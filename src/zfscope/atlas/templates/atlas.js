"use strict";
/* Which page an address names, keys, and dark or light. */

(() => {
  const { load, element, bdi } = zfscopeAtlas;
  const main = document.getElementById("main"), said = document.getElementById("said"), help = document.getElementById("help");
  let page = {}, asked = 0, first = true;

  function decoded(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text;
    }
  }

  /* The page of an address, without the hash: "", "conv5", "conv5/137", "image/12", "class/dog", "images", "classes". */
  async function find(index, address) {
    const [path, query] = address.split("?"), slash = path.indexOf("/");
    const start = slash < 0 ? path : path.slice(0, slash), rest = slash < 0 ? "" : path.slice(slash + 1);
    if (!path) return zfscopeAtlas.front(index);
    if (path === "images") return zfscopeAtlas.imagesPage(index);
    if (path === "classes") return zfscopeAtlas.classesPage(index);
    if (start === "image") return /^\d+$/.test(rest) ? zfscopeAtlas.imagePage(index, Number(rest)) : null;
    if (start === "class") {
      const named = index.classes.indexOf(decoded(rest));
      return zfscopeAtlas.classPage(index, named >= 0 ? named : /^\d+$/.test(rest) ? Number(rest) : -1);
    }
    const place = index.layers.findIndex((layer) => layer.address === decoded(start));
    if (place < 0 || (slash >= 0 && !/^\d+$/.test(rest))) return null;
    if (slash < 0) return zfscopeAtlas.layerPage(index, index.layers[place], place, new URLSearchParams(query).get("sort"));
    return zfscopeAtlas.mapPage(index, index.layers[place], place, Number(rest));
  }

  function steps() {
    const step = (address, text, key) => (address === null || address === undefined ? null
      : element("a", { class: "step", href: address, text, "aria-keyshortcuts": key }));
    const up = page.up === undefined ? null : element("a", { class: "step", href: page.up, text: "↑ up" });
    const made = [up, element("span", { class: "path" }), step(page.previous, "← previous", "ArrowLeft"), step(page.next, "next →", "ArrowRight")];
    return page.up === undefined ? null : element("nav", { class: "steps", "aria-label": "Neighbours" }, made);
  }

  async function show() {
    const turn = ++asked, address = location.hash.slice(1);
    let index, made;
    try {
      index = await load("index");
      made = await find(index, address);
    } catch (error) {
      made = { title: "Not there", body: [element("h1", { text: "This page cannot be shown" }), element("p", { text: error.message })], up: "#" };
    }
    if (turn !== asked) return;
    page = made || {
      title: "Not there", up: "#",
      body: [element("h1", { text: "No such page" }), element("p", {}, "Nothing in this atlas is called ", bdi(decoded(address)), ". ", element("a", { href: "#", text: "To the front page" }))],
    };
    document.title = address && index ? `${page.title} · Atlas of ${index.title}` : page.title;
    main.replaceChildren(...[steps(), page.body].flat(4).filter(Boolean));
    for (const link of document.querySelectorAll(".bar nav a")) {
      const own = decoded(link.hash.slice(1)), start = decoded(address.split(/[/?]/)[0]);
      const here = own === start || (own === "images" && start === "image") || (own === "classes" && start === "class");
      if (here) {
        link.setAttribute("aria-current", "true");
        link.parentElement.scrollLeft = link.offsetLeft - link.parentElement.offsetLeft - 60;
      } else link.removeAttribute("aria-current");
    }
    restore();
    if (!first) {
      said.textContent = page.title;
      main.focus({ preventScroll: true });
    }
    first = false;
    document.documentElement.dataset.shown = address;
  }

  /* Back and forward find a page where it was left; a new page begins at its top. */
  const places = new Map();
  let key = String(Math.random()), moved = null;
  history.scrollRestoration = "manual";
  function restore() {
    window.scrollTo(0, moved === null ? 0 : places.get(moved) || 0);
  }
  addEventListener("scroll", () => places.set(key, window.scrollY), { passive: true });
  addEventListener("popstate", (event) => {
    moved = event.state && event.state.key ? event.state.key : null;
    key = moved || String(Math.random());
    if (!moved) history.replaceState({ key }, "");
  });
  history.replaceState({ key }, "");
  addEventListener("hashchange", show);

  document.getElementById("skip").addEventListener("click", (event) => {
    event.preventDefault();
    main.focus();
  });

  /* Dark or light: the system's choice until another one is made. */
  const root = document.documentElement;
  function remembered(value) {
    try {
      if (value !== undefined) localStorage.setItem("zfscope-atlas-theme", value);
      return localStorage.getItem("zfscope-atlas-theme");
    } catch {
      return null;
    }
  }
  if (["dark", "light"].includes(remembered())) root.dataset.theme = remembered();
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    remembered(root.dataset.theme);
  });
  document.getElementById("keys").addEventListener("click", () => help.showModal());

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open || event.target.closest("input, textarea, select")) return;
    const go = (address) => {
      if (address === null || address === undefined) return;
      event.preventDefault();
      location.hash = address === "#" ? "" : address;
    };
    if (event.key === "/") {
      event.preventDefault();
      document.getElementById("query").focus();
    } else if (event.key === "?") help.showModal();
    else if (event.key === "ArrowLeft") go(page.previous);
    else if (event.key === "ArrowRight") go(page.next);
    else if (event.key === "Escape") go(page.up);
  });

  load("index").then((index) => zfscopeAtlas.searchIn(index), () => {});
  show();
})();
