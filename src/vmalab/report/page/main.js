// The state of the page, and everything that changes it.

class App {
  constructor(data, columns) {
    this.data = data;
    this.spaces = data.spaces.map((each, i) => new Space(i, each, columns));
    this.failures = new Failures(data.failures, columns, this.spaces.length);
    this.tale = null;
    this.n = 0;
    this.selected = null;
    this.view = { n0: 0, n1: 1, y0: 0, y1: 1 };
    this.playing = false;
    this.chart = new Chart(this);
    this.picture = new Picture(this);
    this.panelsSoon = oncePerFrame(() => this.showPanels());
    this.boundariesLate = null;
  }

  get space() {
    return this.spaces[this.number];
  }

  attributesOf(row) {
    return this.data.attributes[this.space.attributes[row]];
  }

  kindColour(kind) {
    return this.data.kinds[kind][this.theme];
  }

  // The row of the chosen VMA at the chosen record, or -1.
  selectedRow() {
    if (this.selected === null) return -1;
    this.space.rowsAt(this.n);
    return this.space.rowOf(this.n, this.selected);
  }

  // -- the place in the trace --------------------------------------------------------------------

  chooseSpace(index) {
    this.stop();
    this.number = index;
    this.selected = null;
    const { space } = this;
    this.view = { n0: space.first, n1: Math.max(space.first + 1, space.last + 1), y0: 0, y1: 1 };
    const scrub = byId("scrub");
    [scrub.min, scrub.max] = [space.first, space.last];
    [byId("record").min, byId("record").max] = [space.first, space.last];
    this.picture.show(space);
    this.n = -1;
    this.goTo(this.peakRecord());
    this.chart.show(space);
    this.select(null);
    showTab(this);
    this.showKinds();
  }

  // Where the map count is highest: what one comes to see.
  peakRecord() {
    const { n, mapCount } = this.space.counters;
    let peak = 0;
    for (let i = 1; i < n.length; i++) if (mapCount[i] > mapCount[peak]) peak = i;
    return n.length ? n[peak] : this.space.first;
  }

  goTo(n, intoView = false) {
    const { space } = this;
    n = Math.max(space.first, Math.min(space.last, Math.floor(n)));
    if (Number.isNaN(n)) return;
    const changed = n !== this.n;
    this.n = n;
    if (intoView) this.bringIntoView(n);
    if (!changed) return;
    byId("scrub").value = n;
    byId("scrub").setAttribute("aria-valuetext", `record ${n}`);
    if (document.activeElement !== byId("record")) byId("record").value = n;
    this.picture.overlaySoon();
    this.panelsSoon();
  }

  // Move the view, not its width, so that a record is seen.
  bringIntoView(n) {
    const { n0, n1 } = this.view;
    if (n >= n0 && n < n1) return;
    this.zoomTo(n - (n1 - n0) / 2, n + (n1 - n0) / 2);
  }

  showPanels() {
    byId("call").textContent = this.tale ? this.tale.text(this.n) : "";
    this.chart.updateLegend();
    this.chart.moveMark();
    showVma(this);
    markStory(this);
    // While the place is moving the list of boundaries waits.
    clearTimeout(this.boundariesLate);
    if (!byId("boundaries").hidden) this.boundariesLate = setTimeout(() => showBoundaries(this), this.playing ? 400 : 60);
  }

  // -- the chosen VMA ----------------------------------------------------------------------------

  select(address, intoView = false) {
    this.selected = address;
    if (address !== null && intoView) {
      const height = this.picture.scale.of(address);
      const { y0, y1 } = this.view;
      if (height < y0 || height > y1) this.zoomTo(this.view.n0, this.view.n1, height - (y1 - y0) / 2, height + (y1 - y0) / 2);
    }
    showVma(this);
    showStory(this);
    this.picture.overlaySoon();
  }

  selectNeighbour(direction) {
    const { space } = this;
    const rows = space.rowsAt(this.n);
    if (!rows.length) return;
    let place = rows.indexOf(this.selectedRow());
    if (place < 0) {
      const above = this.selected === null ? 0 : rows.findIndex((row) => space.startOf(row) > this.selected);
      place = above < 0 ? rows.length - 1 : above;
    } else {
      place = Math.max(0, Math.min(rows.length - 1, place + direction));
    }
    this.select(space.startOf(rows[place]), true);
  }

  // -- zoom --------------------------------------------------------------------------------------

  zoomTo(n0, n1, y0 = this.view.y0, y1 = this.view.y1) {
    const [first, end] = [this.space.first, Math.max(this.space.first + 1, this.space.last + 1)];
    const { total } = this.picture.scale;
    this.view = { ...within(n0, n1, first, end, 4, "n"), ...within(y0, y1, 0, total, Math.min(3, total), "y") };
    this.chart.followSoon();
    this.picture.drawSoon();
  }

  zoomTime(factor, centre = this.n + 0.5) {
    const { n0, n1 } = this.view;
    this.zoomTo(centre - (centre - n0) * factor, centre + (n1 - centre) * factor);
  }

  zoomMemory(factor, centre = null) {
    const { n0, n1, y0, y1 } = this.view;
    const middle = centre ?? (this.selected !== null ? this.picture.scale.of(this.selected) : (y0 + y1) / 2);
    this.zoomTo(n0, n1, middle - (middle - y0) * factor, middle + (y1 - middle) * factor);
  }

  zoomAll() {
    this.zoomTo(this.space.first, this.space.last + 1, 0, this.picture.scale.total);
  }

  // -- play --------------------------------------------------------------------------------------

  toggle() {
    if (this.playing) this.stop();
    else this.play();
  }

  play() {
    const { space } = this;
    if (this.n >= space.last) this.goTo(space.first, true);
    this.playing = true;
    byId("play").textContent = "Stop";
    let at = this.n;
    let last = performance.now();
    const step = (now) => {
      if (!this.playing) return;
      const speed = Number(byId("speed").value);
      const perSecond = speed > 0 ? (space.last - space.first) / speed : speed === 0 ? 1 : -speed;
      at += ((now - last) / 1000) * perSecond;
      last = now;
      this.goTo(at, true);
      if (at >= space.last) this.stop();
      else requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  stop() {
    this.playing = false;
    byId("play").textContent = "Play";
  }

  // -- what is beside ----------------------------------------------------------------------------

  showTip(event, row) {
    const { space } = this;
    const attributes = this.attributesOf(row);
    const group = space.groups[space.apart[row]];
    const tip = byId("tip");
    const [start, end] = [space.startOf(row), space.endOf(row)];
    const lines = [
      ["strong", attributes.name || "anonymous"],
      ["mono", `${span(start, end)} ${attributes.perm}`],
      ["", `${size(end - start)}, ${this.data.kinds[attributes.kind].label}${space.anon[row] ? `, written to (anon_vma ${space.anon[row]})` : ""}`],
      ["quiet mono", attributes.flags],
      group && !group.gap ? ["", `apart from the VMA below: ${group.kind}`] : null,
      ["quiet", `so from record ${number(space.born[row])} until ${space.died[row] === FOREVER ? "the end" : number(space.died[row])}`],
    ].filter(Boolean);
    tip.replaceChildren(...lines.map(([className, text]) => make("div", { className, text })));
    tip.hidden = false;
    const [x, y] = [event.clientX + 14, event.clientY + 14];
    tip.style.left = `${Math.max(4, Math.min(x, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${y + tip.offsetHeight > innerHeight - 4 ? Math.max(4, y - tip.offsetHeight - 28) : y}px`;
  }

  hideTip() {
    byId("tip").hidden = true;
  }

  showKinds() {
    const held = new Uint8Array(this.data.attributes.length);
    const { attributes } = this.space;
    for (let row = 0; row < attributes.length; row++) held[attributes[row]] = 1;
    const present = new Set(this.data.attributes.filter((_, i) => held[i]).map(({ kind }) => kind));
    byId("kinds").replaceChildren(...this.data.kinds.flatMap((kind, i) => {
      if (!present.has(i)) return [];
      const swatch = make("span", { className: "swatch" });
      swatch.style.background = this.kindColour(i);
      return [make("li", { title: kind.meaning }, swatch, kind.label)];
    }));
  }

  setTheme(theme) {
    this.theme = theme;
    document.documentElement.dataset.theme = theme;
    byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
    if (this.number === undefined) return;
    this.chart.rebuild();
    this.showKinds();
    this.picture.drawSoon();
  }

  nextFailure(direction) {
    const here = this.failures.in(this.space);
    const found = direction > 0 ? here.find((n) => n > this.n) : here.findLast((n) => n < this.n);
    if (found !== undefined) this.goTo(found, true);
  }
}

// A part of a whole that is at least so wide.
function within(from, to, first, end, least, name) {
  let width = Math.min(end - first, Math.max(least, to - from));
  const start = Math.max(first, Math.min(end - width, (from + to) / 2 - width / 2));
  return { [`${name}0`]: start, [`${name}1`]: start + width };
}

// -- the first look ----------------------------------------------------------------------------------

function showHead(app) {
  const { data } = app;
  const title = data.command || data.name;
  byId("title").textContent = title;
  document.title = `${title} — vmalab`;
  const calls = app.spaces.reduce((sum, space) => sum + space.calls, 0);
  const facts = [plural(calls, "memory call", "memory calls"), plural(app.spaces.length, "address space", "address spaces")];
  if (data.kernel) facts.push(`kernel ${data.kernel}`);
  if (data.recorder) facts.push(`recorded with ${data.recorder}`);
  facts.push({ exact: "every fault seen", "at-calls": "faults found at the next call", none: "faults not seen" }[data.faults] ?? "");
  byId("subtitle").textContent = facts.join(" · ");
  byId("notes").hidden = !data.notes.length;
  byId("notes").replaceChildren(...data.notes.map((text) => make("p", { text })));
  byId("space").replaceChildren(...app.spaces.map((space, i) => make("option", { value: String(i), text:
    `${space.pid}  ${shortName(space.exe) || "?"}  records ${number(space.first)}–${number(space.last)}, ${plural(space.calls, "call", "calls")}` })));
}

function listenToControls(app) {
  const on = (id, event, listener) => byId(id).addEventListener(event, listener);
  on("space", "change", (event) => app.chooseSpace(Number(event.target.value)));
  on("scrub", "input", (event) => app.goTo(Number(event.target.value), true));
  on("record", "change", (event) => {
    app.goTo(Number(event.target.value), true);
    event.target.value = app.n;
  });
  on("to-first", "click", () => app.goTo(app.space.first, true));
  on("to-last", "click", () => app.goTo(app.space.last, true));
  on("back", "click", () => app.goTo(app.n - 1, true));
  on("forward", "click", () => app.goTo(app.n + 1, true));
  on("play", "click", () => app.toggle());
  on("zoom-in", "click", () => app.zoomTime(0.5));
  on("zoom-out", "click", () => app.zoomTime(2));
  on("zoom-memory-in", "click", () => app.zoomMemory(0.5));
  on("zoom-memory-out", "click", () => app.zoomMemory(2));
  on("zoom-all", "click", () => app.zoomAll());
  on("heights", "change", (event) => app.picture.setHeights(event.target.value));
  on("theme", "click", () => app.setTheme(app.theme === "dark" ? "light" : "dark"));
  on("help-button", "click", () => byId("help").showModal());
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const choose = (tab) => {
    for (const each of tabs) {
      const chosen = each === tab;
      each.setAttribute("aria-selected", String(chosen));
      each.tabIndex = chosen ? 0 : -1;
      byId(each.getAttribute("aria-controls")).hidden = !chosen;
    }
    showTab(app);
  };
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = tabs[(i + step + tabs.length) % tabs.length];
      choose(next);
      next.focus();
      event.stopPropagation();
    });
  });
}

function listenToKeys(app) {
  const page = () => Math.max(1, Math.round((app.view.n1 - app.view.n0) / 4));
  const keys = {
    ArrowLeft: (event) => app.goTo(app.n - (event.shiftKey ? 10 : 1), true),
    ArrowRight: (event) => app.goTo(app.n + (event.shiftKey ? 10 : 1), true),
    PageUp: () => app.goTo(app.n - page(), true),
    PageDown: () => app.goTo(app.n + page(), true),
    Home: () => app.goTo(app.space.first, true),
    End: () => app.goTo(app.space.last, true),
    ArrowUp: () => app.selectNeighbour(1),
    ArrowDown: () => app.selectNeighbour(-1),
    " ": () => app.toggle(),
    Enter: () => byId("vma").scrollIntoView({ block: "nearest" }),
    "+": () => app.zoomTime(0.5),
    "=": () => app.zoomTime(0.5),
    "-": () => app.zoomTime(2),
    "]": () => app.zoomMemory(0.5),
    "[": () => app.zoomMemory(2),
    0: () => app.zoomAll(),
    n: () => app.nextFailure(1),
    p: () => app.nextFailure(-1),
    c: () => app.goTo(app.space.nextChange(app.n), true),
    t: () => app.setTheme(app.theme === "dark" ? "light" : "dark"),
    "?": () => byId("help").showModal(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    const where = event.target.closest("input, select, button, summary, [role=tab]");
    // Where a key means something already, it goes on meaning that.
    const own = where && (where.matches("input[type=number], select") || [" ", "Enter"].includes(event.key));
    const slides = where?.matches("input[type=range]") && /^(Arrow|Page|Home|End)/.test(event.key);
    const scrolls = event.target !== byId("picture") && !where && /^(ArrowUp|ArrowDown|Page|Home|End)/.test(event.key);
    if (own || slides || scrolls || !Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    keys[event.key](event);
  });
}

function fail(error) {
  byId("notes").hidden = false;
  byId("notes").append(make("p", { text: `This page could not be drawn (${error.message}): a browser of 2023 or later is needed.` }));
  throw error;
}

async function start() {
  const data = JSON.parse(byId("data").textContent);
  const columns = await unpack("first", data.first);
  const app = new App(data, columns);
  window.vmalab = app; // for the console
  showHead(app);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  app.setTheme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => app.setTheme(dark.matches ? "dark" : "light"));
  if (!app.spaces.length) {
    byId("notes").hidden = false;
    byId("notes").append(make("p", { text: "There is no address space in this trace." }));
    document.querySelector("main").hidden = true;
    document.documentElement.dataset.ready = "whole";
    return;
  }
  listenToControls(app);
  listenToKeys(app);
  const longest = app.spaces.reduce((best, space, i) => (space.calls > app.spaces[best].calls ? i : best), 0);
  byId("space").value = String(longest);
  app.chooseSpace(longest);
  byId("picture").focus({ preventScroll: true, focusVisible: false });
  new ResizeObserver(() => {
    app.chart.resize();
    app.picture.resize();
  }).observe(byId("picture"));
  // The picture is there: what is read comes after it has been drawn.
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  document.documentElement.dataset.ready = "picture";
  performance.mark("vmalab-picture");
  if (document.readyState === "loading") await new Promise((resolve) => addEventListener("DOMContentLoaded", resolve));
  app.tale = new Tale(data, await unpack("later", data.later), columns.places);
  showStory(app);
  app.showPanels();
  showTab(app);
  document.documentElement.dataset.ready = "whole";
  performance.mark("vmalab-whole");
}

start().catch(fail);
